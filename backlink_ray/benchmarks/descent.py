"""Descent: how well a method's gradient agrees with the gradient of the global loss, epoch by epoch (Fig. 3)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from backlink_ray.data.loader import Batches
from backlink_ray.data.tensors import Dataset
from backlink_ray.local.module import StepSeed
from backlink_ray.measure.descent import ALL, Descent, MeanGradients, descent_by_module
from backlink_ray.methods.backprop import BP
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import make_job
from backlink_ray.signals import deferred, stopping
from backlink_ray.train.checkpoint import Checkpoints
from backlink_ray.train.executor import LocalExecutor
from backlink_ray.train.state_check import StateCheck
from backlink_ray.train.trainer import Trainer, gradients


def directions(
    config: RunConfig, dataset: Dataset, device: str, folder: Path
) -> Iterator[tuple[int, dict[int, Descent]]]:
    """Train one run and yield (epochs trained, descent by module) before the first epoch and after every epoch.

    Both gradients are means over the batches of the next epoch, at fixed weights and in training mode. A run that was killed
    continues after its last complete epoch, where it measures again; one that was interrupted by a signal, where it was.

    Raises:
        ConfigError: the configuration does not fit the data.
        NotFiniteError: the run diverged; the values yielded so far remain valid.
    """
    job = make_job(config, dataset).with_parts(devices=(device,))
    executor = LocalExecutor(job)
    with executor:
        yield from _epochs(config, executor, Checkpoints(folder, config.run_id, StateCheck(job)))


def _epochs(
    config: RunConfig, executor: LocalExecutor, checkpoints: Checkpoints
) -> Iterator[tuple[int, dict[int, Descent]]]:
    newest = checkpoints.newest()
    if newest is not None:
        executor.load(newest[0])
    trainer, batches = executor.trainer, executor.batches
    steps = batches.steps_per_epoch
    for epoch in range(trainer.step_index // steps, config.epochs + 1):
        if trainer.step_index == epoch * steps:  # else a signal came inside this epoch, which was measured before
            yield epoch, measure(trainer, batches, range(epoch * steps, (epoch + 1) * steps), config.seed)
        if epoch < config.epochs:
            with deferred():
                executor.train((epoch + 1) * steps - trainer.step_index, stopping)
                checkpoints.save(executor.state(), {})
            if stopping():
                raise KeyboardInterrupt


def measure(trainer: Trainer, batches: Batches, steps: range, seed: int) -> dict[int, Descent]:
    """Return the descent of a trainer's method over the batches of some steps, by module; the trainer does not change."""
    whole, found, engine = MeanGradients(), MeanGradients(), replace(trainer.engine, graph=False)
    for step in steps:
        inputs, labels, step_seed = batches.inputs(step), batches.labels(step), StepSeed(seed, step, engine)
        for method, mean in ((BP(), whole), (trainer.method, found)):
            mean.add(gradients(trainer.modules, method, inputs, labels, step_seed, loss=trainer.loss))
    return descent_by_module(whole.mean(), found.mean(), [len(module.units) for module in trainer.modules])


def columns(measured: dict[int, Descent]) -> dict[str, float]:
    """Return descent by module as columns of a row: constant, norm_ratio, constant_module_0, norm_ratio_module_0, ..."""
    found: dict[str, float] = {}
    for k, descent in measured.items():
        ending = "" if k == ALL else f"_module_{k}"
        found |= {f"constant{ending}": descent.constant, f"norm_ratio{ending}": descent.norm_ratio}
    return found
