"""Replay: a background thread that carries the spool to wherever it belongs, again and again until it is there.

    spool --follow from the cursor--> apply a chunk --> move the cursor     (a failure: wait, then the same chunk)

Pure: what the events are applied to is a `Sink`. A chunk may be applied twice (killed before the cursor moved), so
`Sink.apply` has to be idempotent. A lock file keeps two processes from replaying one spool at the same time.
"""

import hashlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from backlink_ray.errors import BusyError
from backlink_ray.files import exclusive
from backlink_ray.tracking.spool import Event, Spool

_log = logging.getLogger(__name__)

_CHUNK = 200  # events; what a kill repeats at most, and what one batch may merge
_POLL_S = 1.0  # how late another process's events are noticed at most
_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 15.0
_CLOSING_DELAY_S = 0.5  # a closing replay has a deadline and tries more often


class Sink(Protocol):
    """Where events go."""

    def open(self) -> str:
        """Connect if need be; return what identifies the place, so that a cursor of another place is not trusted."""

    def apply(self, events: Sequence[Event]) -> int:
        """Apply the events, again or for the first time; return how many were refused for good."""

    def reset(self) -> None:
        """Forget what was learned: the place failed and may come back as another one."""

    def explain(self, error: Exception) -> str:
        """The error in one line that may be logged."""


class Cursor:
    """How far a spool was replayed into one destination: a small file beside it, only ever a saving of work.

    Args:
        spool: The spool.
        destination: Names the destination without secrets; every one has a cursor of its own.
    """

    def __init__(self, spool: Spool, destination: str) -> None:
        key = hashlib.sha256(destination.encode()).hexdigest()[:8]
        self._path = spool.path.with_suffix(f".{key}.cursor")
        self._spool = spool

    def load(self, identity: str = "") -> int:
        """Bytes already replayed; 0 for a lost cursor or another place's. An empty identity takes any place."""
        try:
            saved = json.loads(self._path.read_text())
            offset, place = int(saved["offset_bytes"]), str(saved["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return offset if identity in ("", place) and offset <= self._spool.size_bytes() else 0

    def save(self, offset_bytes: int, identity: str) -> None:
        """Remember the place; a power cut may lose it, which costs a repeated replay and nothing else."""
        temporary = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_text(json.dumps({"offset_bytes": offset_bytes, "identity": identity}))
        temporary.replace(self._path)

    def forget(self) -> None:
        """Start from the beginning next time."""
        self._path.unlink(missing_ok=True)


class Replayer:
    """Replays one spool into one sink, by itself in a thread (`start`, `wake`, `close`) or once (`drain`)."""

    def __init__(self, spool: Spool, sink: Sink, destination: str) -> None:
        self.cursor = Cursor(spool, destination)
        self.refused = 0
        self._spool, self._sink, self._destination = spool, sink, destination
        self._lock_path = spool.path.with_suffix(".lock")
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline_s = float("inf")
        self._is_down = False
        self._thread = threading.Thread(target=self._run, name="mlflow-replay", daemon=True)

    def start(self) -> None:
        """Begin to replay in the background."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new."""
        self._wake.set()

    def pending(self) -> int:
        """Events in the spool that have not been replayed."""
        return sum(1 for _ in self._spool.follow(self.cursor.load()))

    def drain(self, *, lock_timeout_s: float = 0.0, from_start: bool = False) -> None:
        """Replay everything there is after the cursor, or everything.

        Raises:
            BusyError: Another process is replaying this spool.
            Exception: Whatever the sink raises when its place cannot be reached.
        """
        with exclusive(self._lock_path, lock_timeout_s):
            if from_start:
                self.cursor.forget()
            if self.cursor.load() < self._spool.size_bytes():
                self._drain_from_cursor()

    def replay_all(self, timeout_s: float) -> None:
        """Replay everything from the beginning, in this thread.

        Raises:
            ConnectionError: The sink failed, or another process held the spool, and nothing moved for `timeout_s`.
        """
        from_start, moved_to, deadline = True, 0, time.monotonic() + timeout_s
        while True:
            try:
                return self.drain(from_start=from_start)
            except BusyError as error:
                reason = str(error)
            except Exception as error:  # as in `_attempt`
                reason = self._sink.explain(error)
                self._sink.reset()
                from_start = False
            if self.cursor.load() > moved_to:
                moved_to, deadline = self.cursor.load(), time.monotonic() + timeout_s
            if time.monotonic() >= deadline:
                raise ConnectionError(f"{self._destination}: {reason}; {self.pending()} events are not there yet")
            time.sleep(_CLOSING_DELAY_S)

    def close(self, timeout_s: float) -> int:
        """Try until everything is replayed or the time is over; return the events still to be replayed."""
        self._deadline_s = time.monotonic() + timeout_s
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return self.pending()

    def _drain_from_cursor(self) -> None:
        identity = self._sink.open()
        events = self._spool.follow(self.cursor.load(identity))
        while chunk := list(itertools.islice(events, _CHUNK)):
            if time.monotonic() > self._deadline_s:
                return
            self.refused += self._sink.apply([event for event, _ in chunk])
            self.cursor.save(chunk[-1][1], identity)

    def _run(self) -> None:
        delay_s = 0.0
        while time.monotonic() <= self._deadline_s:
            last_round = self._closing.is_set()
            self._wake.clear()
            delay_s = self._attempt(delay_s)
            if delay_s:
                self._pause(delay_s)
            elif last_round and not self.pending():
                return
            elif not last_round:
                self._wake.wait(_POLL_S)

    def _attempt(self, delay_s: float) -> float:
        """One drain; returns how long to wait before the next one, 0 when all went well."""
        try:
            self.drain()
        except BusyError:
            return _FIRST_DELAY_S
        except Exception as error:  # whatever MLflow, its database driver or the network raises: training goes on
            self._sink.reset()
            self._say_down(error)
            return min(max(2 * delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
        self._say_up()
        return 0.0

    def _say_down(self, error: Exception) -> None:
        if not self._is_down:
            reason = f"{self._destination} fails ({self._sink.explain(error)})"
            _log.warning("%s; training goes on, points wait in %s", reason, self._spool.path)
        self._is_down = True

    def _say_up(self) -> None:
        if self._is_down:
            _log.warning("%s answers again, the points that waited are there", self._destination)
        self._is_down = False

    def _pause(self, delay_s: float) -> None:
        if self._closing.is_set():
            time.sleep(max(0.0, min(delay_s, _CLOSING_DELAY_S, self._deadline_s - time.monotonic())))
        else:
            self._closing.wait(delay_s)
