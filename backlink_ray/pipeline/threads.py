"""Threads: the stages of one run as threads of this process, or taking turns in one thread."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import nullcontext
from math import inf
from queue import SimpleQueue
from typing import Any

import torch

from backlink_ray.nets.probe import in_mode
from backlink_ray.pipeline.controller import CallEnd, PipelineExecutor, first_failure, nothing
from backlink_ray.pipeline.exchange import Mailbox, NoLink, QueueLink
from backlink_ray.pipeline.group import Group
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.progress import Patience
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.seeds import derive_seed
from backlink_ray.train.executor import ChunkReport, Job, never, remember
from backlink_ray.train.state import TrainState

# How often the driver looks where the stages are, and whether to stop.
POLL_S = 0.1
# How long stages that are stopped may take for what they are doing: Python crashes if it ends while a thread computes.
RELEASE_TIMEOUT_S = 5.0


class Daemon:
    """A thread that takes one call after another; the process can end while it hangs."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while call := self._calls.get():
            call()

    def submit(self, method: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call a method in this thread."""
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(method(*arguments))
            except BaseException as error:  # a unit may call sys.exit
                future.set_exception(error)

        self._calls.put(call)
        return future

    def end(self, timeout_s: float) -> None:
        """End the thread once its calls are done, and wait for that as long as `timeout_s`."""
        self._calls.put(None)
        self._thread.join(timeout_s)


class ThreadsExecutor(PipelineExecutor):
    """The pipeline as threads of one process, over the devices of one host; torch releases Python's lock while it computes.

    A thread cannot be ended from outside: one that hangs is named and left behind, as a daemon, so that the process can end.
    """

    name = "threads"

    def __init__(self, job: Job) -> None:
        job.check_executor(self.name)
        self._give_back = remember(job.modules)
        plans, size = plan_stages(job), max(1, job.method.replay_size)
        super().__init__(plans)
        forward = [Mailbox(size) for _ in plans]  # forward[k]: from stage k - 1 to stage k
        backward = [Mailbox(size) for _ in plans]  # backward[k]: from stage k + 1 to stage k
        among = defaultdict[tuple[int, int], Mailbox](
            Mailbox
        )  # among[j, k]: from stage j to stage k, of the same module
        self._timeout_s, self._replicas = job.stage_timeout_s, job.replicas
        self._stages = [make_stage(plan) for plan in plans]
        for k, plan in enumerate(plans):
            rest = torch.device(plan.job.devices[0]), job.stage_timeout_s
            before = NoLink() if plan.is_first else QueueLink(forward[k], backward[k - 1], *rest)
            after = NoLink() if plan.is_last else QueueLink(backward[k], forward[k + 1], *rest)
            same = range(plan.stage_index, len(plans), plan.num_stages)
            group = Group([None if j == k else QueueLink(among[j, k], among[k, j], *rest) for j in same])
            self._stages[k].connect(before, after, group)
        self._mailboxes = [*forward, *backward, *among.values()]
        self._threads = [Daemon(f"stage {k}") for k in range(len(plans))]
        self._hung = -1
        torch.set_num_threads(job.torch_threads)

    def _call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        # Stages may share a part without weights, such as one Dropout: it changes its mode for all of them at once.
        with in_mode(False, *(s.module for s in self._stages)) if name == "evaluate" else nullcontext():
            calls = [(stage.progress.call, getattr(stage, name), *arguments) for stage in self._stages]
            futures = [thread.submit(*call) for thread, call in zip(self._threads, calls, strict=True)]
            patience = Patience(time.monotonic())
            while wait(futures, POLL_S, FIRST_EXCEPTION).not_done and not self._has_failed(futures, patience):
                meanwhile()
            if self._has_failed(futures, patience):
                self._fail(futures)
        return [f.result() for f in futures]

    def _ask(self, name: str, *arguments: Any) -> list[Any]:
        return [getattr(stage.steps, name)(*arguments) for stage in self._stages]

    def _has_failed(self, futures: Sequence["Future[Any]"], patience: Patience) -> bool:
        busiest_s = max(stage.progress.position.busy_s for stage in self._stages)
        hangs = min(busiest_s, patience.look(time.monotonic())) > self._timeout_s
        return hangs or any(f.done() and f.exception() for f in futures)

    def _fail(self, futures: Sequence["Future[Any]"]) -> None:
        positions = [stage.progress.position for stage in self._stages]
        for mailbox in self._mailboxes:
            mailbox.abort("another stage failed")
        for stage in self._stages:
            stage.steps.abort()
        wait([f for f, at in zip(futures, positions, strict=True) if not at.busy_s], RELEASE_TIMEOUT_S)
        errors = [f.exception() if f.done() else None for f in futures]
        ends = [CallEnd(e, position=at) for e, at in zip(errors, positions, strict=True)]
        error = first_failure(ends, self._replicas)
        self._hung = error.place if error.lost else -1
        raise error from errors[error.place]

    def close(self, *, failed: bool = False) -> None:
        for mailbox in self._mailboxes:
            mailbox.abort("the run ends")
        for k, thread in enumerate(self._threads):
            thread.end(0.0 if k == self._hung else RELEASE_TIMEOUT_S)
        self._give_back(failed)


class RoundRobinExecutor(ThreadsExecutor):
    """Stages that do not keep step (mode async), repeatable, one after another in this thread: executor local for mode async.

    Each step has a new order, drawn from the seed; the first one runs from the first stage to the last, since each needs an input
    to begin with.
    """

    name = "local"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._job, self._timeout_s = job, inf
        self._replays = {k: self._mailboxes[k].replay for k in range(1, len(self._stages))}  # what each stage works on

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        report = super().train(1)
        while report.num_steps < num_steps and not stop():
            report = report.followed_by(super().train(1))
        return report

    def _run(self, num_steps: int, stop: Callable[[], bool]) -> list[ChunkReport]:
        reports = {k: self._stages[k].run(num_steps) for k in self._order()}
        return [reports[k] for k in sorted(reports)]

    def _order(self) -> list[int]:
        count = len(self._stages)
        if not all(self._replays.values()):
            return list(range(count))
        generator = torch.Generator().manual_seed(derive_seed(self._job.seed, "turn", self._step))
        return torch.randperm(count, generator=generator).tolist()

    def state(self) -> TrainState:
        """Return the state with the activations that stages still work on: "modules.<k>.replay.<i>", and their uses and steps."""
        state = super().state()
        for k, replay in self._replays.items():
            counts = [[uses, step] for uses, (step, _) in replay.kept]
            found = {f"modules.{k}.replay.{i}": x.cpu() for i, (_, (_, (x, _))) in enumerate(replay.kept)}
            state.method_state.update(found, **{f"modules.{k}.replay": torch.tensor(counts)} if counts else {})
        return state

    def load(self, state: TrainState) -> None:
        super().load(state)
        found = state.method_state
        for k, replay in self._replays.items():
            replay.kept.clear()
            for i, (uses, step) in enumerate(found.get(f"modules.{k}.replay", torch.empty(0)).tolist()):
                x = found[f"modules.{k}.replay.{i}"].to(self.device)
                replay.kept.append([uses, (step, (self._job.engine.arrange(x), None))])
