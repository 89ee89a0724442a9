"""Trainer, SGD in parts, and the learning rate."""

import math
from pathlib import Path

import pytest
import torch

import backlink_ray as bl
from backlink_ray.train.optim import CosineSchedule, Sgd, Updater
from tests.examples import batch, tiny_network
from tests.methods.settings import SETTINGS


def test_the_default_optimizer_is_torchs_sgd_on_the_methods_gradients() -> None:
    one, two = (bl.split(tiny_network().double(), 2) for _ in range(2))
    method = bl.BackLink(propagation_length=2, alpha=0.25)
    trainer = bl.Trainer(one, method, lr=0.1)
    named = dict(pair for m in two for pair in m.named())
    sgd = torch.optim.SGD(named.values(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    for step in range(3):
        for name, gradient in bl.gradients(two, method, *batch(seed=step)).items():
            named[name].grad = gradient
        sgd.step()
        trainer.step(*batch(seed=step))
    assert all(torch.equal(p, named[n]) for m in one for n, p in m.named())


def test_updating_in_parts_equals_updating_at_once() -> None:
    torch.manual_seed(0)
    a = [torch.nn.Parameter(torch.randn(3)) for _ in range(4)]
    b = [torch.nn.Parameter(p.detach().clone()) for p in a]
    whole = Updater([(str(i), p) for i, p in enumerate(a)], Sgd())
    parts = [Updater([(str(i), b[i]) for i in part], Sgd()) for part in ((0, 3), (1, 2))]
    for step in range(4):
        gradients = [torch.full((3,), float(step + i)) for i in range(4)]
        whole.update(gradients, 0.1)
        parts[0].update([gradients[0], gradients[3]], 0.1)
        parts[1].update([gradients[1], gradients[2]], 0.1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_cosine_schedule() -> None:
    lr = CosineSchedule(0.5, 200, 0.05)
    assert lr(0) == pytest.approx(0.05)
    assert lr(9) == 0.5
    assert lr(10) == 0.5
    assert lr(105) == pytest.approx(0.25)
    assert 0 < lr(199) < 1e-4
    assert [CosineSchedule(1.0, 4, 0.0)(t) for t in range(4)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    )


def test_bp_on_a_split_network_trains_it_as_a_whole() -> None:
    modules = bl.split(tiny_network().double(), 4)
    trainer = bl.Trainer(modules, bl.BP(), lr=0.1)
    assert trainer.step(*batch()).shape == (1,)
    assert not [n for n in trainer.state().weights if n.startswith("heads.0")]


def test_a_length_that_does_not_fit_is_refused_before_anything_moves() -> None:
    with pytest.raises(bl.ConfigError, match="propagation_length=3 .*2"):
        bl.Trainer(bl.split(tiny_network(), 4), bl.BackLink(propagation_length=3))


def test_a_frozen_unit_does_not_move() -> None:
    network = tiny_network().double()
    network.units[0].requires_grad_(False)
    before = [p.clone() for p in network.units[0].parameters()]
    trainer = bl.Trainer(bl.split(network, 2), bl.BackLink(propagation_length=1), lr=0.5)
    for step in range(3):
        trainer.step(*batch(seed=step))
    assert all(torch.equal(a, b) for a, b in zip(before, network.units[0].parameters(), strict=True))


@pytest.mark.parametrize("name", ["backlink", "backlink, mode=stale", "ddg", "dni"])
def test_a_state_dict_passes_through_a_file_without_code_and_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    trainer, again = (
        bl.Trainer(bl.split(tiny_network(dropout=0.2, seed=seed).double(), 3), SETTINGS[name], lr=0.1)
        for seed in (0, 1)
    )
    for step in range(3):
        trainer.step(*batch(seed=step))
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 5):
        assert torch.equal(trainer.step(*batch(seed=step)), again.step(*batch(seed=step)))
    ours, theirs = again.state_dict(), trainer.state_dict()
    assert ours.keys() == theirs.keys()
    assert ours.pop("step") == theirs.pop("step") == 5
    assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []


def test_evaluate_and_repr() -> None:
    network = tiny_network().double()
    trainer = bl.Trainer(bl.split(network, 2, head="conv"), bl.BackLink(propagation_length=2), lr=0.1)
    images, labels = batch()
    trainer.step(images, labels)
    found = trainer.evaluate(images, labels, batch_size=3)
    logits = network.eval()(images).detach()
    assert found.error_pct == 100 * (logits.argmax(dim=1) != labels).float().mean()
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    first, *modules = repr(trainer).splitlines()
    assert first.startswith("Trainer(step 1, BackLink(propagation_length=2, alpha=")
    assert [line.split(",")[0] for line in modules] == ["  LocalModule(0 of 2", "  LocalModule(1 of 2"]
