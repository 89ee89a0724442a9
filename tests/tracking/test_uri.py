import json
import sqlite3
import sys
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backlink_ray.errors import BusyError, ConfigError
from backlink_ray.files import exclusive
from backlink_ray.tracking.uri import (
    artifact_location,
    chart_link,
    checked_uri,
    database_path,
    default_tracking_uri,
    hide_secrets,
    redact,
    sqlite_lock,
    sync_command,
    ui_command,
    view_state,
)

SQLITE = "sqlite:////data/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:s3cret@host:5000/base", "http://user:***@host:5000/base"),
        ("http://user:a@b/c:d@host", "http://user:***@host"),
        ("https://t0ken@host", "https://***@host"),
        ("postgresql+psycopg2://u:p%40ss@db/mlflow", "postgresql+psycopg2://u:***@db/mlflow"),
        ("postgresql://db/mlflow?user=u&password=p&sslmode=x", "postgresql://db/mlflow?user=u&password=***&sslmode=x"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3Dp", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://host/?a=b;auth=p#access_token=p&x=y", "http://host/?a=b;auth=***#access_token=***&x=y"),
        ("http://user:a\nb@host", "http://user:***@host"),
        ("http:/user:p@host", "http:/user:***@host"),
        ("user:p@host/db", "user:***@host/db"),
        ("--tracking-uri=http://user:p@host", "--tracking-uri=http://user:***@host"),
        ("--tracking-uri=postgresql:/u:p@h", "--tracking-uri=postgresql:/u:***@h"),
        ("sqlite:////data/a:b@c.db", "sqlite:////data/a:b@c.db"),
        ("http://host:5000", "http://host:5000"),
        (SQLITE, SQLITE),
    ],
)
def test_secrets_are_redacted(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact(shown) == shown


@given(st.text(alphabet="s3cr&@:/?#%é", min_size=1).map(lambda text: f"pw{text}"))
def test_no_password_survives(password: str) -> None:
    for written in (password, urllib.parse.quote(password, safe="")):
        uri = f"http://user:{written}@host:5000"
        assert written not in redact(uri)
        hidden = hide_secrets(f"request to {uri} failed for {password}", uri)
        assert password not in hidden
        assert written not in hidden


@pytest.mark.parametrize(("written", "said"), [("p%40ss+x", "p@ss x"), ("a/b", "a%2Fb"), ("a b", "a+b")])
def test_a_password_is_hidden_in_every_form(written: str, said: str) -> None:
    assert hide_secrets(f"401 for {said}", f"http://u:{written}@host") == "401 for ***"


def test_mlflows_own_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert hide_secrets("401 for s3cret, t0ken", "http://host") == "401 for ***, ***"


def test_uris_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri(Path("storage")) == f"sqlite:///{tmp_path}/storage/mlflow.db"
    assert checked_uri("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert checked_uri("http://host:1") == "http://host:1"
    for bad in ("", "mlruns", "/abs/mlruns", "file:///abs"):
        with pytest.raises(ValueError, match="is a folder"):
            checked_uri(bad)
    with pytest.raises(ConfigError, match=r"'ftp://u:\*\*\*@x/y' is of a kind that MLflow does not accept"):
        checked_uri("ftp://u:s3cret@x/y")
    for bad in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:////a.db?mode=ro"):
        with pytest.raises(ValueError, match="names no usable file"):
            checked_uri(bad)
    for secret in (
        "sqlite://u:s3cret@h/x.db",
        "sqlite:///a.db?password=s3cret",
        "u:s3cret@host/db",
        "http:/u:s3cret@h",
    ):
        with pytest.raises(ConfigError, match=r"\*\*\*") as refused:
            checked_uri(secret)
        assert "s3cret" not in str(refused.value)


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of these tests, activated, so that the shell finds its programs."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


@pytest.mark.usefixtures("activated")
def test_commands_listen_on_loopback_and_hold_no_secret() -> None:
    assert ui_command(SQLITE) == f"mlflow ui --backend-store-uri {SQLITE} --host 127.0.0.1 --port 5000"
    assert ui_command("http://host:5000") == ""
    assert "'sqlite:////my data/mlflow.db'" in ui_command("sqlite:////my data/mlflow.db")
    assert "s3cret" not in ui_command("postgresql://u:s3cret@db/m")
    assert sync_command(Path("results"), SQLITE) == f"backlink-ray sync results --tracking-uri {SQLITE}"
    assert "s3cret" not in sync_command(Path("results"), "http://u:s3cret@host")


def test_the_link_opens_the_chart() -> None:
    link = chart_link("http://u:p@host:5000/base/", "7", "backlink-K")
    assert link == (
        "http://host:5000/base/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
        "&viewStateShareKey=backlink-K"
    )
    assert chart_link(SQLITE, "7") == (
        "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    assert chart_link("http://host:5000") == "http://host:5000/#/experiments"


def test_the_view_groups_by_the_parameter_and_sorts_by_the_metric() -> None:
    assert json.loads(view_state("l", "test_error_pct")) == {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "l"}]},
        "searchFilter": "",
        "runsHiddenMode": "SHOWALL",
        "selectedColumns": ["params.`l`"],
        "orderByKey": "metrics.`test_error_pct`",
        "orderByAsc": True,
    }


def test_the_view_may_be_of_some_runs_grouped_by_a_tag() -> None:
    state = json.loads(view_state("tags.cell", "test_error_pct", "tags.kind = 'full'"))
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "cell"}]
    assert (state["selectedColumns"], state["searchFilter"]) == (["tags.`cell`"], "tags.kind = 'full'")


def test_artifacts_are_beside_the_database_or_left_to_the_server() -> None:
    assert artifact_location(SQLITE, "e") == "file:///data/mlartifacts/e"
    assert artifact_location("http://host", "e") is None


def test_a_database_is_locked_by_one_process_and_a_bad_one_fails_at_once(tmp_path: Path) -> None:
    assert database_path("http://host") is None
    with sqlite_lock(f"sqlite:///{tmp_path}/new/x.db"):
        lock = tmp_path / "new" / "x.db.lock"
        with pytest.raises(BusyError, match="in use by another process"), exclusive(lock, 0.05):
            pass
    (tmp_path / "noise.db").write_bytes(b"noise" * 100)
    for name in ("noise.db", "new"):
        with pytest.raises(sqlite3.Error), sqlite_lock(f"sqlite:///{tmp_path}/{name}"):
            pass
