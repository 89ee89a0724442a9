"""Tracker: keeps MLflow, which may be down, up to date with runs whose log is on disk; nobody ever waits for it.

    log(key, read) --> which runs changed --> a thread: read() the run's log, bring MLflow up to it --> MLflow

What waits are names, not numbers: the log is read when its turn comes, so the queue is as long as there are runs and holds
nothing that could get lost.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from backlink_ray.tracking.uri import chart_link, checked_uri, redact, sync_command, ui_command

_log = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Scalar = str | int | float

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 15.0
_CLOSING_DELAY_S = 0.5  # whoever closes waits, so it is tried more often
_LINK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentInfo:
    """What an experiment is called and says about itself on its page, which sorts runs by the metric, smallest first."""

    name: str = "backlink"
    note: str = ""
    primary_metric: str = "test_error_pct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Values measured at one time (milliseconds since 1970) and step (the x of curves, an epoch say)."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as its log on disk tells it: all that MLflow is to know.

    Attributes:
        run_id: Our stable id; one run_id is one run in MLflow.
        name: What the page shows.
        params: Written once: a later other value is not taken.
        tags: The newest value counts.
        dataset: Empty, or `name`, `md5` and whatever else describes it.
        curve: One point an epoch, in order; only ever appended to.
        summary: Values of the run as a whole; a newer value of a key replaces the older one.
        ended_ms: When it ended, where status is not RUNNING.
        artifacts: Files.
    """

    run_id: str
    experiment: ExperimentInfo
    name: str
    started_ms: int
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    summary: Sequence[Point] = ()
    status: Status = "RUNNING"
    end_reason: str = ""
    ended_ms: int = 0
    artifacts: Sequence[Path] = ()


Read = Callable[[], TrackedRun]


class NoTracker:
    """A tracker that tracks nothing: for runs without MLflow."""

    experiment = ExperimentInfo()

    def log(self, key: str, read: Read) -> None:
        """Do nothing."""

    def close(self, timeout_s: float = 30.0) -> int:
        """Do nothing; no run is left."""
        return 0

    def link(self, group_by: str = "K", only: str = "") -> str:
        """There is no page: an empty text."""
        return ""

    def command(self) -> str:
        """There is no server to start: an empty text."""
        return ""


