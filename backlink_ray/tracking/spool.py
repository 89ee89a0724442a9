"""The spool: what a study wants to tell MLflow, on disk before anything else happens.

    training --append, fsync--> <name>.jsonl --replay (later, any number of times)--> MLflow

Pure: no network, no MLflow. One event is one line of JSON. The file is only ever appended to, so a process killed at
any moment leaves at most one torn last line, which readers skip and the next writer starts a new line after.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from backlink_ray.files import sync_folder
from backlink_ray.text import short_hash, slug

Kind = Literal["start", "metrics", "artifact", "end"]

_BAD_KEY = re.compile(r"[^A-Za-z0-9_. :/-]+")
_MAX_KEY = 250  # characters; MLflow's limit for the keys of metrics, parameters and tags


def metric_key(key: str) -> str:
    """The key under MLflow's rules: letters, digits, `_ - . : /` and spaces, at most 250 characters, a plain path.

    A key that already fits comes back as it is; another one is changed and, as in `slug`, marked by a short hash.
    """
    parts = [part for part in _BAD_KEY.sub("_", key).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts)
    if cleaned == key and 0 < len(key) <= _MAX_KEY:
        return key
    return f"{cleaned[: _MAX_KEY - 9].rstrip('/') or 'key'}-{short_hash(key)}"


def now_ms() -> int:
    """Milliseconds since 1970, the clock of every event."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to one run. Which fields count depends on `kind`.

    Args:
        kind: `start` (experiment, note, primary_metric, name, params, tags, dataset), `metrics` (metrics, step, tags),
            `artifact` (path, folder) or `end` (status, reason).
        run_id: Our own stable id of the run, not MLflow's.
        time_ms: When it happened, milliseconds since 1970; replay keeps it.
        metrics: Finite values only; what was not finite stands in `tags`.
        path: Where the artifact's snapshot is, relative to the spool's folder.
    """

    kind: Kind
    run_id: str
    time_ms: int
    experiment: str = ""
    note: str = ""
    primary_metric: str = ""
    name: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    path: str = ""
    folder: str = ""
    status: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is no kind of event; known are {', '.join(get_args(Kind))}")

    def to_line(self) -> bytes:
        """One line of JSON without its line end; fields at their default are left out.

        Raises:
            ValueError: A metric is not finite (JSON has no such number).
        """
        kept = {key: value for key, value in asdict(self).items() if value not in ("", {})}
        return json.dumps(kept, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Event":
        """The event of a line. Fields that a newer version added are dropped.

        Raises:
            ValueError: The line is torn or is no event.
        """
        found = json.loads(line)
        if not isinstance(found, dict) or not found.keys() >= _REQUIRED:
            raise ValueError(f"no event: {line[:80]!r}")
        return cls(**{key: value for key, value in found.items() if key in _KNOWN})


_KNOWN = {f.name for f in fields(Event)}
_REQUIRED = {f.name for f in fields(Event) if f.default is MISSING and f.default_factory is MISSING}


def by_run(events: Iterable[Event]) -> list[list[Event]]:
    """The events sorted into their runs, in the order in which the runs and their events came."""
    runs: dict[str, list[Event]] = {}
    for event in events:
        runs.setdefault(event.run_id, []).append(event)
    return list(runs.values())


class Spool:
    """The append-only file `folder/<slug of name>.jsonl`, mode 0600.

    Several processes of one machine may append to one file: a line is one write in append mode. On a network file
    system give each process a spool of its own.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{slug(name)}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        sync_folder(folder)

    def append(self, event: Event) -> None:
        """Write the event and wait until the disk has it.

        Raises:
            OSError: The disk did not take the whole line; names the path and the bytes.
        """
        # An empty line is skipped by readers, so a line end too many does no harm, whoever else is writing.
        line = (b"\n" if self._is_torn() else b"") + event.to_line() + b"\n"
        written = os.write(self._file, line)
        if written < len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(self._file)

    def read(self) -> list[Event]:
        """Every whole event, oldest first; torn lines are skipped."""
        return [event for event, _ in self.follow(0)]

    def follow(self, offset_bytes: int) -> Iterator[tuple[Event, int]]:
        """Every whole event that begins at or after `offset_bytes`, each with the offset where the next one begins."""
        with self.path.open("rb") as file:
            file.seek(offset_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # torn, or still being written
                offset_bytes += len(line)
                try:
                    event = Event.from_line(line)
                except (ValueError, TypeError):
                    continue  # torn by a kill and closed by the next writer, or an empty line
                yield event, offset_bytes

    def size_bytes(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Let go of the file; reading still works, appending does not."""
        os.close(self._file)

    def _is_torn(self) -> bool:
        size = self.size_bytes()
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"


class Ledger:
    """What the events so far say about each run: its parameters, its newest points, whether it is still open."""

    def __init__(self, events: list[Event]) -> None:
        self._params: dict[str, dict[str, str]] = {}
        self._points: dict[str, dict[tuple[str, int], float]] = {}
        self._open: set[str] = set()
        for event in events:
            self.note(event)

    def note(self, event: Event) -> None:
        """Take in one more event."""
        if event.kind == "start":
            self._params.setdefault(event.run_id, {}).update(event.params)
            self._open.add(event.run_id)
        elif event.kind == "metrics":
            points = self._points.setdefault(event.run_id, {})
            points.update({(sys.intern(key), event.step): value for key, value in event.metrics.items()})
        elif event.kind == "end":
            self._open.discard(event.run_id)

    def has(self, run_id: str) -> bool:
        """Whether a start of `run_id` was seen."""
        return run_id in self._params

    def check_known(self, run_id: str) -> None:
        """Refuse a run that never started.

        Raises:
            ValueError: No start of `run_id` was seen.
        """
        if not self.has(run_id):
            raise ValueError(f"run_id={run_id!r} was never started; call start_run first")

    def check_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Refuse parameters that differ from what the run has: they are written once.

        Raises:
            ValueError: Names every parameter that differs, with both values.
        """
        known = self._params.get(run_id, {})
        changed = [f"{key}: {known[key]!r} -> {new!r}" for key, new in params.items() if known.get(key, new) != new]
        if changed:
            raise ValueError(
                f"run_id={run_id!r} already has other parameters ({'; '.join(changed)}); parameters are written once: "
                "a run with other parameters needs another run_id"
            )

    def new_points(self, run_id: str, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """The metrics that are not already there with this very value: a resumed run repeats some steps."""
        points = self._points.get(run_id, {})
        return {key: value for key, value in metrics.items() if points.get((key, step)) != value}

    def open_runs(self) -> list[str]:
        """Runs that started and have not ended, sorted."""
        return sorted(self._open)
