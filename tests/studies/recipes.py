"""Recipes run by tests, without the MLflow server of the user's environment."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> dict[str, Any]:
    """Return the names that studies/NAME.py defines."""
    return runpy.run_path(str(ROOT / "studies" / f"{name}.py"))


def run_recipe(name: str, *flags: str) -> int:
    """Run studies/NAME.py in this process, which saves imports; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in _mlflow_variables():
            patch.delenv(variable)
        patch.setattr("sys.argv", [f"{name}.py", *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "studies" / f"{name}.py"), run_name="__main__")
    return int(str(ended.value.code))


def start_recipe(name: str, *flags: str, timeout_s: float = 170) -> subprocess.CompletedProcess[str]:
    """Run studies/NAME.py in a new process, as a user does."""
    environment = {variable: value for variable, value in os.environ.items() if variable not in _mlflow_variables()}
    command = [sys.executable, str(ROOT / "studies" / f"{name}.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)


def _mlflow_variables() -> list[str]:
    # Not all MLFLOW_*: the library sets some when it is imported, which happens only once per process.
    return [name for name in os.environ if name.startswith(("MLFLOW_TRACKING_", "MLFLOW_EXPERIMENT_", "MLFLOW_RUN_"))]
