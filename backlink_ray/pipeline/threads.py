"""Threads: the stages of one run as threads of this process, or taking turns in one thread."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import nullcontext
from math import inf
from queue import SimpleQueue
from typing import Any

import torch

from backlink_ray.nets.probe import in_mode
from backlink_ray.pipeline.controller import CallEnd, PipelineExecutor, StageGroup, first_failure, nothing
from backlink_ray.pipeline.exchange import Mailbox, NoLink, QueueLink
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.progress import Patience
from backlink_ray.pipeline.stage import Stage, StageReport, plan_stages
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


class ThreadGroup(StageGroup):
    """Stages as threads of this process; torch releases the interpreter lock while it computes.

    A thread cannot be ended from outside: one that hangs is named and left behind, as a daemon, so that the process can end.
    """

    def __init__(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], timeout_s: float) -> None:
        self._stages, self._mailboxes, self._timeout_s = list(stages), list(mailboxes), timeout_s
        self._lock = threading.Lock()
        self._threads = [Daemon(f"stage {k}") for k in range(len(self._stages))]
        self._hung = -1
        self._patience = Patience(time.monotonic())

    def call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        # Stages may share a part without weights, such as one Dropout: it changes its mode for all of them at once.
        modes = in_mode(False, *(s.module for s in self._stages)) if name == "evaluate" else nullcontext()
        with self._lock, modes:
            calls = [(stage.progress.call, getattr(stage, name), *arguments) for stage in self._stages]
            futures = [thread.submit(*call) for thread, call in zip(self._threads, calls, strict=True)]
            self._patience = Patience(time.monotonic())
            while wait(futures, POLL_S, FIRST_EXCEPTION).not_done and not self._has_failed(futures):
                meanwhile()
            if self._has_failed(futures):
                self._fail(futures)
        return [f.result() for f in futures]

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        return [getattr(stage.steps, name)(*arguments) for stage in self._stages]

    def _has_failed(self, futures: Sequence["Future[Any]"]) -> bool:
        busiest_s = max(stage.progress.position.busy_s for stage in self._stages)
        hangs = min(busiest_s, self._patience.look(time.monotonic())) > self._timeout_s
        return hangs or any(f.done() and f.exception() for f in futures)

    def _fail(self, futures: Sequence["Future[Any]"]) -> None:
        positions = [stage.progress.position for stage in self._stages]
        for mailbox in self._mailboxes:
            mailbox.abort("another stage failed")
        for stage in self._stages:
            stage.steps.abort()
        wait([f for f, at in zip(futures, positions, strict=True) if not at.busy_s], RELEASE_TIMEOUT_S)
        errors = [f.exception() if f.done() else None for f in futures]
        error = first_failure([CallEnd(e, position=at) for e, at in zip(errors, positions, strict=True)])
        self._hung = error.stage_index if error.lost else -1
        raise error from errors[error.stage_index]

    def close(self) -> None:
        """Stop the stages."""
        for mailbox in self._mailboxes:
            mailbox.abort("the run ends")
        for k, thread in enumerate(self._threads):
            thread.end(0.0 if k == self._hung else RELEASE_TIMEOUT_S)


class RoundRobinGroup(ThreadGroup):
    """Stages that train one after another in this thread, each step in a new order drawn from the seed.

    The first step runs from the first stage to the last, since each needs an input to begin with.
    """

    def __init__(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], seed: int) -> None:
        super().__init__(stages, mailboxes, inf)
        self._seed = seed
        self.replays = {k: mailboxes[k].replay for k in range(1, len(stages))}  # what each stage works on

    def run(self, first: int, num_steps: int, stop: Callable[[], bool]) -> list[StageReport]:
        reports = {k: self._stages[k].run(num_steps) for k in self._order(first)}
        return [reports[k] for k in sorted(reports)]

    def _order(self, step: int) -> list[int]:
        count = len(self._stages)
        if not all(self.replays.values()):
            return list(range(count))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "turn", step))
        return torch.randperm(count, generator=generator).tolist()


class ThreadsExecutor(PipelineExecutor):
    """The pipeline as threads of one process, over the devices of one host."""

    name = "threads"

    def __init__(self, job: Job) -> None:
        self._give_back = remember(job.modules)
        plans, size = plan_stages(job), max(1, job.method.replay_size)
        forward = [Mailbox(size) for _ in plans]  # forward[k]: from stage k - 1 to stage k
        backward = [Mailbox(size) for _ in plans]  # backward[k]: from stage k + 1 to stage k
        stages = [make_stage(plan) for plan in plans]
        for k, plan in enumerate(plans):
            rest = torch.device(plan.job.devices[0]), job.stage_timeout_s
            before = NoLink() if plan.is_first else QueueLink(forward[k], backward[k - 1], *rest)
            after = NoLink() if plan.is_last else QueueLink(backward[k], forward[k + 1], *rest)
            stages[k].connect(before, after)
        self._stages = self._group_of(stages, [*forward, *backward], job)
        super().__init__(self._stages, plans)
        torch.set_num_threads(job.torch_threads)

    def close(self, *, failed: bool = False) -> None:
        self._stages.close()
        self._give_back(failed)

    def _group_of(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], job: Job) -> ThreadGroup:
        return ThreadGroup(stages, mailboxes, job.stage_timeout_s)


class RoundRobinExecutor(ThreadsExecutor):
    """Stages that do not keep step (mode async), in one thread and repeatable: executor local for mode async."""

    name = "local"

    def _group_of(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], job: Job) -> ThreadGroup:
        group = RoundRobinGroup(stages, mailboxes, job.seed)
        self._replays, self._engine = group.replays, job.engine
        return group

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        report = super().train(1)
        while report.num_steps < num_steps and not stop():
            report = report.followed_by(super().train(1))
        return report

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
                replay.kept.append([uses, (step, (self._engine.arrange(x), None))])
