"""Claims: what the paper's text claims, what each claim rests on, and whether our runs at its budget bear it out.

A gain is reproduced where ours reaches the paper's number within twice the standard error of the two's difference (`slack`), and
a cost where it is no worse than the paper's by more than COST_SLACK. A claim on every case fails with the first case that fails.
"""

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from backlink_ray.study.evidence import Evidence
from backlink_ray.study.grid import find
from backlink_ray.study.paper import Cell, cells
from backlink_ray.study.score import Spread, gll_of, is_baseline, published_gain
from backlink_ray.study.table import grid_text, spread_text

Verdict = Literal["reproduced", "not reproduced", "not run yet"]
Claim = dict[str, Any]

# Percentage points of memory or time: the paper gives whole percents, measured on other hardware.
COST_SLACK = 2.0
PAPER_TRIALS = 5
COLUMNS = ("claim", "where", "rests on", "the paper's", "ours", "verdict", "the paper's own numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim beside what is recorded.

    Attributes:
        rests_on: cells, or the figure that measures it.
        paper, ours: values with units; ours is "" where nothing has run.
        own: whether the paper's own numbers bear the claim out.
    """

    claim: Claim
    rests_on: str
    paper: str
    ours: str
    verdict: Verdict
    own: str


@cache
def _file() -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "paper_claims.json").read_text()))


def claims() -> list[Claim]:
    """Return the paper's quoted claims, in its order."""
    return list(_file()["claims"])


def inconsistencies() -> list[str]:
    """Return where the paper contradicts itself."""
    return list(_file()["inconsistencies"])


def judge(claim: Claim, evidence: Evidence) -> Finding:
    """Return a claim beside what is recorded."""
    return _JUDGES[claim["kind"]](claim, evidence)


# A gain of one cell over another


def _gain(claim: Claim, evidence: Evidence) -> Finding:
    better, worse = find(claim["of"]), find(claim["over"])
    found = evidence.scores.gains(better, worse)
    verdict: Verdict = "not run yet"
    if found and found.n > 1:
        verdict = _verdict(_reaches(found, claim))
    ours = spread_text(found) and f"{spread_text(found)} points"
    missing = "one seed: no spread to judge by" if found and found.n == 1 else evidence.smaller(better, worse)
    return Finding(
        claim=claim,
        rests_on=f"{claim['over']} less {claim['of']}",
        paper=f"{claim['value']:.2f} points",
        ours="; ".join(filter(None, (ours, missing if verdict == "not run yet" else ""))),
        verdict=verdict,
        own=_own(claim, []),
    )


def _reaches(found: Spread, claim: Claim) -> bool:
    value = float(claim["value"])
    if claim.get("sense") == "at most":
        return found.mean <= value + slack(found)
    return found.mean >= value - slack(found)


def slack(found: Spread) -> float:
    """Return twice the standard error of ours less the paper's, whose 5 trials are taken to spread as ours do; nan for one."""
    return max(found.tolerance, 2 * found.std * math.sqrt(1 / found.n + 1 / PAPER_TRIALS))


def _verdict(holds: bool) -> Verdict:
    return "reproduced" if holds else "not reproduced"


# The same comparison in every case


def _every(claim: Claim, evidence: Evidence) -> Finding:
    pairs = list(_PAIRS[claim["kind"]](claim["rows"]))
    strict = claim["kind"] == "better-than-gll"
    found = [(better, worse, evidence.scores.gains(better, worse)) for better, worse in pairs]
    run = [(better, worse, spread) for better, worse, spread in found if spread and spread.n > 1]
    against = [_case(b, w, s.mean) for b, w, s in run if not (s.mean > 0 if strict else s.mean >= -s.tolerance)]
    verdict: Verdict = "not reproduced" if against else "reproduced" if len(run) == len(pairs) else "not run yet"
    holds = f"{len(run) - len(against)} of {len(run)} cases run" if run else ""
    return Finding(
        claim=claim,
        rests_on=f"{len(pairs)} pairs of cells in {', '.join(claim['rows'])}",
        paper="in every case",
        ours="; ".join(filter(None, (holds, *against))),
        verdict=verdict,
        own=_own(claim, exceptions(claim)),
    )


def exceptions(claim: Claim) -> list[str]:
    """Return the cases in the paper's own tables that go against a claim on every case."""
    strict = claim["kind"] == "better-than-gll"
    gains = ((b, w, published_gain(b, w)) for b, w in _PAIRS[claim["kind"]](claim["rows"]))
    return [_case(b, w, gain) for b, w, gain in gains if gain is not None and (gain <= 0 if strict else gain < 0)]


def _case(better: Cell, worse: Cell, gain: float) -> str:
    """For example "table2/cifar100/resnet110/fc/K4/l1 against l0: -0.28"."""
    short = next(i for i, (a, b) in enumerate(zip(_parts(better), _parts(worse), strict=True)) if a != b)
    return f"{better.address} against {'/'.join(_parts(worse)[short:])}: {gain:+.2f}"


def _parts(cell: Cell) -> list[str]:
    return cell.address.split("/")


def _of_rows(rows: list[str]) -> list[Cell]:
    return [cell for cell in cells() if any(fnmatch.fnmatch(cell.address, pattern) for pattern in rows)]


def _over_gll(rows: list[str]) -> Iterator[tuple[Cell, Cell]]:
    return ((cell, gll_of(cell)) for cell in _of_rows(rows) if not is_baseline(cell))


def _by_length(rows: list[str]) -> Iterator[tuple[Cell, Cell]]:
    """Each BackLink cell with the next shorter l of its row and K."""
    chosen = [cell for cell in _of_rows(rows) if not is_baseline(cell)]
    for cell in chosen:
        shorter = [c for c in chosen if _beside(c, cell) and c.propagation_length < cell.propagation_length]
        if shorter:
            yield cell, max(shorter, key=lambda c: c.propagation_length)


def _beside(one: Cell, other: Cell) -> bool:
    return (one.row, one.num_modules) == (other.row, other.num_modules)


def _by_modules(rows: list[str]) -> Iterator[tuple[Cell, Cell]]:
    """Each cell but BP with the one of its method and l at twice the modules."""
    chosen = [cell for cell in _of_rows(rows) if cell.num_modules > 1]
    for cell in chosen:
        twice = (cell.row, 2 * cell.num_modules, cell.propagation_length)
        yield from ((cell, c) for c in chosen if (c.row, c.num_modules, c.propagation_length) == twice)


_PAIRS = {"better-than-gll": _over_gll, "longer-is-better": _by_length, "more-modules-are-worse": _by_modules}


# Memory and time


def _cost(claim: Claim, evidence: Evidence) -> Finding:
    changes = evidence.changes_pct(claim)
    value, kind = claim["value"], claim["kind"]
    ours, holds = "", False
    if changes and kind == "mostly-below":
        below = sum(change < value for change in changes)
        ours, holds = f"{below} of {len(changes)} cases below {value} %", below > len(changes) / 2
    elif changes:
        found = -min(changes) if kind == "saving" else max(changes)
        at_least = kind == "saving" or claim.get("sense") == "at least"
        ours, holds = f"{found:.1f} %", found >= value - COST_SLACK if at_least else found <= value + COST_SLACK
    measured = bool(changes) and evidence.on_gpu(claim)
    note = "" if measured or not changes else "not measured on a GPU"
    return Finding(
        claim=claim,
        rests_on=f"studies/{claim['figure']}.py",
        paper=f"below {value} %" if kind == "mostly-below" else f"{value} %",
        ours="; ".join(filter(None, (ours, note))),
        verdict=_verdict(holds) if measured else "not run yet",
        own=_own(claim, []),
    )


def _figure(claim: Claim, evidence: Evidence) -> Finding:
    drawn = ", ".join(map(str, evidence.figures(claim["figure"])))
    return Finding(
        claim=claim,
        rests_on=f"studies/{claim['figure']}.py",
        paper=str(claim["value"]),
        ours=f"to be read from {drawn}" if drawn else "",
        verdict="not run yet",
        own=_own(claim, []),
    )


_JUDGES = {
    "gain": _gain, "better-than-gll": _every, "longer-is-better": _every, "more-modules-are-worse": _every,
    "saving": _cost, "overhead": _cost, "mostly-below": _cost, "figure": _figure,
}  # fmt: skip


def _own(claim: Claim, against: list[str]) -> str:
    verdict = {
        "yes": "bear it out", "mostly": "contradict it in places", "no": "contradict it", "no table": "are in no table",
    }[claim["consistent"]]  # fmt: skip
    return "; ".join(filter(None, (verdict, claim.get("note", ""), *against)))


def markdown(evidence: Evidence) -> str:
    """Return the page of claims: every claim with its verdict, and where the paper contradicts itself."""
    findings = [judge(claim, evidence) for claim in claims()]
    counts = {v: sum(f.verdict == v for f in findings) for v in ("reproduced", "not reproduced", "not run yet")}
    lines = [
        (f.claim["text"], f.claim["where"], f.rests_on, f.paper, f.ours, f.verdict, f.own) for f in findings
    ]  # fmt: skip
    return (
        "\n\n".join(
            (
                "# The paper's claims",
                ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; {evidence.source}.",
                _RULE,
                grid_text([COLUMNS, *lines]),
                "## Where the paper contradicts itself",
                "\n".join(f"* {text}" for text in inconsistencies()),
            )
        )
        + "\n"
    )


_RULE = (
    "A claim counts as run where its cells ran with the paper's recipe: 200 epochs, all images, at least two seeds. A gain is "
    "reproduced where ours reaches the paper's number within twice the standard error of their difference, the paper's 5 trials "
    "being taken to spread as our seeds do, since it gives no spread; a claim on every case "
    f"fails with one case; memory and time may be {COST_SLACK:g} points of percent worse. Ours: mean ± std (seeds)."
)
