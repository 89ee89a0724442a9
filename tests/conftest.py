"""Shared by all tests: one torch thread (results are bit-equal only at equal numbers), one private Ray, and two workers."""

import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from backlink_ray.benchmarks.checks import repeatable

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Ray would write a token into the home directory, and two that start at once each their own; workers inherit this one.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Processes that tests start share two cores with the other worker's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test fails for slowness.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

# One worker runs, one after another, the tests that use this session's Ray, and those marked as looking at the clock.
CLOCK = "clock"
# What takes longest comes first, so that neither worker is left with it at the end.
FIRST = (
    "tests/studies/test_studies.py",
    "tests/pipeline/",
    "tests/studies/",
    "tests/test_examples.py",
    "tests/tuning/",
    "tests/test_cli.py",
    "tests/tracking/",
    "tests/methods/",
)


TYPED = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file on one worker, since its tests share what is made once a module."""
    for item in items:
        item.stash[TYPED] = item.nodeid
        if "ray_here" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(CLOCK))
        elif item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=rank)


def rank(item: pytest.Item) -> int:
    return next((i for i, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test under an id that can be typed: pytest-xdist writes the group behind it."""
    report = yield
    report.nodeid = item.stash[TYPED]
    return report


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def same_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a GPU, everything adds in one order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with repeatable():
        yield


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", include_dashboard=False, num_cpus=2, num_gpus=0, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def narrow_linear_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """AlexNet and VGG16 with their own units, dropout included, but not their 4096-wide linear maps' millions of weights."""
    monkeypatch.setattr("backlink_ray.nets.plain.LINEAR_WIDTH", 32)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables and nothing in them: making them takes seconds."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def storage(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage folder whose SQLite store has its tables; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "storage").mkdir()
    shutil.copy(template, tmp_path / "storage" / "mlflow.db")
    return tmp_path / "storage"
