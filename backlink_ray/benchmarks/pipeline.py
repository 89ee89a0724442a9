"""Pipeline: the step of local learning's pipelines beside BP's and beside what a user would pick instead, on the same cores."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from backlink_ray.allocator import release_memory
from backlink_ray.benchmarks.alone import Alone
from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.rivals import SCHEDULES, Task, data_parallel, pipelines
from backlink_ray.benchmarks.rounds import Run, ratio, spread
from backlink_ray.data.loader import Batches
from backlink_ray.errors import ConfigError
from backlink_ray.nets.build import build_network
from backlink_ray.output import say
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.layout import Link, Stages
from backlink_ray.planning.plan import MIB, Machine, Planner
from backlink_ray.planning.simulation import Transfer
from backlink_ray.planning.units import unit_modules
from backlink_ray.processes import usable_cores
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import engine_of
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import ChunkReport, Executor, Job, LocalExecutor

# Steps before a turn is timed: the first one finds its memory, and makes the momentum of a pipeline that has just been built.
WARM_UP = 1
COLUMNS = (
    "name", "network", "num_modules", "propagation_length", "transport", "balance", "sizes", "step_s", "ratio_to_bp",
    "fraction_of_bound", "exposed_link_s", "predicted_s", "predicted_ratio", "device_mib", "bound_s", "machines",
    "hop_4mib_s", "n",
)  # fmt: skip


class Setting(NamedTuple):
    """Of a pipeline of ours: K; how it is cut, as in `Planner`; l, where 0 is GLL."""

    num_modules: int
    balance: str
    length: int

    def __str__(self) -> str:
        return f"K={self.num_modules} l={self.length} by {self.balance}"


def pipeline_rows(
    base: RunConfig,
    settings: Sequence[Setting],
    transports: Sequence[str],
    rivals: Sequence[str],
    turns: tuple[int, int],
) -> Iterator[Row]:
    """Time BP, rivals and our pipelines in turn on this machine's cores, one thread a stage, and yield a row for each.

    Where $RAY_ADDRESS names a cluster, the stages of ours on Ray are spread over its machines, and DDP's workers are where Ray
    puts them; all else runs on this one, and what it takes is neither bound nor prediction there.

    Of its COLUMNS, ratio_to_bp and fraction_of_bound are ratios to times of the same round: BP's, and `bound_s`;
    exposed_link_s is what the stage that waits least waits and exchanges in a step, and hop_4mib_s what a message of 4 MiB takes,
    between machines if there are several; predicted_s is what plan predicts, and
    predicted_ratio that over what was measured; device_mib is what plan predicts for the device that has most in memory, with
    one for each stage or replica.

    Args:
        base: network, heads, batch and engine.
        settings: of ours; one that fits no cut is left out, which is said.
        transports: of ours: "queue" between threads; "objectstore" and "collective" between Ray actors.
        rivals: of `SCHEDULES`, and "ddp"; their pipelines are cut so that their slowest stage is as fast as can be, and left out
            where the network has too few units.
        turns: steps per round, which begins and ends with an empty pipeline: few of them show mostly how it fills; and rounds,
            after one that does not count.

    Raises:
        ConfigError: no setting fits.
    """
    base = base.replace(final_head="native")  # the same network for all
    plans, (steps, rounds) = Plans(base), turns
    cuts = {setting: sizes for setting in settings if (sizes := plans.sizes(setting))}
    if not cuts:
        raise ConfigError(
            f"none of {', '.join(map(str, settings))} fits {base.network} with {base.head} heads; give a smaller K or l"
        )
    _say_left_out([str(setting) for setting in settings if setting not in cuts], base)
    counts = sorted({setting.num_modules for setting in settings})
    measured, done = list[Timed | Ours](), 0
    try:
        with ExitStack() as stack:
            measured.append(bp := stack.enter_context(_bp(base, plans)))
            for k in counts:
                measured += stack.enter_context(_rivals(base, k, rivals, plans))
            ways = stack.enter_context(_ways(transports, max(counts)))
            measured += [_ours(base, ways, steps, plans, *cut) for cut in cuts.items()]
            for turn in range(1 + rounds):
                for each in measured:
                    each.take(steps)
                    release_memory()
                done = turn
    finally:  # the rounds before one that fails count, too
        for each in measured if done else []:
            for row in each.rows(bp.step_s[:done]):
                yield {**dict.fromkeys(COLUMNS), "network": base.network, "n": done, **row}


def _say_left_out(names: Sequence[str], base: RunConfig) -> None:
    if names:
        say(f"left out, since {base.network} has too few units or no such heads: {', '.join(names)}")


class Timed:
    """A run whose turns are timed; the first of them does not count.

    Args:
        run: takes the steps; asked for none, it gives back the memory that it will not need until its next turn.
        known: columns of its row.
    """

    def __init__(self, run: Run, known: Row) -> None:
        self._run, self._known, self._seconds = run, known, list[float]()

    def take(self, steps: int) -> None:
        """Take a turn."""
        self._run(WARM_UP)
        start = time.perf_counter()
        self._run(steps)
        self._seconds.append((time.perf_counter() - start) / steps)
        self._run(0)

    @property
    def step_s(self) -> list[float]:
        """Return the seconds of a step, of every turn."""
        return self._seconds[1:]

    def rows(self, bp_s: Sequence[float]) -> Iterator[Row]:
        """Yield its row, beside BP's seconds, of so many turns."""
        yield self._known | _compared(self.step_s[: len(bp_s)], bp_s, self._known.get("predicted_s"))


