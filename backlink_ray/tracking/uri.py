"""MLflow's address: checks, links and commands to print, and the removal of secrets from them."""

import contextlib
import json
import os
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from backlink_ray.errors import ConfigError
from backlink_ray.files import exclusive, make_own_folder
from backlink_ray.text import typed_program

ARTIFACTS = "mlartifacts"  # beside a SQLite store
LOCAL_SERVER = "http://127.0.0.1:5000"  # what `ui_command` starts

_FIRST_START_TIMEOUT_S = 60.0  # creating the tables takes 2 to 5 s, and 20 processes may queue
_PROBE_TIMEOUT_S = 5.0

_KINDS = re.compile(r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?|databricks)://")
# Up to the last @: a password may contain an unescaped @ or /. The second form lacks the slashes, and is refused by name.
_PASSWORD = re.compile(r"(://[^:/?#@]*:)(.+)(?=@)", re.DOTALL)
_MISTYPED = re.compile(r"(^(?:--[\w-]+=)?(?:\w[\w.+-]*:/)?[^:/?#@]*:)(?!/)(.+)(?=@)", re.DOTALL)
_TOKEN_AS_USER = re.compile(r"(://)([^:/?#@]+)(?=@)")
_SECRET_IN_QUERY = re.compile(
    r"([?&;#][^=&;#]*(?:pass|pwd|token|secret|key|auth|credential|sig|odbc_connect)[^=&;#]*=)([^&;#]+)", re.IGNORECASE
)
_SECRETS = (_PASSWORD, _MISTYPED, _TOKEN_AS_USER, _SECRET_IN_QUERY)
_FORMS: tuple[Callable[[str], str], ...] = (str, unquote, unquote_plus, quote, quote_plus, partial(quote, safe=""))
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")


def redact(uri: str) -> str:
    """Return the URI for printing, logging and storing: passwords and tokens become `***`."""
    for pattern in _SECRETS:
        uri = pattern.sub(r"\1***", uri)
    return uri


