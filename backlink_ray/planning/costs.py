"""Costs: what each unit and head of a network takes in a training step, measured once on one device."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backlink_ray.allocator import prepare_process
from backlink_ray.data.loader import Batches
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.local.engine import Engine
from backlink_ray.local.graph import Graph, differentiate
from backlink_ray.local.module import LocalModule, StepSeed
from backlink_ray.measure.cost import SavedTensors, Stopwatch, tensor_bytes
from backlink_ray.output import told
from backlink_ray.planning.contention import measure_speeds
from backlink_ray.planning.units import NoHead
from backlink_ray.train.optim import Sgd, Updater

# Units whose graphs are alive at once: a backward must find its tensors where a step's would, but not all of a deep network.
BLOCK = 16
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCosts:
    """What a network of N units takes per step; arrays have one entry a unit.

    Attributes:
        batch_size: of the step.
        input_s, input_bytes: of a batch: seconds of making it, and its size.
        update_s_per_byte: of parameters.
        forward_s, backward_s: seconds of each unit.
        input_error_s: what of the backward is for the gradient at the unit's input.
        head_s: forward, loss and backward of a head on each unit's output, infinite where none fits; the last one is the
            network's classifier.
        output_bytes: of the activation behind each unit.
        weight_bytes, head_weight_bytes: parameters.
        buffer_bytes, head_buffer_bytes: statistics.
        saved_bytes: what autograd saves for the backward of each unit.
        shared_bytes: what of it the unit before saves, too.
        head_saved_bytes: what a head saves besides.
        speeds: of stages that compute at once on cores, see `sharing.speed_of`.
        data_bytes, label_bytes: of the data set's inputs, which the first stage holds, and of its labels, which all do.
    """

    batch_size: int
    input_s: float
    input_bytes: int
    update_s_per_byte: float
    forward_s: Array
    backward_s: Array
    input_error_s: Array
    head_s: Array
    output_bytes: Array
    weight_bytes: Array
    head_weight_bytes: Array
    buffer_bytes: Array
    head_buffer_bytes: Array
    saved_bytes: Array
    shared_bytes: Array
    head_saved_bytes: Array
    speeds: tuple[float, ...] = (1.0,)
    data_bytes: int = 0
    label_bytes: int = 0

    @property
    def count(self) -> int:
        """Return N."""
        return len(self.forward_s)

    def spread(self, stand_ins: Sequence[int]) -> "NetworkCosts":
        """Return the costs of a network whose unit i costs what unit stand_ins[i] does here."""
        arrays = {
            each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), np.ndarray)
        }
        return replace(self, **{name: array[np.array(stand_ins)] for name, array in arrays.items()})


def measure_costs(
    modules: Sequence[LocalModule],
    batches: Batches,
    engine: Engine,
    repeats: int = 5,
    sets: Sequence[LabelledSet] = (),
) -> NetworkCosts:
    """Measure every unit, and the head on its output, in training mode; medians.

    Args:
        modules: of one unit each, on the device; their weights change.
        batches: of training inputs on the same device.
        engine: how steps are computed.
        repeats: timed rounds, after one that is not.
        sets: what a run keeps in memory: training and test images.
    """
    prepare_process()  # as every process that trains
    x = batches.inputs(0)
    engine.arrange_weights(modules)
    with engine.running(x.device):
        numbers = told(range(repeats + 1), "rounds of measuring the units")
        rounds = [[_round(modules, x, engine, to_input) for to_input in (True, False)] for _ in numbers][1:]
        (forward_s, backward_s), (_, without_s) = np.median(rounds, axis=0)
        return NetworkCosts(
            batch_size=len(x),
            input_bytes=tensor_bytes(x),
            input_s=_median_s(lambda: batches.inputs(0), x, repeats),
            update_s_per_byte=_update_s_per_byte(modules, x, repeats),
            forward_s=forward_s,
            backward_s=backward_s,
            input_error_s=np.maximum(backward_s - without_s, 0.0),
            head_s=np.array(_head_seconds(modules, x, engine, repeats)),
            speeds=measure_speeds(modules, partial(_whole_round, x=x, engine=engine), x.device, repeats),
            data_bytes=sum(tensor_bytes(each.inputs) for each in sets),
            label_bytes=sum(tensor_bytes(each.labels) for each in sets),
            **_memory(modules, x, engine),
        )


def _median_s(work: Callable[[], object], x: Tensor, repeats: int) -> float:
    watch = Stopwatch(x.device)
    for _ in range(repeats + 1):
        with watch:
            work()
    return statistics.median(watch.seconds[1:])


def _whole_round(modules: Sequence[LocalModule], x: Tensor, engine: Engine) -> float:
    """Return the seconds of all forwards and backwards."""
    with engine.running(x.device):
        return sum(map(sum, _round(modules, x, engine, to_input=True)))


def _round(
    modules: Sequence[LocalModule], x: Tensor, engine: Engine, to_input: bool
) -> tuple[list[float], list[float]]:
    """Return the seconds of every unit's forward and backward, in the order in which a step computes them."""
    forward, backward = Stopwatch(x.device), list[float]()
    for first in range(0, len(modules), BLOCK):
        graphs, own = [], Stopwatch(x.device)
        for k, module in enumerate(modules[first : first + BLOCK], first):
            with forward:
                graphs.append(Graph(module.chain, x, StepSeed(engine=engine), wants_input_gradient=k > 0 and to_input))
                x = graphs[-1].output
        error = torch.randn_like(x)
        while graphs:
            graph = graphs.pop()
            if not len(error):  # nobody has computed it
                error = torch.randn_like(graph.output)
            with own:
                _, error = graph.backward(error)
        backward += reversed(own.seconds)
    return forward.seconds, backward


