"""bl.run and bl.tune from a stranger's script of several files: every executor, on a private cluster and on a remote one."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import backlink_ray as bl
from backlink_ray.runs.results import Results
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.search import prepare
from tests.tracking.mlflow_store import Store
from tests.users import imported_from, write_project

SCRIPT = """
import json, os, sys
import backlink_ray as bl
import ray
from optuna.distributions import FloatDistribution

base = bl.RunConfig(
    network="str_model:network", dataset="str_data:images", method="str_method:Mine", num_modules=2, lr=0.05, batch_size=20,
    epochs=1, validation_fraction=0.25, options={"gamma": 0.5}, head="str_method:head", loss="str_method:loss",
    optimizer="torch.optim:AdamW",
)
runs = {name: bl.run(base, f"runs/{name}", executor=name)["weights_sha256"] for name in ("local", "threads")}
space = bl.Space(parameters={"gamma": FloatDistribution(0.0, 1.0), "weight_decay": FloatDistribution(1e-4, 0.1, log=True)})
found = bl.tune(base.replace(executor="ray"), space, num_samples=2, storage="results", first=[base])
(first,) = [found.folder / "runs" / row["run_id"] for row in found.rows if row["options.gamma"] == 0.5]
runs["trial"] = json.loads((first / "result.json").read_text())["weights_sha256"]
ray.shutdown()

os.environ["RAY_ADDRESS"] = sys.argv[1]
runs["remote"] = bl.run(base, "runs/remote", executor="ray")["weights_sha256"]
data = bl.load_dataset("str_data:images")
answers = bl.predict(bl.load_network(found.best_folder), data.test.prepared()).argmax(dim=1)
assert 100 * float((answers != data.test.labels).float().mean()) == found.best_result["test_error_pct"]
best = [found.best.options["gamma"], found.best_result["val_error_pct"], str(found.best_folder)]
print(json.dumps({"runs": runs, "best": best, "rows": [row["options.gamma"] for row in found.rows]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_strangers_script(tmp_path: Path, ray_here: None) -> None:
    """The modules lie beside the script and the process works elsewhere, so that nothing is found by accident."""
    import ray

    (tmp_path / "code").mkdir()
    (tmp_path / "work").mkdir()
    write_project(tmp_path / "code", "str")
    (tmp_path / "code" / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "code" / "script.py"), ray.get_runtime_context().gcs_address]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["runs"]) == {"local", "threads", "trial", "remote"}
    assert len(set(found["runs"].values())) == 1, found["runs"]
    assert "gamma=0.5 weight_decay=0.0001 ray  epoch 1/1" in done.stdout
    results = tmp_path / "work" / "results"
    rows = Results(results / "search").rows()
    assert sorted(found["rows"]) == sorted(row["options.gamma"] for row in rows)
    assert found["best"][1] == min(row["val_error_pct"] for row in rows)
    assert (Path(found["best"][2]) / "result.json").exists()
    store = Store(results / "mlflow.db")
    assert [status for _, status in store.runs()] == ["FINISHED"] * 2


def test_a_ray_that_was_started_without_the_users_folder_is_refused_with_the_way_out(
    tmp_path: Path, ray_here: None
) -> None:
    write_project(tmp_path, "ray")
    config = bl.RunConfig(
        network="ray_model:network", num_modules=2, propagation_length=1, batch_size=20, train_images=60, test_images=20
    )
    with (
        imported_from(tmp_path),
        pytest.raises(bl.ConfigError, match=r"cannot be imported by Ray's workers \(.*ray_model") as caught,
    ):
        bl.run(config, tmp_path / "run", executor="ray")
    assert f"runtime_env={{'py_modules': ['{tmp_path}/ray_model.py', '{tmp_path}/ray_parts.py']}}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_batch_norms_that_no_trial_could_have_are_refused(tmp_path: Path) -> None:
    how: dict[str, Any] = {"replicas": 2, "batch_norm": "whole", "head": "conv", "num_modules": 2, "batch_size": 10}
    for executor in ("local", "threads", "ray"):
        run = bl.RunConfig(executor=executor, train_images=100, test_images=100, **how)
        refused = pytest.raises(bl.ConfigError, match=r"that draw \(dropout\)") if executor != "ray" else nullcontext()
        with refused:
            prepare(Plan(base=run, runs=(run,)), tmp_path)


def test_a_transport_needs_trials_with_stages_on_ray(tmp_path: Path) -> None:
    how: dict[str, Any] = {"storage": tmp_path / "results", "options": bl.RunOptions(transport="collective")}
    with pytest.raises(
        bl.ConfigError, match="transport='collective' is between stages on Ray, and the executor is local"
    ):
        bl.tune(bl.RunConfig(executor="local"), bl.Space(), **how)
    assert not (tmp_path / "results").exists()
