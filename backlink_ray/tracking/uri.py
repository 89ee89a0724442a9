"""Where MLflow is: addresses, the links and commands that are printed, and secrets that are not."""

import json
import re
import shlex
from pathlib import Path
from urllib.parse import quote, unquote

from backlink_ray.text import slug, typed_program
from backlink_ray.tracking.database import database_path

LOCAL_SERVER = "http://127.0.0.1:5000"  # what `ui_command` starts

_PASSWORD = re.compile(r"(://[^:/?#@]*:)(.+)@")  # to the last @: a password may hold an unescaped @ or /
_TOKEN_AS_USER = re.compile(r"(://)([^:/?#@]+)@")
_SECRET_IN_QUERY = re.compile(r"([?&][^=&#]*(?:password|passwd|pwd|token|secret|key)[^=&#]*=)([^&#]+)", re.IGNORECASE)


def redact(uri: str) -> str:
    """The URI as it may be printed, logged and stored: passwords and tokens are `***`."""
    shown = _PASSWORD.sub(r"\1***@", uri)
    shown = _TOKEN_AS_USER.sub(r"\1***@", shown)
    return _SECRET_IN_QUERY.sub(r"\1***", shown)


def hide_secrets(text: str, uri: str) -> str:
    """Text of someone else (an exception, say) without the secrets of `uri`, escaped or not."""
    found = [m[2] for pattern in (_PASSWORD, _TOKEN_AS_USER, _SECRET_IN_QUERY) for m in pattern.finditer(uri)]
    for secret in sorted({*found, *map(unquote, found), *map(quote, found)} - {"***"}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def default_tracking_uri(storage: Path) -> str:
    """The SQLite store of a storage folder, `sqlite:////absolute/mlflow.db`; artifacts: `mlartifacts` beside it."""
    return checked_uri(f"sqlite:///{(storage / 'mlflow.db').absolute()}")


def checked_uri(uri: str) -> str:
    """The tracking URI, a relative SQLite path made absolute.

    Raises:
        ValueError: It is a folder (MLflow 3 refuses its old file store), or a SQLite store without a usable path.
    """
    if path := database_path(uri):
        return f"sqlite:///{path}"
    if "://" not in uri or uri.startswith("file:"):
        raise ValueError(
            f"tracking URI {redact(uri)!r} is a folder, which MLflow 3 no longer takes; "
            "allowed: sqlite:////absolute/mlflow.db, http(s)://host:port, or a database URI"
        )
    return uri


def ui_command(uri: str) -> str:
    """The shell command that shows the store on the loopback address; empty where a server already does."""
    if uri.startswith(("http://", "https://")):
        return ""
    return f"{typed_program('mlflow')} ui --backend-store-uri {shlex.quote(redact(uri))} --host 127.0.0.1 --port 5000"


def sync_command(spool_dir: Path, uri: str) -> str:
    """The shell command that brings the spool to MLflow later. A URI with a secret is left to the environment."""
    if redact(uri) != uri:
        return f"{typed_program('backlink-ray')} sync {shlex.quote(str(spool_dir))}  (with MLFLOW_TRACKING_URI set)"
    return f"{typed_program('backlink-ray')} sync {shlex.quote(str(spool_dir))} --tracking-uri {shlex.quote(uri)}"


def browser_base(uri: str) -> str:
    """The address a browser opens, without user, password or query."""
    if not uri.startswith(("http://", "https://")):
        return LOCAL_SERVER
    hidden = redact(uri).split("?")[0].split("#")[0]
    return re.sub(r"://.*@", "://", hidden).rstrip("/")


def view_key(group_by: str) -> str:
    """The key under which the shared view grouped by a parameter or tag is kept: one each, so it is overwritten."""
    return f"backlink-{slug(group_by)}"


def view_state(group_by: str, primary_metric: str, only: str = "") -> str:
    """MLflow's shared view state: runs grouped by one parameter or tag, all shown, best first.

    An internal format of MLflow 3.17's page, so it is made here and nowhere else.

    Args:
        group_by: A parameter, or a tag as `tags.NAME`.
        primary_metric: Orders the runs, smallest first.
        only: Which runs, in MLflow's search language; all if empty.
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
    """The link to the comparison chart; to the runs as they are without a view, to all experiments without an id."""
    page = f"{browser_base(uri)}/#/experiments"
    if not experiment_id:
        return page
    # Without workflowType MLflow 3.17 opens its GenAI page and shows ten runs.
    link = f"{page}/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{link}&viewStateShareKey={quote(view)}" if view else link


def artifact_location(uri: str, artifact_root: str, experiment: str) -> str:
    """Where a new experiment's artifacts go, always absolute; empty where that is the server's to decide."""
    database = database_path(uri)
    root = artifact_root or (str(database.with_name("mlartifacts")) if database else "")
    if not root:
        return ""
    return f"{root if '://' in root else Path(root).absolute().as_uri()}/{experiment}"
