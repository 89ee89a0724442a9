"""Optimizers of the user's: torch's update on the method's gradients, their state in checkpoints, and what is refused."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from backlink_ray.train.checkpoint import Checkpoints
from tests.examples import batch, different, different_states, tiny_network
from tests.own import OPTIMIZERS

METHOD = bl.BackLink(propagation_length=1, alpha=0.25)


def rate(step: int) -> float:
    return 0.05 / (1 + step)


def trainer_with(name: str, seed: int = 0) -> bl.Trainer:
    modules = bl.split(tiny_network(4, seed=seed).double(), 2)
    return bl.Trainer(modules, METHOD, rate, optimizer=OPTIMIZERS[name], engine=Engine(memory_format="contiguous"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_optimizers_own_at_the_schedules_rate(name: str) -> None:
    trainer, modules = trainer_with(name), bl.split(tiny_network(4).double(), 2)
    named = dict(pair for m in modules for pair in m.named())
    optimizer = OPTIMIZERS[name](list(named.values()))
    for step in range(3):
        trainer.step(*batch(seed=step))
        for n, gradient in bl.gradients(modules, METHOD, *batch(seed=step)).items():
            named[n].grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    assert all(torch.equal(p, named[n]) for m in trainer.modules for n, p in m.named())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_continues_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    trainer = trainer_with(name)
    for step in range(4):
        if step == 2:
            Checkpoints(tmp_path).save(trainer.state(), {})
        trainer.step(*batch(seed=step))
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    fresh = trainer_with(name, seed=5)
    fresh.step(*batch(seed=9))  # whose state must go
    fresh.load(found[0])
    for step in (2, 3):
        fresh.step(*batch(seed=step))
    assert different_states(fresh.state(), trainer.state()) == []


@pytest.mark.parametrize(("one", "other"), [("adamw", "heavy ball"), ("heavy ball", "adamw"), ("adamw", "adagrad")])
def test_another_optimizers_state_is_refused_and_nothing_moves(one: str, other: str) -> None:
    trainer, fresh = trainer_with(one), trainer_with(other, seed=5)
    trainer.step(*batch())
    before = {n: t.clone() for n, t in fresh.state().weights.items()}
    told = r"the state of units\.0\.0\.weight lacks .*; allowed: a state of the same"
    with pytest.raises(bl.ConfigError, match=told):
        fresh.load_state_dict(trainer.state_dict())
    assert different(before, fresh.state().weights) == []


def test_a_rate_in_a_tensor_is_set_in_place_and_no_state_of_the_optimizers_own() -> None:
    """As `Sgd` has it on a GPU."""
    optimizer = lambda p: torch.optim.SGD(p, torch.zeros(()), 0.9, fused=True)  # noqa: E731
    found = [bl.Trainer(bl.split(tiny_network(4).double(), 2), METHOD, rate, optimizer=o)
             for o in (optimizer, lambda p: torch.optim.SGD(p, 0.0, 0.9, fused=True))]  # fmt: skip
    losses = [torch.stack([trainer.step(*batch()) for _ in range(3)]) for trainer in found]
    assert torch.allclose(*losses)
    assert len(set(losses[0].flatten().tolist())) == 6


def test_a_gradient_of_the_users_own_moves_nothing() -> None:
    modules = bl.split(tiny_network(4).double(), 2)
    frozen = modules[0].chain.requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]
    for p in frozen.parameters():
        p.grad = torch.ones_like(p)
    bl.Trainer(modules, METHOD).step(*batch())
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))


class Base(torch.optim.Optimizer):
    """SGD; its subclasses each do something that stages or checkpoints cannot follow."""

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, **options})
        self.steps = [0]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.move(p, group)

    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * p.grad)


class Counts(Base):
    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        self.steps[0] += 1
        super().move(p, group)


class CountsInGroup(Base):
    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        group["k"] = group.get("k", 0) + 1
        super().move(p, group)


class Remembers(Base):
    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        self.state[p]["history"] = [1.0]
        super().move(p, group)


class Clips(Base):
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        super().step()


class Noisy(Base):
    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * torch.randn_like(p))


class NoisyMatrices(Noisy):
    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        (Noisy if p.dim() > 1 else Base).move(self, p, group)


def two_rates(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.LBFGS, "optimizer LBFGS needs a closure"),
        (two_rates, "optimizer SGD has the learning rates .*allowed: one lr"),
        (lambda ps: torch.optim.SGD(ps[:-1] or ps), "optimizer SGD holds . parameters and was given"),
        (lambda ps: torch.optim.SGD([torch.zeros(2)]), "optimizer SGD holds 1 parameters"),
        (lambda ps: None, "gives a NoneType; allowed: a callable"),
        (torch.optim.SGD([torch.zeros(2)]), "gives a SGD; allowed: a callable"),
        (Counts, "optimizer Counts changes steps, which no checkpoint holds"),
        (CountsInGroup, "optimizer CountsInGroup changes k, which no checkpoint holds"),
        (Remembers, "optimizer Remembers keeps 'history', a list"),
        (Clips, "optimizer Clips updates two parameters differently together and apart"),
        (Noisy, "optimizer Noisy updates two parameters differently"),
        (NoisyMatrices, "optimizer NoisyMatrices updates two parameters differently"),
        (torch.optim.SparseAdam, "optimizer SparseAdam cannot update these parameters: .*dense"),
    ],
)
def test_what_cannot_work_in_parts_is_refused_before_anything_moves(optimizer: Any, message: str) -> None:
    network = tiny_network(4)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(bl.ConfigError, match=message):
        bl.Trainer(bl.split(network, 2), METHOD, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    bl.Trainer(bl.split(network, 2), METHOD, optimizer=Base)  # what they all do besides is allowed
