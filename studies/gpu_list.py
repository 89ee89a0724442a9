"""What to run when a GPU is at hand, one command an item; results are appended to studies/results/*.jsonl.

  python studies/gpu_list.py correctness     float64 gradients against the CPU, executors against each other
  python studies/gpu_list.py memory          peak memory over K and l (paper, Fig. 7)
  python studies/gpu_list.py speed           images/s beside a plain eager loop
  python studies/gpu_list.py headline        the headline cells of Tables II and III at the full recipe, full CIFAR-10

Every item takes --smoke-test: the same in miniature, on any machine. Items 1 to 3 need torch alone.
"""

import argparse
import sys
from pathlib import Path

import torch

from backlink_ray import RunConfig
from backlink_ray.benchmarks import jobs as bench
from backlink_ray.paper.recipes import default_alpha

RESULTS = Path(__file__).parent / "results"


def correctness(device: str, smoke: bool) -> int:
    network, batch = ("resnet8", 8) if smoke else ("resnet32", 128)
    path = RESULTS / "correctness.jsonl"
    count = bench.write_rows(bench.gradient_errors(network, device), path, "correctness", device)
    return count + bench.write_rows(bench.executor_differences(network, device, batch), path, "correctness", device)


def memory(device: str, smoke: bool) -> int:
    networks, batch = (("resnet8",), 8) if smoke else (("resnet32", "resnet110"), 512)
    rows = (row for network in networks for row in bench.memory_rows(network, device, batch))
    return bench.write_rows(rows, RESULTS / "memory.jsonl", "memory", device)


def speed(device: str, smoke: bool) -> int:
    count = 0
    for network in ("resnet8",) if smoke else ("resnet32", "resnet110"):
        for precision in ("highest",) if smoke else ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = precision == "high"
            rows = bench.speed_rows(network, device, 8 if smoke else 512, 2 if smoke else 20, 1 if smoke else 5)
            what = f"speed, {'tf32' if precision == 'high' else 'fp32'}"
            count += bench.write_rows(rows, RESULTS / "speed.jsonl", what, device)
    return count


def headline_cells(smoke: bool) -> list[RunConfig]:
    base = RunConfig(network="resnet32", dataset="cifar10", executor="local")
    if smoke:
        base = RunConfig(network="resnet14", executor="local", train_images=64, test_images=32, batch_size=16, epochs=1)
    plan = [("fc", 4, (0, 1, 2, 3, 4)), ("fc", 16, (0, 1)), ("conv", 4, (0, 4)), ("conv", 16, (0, 1))]
    plan = [("fc", 4, (0, 1)), ("conv", 4, (1,))] if smoke else plan
    cells = [base.replace(method="bp", head=head) for head in ("fc", "conv")]
    for head, k, lengths in plan:
        cells += [_cell(base.replace(head=head), k, length) for length in lengths]
    return cells


def _cell(base: RunConfig, k: int, length: int) -> RunConfig:
    method = "backlink" if length else "gll"
    return base.replace(method=method, num_modules=k, propagation_length=length, alpha=default_alpha(length))


def headline(device: str, smoke: bool, seeds: int, data_root: str, runs: Path) -> int:
    from backlink_ray.data.datasets import data_root as root_of
    from backlink_ray.paper.cells import published_error_pct
    from backlink_ray.runs.data import dataset_of
    from backlink_ray.runs.options import RunOptions
    from backlink_ray.runs.runner import run

    def rows() -> bench.Iterator[bench.Row]:
        for seed in range(seeds):
            for cell in headline_cells(smoke):
                config = cell.replace(seed=seed)
                data = dataset_of(config, root_of(data_root))
                result = run(config, data, RunOptions(output_dir=runs / config.run_id))
                kept = {k: v for k, v in result.items() if isinstance(v, (int, float, str))}
                yield {"cell": f"{config.head}/{config.run_name}", "paper": published_error_pct(config), **kept}

    return bench.write_rows(rows(), RESULTS / "headline.jsonl", "headline", device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("item", choices=["correctness", "memory", "speed", "headline"])
    parser.add_argument("--smoke-test", action="store_true", help="in miniature, on a CPU too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, default=1, help="headline: seeds a cell")
    parser.add_argument("--data-root", default="", help="headline: folder of CIFAR-10")
    parser.add_argument(
        "--runs", type=Path, default=Path("results/gpu_list"), help="headline: run folders, which resume"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines")
    arguments = parser.parse_args()
    globals()["RESULTS"] = arguments.results
    if arguments.device == "cpu" and not arguments.smoke_test:
        print("error: no GPU here; give --smoke-test for the miniature, or --device", file=sys.stderr)
        return 2
    if arguments.item == "headline":
        headline(arguments.device, arguments.smoke_test, arguments.seeds, arguments.data_root, arguments.runs)
    else:
        {"correctness": correctness, "memory": memory, "speed": speed}[arguments.item](
            arguments.device, arguments.smoke_test
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
