"""Evaluation: errors of each class, checked by hand. The pipeline's tests compare the executors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backlink_ray.data.choice import choose
from backlink_ray.data.datasets import hold_out, load_dataset
from backlink_ray.data.originals import long_tailed
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import make_job
from backlink_ray.runs.results import epoch_line
from backlink_ray.runs.runner import run
from backlink_ray.train.executor import EvaluationSum


def test_errors_of_classes_by_hand() -> None:
    total = EvaluationSum()
    total.add(torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 9.0, 0, 0]]), torch.tensor([0, 0, 1]))
    total.add(torch.tensor([[0, 9.0, 0, 0], [0, 9.0, 0, 0]]), torch.tensor([3, 0]))
    result = total.result()
    assert result.class_wrong == (2, 0, 0, 1)
    assert result.class_images == (3, 1, 0, 1)
    assert result.class_error_pct == [pytest.approx(200 / 3), 0.0, None, 100.0]
    assert result.error_pct == 60.0


def test_a_run_writes_the_error_of_each_class_once_with_the_last_weights(tmp_path: Path) -> None:
    whole = load_dataset("cifar10-sample")
    train, test = (s.take(choose(s.labels, [n] * 10, 0, "test")) for s, n in ((whole.train, 40), (whole.test, 5)))
    data = long_tailed(replace(whole, train=train, test=test), "sample-lt", 0)
    assert data.train_counts == [40, 30, 23, 18, 14, 10, 8, 6, 4, 3]
    config = RunConfig(network="resnet8", num_modules=1, method="bp", lr=0.1, batch_size=50, epochs=2, executor="local")
    result = run(config, tmp_path, dataset=data)
    errors = json.loads((tmp_path / "result.json").read_text())["class_error_pct"]
    assert errors == result["class_error_pct"]
    assert len(errors) == 10
    assert result["class_train_images"] == data.train_counts
    assert sum(errors) / 10 == pytest.approx(result["test_error_pct"])  # the test set is balanced
    assert ["class_error_pct" in epoch for epoch in result["curve"]] == [False, True]
    with pytest.raises(ConfigError, match="seed=1.* seed 0"):
        make_job(config.replace(seed=1), data)


def test_a_run_on_float_labels_writes_losses_and_no_errors(tmp_path: Path) -> None:
    whole = load_dataset("cifar10-sample", train_images=40, test_images=20)
    train, test = (
        replace(s, labels=torch.nn.functional.one_hot(s.labels, 10).float()) for s in (whole.train, whole.test)
    )
    data = replace(whole, train=train, test=test)
    config = RunConfig(network="resnet8", num_modules=1, method="bp", lr=0.1, batch_size=20, epochs=1, executor="local")
    result = run(config, tmp_path, dataset=data)
    assert result["test_loss"] == pytest.approx(2.3, abs=0.5)
    assert [name for name in result if "error" in name or "class" in name] == []
    assert epoch_line(result["curve"][0], 1).startswith(
        f"epoch 1/1  test loss {result['test_loss']:.4g}  local losses "
    )


def test_a_part_of_every_class_of_a_long_tail_is_held_out() -> None:
    data = long_tailed(load_dataset("cifar10-sample"), "sample-lt", 0)
    kept, held = hold_out(data, 0.1, seed=0)
    assert held.labels.bincount().tolist() == [20, 16, 12, 10, 7, 6, 5, 4, 3, 2]
    assert len(kept) + len(held) == len(data.train)
