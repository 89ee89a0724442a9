"""Claims that rest on figures: costs, best values and descent, on made-up measurements."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest

from backlink_ray.benchmarks.jobs import propagation_lengths
from backlink_ray.paper.claims import claims, judge
from backlink_ray.paper.evidence import Evidence
from backlink_ray.paper.recipes import ALPHAS
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import columns_of, config_of
from tests.paper.findings import claim, judged, record
from tests.paper.rows import Row, row_of


def measured(config: RunConfig, hardware: str = "some GPU", **columns: float) -> Row:
    """Return a row of a measured figure."""
    device = "cpu" if "cores" in hardware else "cuda"
    run_id = "-".join((config.run_id, hardware.replace(" ", ""), config.executor))
    ended: Row = {"run_id": run_id, "status": "FINISHED", "device": device, "hardware": hardware}
    return {**columns_of(config), **ended, **columns}


BASE = RunConfig(network="resnet110", dataset="cifar10", head="conv", num_modules=2, propagation_length=1)


def figure_7(folder: Path, hardware: str, saved: float = 780.0, ks: Sequence[int] = (2, 4, 8, 16)) -> None:
    """Record the memory of both networks: 1000 MiB for BP, and one value for every K and l."""
    rows = []
    for network in ("resnet32", "resnet110"):
        base = BASE.replace(network=network)
        rows.append(measured(base.replace(method="bp"), hardware, memory_mib=1000.0))
        rows += [measured(base.replace(method="gll", num_modules=k), hardware, memory_mib=980.0 - saved) for k in ks]
        linked = [
            base.replace(num_modules=k, propagation_length=n) for k in ks for n in propagation_lengths(network, k)
        ]
        rows += [measured(config, hardware, memory_mib=1000.0 - saved) for config in linked]
    record(folder, "figure_7_memory", rows)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make storage folders: gpu, its copy, cpu, part (of the cases), and mixed (GPU with CPU and a smoke test)."""
    folder = tmp_path_factory.mktemp("memory")
    figure_7(folder / "gpu", "some GPU")
    figure_7(folder / "cpu", "2 cores")
    figure_7(folder / "part", "some GPU", ks=(2, 4))
    shutil.copytree(folder / "gpu", folder / "copy")
    shutil.copytree(folder / "gpu", folder / "mixed")
    figure_7(folder / "mixed", "2 cores", 500.0)
    figure_7(folder / "smoke", "another GPU", 500.0)
    shutil.copytree(folder / "smoke" / "figure_7_memory", folder / "mixed" / "figure_7_memory-smoke")
    return folder


@pytest.mark.parametrize(
    ("name", "verdict", "ours"),
    [
        ("memory-backlink-resnet110", "reproduced", "78.0 %"),  # the paper: 79 %
        ("memory-gll-resnet110", "reproduced", "80.0 %"),  # 81 %
        ("memory-overhead-resnet110", "reproduced", "10.0 %"),  # at most 12 %
        ("memory-overhead-mostly", "not reproduced", "0 of 26 cases below 5 %"),
    ],
)
def test_costs_are_those_of_a_gpu_whatever_else_was_measured(memory: Path, name: str, verdict: str, ours: str) -> None:
    for folders in (["gpu"], ["copy", "mixed"]):
        found = judge(claim(name), Evidence([memory / folder for folder in folders]))
        assert (found.verdict, found.ours) == (verdict, f"{ours}; at K = 2, 4, 8, 16")
    counted = judge(claim(name), Evidence([memory / "cpu"]))
    assert (counted.verdict, counted.ours) == ("not run yet", f"{found.ours}; not measured on a GPU")


def test_memory_waits_for_every_case(memory: Path) -> None:
    found = judge(claim("memory-gll-resnet110"), Evidence([memory / "part"]))
    assert (found.verdict, found.ours) == ("not run yet", "80.0 %; at K = 2, 4; 2 of 4 cases missing")


def test_the_cases_of_memory_are_those_that_exist() -> None:
    exist = [
        (n, k, length) for n in ("resnet32", "resnet110") for k in (2, 4, 8, 16) for length in propagation_lengths(n, k)
    ]
    for one in claims():
        if one["id"].startswith("memory-overhead") or one["id"] == "memory-backlink-resnet110":
            assert one["cases"] == sum(one["network"] in ("*", network) for network, _, _ in exist)
    assert claim("tradeoff-memory-length")["cases"] == sum((n, length) == ("resnet110", 4) for n, _, length in exist)


