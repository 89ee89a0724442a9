"""A stage is measured alone, without waiting for anybody; the whole table is a slow test of tests/commands/test_bench.py."""

import pytest

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.pipeline import stages_alone
from backlink_ray.runs.config import RunConfig

RUN = RunConfig(network="resnet8", head="conv", num_modules=3, batch_size=4, alpha=0.5, propagation_length=1)


@pytest.mark.parametrize("run", [RUN, RUN.replace(link="error"), RUN.replace(method="gll")])
def test_every_stage_runs_alone(run: RunConfig) -> None:
    runs = stages_alone(job_for(run, random_images(8), "cpu"))
    assert len(runs) == 3
    for each in runs:
        report = each(2)
        assert report.losses.shape[-1] == 2
        assert report.losses.isfinite().all()
