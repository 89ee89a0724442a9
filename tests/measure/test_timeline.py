"""Timeline: recording, the numbers on spans made by hand, and the picture."""

import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backlink_ray.measure.timeline import COLOURS, NoTimeline, Span, Timeline, draw, kind_of, overlap


def span(stage: int, action: str, start_s: float, end_s: float, step: int = 0) -> Span:
    return Span(stage, step, action, start_s, end_s)


def steps(num_stages: int, start_s: float = 1.7e9) -> list[Span]:
    """Return spans of every kind, a second each, for eight steps of stages that begin a second after each other."""
    actions = ("receive_activation", "body_forward", "send_activation", "local_backward", "body_update")
    return [
        span(stage, action, start_s + 5 * step + stage + i, start_s + 5 * step + stage + i + 1, step)
        for stage in range(num_stages)
        for step in range(8)
        for i, action in enumerate(actions)
    ]


# --- Recording --------------------------------------------------------------------------------------------------


def test_record_keeps_stage_step_action_and_the_time_between() -> None:
    timeline = Timeline(3)
    before = time.time()
    with timeline.record("body_forward", 7):
        time.sleep(0.01)
    (found,) = timeline.spans
    assert (found.stage_index, found.step, found.action) == (3, 7, "body_forward")
    assert before <= found.start_s <= found.end_s - 0.01 <= time.time()


def test_record_keeps_the_action_that_raised_and_propagates_the_error() -> None:
    timeline = Timeline(0)
    with pytest.raises(RuntimeError, match="out of memory"), timeline.record("local_backward", 0):
        raise RuntimeError("out of memory")
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


FORWARD = "body_forward"


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([span(0, FORWARD, 0, 6), span(1, "local_backward", 4, 10)], 0.2),
        ([span(1, "local_backward", 4, 10), span(0, FORWARD, 0, 6)], 0.2),
        ([span(0, FORWARD, 0, 4), span(1, FORWARD, 0, 4), span(2, FORWARD, 2, 8)], 0.5),
        ([span(0, FORWARD, 0, 5), span(1, FORWARD, 5, 10)], 0.0),
        ([span(0, FORWARD, 0, 10), span(0, "tail_forward", 2, 4), span(1, FORWARD, 6, 8)], 0.2),
        ([span(0, FORWARD, 0, 2), span(1, FORWARD, 0, 2), span(1, "receive_activation", 2, 8)], 0.25),
        ([span(0, FORWARD, 0, 9), *(span(1, a, 0, 9) for a in ("receive_error", "send_error", "tail_update"))], 0.0),
        ([], 0.0),
        ([span(0, FORWARD, 1, 1)], 0.0),
    ],
    ids=["two", "in any order", "three count once", "in turns", "nested", "all the time counts", "what does not compute",
         "nothing", "no time"],
)  # fmt: skip
def test_overlap_is_the_share_of_the_time_in_which_two_stages_compute(spans: list[Span], share: float) -> None:
    assert overlap(spans) == pytest.approx(share)


# --- The picture ------------------------------------------------------------------------------------------------


def colours_of(path: Path) -> dict[str, np.ndarray]:
    """Return for each kind the mask of the pixels in its colour."""
    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    rgb = {kind: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for kind, colour in COLOURS.items()}
    return {kind: (pixels == value).all(axis=-1) for kind, value in rgb.items()}


@pytest.mark.parametrize("num_stages", [1, 16])
def test_picture_shows_every_kind_that_happened(tmp_path: Path, num_stages: int) -> None:
    draw(steps(num_stages), tmp_path / "deep" / "timeline.png", "tiny network")
    legend_rows = 60  # the lowest pixels hold the legend, which shows every kind
    masks = colours_of(tmp_path / "deep" / "timeline.png")
    assert all(mask[:-legend_rows].sum() > 50 for mask in masks.values())


def test_picture_has_stage_0_on_top_and_time_going_right(tmp_path: Path) -> None:
    spans = [span(0, "body_forward", 0, 1), span(1, "local_backward", 1, 2)]
    draw(spans, tmp_path / "timeline.png")
    masks = colours_of(tmp_path / "timeline.png")
    forward, backward = (np.argwhere(masks[kind][:-60]).mean(axis=0) for kind in ("forward", "backward"))
    assert forward[0] < backward[0]
    assert forward[1] < backward[1]


def test_picture_is_the_same_whatever_epoch_the_clock_counts_from(tmp_path: Path) -> None:
    draw(steps(3, start_s=0.0), tmp_path / "a.png")
    draw(steps(3, start_s=1024.0), tmp_path / "b.png")
    pixels = [matplotlib.image.imread(tmp_path / name) for name in ("a.png", "b.png")]
    assert pixels[0].shape == pixels[1].shape
    assert np.abs(pixels[0] - pixels[1]).mean() < 1e-3
