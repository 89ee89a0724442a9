"""Engine: how the steps of a run are computed: the type of the numbers, the order of the pixels, compiled or not.

What is bfloat16 with precision bf16: what convolutions and matrix products of units, heads and helpers work on, and so the
activations and errors between units, also those that travel between stages. Everything else is float32: weights, gradients and
momentum, statistics of batch norms, logits and losses, and the parameter gradients that a link carries. Evaluation always
computes in float32, uncompiled, so a run's error is what `predict` and the trained network answer.
"""

import shutil
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
    """units: every unit through torch.compile, which takes a minute at the beginning."""
    graph: bool = flag(False)
    """On a GPU, executor local: capture the whole step as a CUDA graph; random draws then follow from the step alone."""


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
        if self.compile == "units" and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise ConfigError("compile='units' needs a C++ compiler, such as g++, on PATH; allowed without one: none")

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Compute inside `with` as every process does: without subnormal numbers, and with TF32 on a GPU only if asked for.

        Convolutions are 5 to 55 times slower on subnormal numbers, which weights and momentum become late in training.
        TF32 is a switch of the whole process, which stays as it is set here: other stages of it may still be computing.
        """
        before = flushes_subnormals()
        torch.set_flush_denormal(True)
        if device.type == "cuda":
            how = "tf32" if self.precision == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = how  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.set_flush_denormal(before)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a forward: with precision bf16, torch's autocast."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # no weight is used twice

    def widen(self, x: Tensor) -> Tensor:
        """Return what was computed with precision bf16 as float32; anything else as it is."""
        return x.float() if self.precision == "bf16" else x

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
    """Return the option to save for the backward what eager torch saves.

    By default inductor saves a ReLU's signs as booleans, which its kernels for CPUs write and read one by one: twice as slow.
    """
    from torch._functorch.partitioners import default_partition  # inductor takes a second to import
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    class SavingAsEager(CustomPartitionerFn):
        def __call__(self, gm: Any, joint_inputs: Any, **options: Any) -> Any:
            return default_partition(gm, joint_inputs, **{n: v for n, v in options.items() if n != "compiler"})

        def uuid(self) -> str:
            return "default_partition"

    return {"custom_partitioner_fn": SavingAsEager()}