def figure_9(folder: Path, hardware: str, ratio: Mapping[tuple[str, int, int], float]) -> None:
    """Record times by method, K and l, relative to BP's."""
    base = BASE.replace(executor="ray")
    at = {key: base.replace(method=key[0], num_modules=key[1], propagation_length=key[2]) for key in ratio}
    record(folder, "figure_9_runtime", [measured(at[key], hardware, time_ratio=ratio[key]) for key in ratio])


@pytest.mark.parametrize(
    ("name", "hardware", "verdict", "ours"),
    [
        ("runtime-backlink", "some H100", "not reproduced", "46.0 %; at K = 2"),  # the paper: 52 %
        ("runtime-gll-p100", "Tesla P100", "not reproduced", "50.0 %; at K = 2"),  # 53 %
        ("runtime-gll-p100", "some H100", "not run yet", ""),
        ("runtime-gll-v100", "Tesla V100", "reproduced", "50.0 %; at K = 2"),  # 23 %
        ("runtime-overhead-v100", "Tesla V100", "reproduced", "1 of 1 cases below 10 %; at K = 2"),
        ("runtime-overhead-p100", "Tesla P100", "not reproduced", "0 of 1 cases below 5 %; at K = 2"),
        ("runtime-infopro", "some H100", "not run yet", ""),
        ("runtime-length", "some H100", "not run yet", ""),
    ],
)
def test_times_are_compared_on_the_hardware_that_the_claim_names(
    tmp_path: Path, name: str, hardware: str, verdict: str, ours: str
) -> None:
    figure_9(tmp_path, hardware, {("gll", 2, 0): 0.50, ("backlink", 2, 1): 0.54})
    found = judge(claim(name), Evidence([tmp_path]))
    assert (found.verdict, found.ours) == (verdict, ours)


TIMES = {
    ("gll", 2, 0): 0.75, ("gll", 4, 0): 0.74, ("infopro", 2, 0): 0.82, ("infopro", 4, 0): 0.54,
    ("backlink", 2, 1): 0.80, ("backlink", 2, 2): 0.80, ("backlink", 2, 4): 0.82,
    ("backlink", 4, 1): 0.56, ("backlink", 4, 2): 0.58, ("backlink", 4, 4): 0.60,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "verdict", "ours"),
    [
        ("runtime-infopro", "not reproduced", "2 of 6 cases below 0 %; at K = 2, 4"),
        ("runtime-length", "not reproduced", "3 of 4 cases below 6 %; at K = 2, 4"),  # 0.60 is 7.1 % over 0.56
        ("tradeoff-time-length", "not reproduced", "1 of 2 cases below 6 %; at K = 2, 4"),
        ("tradeoff-time-per-doubling", "reproduced", "22.0 %; at K = 4"),  # from 20 to 42; the paper: 23
        (
            "runtime-v100-devices",
            "not judged",
            "K = 2: 25.0 %, K = 4: 26.0 %; no number to compare with, see figure_9_runtime.png",
        ),
    ],
)
def test_times_of_lengths_of_methods_and_of_twice_the_modules(
    tmp_path: Path, name: str, verdict: str, ours: str
) -> None:
    figure_9(tmp_path, "Tesla V100", TIMES)
    found = judge(claim(name), Evidence([tmp_path]))
    assert (found.verdict, found.ours) == (verdict, ours)


def test_memory_of_lengths_and_of_twice_the_modules(tmp_path: Path) -> None:
    mib = {(2, 1): 700.0, (2, 2): 710.0, (2, 4): 712.0, (4, 1): 480.0, (4, 2): 495.0, (4, 4): 504.0}
    at = {key: BASE.replace(num_modules=key[0], propagation_length=key[1]) for key in mib}
    rows = [measured(at[key], memory_mib=mib[key]) for key in mib]
    rows.append(measured(BASE.replace(method="bp"), memory_mib=1000.0))
    found = judged(tmp_path, "tradeoff-memory-per-doubling", rows, "figure_7_memory")
    # From 29.0 % of BP's to 50.5 %; the paper: 23.
    assert (found.verdict, found.ours) == ("reproduced", "21.5 %; at K = 4")
    longer = judge(claim("tradeoff-memory-length"), Evidence([tmp_path]))
    assert (longer.verdict, longer.ours) == ("not run yet", "5.0 %; at K = 2, 4; 1 of 3 cases missing")