class Pool(StagePool):
    """A pool in which no process stands by: it would start in somebody's turn."""

    def _has_room(self) -> bool:
        return False


class Way(NamedTuple):
    """How messages of ours travel: what builds such a pipeline, what its messages cost, and between how many machines."""

    build: Callable[[Job], Executor]
    transfer: Transfer
    machines: int


class Ours:
    """The pipelines of one setting, and its stages alone. A pipeline is built for its turn: then its processes are another one's.

    Args:
        job: of the stages alone, and of the pipelines.
        ways: of the pipelines, by transport.
        predicted_s: of each.
        known: columns of all their rows.
    """

    def __init__(
        self, job: Callable[[], Job], ways: Mapping[str, Way], predicted_s: Mapping[str, float | None], known: Row
    ) -> None:
        self._alone, self._job = Alone(job()), job()
        self._ways, self._predicted_s, self._known = ways, predicted_s, known
        self._reports: dict[str, list[ChunkReport]] = {transport: [] for transport in ways}

    def take(self, steps: int) -> None:
        """Take a turn of each."""
        self._alone.take(steps)
        for transport, way in self._ways.items():
            executor = way.build(self._job.with_parts(transport=transport))
            try:
                executor.train(WARM_UP)
                self._reports[transport].append(executor.train(steps))
            finally:
                executor.close(failed=True)  # what it has learned is of no use

    def rows(self, bp_s: Sequence[float]) -> Iterator[Row]:
        """Yield a row for each transport, beside BP's seconds, of so many turns."""
        turns = slice(1, 1 + len(bp_s))
        bound_s = self._alone.bounds_s[turns]
        for transport, reports in self._reports.items():
            step_s = [report.seconds / report.num_steps for report in reports[turns]]
            way = self._ways[transport]
            exposed_s = [min(report.link_s) / report.num_steps for report in reports[turns]]
            yield {
                **self._known, "transport": transport, **_compared(step_s, bp_s, self._predicted_s[transport]),
                **(ratio("fraction_of_bound", bound_s, step_s) if way.machines == 1 else {}), **spread("bound_s", bound_s),
                **spread("exposed_link_s", exposed_s), "machines": way.machines, "hop_4mib_s": way.transfer.hop_s(4 * MIB),
            }  # fmt: skip


def _compared(step_s: Sequence[float], bp_s: Sequence[float], predicted_s: float | None) -> Row:
    found = spread("step_s", step_s) | ratio("ratio_to_bp", step_s, bp_s)
    predicted_ratio = predicted_s / found["step_s"] if predicted_s else None
    return {**found, "predicted_s": predicted_s, "predicted_ratio": predicted_ratio}


class Plans:
    """What plan says of a network on this machine's cores, from one measurement of its units.

    Args:
        base: as of `pipeline_rows`.
    """

    def __init__(self, base: RunConfig) -> None:
        engine, modules = engine_of(base), unit_modules(build_network(base.network), base.head, final_head="native")
        batches = Batches(
            random_images(2 * base.batch_size), base.batch_size, seed=0, memory_format=engine.torch_format
        )
        self._costs = measure_costs(modules, batches, engine)
        self._machine = Machine(devices=usable_cores(), shares_cores=True)
        self.bp_s = Planner(self._costs, self._machine).bp_s

    def sizes(self, setting: Setting) -> list[int]:
        """Return the sizes of a pipeline of ours; none if there is no such cut."""
        planner = Planner(self._costs, self._machine, setting.balance)
        return planner.sizes(setting.num_modules, Link(length=setting.length))

    def step_s(self, sizes: Sequence[int], length: int, transfer: Transfer, steps: int) -> float:
        """Return what is predicted for a step of a pipeline of ours, of so many that begin and end with an empty one."""
        planner = Planner(self._costs, replace(self._machine, transfer=transfer))
        return planner.predict(sizes, Link(length=length), steps).step_s

    def bp_sizes(self, num_stages: int) -> list[int]:
        """Return how a pipeline of BP is cut, which has no head but the last; none if the network has too few units."""
        return Planner(bp_costs(self._costs), self._machine).sizes(num_stages, Link(length=0))

    def fullest_mib(self, sizes: Sequence[int], length: int) -> float:
        """Return the memory of the device that has most, with one for each stage of a pipeline of ours."""
        return max(Stages(self._costs, Link(length=length)).memory_of(sizes)) / MIB

    def copied_mib(self, replicas: int) -> float:
        """Return the memory of a device with a copy of the whole network, which it trains on its part of the batch."""
        whole, units = Stages(self._costs, Link(length=0)), (0, self._costs.count)
        saved = float(whole.saved_bytes(*units))
        return (float(whole.memory_bytes(*units)) - saved + saved / replicas) / MIB


