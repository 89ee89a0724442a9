"""The GPU list, rehearsed without a GPU, and without the packages that a machine with one may lack."""

import argparse
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.studies.recipes import ROOT, script

ABSENT = ("tyro", "ray", "mlflow", "optuna", "yaml", "pyarrow", "rich", "safetensors", "matplotlib", "scipy")
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*flags: str, out: Path) -> None:
    command = [sys.executable, "-c", BARE, str(ROOT / "studies" / "gpu_list.py"), *flags, "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not (out / "errors.jsonl").exists(), done.stderr


def rows(out: Path, what: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{what}.jsonl").read_text().splitlines()]


def call(command: str, out: Path, left_s: list[float], resume: Path | None = None) -> None:
    """Call a command in this process; the time that it finds left, again and again, is what the list says, then its last."""
    recipe = script("gpu_list")
    left = itertools.chain(left_s, itertools.repeat(left_s[-1]))
    timed = type("Timed", (recipe["Log"],), {"left_s": property(lambda _self: next(left))})
    flags = argparse.Namespace(smoke=True, out=out, resume=resume, commit="0123abc", limit_s=0.0)
    recipe[command](flags, timed(flags))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_measure(tmp_path: Path) -> None:
    start("measure", out=tmp_path)
    correct = rows(tmp_path, "correctness")
    assert all(row.get("relative_difference", 0) == 0 and row.get("equal_bits", True) for row in correct)
    errors = {
        row["precision"]: row["relative_error"] for row in correct if "precision" in row and "largest_error" in row
    }
    assert errors["fp32"] < 1e-5 < 1e-3 < errors["bf16"] < 0.2
    assert Counter(row["network"] for row in rows(tmp_path, "step")) == {"resnet8": 15}
    assert {row["method"] if "method" in row else row["name"] for row in rows(tmp_path, "memory")} == {
        "bp", "gll", "infopro", "backlink",
    }  # fmt: skip
    assert [row["runs"] for row in rows(tmp_path, "together")] == [1, 2, 4]
    assert [row["name"] for row in rows(tmp_path, "limits")] == ["bp", "backlink"]


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    call("measure", tmp_path, [20.0, 0.0])
    assert len(rows(tmp_path, "correctness")) == 3
    assert all("left out" in row["error"] and row["commit"] == "0123abc" for row in rows(tmp_path, "errors"))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_cells_that_the_time_cuts_off_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    whole, cut, more = tmp_path / "whole", tmp_path / "cut", tmp_path / "more"
    start("train", out=whole)
    expected = {row["run_id"]: row for row in rows(whole, "cells")}
    assert [len(expected), *(row["finished"] for row in expected.values())] == [5, *[True] * 5]
    # The first epoch's look at the clock, by each of four cells; the plan's; the loop's; the last epoch's; the loop's; the end.
    call("train", cut, [1000.0] * (4 + 1 + 1 + 4 + 1) + [0.0])
    last = rows(cut, "cells")[-1]
    assert (last["epoch"], last["finished"], (cut / f"{last['run_id']}.pt").exists()) == (1, False, True)
    call("train", more, [1000.0], resume=cut)
    found = {row["run_id"]: row for row in rows(more, "cells")}
    assert not list(more.glob("*.pt"))
    assert {name: row["weights_sha256"] for name, row in found.items()} == {
        name: row["weights_sha256"] for name, row in expected.items()
    }


@pytest.mark.slow
def test_half_the_epochs_where_all_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    call("train", tmp_path, [1000.0] * 4 + [0.0] + [1000.0])
    assert [row["fits"] for row in rows(tmp_path, "plan")] == [False]
    assert {(row["epoch"], row["epochs"], row["finished"]) for row in rows(tmp_path, "cells")} == {(1, 1, True)}