def alphas(best: Mapping[int, float], seeds: int = 1) -> list[Row]:
    """Return rows of figure 4 at l = 4, whose error grows with the distance from each K's best alpha; alpha = 1 is GLL."""
    base = RunConfig(network="resnet32", dataset="cifar10", propagation_length=4)
    found = []
    for k, alpha, seed in product(best, ALPHAS, range(seeds)):
        of = base.replace(num_modules=k, seed=seed, **({"method": "gll"} if alpha == 1 else {"alpha": alpha}))
        found.append(row_of(of, 10 + abs(alpha - best[k])))
    return found


def test_the_best_alpha_of_each_k(tmp_path: Path) -> None:
    rows = alphas({2: 0.25, 4: 0.0}, seeds=2)
    found = judged(tmp_path / "both", "best-alpha", rows, "figure_4_alpha")
    assert (found.verdict, found.ours) == ("reproduced", "holds in 2 of 2 lines run, 2 in all; seeds per point: 2")
    high = judged(tmp_path / "high", "best-alpha", alphas({2: 0.25, 4: 1.0}), "figure_4_alpha")
    assert (high.verdict, high.ours) == (
        "not reproduced",
        "holds in 1 of 2 lines run, 2 in all; seeds per point: 1; K = 4, l = 4: 1",
    )
    part = judged(tmp_path / "part", "best-alpha", rows[:-1], "figure_4_alpha")
    assert (part.verdict, part.ours) == ("reproduced", "holds in 2 of 2 lines run, 2 in all; seeds per point: 1")
    one = judged(tmp_path / "one", "best-alpha", rows[:-2], "figure_4_alpha")
    assert (one.verdict, one.ours) == ("not run yet", "holds in 1 of 1 lines run, 2 in all; seeds per point: 2")
    smaller = [row_of(config_of(row).replace(epochs=8), 1.0) for row in rows]
    assert judged(tmp_path / "small", "best-alpha", smaller, "figure_4_alpha").ours == ""


def test_the_best_learning_rate_of_most_lines_and_a_run_that_diverged(tmp_path: Path) -> None:
    base = RunConfig(network="resnet32", dataset="cifar10")
    rows = []
    for k, length, lr in product((2, 4), range(5), claim("best-lr")["values"]):
        of = base.replace(num_modules=k, propagation_length=length, lr=lr, method="backlink" if length else "gll")
        best = 0.1 if (k, length) == (4, 4) else 0.5
        rows.append(row_of(of, 10 + abs(lr - best)))
    rows[-1] = {name: value for name, value in rows[-1].items() if "error" not in name} | {"status": "FAILED"}
    found = judged(tmp_path, "best-lr", rows, "figure_5_lr")
    assert (found.verdict, found.ours) == (
        "reproduced",
        "holds in 9 of 10 lines run, 10 in all; seeds per point: 1; K = 4, l = 4: 0.1",
    )


def descents(constant: float, epochs: int = 200) -> list[Row]:
    base = RunConfig(network="resnet32", dataset="cifar10")
    runs = [
        base.replace(num_modules=k, propagation_length=length, alpha=alpha)
        for k, length, alpha in product((2, 4), (1, 4), (0.0, 0.25, 0.5, 0.75))
    ]
    return [
        measured(run, epoch=epoch, constant=constant, norm_ratio=1.5) | {"run_id": f"{run.run_id}-e{epoch}"}
        for run, epoch in product(runs, (0, epochs))
    ]


@pytest.mark.parametrize(
    ("constant", "epochs", "verdict", "whole"),
    [(0.25, 200, "reproduced", 16), (0.25, 199, "not run yet", 0), (-0.25, 199, "not reproduced", 0)],
)
def test_the_gradient_points_downhill_in_every_epoch_of_every_run(
    tmp_path: Path, constant: float, epochs: int, verdict: str, whole: int
) -> None:
    found = judged(tmp_path, "descent", descents(constant, epochs), "figure_3_descent")
    assert found.verdict == verdict
    assert found.ours == f"constant at least {constant}, norm ratio at most 1.5; {whole} of 16 runs complete"
