"""An MLflow server and an empty SQLite store for the tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.mlflow_store import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of one file start, kill and share."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


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
