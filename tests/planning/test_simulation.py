"""The simulation is the schedule in time; its picture is tested in tests/pipeline/test_schedule.py."""

import pytest

from backlink_ray.pipeline.schedule import Action, is_link, step_actions
from backlink_ray.planning.simulation import MessageCost, Simulation, StageWork, Transfer


def works(num_stages: int, link: str = "replica", size: int = 0, **slow: float) -> list[StageWork]:
    """Stages whose computations take a second each, but updates nothing and those in `slow` as long as it says."""
    last, found = num_stages - 1, []
    for k in range(num_stages):
        actions = step_actions(is_first=k == 0, is_last=k == last, link=link)
        seconds = {a.name: slow.get(a.name, float("update" not in a.name)) for a in actions if not is_link(a.name)}
        found.append(StageWork(actions, seconds, {a.name: size for a in actions}))
    return found


def step_s(stages: list[StageWork], transfer: Transfer = Transfer(), **where: object) -> float:  # noqa: B008
    return Simulation(stages, transfer, 4 * len(stages) + 12, **where).step_s  # type: ignore[arg-type]


@pytest.mark.parametrize("num_stages", [2, 3, 9])
def test_a_full_pipeline_takes_what_its_schedule_says(num_stages: int) -> None:
    assert step_s(works(num_stages, "")) == 3  # body, tail, backward
    assert step_s(works(num_stages)) == 5  # and the replica, twice
    assert step_s(works(num_stages, "error")) == (5 if num_stages == 2 else 6)  # each waits for the next one's error
    assert step_s(works(num_stages, local_backward=4.0)) == 8


def test_stages_that_share_a_device_take_turns() -> None:
    assert step_s(works(1, "")) == 3
    assert step_s(works(2, ""), devices=[0, 0]) == 6
    assert step_s(works(4, ""), devices=[0, 1, 0, 1]) == pytest.approx(6, rel=0.03)
    assert step_s(works(4, ""), devices=[0, 0, 0, 0], cores=2) == pytest.approx(6, rel=0.03)
    assert step_s(works(4, ""), devices=[0, 0, 0, 0], cores=4) == 3


def test_stages_that_compute_at_once_slow_each_other_down() -> None:
    assert step_s(works(2, ""), devices=[0, 0], cores=2, speeds=(1.0, 0.75)) == pytest.approx(
        4
    )  # both compute all the time
    first, second = works(2, "")[0], works(2, "", local_backward=4.0)[1]
    # The first computes for 3 / 0.75 s of a step, in which the second does 3 of its 6; the others it does alone.
    assert step_s([first, second], devices=[0, 0], cores=2, speeds=(1.0, 0.75)) == pytest.approx(4 + 3)


def test_messages_cost_what_the_transfer_says() -> None:
    hidden = Transfer(wire=MessageCost(0.25, 1 / 8))
    # The error travels back for half a second, and the output forward: nothing else can be done meanwhile.
    assert step_s(works(2, "error", size=2)) + 2 * 0.5 == step_s(works(2, "error", size=2), hidden)
    assert step_s(works(2, "", size=2), hidden) == 3  # behind the computing


def test_a_stage_that_sends_or_receives_computes_nothing_meanwhile() -> None:
    sends = Transfer(send=MessageCost(0.25, 1 / 8), receive=MessageCost(0.0, 1 / 16))
    assert step_s(works(2, "", size=2), sends) == 3 + 0.25 + 2 / 8
    assert step_s(works(3, "", size=2), sends) == 3 + 0.25 + 2 / 8 + 2 / 16  # the one between receives, too
    # The other threads' quarter of a second on each side is taken from the cores, once both stages compute on them.
    helped = Transfer(helpers=MessageCost(0.25))
    assert step_s(works(2, ""), helped, devices=[0, 0], cores=2) == pytest.approx(3 + 0.25)
    assert step_s(works(2, ""), helped, devices=[0, 0], cores=4) == 3


def test_replicas_average_after_every_backward() -> None:
    transfer = Transfer(wire=MessageCost(0.5), send=MessageCost(0.25), receive=MessageCost(0.125, 1 / 16))
    one = works(1, "", size=2)[0]
    averaging = StageWork([*one.actions, Action("average_local_backward")], one.seconds, {"average_local_backward": 2})
    assert step_s([averaging], transfer) == 3  # with nobody
    assert step_s([averaging] * 2, transfer, replicas=2) == 3 + 0.25 + 0.5 + 0.125 + 2 / 16
    assert step_s([averaging] * 2, replicas=2, devices=[0, 0], cores=2, speeds=(1.0, 0.75)) == pytest.approx(4)


def test_no_stage_runs_ahead_further_than_a_mailbox_holds() -> None:
    fast = StageWork([Action("body_forward"), Action("send_activation")], {"body_forward": 1.0}, {"send_activation": 0})
    slow = StageWork([Action("receive_activation"), Action("body_forward")], {"body_forward": 10.0}, {})
    spans = Simulation([fast, slow], Transfer(), 8).spans
    sent = {span.step: span.end_s for span in spans if span.action == "send_activation"}
    taken = {span.step: span.start_s for span in spans if span.stage_index == 1 and span.action == "body_forward"}
    assert all(sent[step] >= taken[step - 2] for step in range(3, 8))
