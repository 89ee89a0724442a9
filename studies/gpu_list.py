"""The GPU list: what only a GPU can show, in two calls that take minutes of a lent one.

python studies/gpu_list.py measure --out DIR: correctness, then speed and what limits it, then memory (Fig. 7).
python studies/gpu_list.py train --data ROOT --out DIR: cells of Tables II and III on full CIFAR-10 (ROOT/cifar-10-batches-py) at
the paper's recipe, four at once. What the time cuts off goes on with --resume DIR of that call.

Every row is in DIR/<what>.jsonl as soon as it is known; what fails or is left out is a row of errors.jsonl, and the next part
goes on. Needs torch, torchvision, numpy and Pillow alone. --smoke: the same at a small size, on any machine, as a rehearsal.
"""

import argparse
import gc
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backlink_ray import RunConfig
from backlink_ray.benchmarks.checks import engine_differences, executor_differences, gradient_errors, precision_errors
from backlink_ray.benchmarks.jobs import random_images
from backlink_ray.benchmarks.limits import limit_rows
from backlink_ray.benchmarks.memory import memory_rows
from backlink_ray.benchmarks.rows import RowFiles
from backlink_ray.benchmarks.step import step_rows
from backlink_ray.benchmarks.together import FIRST_STEPS, Lane, at_once, together_rows
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from backlink_ray.files import read_lines, write_whole
from backlink_ray.local.engine import Engine
from backlink_ray.paper.cells import find, published_error_pct
from backlink_ray.paper.recipes import default_alpha, recipe, with_alpha
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.job import make_job
from backlink_ray.train.checkpoint import weights_sha256
from backlink_ray.train.executor import ChunkReport
from backlink_ray.train.state import TrainState

START = time.monotonic() - time.process_time()  # importing torch counts, too
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
Rows = Iterator[dict[str, Any]]
Part = tuple[str, str, float, Callable[[], Rows]]  # file of its rows, what it is, seconds that it may take, the work


class Log:
    """The rows of a call, and the time that is left to it."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._end, commit = START + flags.limit_s, {"commit": flags.commit} if flags.commit else {}
        self._files = RowFiles(flags.out, DEVICE, **commit)

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    def row(self, what: str, **row: Any) -> None:
        now = {"cudnn_benchmark": torch.backends.cudnn.benchmark, "at_s": round(time.monotonic() - START, 1)}
        self._files.add(what, {**row, **now})

    @contextmanager
    def guarded(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.row("errors", part=part, error=f"{type(error).__name__}: {error}"[:500])


def engines(*precisions: str, graphs: Sequence[bool] = (False, True), **options: str) -> list[Engine]:
    """Return the engines that this device has."""
    known = [precision for precision in precisions if CUDA or precision != "tf32"]
    return [Engine(precision=p, graph=g, **options) for p in known for g in graphs if CUDA or not g]


def parts(smoke: bool) -> Iterator[Part]:
    small, deep = ("resnet8", "resnet8") if smoke else ("resnet32", "resnet110")
    batch, steps, rounds = (4, 1, 1) if smoke else (512, 8, 5)
    every, alone = ("bf16",) if smoke else ("fp32", "tf32", "bf16"), partial(engines, graphs=[False])
    step = partial(step_rows, device=DEVICE, batch_size=batch, rounds=rounds, steps=steps)
    captured = [*alone("fp32"), *engines(*every, graphs=[True])]
    eager = [e for order in ("contiguous", "channels_last") for e in alone("fp32", *every, memory_format=order)]
    run = RunConfig(network=small, num_modules=4, propagation_length=1, batch_size=batch, precision="bf16", graph=CUDA)
    yield "correctness", "float64", 20, partial(gradient_errors, small, DEVICE)
    yield "correctness", "executors", 10, partial(executor_differences, small, DEVICE, min(batch, 128))
    yield "correctness", "captured", 15, partial(engine_differences, small, DEVICE, min(batch, 128), captured)
    stages = partial(engine_differences, make=ThreadsExecutor, links=("replica", "error"))
    ways = [*alone("fp32"), *engines("fp32", "bf16", graphs=[True])]
    yield "correctness", "captured stages", 20, partial(stages, small, DEVICE, min(batch, 128), ways)
    yield "correctness", "precisions", 10, partial(precision_errors, small, DEVICE, min(batch, 64), eager)
    for p in every:
        yield "step", f"{small} {p}", 25, partial(step, small, engines=engines(p))
    for p in every:
        yield "step", f"{deep} {p}", 35, partial(step, deep, engines=engines(p), steps=min(steps, 4))
    yield "together", small, 10, partial(together_rows, run, DEVICE, (1, 2, 4), steps, rounds)
    yield "limits", small, 15, partial(limit_rows, small, DEVICE, batch, engines("bf16"), min(steps, 4))
    for network in dict.fromkeys((small, deep)):
        yield "memory", network, 30, partial(memory_rows, network, DEVICE, batch, alone("fp32"))
    yield "step", f"{small} bf16, kernels timed", 25, partial(timed, partial(step, small, engines=engines("bf16")))
    if not smoke:  # compiling takes a minute
        yield "step", f"{small} bf16, compiled", 60, partial(step, small, engines=alone("bf16", compile="units"))


def timed(work: Callable[[], Rows]) -> Rows:
    """Yield rows of steps whose convolutions' kernels are chosen by timing them."""
    torch.backends.cudnn.benchmark = True
    try:
        yield from work()
    finally:
        torch.backends.cudnn.benchmark = False


