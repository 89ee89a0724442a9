"""Methods with late errors, against loops that apply earlier gradients of BP or BackLink, in float64."""

from collections.abc import Callable

import pytest
from torch import Tensor

import backlink_ray as bl
from backlink_ray.local.module import LocalModule
from backlink_ray.train.optim import Sgd, Updater
from tests.examples import batch, tiny_network

K, LR = 3, 0.05
Found = dict[str, Tensor]


def modules_of() -> list[LocalModule]:
    return bl.split(tiny_network(6).double(), K)


def weights(modules: list[LocalModule]) -> Found:
    return {n: p.detach() for m in modules for n, p in m.chain.named()}


def check(method: bl.BackLink | bl.DDG, moved: Callable[[int, list[LocalModule]], list[Found]], steps: int = 6) -> None:
    """Compare a trainer with a loop in which step t moves module k along moved(t, modules)[k] (empty: not at all)."""
    trainer, modules = bl.Trainer(modules_of(), method, lr=LR), modules_of()
    updaters = [Updater(m.named(), Sgd()) for m in modules]
    for t in range(steps):
        trainer.step(*batch(seed=t))
        gradients = moved(t, modules)
        for updater, found in zip(updaters, gradients, strict=True):
            updater.set_lr(LR)
            updater.update([found.get(name) for name in updater.names])
    ours, expected = weights(trainer.modules), weights(modules)
    assert max(float((ours[n] - expected[n]).abs().max()) for n in expected) < 1e-12


def test_ddg_is_backpropagation_that_arrives_late() -> None:
    """Module k of K moves at step t along BP's gradient of batch t - (K - k), taken with the weights of that step."""
    history: list[Found] = []

    def moved(t: int, modules: list[LocalModule]) -> list[Found]:
        history.append(bl.gradients(modules, bl.BP(), *batch(seed=t)))
        return [history[t - delay] if t >= (delay := K - 1 - k) else {} for k in range(K)]

    check(bl.DDG(), moved)


@pytest.mark.parametrize("alpha_mode", ["once", "compound"])
def test_a_stale_tail_mixes_an_older_link(alpha_mode: str) -> None:
    """Before the first link gradient arrives, the tail follows its unscaled local gradient."""
    alpha, history = 0.3, list[Found]()

    def moved(t: int, modules: list[LocalModule]) -> list[Found]:
        local = bl.gradients(modules, bl.GLL(), *batch(seed=t))
        history.append(bl.gradients(modules, bl.BackLink(propagation_length=2, alpha=0.0), *batch(seed=t)))
        if not t:
            return [local] * K
        depths = {n: 2 - int(n.split(".")[1]) % 2 for n in local if n.startswith("units.") and n < "units.4"}
        e = {n: depth if alpha_mode == "compound" else 1 for n, depth in depths.items()}
        link = history[t - 1]
        return [{**local, **{n: alpha ** e[n] * local[n] + (1 - alpha) ** e[n] * link[n] for n in e}}] * K

    check(bl.BackLink(propagation_length=2, alpha=alpha, alpha_mode=alpha_mode, mode="stale"), moved)


def test_stale_over_the_error_link_is_refused() -> None:
    with pytest.raises(
        bl.ConfigError, match="mode='stale' with link='error' has no graph of the tail; allowed: link replica"
    ):
        bl.BackLink(mode="stale", link="error")
    with pytest.raises(bl.ConfigError, match="allowed: link replica, or mode exact"):
        bl.RunConfig(mode="stale", link="error")
