"""Together: several runs at once on one device, in one process, with a thread and, on a GPU, a stream for each.

Runs start one after another, up to their first captured step: to capture is to wait for the whole GPU, which nobody uses then.
With torch 2.11 all captured steps of a process read one seed for draws on the GPU: with dropout (conv heads), runs at once may
draw from each other's seeds, so their weights do not repeat bit for bit. With 2.14 each captured step has its own.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.rounds import interleaved, spread
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.train.captured import WARM_UP
from backlink_ray.train.executor import ChunkReport, Job, LocalExecutor
from backlink_ray.train.state import TrainState

# Of every run before others run beside it; the last of them is captured.
FIRST_STEPS = WARM_UP + 1
T = TypeVar("T")


class Lane:
    """One of several runs: its executor, and the steps it has taken, of how many in an epoch.

    It begins with FIRST_STEPS, from a state or from the beginning; nothing else may run meanwhile.
    """

    def __init__(self, job: Job, state: TrainState | None = None) -> None:
        device = torch.device(job.devices[0])
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(self._stream):
            self.executor = LocalExecutor(job)
            if state:
                self.executor.load(state)
            self.executor.train(FIRST_STEPS)
        self.step = (state.step if state else 0) + FIRST_STEPS
        self.steps_per_epoch = len(job.train) // job.batch_size

    def finish_epoch(self) -> ChunkReport:
        """Train to the end of the epoch that the run is in."""
        steps = self.steps_per_epoch - self.step % self.steps_per_epoch
        self.step += steps
        return self.executor.train(steps)

    def call(self, work: Callable[[], T]) -> T:
        """Return work(), done on this run's stream."""
        with torch.cuda.stream(self._stream):
            return work()


def at_once(lanes: Sequence[Lane], works: Sequence[Callable[[], T]]) -> list[T]:
    """Return what each lane's work returns, each in a thread; when all have ended, the first error is raised."""
    with ThreadPoolExecutor(len(lanes) or 1) as pool:
        return list(pool.map(Lane.call, lanes, works))


def together_rows(config: RunConfig, device: str, counts: Sequence[int], steps: int, rounds: int) -> Iterator[Row]:
    """Yield the time of a step of every run, data included, and images per second of all, for some counts of runs at once."""
    images = random_images(2 * config.batch_size)
    lanes = [Lane(job_for(config, images, device)) for _ in range(max(counts))]
    runs = {n: partial(_train, lanes[:n]) for n in counts}
    for n, times in interleaved(runs, device, steps, rounds).items():
        step = spread("step_s", times)
        yield {"runs": n, **step, "n": rounds, "images_per_s": n * config.batch_size / step["step_s"]}


def _train(lanes: Sequence[Lane], steps: int) -> None:
    at_once(lanes, [partial(lane.executor.train, steps) for lane in lanes])
