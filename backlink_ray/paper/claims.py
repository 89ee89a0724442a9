"""Claims: what the paper's text claims, what each claim rests on, and whether our runs at its budget bear it out.

A gain is reproduced where ours reaches the paper's number within chance (`Spread.tolerance`), and a cost where it is no worse
than the paper's by more than COST_SLACK. A claim on every case fails with the first case that fails.
"""

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from backlink_ray.paper.cells import Cell, cells, find
from backlink_ray.paper.evidence import Evidence
from backlink_ray.paper.scores import PAPER_TRIALS, Spread, gll_of, is_baseline, published_gain
from backlink_ray.paper.table import spread_text
from backlink_ray.text import markdown_table

Verdict = Literal["reproduced", "not reproduced", "not run yet", "yours to judge"]
Claim = dict[str, Any]

# Percentage points of memory or time: the paper gives whole percents, measured on other hardware.
COST_SLACK = 2.0
COLUMNS = ("claim", "where", "verdict", "the paper's", "ours", "rests on", "the paper's own numbers")


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
    return dict(json.loads((Path(__file__).parent / "claims.json").read_text()))


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
    return Finding(
        claim=claim,
        rests_on=f"error of {claim['over']} less that of {claim['of']}",
        paper=f"{claim['value']:.2f} points",
        ours=_joined(ours, "" if found and found.n > 1 else _missing(found, evidence, better, worse)),
        verdict=verdict,
        own=_own(claim, []),
    )


def _missing(found: Spread | None, evidence: Evidence, better: Cell, worse: Cell) -> str:
    if found:
        return "one seed: no spread to judge by"
    return _joined(evidence.undecided(better, worse), evidence.smaller(better, worse))


def _reaches(found: Spread, claim: Claim) -> bool:
    value, slack = float(claim["value"]), found.tolerance(PAPER_TRIALS)
    return found.mean <= value + slack if claim.get("sense") == "at most" else found.mean >= value - slack


def _verdict(holds: bool) -> Verdict:
    return "reproduced" if holds else "not reproduced"


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


# The same comparison in every case


