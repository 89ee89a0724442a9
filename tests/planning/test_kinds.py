"""A network whose units are measured one of each kind costs what it costs measured as a whole."""

from dataclasses import fields

import numpy as np
import pytest

from backlink_ray.benchmarks.jobs import random_images
from backlink_ray.data.loader import Batches
from backlink_ray.local.module import LocalModule
from backlink_ray.local.split import split
from backlink_ray.nets.build import build_network
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.kinds import stand_ins
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import engine_of


def modules_of(network: str, head: str) -> list[LocalModule]:
    built = build_network(network, num_classes=10, image_size=32)
    return split(built, len(built.units), head)


def costs_of(modules: list[LocalModule]) -> NetworkCosts:
    engine = engine_of(RunConfig())
    batches = Batches(random_images(2), 2, seed=0, memory_format=engine.torch_format)
    return measure_costs(modules, batches, engine, repeats=1)


@pytest.mark.parametrize("head", ["fc", "conv"])
def test_units_in_a_row_of_one_kind_stand_for_each_other_by_turns(head: str) -> None:
    # The stem; five units; one that halves the size, and four; another one, three, and the last, whose head is the classifier.
    expected = [0, 1, 2, 3, 2, 3, 6, 7, 8, 9, 8, 11, 12, 13, 14, 15]
    assert stand_ins(modules_of("resnet32", head), measured=3) == expected


def test_networks_of_the_paper_are_measured_as_a_whole() -> None:
    for network, count in (("resnet110", 55), ("vgg16", 16), ("alexnet", 8)):
        assert stand_ins(modules_of(network, "fc")) == list(range(count))


def test_bytes_are_those_of_the_whole_network() -> None:
    modules = modules_of("resnet26", "conv")
    stand_in = stand_ins(modules, measured=3)
    measured = sorted({*stand_in})
    some = costs_of([modules[k] for k in measured]).spread([measured.index(k) for k in stand_in])
    whole = costs_of(modules_of("resnet26", "conv"))
    assert some.count == whole.count == 13
    for name in (each.name for each in fields(NetworkCosts) if "bytes" in each.name and "_s_" not in each.name):
        assert np.array_equal(getattr(some, name), getattr(whole, name)), name
