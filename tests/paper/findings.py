"""Findings from made-up records, for tests of the paper's claims."""

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
    """Record rows of a study in a storage folder."""
    for row in rows:
        Results(folder / study).append(row)


def judged(folder: Path, name: str, rows: Sequence[Row], study: str = "table_2") -> Finding:
    """Record rows, and return a claim judged by them."""
    record(folder, study, rows)
    return judge(claim(name), Evidence([folder]))
