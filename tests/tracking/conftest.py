"""An MLflow server for the tests."""

from collections.abc import Iterator

import pytest

from tests.tracking.mlflow_store import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of one file start, kill and share."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()
