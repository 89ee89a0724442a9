"""Plan costs: the units of a run's network, measured where and as the run would compute them, and its messages."""

from dataclasses import replace

import torch

from backlink_ray.data.datasets import data_root
from backlink_ray.data.loader import Batches
from backlink_ray.importing import is_path, load
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.kinds import stand_ins
from backlink_ray.planning.simulation import MessageCost, Transfer
from backlink_ray.planning.units import unit_modules
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.job import build_modules, engine_of


def costs_of(config: RunConfig, device: torch.device, root: str, repeats: int) -> NetworkCosts:
    """Measure every unit of a network, and say which ones; of many that are alike in a row some stand for all.

    Args:
        config: of the run, with K = 1.
        device: where units are measured.
        root: folder of the data sets, or "".
        repeats: timed rounds.
    """
    data, engine = dataset_of(config, data_root(root)), engine_of(config)
    network, _ = build_modules(config, data.num_classes, data.image_size)
    dtype = dtype_and_device(network)[0]
    engine.check(device, dtype)
    head = load(config.head, "head") if is_path(config.head) else config.head
    modules = [module.to(device) for module in unit_modules(network, head)]
    batches = Batches(
        data.train, config.batch_size, seed=0, device=device, memory_format=engine.torch_format, dtype=dtype
    )
    stand_in = stand_ins(modules)
    measured = sorted({*stand_in})
    others = f" of {len(modules)}, the others being like these" * (len(measured) < len(modules))
    print(
        f"measuring {len(measured)} units{others}, of {config.network} at batch {config.batch_size} on {device}",
        flush=True,
    )
    costs = measure_costs([modules[k] for k in measured], batches, engine, repeats, (data.train, data.test))
    return costs.spread([measured.index(k) for k in stand_in])


def transfer_over(transport: str, address: str, device: str, latency_us: float, bandwidth_gib_s: float) -> Transfer:
    """Return what messages cost, and say what was measured of it.

    Args:
        transport: "queue", which costs nothing; "objectstore" or "collective", measured.
        address: of a Ray cluster; "" for this machine.
        device: of the stages: "cpu" or "cuda".
        latency_us, bandwidth_gib_s: known better than measured; 0 if not.
    """
    found = Transfer()
    if transport != "queue":
        from backlink_ray.benchmarks.links import measure_transfer  # threads do not need Ray

        start_once(address)
        found, machines = measure_transfer(transport, device)
        whole = [found.send, found.wire, found.receive]
        first_ms, mib_ms = (
            1e3 * sum(each.base_s for each in whole),
            1e3 * 2**20 * sum(each.s_per_byte for each in whole),
        )
        where = "between two machines" if machines > 1 else "on one machine"
        print(f"a message over {transport} {where}: {first_ms:.2f} ms and {mib_ms:.3f} ms a MiB", flush=True)
    base_s = 1e-6 * latency_us or found.wire.base_s
    s_per_byte = 1 / (2**30 * bandwidth_gib_s) if bandwidth_gib_s else found.wire.s_per_byte
    return replace(found, wire=MessageCost(base_s, s_per_byte))
