"""Sufficient descent: sums by hand, and cases in which theory gives the answer, in float64."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import backlink_ray as bl
from backlink_ray.benchmarks import descent as descents
from backlink_ray.benchmarks.descent import directions
from backlink_ray.measure.descent import ALL, Descent, MeanGradients, descent, descent_by_module
from backlink_ray.methods.base import Method
from tests.examples import batch, sample, tiny_network


def found(modules: list[bl.LocalModule], method: Method, batches: int = 1) -> dict[str, torch.Tensor]:
    mean = MeanGradients()
    for seed in range(batches):
        mean.add(bl.gradients(modules, method, *batch(seed=seed)))
    return mean.mean()


def modules(k: int = 2, units: int = 4) -> list[bl.LocalModule]:
    return bl.split(tiny_network(units=units).double(), k)


def test_sums_by_hand() -> None:
    whole = {
        "units.0.w": torch.tensor([1.0, 2.0]),
        "units.1.w": torch.tensor([[2.0]]),
        "heads.1.w": torch.tensor([9.0]),
    }
    method = {
        "units.0.w": torch.tensor([2.0, 0.0]),
        "units.1.w": torch.tensor([[2.0]]),
        "heads.0.w": torch.tensor([7.0]),
    }
    measured = descent(whole, method)
    assert measured.constant == pytest.approx((1 * 2 + 2 * 0 + 2 * 2) / 9)
    assert measured.norm_ratio == pytest.approx(math.sqrt(8 / 9))
    parts = descent_by_module(whole, method, [1, 1])
    assert parts[ALL] == measured
    assert parts[0] == Descent(constant=2 / 5, norm_ratio=math.sqrt(4 / 5))
    assert parts[1] == Descent(constant=1.0, norm_ratio=1.0)


def test_units_of_two_digits_do_not_count_as_units_of_one() -> None:
    whole = {f"units.{i}.w": torch.tensor([1.0]) for i in range(12)}
    method = {name: torch.tensor([float(i == 1)]) for i, name in enumerate(whole)}
    assert descent_by_module(whole, method, [2, 10])[0].constant == pytest.approx(1 / 2)
    assert descent_by_module(whole, method, [2, 10])[1].constant == 0.0


def test_the_mean_over_batches_is_the_mean_and_not_the_sum() -> None:
    mean = MeanGradients()
    mean.add({"units.0.w": torch.tensor([1.0, 4.0])})
    mean.add({"units.0.w": torch.tensor([3.0, 0.0])})
    assert mean.mean()["units.0.w"].tolist() == [2.0, 2.0]


def test_backlink_over_a_whole_module_with_alpha_0_is_bp_and_gives_one() -> None:
    measured = descent_by_module(
        found(modules(), bl.BP()), found(modules(), bl.BackLink(propagation_length=2, alpha=0.0)), [2, 2]
    )
    for part in measured.values():
        assert (part.constant, part.norm_ratio) == (1.0, 1.0)


def test_the_last_module_is_exact_and_flatters_the_total() -> None:
    measured = descent_by_module(found(modules(4, 8), bl.BP()), found(modules(4, 8), bl.GLL()), [2, 2, 2, 2])
    assert (measured[3].constant, measured[3].norm_ratio) == (1.0, 1.0)
    assert all(abs(measured[k].constant - 1) > 1e-3 for k in range(3))


def test_no_gradient_at_all_has_no_direction() -> None:
    measured = descent({"units.0.w": torch.zeros(2)}, {"units.0.w": torch.ones(2)})
    assert math.isnan(measured.constant)
    assert math.isnan(measured.norm_ratio)


@pytest.mark.parametrize("method", [{}, {"heads.0.w": torch.ones(1)}])
def test_a_unit_without_gradient_is_refused_by_name(method: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"units\.0\.w"):
        descent({"units.0.w": torch.ones(1)}, method)


def test_directions_along_a_run_continue_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bl.RunConfig(
        network="resnet8", num_modules=2, propagation_length=1, alpha=0.0, lr=0.02, batch_size=16, epochs=2
    )
    data = dataclasses.replace(sample(), train=sample().train.first(32, "train_images"))
    whole = list(directions(config, data, "cpu", tmp_path / "whole"))
    assert [epoch for epoch, _ in whole] == [0, 1, 2]
    part = directions(config, data, "cpu", tmp_path / "part")
    torch.set_num_threads(3)
    first = [next(part), next(part)]
    assert torch.get_num_threads() == 1
    part.close()  # killed after the first epoch
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(descents, "stopping", lambda: True)  # a signal in the first step of the second epoch
    with pytest.raises(KeyboardInterrupt):
        list(directions(config, data, "cpu", tmp_path / "part"))
    monkeypatch.undo()
    rest = list(directions(config, data, "cpu", tmp_path / "part"))
    assert [*first, *rest] == whole
    assert all(measured[1].constant == pytest.approx(1, abs=1e-6) for _, measured in whole)
    assert all(measured[ALL].constant > 0 for _, measured in whole)
