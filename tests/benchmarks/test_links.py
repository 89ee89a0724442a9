"""What messages cost, as measured."""

import pytest

from backlink_ray.benchmarks.links import LARGE, SMALL, Trip, measure_transfer, transfer_of
from backlink_ray.errors import ConfigError


def test_costs_are_straight_lines_through_both_sizes() -> None:
    small, large = Trip(0.1, 0.02, 0.03, 0.01), Trip(1.0, 0.3, 0.3, 0.2)
    found = transfer_of([small, small], [large, large])
    for size, trip in ((SMALL, small), (LARGE, large)):
        assert found.send.of(size) == pytest.approx(trip.send_s)
        assert found.receive.of(size) == pytest.approx(trip.receive_s)
        assert found.helpers.of(size) == pytest.approx(trip.helpers_s)
        assert found.wire.of(size) == pytest.approx(trip.whole_s - trip.send_s - trip.receive_s)
    assert transfer_of([small], [large], on_gpu=True).helpers.of(LARGE) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", [pytest.param("objectstore", marks=pytest.mark.slow), "collective"])
def test_a_message_between_actors_takes_time_and_a_longer_one_more(transport: str, ray_here: None) -> None:
    found, machines = measure_transfer(transport)
    assert machines == 1
    assert 0 < found.wire.base_s < 0.1
    assert found.helpers.s_per_byte > 0  # of processors, whatever else the machine does
    whole_s = sum(cost.of(LARGE) for cost in (found.wire, found.send, found.receive))
    assert 0.05 < LARGE / 2**30 / whole_s < 20  # GiB/s


def test_nccl_needs_two_gpus(ray_here: None) -> None:
    with pytest.raises(ConfigError, match=r"NCCL between GPUs, and the cluster has 0; allowed: objectstore, or queue"):
        measure_transfer("collective", "cuda")
