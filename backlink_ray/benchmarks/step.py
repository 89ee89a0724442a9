"""Step: the time, operations and memory of a training step, beside a plain loop's and beside what its arithmetic should take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from backlink_ray.benchmarks.elsewhere import Elsewhere
from backlink_ray.benchmarks.jobs import job_for, random_images, with_engine
from backlink_ray.benchmarks.loops import Given, beyond_bp, plain_loop, trainer_loop
from backlink_ray.benchmarks.rounds import Run, interleaved, ratio, spread
from backlink_ray.local.engine import Engine
from backlink_ray.measure.compiling import compile_seconds
from backlink_ray.measure.convolutions import convolutions
from backlink_ray.measure.metrics import reset_peak_memory
from backlink_ray.measure.operations import Operations
from backlink_ray.nets.build import build_network
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.train.captured import WARM_UP
from backlink_ray.train.executor import LocalExecutor


def images_per_s(config: RunConfig, device: str) -> float:
    """Measure one step of at most 64 images on one device, data included, after a warm-up step; takes seconds."""
    config = config.replace(batch_size=min(64, config.batch_size))
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        return config.batch_size / executor.train(1).seconds


# The yardstick: an ordinary training loop.
PLAIN = Engine(memory_format="contiguous")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the runs that are compared; the first columns of its row.

    Attributes:
        name: plain, the yardstick (on a CPU in a process of its own); hand, the same loop with an engine's settings; or a
            method, whose run is `Trainer.step`.
        engine, num_modules, propagation_length: how, K and l.
    """

    name: str
    engine: Engine
    num_modules: int = 1
    propagation_length: int = 0

    def loop(self, given: Given) -> Run:
        """Return the loop of this run."""
        if self.name in ("plain", "hand"):
            return plain_loop(given, self.engine, fused=self.name == "hand")
        return trainer_loop(given, self.config(given))

    def config(self, given: Given) -> RunConfig:
        """Return the configuration of a method's run."""
        own = {"num_modules": self.num_modules, "propagation_length": self.propagation_length, "alpha": 0.5}
        options = {"bp": {}, "gll": {"num_modules": self.num_modules}}.get(self.name, own)
        run = RunConfig(network=given.network, method=self.name, batch_size=len(given.labels), **options)
        return with_engine(run, self.engine)

    def columns(self, network: str) -> Row:
        """Return what is known of a run before it runs."""
        split = {"num_modules": self.num_modules, "propagation_length": self.propagation_length}
        return {"name": self.name, "network": network, **split, **vars(self.engine)}


def kinds(network: str, engines: Sequence[Engine]) -> list[Kind]:
    """Return what is compared: plain, and with every engine hand, BP, GLL at K = 4, and BackLink at l = 1 and K = 4 and 16."""
    found = [Kind(name="plain", engine=PLAIN)]
    for engine in engines:
        found += [Kind(name=name, engine=engine) for name in ("hand", "bp") if name == "bp" or not engine.graph]
        for name, k in (("gll", 4), ("backlink", 4), ("backlink", 16)):
            if k <= unit_count(network):
                found.append(Kind(name=name, engine=engine, num_modules=k, propagation_length=int(name == "backlink")))
    return found


def step_rows(
    network: str, device: str, batch_size: int, engines: Sequence[Engine], steps: int, rounds: int
) -> Iterator[Row]:
    """Time all `kinds` in turn, and yield a row for each.

    Its columns: step_s; the ratios of its time to plain's, to hand's at equal settings and, with auxiliary heads, to the
    arithmetic, which is BP's step and what goes beyond it; operations of a step; on a GPU the peak memory of a step;
    compile_s, the seconds of compiling. What one run has compiled, the later ones and inductor's cache on disk know already.
    Of what torch does not see there is no column: operations of compiled steps, all but the time of captured ones.

    Args:
        engines: how; a captured one (graph) only beside the same one that is not.
    """
    given = Given(network, batch_size, device)
    runs: dict[tuple[Kind, str], Run] = {}
    known: dict[Kind, Row] = {}
    for kind in kinds(network, engines):
        runs[kind, "step"], known[kind] = _opened(kind, given)
        if kind.num_modules > 1 and not kind.engine.graph:
            runs[kind, "beyond BP"] = beyond_bp(given, kind.config(given))
    times = interleaved(runs, device, steps, rounds)
    for kind, found in known.items():
        step = spread("step_s", times[kind, "step"])
        about = {**kind.columns(network), **step, "n": rounds, "images_per_s": batch_size / step["step_s"]}
        yield about | _ratios(kind, times) | found


def _ratios(kind: Kind, times: Mapping[tuple[Kind, str], Sequence[float]]) -> Row:
    """Return the ratios of a run's time to others' in the same round."""
    own, eager = times[kind, "step"], replace(kind.engine, graph=False)
    found = ratio("ratio_to_plain", own, times[Kind(name="plain", engine=PLAIN), "step"])
    if kind.name != "plain":
        found |= ratio("ratio_to_hand", own, times[Kind(name="hand", engine=eager), "step"])
    if (kind, "beyond BP") in times:
        both = (times[Kind(name="bp", engine=eager), "step"], times[kind, "beyond BP"])
        found |= ratio("ratio_to_arithmetic", own, [bp + beyond for bp, beyond in zip(*both, strict=True)])
    return found


def _opened(kind: Kind, given: Given) -> tuple[Run, Row]:
    """Return a run, and what its first steps show."""
    device, engine, found = given.device, kind.engine, dict[str, Any]()
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    compiled_s = compile_seconds()
    run = kind.loop(given)
    run(1)
    if engine.compile == "none" and not engine.graph:
        with Operations() as counted:
            run(1)
        found["operations"] = counted.total
    if device.type == "cuda" and not engine.graph:
        reset_peak_memory(device)
        run(1)
        found["peak_memory_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if engine.compile != "none":
        found["compile_s"] = compile_seconds() - compiled_s
    if engine.graph:
        run(WARM_UP + 1)  # captures
    if kind.name == "plain" and device.type == "cpu":  # this process keeps freed memory, see `allocator`
        run = partial(Elsewhere(partial(_loops, kind, given)).run, kind.name)
    return run, found


def _loops(kind: Kind, given: Given) -> dict[str, Run]:
    return {kind.name: kind.loop(given)}


def convolution_rows(network: str, device: str) -> Iterator[Row]:
    """Yield a row per distinct convolution of a network: seconds forward and backward, in float32 and in bfloat16."""
    built = build_network(network)
    for each in convolutions(built.units, built.example(1), torch.device(device)):
        shape = "x".join(map(str, each.input_shape))
        yield {
            "what": "convolution", "name": each.name, "network": network, "input_shape": shape, "count": each.count,
            "fp32_s": each.fp32_s, "bf16_s": each.bf16_s, "bf16_to_fp32": each.ratio,
        }  # fmt: skip
