"""Claims: what the paper's text claims, the evidence for each claim, and whether our runs at its budget reproduce it.

A gain is reproduced if ours reaches the paper's number within chance (`Spread.tolerance`), and a cost if it exceeds the
paper's by at most COST_SLACK. A claim about every case fails if one case fails.
"""

import fnmatch
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from backlink_ray.paper.cells import Cell, cells, find
from backlink_ray.paper.evidence import Evidence
from backlink_ray.paper.scores import PAPER_TRIALS, Spread, gll_of, is_baseline, published_gain
from backlink_ray.text import markdown_table

Verdict = Literal["reproduced", "not reproduced", "not run yet", "not judged"]
Claim = dict[str, Any]
# The paper's value and ours as text, and the verdict.
Judgement = tuple[str, str, Verdict]
Pairs = Iterator[tuple[Cell, Cell]]

# Percentage points of memory or time: the paper gives whole percents, measured on other hardware.
COST_SLACK = 2.0
COLUMNS = ("claim", "where", "verdict", "the paper's", "ours", "rests on", "the paper's own numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim with its verdict.

    Attributes:
        rests_on: the cells, or the script of the figure, that the claim rests on.
        paper, ours: values with units; ours is "" if nothing has run.
        own: whether the paper's own tables agree with the claim.
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
    """Return the quoted claims in the order of the paper."""
    return list(_file()["claims"])


def inconsistencies() -> list[str]:
    """Return the points on which the paper contradicts itself."""
    return list(_file()["inconsistencies"])


def quoted_times() -> dict[float, str]:
    """Return the best step times of Fig. 9 that the text quotes, as shares of BP's; the text does not say at which K."""
    share = {claim["id"]: round(1 - claim["value"] / 100, 2) for claim in claims() if claim["kind"] == "saving"}
    return {
        share["runtime-gll-v100"]: "paper: GLL at best, V100",
        share["runtime-backlink"]: f"paper: BackLink at best (GLL {share['runtime-gll-p100']}), P100",
    }


def judge(claim: Claim, evidence: Evidence) -> Finding:
    """Judge a claim by recorded runs."""
    paper, ours, verdict = _JUDGES[claim["kind"]](claim, evidence)
    rests_on, own = _rests_on(claim), _own(claim)
    return Finding(claim=claim, rests_on=rests_on, paper=paper, ours=ours, verdict=verdict, own=own)


def _rests_on(claim: Claim) -> str:
    if claim["kind"] == "gain":
        return f"error of {claim['over']} less that of {claim['of']}"
    if claim["kind"] in _PAIRS:
        return f"{len(list(_PAIRS[claim['kind']](claim['rows'])))} pairs of cells in {', '.join(claim['rows'])}"
    return f"studies/{claim['figure']}.py"


def _own(claim: Claim) -> str:
    texts = {"yes": "agree", "mostly": "disagree in places", "no": "disagree", "no table": "in no table"}
    against = exceptions(claim) if claim["kind"] in _PAIRS else []
    return _joined(texts[claim["consistent"]], claim.get("note", ""), *against)


def _verdict(holds: bool, complete: bool = True) -> Verdict:
    return "not run yet" if not complete else "reproduced" if holds else "not reproduced"


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


# The gain of one cell over another


def _gain(claim: Claim, evidence: Evidence) -> Judgement:
    better, worse = find(claim["of"]), find(claim["over"])
    found = evidence.scores.gains(better, worse)
    paper = f"{claim['value']:.2f} points"
    if not found:
        return paper, _joined(evidence.undecided(better, worse), evidence.smaller(better, worse)), "not run yet"
    if found.n == 1:
        return paper, f"{found} points; one seed, hence no spread", "not run yet"
    return paper, f"{found} points", _verdict(_reaches(found, claim))


def _reaches(found: Spread, claim: Claim) -> bool:
    value, slack = float(claim["value"]), found.tolerance(PAPER_TRIALS)
    return found.mean <= value + slack if claim.get("sense") == "at most" else found.mean >= value - slack


# The same comparison in every case


def _every(claim: Claim, evidence: Evidence) -> Judgement:
    pairs = list(_PAIRS[claim["kind"]](claim["rows"]))
    strict = claim["kind"] == "better-than-gll"
    found = [(better, worse, evidence.scores.gains(better, worse)) for better, worse in pairs]
    run = [(better, worse, spread) for better, worse, spread in found if spread and spread.n > 1]
    against = [_case(b, w, s.mean) for b, w, s in run if not (s.mean > 0 if strict else s.mean >= -s.tolerance())]
    holds = f"holds in {len(run) - len(against)} of {len(run)} cases run" if run else ""
    unclear = evidence.undecided(
        *dict.fromkeys(cell for better, worse, spread in found if not spread for cell in (better, worse))
    )
    verdict = _verdict(not against, complete=bool(against) or len(run) == len(pairs))
    return "in every case", _joined(holds, *against, unclear), verdict


def exceptions(claim: Claim) -> list[str]:
    """Return the cases in the paper's own tables that contradict a claim about every case."""
    strict = claim["kind"] == "better-than-gll"
    gains = ((b, w, published_gain(b, w)) for b, w in _PAIRS[claim["kind"]](claim["rows"]))
    return [_case(b, w, gain) for b, w, gain in gains if gain is not None and (gain <= 0 if strict else gain < 0)]


def _case(better: Cell, worse: Cell, gain: float) -> str:
    """Return for example "table2/cifar100/resnet110/fc/K4/l1 against l0: -0.28"."""
    mine, theirs = better.address.split("/"), worse.address.split("/")
    short = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    return f"{better.address} against {'/'.join(theirs[short:])}: {gain:+.2f}"


def _of_rows(rows: list[str]) -> list[Cell]:
    return [cell for cell in cells() if any(fnmatch.fnmatch(cell.address, pattern) for pattern in rows)]


def _over_gll(rows: list[str]) -> Pairs:
    return ((cell, gll_of(cell)) for cell in _of_rows(rows) if not is_baseline(cell))


def _by_length(rows: list[str]) -> Pairs:
    """Yield each BackLink cell with the next shorter l in its row and K."""
    chosen = [cell for cell in _of_rows(rows) if not is_baseline(cell)]
    for cell in chosen:
        beside = [c for c in chosen if (c.row, c.num_modules) == (cell.row, cell.num_modules)]
        shorter = [c for c in beside if c.propagation_length < cell.propagation_length]
        if shorter:
            yield cell, max(shorter, key=lambda c: c.propagation_length)


def _by_modules(rows: list[str]) -> Pairs:
    """Yield each cell except BP with the cell of its method and l at twice the modules."""
    chosen = [cell for cell in _of_rows(rows) if cell.num_modules > 1]
    for cell in chosen:
        twice = (cell.row, 2 * cell.num_modules, cell.propagation_length)
        yield from ((cell, c) for c in chosen if (c.row, c.num_modules, c.propagation_length) == twice)


_PAIRS: dict[str, Callable[[list[str]], Pairs]] = {
    "better-than-gll": _over_gll, "longer-is-better": _by_length, "more-modules-are-worse": _by_modules,
}  # fmt: skip


# Memory and time


def _cost(claim: Claim, evidence: Evidence) -> Judgement:
    found, value = _amount(claim, evidence), claim["value"]
    paper = claim.get("paper", f"{value} %")
    if found is None:
        return paper, "", "not run yet"
    at_least = claim["kind"] != "overhead" or claim.get("sense") == "at least"
    holds = found >= value - COST_SLACK if at_least else found <= value + COST_SLACK
    return _measured(claim, evidence, paper, f"{found:.1f} %", holds)


def _amount(claim: Claim, evidence: Evidence) -> float | None:
    """Return the percentage to compare: the largest saving or overhead, or the additional saving of twice the modules."""
    changes, kind = evidence.changes_pct(claim), claim["kind"]
    if not changes:
        return None
    if kind == "saving-more":
        half = evidence.changes_pct(claim | {"num_modules": claim["num_modules"] // 2})
        return min(half) - min(changes) if half else None
    return -min(changes) if kind == "saving" else max(changes)


def _below(claim: Claim, evidence: Evidence) -> Judgement:
    changes, value, every = evidence.changes_pct(claim), claim["value"], claim["kind"] == "below"
    paper = f"below {value} % in {'every case' if every else 'most cases'}"
    if not changes:
        return paper, "", "not run yet"
    below = sum(change < value for change in changes)
    holds = below == len(changes) if every else below > len(changes) / 2
    return _measured(claim, evidence, paper, f"{below} of {len(changes)} cases below {value} %", holds)


def _measured(claim: Claim, evidence: Evidence, paper: str, ours: str, holds: bool) -> Judgement:
    """Judge a measured cost, once it was measured on a GPU and in all cases that the claim is about, if it counts them."""
    cases, on_gpu, wanted = evidence.cases(claim), evidence.on_gpu(claim), claim.get("cases", 1)
    ks = ", ".join(map(str, sorted({k for _, k, _ in cases})))
    missing = f"{wanted - len(cases)} of {wanted} cases missing" if len(cases) < wanted else ""
    notes = (f"at K = {ks}", missing, "" if on_gpu else "not measured on a GPU")
    return paper, _joined(ours, *notes), _verdict(holds, complete=on_gpu and not missing)


def _by_eye(claim: Claim, evidence: Evidence) -> Judgement:
    """Show the best saving at each K, where the paper gives no number to compare with."""
    at = {k: evidence.changes_pct(claim | {"num_modules": k}) for k in claim["ks"]}
    found = [f"K = {k}: {-min(changes):.1f} %" for k, changes in at.items() if changes]
    judged = len(found) > 1 and evidence.on_gpu(claim)
    why = f"no number to compare with, see {claim['figure']}.png"
    ours = _joined(", ".join(found), why if judged else "not measured on a GPU" if found else "")
    return claim["value"], ours, "not judged" if judged else "not run yet"


# Curves


def _best(claim: Claim, evidence: Evidence) -> Judgement:
    """Judge where the lines of a figure are best: at one value for most lines, or below a value for all."""
    found, value = evidence.best(claim), claim["value"]
    one = claim["kind"] == "best-is"
    held = [line for line, (best, _) in found.items() if (best == value if one else best < value)]
    others = [f"{line}: {best:g}" for line, (best, _) in found.items() if line not in held]
    total = len(claim["num_modules"]) * len(claim["propagation_length"])
    holds = len(held) > total / 2 if one else len(held) == total
    seeds = min((n for _, n in found.values()), default=0)
    ours = f"holds in {len(held)} of {len(found)} lines run, {total} in all; seeds per point: {seeds}" if found else ""
    paper = f"{value:g} in most lines" if one else f"below {value:g} in every line"
    return paper, _joined(ours, *others), _verdict(holds, complete=len(found) == total)


def _descent(claim: Claim, evidence: Evidence) -> Judgement:
    rows = [row for row in evidence.points(claim) if row["method"] == claim["of"]]
    if not rows:
        return claim["value"], "", "not run yet"
    whole = {(r["num_modules"], r["propagation_length"], r["alpha"]) for r in rows if r["epoch"] == r["epochs"]}
    least, most = min(row["constant"] for row in rows), max(row["norm_ratio"] for row in rows)
    holds = all(r["constant"] > 0 and math.isfinite(r["norm_ratio"]) for r in rows)
    ours = (
        f"constant at least {least:.3g}, norm ratio at most {most:.3g}; {len(whole)} of {claim['runs']} runs complete"
    )
    return claim["value"], ours, _verdict(holds, complete=len(whole) >= claim["runs"] or not holds)


_JUDGES: dict[str, Callable[[Claim, Evidence], Judgement]] = {
    "gain": _gain, "better-than-gll": _every, "longer-is-better": _every, "more-modules-are-worse": _every,
    "saving": _cost, "saving-more": _cost, "overhead": _cost, "mostly-below": _below, "below": _below,
    "best-is": _best, "best-below": _best, "descent": _descent, "by-eye": _by_eye,
}  # fmt: skip


def markdown(evidence: Evidence) -> str:
    """Return the page of claims: every claim with its verdict, and the points on which the paper contradicts itself."""
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
    "**not run yet**: the runs that the claim rests on are not complete at the paper's recipe (200 epochs, all images, at least "
    "two seeds) or, for memory and time, were not measured on a GPU. Partial results are shown under ours.",
    "**reproduced**, for errors: ours, mean ± std (seeds), reaches the paper's number within twice the standard error of their "
    f"difference. The paper gives no spread, so its {PAPER_TRIALS} trials are assumed to vary as our seeds do. A claim about "
    "every case fails if one case fails.",
    f"**reproduced**, for memory and time: at most {COST_SLACK:g} percentage points worse than the paper's number; where the "
    "paper says below, below it. For a best alpha or eta: in as many lines of the figure as the paper says, over the seeds "
    "that ran.",
    "**not judged**: the paper gives no number to compare with; ours names the figure to look at.",
    "**rests on**: cells of the paper's tables by address (table/data set/network/heads/K/l; GLL is l0, BP is K1/l0), which "
    "studies/table_N.py --cell ADDRESS runs, or the script that measures; figure 9 covers as many K as there were GPUs.",
    "**the paper's own numbers**: whether its tables agree with its text, and the cells where they do not, with the gain of the "
    "first over the second in points. What only its figures show is in no table.",
)
