"""Trainer and the learning rate."""

import math
from pathlib import Path

import pytest
import torch

import backlink_ray as bl
from backlink_ray.train.optim import CosineSchedule
from tests.examples import batch, different, tiny_network
from tests.methods.settings import SETTINGS


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
    assert ours.pop("step") == theirs.pop("step") == 5
    assert different(ours, theirs) == []


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
