"""Threads: the stages of one run as threads of this process, or taking turns in one thread."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import torch

from backlink_ray.nets.probe import in_mode
from backlink_ray.pipeline.asyncstage import make_stage
from backlink_ray.pipeline.controller import Outcome, PipelineExecutor, StageGroup, nothing, raise_first_failure
from backlink_ray.pipeline.exchange import Mailbox, NoLink, QueueLink
from backlink_ray.pipeline.stage import Stage, StageReport, plan_stages
from backlink_ray.seeds import derive_seed
from backlink_ray.train.executor import Job, remember
from backlink_ray.train.state import TrainState

# How often the driver looks whether to stop.
POLL_S = 0.1


class ThreadGroup(StageGroup):
    """Stages as threads of this process; torch releases the interpreter lock while it computes."""

    def __init__(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox]) -> None:
        self._stages, self._mailboxes = list(stages), list(mailboxes)
        self._pool = ThreadPoolExecutor(len(self._stages), thread_name_prefix="stage")
        self._lock = threading.Lock()

    def call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        # Stages may share a part without weights, such as one Dropout: it changes its mode for all of them at once.
        modes = in_mode(False, *(s.module for s in self._stages)) if name == "evaluate" else nullcontext()
        with self._lock, modes:
            futures = [self._pool.submit(getattr(stage, name), *arguments) for stage in self._stages]
            self._wait(futures, meanwhile)
            outcomes = [Outcome(f.exception(), position=s.position) for f, s in zip(futures, self._stages, strict=True)]
        raise_first_failure(outcomes)
        return [f.result() for f in futures]

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        return [getattr(stage.steps, name)(*arguments) for stage in self._stages]

    def _wait(self, futures: list["Future[Any]"], meanwhile: Callable[[], None]) -> None:
        """Wait until every stage has ended; when the first fails, stop the others."""
        failed, pending = False, set(futures)
        while pending and not failed:
            done, pending = wait(pending, POLL_S, return_when=FIRST_EXCEPTION)
            failed = any(f.exception() for f in done)
            meanwhile()
        if failed:
            for mailbox in self._mailboxes:
                mailbox.abort("another stage failed")
        wait(futures)

    def close(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.abort("the run ends")
        self._pool.shutdown(wait=True)


def merge_reports(parts: Sequence[StageReport]) -> StageReport:
    """Return one report of consecutive runs of one stage."""
    return StageReport(
        torch.cat([part.losses for part in parts]),
        sum(part.link_s for part in parts),
        max(part.peak_memory_mib for part in parts),
        tuple(span for part in parts for span in part.spans),
        sum(part.compile_s for part in parts),
    )


class RoundRobinGroup(ThreadGroup):
    """Stages that train one after another in this thread, each step in a new order drawn from the seed.

    The first step runs from the first stage to the last, since each needs an input to begin with.
    """

    def __init__(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], seed: int) -> None:
        super().__init__(stages, mailboxes)
        self._seed = seed
        self.replays = {k: mailboxes[k].replay for k in range(1, len(stages))}  # what each stage works on

    def run(self, first: int, num_steps: int, stop: Callable[[], bool]) -> list[StageReport]:
        reports: list[list[StageReport]] = [[] for _ in self._stages]
        for step in range(first, first + num_steps):
            for k in self._order(step):
                reports[k].append(self._stages[k].run(1))
            if stop():
                break
        return [merge_reports(of_stage) for of_stage in reports]

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
        super().__init__(self._group_of(stages, [*forward, *backward], job), plans)
        torch.set_num_threads(job.torch_threads)

    def close(self, *, failed: bool = False) -> None:
        super().close(failed=failed)
        self._give_back(failed)

    def _group_of(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], job: Job) -> StageGroup:
        return ThreadGroup(stages, mailboxes)


class RoundRobinExecutor(ThreadsExecutor):
    """Stages that do not keep step (mode async), in one thread and repeatable: executor local for mode async."""

    name = "local"

    def _group_of(self, stages: Sequence[Stage], mailboxes: Sequence[Mailbox], job: Job) -> StageGroup:
        group = RoundRobinGroup(stages, mailboxes, job.seed)
        self._replays, self._engine = group.replays, job.engine
        return group

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
