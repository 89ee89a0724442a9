"""Training: the loop over the epochs of one run, which goes on from the newest checkpoint in the run's folder."""

import time
from math import isfinite
from typing import Any

import torch

from backlink_ray.errors import NotFiniteError
from backlink_ray.measure.metrics import memory_source
from backlink_ray.measure.timeline import Span
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.folder import CHECKPOINTS, RunFolder
from backlink_ray.runs.options import RunOptions
from backlink_ray.signals import deferred, stopping
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
        options: how often checkpoints are saved, when to stop, and what is called at the end of every epoch.
        folder: of the run.
        executor: freshly opened; the caller closes it.

    Returns:
        The content of result.json, which is written, and the spans of the last epoch, if recorded.

    Raises:
        KeyboardInterrupt: `options.stop` or a signal has asked to stop; the state is saved.
    """
    with deferred():
        training = _Training(config, job, options, folder, executor)
        report: ChunkReport | None = None
        while len(training.curve) < config.epochs:
            report = training.epoch()
        result = folder.finish(_result(config, digest, training.curve, executor, job))
    options.on_epoch(training.curve[-1])  # after writing the result, since this callback may end this process
    return result, report.spans if report else ()


class _Training:
    """A run in training.

    Attributes:
        curve: metrics of the finished epochs.
    """

    def __init__(self, config: RunConfig, job: Job, options: RunOptions, folder: RunFolder, executor: Executor) -> None:
        self._config, self._options, self._folder, self._executor = config, options, folder, executor
        self._checkpoints = Checkpoints(folder.path / CHECKPOINTS, config.run_id, StateCheck(job))
        self._steps = len(job.train) // config.batch_size  # of an epoch
        state, extra = self._checkpoints.newest() or (None, {})
        if state:
            executor.load(state)
        self.curve = folder.resume(extra.get("metrics", {}))
        self._begun = _report(extra["begun"]) if "begun" in extra else None
        folder.describe(executor.name, len(self.curve) + 1, executor.environments())
        self._saved = time.monotonic()  # when the newest saved state was
        self._evaluation_s = options.checkpoint_every_s / 4  # of the last one; at first a guess

    def epoch(self) -> ChunkReport:
        """Train the next epoch, or the rest of it, and evaluate it."""
        config, number = self._config, len(self.curve) + 1
        report = self._train_epoch()
        start = time.monotonic()
        metrics = _metrics(config, number, report, self._executor)
        self._evaluation_s = time.monotonic() - start
        self.curve.append(metrics)
        # In this order a kill in between loses nothing: the checkpoint holds the metrics of its own epoch.
        self._save()
        self._folder.append(metrics)
        if number < config.epochs:
            self._options.on_epoch(metrics)
            self._leave_if_stopped()
        return report

    def _train_epoch(self) -> ChunkReport:
        """Train up to the end of an epoch, with checkpoints on the way; return the report of all of it."""
        report, self._begun = self._begun, None
        while report is None or report.num_steps < self._steps:
            left = self._steps - (report.num_steps if report else 0)
            part = self._executor.train(left, lambda: self._is_stopped() or self._is_due())
            report = report.followed_by(part) if report else part
            # A long evaluation must not put more work at risk than a long chunk.
            if report.num_steps < self._steps or self._is_stopped() or self._is_due(self._evaluation_s):
                self._save(report)
                self._leave_if_stopped()
        return report

    def _is_stopped(self) -> bool:
        return stopping() or self._options.stop()

    def _leave_if_stopped(self) -> None:
        if self._is_stopped():
            raise KeyboardInterrupt

    def _is_due(self, more_s: float = 0.0) -> bool:
        """Return whether half of the time between two checkpoints is over in `more_s`: the rest is for what the saving takes."""
        return time.monotonic() + more_s >= self._saved + self._options.checkpoint_every_s / 2

    def _save(self, begun: ChunkReport | None = None) -> None:
        """Save the state, with the metrics of the last finished epoch and what was measured in the one that has begun."""
        start = time.monotonic()
        extra: dict[str, Any] = {"metrics": self.curve[-1] if self.curve else {}}
        if begun:
            rest = {name: getattr(begun, name) for name in _OF_A_CHUNK}
            extra["begun"] = {"losses": begun.losses.tolist(), **rest}
        self._checkpoints.save(self._executor.state(), extra)
        self._saved = start


_OF_A_CHUNK = ("seconds", "link_s", "peak_memory_mib", "compile_s")


def _report(saved: dict[str, Any]) -> ChunkReport:
    """Return the report of a chunk that a checkpoint holds; spans are of a process, and not kept."""
    losses = torch.tensor(saved["losses"], dtype=torch.float64)
    return ChunkReport(
        losses, tuple(saved["link_s"]), tuple(saved["peak_memory_mib"]), (), saved["compile_s"], saved["seconds"]
    )


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
            step = epoch * report.losses.shape[1] - 1
            raise NotFiniteError(f"{name} is not finite after step {step}; try a smaller lr")
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
