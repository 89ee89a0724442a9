"""Identities of BackLink in float64, and its gradients straight from the definition: one separate graph per loss."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import backlink_ray as bl
from backlink_ray.local.module import LocalModule, StepSeed
from tests.examples import batch, different, different_states, tiny_network


def modules_of(k: int, units: int = 6, head: str = "fc", dropout: float = 0.0) -> list[LocalModule]:
    return bl.split(tiny_network(units, dropout=dropout).double(), k, head=head)


def gradients(k: int, method: object, units: int = 6, head: str = "fc", seed: int = 1) -> dict[str, Tensor]:
    return bl.gradients(modules_of(k, units, head), method, *batch(seed=seed))  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "head"), list(itertools.product((2, 3), ("fc", "conv"))))
def test_no_link_is_gll(k: int, head: str) -> None:
    gll = gradients(k, bl.GLL(), head=head)
    for length, alpha in ((0, 0.3), (2, 1.0)):
        assert different(gll, gradients(k, bl.BackLink(propagation_length=length, alpha=alpha), head=head)) == []


def test_two_modules_fully_linked_give_bps_unit_gradients() -> None:
    linked = gradients(2, bl.BackLink(propagation_length=3, alpha=0.0))
    bp = bl.gradients(modules_of(2), bl.BP(), *batch())
    units = [n for n in bp if n.startswith("units.")]
    assert len(units) == 18
    assert all(torch.equal(linked[n], bp[n]) for n in units)


def from_the_definition(
    modules: list[LocalModule], images: Tensor, labels: Tensor, length: int, alpha: float, mode: str
) -> dict[str, Tensor]:
    inputs, x = [], images
    with torch.no_grad():
        for m in modules:
            inputs.append(x)
            x = m.chain(x, StepSeed())
    found: dict[str, Tensor] = {}
    for k, m in enumerate(modules):
        names, parameters = zip(*m.named(), strict=True)
        loss = F.cross_entropy(m.head(m.chain(inputs[k], StepSeed())), labels)
        found.update(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        if m.is_last or not length:
            continue
        tail = m.tail(length)
        with torch.no_grad():
            a = m.body(length)(inputs[k], StepSeed())
        following = modules[k + 1]
        loss = F.cross_entropy(following.head(following.chain(tail(a, StepSeed()), StepSeed())), labels)
        names, parameters = zip(*tail.named(), strict=True)
        for name, g in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            depth = m.chain.first_index + len(m.units) - int(name.split(".")[1])
            e = depth if mode == "compound" else 1
            found[name] = alpha**e * found[name] + (1 - alpha) ** e * g
    return found


@pytest.mark.parametrize(
    ("k", "length", "alpha", "mode"), list(itertools.product((2, 3), (0, 1, 2), (0.0, 0.25, 1.0), ("once", "compound")))
)
def test_gradients_follow_the_definition(k: int, length: int, alpha: float, mode: str) -> None:
    images, labels = batch()
    modules = modules_of(k)
    ours = bl.gradients(modules, bl.BackLink(propagation_length=length, alpha=alpha, alpha_mode=mode), images, labels)
    expected = from_the_definition(modules, images, labels, length, alpha, mode)
    assert ours.keys() == expected.keys()
    assert max(float((ours[n] - expected[n]).abs().max()) for n in expected) < 1e-12


def test_body_scale_alpha_scales_bodies_with_a_tail_and_nothing_else() -> None:
    one = gradients(3, bl.BackLink(propagation_length=1, alpha=0.25))
    scaled = gradients(3, bl.BackLink(propagation_length=1, alpha=0.25, body_scale="alpha"))
    ratio = {n: float((scaled[n] / one[n]).nanmean()) for n in one}
    assert {n for n, r in ratio.items() if abs(r - 1) > 1e-9} == {
        n for n in one if n.startswith(("units.0.", "units.2."))
    }
    assert abs(ratio["units.0.0.weight"] - 0.25) < 1e-12


@pytest.mark.parametrize(("dropout", "head"), [(0.0, "fc"), (0.3, "conv")])
def test_recompute_equals_retain(dropout: float, head: str) -> None:
    """Also with dropout in the tail, which must draw the same mask again, and batch norm, which must update once."""
    states = []
    for memory in ("retain", "recompute"):
        modules = bl.split(tiny_network(6, dropout=dropout).double(), 3, head=head)
        trainer = bl.Trainer(modules, bl.BackLink(propagation_length=2, alpha=0.5, tail_memory=memory), lr=0.1)
        for step in range(3):
            trainer.step(*batch(seed=step))
        states.append(trainer.state())
    assert different_states(*states) == []
    assert int(states[0].weights["units.1.1.num_batches_tracked"]) == 3
