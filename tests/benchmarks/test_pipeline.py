"""Our pipelines and their stages alone; with rivals, the whole table is a slow test of tests/commands/test_bench.py."""

from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest

from backlink_ray.benchmarks import pipeline
from backlink_ray.benchmarks.alone import bound_s, stages_alone
from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.pipeline import COLUMNS, Setting, bp_costs, pipeline_rows
from backlink_ray.commands.pipeline_table import print_pipelines
from backlink_ray.data.loader import Batches
from backlink_ray.errors import BacklinkError
from backlink_ray.local.engine import Engine
from backlink_ray.nets.build import build_network
from backlink_ray.pipeline import pool
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.planning.costs import measure_costs
from backlink_ray.planning.layout import Link, Stages
from backlink_ray.planning.simulation import Transfer
from backlink_ray.planning.units import unit_modules
from backlink_ray.runs.config import RunConfig
from backlink_ray.train.executor import Job

RUN = RunConfig(network="resnet8", head="conv", num_modules=3, batch_size=4, alpha=0.5, propagation_length=1)
BASE = RunConfig(network="resnet8", head="conv", num_modules=2, batch_size=4, method="gll")


@pytest.mark.parametrize("run", [RUN, RUN.replace(link="error"), RUN.replace(method="gll")])
def test_every_stage_runs_alone(run: RunConfig) -> None:
    stages = stages_alone(job_for(run, random_images(8), "cpu"))
    assert len(stages) == 3
    for stage in stages:
        report = stage.run(2)
        assert report.losses.shape[-1] == 2
        assert report.losses.isfinite().all()


@pytest.mark.parametrize(("cores", "bound"), [(3, 4.0), (2, 4.0), (1, 7.0)])
def test_the_bound_is_the_slowest_stage_or_what_the_cores_can_do(cores: int, bound: float) -> None:
    assert bound_s([2.0, 4.0, 1.0], cores) == bound


def test_a_row_for_every_number_of_stages_cut_and_length() -> None:
    settings = [Setting(k, balance, length) for k in (2, 3) for balance in ("count", "time") for length in (0, 2)]
    rows: list[dict[str, Any]] = list(pipeline_rows(BASE, settings, ["queue"], [], (1, 1)))
    found = [(row["num_modules"], row["balance"], row["propagation_length"]) for row in rows[1:]]
    assert [row["name"] for row in rows[:3]] == ["bp", "gll", "backlink"]
    assert set(found) <= {tuple(setting) for setting in settings}
    assert (3, "count", 2) not in found  # of four units a module has one
    assert len(found) == 6
    for row in rows:
        assert {*COLUMNS} <= row.keys()
        assert row["predicted_ratio"] == row["predicted_s"] / row["step_s"]
        assert row["device_mib"] > 0
    for row in rows[1:]:
        assert sum(row["sizes"]) == 4
        assert row["fraction_of_bound"] == pytest.approx(row["bound_s"] / row["step_s"])
        assert row["device_mib"] < 1.5 * rows[0]["device_mib"]


def test_what_was_measured_before_a_failure_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = count()

    def build(job: Job) -> ThreadsExecutor:
        if next(built) == 3:
            raise BacklinkError("the last round fails")
        return ThreadsExecutor(job)

    monkeypatch.setattr(pipeline, "ThreadsExecutor", build)
    rows, settings = list[dict[str, Any]](), [Setting(2, "time", 0), Setting(2, "time", 4)]
    with pytest.raises(BacklinkError, match="the last round fails"):
        rows.extend(pipeline_rows(BASE, settings, ["queue"], [], (1, 3)))
    assert [(row["name"], row["n"]) for row in rows] == [("bp", 2), ("gll", 2)]
    assert "left out, since resnet8 has too few units or no such heads: K=2 l=4 by time\n" in capsys.readouterr().err


def test_stages_of_bp_take_together_what_it_takes_as_a_whole() -> None:
    modules = unit_modules(build_network("resnet8"), "conv", final_head="native")
    costs = measure_costs(modules, Batches(random_images(8), 4, seed=0), Engine(), repeats=1)
    whole, cut = Stages(costs, Link(length=0)), Stages(bp_costs(costs), Link(length=0))
    of_stages = [cut.busy_s(start, start + 1) for start in range(costs.count)]
    assert sum(of_stages) == pytest.approx(whole.busy_s(0, costs.count))


def test_stages_on_several_machines_have_neither_bound_nor_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = pipeline.Way(ThreadsExecutor, Transfer(), machines=2)  # as if
    monkeypatch.setattr(pipeline, "_ways", lambda *_: nullcontext({"queue": spread}))
    rows = list(pipeline_rows(BASE, [Setting(2, "time", 0)], ["queue"], [], (1, 1)))
    assert rows[0]["predicted_s"] > 0
    assert {rows[1][name] for name in ("predicted_s", "predicted_ratio", "fraction_of_bound")} == {None}
    print_pipelines(rows)
    assert "gll" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_process_is_started_to_stand_by_while_others_are_timed(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STANDBY_AFTER_S", 0.0)
    monkeypatch.setattr(pool, "STANDBY_MIB", 0.0)
    started, start = [], StagePool._start
    monkeypatch.setattr(
        StagePool, "_start", lambda self, k, **reserved: started.append(reserved) or start(self, k, **reserved)
    )
    list(pipeline_rows(BASE, [Setting(2, "time", 0)], ["objectstore"], [], (1, 1)))
    assert started == [{}, {}]


@pytest.mark.slow
def test_a_head_need_not_fit_all_units(narrow_linear_units: None) -> None:
    base = BASE.replace(network="vgg16", batch_size=2)
    rows = list(pipeline_rows(base, [Setting(2, balance, 0) for balance in ("count", "time")], ["queue"], [], (1, 1)))
    assert len(rows) == 3
    assert all(sum(row["sizes"]) == 16 and row["sizes"][0] <= 13 for row in rows[1:])  # a conv head after a convolution