def _head_seconds(modules: Sequence[LocalModule], x: Tensor, engine: Engine, repeats: int) -> list[float]:
    """Return the seconds of every head; of those on features of one shape, one is measured, and the last by itself."""
    known: dict[object, float] = {}
    found, labels = [], torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for module in modules:
        with torch.no_grad():
            x = module.chain(x, StepSeed(engine=engine))
        key = (module.is_last, x.shape)
        if isinstance(module.head, NoHead):
            known[key] = math.inf
        if key not in known:
            known[key] = _median_s(partial(_head_pass, module, x, labels, engine), x, repeats)
        found.append(known[key])
    return found


def _head_pass(module: LocalModule, features: Tensor, labels: Tensor, engine: Engine) -> None:
    features = features.detach().requires_grad_()
    with engine.autocast(features.device):
        logits = module.logits(features, StepSeed(engine=engine))
    differentiate(F.cross_entropy(engine.widen(logits), labels), [*module.head.parameters(), features])


def _update_s_per_byte(modules: Sequence[LocalModule], x: Tensor, repeats: int) -> float:
    named = [pair for module in modules for pair in module.chain.named()]
    updater, gradients = Updater(named, Sgd()), [torch.zeros_like(p) for _, p in named]
    updater.set_lr(0.0)
    return _median_s(lambda: updater.update(gradients), x, repeats) / max(1, sum(tensor_bytes(p) for _, p in named))


def _memory(modules: Sequence[LocalModule], x: Tensor, engine: Engine) -> dict[str, Array]:
    """Count a forward of every unit and head, which is not computed: the modules' tensors have no content afterwards."""
    rows: list[tuple[int, ...]] = []
    before: dict[int, int] = {}
    alive: list[Any] = []  # so that no storage gets the address of another
    how = StepSeed(engine=engine)
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes:
        a: Tensor = shapes.from_tensor(x)
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for module in modules:
            module._apply(shapes.from_tensor)  # type: ignore[no-untyped-call]
            own = [*module.parameters(), *module.buffers()]
            with SavedTensors(own) as saved:
                graph = Graph(module.chain, a, how, wants_input_gradient=module.module_index > 0)
            a = graph.output
            with SavedTensors(own) as head, engine.autocast(a.device):
                loss = F.cross_entropy(engine.widen(module.logits(a.detach().requires_grad_(), how)), labels)
            alive += [graph, loss]
            shared = (
                _without(saved.storages, saved.storages.keys() - before.keys()),
                _without(head.storages, saved.storages),
            )
            rows.append(
                (tensor_bytes(a), sum(saved.storages.values()), *shared, *_held(module.chain), *_held(module.head))
            )
            before = saved.storages
    names = ("output_bytes", "saved_bytes", "shared_bytes", "head_saved_bytes", "weight_bytes", "buffer_bytes")
    columns = np.array(rows, np.float64).T
    return dict(zip((*names, "head_weight_bytes", "head_buffer_bytes"), columns, strict=True))


def _without(storages: Mapping[int, int], others: Collection[int]) -> int:
    return sum(size for storage, size in storages.items() if storage not in others)


def _held(part: nn.Module) -> tuple[int, int]:
    parameters, buffers = (sum(map(tensor_bytes, tensors)) for tensors in (part.parameters(), part.buffers()))
    return parameters, buffers
