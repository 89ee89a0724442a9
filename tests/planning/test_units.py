"""Heads that fit only some units."""

import numpy as np
import pytest
import torch

import backlink_ray as bl
from backlink_ray.benchmarks.jobs import random_images
from backlink_ray.data.loader import Batches
from backlink_ray.errors import ConfigError
from backlink_ray.local.engine import Engine
from backlink_ray.planning.costs import measure_costs
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Machine, Planner
from backlink_ray.planning.units import NoHead, unit_modules


def flat_in_the_end() -> bl.Network:
    """Two units with feature maps, two behind them without."""
    units = [torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 28 * 28, 8)]
    return bl.Network(units=units, classifier=torch.nn.Linear(8, 10), example=torch.zeros(1, 3, 32, 32))


def test_no_cut_is_taken_where_no_head_fits() -> None:
    modules = unit_modules(flat_in_the_end(), "conv")
    assert [isinstance(module.head, NoHead) for module in modules] == [False, False, True, False]
    costs = measure_costs(modules, Batches(random_images(4), 4, seed=0), Engine(), repeats=1)
    assert np.isfinite(costs.head_s).tolist() == [True, True, False, True]
    for balance in ("time", "memory"):
        planner = Planner(costs, Machine(devices=3), balance)
        assert planner.sizes(3, Link(length=0)) == [1, 1, 2]
        assert planner.sizes(4, Link(length=0)) == []
        assert np.isfinite(planner.predict(planner.sizes(2, Link(length=1)), Link(length=1)).step_s)
    planner = Planner(costs, Machine(devices=3), "count")
    assert planner.sizes(2, Link(length=0)) == [2, 2]
    assert planner.sizes(3, Link(length=0)) == []


def test_a_head_that_fits_nowhere_is_refused() -> None:
    units = [torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8)]
    network = bl.Network(units=units, classifier=torch.nn.Linear(8, 10), example=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="head='conv' needs features"):
        unit_modules(network, "conv")
