"""Runner: trains one RunConfig into one run folder, on any executor, from the beginning or from the last checkpoint."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from backlink_ray.data.datasets import data_root as find_data_root
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import StageError
from backlink_ray.files import make_folder
from backlink_ray.measure.convolutions import slow_in_bf16
from backlink_ray.measure.metrics import memory_source
from backlink_ray.measure.timeline import Span, draw
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.executors import open_executor
from backlink_ray.runs.folder import RunFolder
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.train.checkpoint import Checkpoints, weights_sha256
from backlink_ray.train.executor import ChunkReport, Executor, Job


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
        DataError: the data set cannot be had.
        NonFiniteLossError, StageError: the run failed; its folder keeps the last checkpoint.
    """
    output_dir = Path(output_dir).expanduser()
    config = config.replace(executor=executor or config.executor)
    data = dataset or dataset_of(config, find_data_root(data_root))
    folder = RunFolder(output_dir, config, data)
    if done := folder.result():
        return done
    if options.timeline:
        make_folder(Path(options.timeline).parent, "timeline")
    try:
        job = make_job(config, data, options)
        with open_executor(config, job, options) as opened:
            _warn_of_slow_bf16(job, opened.device)
            result, spans = _train(config, data.digest, job, options, folder, opened)
    except Exception as error:
        folder.fail(str(error), lost=isinstance(error, StageError) and error.lost)
        raise
    if options.timeline and spans:
        what = f"{config.network}, {config.run_name}, {config.head} heads, batch {config.batch_size}"
        draw(spans, Path(options.timeline), f"{what}, executor {result['executor']}")
    return result


def _warn_of_slow_bf16(job: Job, device: torch.device) -> None:
    """Print one line on stderr if convolutions are slower in bfloat16; nothing if only other machines have such a device."""
    if job.engine.precision != "bf16" or (device.type == "cuda" and not torch.cuda.is_available()):
        return
    spec, units = job.modules[0].spec, [unit for module in job.modules for unit in module.units]
    dtype = torch.int64 if spec.takes_integers else job.dtype
    warning = slow_in_bf16(units, torch.zeros(1, *spec.input_shape, dtype=dtype), device)
    if warning:
        print(warning, file=sys.stderr, flush=True)


def _train(
    config: RunConfig, digest: str, job: Job, options: RunOptions, folder: RunFolder, executor: Executor
) -> tuple[dict[str, Any], tuple[Span, ...]]:
    checkpoints = Checkpoints(folder.path / "checkpoints")
    state, extra = checkpoints.newest() or (None, {})
    if state:
        executor.load(state)
    curve = folder.resume(extra.get("metrics", {}))
    folder.describe(executor.name, len(curve) + 1, executor.environments())
    spans: tuple[Span, ...] = ()
    steps = len(job.train) // config.batch_size
    for epoch in range(len(curve) + 1, config.epochs + 1):
        report = executor.train(steps)
        metrics = _metrics(config, epoch, report, executor)
        curve.append(metrics)
        spans = report.spans
        # In this order a kill in between loses nothing: the checkpoint holds the metrics of its own epoch.
        checkpoints.save(executor.state(), {"run_id": config.run_id, "metrics": metrics})
        folder.append(metrics)
        if epoch < config.epochs:
            options.on_epoch(metrics)
    result = folder.finish(_result(config, digest, curve, executor, job))
    options.on_epoch(curve[-1])  # after writing the result, since the callback of the last epoch may end this process
    return result, spans


def _metrics(config: RunConfig, epoch: int, report: ChunkReport, executor: Executor) -> dict[str, Any]:
    losses = report.losses.mean(dim=1).tolist()
    start = time.perf_counter()
    test = executor.evaluate("test")
    found: dict[str, Any] = {
        "epoch": epoch,
        "time_ms": time.time_ns() // 1_000_000,
        "test_error_pct": test.error_pct,
        "test_loss": test.loss,
        "train_loss": losses[-1],
        "images_per_s": report.losses.shape[1] * config.batch_size / report.seconds,
        "epoch_s": report.seconds + time.perf_counter() - start,
        "step_ms": 1e3 * report.seconds / report.losses.shape[1],
        "link_ms": 1e3 * max(report.link_s) / report.losses.shape[1],
        "peak_memory_mib": max(report.peak_memory_mib),
        "local_loss": losses,
    }
    # Once per run: for CIFAR-100, 200 such lists would be most of the result.
    if test.class_images and epoch == config.epochs:
        found["class_error_pct"] = test.class_error_pct
    if report.compile_s:
        found["compile_s"] = report.compile_s
    if config.validation_fraction:
        val = executor.evaluate("val")
        found |= {"val_error_pct": val.error_pct, "val_loss": val.loss}
    return {name: value for name, value in found.items() if value is not None}  # a regression has no errors in percent


def _result(
    config: RunConfig, digest: str, curve: list[dict[str, Any]], executor: Executor, job: Job
) -> dict[str, Any]:
    last = {k: v for k, v in curve[-1].items() if k not in ("epoch", "time_ms", "local_loss")}
    compiled = {"compile_s": sum(m.get("compile_s", 0.0) for m in curve)} if config.compile != "none" else {}
    rates = sorted(m["images_per_s"] for m in curve)
    of_classes = {}
    if job.train.has_classes:
        counts = job.train.labels.bincount(minlength=job.modules[0].spec.num_classes).tolist()
        best = min(m["test_error_pct"] for m in curve)
        of_classes = {"class_train_images": counts, "best_test_error_pct": best}
    return {
        "status": "FINISHED",
        "run_id": config.run_id,
        **last,
        **compiled,
        "images_per_s": rates[len(rates) // 2],
        **of_classes,
        "weights_sha256": weights_sha256(executor.state()),
        "executor": executor.name,
        "memory_source": memory_source(executor.device),
        "dataset_digest": digest,
        "curve": curve,
    }
