"""After any executor and with any head, the user's own network is the trained one, where it was found."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import backlink_ray as bl
from backlink_ray.data.loader import EvaluationBatches
from backlink_ray.local.heads import MakeHead
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.train.evaluation import Evaluation, EvaluationSum
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import different, job, sample, tiny_network
from tests.own import narrow_head

Make = Callable[[Job], Executor]
HEADS = ("fc", "conv", "pool", "mlp-sr", narrow_head)
METHODS = {
    "backlink": bl.BackLink(propagation_length=1),
    "bp": bl.BP(),
    "dni": bl.DNI(),
    "async": bl.DGL(mode="async"),
}


def networks_job(head: str | MakeHead, method: str = "backlink") -> tuple[bl.Network, Job]:
    network = tiny_network(dropout=0.1)
    return network, replace(job(METHODS[method], 2), modules=bl.split(network, 2, head=head))


def answer(network: bl.Network) -> Evaluation:
    total = EvaluationSum()
    for images, labels in EvaluationBatches(sample().test, 16):
        total.add(bl.predict(network, images), labels)
    return total.result()


def check(make: Make, head: str | MakeHead, method: str = "backlink") -> None:
    network, training = networks_job(head, method)
    before = answer(network)
    with make(training) as executor:
        executor.train(2)
        state = executor.state()
        executor.train(2)  # what was learned after the last state counts, too
        found = executor.evaluate("test")
    assert answer(network) == found  # wrong answers of every class, and the loss bit for bit
    assert before.loss != found.loss
    assert not torch.equal(network.units[0][0].weight, state.weights["units.0.0.weight"])
    assert int(network.units[0][1].num_batches_tracked) == 4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_the_network_answers_as_the_run_did(make: Make, head: str | MakeHead) -> None:
    check(make, head)


@pytest.mark.parametrize(
    ("make", "method"),
    [(LocalExecutor, "bp"), (ThreadsExecutor, "dni"), (ThreadsExecutor, "async"), (RoundRobinExecutor, "async")],
)
def test_with_other_methods(make: Make, method: str) -> None:
    check(make, "conv", method)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("head", "method"), [*((head, "backlink") for head in HEADS), ("fc", "bp"), ("conv", "async")])
def test_over_ray(head: str | MakeHead, method: str, pooled_executor: Make) -> None:
    check(pooled_executor, head, method)


def test_over_ray_what_a_failed_run_learned_is_not_fetched_and_a_state_is_fetched_once(
    pooled_executor: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, training = networks_job("conv")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with contextlib.suppress(KeyboardInterrupt), pooled_executor(training) as executor:
        executor.train(1)
        raise KeyboardInterrupt
    assert different(network.state_dict(), before) == []
    with pooled_executor(training) as executor:
        executor.train(1)
        state = executor.state()
        monkeypatch.setattr(executor, "_call", None)  # the stages are not asked again
    assert all(torch.equal(tensor, state.weights[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_the_modules_are_moved_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the devices of before; the meta device stands for the executor's."""
    network, training = networks_job("conv")
    with make(training):
        network.to("meta")  # as a GPU's executor does
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self.to_empty(device=device))
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"cpu"}


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_a_state_that_does_not_fit_is_one_error_of_the_executor(make: Make) -> None:
    with make(networks_job("fc")[1]) as executor:
        state = executor.state()
        state.weights["units.2.1.weight"] = torch.ones(1)
        with pytest.raises(bl.ConfigError, match=r"units\.2\.1\.weight has shape \(1,\), here \(6,\)"):
            executor.load(state)


def test_over_ray_a_state_is_pickled_once_for_all_stages(
    pooled_executor: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backlink_ray.pipeline.actors import ray

    put, shared = ray.put, []
    with pooled_executor(networks_job("fc")[1]) as executor:
        executor.train(1)
        state = executor.state()
        monkeypatch.setattr(ray, "put", lambda value: shared.append(value) or put(value))
        executor.load(state)
        assert shared == [state]
        assert different(executor.state().weights, state.weights) == []
