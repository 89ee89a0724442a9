"""What every method promises: one set of tests for all."""

import pytest
import torch

import backlink_ray as bl
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.catalogue import METHODS
from tests.examples import batch, different, different_states, tiny_network
from tests.methods.settings import EVERY, SETTINGS, choices_of


def modules_of(k: int, seed: int = 0) -> list[LocalModule]:
    return bl.split(tiny_network(6, dropout=0.2, seed=seed).double(), k)


def test_every_method_and_every_choice_is_in_the_table() -> None:
    assert {method.name for method in SETTINGS.values()} == set(METHODS)
    for name in METHODS:
        made = [method for method in EVERY.values() if method.name == name]
        for option, choices in choices_of(name).items():
            values = [getattr(method, option) for method in made]
            assert {getattr(value, "name", value) for value in values} == set(choices)


def test_a_difference_is_found() -> None:
    """By what these and many other tests compare with."""
    a, b = torch.zeros(2), torch.ones(2)
    assert different({"x": a, "y": a, "z": a}, {"x": a, "y": b, "w": a}) == ["y", "z", "w"]


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_change_nothing_and_name_what_trains(name: str) -> None:
    modules, method = modules_of(3), SETTINGS[name]
    before = {n: t.clone() for m in modules for n, t in m.named_state()}
    found = bl.gradients(modules, method, *batch())
    assert different(before, {n: t for m in modules for n, t in m.named_state()}) == []
    units = {n for m in modules for n, _ in m.chain.named()}
    assert units <= set(found)
    assert {n for n, _ in modules[-1].head_named()} <= set(found)
    assert all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_repeatable_and_have_their_parameters_shapes(name: str) -> None:
    method = SETTINGS[name]
    one, two = (bl.gradients(modules_of(3), method, *batch()) for _ in range(2))
    assert different(one, two) == []
    shapes = {n: p.shape for m in method.prepare(modules_of(3)) for n, p in m.named()}
    assert all(g.shape == shapes[n] for n, g in one.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_one_module_is_bp(name: str) -> None:
    one, bp = (bl.gradients(modules_of(1), m, *batch()) for m in (SETTINGS[name], bl.BP()))
    assert different(one, bp) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_statistics_update_once_per_step_and_a_state_continues(name: str) -> None:
    trainers = []
    for _ in range(2):
        trainer = bl.Trainer(modules_of(3), SETTINGS[name], lr=0.05)
        trainer.step(*batch(seed=0))
        trainers.append(trainer)
    counts = {int(t) for n, t in trainers[0].state().weights.items() if n.endswith("num_batches_tracked")}
    assert counts == {1}
    fresh = bl.Trainer(modules_of(3, seed=7), SETTINGS[name], lr=0.05)
    fresh.load(trainers[1].state())
    losses = [trainer.step(*batch(seed=1)) for trainer in (trainers[0], fresh)]
    assert torch.equal(*losses)
    assert different_states(trainers[0].state(), fresh.state()) == []
