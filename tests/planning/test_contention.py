"""Speeds of those who compute at once."""

import threading
from collections.abc import Sequence

import pytest
import torch

from backlink_ray.local.module import LocalModule
from backlink_ray.planning import contention
from backlink_ray.planning.contention import measure_speeds


def test_what_is_done_one_after_another_is_as_much_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "usable_cores", lambda: 4)
    others = threading.active_count()

    def run(_modules: Sequence[LocalModule]) -> float:
        return float(threading.active_count() - others)  # as if they took turns

    # Eight on four cores are given a turn each: they would be twice as slow without slowing each other down.
    halves = (1.0, 1 / 2, 3 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4)
    assert measure_speeds([], run, torch.device("cpu"), repeats=5) == halves


def test_no_more_threads_than_their_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "usable_cores", lambda: 100)
    assert measure_speeds([], lambda _: 1.0, torch.device("cpu"), repeats=1) == (1.0,) * 16


def test_a_gpu_is_as_fast_as_one_stage_alone_finds_it() -> None:
    assert measure_speeds([], lambda _: 1.0, torch.device("cuda"), repeats=1) == (1.0,)
