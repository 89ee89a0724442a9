"""Every method learns on real images: ResNet-8, 500 images of the embedded CIFAR-10 sample, 3 epochs, 2 modules."""

from pathlib import Path

import pytest

from backlink_ray import RunConfig
from backlink_ray.data.datasets import load_dataset
from backlink_ray.methods.catalogue import BASES, METHODS
from backlink_ray.runs.job import make_job
from backlink_ray.train.executor import LocalExecutor

BASE = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.05, batch_size=20, epochs=3, warmup_fraction=0.1,
    train_images=500,
)  # fmt: skip
HEADS = {"predsim": "pool", "dgl": "mlp-sr", "infopro": "conv"}  # as published
OPTIONS = {"dni": {"synthesizer_lr": 3e-4}}
# Chance is 90 % with a standard error of 1.3 points over 500 images; this is six of them below.
MOST_ERROR_PCT = 82.0


QUICK = ("bp", "gll", "backlink")
OTHERS = [*(m for m in METHODS if m not in QUICK), *(f"backlink+{base}" for base in BASES if base != "gll")]


@pytest.mark.parametrize("label", [*QUICK, *(pytest.param(label, marks=pytest.mark.slow) for label in OTHERS)])
def test_it_learns(label: str, tmp_path: Path) -> None:
    method, _, base = label.partition("+")
    own = {"base": base} if base else OPTIONS.get(method, {})
    config = BASE.replace(method=method, head=HEADS.get(base or method, "fc"), **own)
    dataset = load_dataset("cifar10-sample", train_images=BASE.train_images)
    with LocalExecutor(make_job(config, dataset)) as executor:
        losses = [executor.train(len(dataset.train) // BASE.batch_size).losses.mean(dim=1) for _ in range(BASE.epochs)]
        error_pct = executor.evaluate("test").error_pct
    assert all(last < first or first == 0 for first, last in zip(losses[0].tolist(), losses[-1].tolist(), strict=True))
    assert error_pct < MOST_ERROR_PCT
