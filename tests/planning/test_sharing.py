"""A device that is shared, against cases computed by hand."""

import pytest
import simpy

from backlink_ray.planning.sharing import Processor, speed_of


def ends(speeds: tuple[float, ...], *work: tuple[float, float]) -> list[float]:
    """Return when each of some pieces of work ends, given as (begins, seconds)."""
    env, found = simpy.Environment(), [0.0] * len(work)
    processor = Processor(env, len(speeds), speeds)

    def run(index: int, begins: float, seconds: float):  # type: ignore[no-untyped-def]
        yield env.timeout(begins)
        yield processor.compute(seconds)
        found[index] = env.now

    for index, each in enumerate(work):
        env.process(run(index, *each))
    env.run()
    return found


def test_what_computes_on_a_gpu_gets_an_equal_part_of_it() -> None:
    assert ends((1.0,), (0, 3)) == [3]
    # Both at half the speed until the shorter one has had its second; then the other one's two are left.
    assert ends((1.0,), (0, 1), (0, 3)) == [2, 4]
    # 1 of 4 is done when the second comes; both have 3, 3 to go at half the speed.
    assert ends((1.0,), (0, 4), (1, 3)) == [7, 7]


def test_cores_slow_each_other_down() -> None:
    assert ends((1.0, 1.0), (0, 2), (0, 3)) == [2, 3]
    # From 1 on both at 0.75: the first has 3 to go, 4 s; the second then 1 of 4, alone.
    assert ends((1.0, 0.75), (0, 4), (1, 4)) == [5, 6]


def test_more_than_there_are_cores_take_turns() -> None:
    # Three at 2 / 3 x 0.75 = 0.5; from 2 on two at 0.75 with 1.5 and 3 to go; from 4 on one with 1.5.
    assert ends((1.0, 0.75), (0, 1), (0, 2.5), (0, 4)) == [2, 4, 5.5]


def test_work_that_takes_no_time_and_gaps_change_nothing() -> None:
    assert ends((1.0,), (0, 0), (0, 1), (0.5, 0), (3, 1)) == [0, 1, 0.5, 4]


@pytest.mark.parametrize(("number", "speed"), [(1, 1.0), (2, 0.9), (4, 0.6), (8, 0.3)])
def test_the_speed_of_each(number: int, speed: float) -> None:
    assert speed_of(number, 4, (1.0, 0.9, 0.7, 0.6)) == pytest.approx(speed)


def test_taking_turns_may_cost_more_than_the_turns() -> None:
    assert speed_of(4, 2, (1.0, 0.9, 0.8, 0.8)) == pytest.approx(0.4)
    assert speed_of(4, 2, (1.0, 0.9)) == pytest.approx(0.45)
    assert speed_of(1, 2, (1.0, 0.9)) == 1
