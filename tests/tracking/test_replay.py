import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from backlink_ray.errors import BusyError
from backlink_ray.files import exclusive
from backlink_ray.tracking.replay import Cursor, Replayer
from backlink_ray.tracking.spool import Event, Spool

pytestmark = pytest.mark.timeout(20)


class FakeSink:
    """Remembers the steps it was given; `fail` decides at which calls it breaks."""

    def __init__(self, fail: Callable[[int], bool] = lambda _: False, identity: str = "one") -> None:
        self.steps: list[int] = []
        self.calls, self.resets, self.identity, self._fail = 0, 0, identity, fail

    def open(self) -> str:
        self.calls += 1
        if self._fail(self.calls):
            raise ConnectionError("away, s3cret")
        return self.identity

    def apply(self, events: Sequence[Event]) -> int:
        self.calls += 1
        if self._fail(self.calls):
            raise ConnectionError("away, s3cret")
        self.steps += [event.step for event in events]
        return sum(event.step == 13 for event in events)

    def reset(self) -> None:
        self.resets += 1

    def explain(self, error: Exception) -> str:
        return str(error).replace("s3cret", "***")


def filled(folder: Path, count: int = 5) -> Spool:
    spool = Spool(folder, "study")
    for step in range(count):
        spool.append(Event(kind="metrics", run_id="r", time_ms=1, step=step))
    return spool


def test_each_event_is_applied_once_also_by_the_next_process(tmp_path: Path) -> None:
    spool, first, second = filled(tmp_path, 450), FakeSink(), FakeSink()
    Replayer(spool, first, "there").drain()
    Replayer(spool, second, "there").drain()
    assert (first.steps, second.steps) == (list(range(450)), [])
    other = FakeSink()
    Replayer(spool, other, "elsewhere").drain()
    assert other.steps == first.steps


def test_a_failed_chunk_is_applied_again(tmp_path: Path) -> None:
    spool, sink = filled(tmp_path, 450), FakeSink(fail=lambda call: call == 3)
    replayer = Replayer(spool, sink, "there")
    with pytest.raises(ConnectionError):
        replayer.drain()
    assert replayer.pending() == 250
    replayer.drain()
    assert sink.steps == list(range(450))
    assert replayer.pending() == 0


def test_another_place_under_the_same_address_gets_everything(tmp_path: Path) -> None:
    spool, wiped = filled(tmp_path), FakeSink(identity="two")
    Replayer(spool, FakeSink(), "there").drain()
    spool.append(Event(kind="metrics", run_id="r", time_ms=1, step=5))
    Replayer(spool, wiped, "there").drain()
    assert wiped.steps == [0, 1, 2, 3, 4, 5]


def test_a_broken_cursor_costs_a_replay_and_nothing_else(tmp_path: Path) -> None:
    spool = filled(tmp_path)
    cursor = Cursor(spool, "there")
    for offset in (10**9, 0):
        cursor.save(offset, "one")
        assert cursor.load("one") == 0
    next(tmp_path.glob("*.cursor")).write_text("{torn")
    assert cursor.load() == 0


def test_the_thread_replays_as_events_come(tmp_path: Path) -> None:
    spool, sink = filled(tmp_path, 0), FakeSink()
    replayer = Replayer(spool, sink, "there")
    replayer.start()
    for step in range(3):
        spool.append(Event(kind="metrics", run_id="r", time_ms=1, step=step))
        replayer.wake()
        time.sleep(0.05)
    assert replayer.close(timeout_s=5.0) == 0
    assert sink.steps == [0, 1, 2]
    assert sink.calls <= 6


def test_a_place_that_comes_back_gets_everything_and_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FakeSink(fail=lambda call: call <= 3)
    replayer = Replayer(filled(tmp_path), sink, "there")
    with caplog.at_level(logging.WARNING):
        replayer.start()
        time.sleep(0.1)
        assert replayer.close(timeout_s=10.0) == 0
    assert sink.steps == [0, 1, 2, 3, 4]
    assert sink.resets == 3
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "there fails (away, ***)",
        "there answers again, the points that waited are there",
    ]


def test_close_gives_up_in_time(tmp_path: Path) -> None:
    replayer = Replayer(filled(tmp_path), FakeSink(fail=lambda _: True), "there")
    replayer.start()
    begin = time.monotonic()
    assert replayer.close(timeout_s=0.5) == 5
    assert 0.3 < time.monotonic() - begin < 1.5


def test_close_gives_up_in_time_while_a_call_hangs(tmp_path: Path) -> None:
    release = threading.Event()
    replayer = Replayer(filled(tmp_path), FakeSink(fail=lambda _: release.wait(10)), "there")
    replayer.start()
    begin = time.monotonic()
    assert replayer.close(timeout_s=0.3) == 5
    assert time.monotonic() - begin < 1.5
    release.set()


def test_only_one_replays_at_a_time(tmp_path: Path) -> None:
    sink = FakeSink()
    replayer = Replayer(filled(tmp_path), sink, "there")
    with exclusive(tmp_path / "study.lock", 0.0):
        with pytest.raises(BusyError, match="held by another process"):
            replayer.drain()
        replayer.start()
        time.sleep(0.2)
        assert sink.steps == []
    assert replayer.close(timeout_s=5.0) == 0
    assert sink.steps == [0, 1, 2, 3, 4]


def test_replay_all_starts_over_and_counts_what_is_refused(tmp_path: Path) -> None:
    spool, sink = filled(tmp_path, 20), FakeSink(fail=lambda call: call == 3)
    replayer = Replayer(spool, sink, "there")
    replayer.drain()
    replayer.replay_all(timeout_s=5.0)
    assert sink.steps == [*range(20), *range(20)]
    assert replayer.refused == 2


def test_replay_all_says_why_it_gave_up(tmp_path: Path) -> None:
    replayer = Replayer(filled(tmp_path), FakeSink(fail=lambda _: True), "there")
    with pytest.raises(ConnectionError, match=r"there: away, \*\*\*; 5 events are not there yet"):
        replayer.replay_all(timeout_s=0.1)
