"""Batch norms of the whole batch: replicas are then one process that knows of no parts, to rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.executor import Job, LocalExecutor
from tests.examples import job, job_with
from tests.pipeline.test_replicas import Make, Setting
from tests.pipeline.test_transparency import Outcome, outcome
from tests.runs.test_recovery import CONFIG, DATA


class Whole(Setting):
    """A setting in which batch norms are of the whole batch."""

    def job(self, dtype: torch.dtype = torch.float64, **options: Any) -> Job:
        return super().job(dtype, **{"head": "mlp-sr", "dropout": 0.0, "batch_norm": "whole", **options})


def with_type(made: Job, dtype: torch.dtype) -> Job:
    for module in made.modules:
        module.to(dtype)
    return made


def check_close(found: Outcome, expected: Outcome, tolerance: float = 1e-12) -> None:
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)
    torch.testing.assert_close(found[3], expected[3], rtol=tolerance, atol=tolerance)


SOME = [
    Whole(0, 1, 2),
    Whole(0, 2, 3),
    Whole(1, 2, 2),
    Whole(1, 2, 2, "replica", "recompute"),
    Whole(1, 2, 2, "error"),
    Whole(1, 2, 2, "error", "recompute"),
]


@pytest.mark.parametrize("setting", SOME, ids=lambda s: "-".join(map(str, s)))
def test_threads_equal_one_process_without_parts(setting: Whole) -> None:
    expected = outcome(LocalExecutor, with_type(setting.job().with_parts(replicas=1, batch_norm="part"), torch.float64))
    check_close(outcome(ThreadsExecutor, setting.job()), expected)


def test_by_parts_it_is_another_result() -> None:
    """The comparison above can fail."""
    found = outcome(ThreadsExecutor, SOME[2].job().with_parts(batch_norm="part"))
    with pytest.raises(AssertionError):
        check_close(found, outcome(LocalExecutor, SOME[2].job()), 1e-3)


def test_float32_to_rounding_and_local_takes_the_batch_as_a_whole() -> None:
    local = outcome(LocalExecutor, SOME[2].job(torch.float32))
    check_close(outcome(ThreadsExecutor, SOME[2].job(torch.float32)), local, 2e-5)
    alone = outcome(LocalExecutor, SOME[2].job(torch.float32).with_parts(replicas=1, batch_norm="part"))
    assert all(torch.equal(tensor, alone[0][name]) for name, tensor in local[0].items())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["objectstore", pytest.param("collective", marks=pytest.mark.slow)])
def test_ray(transport: str, pooled_executor: Make) -> None:
    setting = SOME[3]
    check_close(outcome(pooled_executor, setting.job(transport=transport)), outcome(LocalExecutor, setting.job()))


class Tables(nn.Module):
    """Batch norms of every kind that a table meets: not affine, without or with a mean over all steps, and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(
            nn.BatchNorm1d(3072, affine=False, momentum=None), nn.Linear(3072, 6),
            nn.BatchNorm1d(6, track_running_stats=False), nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms(x.flatten(1))  # type: ignore[no-any-return]


def test_norms_of_every_kind() -> None:
    def new() -> Job:
        torch.manual_seed(0)
        frozen = nn.BatchNorm1d(6).eval()
        units = [Tables(), nn.Sequential(frozen, nn.Linear(6, 6))]
        network = bl.Network(units, nn.Linear(6, 10), torch.zeros(1, 3, 32, 32))
        made = job(bl.GLL(), 1, batch_size=12, replicas=2, batch_norm="whole")
        return with_type(made.with_parts(modules=bl.split(network, 2)), torch.float64)

    found = outcome(ThreadsExecutor, new())
    check_close(found, outcome(LocalExecutor, new()))
    assert int(found[0]["units.0.norms.0.num_batches_tracked"]) == 5


def test_norms_are_left_as_they_were() -> None:
    made = SOME[2].job()
    with ThreadsExecutor(made) as executor:
        executor.train(1)
    norms = [part for module in made.modules for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all("forward" not in vars(norm) for norm in norms)


@pytest.mark.parametrize("executor", ["local", "threads"])
def test_a_run_that_an_executor_cannot_do_is_refused_before_its_folder_is_made(executor: str, tmp_path: Path) -> None:
    config = CONFIG.replace(replicas=2, batch_norm="whole", head="conv")
    with pytest.raises(bl.ConfigError, match="allowed: executor ray"):
        bl.run(config, tmp_path / "run", executor=executor, dataset=DATA)
    assert not (tmp_path / "run").exists()


class Doubled(nn.BatchNorm1d):
    """A batch norm that does more than torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def of_norms(one: nn.Module, other: nn.Module) -> Job:
    units = [nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), one), nn.Sequential(other, nn.ReLU())]
    modules = bl.split(bl.Network(units, nn.Linear(6, 10), torch.zeros(1, 3, 32, 32)), 2)
    return job_with(modules, bl.GLL(), 12, replicas=2, batch_norm="whole")


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: bl.RunConfig(batch_norm="whole"), "batch_norm='whole' has no meaning with replicas=1"),
        (lambda: bl.RunConfig(batch_norm="half", replicas=2), "batch_norm='half' is not known; allowed: part, whole"),
        (lambda: bl.RunConfig(batch_norm="whole", replicas=2, compile="units"), "does not go with compile='units'"),
        (lambda: bl.RunConfig(batch_norm="whole", replicas=2, base="infopro"), "does not go with the losses of 'info"),
        (lambda: bl.RunConfig(batch_norm="whole", replicas=2, method="dni"), "does not go with the losses of 'dni'"),
        (lambda: job(bl.PredSim(), 2, replicas=2, batch_norm="whole"), "does not go with the losses of 'predsim'"),
        (lambda: LocalExecutor(SOME[2].job(dropout=0.1)), r"that draw \(dropout\) .* allowed: executor ray"),
        (lambda: ThreadsExecutor(SOME[2].job(dropout=0.1)), r"that draw \(dropout\) .* allowed: executor ray"),
        (lambda: SOME[2].job(devices=("cuda:0", "cuda:1", "cuda:2")).check_executor("threads"), "4 stages as threads on 3 G"),
        (lambda: job(bl.GLL(), 2, batch_norm="Whole"), "batch_norm='Whole' is not known; allowed: part, whole"),
        (lambda: job(bl.GLL(), 2, batch_norm="whole"), "batch_norm='whole' has no meaning with replicas=1"),
        (lambda: SOME[2].job(loss=nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))), "allowed: the plain mean over the s"),
        (lambda: of_norms(Doubled(6), nn.BatchNorm1d(6)), "with a Doubled that has a forward of its own"),
        (lambda: of_norms(*[nn.BatchNorm1d(6, affine=False, track_running_stats=False)] * 2), "several modules share"),
        (lambda: job(bl.GLL(), 2, replicas=2, batch_norm="whole", engine=Engine(compile="units")), "compile='units'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(bl.ConfigError, match=rule) as caught:
        make()
    assert "\n" not in str(caught.value)
