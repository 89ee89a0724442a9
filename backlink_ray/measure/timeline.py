"""Timeline: when each stage forwards, runs backward, waits, exchanges and updates, as numbers and as a picture."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "forward": ("replica_forward", "body_forward", "tail_forward"),
    "backward": ("local_backward", "replica_backward"),
    "update": ("tail_update", "body_update", "replica_update"),
    "exchange": ("send_activation", "send_local_gradient", "send_link_gradient"),
    "wait": ("receive_activation", "receive_link_gradient", "receive_local_gradient"),
}
# Okabe-Ito: told apart with any colour vision.
COLOURS = {"forward": "#56B4E9", "backward": "#0072B2", "update": "#009E73", "exchange": "#E69F00", "wait": "#DDDDDD"}
_KIND_OF = {action: kind for kind, actions in KINDS.items() for action in actions}


@dataclass(frozen=True, slots=True)
class Span:
    """One action of one stage; seconds of the host's clock, comparable between processes of one host."""

    stage_index: int
    step: int
    action: str
    start_s: float
    end_s: float

    @property
    def kind(self) -> str:
        """Return forward, backward, update, exchange or wait."""
        return _KIND_OF[self.action]


class Timeline:
    """Records one stage's spans."""

    def __init__(self, stage_index: int) -> None:
        self._stage_index = stage_index
        self.spans: list[Span] = []

    @contextlib.contextmanager
    def record(self, action: str, step: int) -> Iterator[None]:
        """Record what happens inside as one span."""
        start = time.time()
        yield
        self.spans.append(Span(self._stage_index, step, action, start, time.time()))


class NoTimeline(Timeline):
    """Records nothing."""

    def __init__(self) -> None:
        super().__init__(-1)

    @contextlib.contextmanager
    def record(self, action: str, step: int) -> Iterator[None]:
        """Do nothing."""
        yield


def seconds_by_kind(spans: Sequence[Span]) -> dict[int, dict[str, float]]:
    """Return for each stage the seconds it spent in each kind of action."""
    found: dict[int, dict[str, float]] = {}
    for span in spans:
        stage = found.setdefault(span.stage_index, dict.fromkeys(KINDS, 0.0))
        stage[span.kind] += span.end_s - span.start_s
    return found


def overlap(spans: Sequence[Span]) -> float:
    """Return the part of the wall time, 0..1, in which at least two stages compute (forward or backward) at once."""
    computing = [s for s in spans if s.kind in ("forward", "backward")]
    edges = sorted([(s.start_s, 1) for s in computing] + [(s.end_s, -1) for s in computing])
    together, active, before = 0.0, 0, 0.0
    for moment, change in edges:
        together += (moment - before) if active >= 2 else 0.0
        active, before = active + change, moment
    return together / (edges[-1][0] - edges[0][0]) if edges else 0.0


def draw(spans: Sequence[Span], path: Path, title: str = "", steps: int = 4) -> None:
    """Draw the last `steps` steps as a PNG: one row a stage, time across in milliseconds."""
    from matplotlib.figure import Figure  # imported here: the library itself needs torch alone

    last = max(span.step for span in spans)
    shown = [span for span in spans if span.step > last - steps]
    zero = min(span.start_s for span in shown)
    stages = sorted({span.stage_index for span in shown})
    figure = Figure(figsize=(13, 1.6 + 0.75 * len(stages)), layout="constrained")
    axes = figure.subplots()
    for span in shown:
        start, length = 1e3 * (span.start_s - zero), 1e3 * (span.end_s - span.start_s)
        axes.barh(
            span.stage_index,
            length,
            left=start,
            height=0.72,
            color=COLOURS[span.kind],
            edgecolor="white",
            linewidth=0.4,
        )
    for span in shown:
        if span.action == "body_forward":
            axes.text(
                1e3 * (span.start_s - zero), span.stage_index - 0.44, f" step {span.step}", fontsize=8, va="bottom"
            )
    axes.set_yticks(stages, [f"stage {k}" for k in stages])
    axes.set_ylim(max(stages) + 0.6, min(stages) - 0.75)
    axes.set_xlabel("time [ms]")
    axes.set_title(
        f"{title}\ntwo stages or more compute at once in {overlap(spans):.0%} of the time".strip(), fontsize=11
    )
    for kind, colour in COLOURS.items():
        axes.barh([0], [0], color=colour, label=kind)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
