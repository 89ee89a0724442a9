"""Timeline: recording, the numbers on spans made by hand, and the picture."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backlink_ray.measure.timeline import (
    COLOURS,
    NoTimeline,
    Span,
    Timeline,
    draw,
    kind_of,
    overlap,
)
from backlink_ray.pipeline.schedule import run_actions, step_actions
from tests.pipeline.picture import RECEIVES, SENDS

MS = {"replica_forward": 1.1, "body_forward": 2.6, "tail_forward": 1.0, "local_backward": 5.2, "replica_backward": 2.0}
HOP_MS = 0.6


def span(stage: int, action: str, start_s: float, end_s: float, step: int = 0) -> Span:
    return Span(stage, step, action, start_s, end_s)


def pipeline(num_stages: int, num_steps: int, start_s: float = 1.7e9) -> list[Span]:
    """Return spans of an exact pipeline with made-up durations: each stage works through its list, waiting for messages."""
    queues = [_stage_actions(stage, num_stages, num_steps) for stage in range(num_stages)]
    waiting = [next(queue, None) for queue in queues]
    clock_ms, sent, spans = [0.0] * num_stages, dict[tuple[int, str, int], float](), list[Span]()
    while any(waiting):
        for stage, current in enumerate(waiting):
            ready_ms = _ready_ms(stage, current, sent)
            if current is None or ready_ms is None:
                continue
            begin_ms = clock_ms[stage]
            clock_ms[stage] = max(begin_ms, ready_ms) + _cost_ms(stage, *current)
            if current[0] in SENDS:
                sent[stage, SENDS[current[0]], current[1]] = clock_ms[stage] + HOP_MS
            spans.append(span(stage, current[0], start_s + begin_ms / 1e3, start_s + clock_ms[stage] / 1e3, current[1]))
            waiting[stage] = next(queues[stage], None)
    return spans


def _stage_actions(stage: int, num_stages: int, num_steps: int) -> Iterator[tuple[str, int]]:
    return run_actions(
        range(num_steps), step_actions(is_first=stage == 0, is_last=stage == num_stages - 1, link="replica")
    )


def _ready_ms(stage: int, current: tuple[str, int] | None, sent: dict[tuple[int, str, int], float]) -> float | None:
    """Return when the message that `current` waits for arrives; None if it is not sent yet; 0 if it waits for none."""
    if current is None or current[0] not in RECEIVES:
        return 0.0
    message = RECEIVES[current[0]]
    return sent.get((stage + (1 if message == "link_gradient" else -1), message, current[1]))


def _cost_ms(stage: int, action: str, step: int) -> float:
    base_ms = MS.get(action, {"update": 0.45, "exchange": 0.25, "wait": 0.05}.get(kind_of(action), 0.0))
    return base_ms * (1.0 + 0.08 * ((stage * 7 + step * 3) % 5))


# --- Recording --------------------------------------------------------------------------------------------------


def test_record_keeps_stage_step_action_and_the_time_between() -> None:
    timeline = Timeline(3)
    before = time.time()
    with timeline.record("body_forward", 7):
        time.sleep(0.01)
    (found,) = timeline.spans
    assert (found.stage_index, found.step, found.action) == (3, 7, "body_forward")
    assert before <= found.start_s <= found.end_s - 0.01 <= time.time()


def fail(timeline: Timeline) -> None:
    with timeline.record("local_backward", 0):
        raise RuntimeError("out of memory")


def test_record_keeps_the_action_that_raised_and_propagates_the_error() -> None:
    timeline = Timeline(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        fail(timeline)
    assert [found.action for found in timeline.spans] == ["local_backward"]


def test_nested_records_are_two_spans() -> None:
    timeline = Timeline(0)
    with timeline.record("body_forward", 0), timeline.record("send_activation", 0):
        pass
    assert [found.action for found in timeline.spans] == ["send_activation", "body_forward"]


def test_no_timeline_has_the_same_interface_and_records_nothing() -> None:
    timeline = NoTimeline()
    with timeline.record("body_forward", 0):
        pass
    assert isinstance(timeline, Timeline)
    assert timeline.spans == []


def test_recording(benchmark: BenchmarkFixture) -> None:
    """2 microseconds measured; --benchmark-only -n 0 measures it again."""
    timeline = Timeline(0)

    @benchmark
    def record() -> None:
        with timeline.record("body_forward", 0):
            pass


# --- Kinds ------------------------------------------------------------------------------------------------------


def test_unknown_action_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="action='forwrad' .*forward, backward"):
        kind_of("forwrad")


# --- Numbers ----------------------------------------------------------------------------------------------------


def test_overlap_of_two_stages_is_the_shared_part_of_the_wall_time() -> None:
    assert overlap([span(0, "body_forward", 0, 6), span(1, "local_backward", 4, 10)]) == pytest.approx(0.2)


def test_overlap_counts_time_with_three_stages_once() -> None:
    spans = [span(0, "body_forward", 0, 4), span(1, "body_forward", 0, 4), span(2, "body_forward", 2, 8)]
    assert overlap(spans) == pytest.approx(0.5)


def test_overlap_is_nothing_for_stages_that_take_turns() -> None:
    assert overlap([span(0, "body_forward", 0, 5), span(1, "body_forward", 5, 10)]) == 0.0


def test_overlap_ignores_waiting_exchange_and_update() -> None:
    busy = [span(0, "body_forward", 0, 10)]
    idle = ["receive_activation", "send_activation", "tail_update"]
    assert overlap(busy + [span(1, action, 0, 10) for action in idle]) == 0.0


def test_overlap_takes_the_wall_time_of_everything_recorded() -> None:
    spans = [span(0, "body_forward", 0, 2), span(1, "body_forward", 0, 2), span(1, "receive_activation", 2, 8)]
    assert overlap(spans) == pytest.approx(0.25)


def test_one_stage_with_nested_spans_does_not_overlap_with_itself() -> None:
    assert overlap([span(0, "body_forward", 0, 10), span(0, "tail_forward", 2, 4)]) == 0.0


def test_overlap_does_not_depend_on_the_order_of_the_spans() -> None:
    spans = pipeline(4, 5)
    assert overlap(spans) == overlap(spans[::-1]) > 0.5


def test_overlap_of_nothing_is_zero() -> None:
    assert overlap([]) == overlap([span(0, "body_forward", 1, 1)]) == 0.0


# --- The picture ------------------------------------------------------------------------------------------------


def colours_of(path: Path) -> dict[str, np.ndarray]:
    """Return for each kind the mask of the pixels in its colour."""
    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    rgb = {kind: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for kind, colour in COLOURS.items()}
    return {kind: (pixels == value).all(axis=-1) for kind, value in rgb.items()}


@pytest.mark.parametrize("num_stages", [1, 16])
def test_picture_shows_every_kind_that_happened(tmp_path: Path, num_stages: int) -> None:
    draw(pipeline(num_stages, 8), tmp_path / "deep" / "timeline.png", "tiny network")
    masks = colours_of(tmp_path / "deep" / "timeline.png")
    legend_rows = 60  # the lowest pixels hold the legend, which shows every kind
    happened = {kind_of(action) for action, _ in _stage_actions(0, num_stages, 1)}
    assert {kind for kind, mask in masks.items() if mask[:-legend_rows].sum() > 50} >= happened


def test_picture_has_stage_0_on_top_and_time_going_right(tmp_path: Path) -> None:
    spans = [span(0, "body_forward", 0, 1), span(1, "local_backward", 1, 2)]
    draw(spans, tmp_path / "timeline.png")
    masks = colours_of(tmp_path / "timeline.png")
    forward, backward = (np.argwhere(masks[kind][:-60]).mean(axis=0) for kind in ("forward", "backward"))
    assert forward[0] < backward[0]
    assert forward[1] < backward[1]


def test_picture_is_the_same_whatever_epoch_the_clock_counts_from(tmp_path: Path) -> None:
    draw(pipeline(3, 6, start_s=0.0), tmp_path / "a.png")
    draw(pipeline(3, 6, start_s=1024.0), tmp_path / "b.png")
    pixels = [matplotlib.image.imread(tmp_path / name) for name in ("a.png", "b.png")]
    assert pixels[0].shape == pixels[1].shape
    assert np.abs(pixels[0] - pixels[1]).mean() < 1e-3


def test_module_imports_nothing_but_the_standard_library() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    source = Path(sys.modules[Timeline.__module__].__file__ or "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"torch", "matplotlib", "numpy", "ray"} & set(done.stdout.split())
