"""Losses and labels of the user's: regression, soft labels, and what is refused before anything moves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.local.module import StepSeed
from backlink_ray.methods.base import Method
from backlink_ray.train.executor import EvaluationSum
from tests.examples import batch, different, job, sample, tiny_network
from tests.own import mean_absolute


def regression_batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return batch(n)[0], torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "method",
    [bl.BP(), bl.GLL(), bl.BackLink(propagation_length=1), bl.DGL(), bl.InfoPro(), bl.DNI(), bl.DDG()],
    ids=lambda m: m.name,
)
def test_every_head_follows_the_given_loss(method: Method) -> None:
    modules, (images, targets) = bl.split(tiny_network(4, classes=2).double(), 2), regression_batch()
    found, other = (bl.gradients(modules, method, images, targets, loss=f) for f in (mean_absolute, F.mse_loss))
    heads = [name for name in found if name.startswith("heads.") and found[name].any()]
    assert heads
    assert [name for name in heads if torch.equal(found[name], other[name])] == []
    x = images
    for module in modules:
        x = module.train().chain(x, StepSeed())
    named = dict(modules[-1].head.named_parameters("heads.1"))
    expected = torch.autograd.grad(mean_absolute(modules[-1].head(x), targets), list(named.values()))
    assert all(torch.allclose(found[n], g, rtol=0, atol=1e-12) for n, g in zip(named, expected, strict=True))


def test_a_regression_is_evaluated_by_its_mean_loss_alone() -> None:
    total, answers, targets = EvaluationSum(mean_absolute), torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 1)
    total.add(answers[:2], targets[:2])
    total.add(answers[2:], targets[2:])
    result = total.result()
    assert result.loss == pytest.approx(7 / 3)
    assert (result.error_pct, result.class_error_pct, result.class_images) == (None, [], ())


def test_soft_and_narrow_labels_train_as_class_labels_do() -> None:
    images, labels = batch()
    asked = [labels, labels.to(torch.int32), labels.to(torch.uint8), F.one_hot(labels, 10).double()]
    found = [bl.gradients(bl.split(tiny_network(4).double(), 2), bl.GLL(), images, y) for y in asked]
    for other in found[1:]:
        assert all(torch.allclose(found[0][n], g, rtol=0, atol=1e-12) for n, g in other.items())


class Growing:
    count = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.count += 1
        return self.count * F.mse_loss(logits, targets)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self.scale * logits, targets)


@pytest.mark.parametrize(
    ("labels", "loss", "method", "message"),
    [
        (torch.zeros(4, 5, dtype=torch.int64), None, bl.GLL(), r"int64 of shape \(4, 5\); allowed: integers \(N,\)"),
        (torch.zeros(4, 3), None, bl.GLL(), r"loss cannot take logits \(4, 10\) and labels \(4, 3\) torch.float32"),
        (torch.zeros(4, 1), F.mse_loss, bl.GLL(), r"loss cannot take logits \(4, 10\) and labels \(4, 1\).*broadcast"),
        (torch.zeros(4, 10), lambda a, b: (a - b) ** 2, bl.GLL(), r"loss returns a tensor \(4, 10\)"),
        (torch.zeros(4, 10), lambda a, b: (a - b).sum().item(), bl.GLL(), "loss returns a float"),
        (torch.zeros(4, 10), lambda a, b: b.sum(), bl.GLL(), r"a tensor \(\) .*depends on the logits"),
        (torch.zeros(4, 10), lambda a, b: F.mse_loss(F.dropout(a), b), bl.GLL(), "loss draws random numbers"),
        (torch.ones(4, 10), Growing(), bl.GLL(), "or answers differently to the same"),
        (torch.ones(4, 10), Scaled(), bl.GLL(), "loss, a Scaled, has parameters, .*method of your own"),
        (torch.ones(4, 10), torch.nn.MSELoss(reduction="sum"), bl.GLL(), "sum over the samples; allowed: the mean"),
        (torch.zeros(4, 10), torch.nn.MSELoss, bl.GLL(), "the loss is the class MSELoss; allowed: an object of it"),
        (torch.zeros(4, 10), None, bl.GLL(), r"cross-entropy cannot learn labels \(4, 10\).*mse_loss for numbers"),
        (torch.eye(10)[:4] * 2 - 0.1, torch.nn.CrossEntropyLoss(), bl.GLL(), "no rows of probabilities"),
        (torch.zeros(4, 10), mean_absolute, bl.PredSim(), "method predsim needs classes"),
        (torch.zeros(4, 10), mean_absolute, bl.DNI(label_conditioning=True), "method dni needs classes"),
        (torch.zeros(4, 10), mean_absolute, bl.BackLink(base=bl.PredSim()), "method backlink needs classes"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_moves(
    labels: Tensor, loss: Any, method: Method, message: str
) -> None:
    network, loss = tiny_network(6), loss or F.cross_entropy
    trainer = bl.Trainer(bl.split(network, 2), method, loss=loss)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(bl.ConfigError, match=message):
        trainer.step(torch.zeros(4, 3, 32, 32), labels)
    assert different(network.state_dict(), before) == []


def test_cross_entropy_of_one_number_is_refused_since_it_is_always_zero() -> None:
    trainer = bl.Trainer(bl.split(tiny_network(4, classes=1), 2), bl.GLL())
    with pytest.raises(bl.ConfigError, match=r"cross-entropy cannot learn labels \(4, 1\) torch.float32"):
        trainer.step(torch.zeros(4, 3, 32, 32), torch.ones(4, 1))


def test_an_evaluation_compares_no_column_with_a_row() -> None:
    trainer = bl.Trainer(bl.split(tiny_network(4, classes=1), 2), bl.GLL(), loss=F.mse_loss)
    with pytest.raises(bl.ConfigError, match=r"logits \(4, 1\) and labels \(4,\).*broadcast"):
        trainer.evaluate(torch.zeros(4, 3, 32, 32), torch.ones(4))


def test_a_job_names_the_set_whose_labels_do_not_fit() -> None:
    good = job(bl.GLL(), 2)
    wrong = replace(sample().test, labels=sample().test.labels + 1)
    with pytest.raises(bl.ConfigError, match=r"test labels hold 10 at .*; allowed: classes 0\.\.9"):
        replace(good, evaluations={"test": wrong})
