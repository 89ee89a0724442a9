"""Trials that share a GPU, on a private Ray that is told it had one: Ray reserves it all the same, and torch finds none."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backlink_ray.benchmarks.gpu_share import Usage
from backlink_ray.data.datasets import load_dataset
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.tuning import sharing
from tests.users import write_project

# In a trial, the network waits until two trials have come this far, each with the GPU that Ray gave it.
MODEL = """

alone = network

def network(num_classes, image_size, seed):
    gpu, folder = os.environ.get("CUDA_VISIBLE_DEVICES", ""), Path(FOLDER)
    if gpu and os.environ.get("MEET"):
        (folder / f"{os.getpid()}.{gpu}").touch()
        until = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < until, "the other trial did not start"
            time.sleep(0.05)
    return alone(num_classes, image_size, seed)
"""
SCRIPT = """
import os
import backlink_ray as bl
import ray

os.environ["MEET"] = "1"
ray.init(address="local", include_dashboard=False, num_cpus=3, num_gpus=1, log_to_driver=False)
base = bl.RunConfig(network="shr_model:network", dataset="shr_data:images", num_modules=2, propagation_length=1,
    batch_size=20, epochs=1, validation_fraction=0.25, executor="local")
space = bl.Space(lr=(0.01, 0.1))
bl.tune(base, space, num_samples=2, runs_per_gpu=2)
bl.tune(base, space, num_samples=3, runs_per_gpu="auto")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_trials_run_on_one_gpu_at_once_and_what_cannot_be_measured_has_it_alone(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    write_project(tmp_path, "shr")
    model = tmp_path / "shr_model.py"
    model.write_text(
        "import os, time\nfrom pathlib import Path\n"
        + model.read_text()
        + MODEL.replace("FOLDER", repr(str(tmp_path / "met")))
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    first, second, *_ = sorted(path.suffix for path in (tmp_path / "met").iterdir())
    assert (first, second) == (".0", ".0")
    assert "runs per GPU: 2; as configured" in done.stderr
    assert "runs per GPU: 1; not measured: " in done.stderr
    rows = Results(tmp_path / "results" / "search").rows()
    assert [(row["reason"], row.get("runs_per_gpu")) for row in rows] == [("done", 2), ("done", 2), ("done", None)]


def test_the_largest_run_is_measured_with_the_cpus_of_the_machine_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "head", "Resources": {"CPU": 8.0}},
        {"NodeID": "here", "Resources": {"CPU": 6.0, "GPU": 2.0}},
    ]
    here = SimpleNamespace(get_node_id=lambda: "here")
    fake = SimpleNamespace(get=lambda x: x, nodes=lambda: nodes, get_runtime_context=lambda: here)
    monkeypatch.setattr(sharing, "ray", fake)
    usage = Usage(step_s=1.0, kernel_s=0.1, memory_mib=100.0, free_mib=80000.0)
    measured: list[RunConfig] = []
    monkeypatch.setattr(sharing, "measure", lambda run, _data: measured.append(run) or usage)
    runs = [RunConfig(network="resnet8", num_modules=2, propagation_length=1, batch_size=n) for n in (8, 32, 16)]
    count, why = sharing._measure_here(runs, {"cifar10-sample": load_dataset("cifar10-sample")})
    assert measured == [runs[1]]
    assert (count, why) == (3, "of resnet8 backlink K02-l1-a0.50-e0.50-s0, there are 3 CPUs for a GPU")