def measure(flags: argparse.Namespace, log: Log) -> None:
    for what, name, needs_s, work in parts(flags.smoke):
        if log.left_s < needs_s:
            log.row("errors", part=f"{what} {name}", error=f"left out: may take {needs_s} s of {log.left_s:.0f}")
            continue
        with log.guarded(f"{what} {name}"):
            free()
            for row in work():
                log.row(what, **row)


def free() -> None:
    gc.collect()  # captured steps are in cycles
    torch.cuda.empty_cache()


AT_ONCE, EVERY, RESERVE_S = 4, 10, 12.0  # cells; epochs from row to row; for the last evaluations and states
CELLS = (
    *(f"table2/cifar10/resnet32/fc/{cell}" for cell in ("K4/l0", "K4/l4", "K1/l0", "K4/l2", "K16/l0", "K16/l1")),
    *(f"table3/cifar10/resnet32/conv/{cell}" for cell in ("K4/l0", "K4/l4", "K16/l0", "K16/l1")),
)
NOISE = Dataset(name="noise", train=random_images(64), test=random_images(16), class_names=tuple("0123456789"))


def cells(epochs: int, smoke: bool) -> list[RunConfig]:
    """Return all cells, then all again with a second seed."""
    how: dict[str, Any] = {"epochs": epochs, "precision": "bf16", "graph": CUDA, "executor": "local"}
    found = [with_alpha(recipe(find(a)), default_alpha(find(a).propagation_length)).replace(**how) for a in CELLS]
    if smoke:
        return [config.replace(batch_size=8) for config in found[: AT_ONCE + 1]]
    return [config.replace(seed=seed) for seed in (0, 1) for config in found]