class Tracker(NoTracker):
    """Tracks runs in MLflow from a thread of its own; safe to call from several threads.

    Args:
        tracking_uri: `sqlite:////absolute/mlflow.db`, `http(s)://host:port` or a database URI.
        experiment: What new runs belong to, and what `link` shows.
        storage: The folder that the runs' logs are below, named in the command that is printed when MLflow stays away.

    Raises:
        ConfigError: The tracking URI is of no kind that MLflow takes.
    """

    def __init__(self, tracking_uri: str, experiment: ExperimentInfo, storage: Path) -> None:
        from backlink_ray.tracking.mlflow_sink import MlflowSink  # mlflow takes seconds to import

        self.experiment = experiment
        self.failed = 0  # runs that could not be read, or that MLflow will never take
        self._uri, self._storage = checked_uri(tracking_uri), storage
        self._new_sink = partial(MlflowSink, self._uri)
        self._sink = self._new_sink()
        self._waiting: dict[str, tuple[int, Read]] = {}
        self._changes = itertools.count()
        self._done = 0  # runs brought up to date so far
        self._said: set[str] = set()
        self._is_down = self._closing = self._stopped = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log(self, key: str, read: Read) -> None:
        """Say that a run is new or has changed; `read` returns it when its turn comes, in another thread.

        Args:
            key: Of the run: its folder, say. A run that waits already is not put on the list twice.
            read: Reads the run's log.
        """
        assert not self._stopped, "the tracker is closed"
        with self._news:
            self._waiting[key] = (next(self._changes), read)
            self._news.notify_all()

    def close(self, timeout_s: float = 30.0) -> int:
        """Wait until every run is in MLflow, and give up when none has arrived for `timeout_s`.

        Returns:
            How many runs are not there, or not up to date; their logs stay where they are.
        """
        with self._news:
            self._closing = True
            self._news.notify_all()
            while self._waiting and not self._stopped:
                done = self._done
                if not self._news.wait_for(lambda done=done: self._done > done, timeout_s):  # type: ignore[misc]
                    break
            self._stopped = True
            self._news.notify_all()
        if left := len(self._waiting):
            where, command = redact(self._uri), sync_command(self._storage, self._uri)
            _log.warning("%d runs are not in MLflow at %s yet; later: %s", left, where, command)
        return left

    def link(self, group_by: str = "K", only: str = "") -> str:
        """The browser link to the comparison chart of all or `only` some runs, grouped by a parameter or tag (`view_state`).

        For a store without a server it is the link for the server that `command` starts. Where MLflow cannot be
        reached within 10 s it is a plainer link.
        """
        links = [chart_link(self._uri)]
        # A thread, because a database server that is away blocks MLflow for 102 s.
        thread = threading.Thread(target=self._share_link, args=(group_by, only, links), daemon=True)
        thread.start()
        thread.join(_LINK_TIMEOUT_S)
        return links[-1]

    def command(self) -> str:
        """The command that starts MLflow's page on http://127.0.0.1:5000; empty where a server already runs."""
        return ui_command(self._uri)

    def _share_link(self, group_by: str, only: str, links: list[str]) -> None:
        sink = self._new_sink()  # its own: the other one belongs to the other thread
        try:
            experiment_id = sink.experiment_id(self.experiment)
            links.append(chart_link(self._uri, experiment_id))
            links.append(chart_link(self._uri, experiment_id, sink.share_view(self.experiment, group_by, only)))
        except Exception as error:
            _log.warning("the chart's view could not be shared: %s", sink.explain(error))

    def _work(self) -> None:
        delay_s = 0.0
        while waiting := self._next():
            key, change, read = waiting
            if self._attempt(read):
                delay_s = delay_s if self._settle(key, change) else 0.0
            else:
                delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
                self._postpone(key, delay_s)

    def _next(self) -> tuple[str, int, Read] | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            key = next(iter(self._waiting))
            return key, *self._waiting[key]

    def _attempt(self, read: Read) -> bool:
        """Bring MLflow up to one run; tell whether it is settled, for good or because it can never be."""
        try:
            run = read()
        except Exception as error:  # a damaged log, a disk that is away: it costs this run alone
            self._refuse(str(error))
            return True
        try:
            self._sink.log(run)
        except Exception as error:  # whatever MLflow, its database driver or the network raises: training goes on
            if not self._sink.is_refusal(error):
                self._say_down(self._sink.explain(error))
                return False
            self._refuse(f"run {run.run_id}: MLflow refuses it: {self._sink.explain(error)}")
        return True

    def _settle(self, key: str, change: int) -> bool:
        """Take a run off the list, unless it has changed meanwhile; tell whether others wait."""
        with self._news:
            newest = self._waiting.pop(key)
            if newest[0] != change:
                self._waiting[key] = newest
            self._done += 1
            if self._is_down and not self._waiting:
                _log.warning("MLflow at %s answers again, the runs that waited are there", redact(self._uri))
                self._is_down = False
            self._news.notify_all()
            return bool(self._waiting)

    def _postpone(self, key: str, delay_s: float) -> None:
        """Put a run at the end of the list, since the fault may be its own, and wait."""
        deadline = time.monotonic() + delay_s
        with self._news:
            self._waiting[key] = self._waiting.pop(key)
            self._news.wait_for(lambda: self._closing, delay_s)
            left_s = min(deadline - time.monotonic(), _CLOSING_DELAY_S)
            self._news.wait_for(lambda: self._stopped, max(0.0, left_s))

    def _refuse(self, reason: str) -> None:
        if reason not in self._said:
            _log.warning("%s; it is not tracked, everything else is", reason)
            self.failed += 1
        self._said.add(reason)

    def _say_down(self, reason: str) -> None:
        if not (self._is_down or self._stopped):
            _log.warning("MLflow at %s fails (%s); training goes on, runs wait on disk", redact(self._uri), reason)
        self._is_down = True
