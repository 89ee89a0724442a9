"""Tracking file: tracking.json, which a study's driver writes into a folder to have it tracked in MLflow."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from backlink_ray.errors import StorageError
from backlink_ray.files import make_own_folder, write_json
from backlink_ray.text import slug
from backlink_ray.tracking.run import ExperimentInfo, Status, TrackedRun

TRACKING = "tracking.json"
DAMAGE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # raised by content of an unexpected shape


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingFile(TrackedRun):
    """A tracked run as its driver records it: without curve and summary, which the run's own log holds.

    Attributes:
        derived: metrics that follow from other runs: {name: {"value": ..., "time_ms": of its last change}}.
    """

    derived: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "TrackingFile":
        """Read the file of a folder; fields that this version does not know are ignored.

        Raises:
            FileNotFoundError: the folder is not tracked.
            StorageError: the file is damaged, or names a file outside the folder.
        """
        try:
            found = json.loads((folder / TRACKING).read_bytes())
            _check(found)
            stored = {name: found[name] for name in _stored() if name in found}
            objects = {"experiment": ExperimentInfo(**found["experiment"])}
            return cls(**{**stored, **objects, "artifacts": [folder / name for name in found["artifacts"]]})
        except DAMAGE as error:
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
        make_own_folder(folder)
        content = {name: value for name, value in asdict(self).items() if name in _stored()}
        write_json(folder / TRACKING, {**content, "artifacts": [path.name for path in self.artifacts]})


def _stored() -> set[str]:
    return {each.name for each in fields(TrackingFile)} - {"curve", "summary"}


def _check(found: Mapping[str, Any]) -> None:
    """Check every field, since the file may come from another user; file names cannot point outside the folder."""
    for name in ("experiment", "tags", "dataset"):
        _check_types(found[name].values(), str)
    _check_types(found["params"].values(), str, int, float)
    _check_types([found["name"], found.get("end_reason", "")], str)
    derived = found["derived"].values()
    _check_types([found["started_ms"], found.get("ended_ms", 0), *(at["time_ms"] for at in derived)], int)
    _check_types([at["value"] for at in derived], int, float)
    for name in (found["run_id"], *found["artifacts"]):
        if not isinstance(name, str) or slug(name) != name:
            raise ValueError(f"name {name!r} is unusable; allowed: 1 to 100 characters out of A-Za-z0-9._=+-")
    if found["status"] not in get_args(Status):
        raise ValueError(f"status={found['status']!r} is unknown; allowed: {', '.join(get_args(Status))}")


def _check_types(values: Iterable[object], *allowed: type) -> None:
    for value in values:
        if not isinstance(value, allowed):
            raise TypeError(f"{value!r} is not of type {' or '.join(kind.__name__ for kind in allowed)}")
