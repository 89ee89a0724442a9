"""Moved: an MLflow store that was moved or copied with its folder keeps its artifacts beside it, and not at the old place."""

import sqlite3
from contextlib import closing
from pathlib import Path

from backlink_ray.tracking.uri import ARTIFACTS

_EXPERIMENTS = "SELECT experiment_id, name, artifact_location FROM experiments"
_OF_RUNS = """
    UPDATE runs SET artifact_uri = ? || substr(artifact_uri, length(?) + 1)
    WHERE experiment_id = ? AND substr(artifact_uri, 1, length(?)) = ?
"""


def bring_artifacts_along(database: Path) -> None:
    """Correct the places of artifacts in a SQLite store, where MLflow records them as absolute; others' places stay."""
    here = f"{database.with_name(ARTIFACTS).as_uri()}/"
    with closing(sqlite3.connect(database)) as store, store:
        for number, name, location in store.execute(_EXPERIMENTS).fetchall():
            there = location.removesuffix(name)
            came_along = there.startswith("file:") and database.with_name(ARTIFACTS).joinpath(name).is_dir()
            if location != there and there.endswith(f"/{ARTIFACTS}/") and there != here and came_along:
                store.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here + name, number)
                )
                store.execute(_OF_RUNS, (here, there, number, there, there))
