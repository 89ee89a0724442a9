"""Findings on records made up for the purpose, for tests of what the paper claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backlink_ray.paper.claims import Finding, claims, judge
from backlink_ray.paper.evidence import Evidence
from backlink_ray.runs.results import Results
from tests.paper.rows import Row


def claim(name: str) -> dict[str, Any]:
    """Return one of the paper's claims."""
    (found,) = [c for c in claims() if c["id"] == name]
    return found


def record(folder: Path, study: str, rows: Sequence[Row]) -> None:
    """Results rows of a study in a storage folder."""
    for row in rows:
        Results(folder / study).append(row)


def judged(folder: Path, name: str, rows: Sequence[Row], study: str = "table_2") -> Finding:
    """Results rows, and return what a claim comes to with them."""
    record(folder, study, rows)
    return judge(claim(name), Evidence([folder]))
