"""Controller: an executor over stages, wherever they run; it calls them, waits, and reports which one failed first."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from backlink_ray.errors import ConfigError, LinkAbortedError, LinkError, StageError
from backlink_ray.pipeline.progress import SILENT, UNKNOWN, Position
from backlink_ray.pipeline.stage import merge_states
from backlink_ray.pipeline.stageplan import StagePlan
from backlink_ray.train.evaluation import Evaluation
from backlink_ray.train.executor import ChunkReport, Executor, never
from backlink_ray.train.state import TrainState, check_state
from backlink_ray.train.trainer import check_losses


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How one stage's call ended, when a stage had failed.

    Attributes:
        error: what it raised, or None.
        died: its process is gone.
        position: where it was, before the others were stopped; unknown if it died, SILENT if its process does not answer.
    """

    error: BaseException | None
    died: bool = False
    position: Position = UNKNOWN


class _Rank(IntEnum):
    """How certain it is that a stage caused the failure, from most to least."""

    DIED, RAISED, SILENT, BUSY, WAITED, STOPPED = range(6)


def first_failure(ends: Sequence[CallEnd], replicas: int = 1) -> StageError:
    """Return the error of the stage whose failure caused the others, with the place where it happened.

    In order of precedence: a stage that died, one that raised, one that does not answer, one that is busy by itself while
    others have waited for it too long, one whose wait timed out, one that was stopped. The position of a stage that is gone
    is inferred from its neighbours, which wait for it.

    Args:
        ends: of all stages, as `plan_stages` orders them.
        replicas: of every stage.
    """
    rank, _, place = min((_rank(end), -end.position.busy_s, place) for place, end in enumerate(ends))
    num_stages = len(ends) // replicas
    part, k = divmod(place, num_stages)
    where, is_lost = _where(ends, place, num_stages), rank is not _Rank.RAISED
    return StageError(k, num_stages, where, _reason(ends[place], rank), is_lost, part, replicas)


def _rank(end: CallEnd) -> _Rank:
    if end.died:
        return _Rank.DIED
    if end.error is not None and not isinstance(end.error, LinkError):
        return _Rank.RAISED
    if end.position.action == SILENT:
        return _Rank.SILENT
    if end.position.busy_s:
        return _Rank.BUSY
    is_late = isinstance(end.error, LinkError) and not isinstance(end.error, LinkAbortedError)
    return _Rank.WAITED if is_late else _Rank.STOPPED


def _reason(end: CallEnd, rank: _Rank) -> str:
    position = end.position
    if rank is _Rank.SILENT:
        return f"its process has not answered for {position.busy_s:.1f} s: it hangs, or its machine is gone"
    if rank is _Rank.BUSY:
        return f"it has not finished {position.action} for {position.busy_s:.1f} s: it hangs, or needs a longer stage_timeout_s"
    return f"{type(end.error).__name__}: {_summary_line(end.error)}"


def _where(ends: Sequence[CallEnd], place: int, num_stages: int) -> str:
    step, action, _ = ends[place].position
    if step >= 0:
        return f"step {step} ({action})"
    part, k = divmod(place, num_stages)
    near = {part * num_stages + j: f"stage {j}" for j in (k - 1, k + 1) if 0 <= j < num_stages}
    near |= {i: f"replica {i // num_stages}" for i in range(k, len(ends), num_stages) if i != place}
    found = [(ends[i].position, name) for i, name in near.items()]
    (step, action, _), name = max(found, default=(UNKNOWN, ""), key=lambda item: item[0].step)
    return f"step {step} ({name} was at {action})" if step >= 0 else "an unknown step"


def _summary_line(error: BaseException | None) -> str:
    """Return the first line; if an actor's constructor failed, the last, since Ray puts a traceback before the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return lines[-1 if getattr(error, "actor_init_failed", False) else 0]


def nothing() -> None:
    """Do nothing."""


class PipelineExecutor(Executor):
    """Trains a job with stages that work at the same time; a subclass knows how to call them."""

    def __init__(self, plans: Sequence[StagePlan]) -> None:
        self._modules = [plan.job.modules[0] for plan in plans if not plan.part]
        self.device = torch.device(plans[0].job.devices[0])
        self._step = 0

    @abstractmethod
    def _call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        """Call a method of every stage with the same arguments, and `meanwhile` again and again while they work.

        Raises:
            StageError: as soon as one fails.
        """

    @abstractmethod
    def _ask(self, name: str, *arguments: Any) -> list[Any]:
        """Call a method of every stage's `steps`, while the stage may be working."""

    def _run(self, num_steps: int, stop: Callable[[], bool]) -> list[ChunkReport]:
        """Run the next steps, one or more; once stop() is True, end all stages at one step, see `Steps`; return their reports."""
        first, end, asked = self._step, self._step + num_steps, False

        def look() -> None:
            nonlocal asked
            if not asked and stop():
                asked = True
                self._ask("end_at", end, max(*self._ask("hold", end), first + 1))

        return self._call("run", num_steps, meanwhile=look)

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise ConfigError(
                "torch.autocast holds for the calling thread alone, and stages run in others; train outside of it, with a "
                "network in the type wanted (network.to(torch.bfloat16)), or use executor local"
            )
        start, first = time.perf_counter(), self._step
        reports = self._run(num_steps, stop)
        num_stages = len(self._modules)
        replicas = [reports[k::num_stages] for k in range(num_stages)]
        losses = torch.cat([same[0].losses for same in replicas])  # means over all parts
        self._step += losses.shape[1]
        check_losses(losses, first)
        compile_s = max(r.compile_s for r in reports)
        return ChunkReport(
            losses,
            tuple(max(r.link_s[0] for r in same) for same in replicas),
            tuple(max(r.peak_memory_mib[0] for r in same) for same in replicas),
            tuple(span for same in replicas for span in same[0].spans),
            compile_s,
            time.perf_counter() - start - compile_s,
        )

    def evaluate(self, which: str) -> Evaluation:
        results: list[Evaluation | None] = self._call("evaluate", which)
        return next(result for result in results if result is not None)

    def state(self) -> TrainState:
        return merge_states(self._call("state"))

    def load(self, state: TrainState) -> None:
        check_state(self._modules, state)
        self._call("load", state)
        self._step = state.step

    def environments(self) -> list[dict[str, Any]]:
        return self._call("environment")
