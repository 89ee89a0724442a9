"""Convolutions: which of a network's are slower in bfloat16 than in float32, as some are for some versions of torch."""

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.measure.cost import now
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.nets.probe import probe, random_like

# Enough that arithmetic takes most of the time, few enough that all convolutions of ResNet110 take some 0.1 s.
_IMAGES = {"cpu": 8, "cuda": 64}
_REPEATS = 2
# Times this short scatter; the convolutions that matter are 4 to 16 times slower.
_SLOWER = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution and its times, forward and backward, in channels_last.

    Attributes:
        name: as torch writes it, such as Conv2d(16, 32, kernel_size=(3, 3), stride=(2, 2)).
        input_shape: (C, H, W).
        count: how many of the network are like that.
        fp32_s, bf16_s: seconds of a small batch, the shortest of a few.
    """

    name: str
    input_shape: tuple[int, ...]
    count: int
    fp32_s: float
    bf16_s: float

    @property
    def ratio(self) -> float:
        """Return how many times longer it takes in bfloat16."""
        return self.bf16_s / self.fp32_s


def convolutions(units: Iterable[nn.Module], example: Tensor, device: torch.device) -> list[Convolution]:
    """Time every distinct convolution of some units.

    Args:
        units: in order; they do not change.
        example: input (n, ...) of the first.
        device: to measure on; the units may be elsewhere.
    """
    found: Counter[tuple[str, tuple[int, ...], bool]] = Counter()
    modules: dict[tuple[str, tuple[int, ...], bool], nn.Conv2d] = {}

    def note(module: nn.Conv2d, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        own, (x, *_) = _without_values(module), (*given, *named.values())
        key = (str(own), tuple(x.shape[1:]), x is not first)  # the network's input gets no gradient
        found[key] += 1
        modules[key] = own

    units = list(units)
    x = first = example.to(dtype_and_device(units[0])[1])
    with ExitStack() as hooks:
        for unit in units:
            for module in (m for m in unit.modules() if isinstance(m, nn.Conv2d)):
                hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
            x = probe(unit, x.to(dtype_and_device(unit)[1]))
    return [
        Convolution(
            name=name, input_shape=shape, count=found[name, shape, inner],
            fp32_s=_seconds(module, shape, inner, torch.float32, device),
            bf16_s=_seconds(module, shape, inner, torch.bfloat16, device),
        )
        for (name, shape, inner), module in modules.items()
    ]  # fmt: skip


def _without_values(module: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution of the same shape on "meta": the module itself may have hooks, or weights made of others."""
    m = module
    how: list[Any] = [m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups]
    return nn.Conv2d(*how, bias=m.bias is not None, padding_mode=m.padding_mode, device="meta")  # type: ignore[misc]


def _seconds(
    module: nn.Conv2d, shape: tuple[int, ...], wants_input_gradient: bool, dtype: torch.dtype, device: torch.device
) -> float:
    own = module.to_empty(device=device).to(dtype).to(memory_format=torch.channels_last)
    for parameter in own.parameters():
        nn.init.constant_(parameter, 0.01)  # a draw would change the process's generator
    x = random_like(torch.empty(_IMAGES.get(device.type, 8), *shape, device=device, dtype=dtype))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(wants_input_gradient)
    inputs = [t for t in (x, *own.parameters()) if t.requires_grad]
    times = []
    for _ in range(1 + _REPEATS):
        start = now(x)
        y = own(x)
        torch.autograd.grad(y, inputs, y.detach())  # any error does
        times.append(now(x) - start)
    return min(times[1:])


def slow_in_bf16(units: Iterable[nn.Module], example: Tensor, device: torch.device) -> str:
    """Return a warning if some convolutions are clearly slower in bfloat16 than in float32, else ""; arguments as above."""
    found = convolutions(units, example, device)
    slow = [each for each in found if each.ratio > _SLOWER]
    if not slow:
        return ""
    worst = max(slow, key=lambda each: each.ratio)
    counts = [sum(each.count for each in which) for which in (slow, found)]
    return (
        f"bfloat16 is slow here: {counts[0]} of {counts[1]} convolutions take longer in it than in float32, the worst, "
        f"{worst.name} on {worst.input_shape}, {worst.ratio:.1f} times as long (torch {torch.__version__}); "
        "precision='fp32' may be faster"
    )
