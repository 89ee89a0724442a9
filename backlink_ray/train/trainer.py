"""Trainer: all local modules, one after another, in one process; the reference that the pipeline must equal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backlink_ray.allocator import prepare_process
from backlink_ray.data.checks import check_inputs
from backlink_ray.data.tensors import cast
from backlink_ray.errors import ConfigError, NotFiniteError
from backlink_ray.local.engine import DEFAULT, Engine
from backlink_ray.local.modes import TrainingModes, unmoved_if_refused
from backlink_ray.local.module import LocalModule, StepSeed
from backlink_ray.local.parameters import check_parameters
from backlink_ray.local.predict import predict
from backlink_ray.local.weights import copy_weights, state_of
from backlink_ray.methods.base import Batch, Loss, Method
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.options import LARGEST_FLOAT, Option
from backlink_ray.seeds import SEED
from backlink_ray.train.captured import Captured, check_capture
from backlink_ray.train.evaluation import Evaluation, EvaluationSum
from backlink_ray.train.labels import check_labels, check_loss
from backlink_ray.train.learner import Learner, one_pass
from backlink_ray.train.optim import LearningRate, MakeOptimizer, Sgd, check_optimizer, updaters_of
from backlink_ray.train.parts import check_replicas, part_size
from backlink_ray.train.state import TrainState, check_state

_LR = Option(default=0.5, high=LARGEST_FLOAT, allowed="at least 0, finite")


def gradients(
    modules: Sequence[LocalModule],
    method: Method,
    inputs: Tensor,
    labels: Tensor,
    step_seed: StepSeed | None = None,
    *,
    loss: Loss = F.cross_entropy,
) -> dict[str, Tensor]:
    """Return the method's gradient of every parameter by name, without changing parameters or statistics.

    Names are by module: "units.<i>.*", "helpers.<k>.*", and "heads.<k>.*", which for the last module is the classifier.
    These are the gradients of a first step: where errors arrive in later steps (DDG, all modules but the last) they are 0,
    and in mode stale a tail has its local gradient, since there is no link gradient yet.

    Args:
        modules: from `split`.
        method: for example BackLink(propagation_length=2, alpha=0.5).
        inputs: float (N, C, H, W), or what the first unit takes.
        labels: integers (N,), classes in 0..C-1; or floats (N, ...), targets of a regression.
        step_seed: source of dropout masks; by default seed 0, step 0.
        loss: called with logits (N, width) and labels; a scalar, the mean over the samples.

    Raises:
        ConfigError: the method cannot train these modules (the propagation length exceeds the smallest), mode async, or
            network, method or loss cannot take these inputs or labels.
    """
    prepared = _prepare(modules, method)
    batch = read_batch(prepared, method, inputs, labels, step_seed or StepSeed(), loss)
    check_loss(loss, batch.labels, prepared[-1])
    kept = [(b, b.clone()) for module in prepared for b in module.buffers()]
    try:
        learners = [Learner.of(method, module) for module in prepared]
        with batch.step_seed.engine.running(batch.inputs.device):
            found, _ = one_pass(learners, method, batch)
        named = [pair for m in prepared for pair in (*method.local_parameters(m), *method.linked_parameters(m))]
        return {name: found[name] if name in found else torch.zeros_like(p) for name, p in named}
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _prepare(modules: Sequence[LocalModule], method: Method) -> list[LocalModule]:
    if method.replay_size:
        raise ConfigError("mode='async' does not keep step, and a Trainer does; use an executor, or mode exact")
    prepared = method.prepare(modules)
    check_parameters(prepared)
    return prepared


def read_batch(
    modules: Sequence[LocalModule], method: Method, inputs: Tensor, labels: Tensor, step_seed: StepSeed, loss: Loss
) -> Batch:
    """Return a batch on the modules' device, floating-point numbers in their type, integer labels as int64.

    Raises:
        ConfigError: gradients are switched off, or network or method cannot take the inputs or labels.
    """
    if not torch.is_grad_enabled():
        raise ConfigError("a step under torch.no_grad() or torch.inference_mode() has no gradients; take it outside")
    if not (isinstance(inputs, Tensor) and isinstance(labels, Tensor)):
        found = ", ".join(type(part).__name__ for part in (inputs, labels))
        raise ConfigError(f"a batch of ({found}) cannot be used; allowed: (inputs, labels), two tensors")
    if not 0 < len(inputs) == len(labels):
        raise ConfigError(
            f"a batch has {len(inputs)} inputs and {len(labels)} labels; allowed: one of each or more, equal"
        )
    spec = modules[0].spec
    check_inputs("batch", inputs, spec.input_shape, spec.takes_integers)
    if not (spec.takes_integers or inputs.is_floating_point()):
        raise ConfigError(
            f"the batch inputs are {inputs.dtype}; the network takes floats, as x.float() / 255 makes of images"
        )
    check_labels("batch", labels, method, spec.num_classes)
    dtype, device = dtype_and_device(*modules)
    return Batch(cast(inputs.to(device), dtype), cast(labels.to(device), dtype), step_seed, loss)


class Trainer:
    """Trains local modules step by step in one process.

    Args:
        modules: from `split`; they share the network's units, so the network itself is trained. Every part is trained in the
            mode it is found in now (a batch norm in evaluation mode keeps its statistics), unless all units and the last head
            are in evaluation mode: then somebody has evaluated, and all are put into training mode.
        method: the training rule.
        lr: eta, a number or a function of the step.
        loss: called with a head's logits (N, width) and the labels; a scalar, the mean over the samples.
        optimizer: called with a list of parameters, returns a torch.optim.Optimizer of them, whose lr is set at every step;
            `train.optim.check_optimizer` says what must hold. Default: SGD as the paper states it.
        seed: of dropout masks.
        engine: how steps are computed. Convolutions' weights are brought into its memory format. From now on this process keeps
            freed memory, see `allocator`.
        replicas: of the pipeline that this trainer equals; every batch is taken in that many equal parts, see `one_pass`.

    Raises:
        ConfigError: the method cannot train these modules, the optimizer cannot work in parts, lr or seed is out of range, or
            the engine does not fit the network's device or type, or method or engine have no replicas.
    """

    def __init__(
        self,
        modules: Sequence[LocalModule],
        method: Method,
        lr: float | LearningRate = 0.5,
        *,
        loss: Loss = F.cross_entropy,
        optimizer: MakeOptimizer | None = None,
        seed: int = 0,
        engine: Engine = DEFAULT,
        replicas: int = 1,
    ) -> None:
        check_replicas(replicas, method, engine)
        self._replicas = replicas
        self.modules, self.method, self.loss, self.step_index = _prepare(modules, method), method, loss, 0
        self.engine = engine
        prepare_process()
        dtype, device = dtype_and_device(*self.modules)
        engine.check(device, dtype)
        engine.arrange_weights(self.modules)
        self._seed = SEED.read("seed", seed)
        self._lr = lr if callable(lr) else _LR.read("lr", lr)
        optimizer = optimizer or Sgd()
        check_optimizer(optimizer, [p for module in self.modules for p in module.parameters()])
        self._updaters = updaters_of(method, self.modules, optimizer)
        self._loss_checked: tuple[object, ...] = ()
        self._learners = [Learner.of(method, module) for module in self.modules]
        self._modes = TrainingModes(self.modules)
        self._graph: Captured | None = None

    def fit(self, batches: Iterable[Sequence[Tensor]], epochs: int = 1) -> Tensor:
        """Train on every batch of an iterable, `epochs` times over.

        Args:
            batches: of (inputs, labels) as `step` takes them: a DataLoader, a list.
            epochs: 1 or more.

        Returns:
            float64 (epochs, K): the mean local losses of every epoch, each before its update.

        Raises:
            ConfigError: an iterator, which would be at its end after the first epoch, or nothing to train on; as `step`.
            NotFiniteError: a loss became NaN or infinite; seen at the end of its epoch.
        """
        if epochs < 1 or (epochs > 1 and iter(batches) is batches):
            raise ConfigError(
                f"epochs={epochs} of a {type(batches).__name__}; allowed: 1 or more, and 1 for an iterator, which is at its end "
                "after one; give a list or a DataLoader for more"
            )
        return torch.stack([self._epoch(batches) for _ in range(epochs)])

    def _epoch(self, batches: Iterable[Sequence[Tensor]]) -> Tensor:
        first, losses = self.step_index, []
        for batch in batches:
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise ConfigError(f"a batch is a {type(batch).__name__}; allowed: a pair (inputs, labels)")
            losses.append(self.step(*batch))
        if not losses:
            raise ConfigError(
                f"a {type(batches).__name__} gave no batch at step {first}; allowed: one or more per epoch"
            )
        table = torch.stack(losses, dim=1).double().cpu()
        check_losses(table, first)
        return table.mean(dim=1)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Train on inputs and labels as for `gradients`; return the local losses (K,) before the update.

        Raises:
            ConfigError: network, method or loss cannot take them; nothing has moved then.
        """
        step_seed = StepSeed(self._seed, self.step_index, self.engine)
        batch = read_batch(self.modules, self.method, inputs, labels, step_seed, self.loss)
        size = part_size(len(inputs), self._replicas)
        kind = (batch.labels.dtype, batch.labels.shape[1:])
        if kind != self._loss_checked:
            check_loss(self.loss, batch.labels, self.modules[-1])
            self._loss_checked = kind
        batch = replace(batch, inputs=self.engine.arrange(batch.inputs))
        self._modes.restore()
        with self.engine.running(batch.inputs.device), unmoved_if_refused(self.modules, size):
            for updater in self._updaters:
                updater.set_lr(self._lr(self.step_index) if callable(self._lr) else self._lr)
            losses = self._captured(batch) if self.engine.graph else self._train(batch)
        self.step_index += 1
        return losses

    def _train(self, batch: Batch) -> Tensor:
        found, losses = one_pass(self._learners, self.method, batch, self._replicas)
        for updater in self._updaters:
            updater.update([found.get(name) for name in updater.names])
        return losses

    def _captured(self, batch: Batch) -> Tensor:
        if self._graph is None:
            check_capture(self.method, self.modules, self._updaters)
            how, loss = StepSeed(engine=self.engine), self.loss
            step = lambda inputs, labels: self._train(Batch(inputs, labels, how, loss))  # noqa: E731
            self._graph = Captured(step, self.modules, self._seed)
        return self._graph(batch.inputs, batch.labels, self.step_index)

    def evaluate(self, inputs: Tensor, labels: Tensor, batch_size: int = 512) -> Evaluation:
        """Evaluate the last head on inputs (N, ...) and labels as for `step`, as `predict` does; nothing changes."""
        check_labels("evaluation", labels, self.method, self.modules[-1].spec.num_classes)
        dtype, device = dtype_and_device(*self.modules)
        labels, total = cast(labels.to(device), dtype), EvaluationSum(self.loss)
        check_loss(self.loss, labels, self.modules[-1])
        with DEFAULT.running(device):
            total.add(predict(self.modules, self.engine.arrange(inputs), batch_size).to(device), labels)
        return total.result()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as one flat dict that torch.save takes, and torch.load with weights_only=True; see `state`."""
        return self.state().flat()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, bit for bit; see `load`."""
        self.load(TrainState.of(state))

    def __repr__(self) -> str:
        modules = "".join(f"\n  {module!r}" for module in self.modules)
        return f"Trainer(step {self.step_index}, {self.method}){modules}"

    def state(self) -> TrainState:
        """Return the state; its tensors are the live ones, which the next step changes."""
        optimizer = {n: t for updater in self._updaters for n, t in updater.state().items()}
        tensors = (learner.state.tensors(learner.module.module_index) for learner in self._learners)
        method_state = {n: t for of_module in tensors for n, t in of_module}
        return TrainState(state_of(self.modules), optimizer, self.step_index, method_state)

    def load(self, state: TrainState) -> None:
        """Continue from a state; ConfigError names the tensors that do not fit, and nothing has changed then."""
        check_state(self.modules, state)
        for updater in self._updaters:
            updater.check(state.optimizer)
        copy_weights(state_of(self.modules), state.weights)
        self._graph = None  # it reads the momentum that is replaced now
        for updater in self._updaters:
            updater.load(state.optimizer)
        for one in self._learners:
            k, chain = one.module.module_index, one.module.chain
            one.state.load(k, state.method_state, chain, self._seed, self.engine)
        self.step_index = state.step


def check_losses(losses: Tensor, first_step: int) -> None:
    """Raise NotFiniteError for the earliest step of losses (K, steps) that is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        offset, stage = min((int(t), int(k)) for k, t in bad)
        value, step = float(losses[stage, offset]), first_step + offset
        raise NotFiniteError(f"the local loss of stage {stage} is {value} at step {step}; try a smaller lr")
