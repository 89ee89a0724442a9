"""The schedule is the picture in its docstring."""

import pytest

from backlink_ray.measure.timeline import COLOURS, kind_of
from backlink_ray.pipeline import schedule
from backlink_ray.pipeline.asyncstage import AsyncStage
from backlink_ray.pipeline.schedule import async_actions, run_actions, step_actions
from tests.pipeline.picture import BACKWARD, RECEIVES, SENDS, picture

LINKS = [("", True), ("replica", True), ("error", True), ("error", False), ("delayed", False)]


def test_the_pictures_are_the_schedules() -> None:
    assert schedule.__doc__ is not None
    drawn = [line.strip() for line in schedule.__doc__.splitlines() if line.strip().startswith("stage ")]
    assert drawn == [*picture(3, 4).splitlines(), *picture(3, 4, "error").splitlines()]


@pytest.mark.parametrize("link", ["", "error"])
def test_without_a_tail_no_stage_waits_once_it_has_started(link: str) -> None:
    for k, row in enumerate(picture(4, 5, link, has_tail=False).splitlines()):
        ticks = [tick for tick in row.split()[2:] if tick[0] != "E"]
        own = ticks[k:] if not link else [tick for tick in ticks if tick != ".."]
        assert own == [f"{what}{step}" for step in range(5) for what in "btL"]


def test_with_a_stale_tail_no_stage_waits_for_a_later_one() -> None:
    """Three stages, each with forwards and backwards without a gap once it has started."""
    for k, row in enumerate(picture(3, 4, is_stale=True).splitlines()):
        own = "rbtLR" if k else "btL"
        ticks = [tick for tick in row.split()[2:] if tick != ".."]
        assert ticks == [f"{what}{step}" for step in range(4) for what in own]
        started = row.split()[2:].index(ticks[0])
        if k:
            assert ".." not in row.split()[2 + started :]


def test_the_activation_leaves_before_the_only_wait_for_a_later_stage() -> None:
    names = [a.name for a in step_actions(is_first=False, is_last=False, link="replica")]
    assert names.index("send_activation") < names.index("receive_link_gradient") < names.index("tail_forward")
    assert names.index("body_update") < names.index("replica_backward")
    names = [a.name for a in step_actions(is_first=False, is_last=False, link="error", has_tail=False)]
    assert names.index("send_activation") < names.index("receive_error") < names.index("local_backward")


@pytest.mark.parametrize("num_stages", [1, 2, 5])
@pytest.mark.parametrize(("link", "has_tail", "stale"), [*((*kind, False) for kind in LINKS), ("replica", True, True)])
def test_every_message_sent_is_received_once(num_stages: int, link: str, has_tail: bool, stale: bool) -> None:
    sent, received = set(), set()
    for k in range(num_stages):
        first, last = k == 0, k == num_stages - 1
        actions = step_actions(is_first=first, is_last=last, link=link, has_tail=has_tail, is_stale=stale)
        for name, step in run_actions(range(7, 10), actions):
            if name in SENDS:
                sent.add((k - 1 if SENDS[name] in BACKWARD else k + 1, SENDS[name], step))
            if name in RECEIVES:
                received.add((k, RECEIVES[name], step))
    assert sent == received
    assert len(sent) == 3 * (num_stages - 1) * {"": 1, "replica": 3, "error": 2, "delayed": 2}[link]


def test_a_timeline_knows_every_action_and_a_stage_can_do_it() -> None:
    actions: set[str] = set()
    for link, has_tail in LINKS:
        for stale in (False, True):
            actions |= {
                a.name
                for a in step_actions(is_first=False, is_last=False, link=link, has_tail=has_tail, is_stale=stale)
            }
    actions |= {a.name for a in async_actions(is_first=False, is_last=False)}
    assert {kind_of(action) for action in actions} == set(COLOURS)
    assert all(hasattr(AsyncStage, f"_{name}") for name in actions)
