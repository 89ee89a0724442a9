"""After its first steps, no step makes the host wait for a GPU: on a CPU by the operations that would, and on a GPU itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from tests.examples import job
from tests.methods.settings import SETTINGS

aten = torch.ops.aten
# They give the host a number, or a tensor of a size that only the device knows; lift_fresh makes a tensor of Python's numbers.
WAITS = {
    aten._local_scalar_dense, aten._unique2, aten.allclose, aten.equal, aten.lift_fresh, aten.masked_select, aten.nonzero,
}  # fmt: skip
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class NoWaiting(TorchDispatchMode):
    """Fails at an operation for which the host would wait, except for numbers that stay on the CPU: `on_host`."""

    def __init__(self, on_host: set[int]) -> None:
        super().__init__()
        self._on_host = on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket
        by_mask = kind in BY_INDEX and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or (kind in WAITS and args[0].data_ptr() not in self._on_host):
            raise AssertionError(f"the host waits in {func}")
        return func(*args, **(kwargs or {}))


def no_waiting_on_cpu(trainer: bl.Trainer) -> NoWaiting:
    """Return the mode, with Adam's counts of steps allowed: they stay on the CPU."""
    optimizer = trainer.state().optimizer
    return NoWaiting({t.data_ptr() for name, t in optimizer.items() if name.endswith("/step")})


@contextmanager
def no_waiting_on_cuda(_trainer: bl.Trainer) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


GPU = pytest.param("cuda", no_waiting_on_cuda, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.mark.parametrize(("device", "no_waiting"), [("cpu", no_waiting_on_cpu), GPU])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_waits_for_nothing(
    name: str, precision: str, device: str, no_waiting: Callable[[bl.Trainer], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(SETTINGS[name], 4, dropout=0.1, engine=Engine(precision=precision))
    batches = made.batches(torch.device(device), made.dtype)
    trainer = bl.Trainer([m.to(device) for m in made.modules], made.method, made.lr, engine=made.engine)
    steps = range(6)
    for step in steps[:4]:  # the loss is checked; DDG and mode stale have nothing to apply yet
        trainer.step(batches.inputs(step), batches.labels(step))
    # Classes are checked on a CPU only.
    monkeypatch.setattr("backlink_ray.train.labels.check_classes", lambda *_: None)
    with no_waiting(trainer):
        for step in steps[4:]:
            trainer.step(batches.inputs(step), batches.labels(step))


WAITING: dict[str, Callable[[Tensor], object]] = {
    "if": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0]),
    "read by a mask": lambda x: x[x > 0],
    "write by a mask": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "nonzero": lambda x: x.nonzero(),
    "allclose": lambda x: torch.allclose(x, x),
    "numbers of Python": lambda x: x + torch.tensor(1.0),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_rule_can_fail(name: str) -> None:
    with pytest.raises(AssertionError, match="the host waits"), NoWaiting(set()):
        WAITING[name](torch.ones(3))
