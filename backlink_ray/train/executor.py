"""Executor: trains a job in chunks of steps, evaluates it, and returns its state; here, in one process."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.data.checks import check_inputs
from backlink_ray.data.loader import Batches, EvaluationBatches
from backlink_ray.data.tensors import LabelledSet, cast
from backlink_ray.local.engine import DEFAULT, Engine
from backlink_ray.local.module import LocalModule
from backlink_ray.local.predict import forward_for_evaluation
from backlink_ray.measure.compiling import compile_seconds
from backlink_ray.measure.metrics import peak_memory_mib, reset_peak_memory
from backlink_ray.measure.timeline import Span
from backlink_ray.methods.base import Loss, Method
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.options import Option
from backlink_ray.provenance import describe_process, flushes_subnormals
from backlink_ray.train.evaluation import Evaluation, EvaluationSum
from backlink_ray.train.faults import Fault
from backlink_ray.train.labels import check_labels, check_loss, check_mean
from backlink_ray.train.optim import LearningRate, MakeOptimizer, Sgd
from backlink_ray.train.parts import check_in_one_process, check_norms, check_replicas, check_whole, part_size
from backlink_ray.train.state import PARTS, TrainState
from backlink_ray.train.trainer import Trainer, check_losses

_BATCH_NORM = Option(default="part", choices=("part", "whole"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an executor trains: modules, method, data, loss and optimizer, all decided.

    Attributes:
        modules: from `split`; the executor moves them, and leaves them trained where it found them.
        train: training set.
        evaluations: further sets by name, for example "test" and "val".
        loss: called with logits (N, width) and labels; a scalar, the mean over the samples.
        optimizer: called with a list of parameters, returns their optimizer; see `train.optim.check_optimizer`.
        engine: how steps are computed.
        replicas: D; every stage has that many, each trains on its own part of the batch, and what they compute is averaged.
        batch_norm: "part": every replica normalises by its own part of the batch; "whole": all by the whole batch, as without
            replicas.
        devices: stage k of part d runs on devices[(d * K + k) % len(devices)].
        stage_timeout_s: longest wait of a stage for its neighbour; the first step on a GPU can take half a minute.
        timeline: record what each stage does when.
        faults: failures made on purpose, in executors threads and ray.
        attempt: number of recoveries of the run so far.
        transport: how messages travel between the stages of executor ray, see `RunOptions`.

    Raises:
        ConfigError: network, method or loss cannot take the inputs or labels of a set, or method, engine or batch_size do not
            fit the replicas, or network, method or loss not batch_norm "whole".
    """

    modules: list[LocalModule]
    method: Method
    train: LabelledSet
    evaluations: Mapping[str, LabelledSet]
    batch_size: int
    lr: LearningRate
    loss: Loss = F.cross_entropy
    optimizer: MakeOptimizer = field(default_factory=Sgd)
    seed: int = 0
    engine: Engine = DEFAULT
    replicas: int = 1
    batch_norm: str = "part"
    devices: tuple[str, ...] = ("cpu",)
    torch_threads: int = 1
    stage_timeout_s: float = 120.0
    timeline: bool = False
    faults: tuple[Fault, ...] = ()
    attempt: int = 0
    transport: str = "auto"

    def __post_init__(self) -> None:
        check_replicas(self.replicas, self.method, self.engine)
        part_size(self.batch_size, self.replicas)
        if _BATCH_NORM.read("batch_norm", self.batch_norm) == "whole":
            check_whole(self.method, self.engine, self.replicas)
            check_norms(self.modules)
        first, last = self.modules[0].spec, self.modules[-1]
        for which, part in {"train": self.train, **self.evaluations}.items():
            check_inputs(which, part.inputs, first.input_shape, first.takes_integers)
            check_labels(which, part.labels, self.method, first.num_classes)
            check_loss(self.loss, cast(part.labels[: self.batch_size], self.dtype), last)
        if self.batch_norm == "whole":
            check_mean(self.loss, self.train.labels, last, self.batch_size, self.replicas)
        object.__setattr__(self, "method", self.method.for_data(self.train))

    def check_executor(self, name: str) -> None:
        """Raise ConfigError if executor local, threads or ray cannot have batch norms of the whole batch in this job."""
        if self.batch_norm == "whole" and name in ("local", "threads"):
            stages = len(self.modules) * self.replicas if name == "threads" else 0
            check_in_one_process(self.modules, self.devices, stages)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which the network gets floating-point inputs and targets."""
        return dtype_and_device(*self.modules)[0]

    def with_parts(self, **parts: Any) -> "Job":
        """Return this job with other parts, not checked again, and with the method as it is for the whole training set."""
        other = copy.copy(self)
        for name, part in parts.items():
            object.__setattr__(other, name, part)
        return other

    def loss_on(self, device: torch.device) -> Loss:
        """Return the loss for `device`: a module, such as CrossEntropyLoss(weight=...), is copied there."""
        return copy.deepcopy(self.loss).to(device) if isinstance(self.loss, nn.Module) else self.loss

    def batches(self, device: torch.device, dtype: torch.dtype) -> Batches:
        """Return the training batches on `device`."""
        order = self.engine.torch_format
        return Batches(self.train, self.batch_size, seed=self.seed, dtype=dtype, device=device, memory_format=order)

    def evaluation_batches(self, device: torch.device, dtype: torch.dtype) -> dict[str, EvaluationBatches]:
        """Return the batches of every further set on `device`, by name."""
        size, order = self.batch_size, self.engine.torch_format
        return {
            name: EvaluationBatches(images, size, dtype=dtype, device=device, memory_format=order)
            for name, images in self.evaluations.items()
        }


def never() -> bool:
    """Return that there is no reason to stop."""
    return False


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """Result of a chunk of steps, of all stages or of one.

    Attributes:
        losses: (K, steps) float64, local losses before each update.
        link_s: per stage, seconds spent waiting for and sending messages.
        peak_memory_mib: per stage, device memory on CUDA, resident memory of its process on a CPU.
        spans: which stage did what when, if recorded.
        compile_s: seconds in which torch.compile compiled, of the stage that compiled longest.
        seconds: wall time of the chunk, without compile_s, of all stages; no stage takes its own.
    """

    losses: Tensor
    link_s: tuple[float, ...]
    peak_memory_mib: tuple[float, ...]
    spans: tuple[Span, ...] = ()
    compile_s: float = 0.0
    seconds: float = 0.0

    @property
    def num_steps(self) -> int:
        """Return the number of steps."""
        return self.losses.shape[1]

    def followed_by(self, later: "ChunkReport") -> "ChunkReport":
        """Return the report of this chunk and the next one as if they were one."""
        return ChunkReport(
            torch.cat([self.losses, later.losses], dim=1),
            tuple(a + b for a, b in zip(self.link_s, later.link_s, strict=True)),
            tuple(map(max, self.peak_memory_mib, later.peak_memory_mib)),
            self.spans + later.spans,
            self.compile_s + later.compile_s,
            self.seconds + later.seconds,
        )


class Executor(ABC):
    """Runs a job. All executors give the same weights, bit for bit on a CPU.

    Except in mode async, where timing decides, and with batch_norm "whole", where local and the others agree to rounding.

    Attributes:
        name: local, threads or ray.
        device: of the first module.
    """

    name: str
    device: torch.device

    @abstractmethod
    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        """Train on the next `num_steps` batches; NotFiniteError names stage and step.

        Args:
            num_steps: 1 or more.
            stop: asked again and again; once it returns True, training ends soon, after at least one step, with all modules at
                the same step.
        """

    @abstractmethod
    def evaluate(self, which: str) -> Evaluation:
        """Evaluate the last head on one of the job's sets, without dropout or augmentation."""

    @abstractmethod
    def state(self) -> TrainState:
        """Return the run's state on the CPU, with all modules at the same step."""

    @abstractmethod
    def load(self, state: TrainState) -> None:
        """Continue from a state."""

    @abstractmethod
    def environments(self) -> list[dict[str, Any]]:
        """Return `provenance.describe_process` of every stage."""

    @abstractmethod
    def close(self, *, failed: bool = False) -> None:
        """End everything this executor started.

        Unless training failed, the job's modules, and with them the user's network, then have the trained weights and
        statistics, on the devices where the executor found them.
        """

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, error: type[BaseException] | None, *_rest: object) -> None:
        self.close(failed=error is not None)


