"""Shared by all tests: one torch thread (results are bit-equal only at equal numbers), one private Ray a session, MLflow."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", include_dashboard=False, num_cpus=2, num_gpus=0, log_to_driver=False)
    yield
    ray.shutdown()


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
