"""Timeline: when each stage computes, waits, exchanges and updates, as numbers and as a picture."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The kind of an action by a word in its name. Over Ray, waiting includes the copy out of the object store.
KINDS = {"forward": "forward", "backward": "backward", "update": "update", "send": "exchange", "receive": "wait"}
COMPUTE = ("forward", "backward")
STEPS_SHOWN = 4

# Okabe and Ito's colours, safe for every colour vision. Both kinds of computing are blue, waiting is in the background.
COLOURS = {"forward": "#56B4E9", "backward": "#0072B2", "update": "#009E73", "exchange": "#E69F00", "wait": "#E3E3E3"}
_INK = "#333333"
_WIDTH_IN, _ROW_WIDTH_PT = 13.0, 770.0


@dataclass(frozen=True, slots=True)
class Span:
    """One action of one stage.

    start_s and end_s are seconds of the host's clock (`time.time`), comparable between the processes of one host. On a
    GPU they are the times at which the host issued the work, unless the stage synchronises after every action.
    """

    stage_index: int
    step: int
    action: str
    start_s: float
    end_s: float


class Timeline:
    """Records what one stage does. `spans` grows by up to 14 per step; the owner empties it from time to time."""

    def __init__(self, stage_index: int) -> None:
        self._stage_index = stage_index
        self.spans: list[Span] = []

    def record(self, action: str, step: int) -> AbstractContextManager[None]:
        """Record what happens inside `with` as one span, even if it raises."""
        return _Recording(self, self._stage_index, action, step)


class NoTimeline(Timeline):
    """The same interface; records nothing."""

    def __init__(self) -> None:
        super().__init__(-1)

    def record(self, action: str, step: int) -> AbstractContextManager[None]:
        return _NOTHING


class _Recording(AbstractContextManager[None]):
    # Not a generator, which is slower: this runs a dozen times per step, around actions of microseconds.
    __slots__ = ("_action", "_owner", "_stage_index", "_start_s", "_step")

    def __init__(self, owner: Timeline, stage_index: int, action: str, step: int) -> None:
        self._owner, self._stage_index, self._action, self._step = owner, stage_index, action, step

    def __enter__(self) -> None:
        self._start_s = time.time()

    def __exit__(self, *_error: object) -> None:
        self._owner.spans.append(Span(self._stage_index, self._step, self._action, self._start_s, time.time()))


_NOTHING = contextlib.nullcontext()


def kind_of(action: str) -> str:
    """Return forward, backward, update, exchange or wait."""
    for word in action.split("_"):
        if word in KINDS:
            return KINDS[word]
    raise ValueError(f"action={action!r} is of no known kind; allowed: a name with one of {', '.join(KINDS)}")


def _wall_s(spans: Sequence[Span]) -> float:
    return max(span.end_s for span in spans) - min(span.start_s for span in spans)


def overlap(spans: Iterable[Span]) -> float:
    """Return the fraction of the wall time, 0..1, in which at least two stages compute (forward or backward) at once."""
    spans = list(spans)
    computing = [span for span in spans if kind_of(span.action) in COMPUTE]
    edges = [(s.start_s, 1, s.stage_index) for s in computing] + [(s.end_s, -1, s.stage_index) for s in computing]
    together, before, depth = 0.0, 0.0, dict.fromkeys((span.stage_index for span in computing), 0)
    for moment, change, stage in sorted(edges):
        together += (moment - before) if sum(map(bool, depth.values())) >= 2 else 0.0
        depth[stage] += change
        before = moment
    wall_s = _wall_s(spans) if spans else 0.0
    return together / wall_s if wall_s else 0.0


def draw(spans: Sequence[Span], path: Path, title: str = "") -> None:
    """Write the last four recorded steps as a PNG: one row per stage, time in milliseconds, coloured by kind of action.

    Args:
        spans: of any number of stages and at least one step; parts of other steps inside the window are shown, too.
        path: the file; its folder is created.
    """
    from matplotlib.figure import Figure  # imported here: the numbers need no drawing library

    chosen = sorted({span.step for span in spans})[-STEPS_SHOWN:]
    window = _window(spans, chosen)
    zero_s, width_ms = window[0].start_s, 1e3 * _wall_s(window)
    stages = sorted({span.stage_index for span in spans})
    row_in = 0.62 if len(stages) <= 8 else 0.42
    figure = Figure(figsize=(_WIDTH_IN, 1.7 + row_in * len(stages)), layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, window, zero_s)
    if len(stages) <= 8:
        _draw_names(axes, window, zero_s, width_ms)
    _draw_steps(axes, window, chosen, zero_s)
    _draw_shares(axes, window, stages)
    _format_axes(axes, stages, width_ms)
    axes.set_title(_heading(window, chosen, title), fontsize=11, loc="left", color=_INK, pad=22)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _window(spans: Sequence[Span], chosen: Sequence[int]) -> list[Span]:
    """Return all spans between the first start and the last end of the chosen steps, cut at both, in order of time."""
    inside = [span for span in spans if span.step in set(chosen)]
    first, last = min(span.start_s for span in inside), max(span.end_s for span in inside)
    seen = [span for span in spans if span.end_s > first and span.start_s < last]
    cut = [Span(s.stage_index, s.step, s.action, max(s.start_s, first), min(s.end_s, last)) for s in seen]
    return sorted(cut, key=lambda span: span.start_s)


def _heading(window: Sequence[Span], chosen: Sequence[int], title: str) -> str:
    steps = f"steps {chosen[0]} to {chosen[-1]}" if len(chosen) > 1 else f"step {chosen[0]}"
    wall_ms = 1e3 * _wall_s(window)
    numbers = f"{steps}: at least two stages compute at once in {overlap(window):.0%} of the {wall_ms:,.0f} ms"
    return f"{title}\n{numbers}" if title else numbers


def _draw_bars(axes: "Axes", window: Sequence[Span], zero_s: float) -> None:
    rows = len({span.stage_index for span in window})
    edge = 0.25 if len(window) < 150 * rows else 0.0  # a white edge separates bars, but would hide those of one pixel
    groups: dict[tuple[int, str], list[Span]] = {}
    for span in window:
        groups.setdefault((span.stage_index, kind_of(span.action)), []).append(span)
    for (stage, kind), group in groups.items():
        bars = [(1e3 * (span.start_s - zero_s), 1e3 * (span.end_s - span.start_s)) for span in group]
        axes.broken_barh(bars, (stage - 0.36, 0.72), facecolors=COLOURS[kind], edgecolors="white", linewidths=edge)


def _draw_names(axes: "Axes", window: Sequence[Span], zero_s: float, width_ms: float) -> None:
    """Write what is computed (replica, body, tail, local) into the bars that are wide enough."""
    for span in window:
        kind, word, length_ms = kind_of(span.action), span.action.split("_")[0], 1e3 * (span.end_s - span.start_s)
        if kind in COMPUTE and _ROW_WIDTH_PT * length_ms / width_ms > 4.2 * len(word) + 4:
            middle = 1e3 * (span.start_s - zero_s) + length_ms / 2
            colour = "white" if kind == "backward" else "black"
            axes.text(middle, span.stage_index, word, fontsize=7, color=colour, ha="center", va="center")


def _draw_steps(axes: "Axes", window: Sequence[Span], chosen: Sequence[int], zero_s: float) -> None:
    """Mark the beginning of each step: a line across the rows, and the step's number above it."""
    for step in chosen:
        starts: dict[int, float] = {}
        for span in window:
            if span.step == step and kind_of(span.action) in COMPUTE:
                starts.setdefault(span.stage_index, 1e3 * (span.start_s - zero_s))
        x = [starts[stage] for stage in sorted(starts) for _ in range(2)]
        y = [stage + edge for stage in sorted(starts) for edge in (-0.45, 0.45)]
        axes.plot(x, y, color=_INK, linewidth=1.0, solid_capstyle="butt", zorder=3, clip_on=False)
        if starts:
            axes.text(x[0], y[0] - 0.05, f"step {step}", fontsize=8, color=_INK, ha="left", va="bottom")


def _draw_shares(axes: "Axes", window: Sequence[Span], stages: Sequence[int]) -> None:
    """Write to the right of each row the share of the window in which the stage computes."""
    right = axes.get_yaxis_transform()
    for stage in stages:
        own = (span for span in window if span.stage_index == stage and kind_of(span.action) in COMPUTE)
        share = sum(span.end_s - span.start_s for span in own) / _wall_s(window)
        axes.text(1.01, stage, f"{share:.0%}", transform=right, fontsize=9, color=_INK, va="center")
    axes.text(1.01, stages[0] - 0.5, "computes", transform=right, fontsize=8, color=_INK, va="bottom")


def _format_axes(axes: "Axes", stages: Sequence[int], width_ms: float) -> None:
    from matplotlib.patches import Patch

    axes.set_yticks(stages, [f"stage {stage}" for stage in stages])
    axes.set_ylim(stages[-1] + 0.55, stages[0] - 0.55)
    axes.set_xlim(0, width_ms)
    axes.set_xlabel("time since the window's start [ms]")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    patches = [Patch(facecolor=colour, label=kind) for kind, colour in COLOURS.items()]
    axes.figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
