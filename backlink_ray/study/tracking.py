"""Tracking: runs, curves and artifacts of a study in MLflow, which may be down. The only file that imports mlflow.

    start_run, log_metrics, log_artifact, end_run --> spool (on disk) --> background replay --> MLflow

Training waits for the spool alone. The replay keeps the original times and is idempotent: a run is found by its tag
`backlink_ray.run_id` before it is created, parameters are written once, and MLflow's store takes a point that it has
(same key, step, time, value) for the same point.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from backlink_ray.study.address import (
    chart_link,
    checked_uri,
    database_path,
    default_tracking_uri,
    hide_secrets,
    redact,
    sync_command,
    ui_command,
    view_key,
    view_state,
)
from backlink_ray.study.replay import Busy, Replayer, exclusive, try_lock
from backlink_ray.study.spool import Event, Ledger, Spool, metric_key, now_ms, slug, sync_folder

for _name, _value in {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own 120 s and 7 retries block 247 s a call when a server is dead; the replay has its own back-off.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - reads the environment set above
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run, RunTag  # noqa: E402 - as above
from mlflow.exceptions import MlflowException  # noqa: E402 - as above

__all__ = ["NoTracker", "SyncReport", "Tracker", "default_tracking_uri", "redact", "sync"]

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
_log = logging.getLogger(__name__)