def hide_secrets(text: str, uri: str) -> str:
    """Return text from elsewhere, such as an error message, without the secrets of `uri` and MLflow's, escaped or not."""
    found = [m[2] for pattern in _SECRETS for m in pattern.finditer(uri)]
    found += filter(None, map(os.environ.get, _SECRET_VARIABLES))
    forms = {form(secret) for secret in found for form in _FORMS}
    for secret in sorted(forms - {"***"}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def default_tracking_uri(storage: Path) -> str:
    """Return the SQLite store of a storage folder, `sqlite:////absolute/mlflow.db`; artifacts are in `mlartifacts` beside it."""
    return sqlite_uri((storage / "mlflow.db").absolute())


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file, with `?` and `%` in its path quoted.

    Raises:
        ConfigError: the SQLAlchemy that is installed cannot be given such a path.
    """
    from sqlalchemy.engine import URL, make_url  # imported here: runs without MLflow and Optuna need no database

    for uri in (f"sqlite:///{path}", URL.create("sqlite", database=str(path)).render_as_string()):
        if make_url(uri).database == str(path):
            return uri
    raise ConfigError(f"storage_path={str(path.parent)!r} has a ? or % in it, which needs SQLAlchemy 2.1; give another")


def checked_uri(uri: str) -> str:
    """Return the tracking URI, with a relative SQLite path made absolute.

    Raises:
        ConfigError: It is a folder (MLflow 3 refuses its old file store), of a kind that MLflow does not accept, or a SQLite
            store without a usable path.
    """
    if path := database_path(uri):
        return sqlite_uri(path)
    if not _KINDS.match(uri):
        is_folder = "://" not in uri or uri.startswith("file:")
        fault = (
            "is a folder, which MLflow 3 no longer accepts" if is_folder else "is of a kind that MLflow does not accept"
        )
        raise ConfigError(
            f"tracking URI {redact(uri)!r} {fault}; allowed: sqlite:////absolute/mlflow.db, http(s)://host:port, "
            "or a database URI"
        )
    return uri


def database_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store, None for any other kind of store.

    Raises:
        ConfigError: A SQLite store without a file, or with options.
    """
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url  # imported here as in sqlite_uri

    found = make_url(uri) if uri.startswith("sqlite:///") else None
    if not found or not found.database or found.database == ":memory:" or found.query:
        raise ConfigError(
            f"tracking URI {redact(uri)!r} names no usable file; allowed: sqlite:////absolute/path.db, with ? as %3F and % as %25"
        )
    return Path(found.database).absolute()


@contextlib.contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Lock a SQLite store while it is opened for the first time; do nothing for other stores.

    MLflow creates the tables without a lock: of 8 processes that opened one new file, 8 failed.

    Raises:
        BusyError: Another process held the lock for 60 s.
        sqlite3.Error: The file cannot be written. MLflow itself would block for 102 s before it fails.
    """
    path = database_path(uri)
    if not path:
        yield
        return
    make_own_folder(path.parent)
    with exclusive(path.with_name(f"{path.name}.lock"), _FIRST_START_TIMEOUT_S):
        with contextlib.closing(sqlite3.connect(path, timeout=_PROBE_TIMEOUT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
        yield
        _remove_misread_folder(uri, path)


def _remove_misread_folder(uri: str, path: Path) -> None:
    """Remove the empty folder that MLflow 3.17 makes where a path in a URI is quoted: it takes the quoted one for the path."""
    misread = Path(uri.removeprefix("sqlite:///")).parent
    if misread != path.parent:
        with contextlib.suppress(OSError):
            misread.rmdir()


def artifact_location(uri: str, experiment: str) -> str | None:
    """Return the location of a new experiment's artifacts: beside a SQLite store, else None, which lets the server decide."""
    database = database_path(uri)
    return f"{database.with_name(ARTIFACTS).as_uri()}/{experiment}" if database else None


def ui_command(uri: str) -> str:
    """Return the shell command that serves the store on the loopback address, "" if a server already does."""
    if uri.startswith(("http://", "https://")):
        return ""
    return f"{typed_program('mlflow')} ui --backend-store-uri {shlex.quote(redact(uri))} --host 127.0.0.1 --port 5000"


def sync_command(storage: Path, uri: str) -> str:
    """Return the shell command that syncs a storage folder later; a URI with a secret is left to the environment."""
    command = f"{typed_program('backlink-ray')} sync {shlex.quote(str(storage))}"
    if redact(uri) != uri:
        return f"{command}  (with MLFLOW_TRACKING_URI set)"
    return f"{command} --tracking-uri {shlex.quote(uri)}"


def view_state(group_by: str, primary_metric: str, only: str = "") -> str:
    """Return MLflow's state of a shared view: runs grouped by one parameter or tag, all visible, best first.

    This is an internal format of MLflow 3.17's page.

    Args:
        group_by: A parameter, or a tag as `tags.NAME`.
        primary_metric: Sorts the runs, smallest first.
        only: Filter in MLflow's search syntax; empty for all runs.
    """
    name = group_by.removeprefix("tags.")
    mode = "param" if name == group_by else "tag"
    group = {"aggregateFunction": "average", "groupByKeys": [{"mode": mode, "groupByData": name}]}
    state = {
        "groupBy": group,
        "searchFilter": only,
        "runsHiddenMode": "SHOWALL",
        "selectedColumns": [f"{mode}s.`{name}`"],
        "orderByKey": f"metrics.`{primary_metric}`",
        "orderByAsc": True,
    }
    return json.dumps(state)


def chart_link(uri: str, experiment_id: str = "", view: str = "") -> str:
    """Return the link to the comparison chart: with a stored view if one is named, or to all experiments without an id."""
    page = f"{_browser_address(uri)}/#/experiments"
    if not experiment_id:
        return page
    # Without workflowType MLflow 3.17 opens its GenAI page and shows ten runs.
    link = f"{page}/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{link}&viewStateShareKey={quote(view)}" if view else link


def _browser_address(uri: str) -> str:
    """Return the server's address without user, password and query."""
    if not uri.startswith(("http://", "https://")):
        return LOCAL_SERVER
    return re.sub(r"://.*@", "://", re.split("[?#]", redact(uri))[0]).rstrip("/")