class Run:
    """A cell in training; its file holds its state until it has finished."""

    def __init__(self, config: RunConfig, data: Dataset, folder: Path, log: Log) -> None:
        self.config, self.digest, self.log, self.file = config, data.digest, log, folder / f"{config.run_id}.pt"
        state = TrainState.of(torch.load(self.file, weights_only=True)) if self.file.exists() else None
        self.lane = Lane(make_job(config, data), state)

    def train(self, until: int) -> None:
        """Train until an epoch has ended, or the time is over."""
        with self.log.guarded(self.config.run_name):
            over = False
            while not over and self.lane.step < until * self.lane.steps_per_epoch:
                report, over = self.lane.finish_epoch(), self.log.left_s < RESERVE_S
                epoch = self.lane.step // self.lane.steps_per_epoch
                if over or epoch % EVERY == 0 or epoch == self.config.epochs:
                    self.record(epoch, report)

    def record(self, epoch: int, report: ChunkReport) -> None:
        config, executor, content = self.config, self.lane.executor, io.BytesIO()
        test, state, finished = executor.evaluate("test"), executor.state(), epoch == config.epochs
        torch.save(state.flat(), content)
        write_whole(self.file, content.getvalue())
        names = ("method", "num_modules", "propagation_length", "alpha", "head", "seed", "precision", "graph", "epochs")
        self.log.row(
            "cells", run_id=config.run_id, **{name: getattr(config, name) for name in names}, epoch=epoch,
            finished=finished, test_error_pct=test.error_pct, paper_error_pct=published_error_pct(config),
            test_loss=test.loss, local_loss=report.losses.mean(dim=1).tolist(),
            step_s=report.seconds / report.losses.shape[1], identity=config.identity, dataset_digest=self.digest,
            weights_sha256=weights_sha256(state),
        )  # fmt: skip
        if finished:
            self.file.unlink()


def train_at_once(runs: Sequence[Run], until: int) -> None:
    at_once([run.lane for run in runs], [partial(run.train, until) for run in runs])


def fits(runs: Sequence[Run], log: Log) -> bool:
    """Train one epoch of all runs at once; return whether all their epochs fit into the time, and write so."""
    start, epochs, per_epoch = time.monotonic(), runs[0].config.epochs, runs[0].lane.steps_per_epoch
    train_at_once(runs, 1)
    step_s = (time.monotonic() - start) / (per_epoch - FIRST_STEPS)
    needed_s, left_s = 1.03 * step_s * per_epoch * (epochs - 1), log.left_s - RESERVE_S  # 1.03: evaluations
    found = needed_s < left_s
    log.row("plan", runs=len(runs), step_s=step_s, epochs=epochs, needed_s=needed_s, left_s=left_s, fits=found)
    return found


def train(flags: argparse.Namespace, log: Log) -> None:
    torch.backends.cudnn.benchmark = True
    for file in flags.resume.iterdir() if flags.resume else ():
        (flags.out / file.name).write_bytes(file.read_bytes())
    data = NOISE if flags.smoke else load_dataset("cifar10", flags.data, download=False)
    known = read_lines(flags.out / "cells.jsonl", "delete it")
    done = {row["run_id"] for row in known if row["finished"]}

    def started(wave: Sequence[RunConfig]) -> list[Run]:
        free()
        found = []
        for config in wave:
            with log.guarded(config.run_name):
                found.append(Run(config, data, flags.out, log))
        return found

    epochs = known[-1]["epochs"] if known else 2 if flags.smoke else 200
    runs = [] if known else started(cells(epochs, flags.smoke)[:AT_ONCE])
    if runs and not fits(runs, log):
        runs, epochs = [], epochs // 2
    todo = [config for config in cells(epochs, flags.smoke) if config.run_id not in done]
    while todo and log.left_s > 2 * RESERVE_S:
        train_at_once(runs or started(todo[:AT_ONCE]), epochs)
        runs, todo = [], todo[AT_ONCE:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "train"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--data", type=Path, help="train: folder that holds cifar-10-batches-py")
    parser.add_argument("--resume", type=Path, help="train: the --out of the call to go on from")
    parser.add_argument("--limit-s", type=float, help="seconds in all; default: measure 240, train 540")
    parser.add_argument("--commit", default="", help="recorded where git is absent")
    parser.add_argument("--smoke", action="store_true", help="at a small size")
    flags = parser.parse_args()
    flags.limit_s = flags.limit_s or {"measure": 240.0, "train": 540.0}[flags.command]
    if not (CUDA or flags.smoke):
        parser.error("this machine has no GPU; give --smoke")
    if flags.command == "train" and not (flags.data or flags.smoke):
        parser.error("train needs --data")
    if not CUDA:
        torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # see checks.repeatable
    {"measure": measure, "train": train}[flags.command](flags, Log(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
