"""Limits: what keeps a GPU from faster steps: its kernels, or Python, which launches them one by one."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.profiler import profile

from backlink_ray.benchmarks.loops import Given
from backlink_ray.benchmarks.rounds import interleaved, spread
from backlink_ray.benchmarks.step import kinds
from backlink_ray.local.engine import Engine
from backlink_ray.runs.results import Row
from backlink_ray.train.captured import WARM_UP

_TOP = 8  # kernels that a row names
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")  # as CUDA's own functions begin


def kernels(profiled: profile) -> Counter[str]:
    """Return the seconds that a GPU spent in each kernel or copy, by name; none if the profiler could not see."""
    found: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            found[event.name] += event.self_device_time_total / 1e6
    return found


def limit_rows(network: str, device: str, batch_size: int, engines: Sequence[Engine], steps: int) -> Iterator[Row]:
    """Yield what limits a step of BP, and of BackLink at l = 1 and K = 4 and 16.

    Columns: step_s; kernel_s, how much of it the GPU computes or copies, and busy, its share; launches of a step by Python,
    under the profiler; top_kernels, the share of kernel_s of the kernels that take the most.

    Args:
        device: cuda; on a CPU there are no kernels to see.
        steps: in each of three timed rounds, and under the profiler.
    """
    given = Given(network, batch_size, device)
    for kind in (kind for kind in kinds(network, engines) if kind.name in ("bp", "backlink")):
        run = kind.loop(given)
        run(WARM_UP + 1)
        (times,) = interleaved({kind: run}, device, steps, 3).values()
        with profile() as profiled:
            run(steps)
            if given.device.type == "cuda":
                torch.cuda.synchronize(given.device)
        found = spread("step_s", times)
        yield {**kind.columns(network), **found, "n": 3, **_seen(profiled, steps, found["step_s"])}


def _seen(profiled: profile, steps: int, step_s: float) -> Row:
    by_name = kernels(profiled)
    total = sum(by_name.values())
    launches = sum(event.name.startswith(_LAUNCHES) for event in profiled.events())
    return {
        "kernel_s": total / steps, "busy": total / steps / step_s, "launches": launches / steps,
        "top_kernels": [[name[:80], seconds / total] for name, seconds in by_name.most_common(_TOP)],
    }  # fmt: skip
