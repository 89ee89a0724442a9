"""Engine: how the steps of a run are computed: the type of the numbers, the order of the pixels, compiled or not.

What is bfloat16 with precision bf16: what convolutions and matrix products of units, heads and helpers work on, and so the
activations and errors between units, also those that travel between stages. Everything else is float32: weights, gradients and
momentum, statistics of batch norms, logits and losses, and the parameter gradients that a link carries. Evaluation always
computes in float32, uncompiled, so a run's error is what `predict` and the trained network answer.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.measure.compiling import watch_compiling
from backlink_ray.options import check_options, choice, flag
from backlink_ray.provenance import flushes_subnormals


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How steps are computed."""

    memory_format: str = choice("channels_last", "contiguous")
    """Order in memory of images, feature maps and convolutions' weights: channels_last is the faster one."""
    precision: str = choice("fp32", "tf32", "bf16")
    """Of convolutions and matrix products: fp32; tf32 (GPUs only); bf16: in bfloat16, with float32 weights and losses."""
    compile: str = choice("none", "units")
    """units: every unit through torch.compile, which takes half a minute or more at the beginning."""
    graph: bool = flag(False)
    """On a GPU: the step as one CUDA graph, in a stage one between every two links; draws then follow from the step."""


@dataclass(frozen=True, kw_only=True)
class Engine(EngineOptions):
    """How steps are computed.

    Raises:
        ConfigError: an unknown name.
    """

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise ConfigError if steps of a network of that type cannot be computed like this on a device."""
        if self.precision == "tf32" and device.type != "cuda":
            raise ConfigError(f"precision='tf32' is for GPUs, and this run is on {device.type}; allowed: fp32, bf16")
        if self.graph and device.type != "cuda":
            raise ConfigError(
                f"graph=True captures the work of a GPU, and this run is on {device.type}; allowed: False"
            )
        if self.precision == "bf16" and dtype != torch.float32:
            raise ConfigError(f"precision='bf16' needs a network in float32, not in {dtype}; allowed: fp32")
        # As inductor chooses it.
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if self.compile == "units" and device.type == "cpu" and not shutil.which(compiler):
            raise ConfigError(
                f"compile='units' needs a C++ compiler, and {compiler} is not on PATH (another one: CXX); allowed without: none"
            )

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Compute inside `with` as every process does: without subnormal numbers, and with TF32 on a GPU only if asked for.

        Convolutions are 5 to 55 times slower on subnormal numbers, which weights and momentum become late in training.
        TF32 is a switch of the whole process, which stays as it is set here: other stages of it may still be computing.
        """
        before = flushes_subnormals()
        torch.set_flush_denormal(True)
        if device.type == "cuda":
            self._switch_tf32(self.precision == "tf32")
        try:
            yield
        finally:
            torch.set_flush_denormal(before)

    @staticmethod
    def _switch_tf32(on: bool) -> None:
        """Switch it in both of torch's ways, one after the other: where they differ, torch raises when it is asked for either."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        how, cudnn = "tf32" if on else "ieee", torch.backends.cudnn
        torch.backends.cuda.matmul.fp32_precision = cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = how  # type: ignore[attr-defined]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a forward: with precision bf16, torch's autocast."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # no weight is used twice

    def widen(self, x: Tensor) -> Tensor:
        """Return what was computed with precision bf16 as float32; anything else as it is."""
        return x.float() if self.precision == "bf16" else x

    def in_float32(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a loss that is computed without autocast, which takes the matrix products in it to bfloat16."""
        if self.precision != "bf16":
            return loss

        def computed(logits: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(logits.device.type, enabled=False):
                return loss(logits, labels)

        return computed

    def arrange(self, x: Tensor) -> Tensor:
        """Return x, if it has four dimensions, in this memory format."""
        return x.contiguous(memory_format=self.torch_format) if x.dim() == 4 else x

    def arrange_weights(self, modules: Iterable[nn.Module]) -> None:
        """Bring the convolutions' weights into this memory format, in place."""
        for parameter in (p for module in modules for p in module.parameters()):
            parameter.data = self.arrange(parameter.data)

    @property
    def torch_format(self) -> torch.memory_format:
        """Return the memory format as torch names it."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format


# In float32 and uncompiled, as evaluations are.
DEFAULT = Engine()


def compiled(unit: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a unit that torch.compile compiles when it is first called; unit and weights are the same, so are their names."""
    watch_compiling()
    # Units of one class share their code, which is compiled for each shape, and for graphs with and without input gradient.
    torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
    torch._functorch.config.donated_buffer = False  # else a graph cannot be retained for the next module's error
    if hasattr(unit, "_orig_mod"):
        return unit
    return torch.compile(unit, dynamic=False, options=_saving_as_eager() if device.type == "cpu" else {})


@cache
def _saving_as_eager() -> dict[str, Any]:
    from backlink_ray.local.partitioner import SavingAsEager

    return {"custom_partitioner_fn": SavingAsEager()}
