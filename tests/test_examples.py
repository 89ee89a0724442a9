"""The examples, copied out of the checkout as a stranger has them, with the results that they end in."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backlink_ray.runs.results import Results
from tests.tracking.mlflow_store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder: Path, script: str, *arguments: str) -> list[str]:
    shutil.copytree(EXAMPLES, folder / "code", dirs_exist_ok=True)
    command = [sys.executable, str(folder / "code" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def found(pattern: str, line: str) -> str:
    match = re.search(pattern, line)
    assert match, line
    return match[1]


def test_every_example_is_short_and_tried_here() -> None:
    files = list(EXAMPLES.glob("*.py"))
    assert {file.stem for file in files} == {
        *["own_images", "own_method", "own_parts", "own_study", "resnet18", "table", "text"]
    }
    assert all(len(file.read_text().splitlines()) < 40 for file in files)


@pytest.mark.slow  # tests/tuning/test_search.py has a stranger's script of the same kind
@pytest.mark.timeout(300)
def test_own_parts_on_every_executor_in_a_search_and_loaded(tmp_path: Path) -> None:
    lines = run(tmp_path, "own_study.py")
    runs = [line for line in lines if re.match(r"(local|threads|ray) +error", line)]
    assert len(runs) == 3
    assert len({found(r"weights (\w{12})", line) for line in runs}) == 1
    rows = Results(tmp_path / "results" / "search").rows()
    assert len({row["options.gamma"] for row in rows}) == 4
    assert [status for _, status in Store(tmp_path / "results" / "mlflow.db").runs()] == ["FINISHED"] * 4
    assert found(r"test error ([\d.]+) %", lines[-1]) == found(r"test error ([\d.]+) %", lines[-2])


# What a script reports, in percent, and what it would be at least if nothing were learned.
LEARNED = {
    "resnet18.py": ("error", 80.0),
    "table.py": ("", 50.0),
    "text.py": ("error", 70.0),
    "own_method.py": ("error", 92.0),
}


SLOW = ("resnet18.py", "text.py")


@pytest.mark.parametrize("script", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in LEARNED])
@pytest.mark.timeout(300)
def test_an_example_learns(tmp_path: Path, script: str) -> None:
    name, chance = LEARNED[script]
    lines = run(tmp_path, script)
    (result,) = (line for line in lines if "weights" in line)
    assert float(found(name + r" ([\d.]+) ?%", result)) < chance
    if script == "resnet18.py":  # the loaded network answers as the run did
        assert found(r"error ([\d.]+)", lines[-1]) == found(r"error ([\d.]+)", result)


@pytest.mark.slow
@pytest.mark.parametrize("script", LEARNED)
@pytest.mark.timeout(300)
def test_an_example_gives_the_same_weights_on_every_executor(tmp_path: Path, script: str) -> None:
    lines = [line for name in ("local", "threads", "ray") for line in run(tmp_path, script, name) if "weights" in line]
    assert len({line.partition(":")[2] for line in lines}) == 1
    assert len(lines) == 3


@pytest.mark.timeout(300)
def test_a_folder_of_images_is_learned(tmp_path: Path) -> None:
    lines = run(tmp_path, "own_images.py")
    losses = [json.loads(found(r"losses (\[.*\])", line)) for line in lines if line.startswith("epoch")]
    assert losses[-1][-1] < losses[0][-1] - 0.2
    assert float(found(r"test error ([\d.]+) %", lines[-1])) < 85
    assert (tmp_path / "network.pt").exists()