class LocalExecutor(Executor):
    """All modules one after another on one device, in this process; needs the least memory."""

    name = "local"

    def __init__(self, job: Job) -> None:
        job.check_executor(self.name)
        self.device = torch.device(job.devices[0])
        self.batches = job.batches(self.device, job.dtype)
        self._evaluations = job.evaluation_batches(self.device, job.dtype)
        self._give_back = remember(job.modules)
        for module in job.modules:
            module.to(self.device)
        how = {name: getattr(job, name) for name in ("optimizer", "seed", "engine", "replicas")}
        if job.batch_norm == "whole":  # then nothing needs to be done by parts
            how["replicas"] = 1
        self.trainer = Trainer(job.modules, job.method, job.lr, loss=job.loss_on(self.device), **how)
        reset_peak_memory(self.device)
        torch.set_num_threads(job.torch_threads)

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        start, compiled, first = time.perf_counter(), compile_seconds(), self.trainer.step_index
        losses: list[Tensor] = []
        for t in range(first, first + num_steps):
            losses.append(self.trainer.step(self.batches.inputs(t), self.batches.labels(t)))
            if stop():
                break
        table = torch.stack(losses, dim=1).double().cpu()
        check_losses(table, first)
        num, compile_s = len(self.trainer.modules), compile_seconds() - compiled
        seconds, memory = time.perf_counter() - start - compile_s, peak_memory_mib(self.device)
        return ChunkReport(table, (0.0,) * num, (memory,) * num, compile_s=compile_s, seconds=seconds)

    def evaluate(self, which: str) -> Evaluation:
        total = EvaluationSum(self.trainer.loss)
        with DEFAULT.running(self.device):
            for inputs, labels in self._evaluations[which]:
                total.add(forward_for_evaluation(self.trainer.modules, inputs), labels)
        return total.result()

    def state(self) -> TrainState:
        return to_cpu(self.trainer.state())

    def load(self, state: TrainState) -> None:
        self.trainer.load(state)

    def environments(self) -> list[dict[str, Any]]:
        with self.trainer.engine.running(self.device):
            return [{**describe_process(str(self.device)), "subnormals_flushed": flushes_subnormals()}]

    def close(self, *, failed: bool = False) -> None:
        self._give_back(failed)


def remember(modules: Sequence[LocalModule]) -> Callable[[bool], None]:
    """Return a function that restores torch's number of threads and, unless training failed, the modules' devices."""
    threads = torch.get_num_threads()
    devices = [next(module.parameters(), torch.empty(0)).device for module in modules]

    def give_back(failed: bool) -> None:
        torch.set_num_threads(threads)
        for module, device in () if failed else zip(modules, devices, strict=True):
            module.to(device)

    return give_back


def to_cpu(state: TrainState) -> TrainState:
    """Return a copy of a state on the CPU, which later steps do not change."""
    copies = {part: {n: t.detach().cpu().clone() for n, t in getattr(state, part).items()} for part in PARTS}
    return TrainState(**copies, step=state.step)
