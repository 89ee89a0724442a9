"""A captured step: equal to the eager one where there is a GPU, refused with a reason where it cannot be."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from backlink_ray.methods.base import Method
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train import captured
from backlink_ray.train.captured import WARM_UP, check_capture, draw
from backlink_ray.train.executor import Executor
from backlink_ray.train.optim import Sgd, Updater
from tests.examples import batch, falling_lr, job, sample, tiny_network
from tests.tape import TapeRecorder, sgd

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CAPTURED = Engine(graph=True)


def updaters(optimizer: object = None, capturable: bool = False) -> list[Updater]:
    network = tiny_network(2)
    if optimizer is None:  # as Sgd() makes it on a GPU; the second has nothing to update
        sgd = lambda p: torch.optim.SGD(p, torch.zeros(()), fused=True)  # noqa: E731
        return [Updater(network.named_parameters(), sgd), Updater((), Sgd())]
    return [Updater(network.named_parameters(), lambda p: torch.optim.Adam(p, capturable=capturable))]


@pytest.mark.parametrize(
    ("method", "dropout", "reason"),
    [
        (bl.BackLink(propagation_length=1, mode="stale"), 0.0, "carries gradients from one step to the next"),
        (bl.DDG(), 0.0, "carries gradients from one step to the next"),
        (bl.BackLink(propagation_length=1, tail_memory="recompute"), 0.1, "tail_memory retain"),
        (bl.DNI(), 0.0, "an optimizer computes its update"),
        (bl.DGL(mode="async"), 0.0, "uses activations of any step"),
    ],
)
def test_steps_that_cannot_be_captured_are_refused_with_the_reason(method: Method, dropout: float, reason: str) -> None:
    modules = bl.split(tiny_network(4, dropout=dropout), 2)
    with pytest.raises(bl.ConfigError, match=reason):
        check_capture(method, modules, updaters())


def test_stages_refuse_what_their_links_make_different() -> None:
    replica, error = (bl.BackLink(propagation_length=1, link=link) for link in ("replica", "error"))
    drawing, mixed = bl.split(tiny_network(4, dropout=0.1), 2), bl.split(tiny_network(4), 2)
    mixed[0].units[-1][0].bfloat16()  # type: ignore[index, operator]
    for modules, reason in (
        (drawing, "a replica would draw other random numbers"),
        (mixed, "weights of several types"),
    ):
        check_capture(replica, modules)
        check_capture(error, modules, in_stages=True)
        with pytest.raises(bl.ConfigError, match=reason):
            check_capture(replica, modules, in_stages=True)


def test_an_optimizer_that_computes_on_the_processor_is_refused() -> None:
    modules = bl.split(tiny_network(4, dropout=0.1), 2)
    assert draw(modules)
    check_capture(bl.BackLink(propagation_length=1), modules, updaters())
    check_capture(bl.GLL(), modules, updaters())
    for capturable in (False, True):  # with a lr that is a number, every replay would have that of the capture
        with pytest.raises(bl.ConfigError, match="capturable=True"):
            check_capture(bl.GLL(), modules, updaters("adam", capturable))


@pytest.mark.parametrize("make", [bl.LocalExecutor, ThreadsExecutor])
def test_a_cpu_is_refused(make: type[Executor]) -> None:
    with pytest.raises(bl.ConfigError, match="graph=True captures the work of a GPU"):
        make(job(bl.GLL(), 2, engine=CAPTURED))


@pytest.mark.parametrize(
    "method", [bl.BP(), bl.BackLink(propagation_length=1, tail_memory="recompute"), bl.InfoPro()], ids=repr
)
def test_a_step_replayed_from_a_tape_has_the_bits_of_the_eager_one(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = TapeRecorder()
    monkeypatch.setattr(captured, "Recorder", lambda _: recorder)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())

    def losses(graph: bool) -> Tensor:
        modules = bl.split(tiny_network(6), 3)
        trainer = bl.Trainer(modules, method.for_data(sample().train), falling_lr, optimizer=sgd)
        trainer.engine = Engine(graph=graph)  # which a constructor on a CPU refuses
        return torch.stack([trainer.step(x.float(), y) for x, y in (batch(seed=s) for s in range(WARM_UP + 3))])

    assert torch.equal(losses(True), losses(False))
    assert recorder.recorded == 1


@GPU
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("method", [bl.BP(), bl.GLL(), bl.BackLink(propagation_length=1), bl.InfoPro()], ids=repr)
def test_a_captured_step_has_the_bits_of_the_eager_one(method: Method, precision: str, same_bits: None) -> None:
    def losses(graph: bool) -> Tensor:
        modules, engine = bl.split(tiny_network(6).cuda(), 3), Engine(graph=graph, precision=precision)
        trainer = bl.Trainer(modules, method, falling_lr, engine=engine)
        batches = [batch(seed=s) for s in range(WARM_UP + 4)]
        return torch.stack([trainer.step(x.cuda().float(), y.cuda()) for x, y in batches]).cpu()

    assert torch.equal(losses(True), losses(False))


@GPU
def test_dropout_draws_anew_at_every_replay_and_the_same_at_every_run() -> None:
    def losses() -> Tensor:
        modules = bl.split(tiny_network(4, dropout=0.5).cuda(), 2)
        trainer = bl.Trainer(modules, bl.GLL(), lr=0.0, engine=CAPTURED)
        x, y = (t.cuda() for t in batch())
        return torch.stack([trainer.step(x.float(), y) for _ in range(WARM_UP + 4)]).cpu()

    first, second = losses(), losses()
    assert torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == len(first)


@GPU
def test_a_unit_that_draws_on_the_processor_is_refused() -> None:
    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(torch.rand(()) < 0.5)

    network = bl.Network([nn.Linear(4, 4), Coin()], nn.Linear(4, 3), torch.zeros(1, 4)).cuda()
    trainer = bl.Trainer(bl.split(network, 1), bl.BP(), engine=CAPTURED)
    with pytest.raises(bl.ConfigError, match="draws random numbers on the processor"):
        trainer.step(torch.randn(4, 4).cuda(), torch.arange(4).cuda() % 3)
