"""More devices are chosen for as long as they pay, and the fastest pipeline is found without simulating all."""

import numpy as np
import pytest

from backlink_ray.planning.costs import NetworkCosts
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Machine, Planner
from backlink_ray.planning.scaling import choices, enough, linked, verdict
from backlink_ray.planning.simulation import MessageCost, Transfer

COUNT = 64
LINKS = [Link(length=0, kind=kind, recompute=again) for kind in ("replica", "error") for again in (False, True)]


def costs(
    head_s: float = 0.0, unit_s: np.ndarray | float = 1.0, count: int = COUNT, saved: float = 0.0
) -> NetworkCosts:
    """Units that take unit_s, two thirds of it backwards, and save so many bytes."""
    zeros, seconds = np.zeros(count), np.ones(count) * unit_s
    return NetworkCosts(
        batch_size=1, input_s=0.0, input_bytes=0, update_s_per_byte=0.0, forward_s=seconds / 3, backward_s=2 * seconds / 3,
        input_error_s=zeros, head_s=zeros + head_s, output_bytes=zeros + 8, weight_bytes=zeros, head_weight_bytes=zeros,
        buffer_bytes=zeros, head_buffer_bytes=zeros, saved_bytes=zeros + saved, shared_bytes=zeros, head_saved_bytes=zeros,
    )  # fmt: skip


def gll(head_s: float, devices: list[int], memory_mib: float = 0.0, saved: float = 0.0) -> list[tuple[int, float]]:
    planner = Planner(costs(head_s, saved=saved), Machine(devices=COUNT, memory_mib=memory_mib))
    found = linked(list(choices([planner], devices, devices, [0], LINKS)))
    return [(each.devices, each.plan.step_s) for each in found]


def test_a_network_that_can_be_cut_evenly_takes_its_part_of_the_time_and_every_head() -> None:
    assert gll(0.0, [1, 2, 4, 64]) == [
        (1, pytest.approx(64)),
        (2, pytest.approx(32)),
        (4, pytest.approx(16)),
        (64, pytest.approx(1)),
    ]
    assert gll(9.0, [4, 1]) == [(1, pytest.approx(73)), (4, pytest.approx(25))]


@pytest.mark.parametrize(
    ("head_s", "devices", "number", "said"),
    [
        (0.0, [1, 2, 4], 4, "up to 4 devices, the most asked for, twice as many save 10 % of a step or more"),
        # 64 / N + 9: 17, 13, 11, 10; of 11 less than a tenth is saved.
        (9.0, [8, 16, 32, 64], 32, "beyond 32 devices, twice as many save less than 10 % of a step"),
        # Two doublings at once have to save 19 %: 25 to 13 does, 13 to 10 does.
        (9.0, [4, 16, 64], 64, "up to 64 devices, the most asked for, twice as many save 10 % of a step or more"),
        (1e4, [1, 2, 4], 1, "beyond 1 device, twice as many save less than 10 % of a step"),
    ],
)
def test_the_number_beyond_which_devices_do_not_pay(head_s: float, devices: list[int], number: int, said: str) -> None:
    planner = Planner(costs(head_s), Machine(devices=COUNT))
    found = linked(list(choices([planner], devices, devices, [0], LINKS)))
    assert enough(found).devices == number
    assert verdict(found) == said


def test_where_nothing_fits_into_the_memory_nothing_is_chosen() -> None:
    assert [number for number, _ in gll(0.0, [1, 2, 4, 8], memory_mib=17.0, saved=2**20)] == [4, 8]


def test_one_number_of_devices_says_nothing_of_more() -> None:
    planner = Planner(costs(), Machine(devices=4))
    found = linked(list(choices([planner], [2, 4], [3, 4], [0], LINKS)))
    assert verdict(found) == "4 devices: of those asked for the only number on which a pipeline fits"


def test_devices_on_which_only_gll_fits_are_not_left_out() -> None:
    planner = Planner(costs(saved=2**20), Machine(devices=4, memory_mib=32.1))
    found = list(choices([planner], [2, 4], [2, 4], [0, 2], LINKS[:1]))
    assert [(each.devices, each.length) for each in found] == [(2, 0), (4, 0), (4, 2)]
    assert [(each.devices, each.length) for each in linked(found)] == [(2, 0), (4, 2)]


@pytest.mark.parametrize("latency_s", [0.0, 0.5])
def test_no_pipeline_is_faster_than_the_one_that_is_chosen(latency_s: float) -> None:
    unit_s = np.random.default_rng(0).uniform(0.5, 3.0, 9)
    planner = Planner(costs(0.5, unit_s, 9), Machine(devices=5, transfer=Transfer(wire=MessageCost(latency_s))))
    for each in choices([planner], [1, 2, 5], range(1, 6), [0, 2], LINKS):
        all_of_them = planner.predictions(range(1, each.devices + 1), [each.length], LINKS)
        assert each.plan.step_s == min(other.step_s for other in all_of_them)
        assert each.row["devices"] == each.devices >= len(each.plan.sizes)


def test_an_l_above_zero_is_chosen_if_one_was_asked_for() -> None:
    planner = Planner(costs(), Machine(devices=4))
    found = list(choices([planner], [1, 4], range(1, 5), [0, 1, 2], LINKS))
    assert [(each.devices, each.length) for each in found] == [(1, 0), (4, 0), (1, 1), (4, 1), (1, 2), (4, 2)]
    one, four = linked(found)
    assert (one.plan.link.length, len(one.plan.sizes)) == (0, 1)  # BP
    assert (four.plan.link.length, len(four.plan.sizes)) == (1, 4)
    assert four.plan.step_s > min(each.plan.step_s for each in found)  # GLL's
