"""Tables and figures that a signal ends, to their whole process group: one line, how to resume, and nothing left behind."""

import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from backlink_ray.runs.results import Results
from tests.test_signals import GONE_S, ROOT, running, steps_in

CELL = "table2/cifar10/resnet32/fc/K4/l2"
TABLE = ["--preset", "smoke", "--cell", CELL, "--alpha", "0.5", "--train-images", "1600", "--batch-size", "4"]


def check_stopped(storage: Path, number: int, name: str, *flags: str, file: str, contains: str) -> None:
    """Send a signal a moment after a file in the storage folder, a glob, contains a pattern; check how the command ends."""
    line = [sys.executable, str(ROOT / "studies" / f"{name}.py"), *flags, "--storage-path", str(storage)]
    with running(line) as child:
        child.wait_for(storage / file, contains)
        time.sleep(1)
        start = child.send(number, to_group=True)
        code, out, err = child.end()
        print(f"{name} {number}: exit {code} after {child.ended - start:.1f} s, left {child.left()}")
        assert code == 3, err
        assert f"resume: {shlex.join(line)} --resume auto" in out + err
        assert "interrupted" in err
        assert not re.search("Traceback|stack trace", out + err), out + err
        assert child.ended - start < GONE_S
        assert child.left() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "executor"), [(signal.SIGINT, "local"), (signal.SIGTERM, "ray")])
def test_a_table_whose_trial_saves_inside_an_epoch(tmp_path: Path, number: int, executor: str) -> None:
    begun = {"file": "*/runs/*/environment.json", "contains": "attempts"}
    check_stopped(tmp_path / "s", number, "table_2", *TABLE, "--executor", executor, **begun)
    (run,) = (tmp_path / "s").glob("*/runs/*")
    assert steps_in(run), "the trial was told to stop, and saved"
    assert not (run / "result.json").exists()
    assert Results(run.parents[1]).rows() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "figure_3_descent"), (signal.SIGINT, "figure_7_memory")])
def test_a_figure_keeps_what_it_has_measured(tmp_path: Path, number: int, name: str) -> None:
    check_stopped(tmp_path / "s", number, name, "--smoke-test", file="*/results.jsonl", contains="FINISHED")
    (folder,) = (tmp_path / "s").glob("figure_*")
    assert Results(folder).rows()
