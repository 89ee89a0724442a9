"""Space: what it searches, what stays, and what it refuses before anything starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import backlink_ray as bl
from backlink_ray.errors import ConfigError
from backlink_ray.runs.results import columns_of
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.searcher import open_searcher
from tests.users import imported_from, write_project

BASE = bl.RunConfig(network="resnet32", validation_fraction=0.1)
OWN = {
    "gamma": FloatDistribution(0.0, 1.0),
    "batch_size": CategoricalDistribution((32, 64)),
    "weight_decay": FloatDistribution(0, 1),
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path) -> Iterator[None]:
    write_project(tmp_path, "spc")
    with imported_from(tmp_path):
        yield


def test_own_parameters_are_searched_in_a_real_database_and_the_rest_stays(tmp_path: Path) -> None:
    base = bl.RunConfig(network="spc_model:network", method="spc_method:Mine", num_modules=2, lr=0.1)
    plan = Plan(base=base, space=bl.Space(num_modules=(2, 4), parameters=OWN), num_units=4)
    plan.check()
    search = open_searcher(plan, tmp_path, "s", [])
    runs = []
    for name in "abcdefghijklmn":  # the first ten are random
        choice = search.suggest(name)
        runs.append(plan.run_of(choice))
        assert plan.space is not None
        assert plan.space.choice_of(runs[-1]) == choice
        search.on_trial_complete(name, {"val_error_pct": runs[-1].options["gamma"], "training_iteration": 1})
    search.close()
    assert {run.num_modules for run in runs} == {2, 4}
    assert {run.batch_size for run in runs} == {32, 64}
    assert {(run.lr, run.options["twice"], run.propagation_length) for run in runs} == {(0.1, False, 0)}
    assert len({run.run_id for run in runs}) == len(runs)
    rows = [{**columns_of(run), "run_id": run.run_id, "status": "FAILED"} for run in runs if run != runs[3]]
    again = open_searcher(plan, tmp_path, "s", rows)
    assert plan.run_of(again.suggest("o")) == runs[3]
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert study.n_trials == 15


@pytest.mark.parametrize(("objectives", "multivariate"), [((), True), (("val_error_pct", "step_ms"), False)])
def test_the_sampler_is_said_with_its_options(tmp_path: Path, objectives: tuple[str, ...], multivariate: bool) -> None:
    """The defaults of Optuna 4 and 5 differ in these."""
    plan = Plan(base=BASE, space=bl.Space(lr=(0.1, 1.0)), objectives=objectives)
    sampler: Any = open_searcher(plan, tmp_path, "s", [])._sampler
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert (sampler._multivariate, sampler._constant_liar, sampler._n_startup_trials) == (multivariate, True, 10)


@pytest.mark.parametrize(
    ("base", "space", "message"),
    [
        ({}, {}, "the space is empty; give num_modules, longest, alphas, lr or parameters"),
        ({"method": "gll"}, {"longest": 2}, "propagation_length=1 has no meaning for method='gll'"),
        ({"method": "gll"}, {"alphas": (0.25,)}, "alpha=0.25 has no meaning for method='gll'"),
        ({}, {"alphas": (0.5, 2.0)}, "alpha=2.0 is out of range; allowed 0..1"),
        ({}, {"num_modules": (2, 17)}, "num_modules=17 is out of range"),
        ({}, {"num_modules": (2, 16)}, "propagation_length=2 exceeds 1, the smallest local module of resnet32 at K=16"),
        ({"sizes": (3, 13)}, {"num_modules": (2, 4)}, r"cannot be searched with sizes=\(3, 13\)"),
        ({}, {"parameters": {"gamma": OWN["gamma"]}}, "has 'gamma', which method='backlink' does not have"),
        ({}, {"parameters": {"beta": OWN["gamma"]}}, "beta=0.0 has no meaning for method='backlink'"),
        ({}, {"parameters": {"batch_size": IntDistribution(0, 8)}}, "batch_size=0 is out of range"),
        ({}, {"parameters": {"batch_size": FloatDistribution(1, 8)}}, "batch_size=1.0 is a float; allowed: int"),
        ({}, {"parameters": {"dataset": CategoricalDistribution(("svhn",))}}, "'dataset', which is the same for all trials"),
        ({}, {"parameters": {"propagation_length": IntDistribution(1, 2)}}, "search it by longest of the space"),
        ({}, {"lr": (0.1, 1.0), "parameters": {"lr": FloatDistribution(1, 8)}}, "parameters has 'lr'; search it by lr alone"),
        ({"network": "spc_model:network"}, {"num_modules": (2, 5)}, "num_modules=5 is out of range for spc_model:network with 4"),
    ],
)  # fmt: skip
def test_a_space_that_does_not_fit_is_refused(base: dict[str, Any], space: dict[str, Any], message: str) -> None:
    plan = Plan(base=BASE.replace(**base), space=bl.Space(**space), num_units=4 if "network" in base else 0)
    with pytest.raises(ConfigError, match=message):
        plan.check()


@pytest.mark.parametrize(
    "space", [{"lr": (1.0, 0.1)}, {"lr": (0.0, 0.1)}, {"lr": (0.1,)}, {"alphas": 0.5}, {"parameters": {"beta": (0, 1)}}]
)
def test_what_is_no_space_is_refused(space: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be searched \(.*; allowed: |parameters\['beta'\]=\(0, 1\) is a tuple"
    ):
        bl.Space(**space)


def test_l_is_within_the_smallest_module_of_a_network_of_the_users() -> None:
    base, space = bl.RunConfig(network="spc_model:network", num_modules=2), bl.Space(num_modules=(2, 4), longest=4)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = {tuple(space.suggest(base, 4, study.ask()).values()) for _ in range(30)}
    assert found == {(2, 1), (2, 2), (4, 1)}


def test_ranking_by_held_out_data_needs_some(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="metric='val_error_pct' is measured on held-out data; give the base a validation"
    ):
        bl.tune(bl.RunConfig(), bl.Space(lr=(0.1, 1.0)), storage=tmp_path)


@pytest.mark.parametrize("name", ["val_error_pct", "accuracy"])
def test_a_metric_that_is_not_measured_is_refused_before_anything_starts(tmp_path: Path, name: str) -> None:
    (tmp_path / "spc_targets.py").write_text(TARGETS)
    base = bl.RunConfig(
        network="spc_targets:network", dataset="spc_targets:data", loss="torch.nn.functional:mse_loss", num_modules=2,
        propagation_length=1, batch_size=4, validation_fraction=0.1,
    )  # fmt: skip
    with imported_from(tmp_path), pytest.raises(ConfigError, match=f"metric='{name}' is .*; allowed here: val_loss, "):
        bl.tune(base, bl.Space(lr=(0.1, 1.0)), storage=tmp_path / "results", metric=name)
    assert not (tmp_path / "results").exists()


TARGETS = """
import torch
import backlink_ray as bl
def network(num_classes, **_):
    layers = [torch.nn.Linear(3, 3) for _ in range(4)]
    return bl.Network.from_sequential(torch.nn.Sequential(*layers, torch.nn.Linear(3, num_classes)), torch.zeros(1, 3))
def data(**_):
    return bl.Dataset.from_tensors((torch.ones(9, 3), torch.ones(9)), (torch.ones(9, 3), torch.ones(9)))
"""


def test_the_largest_runs_have_the_longest_tail_and_the_largest_batch_at_each_k() -> None:
    batches = {"batch_size": IntDistribution(16, 256, log=True)}
    space = bl.Space(num_modules=(2, 8), longest=4, lr=(0.1, 1.0), parameters=batches)
    sizes = [(run.num_modules, run.propagation_length, run.batch_size) for run in Plan(base=BASE, space=space).largest]
    assert sizes == [(2, 4, 256), (8, 2, 256)]  # resnet32 at K = 8 has modules of two units
    assert Plan(base=BASE, space=bl.Space(lr=(0.1, 1.0))).largest == (BASE,)
    assert Plan(base=BASE, runs=(BASE,)).largest == ()
