"""Stage: hosts one local module and the replica of the previous tail, and follows the schedule; a plain class."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.allocator import prepare_process
from backlink_ray.local.engine import DEFAULT
from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Chain, LocalModule, StepSeed
from backlink_ray.local.predict import forward_for_evaluation
from backlink_ray.local.weights import copy_weights, state_of
from backlink_ray.measure.compiling import compile_seconds
from backlink_ray.measure.metrics import peak_memory_mib, reset_peak_memory
from backlink_ray.measure.timeline import NoTimeline, Timeline
from backlink_ray.methods.base import Batch, LocalResult
from backlink_ray.methods.state import MethodState
from backlink_ray.pipeline.exchange import Kind, Link, NoLink, flatten, unflatten
from backlink_ray.pipeline.group import ALONE, Group
from backlink_ray.pipeline.progress import Progress
from backlink_ray.pipeline.schedule import Action, run_actions, step_actions
from backlink_ray.pipeline.stageplan import StagePlan
from backlink_ray.pipeline.steps import Steps
from backlink_ray.pipeline.wholenorm import whole_batch_norms
from backlink_ray.provenance import describe_process, flushes_subnormals
from backlink_ray.train.evaluation import Evaluation, EvaluationSum
from backlink_ray.train.executor import ChunkReport, to_cpu
from backlink_ray.train.optim import Updater, updaters_of
from backlink_ray.train.parts import mark_used, mean, merged, overwrite, used
from backlink_ray.train.state import PARTS, TrainState


class Stage:
    """One local module in training.

    Attributes:
        module: the local module.
        actions: what the stage does in a step.
        steps: where a run of steps ends, which another thread may bring forward.
        progress: where it is, readable from another thread.
    """

    def __init__(self, plan: StagePlan) -> None:
        prepare_process()
        self._plan, self._job, self._method = plan, plan.job, plan.job.method
        self._device = torch.device(plan.job.devices[0])
        self.module: LocalModule = plan.job.modules[0].to(self._device)
        self._replica: Chain = plan.replica.to(self._device)
        self._tail = self.module.tail(self._method.tail_length(self.module))
        self._previous: Link = NoLink()
        self._next: Link = NoLink()
        self._group = ALONE
        self._loss, optimizer = plan.job.loss_on(self._device), plan.job.optimizer
        self._body_updater, self._tail_updater = updaters_of(self._method, [self.module], optimizer)
        self._replica_updater = Updater(self._replica.named(), optimizer)
        self._batches = self._job.batches(self._device, plan.dtype)
        self._evaluations = self._job.evaluation_batches(self._device, plan.dtype)
        self._timeline = Timeline(plan.stage_index) if self._job.timeline else NoTimeline()
        self.actions = self._schedule()
        self._method_state, self._replica_method_state = MethodState(), MethodState()
        self.steps = Steps(plan.job.stage_timeout_s)
        self._link_s = 0.0
        self._losses: list[Tensor] = []
        self._local_gradients: list[Tensor] = []
        self._nothing = torch.empty(0)
        self._drawn: tuple[int, Tensor] = (-1, self._nothing)
        self.progress = Progress()
        reset_peak_memory(self._device)

    def _schedule(self) -> Sequence[Action]:
        plan, method = self._plan, self._method
        return step_actions(
            is_first=plan.is_first,
            is_last=plan.is_last,
            link=method.link_kind,
            has_tail=method.linked_units > 0,
            is_stale=method.is_stale,
        )

    def _batch_of(self, step: int) -> int:
        """Return the step whose batch this step works on."""
        return step

    def connect(self, previous: Link, following: Link, group: Group = ALONE) -> None:
        """Set the links to the neighbouring stages and to those of the same module, and close the earlier ones."""
        for earlier in (self._previous, self._next, self._group):
            earlier.close()
        self._previous, self._next, self._group = previous, following, group

    def run(self, num_steps: int) -> ChunkReport:
        """Train on the next `num_steps` batches, see `Steps`, and return with no message and no action pending."""
        torch.set_num_threads(self._job.torch_threads)
        compiled = compile_seconds()
        self._losses, self._link_s = [], 0.0
        # Dropout draws from the generator of the thread's current device.
        device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with device, self._job.engine.running(self._device), self._norms():
            for action, step in run_actions(self.steps.run(num_steps), self.actions):
                self.progress.begin(step, action)
                with self._timeline.record(action, step):
                    self._perform(action, step)
        self.progress.rest(self.steps.next)
        spans, self._timeline.spans = tuple(self._timeline.spans), []
        losses, compile_s = torch.stack(self._losses)[None].double().cpu(), compile_seconds() - compiled
        return ChunkReport(losses, (self._link_s,), (peak_memory_mib(self._device),), spans, compile_s)

    def _perform(self, action: str, step: int) -> None:
        getattr(self, "_" + action)(step)

    # The actions, in the order of the schedule. Each drops what is not needed again, which would otherwise stay in memory
    # during the next step.

    def _receive_activation(self, step: int) -> None:
        self._x = self._receive(self._previous, Kind.ACTIVATION, step)

    def _replica_forward(self, step: int) -> None:
        self._replica_graph: Graph = self._method.forward_replica(self._replica, self._x, self._step_seed(step))
        self._x = self._replica_graph.output

    def _body_forward(self, step: int) -> None:
        x = self._inputs(step) if self._plan.is_first else self._x
        self._body_graph: Graph = self._method.forward_body(self.module, x, self._step_seed(step))
        self._x = self._nothing

    def _send_activation(self, step: int) -> None:
        self._send(self._next, Kind.ACTIVATION, step, self._body_graph.output)

    def _send_output(self, step: int) -> None:
        self._send(self._next, Kind.ACTIVATION, step, self._tail_graph.output)

    def _receive_error(self, step: int) -> None:
        self._method_state.error = self._receive(self._next, Kind.ERROR, step)

    def _link_backward(self, step: int) -> None:
        link = self._method.link_backward(self._open_graph, self._method_state.error)
        self._method_state.link = self._average(step, link, self._tail)
        self._method_state.error = self._nothing
        del self._open_graph

    def _receive_link_gradient(self, step: int) -> None:
        vector = self._receive(self._next, Kind.LINK_GRADIENT, step)
        self._method_state.link = unflatten(vector, self._tail.weights)

    def _tail_update(self, step: int) -> None:
        local, self._local_gradients = self._local_gradients, []
        link, self._method_state.link = self._method_state.link, []
        self._update(self._tail_updater, self._method.mix(self._tail, local, link), step)

    def _tail_forward(self, step: int) -> None:
        a = self._body_graph.output
        self._tail_graph: Graph = self._method.forward_tail(self.module, a, self._step_seed(step))

    def _local_backward(self, step: int) -> None:
        method, module, graphs = self._method, self.module, (self._body_graph, self._tail_graph)
        inputs = self._inputs(step) if method.wants_inputs else self._nothing
        batch = Batch(inputs, self._labels(step), self._step_seed(step), self._loss)
        waits = method.link_kind == "error" and method.has_link(module)
        retain = waits and method.retains_tail
        result = method.local_backward(module, *graphs, batch, self._method_state, retain=retain)
        result = self._averaged(step, result)
        self._losses.append(result.loss)
        self._body_gradients, self._local_gradients, self._input_error = result.local, result.linked, result.error
        if waits:
            self._open_graph = result.graph
        del self._body_graph, self._tail_graph

    def _averaged(self, step: int, result: LocalResult) -> LocalResult:
        """Return a result with loss and gradients averaged over the parts."""
        if self._job.replicas == 1:
            return result
        local = result.local or []
        found = self._average(step, [result.loss, *local, *result.linked], self.module)
        gradients = found[1 : 1 + len(local)]
        return replace(result, loss=found[0], local=gradients, linked=found[1 + len(local) :])

    def _average(self, step: int, tensors: list[Tensor], module: nn.Module) -> list[Tensor]:
        """Return the means over the parts of tensors that come of a module, whose buffers become the same in all parts."""
        if self._job.replicas == 1:
            return tensors
        parameters, buffers = list(module.parameters()), list(module.buffers())
        use = used(parameters)
        own = [*tensors, *buffers, torch.tensor(use, device=self._device)]
        with self._waiting():
            parts = [unflatten(part, own) for part in self._group.gather(step, flatten(own))]
        overwrite(buffers, merged([part[len(tensors) : -1] for part in parts]))
        if not all(use):  # else no other part can change it, and to read theirs is a wait on a GPU
            mark_used(parameters, [part[-1].tolist() for part in parts])
        return mean([part[: len(tensors)] for part in parts])

    def _norms(self) -> AbstractContextManager[None]:
        if self._job.batch_norm == "part" or self._job.replicas == 1:
            return nullcontext()
        return whole_batch_norms([self.module, self._replica], self._gather)

    def _gather(self, own: Tensor) -> list[Tensor]:
        with self._waiting():
            return self._group.gather(self.progress.position.step, own)

    def _inputs(self, step: int) -> Tensor:
        batch = self._batch_of(step)
        if self._drawn[0] != batch:  # InfoPro's loss needs the inputs that were forwarded
            self._drawn = (batch, self._own(self._batches.inputs(batch)))
        return self._drawn[1]

    def _labels(self, step: int) -> Tensor:
        return self._own(self._batches.labels(self._batch_of(step)))

    def _own(self, batch: Tensor) -> Tensor:
        """Return this stage's part of a batch, which every part draws as a whole, so that it is that of one process."""
        return batch.tensor_split(self._job.replicas)[self._plan.part]

    def _send_error(self, step: int) -> None:
        self._send(self._previous, Kind.ERROR, step, self._input_error)
        self._input_error = self._nothing

    def _send_local_gradient(self, step: int) -> None:
        self._send(self._next, Kind.LOCAL_GRADIENT, step, flatten(self._local_gradients))

    def _body_update(self, step: int) -> None:
        if self._body_gradients is not None:
            self._update(self._body_updater, self._body_gradients, step)
        self._body_gradients = None

    def _replica_backward(self, step: int) -> None:
        link = self._method.link_backward(self._replica_graph, self._input_error)
        self._replica_gradients = self._average(step, link, self._replica)
        self._input_error = self._nothing
        del self._replica_graph

    def _send_link_gradient(self, step: int) -> None:
        self._send(self._previous, Kind.LINK_GRADIENT, step, flatten(self._replica_gradients))

    def _receive_local_gradient(self, step: int) -> None:
        vector = self._receive(self._previous, Kind.LOCAL_GRADIENT, step)
        self._previous_gradients = unflatten(vector, self._replica.weights)

    def _replica_update(self, step: int) -> None:
        local, self._previous_gradients = self._previous_gradients, []
        link = self._method.link_gradients_to_mix(self._replica_method_state, self._replica_gradients)
        self._replica_gradients = []
        self._update(self._replica_updater, self._method.mix(self._replica, local, link), step)

    def _update(self, updater: Updater, gradients: Sequence[Tensor], step: int) -> None:
        updater.set_lr(self._job.lr(step))
        updater.update(gradients)

    def _step_seed(self, step: int) -> StepSeed:
        return StepSeed(self._job.seed, self._batch_of(step), self._job.engine, self._plan.part)

    def _send(self, link: Link, kind: Kind, step: int, tensor: Tensor) -> None:
        with self._waiting():
            link.send(kind, step, tensor)

    def _receive(self, link: Link, kind: Kind, step: int) -> Tensor:
        with self._waiting():
            return link.receive(kind, step)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        with self.progress.waiting():
            yield
        self._link_s += time.perf_counter() - start

    # Between runs of steps, with every stage drained.

    def evaluate(self, which: str) -> Evaluation | None:
        """Pass one set through the stages of part 0; the last of them returns the result, all others None."""
        if self._plan.part:
            return None
        total = EvaluationSum(self._loss)
        with DEFAULT.running(self._device):
            for index, (x, labels) in enumerate(self._evaluations[which]):
                self.progress.begin(index, f"evaluate {which}")
                x = x if self._plan.is_first else self._receive(self._previous, Kind.ACTIVATION, index)
                y = forward_for_evaluation([self.module], x)
                if self._plan.is_last:
                    total.add(y, labels)
                else:
                    self._send(self._next, Kind.ACTIVATION, index, y)
        self.progress.rest(self.steps.next)
        return total.result() if self._plan.is_last else None

    def state(self) -> TrainState:
        """Return this stage's part of the state, on the CPU, without the replica, which belongs to the previous stage.

        All parts have the same weights and momentum, so part 0 alone returns them.
        """
        if self._plan.part:
            return TrainState({}, {}, self.steps.next)
        optimizer = {**self._body_updater.state(), **self._tail_updater.state()}
        method_state = dict(self._method_state.tensors(self.module.module_index))
        return to_cpu(TrainState(state_of([self.module]), optimizer, self.steps.next, method_state))

    def environment(self) -> dict[str, Any]:
        """Describe this stage's process and device."""
        with self._job.engine.running(self._device):
            return {**describe_process(str(self._device)), "subnormals_flushed": flushes_subnormals()}

    def load(self, state: TrainState) -> None:
        """Load this stage's part, and its replica's, of a complete state, which the executor has checked."""
        updaters = self._body_updater, self._tail_updater, self._replica_updater
        for updater in updaters:
            updater.check(state.optimizer)
        copy_weights(state_of([self.module]), state.weights)
        copy_weights(dict(self._replica.named_state()), state.weights)
        for updater in updaters:
            updater.load(state.optimizer)
        k, how = self.module.module_index, (self._job.seed, self._job.engine)
        self._method_state.load(k, state.method_state, self.module.chain, *how)
        if len(self._replica):
            self._replica_method_state.load(k - 1, state.method_state, self._replica, *how)
        self.steps.next = state.step
        self.progress.rest(state.step)


def merge_states(parts: Sequence[TrainState]) -> TrainState:
    """Return one state from the parts of all stages, which are at the same step."""
    assert len({part.step for part in parts}) == 1, [part.step for part in parts]
    merged = {name: {n: t for part in parts for n, t in getattr(part, name).items()} for name in PARTS}
    return TrainState(**merged, step=parts[0].step)
