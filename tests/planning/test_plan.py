"""A plan's bytes are those of real steps; its times are sums of measured ones."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from backlink_ray.benchmarks.jobs import modules_of, random_images
from backlink_ray.benchmarks.memory import counted
from backlink_ray.cli import main
from backlink_ray.data.loader import Batches
from backlink_ray.local.module import StepSeed
from backlink_ray.local.split import split
from backlink_ray.measure.cost import SavedTensors, tensor_bytes
from backlink_ray.methods.base import Batch
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.state import MethodState
from backlink_ray.pipeline.exchange import CAPACITY
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.layout import Link, Stages
from backlink_ray.planning.plan import Machine, Planner
from backlink_ray.planning.simulation import MessageCost, Transfer
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_modules, engine_of

BATCH = 4
RUN = RunConfig(network="resnet14", head="conv", batch_size=BATCH, num_modules=3, alpha=0.5)
SIZES = (3, 2, 2)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def costs(request: pytest.FixtureRequest) -> NetworkCosts:
    return measured(request.param)


def measured(precision: str) -> NetworkCosts:
    engine = engine_of(RUN.replace(precision=precision))
    network, _ = build_modules(RUN, 10, 32)
    batches = Batches(random_images(BATCH), BATCH, seed=0, memory_format=engine.torch_format)
    return measure_costs(split(network, len(network.units), "conv"), batches, engine, repeats=1)


def test_bp_saves_what_is_counted_for_it() -> None:
    found = counted(RUN.replace(method="bp"))
    stages = Stages(costs := measured("fp32"), Link(length=0))
    assert stages.saved_bytes(0, costs.count) / 2**20 == found.saved_mib
    assert stages.memory_bytes(0, costs.count) / 2**20 == found.counted_mib


def test_a_stage_saves_what_a_plan_says() -> None:
    modules, method = modules_of(RUN.replace(method="gll", sizes=SIZES)), GLL()
    stages, stop, x = Stages(measured("fp32"), Link(length=0)), 0, torch.rand(BATCH, 3, 32, 32)
    x, labels, how = x.contiguous(memory_format=torch.channels_last), torch.zeros(BATCH, dtype=torch.int64), StepSeed()
    how.engine.arrange_weights(modules)
    for module in modules:
        stop += len(module.units)
        with SavedTensors([*module.parameters(), *module.buffers()]) as saved:
            body = method.forward_body(module, x, how)
            tail = method.forward_tail(module, body.output, how)
            method.local_backward(module, body, tail, Batch(x, labels, how), MethodState())
        assert saved.peak_bytes == stages.saved_bytes(stop - len(module.units), stop)
        x = tail.output


@pytest.mark.parametrize("link", [Link(length=length, kind=kind) for length in (0, 2) for kind in ("replica", "error")])
def test_memory_has_room_for_the_data_and_for_the_messages_that_may_wait(link: Link) -> None:
    costs = replace(measured("fp32"), data_bytes=1000, label_bytes=10)
    stages, bounds = Stages(costs, link), [(0, 3), (3, 5), (5, 7)]
    works = stages.works(SIZES)
    for k, (start, stop) in enumerate(bounds):
        messages = sum(works[k + i].sent(-i) for i in (-1, 1) if 0 <= k + i < 3)
        replica = start - link.replica_length if k else 0
        held = 3 * (costs.weight_bytes[replica:stop].sum() + costs.head_weight_bytes[stop - 1])
        held += costs.buffer_bytes[replica:stop].sum() + costs.head_buffer_bytes[stop - 1] + 10 + 1000 * (k == 0)
        assert stages.memory_bytes(start, stop) == held + stages.saved_bytes(replica, stop) + CAPACITY * messages


def test_a_balanced_cut_is_no_slower_than_equal_sizes_and_waits_are_what_is_left(costs: NetworkCosts) -> None:
    machine, link = Machine(devices=3), Link(length=1)
    by_time, by_count = (Planner(costs, machine, balance) for balance in ("time", "count"))
    fast, equal = (planner.predict(planner.sizes(3, link), link) for planner in (by_time, by_count))
    stages = Stages(costs, link)

    def slowest(sizes: tuple[int, ...]) -> float:
        bounds = list(pairwise([0, *torch.tensor(sizes).cumsum(0).tolist()]))
        return max(float(stages.busy_s(*each)) for each in bounds)

    assert slowest(fast.sizes) <= slowest(equal.sizes)
    assert fast.step_s >= slowest(fast.sizes) * (1 - 1e-9)
    assert max(fast.busy) == pytest.approx(slowest(fast.sizes) / fast.step_s)


def test_memory_that_is_not_there_is_said() -> None:
    costs = measured("fp32")
    shared = Planner(costs, Machine(devices=1, memory_mib=1.0)).predict(SIZES, Link(length=1))
    apart = Planner(costs, Machine(devices=3)).predict(SIZES, Link(length=1))
    assert not shared.fits
    assert apart.fits
    assert shared.memory_mib > apart.memory_mib


def test_replicas_need_their_own_devices_and_average_all_gradients() -> None:
    costs, link = measured("fp32"), Link(length=1)
    machine = Machine(devices=6, transfer=Transfer(wire=MessageCost(1.0)))
    one, two = (Planner(costs, machine, replicas=d, bp_s=2.0).predict(SIZES, link) for d in (1, 2))
    shared = Planner(costs, Machine(devices=3), replicas=2).predict(SIZES, link)
    assert (two.replicas, two.ratio_to_bp) == (2, two.step_s / 2)
    # Each stage waits for its local gradients and its replica's to come, and these wait for each other.
    assert two.step_s > one.step_s + 1
    assert shared.memory_mib == pytest.approx(2 * two.memory_mib)
    actions = [action.name for action in Stages(costs, link, replicas=2).works(SIZES)[1].actions]
    assert [name for name in actions if "average" in name] == ["average_local_backward", "average_replica_backward"]
    sent = Stages(costs, Link(length=0), replicas=2).works([costs.count])[0].sent_bytes["average_local_backward"]
    network, _ = build_modules(RUN.replace(method="bp", num_modules=1), 10, 32)
    held = [*network.parameters(), *(each for each in network.buffers() if each.is_floating_point())]
    counters = sum(8 for each in network.buffers() if not each.is_floating_point())
    assert sent == sum(map(tensor_bytes, held)) + 4 + counters


def test_the_command_prints_a_command_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--network",
        "resnet14",
        "--batch-size",
        "8",
        "--repeats",
        "1",
        "--num-modules",
        "1",
        "3",
        "--devices",
        "3",
    ]
    assert main(["plan", *small, "--json", str(tmp_path / "p.json"), "--picture", str(tmp_path / "p.png")]) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1].split()
    rows = json.loads((tmp_path / "p.json").read_text())
    assert {(row["num_modules"], row["propagation_length"]) for row in rows} == {(1, 0), (3, 0), (3, 1), (3, 2), (3, 3)}
    assert (tmp_path / "p.png").stat().st_size > 10_000
    command[command.index("--output-dir") + 1] = str(tmp_path / "run")
    assert main([*command[1:], "--train-images", "16", "--test-images", "8", "--epochs", "1"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-modules", "0"], "num_modules=(0,) is out of range; allowed 1 or more"),
        (["--memory-gib", "-1"], "memory_gib=-1.0 is out of range"),
        (["--num-modules", "7", "--propagation-length", "3"], "fits no cut of resnet14, which has 7 units"),
        (["--picture", "p.jpg"], "is not a PNG file"),
    ],
)
def test_what_cannot_be_planned_is_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--network", "resnet14", "--batch-size", "2", "--repeats", "1"]
    assert main(["plan", *small, *flags]) == 2
    assert said in capsys.readouterr().err
