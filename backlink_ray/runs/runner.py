"""Runner: trains one RunConfig into one run folder, on any executor, from the beginning or from the last checkpoint."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from backlink_ray.data.datasets import data_root as find_data_root
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import BacklinkError, StorageError
from backlink_ray.files import local_path, make_folder
from backlink_ray.measure.convolutions import slow_in_bf16
from backlink_ray.measure.timeline import Span, draw
from backlink_ray.output import say
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.executors import executor_for, open_executor
from backlink_ray.runs.folder import RunFolder
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.runs.recovery import recovering
from backlink_ray.runs.training import train
from backlink_ray.train.executor import Job


def run(
    config: RunConfig,
    output_dir: str | Path,
    *,
    executor: str = "",
    dataset: Dataset | None = None,
    data_root: str = "",
    options: RunOptions = DEFAULT,
) -> dict[str, Any]:
    """Train one configuration to its end and write its run folder; return the content of result.json.

    A folder that holds this run's result is left as it is; one that holds its checkpoint is resumed from there.

    Args:
        config: what to train.
        output_dir: the run folder.
        executor: local, threads, ray or auto; default: the configuration's.
        dataset: the data that the configuration names, if it is loaded already.
        data_root: folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray.
        options: where the run runs and what it reports.

    Raises:
        ConfigError: the folder belongs to another run, or the configuration does not fit the data or the machine.
        BusyError: another process trains this run in this folder; nothing is changed.
        DataError: the data set cannot be had.
        StorageError: a file of the folder is damaged, or cannot be written.
        NotFiniteError, StageError, ClusterError: the run failed, and would fail again or has lost more stages than
            `options.max_recoveries`; its folder keeps the last checkpoint.
        KeyboardInterrupt: it was asked to stop, and has saved a checkpoint.
    """
    config = config.replace(executor=executor or config.executor)
    data = dataset or dataset_of(config, find_data_root(data_root))
    folder = RunFolder(local_path(output_dir, "output_dir"), config, data)
    if done := folder.result():
        if options.timeline:
            _say_why_not_drawn(options.timeline)
        return done
    # What does not fit is refused before the folder is touched; a trial's, which is there already, says so.
    first = [_prepared(config, data, options)] if options.placement_group is None else []
    with folder.opened(options.lock_timeout_s):
        return folder.result() or _run(config, data, options, folder, first)


def _prepared(config: RunConfig, data: Dataset, options: RunOptions) -> Job:
    name, _ = executor_for(config, options)
    if options.timeline:
        make_folder(local_path(options.timeline, "timeline").parent, "timeline")
    job = make_job(config, data, options)
    if name != "ray":  # else the device may be another machine's
        job.engine.check(torch.device(job.devices[0]), job.dtype)
    job.check_executor(name)
    return job


def _run(config: RunConfig, data: Dataset, options: RunOptions, folder: RunFolder, first: list[Job]) -> dict[str, Any]:
    try:
        with StagePool(options.resources, options.placement_group, options.ready_timeout_s) as pool:

            def attempt(recoveries: int) -> tuple[dict[str, Any], tuple[Span, ...]]:
                # Anew: an earlier attempt has changed the weights.
                job = first.pop() if first else make_job(config, data, options, recoveries)
                with open_executor(config, job, options, pool) as opened:
                    if not recoveries:
                        _warn_of_slow_bf16(job, opened.device)
                    return train(config, data.digest, job, options, folder, opened)

            result, spans = recovering(attempt, options.max_recoveries, lambda: pool.attempt > 0)
    except Exception as error:
        with suppress(StorageError):  # the disk is still full; the error itself is what matters
            folder.fail(str(error), lost=isinstance(error, BacklinkError) and error.lost)
        raise
    if options.timeline and spans:
        what = f"{config.network}, {config.run_name}, {config.head} heads, batch {config.batch_size}"
        draw(spans, local_path(options.timeline, "timeline"), f"{what}, executor {result['executor']}")
    elif options.timeline:
        _say_why_not_drawn(options.timeline)
    return result


def _say_why_not_drawn(timeline: str) -> None:
    why = "every step of the run was taken before; give another output_dir"
    say(f"timeline={timeline!r} is not drawn: {why}")


def _warn_of_slow_bf16(job: Job, device: torch.device) -> None:
    """Print one line on stderr if convolutions are slower in bfloat16; nothing if only other machines have such a device."""
    if job.engine.precision != "bf16" or (device.type == "cuda" and not torch.cuda.is_available()):
        return
    spec, units = job.modules[0].spec, [unit for module in job.modules for unit in module.units]
    dtype = torch.int64 if spec.takes_integers else job.dtype
    warning = slow_in_bf16(units, torch.zeros(1, *spec.input_shape, dtype=dtype), device)
    if warning:
        say(warning)
