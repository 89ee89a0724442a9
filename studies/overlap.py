"""How much faster stages are than one core: BackLink with K = 2, l = 1 and conv heads as a ratio to BP, on a CPU.

One torch thread a stage. Interleaved: every round times every executor once; the ratio is taken round by round.
"""

import argparse
import sys
from pathlib import Path

import torch

from backlink_ray.benchmarks import jobs as bench
from backlink_ray.pipeline.actors import RayExecutor, Resources
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.executors import start_ray
from backlink_ray.train.executor import Executor, Job


def on_ray(job: Job) -> Executor:
    return RayExecutor(job, Resources(cpus=0.5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds counted, after one that is thrown away")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of overlap.jsonl"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_ray()
    rows = bench.overlap_rows(
        arguments.network,
        arguments.batch_size,
        arguments.steps,
        arguments.rounds,
        [("threads", ThreadsExecutor), ("ray", on_ray)],
    )
    bench.write_rows(rows, arguments.results / "overlap.jsonl", "overlap", "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
