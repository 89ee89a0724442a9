"""Training: the loop over the epochs of one run, which goes on from the newest checkpoint in the run's folder."""

import time
from math import isfinite
from typing import Any

from backlink_ray.errors import NotFiniteError
from backlink_ray.measure.metrics import memory_source
from backlink_ray.measure.timeline import Span
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.folder import CHECKPOINTS, RunFolder
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.checkpoint import Checkpoints, weights_sha256
from backlink_ray.train.executor import ChunkReport, Executor, Job
from backlink_ray.train.state_check import StateCheck


def train(
    config: RunConfig, digest: str, job: Job, options: RunOptions, folder: RunFolder, executor: Executor
) -> tuple[dict[str, Any], tuple[Span, ...]]:
    """Train a run from its folder's newest checkpoint to its end; may be called again with a new executor if one has failed.

    Args:
        config: of the run.
        digest: of its data.
        job: what the executor trains.
        options: called back at the end of every epoch.
        folder: of the run.
        executor: freshly opened; the caller closes it.

    Returns:
        The content of result.json, which is written, and the spans of the last chunk, if recorded.
    """
    checkpoints = Checkpoints(folder.path / CHECKPOINTS, config.run_id, StateCheck(job))
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
        checkpoints.save(executor.state(), {"metrics": metrics})
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
    for name in ("test_loss", "val_loss"):
        if not isfinite(found.get(name, 0.0)):
            raise NotFiniteError(name, epoch * report.losses.shape[1])
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
