"""Tracker: keeps MLflow, which may be down, up to date with runs whose log is on disk; training never waits for it.

    log(key, read) --> queue of changed runs --> a thread: read() the run's log, bring MLflow up to date --> MLflow

The queue holds runs, not their metrics: a log is read when its turn comes. So the queue is at most as long as there are
runs, and holds nothing that could be lost.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from backlink_ray.output import say
from backlink_ray.tracking.run import ExperimentInfo, TrackedRun
from backlink_ray.tracking.uri import chart_link, checked_uri, default_tracking_uri, redact, sync_command, ui_command

_log = logging.getLogger(__name__)

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 15.0
_CLOSING_DELAY_S = 0.5  # the caller of `close` waits, so retries are more frequent
_LINK_TIMEOUT_S = 10.0


Read = Callable[[], TrackedRun]


class NoTracker:
    """A tracker that does nothing, for runs without MLflow."""

    experiment = ExperimentInfo()

    def log(self, key: str, read: Read) -> None:
        """Do nothing."""

    def close(self, timeout_s: float = 30.0) -> int:
        """Return 0: no run is left."""
        return 0

    def page(self, group_by: str = "K", only: str = "") -> str:
        """Return "": there is no page."""
        return ""


class Tracker(NoTracker):
    """Tracks runs in MLflow from a thread of its own; safe to call from several threads.

    Args:
        experiment: Shown by `link`.
        storage: The folder of the runs' logs, for the printed sync command if MLflow stays down.

    Raises:
        ConfigError: MLflow does not accept such a URI.
    """

    def __init__(self, tracking_uri: str, experiment: ExperimentInfo, storage: Path) -> None:
        from backlink_ray.tracking.mlflow_sink import MlflowSink  # mlflow takes seconds to import

        self.experiment = experiment
        self.failed = 0  # runs whose log cannot be read, or that MLflow refuses
        self._uri, self._storage = checked_uri(tracking_uri), storage
        self._new_sink = partial(MlflowSink, self._uri)
        self._sink = self._new_sink()
        self._waiting: dict[str, tuple[int, Read]] = {}
        self._changes = itertools.count()
        self._num_settled = 0
        self._reported: set[str] = set()
        self._is_down = self._closing = self._stopped = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log(self, key: str, read: Read) -> None:
        """Report that a run is new or has changed; `read` is called later, in another thread.

        Args:
            key: Of the run, such as its folder; a run is queued once.
            read: Reads the run from its log.
        """
        assert not self._stopped, "the tracker is closed"
        with self._condition:
            self._waiting[key] = (next(self._changes), read)
            self._condition.notify_all()

    def close(self, timeout_s: float = 30.0) -> int:
        """Wait until MLflow is up to date; give up if it accepts no run for `timeout_s`.

        Returns:
            How many runs are missing or out of date in MLflow; their logs remain on disk.
        """
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            settled = -1
            while self._waiting and not self._stopped and settled != self._num_settled:
                settled = self._num_settled
                self._condition.wait_for(lambda before=settled: self._num_settled > before, timeout_s)  # type: ignore[misc]
            self._stopped = True
            self._condition.notify_all()
        if left := len(self._waiting):
            where, command = redact(self._uri), sync_command(self._storage, self._uri)
            _log.warning("%d runs are not in MLflow at %s yet; to sync them later: %s", left, where, command)
        return left

    def page(self, group_by: str = "K", only: str = "") -> str:
        """Return where a browser shows the comparison chart of all or `only` some runs, grouped as in `view_state`.

        For a store without a server, the command that starts one comes first. If MLflow does not answer within 10 s, the link
        is a simpler one.
        """
        links = [chart_link(self._uri)]
        # In a thread, because MLflow blocks for 102 s if a database server is down.
        thread = threading.Thread(target=self._share_link, args=(group_by, only, links), daemon=True)
        thread.start()
        thread.join(_LINK_TIMEOUT_S)
        start = ui_command(self._uri)
        return f"MLflow: {start + '  then open ' if start else ''}{links[-1]}"

    def _share_link(self, group_by: str, only: str, links: list[str]) -> None:
        sink = self._new_sink()  # not self._sink, which belongs to the other thread
        try:
            experiment_id = sink.experiment_id(self.experiment)
            links.append(chart_link(self._uri, experiment_id))
            links.append(chart_link(self._uri, experiment_id, sink.share_view(self.experiment, group_by, only)))
        except Exception as error:
            _log.warning("the view of the chart could not be stored: %s", sink.explain(error))

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
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            key = next(iter(self._waiting))
            return key, *self._waiting[key]

    def _attempt(self, read: Read) -> bool:
        """Bring MLflow up to date with one run; return False if that must be retried."""
        try:
            run = read()
        except Exception as error:  # a damaged log or a missing disk affects this run only
            self._refuse(str(error))
            return True
        try:
            self._sink.log(run)
        except Exception as error:  # anything that MLflow, its database driver or the network raises
            if not self._sink.is_refusal(error):
                self._report_down(self._sink.explain(error))
                return False
            self._refuse(f"run {run.run_id}: MLflow refuses it: {self._sink.explain(error)}")
        return True

    def _settle(self, key: str, change: int) -> bool:
        """Remove a run from the queue, unless it has changed meanwhile; return whether any run is queued."""
        with self._condition:
            newest = self._waiting.pop(key)
            if newest[0] != change:
                self._waiting[key] = newest
            self._num_settled += 1
            if self._is_down and not self._waiting:
                _log.warning("MLflow at %s answers again and is up to date", redact(self._uri))
                self._is_down = False
            self._condition.notify_all()
            return bool(self._waiting)

    def _postpone(self, key: str, delay_s: float) -> None:
        """Move a run to the end of the queue, since it may be the cause, and wait."""
        deadline = time.monotonic() + delay_s
        with self._condition:
            self._waiting[key] = self._waiting.pop(key)
            self._condition.wait_for(lambda: self._closing, delay_s)
            left_s = min(deadline - time.monotonic(), _CLOSING_DELAY_S)
            self._condition.wait_for(lambda: self._stopped, max(0.0, left_s))

    def _refuse(self, reason: str) -> None:
        if reason not in self._reported:
            _log.warning("%s; it is not tracked, everything else is", reason)
            self.failed += 1
        self._reported.add(reason)

    def _report_down(self, reason: str) -> None:
        if not (self._is_down or self._stopped):
            _log.warning(
                "MLflow at %s fails (%s); training continues, and runs are logged later", redact(self._uri), reason
            )
        self._is_down = True


def open_tracker(tracking_uri: str, experiment: ExperimentInfo, storage: Path) -> Tracker:
    """Open a tracker and print where it tracks to.

    Args:
        tracking_uri: default $MLFLOW_TRACKING_URI, else SQLite in the storage folder.
        experiment: $MLFLOW_EXPERIMENT_NAME overrides its name.
        storage: folder of studies.
    """
    env = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = tracking_uri or env or default_tracking_uri(storage)
    source = "the tracking URI given" if tracking_uri else "$MLFLOW_TRACKING_URI" if env else "the storage path"
    say(f"tracking to {redact(uri)} (from {source})")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment.name
    return Tracker(uri, replace(experiment, name=name), storage)
