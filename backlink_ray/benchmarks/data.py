"""Data: how fast batches are made on a device, and what part of a training step's time that is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.loops import Given
from backlink_ray.benchmarks.rounds import Run, interleaved, ratio, spread
from backlink_ray.benchmarks.step import Kind
from backlink_ray.data.augmentation import Augmentation
from backlink_ray.local.engine import Engine
from backlink_ray.runs.results import Row

TRAINING, EVALUATION = "training batches", "evaluation batches"
# Of CIFAR-10.
_AUGMENTATION = Augmentation(pad=4, mode="reflect", flip=True)


def data_rows(
    network: str, device: str, batch_size: int, engines: Sequence[Engine], steps: int, rounds: int
) -> Iterator[Row]:
    """Time the batches of training (crop, flip, normalise, labels) and of evaluation in turn with BP's step.

    Yields:
        A row for each of the two and each engine: batch_s, images_per_s, and share_of_step, its time as a part of the step's.
    """
    given = Given(network, batch_size, device)
    runs: dict[tuple[str, Engine], Run] = {}
    for engine in engines:
        bp = Kind(name="bp", engine=engine)
        runs |= {("step", engine): bp.loop(given), **_batches(bp, given, steps)}
    times = interleaved(runs, device, steps, rounds)
    for (name, engine), own in times.items():
        if name != "step":
            batch = spread("batch_s", own)
            about = {"name": name, "network": network, **vars(engine), **batch, "n": rounds}
            share = ratio("share_of_step", own, times["step", engine])
            yield {**about, "images_per_s": batch_size / batch["batch_s"], **share}


def _batches(bp: Kind, given: Given, steps: int) -> dict[tuple[str, Engine], Run]:
    images = replace(random_images(len(given.labels) * max(10, steps)), augmentation=_AUGMENTATION)
    job = job_for(bp.config(given), images, str(given.device))
    batches, step = job.batches(given.device, job.dtype), count()
    whole = job.evaluation_batches(given.device, job.dtype)["test"]

    def training(steps: int) -> None:
        for t in islice(step, steps):
            batches.inputs(t), batches.labels(t)

    def evaluation(steps: int) -> None:
        for _ in islice(whole, steps):
            pass

    return {(TRAINING, bp.engine): training, (EVALUATION, bp.engine): evaluation}
