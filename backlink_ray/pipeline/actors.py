"""Actors: the same stages, each in a Ray actor on its own device, anywhere in the cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from backlink_ray.errors import ClusterError, ConfigError, StageError
from backlink_ray.local.weights import copy_weights, state_of
from backlink_ray.pipeline.controller import CallEnd, PipelineExecutor, first_failure, nothing
from backlink_ray.pipeline.pool import StagePool, answer_of
from backlink_ray.pipeline.progress import SILENT, UNKNOWN, Position
from backlink_ray.pipeline.stageplan import StagePlan, plan_stages
from backlink_ray.pipeline.watch import Watch
from backlink_ray.processes import remember_descendants
from backlink_ray.train.executor import ChunkReport, Job, never
from backlink_ray.train.state import TrainState

# Once a stage has failed, how long the driver waits for those that it has stopped to report how they ended.
FAILURE_GRACE_S = 2.0
# How often the driver asks working stages for their position: rarely enough to cost nothing, often enough to find a hanging
# stage soon after stage_timeout_s, even if no neighbour waits for it.
HEARTBEAT_S = 0.5


class RayExecutor(PipelineExecutor):
    """The pipeline as Ray actors.

    Args:
        job: what to train; its `devices` are replaced: "cuda" if stages have GPUs, else "cpu".
        pool: processes that outlive this executor, closed by the caller; None starts some for this executor alone.

    Raises:
        ConfigError: the cluster is too small for the stages.
        ClusterError: it is too busy.
    """

    name = "ray"

    def __init__(self, job: Job, pool: StagePool | None = None) -> None:
        self._pool = StagePool() if pool is None else pool
        self._give_back = self._pool.close if pool is None else self._pool.release
        plans = plan_stages(job.with_parts(devices=("cuda" if self._pool.use_gpus() else "cpu",)))
        super().__init__(plans)
        self._stage_timeout_s = job.stage_timeout_s
        self._last_plan = plans[-1]  # the smallest, without inputs
        self._ahead = False  # the stages, in their own processes, have weights that the job's modules lack
        try:
            self._start(plans)
        except BaseException:
            self._give_back()
            raise

    def _start(self, plans: Sequence[StagePlan]) -> None:
        for plan in plans:
            _check_sendable(plan)
        self._actors, ready_s = self._pool.take(len(plans)), self._pool.ready_timeout_s
        devices = self._pool.settle(self._wait([actor.ready.remote() for actor in self._actors], ready_s))
        built = zip(self._actors, plans, devices, strict=True)
        self._wait([actor.build.remote(self._pool.attempt, plan, gpus) for actor, plan, gpus in built], ready_s)
        remember_descendants()
        if self._is_collective(devices):
            addresses = self._wait([actor.listen.remote() for actor in self._actors], ready_s)
            joining = [actor.join.remote(*at, ready_s) for actor, at in self._with_others(plans, addresses)]
        else:
            joining = [actor.connect.remote(*others) for actor, others in self._with_others(plans, self._actors)]
        self._wait(joining, ready_s)

    def _with_others(
        self, plans: Sequence[StagePlan], of_stages: Sequence[Any]
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Yield every actor with what belongs to its neighbours, None where there is none, and to all stages of its module."""
        for place, (actor, plan) in enumerate(zip(self._actors, plans, strict=True)):
            before = None if plan.is_first else of_stages[place - 1]
            after = None if plan.is_last else of_stages[place + 1]
            yield actor, (before, after, of_stages[plan.stage_index :: plan.num_stages])

    def _is_collective(self, devices: Sequence[str]) -> bool:
        """Return whether messages travel through torch.distributed, which is asked for."""
        transport, on_gpus = self._last_plan.job.transport, self.device.type == "cuda"
        has_own = on_gpus and len({*zip(self._pool.nodes, devices, strict=True)}) == len(devices)
        if transport == "collective" and on_gpus and not has_own:
            raise ConfigError(
                "transport='collective' is NCCL between GPUs, of which each stage needs its own, and here stages share one; "
                "allowed: objectstore, or --gpus-per-stage 1 where there are enough"
            )
        return transport == "collective"

    def _call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        shared = [ray.put(argument) for argument in arguments]  # pickled once: a state is large
        calls = [actor.call.remote(name, *shared) for actor in self._actors]
        self._pool.tend(self._last_plan)  # a run may have no call as long as a heartbeat
        return self._wait(calls, meanwhile=meanwhile)

    def _ask(self, name: str, *arguments: Any) -> list[Any]:
        answers = [actor.ask.remote(name, *arguments) for actor in self._actors]
        return list(ray.get(answers, timeout=self._stage_timeout_s))

    def _wait(self, refs: list[Any], timeout_s: float = 0.0, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        """Return the results; `timeout_s` is given before the stages work, and 0 once they can be watched."""
        results, pending, start, watch = dict[Any, Any](), list(refs), time.monotonic(), Watch(self._actors)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=HEARTBEAT_S)
            results |= {ref: answer_of(ref) for ref in done}
            if any(isinstance(results[ref], Exception) for ref in done):
                self._fail(refs, watch)
            if not done and timeout_s and time.monotonic() - start > timeout_s:
                raise ClusterError(
                    f"the stages were not ready within {timeout_s:g} s; is the cluster busy or too small? wait longer with "
                    "ready_timeout_s"
                )
            if not done:
                self._pool.tend(self._last_plan)
                watch.update()
                if not timeout_s and watch.hangs(self._stage_timeout_s):
                    self._fail(refs, watch)
            try:
                if pending:  # else nothing is left that could fail, and a stage that dies now has done its part
                    meanwhile()
            except ray.exceptions.RayError:
                self._fail(refs, watch)
        return [results[ref] for ref in refs]

    def _fail(self, refs: list[Any], watch: Watch) -> None:
        """Stop the stages, and raise the error of the one that failed; it is ended if it does not end itself."""
        positions = watch.positions()
        for actor in self._actors:
            actor.abort.remote(self._pool.attempt)
        ending = [ref for ref, position in zip(refs, positions, strict=True) if not position.busy_s]
        ray.wait(ending, num_returns=len(ending), timeout=FAILURE_GRACE_S) if ending else None
        ends = [_end(*pair) for pair in zip(refs, positions, strict=True)]
        error = first_failure(ends, self._last_plan.job.replicas)
        error.machine_lost = error.lost and self._pool.end(error.place)
        raise error from ends[error.place].error

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        self._ahead = False  # what a failed run has learned is not fetched
        report = super().train(num_steps, stop)
        self._ahead = True
        return report

    def load(self, state: TrainState) -> None:
        super().load(state)
        self._ahead = True

    def state(self) -> TrainState:
        """Return the run's state, and give its weights to the job's modules, so that `close` need not fetch them again."""
        try:
            state = super().state()
        except StageError:
            self._ahead = False  # `close` would fail likewise
            raise
        copy_weights(state_of(self._modules), state.weights)
        self._ahead = False
        return state

    def close(self, *, failed: bool = False) -> None:
        try:
            if self._ahead and not failed:
                self.state()
        finally:
            self._ahead = False
            self._give_back()


def _check_sendable(plan: StagePlan) -> None:
    """Raise ConfigError that names the part that cannot be pickled; Ray's own error prints all the data instead."""
    module = plan.job.modules[0]
    units = ((f"units[{index}]", unit) for index, unit in enumerate(module.units, module.chain.first_index))
    rest = ((name, getattr(plan.job, name)) for name in ("method", "loss", "optimizer", "lr"))
    for name, part in (*units, (module.head_name, module.head), *rest):
        try:
            ray.cloudpickle.dumps(part)
        except Exception as error:  # whatever a user's own __reduce__ raises
            raise ConfigError(
                f"{name} cannot be sent to the process of its stage: {error}; allowed: what pickle takes, or executor "
                "threads or local"
            ) from error


def _end(call: Any, position: Position) -> CallEnd:
    if not ray.wait([call], timeout=0)[0]:
        return CallEnd(None, position=position)
    error = answer_of(call)
    if position.action == SILENT:  # it was slow to say where it was, but its call has ended
        position = UNKNOWN
    if not isinstance(error, Exception):
        return CallEnd(None, position=position)
    died = isinstance(error, (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError))
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        cause.__cause__ = error  # its message is the stage's own traceback
        error = cause
    return CallEnd(error, died, position)