def bp_costs(costs: NetworkCosts) -> NetworkCosts:
    """Return costs with which GLL's stages are those of BP: without heads, and each with the error of its input."""
    others, every = np.zeros(costs.count - 1), 0 * costs.input_error_s
    head_s, head_weights = (np.append(others, each[-1]) for each in (costs.head_s, costs.head_weight_bytes))
    return replace(costs, head_s=head_s, head_weight_bytes=head_weights, input_error_s=every)


@contextmanager
def _bp(base: RunConfig, plans: Plans) -> Iterator[Timed]:
    job = job_for(base.replace(method="bp"), random_images(2 * base.batch_size), "cpu")
    with LocalExecutor(job) as executor:
        known = {"name": "bp", "num_modules": 1, "predicted_s": plans.bp_s, "device_mib": plans.copied_mib(1)}
        yield Timed(lambda steps: executor.train(steps) if steps else None, known)


@contextmanager
def _rivals(base: RunConfig, count: int, rivals: Sequence[str], plans: Plans) -> Iterator[list[Timed]]:
    """Yield the rivals that there can be, in their order, each in so many processes."""
    task = Task(base.network, base.batch_size, engine_of(base))
    stages = {name: count * SCHEDULES[name].stages for name in rivals if name in SCHEDULES}
    cuts = {name: sizes for name, number in stages.items() if (sizes := plans.bp_sizes(number))}
    _say_left_out([f"{name} K={count}" for name in stages if name not in cuts], base)
    known: dict[str, Row] = {name: {"balance": "time", "sizes": sizes} for name, sizes in cuts.items()}
    with ExitStack() as stack:
        runs = stack.enter_context(pipelines(task, count, cuts)) if cuts else {}
        if "ddp" in rivals:
            start_once()
            runs["ddp"] = stack.enter_context(data_parallel(task, count))
            known["ddp"] = {"device_mib": plans.copied_mib(count)}
        yield [
            Timed(runs[name], {"name": name, "num_modules": count, **known[name]}) for name in rivals if name in runs
        ]


def _ours(
    base: RunConfig, ways: Mapping[str, Way], steps: int, plans: Plans, setting: Setting, sizes: Sequence[int]
) -> Ours:
    k, balance, length = setting
    own = {"method": "backlink", "propagation_length": length, "alpha": 0.5} if length else {"method": "gll"}
    config = base.replace(**own, num_modules=k, sizes=tuple(sizes))
    known = {
        "name": config.method, "num_modules": k, "propagation_length": length, "balance": balance, "sizes": list(sizes),
        "device_mib": plans.fullest_mib(sizes, length),
    }  # fmt: skip
    predicted_s = {
        transport: plans.step_s(sizes, length, way.transfer, steps) if way.machines == 1 else None
        for transport, way in ways.items()
    }
    return Ours(lambda: job_for(config, random_images(2 * base.batch_size), "cpu"), ways, predicted_s, known)


@contextmanager
def _ways(transports: Sequence[str], most_stages: int) -> Iterator[dict[str, Way]]:
    """Yield the ways of our messages, by transport; all pipelines between Ray actors live in the same processes, in turn."""
    found = dict.fromkeys({*transports} & {"queue"}, Way(ThreadsExecutor, Transfer(), 1))
    if not (over_ray := [transport for transport in transports if transport != "queue"]):
        yield found
        return
    start_once()
    from ray.util.placement_group import placement_group, remove_placement_group  # threads do not need it

    from backlink_ray.benchmarks.links import measure_transfer
    from backlink_ray.pipeline.actors import RayExecutor

    each = StageResources(cpus_per_stage=0.01, gpus_per_stage=0)  # all share the cores
    links = {transport: measure_transfer(transport) for transport in over_ray}
    group = placement_group(each.bundles(most_stages), strategy="SPREAD")
    try:
        with Pool(each, group) as pool:
            build = partial(RayExecutor, pool=pool)
            yield found | {transport: Way(build, *link) for transport, link in links.items()}
    finally:
        remove_placement_group(group)