def _every(claim: Claim, evidence: Evidence) -> Finding:
    pairs = list(_PAIRS[claim["kind"]](claim["rows"]))
    strict = claim["kind"] == "better-than-gll"
    found = [(better, worse, evidence.scores.gains(better, worse)) for better, worse in pairs]
    run = [(better, worse, spread) for better, worse, spread in found if spread and spread.n > 1]
    against = [_case(b, w, s.mean) for b, w, s in run if not (s.mean > 0 if strict else s.mean >= -s.tolerance())]
    verdict: Verdict = "not reproduced" if against else "reproduced" if len(run) == len(pairs) else "not run yet"
    holds = f"holds in {len(run) - len(against)} of {len(run)} cases run" if run else ""
    unclear = evidence.undecided(
        *dict.fromkeys(cell for better, worse, spread in found if not spread for cell in (better, worse))
    )
    return Finding(
        claim=claim,
        rests_on=f"{len(pairs)} pairs of cells in {', '.join(claim['rows'])}",
        paper="in every case",
        ours=_joined(holds, *against, unclear),
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
    found = _amount(claim, evidence)
    ours, holds = "", False
    if found is not None:
        at_least = claim["kind"] != "overhead" or claim.get("sense") == "at least"
        value = claim["value"]
        ours, holds = f"{found:.1f} %", found >= value - COST_SLACK if at_least else found <= value + COST_SLACK
    return _measured(claim, evidence, claim.get("paper", f"{claim['value']} %"), ours, holds)


def _amount(claim: Claim, evidence: Evidence) -> float | None:
    """The percentage to hold against the paper's: the largest saving or overhead, or what twice the modules save beyond."""
    changes, kind = evidence.changes_pct(claim), claim["kind"]
    if not changes:
        return None
    if kind == "saving-more":
        half = evidence.changes_pct(claim | {"num_modules": claim["num_modules"] // 2})
        return min(half) - min(changes) if half else None
    return -min(changes) if kind == "saving" else max(changes)


def _below(claim: Claim, evidence: Evidence) -> Finding:
    changes, value, every = evidence.changes_pct(claim), claim["value"], claim["kind"] == "below"
    below = sum(change < value for change in changes)
    ours = f"{below} of {len(changes)} cases below {value} %" if changes else ""
    holds = below == len(changes) if every else below > len(changes) / 2
    return _measured(claim, evidence, f"below {value} % in {'every case' if every else 'most cases'}", ours, holds)


def _measured(claim: Claim, evidence: Evidence, paper: str, ours: str, holds: bool) -> Finding:
    """A cost with what it was measured on; it waits for the cases that the claim is about, where their number is known."""
    cases, on_gpu, wanted = evidence.cases(claim), evidence.on_gpu(claim), claim.get("cases", 1)
    verdict: Verdict = _verdict(holds) if ours and on_gpu and len(cases) >= wanted else "not run yet"
    ks = ", ".join(map(str, sorted({k for _, k, _ in cases})))
    missing = f"{wanted - len(cases)} of {wanted} cases missing" if len(cases) < wanted else ""
    notes = (f"at K = {ks}", missing, "" if on_gpu else "not measured on a GPU")
    return _of_figure(claim, paper, _joined(ours, *notes) if ours else "", verdict)


def _of_figure(claim: Claim, paper: str, ours: str, verdict: Verdict) -> Finding:
    place = f"studies/{claim['figure']}.py"
    return Finding(claim=claim, rests_on=place, paper=paper, ours=ours, verdict=verdict, own=_own(claim, []))


def _by_eye(claim: Claim, evidence: Evidence) -> Finding:
    """What the paper gives no number for: the best saving at each K, for the reader to judge."""
    at = {k: evidence.changes_pct(claim | {"num_modules": k}) for k in claim["ks"]}
    found = [f"K = {k}: {-min(changes):.1f} %" for k, changes in at.items() if changes]
    judged = len(found) > 1 and evidence.on_gpu(claim)
    why = f"no number to judge by: look at {claim['figure']}.png"
    ours = _joined(", ".join(found), why if judged else "not measured on a GPU" if found else "")
    return _of_figure(claim, claim["value"], ours, "yours to judge" if judged else "not run yet")


# Curves


def _best(claim: Claim, evidence: Evidence) -> Finding:
    """Whether the lines of a figure are best where the paper says: one value for most of them, or all below a value."""
    found, value = evidence.best(claim), claim["value"]
    one = claim["kind"] == "best-is"
    held = [line for line, (best, _) in found.items() if (best == value if one else best < value)]
    others = [f"{line}: {best:g}" for line, (best, _) in found.items() if line not in held]
    total = len(claim["num_modules"]) * len(claim["propagation_length"])
    holds = len(held) > total / 2 if one else len(held) == total
    paper = f"{value:g} in most lines" if one else f"below {value:g} in every line"
    seeds = min((n for _, n in found.values()), default=0)
    ours = f"{len(held)} of {len(found)} lines run, {total} in all; seeds a point: {seeds}" if found else ""
    return _of_figure(
        claim, paper, _joined(ours, *others), _verdict(holds) if len(found) == total else "not run yet"
    )  # fmt: skip


def _descent(claim: Claim, evidence: Evidence) -> Finding:
    rows = [row for row in evidence.points(claim) if row["method"] == claim["of"]]
    whole = {(r["num_modules"], r["propagation_length"], r["alpha"]) for r in rows if r["epoch"] == r["epochs"]}
    least, most = min((r["constant"] for r in rows), default=0.0), max((r["norm_ratio"] for r in rows), default=0.0)
    holds = all(r["constant"] > 0 and math.isfinite(r["norm_ratio"]) for r in rows)
    ours = f"constant {least:.3g} or more, norm ratio {most:.3g} or less; {len(whole)} of {claim['runs']} runs whole"
    ended = len(whole) >= claim["runs"] or (bool(rows) and not holds)
    return _of_figure(claim, claim["value"], ours if rows else "", _verdict(holds) if ended else "not run yet")


_JUDGES = {
    "gain": _gain, "better-than-gll": _every, "longer-is-better": _every, "more-modules-are-worse": _every,
    "saving": _cost, "saving-more": _cost, "overhead": _cost, "mostly-below": _below, "below": _below,
    "best-is": _best, "best-below": _best, "descent": _descent, "by-eye": _by_eye,
}  # fmt: skip


def _own(claim: Claim, against: list[str]) -> str:
    verdict = {
        "yes": "agree", "mostly": "disagree in places", "no": "disagree", "no table": "in no table",
    }[claim["consistent"]]  # fmt: skip
    return _joined(verdict, claim.get("note", ""), *against)


def markdown(evidence: Evidence) -> str:
    """Return the page of claims: every claim with its verdict, and where the paper contradicts itself."""
    findings = [judge(claim, evidence) for claim in claims()]
    counts = ", ".join(f"{sum(f.verdict == verdict for f in findings)} {verdict}" for verdict in get_args(Verdict))
    lines = [(f.claim["text"], f.claim["where"], f.verdict, f.paper, f.ours, f.rests_on, f.own) for f in findings]
    blocks = (
        "# The paper's claims",
        f"{counts}; {evidence.source}.",
        "\n".join(f"* {line}" for line in _LEGEND),
        markdown_table([COLUMNS, *lines]),
        "## Where the paper contradicts itself",
        "\n".join(f"* {text}" for text in inconsistencies()),
    )
    return "\n\n".join(blocks) + "\n"


_LEGEND = (
    "**not run yet**: what the claim rests on has not been run whole with the paper's recipe (200 epochs, all images, two seeds "
    "or more), or, for memory and time, not on a GPU. What there is stands under ours.",
    "**reproduced**, of an error: ours, mean ± std (seeds), reaches the paper's number within twice the standard error of their "
    f"difference; the paper gives no spread, so its {PAPER_TRIALS} trials are taken to spread as our seeds do. A claim on every "
    "case fails with one case.",
    f"**reproduced**, of memory and time: at most {COST_SLACK:g} percentage points worse than the paper's; where the paper says "
    "below, below. Of a best alpha or eta: in as many lines of the figure as stand there, from the seeds that ran.",
    "**yours to judge**: the paper gives no number to judge by; ours says what to look at.",
    "**rests on**: cells of the paper's tables by address (table/data set/network/heads/K/l; GLL is l0, BP is K1/l0), which "
    "studies/table_N.py --cell ADDRESS runs, or the script that measures; figure 9 at as many K as there were GPUs.",
    "**the paper's own numbers**: whether its tables bear out its words, and the cells where they do not, with what the first "
    "gains, in points. What its figures show is in no table.",
)
