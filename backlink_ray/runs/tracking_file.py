"""Tracking file: tracking.json, which a study's driver writes into a folder to have it tracked in MLflow."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from backlink_ray.errors import StorageError
from backlink_ray.files import write_whole
from backlink_ray.text import slug
from backlink_ray.tracking.tracker import ExperimentInfo, Scalar, Status

TRACKING = "tracking.json"


@dataclass(frozen=True, kw_only=True)
class TrackingFile:
    """What MLflow shows of a folder, other than the run's own metrics and result.

    The file may come from another user, so every field is checked; file names cannot point outside the folder.

    Attributes:
        artifacts: names of files in the folder; those that exist are uploaded.
        derived: metrics that follow from other runs: {name: {"value": ..., "time_ms": of its last change}}.
        started_ms, ended_ms: milliseconds since 1970; ended_ms is 0 until the run has ended.
    """

    run_id: str
    name: str
    experiment: ExperimentInfo
    tags: Mapping[str, str]
    artifacts: Sequence[str]
    started_ms: int
    params: Mapping[str, Scalar] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    status: Status = "RUNNING"
    end_reason: str = ""
    ended_ms: int = 0

    def __post_init__(self) -> None:
        _check_types(self.params.values(), str, int, float)
        texts = (asdict(self.experiment), self.tags, self.dataset, {"name": self.name, "end_reason": self.end_reason})
        _check_types([value for text in texts for value in text.values()], str)
        _check_types([self.started_ms, self.ended_ms, *(at["time_ms"] for at in self.derived.values())], int)
        _check_types([at["value"] for at in self.derived.values()], int, float)
        for name in (self.run_id, *self.artifacts):
            if not isinstance(name, str) or slug(name) != name:
                raise ValueError(f"name {name!r} is unusable; allowed: 1 to 100 characters out of A-Za-z0-9._=+-")
        if self.status not in get_args(Status):
            raise ValueError(f"status={self.status!r} is unknown; allowed: {', '.join(get_args(Status))}")

    @classmethod
    def read(cls, folder: Path) -> "TrackingFile":
        """Read the file of a folder; fields that this version does not know are ignored.

        Raises:
            FileNotFoundError: the folder is not tracked.
            StorageError: the file is damaged.
        """
        try:
            found = json.loads((folder / TRACKING).read_bytes())
            known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
            return cls(**{**known, "experiment": ExperimentInfo(**found["experiment"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise StorageError(f"{folder / TRACKING} is damaged ({reason}); everything else is tracked") from error

    @classmethod
    def find(cls, folder: Path) -> "TrackingFile | None":
        """Return the file of a folder, None if it does not exist or is damaged: tracking reports that, and work continues."""
        try:
            return cls.read(folder)
        except (FileNotFoundError, StorageError):
            return None

    def write(self, folder: Path) -> None:
        """Write the file into a folder, which is created if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TRACKING, json.dumps(asdict(self), indent=2))


def _check_types(values: Iterable[object], *allowed: type) -> None:
    for value in values:
        if not isinstance(value, allowed):
            raise TypeError(f"{value!r} is not of type {' or '.join(kind.__name__ for kind in allowed)}")
