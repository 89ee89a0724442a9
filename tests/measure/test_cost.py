"""Cost: saved tensors in known cases, and the order of memory that local learning promises."""

import time
from typing import Any

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray import RunConfig
from backlink_ray.benchmarks.jobs import modules_of
from backlink_ray.benchmarks.memory import counted
from backlink_ray.measure.cost import SavedTensors, Stopwatch, training_bytes
from backlink_ray.runs.job import build_method, engine_of


def test_saved_tensors_count_once_per_storage_and_only_while_they_live() -> None:
    x = torch.ones(10, 10, requires_grad=True)
    with SavedTensors() as saved:
        y = x.exp()  # keeps its result
        assert saved.alive_bytes == 400
        z = y * y  # keeps y twice: the same storage
        assert saved.alive_bytes == 400
        w = y.view(100).sin()  # keeps a view of y: the same storage still
        assert saved.alive_bytes == 400
        v = z.exp()
        assert saved.alive_bytes == 800
        del v
        assert (saved.alive_bytes, saved.peak_bytes) == (400, 800)
        (z.sum() + w.sum()).backward()
        del y, z, w
    assert (saved.alive_bytes, saved.peak_bytes) == (0, 800)


def test_parameters_do_not_count_as_saved() -> None:
    linear = nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8, requires_grad=True)
    with SavedTensors(linear.parameters()) as saved:
        linear(x).sum().backward()
    assert saved.peak_bytes == 4 * 8 * 4  # x, and not the 256 bytes of the weight


def test_gradients_are_right_while_counting() -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
    with SavedTensors():
        (x.exp() * x).sum().backward()
    assert torch.allclose(x.grad, x.exp() * (1 + x)) if x.grad is not None else False


def test_training_bytes_are_parameters_three_times_and_buffers_once() -> None:
    assert training_bytes([nn.BatchNorm1d(4)], saved_bytes=7) == 7 + 3 * (2 * 4 * 4) + (2 * 4 * 4 + 8)


FLAT = RunConfig(network="resnet14", head="conv", batch_size=64)


def mib(**choice: Any) -> float:
    return counted(FLAT.replace(**choice)).counted_mib


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["bp", "gll", "infopro", "backlink"])
def test_counting_equals_what_a_computed_step_saves(method: str, precision: str) -> None:
    config = FLAT.replace(batch_size=4, num_modules=3, propagation_length=2, precision=precision).replace(method=method)
    trainer = bl.Trainer(modules_of(config), build_method(config), engine=engine_of(config))
    images, labels = torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    with SavedTensors([t for m in trainer.modules for t in (*m.parameters(), *m.buffers())]) as saved:
        trainer.step(images, labels)
    found = counted(config)
    # A bfloat16 batch norm keeps some bytes more than its shapes say.
    assert found.saved_mib == pytest.approx(saved.peak_bytes / 2**20, rel=0.0 if precision == "fp32" else 1e-3)
    assert found.counted_mib == training_bytes(trainer.modules, 0) / 2**20 + found.saved_mib


def test_bfloat16_halves_what_is_saved() -> None:
    full, half = (counted(FLAT.replace(num_modules=3, precision=precision)) for precision in ("fp32", "bf16"))
    assert half.saved_mib == pytest.approx(0.5 * full.saved_mib, rel=0.03)
    assert full.counted_mib - full.saved_mib == half.counted_mib - half.saved_mib


@pytest.mark.parametrize(("k", "length"), [(2, 1), (2, 3), (3, 2)])
def test_local_learning_needs_less_than_bp_and_recomputing_no_more_than_gll(k: int, length: int) -> None:
    bp, gll = mib(method="bp"), mib(method="gll", num_modules=k)
    linked = {"num_modules": k, "propagation_length": length, "alpha": 0.5}
    retain, recompute = (mib(**linked, tail_memory=tail) for tail in ("retain", "recompute"))
    assert bp > retain >= recompute >= gll
    assert recompute <= 1.06 * gll


def test_memory_falls_with_k_and_a_longer_tail_is_retained_at_a_price() -> None:
    by_k = [mib(method="gll", num_modules=k) for k in (1, 2, 4, 7)]
    assert by_k == sorted(by_k, reverse=True)
    assert by_k[-1] < 0.5 * by_k[0]
    by_length = [mib(num_modules=3, propagation_length=length, alpha=0.5) for length in (0, 1, 2)]
    assert by_length == sorted(by_length)
    assert by_length[2] > by_length[0]


def test_a_stopwatch_times_what_is_inside() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for seconds in (0.02, 0.0):
        time.sleep(0.01)
        with watch:
            time.sleep(seconds)
    first, second = watch.seconds
    assert first >= 0.02 > second
