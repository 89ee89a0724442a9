"""A study folder: one study, one process at a time; and the cluster that a trial needs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import BusyError, ClusterError, ConfigError, NotFiniteError, StageError, StorageError
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.runs.results import columns_of
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.callback import run_params
from backlink_ray.tuning.folder import MANIFEST, open_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import MEASURED, ClusterResources, read_runs_per_gpu
from backlink_ray.tuning.sharing import with_sharing
from backlink_ray.tuning.space import Space
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.trial import FAILURE, IS_FULL, may_pass, trial
from backlink_ray.tuning.tuner import run_trials
from tests.users import imported_from, write_project

PLAN = Plan(base=RunConfig(lr=0.3), num_samples=1)


def opened(folder: Path, plan: Plan = PLAN, resume: str = "auto") -> None:
    """Open a study folder, which makes it or checks it, and leave it again."""
    with open_study_folder(folder, "study", plan, resume):
        pass


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with (
        open_study_folder(folder, "study", PLAN, "auto"),
        pytest.raises(BusyError, match="^storage folder .* is in use by another process"),
    ):
        opened(folder)
    opened(folder, resume="must")


def test_a_new_field_of_a_later_version_refuses_no_study(tmp_path: Path) -> None:
    opened(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["base"] == {"lr": 0.3}  # only what is not a default
    opened(tmp_path, Plan(base=PLAN.base.replace(executor="ray")), "must")  # nor what changes no result


def test_another_study_is_refused_with_the_differences(tmp_path: Path) -> None:
    opened(tmp_path)
    told = "epochs is the default there and 3 here, lr is 0.3 there and the default here"
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, Plan(base=RunConfig(epochs=3)))


def test_a_search_whose_values_have_changed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    def plan(**space: Any) -> Plan:
        return Plan(base=PLAN.base, space=Space(**{"alphas": (0.25, 0.5), **space}))

    opened(tmp_path, plan(lr=(0.1, 0.2)))
    opened(tmp_path, plan(lr=(0.05, 1.0)), "must")  # Optuna accepts other ranges
    with pytest.raises(ConfigError, match=r"the search of lr is a range there and the default here"):
        opened(tmp_path, plan())
    other = plan(alphas=(0.5,), lr=(0.1, 0.2))
    told = (
        r"alpha is \[0.25, 0.5\] there and \[0.5\] here\).*of a search, only ranges and the number of trials may change"
    )
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, other)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({name: manifest[name] for name in manifest.keys() - {"space"}}))
    opened(tmp_path, other, "must")  # of version 0.4.0, which recorded none


def test_a_folder_of_another_format_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"study": "study", "base": {"lr": 0.3}, "metric": "val_error_pct"}))
    with pytest.raises(ConfigError, match=r"another version of backlink_ray \(format 1, here 2\).*; give another"):
        opened(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"format": 2, "base": 3}'])
def test_a_damaged_manifest_is_one_line_with_the_command_that_mends_it(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "a study"
    folder.mkdir()
    (folder / MANIFEST).write_text(damage)
    with pytest.raises(StorageError) as caught:
        opened(folder)
    fix = f"fix: mv '{folder}' '{folder}-damaged', and start again, from the beginning, or restore it"
    assert str(caught.value).startswith(f"{folder / MANIFEST} is damaged (")
    assert str(caught.value).endswith(fix)
    subprocess.run(fix.removeprefix("fix: ").partition(",")[0], shell=True, check=True)
    opened(folder)


def test_a_folder_made_under_any_umask_is_taken_again(tmp_path: Path) -> None:
    mask, left = os.umask(0), tmp_path / "results" / "study" / ".table.md.0123456789ab.tmp"
    try:
        for resume in ("auto", "must"):
            with open_study_folder(tmp_path / "results" / "study", "study", PLAN, resume):
                (tmp_path / "results" / "study" / "optuna.db").touch()
                assert not left.exists()
            left.touch(0o600)
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o022 for path in tmp_path.rglob("*") if path != left] == [0] * 5


def test_what_another_makes_of_a_folder_before_it_is_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_folder(folder: Path, _flag: str) -> None:
        folder.mkdir()
        folder.chmod(0o777)

    monkeypatch.setattr("backlink_ray.tuning.folder.make_folder", make_folder)
    with pytest.raises(ConfigError, match="study is writable for everybody"):
        opened(tmp_path / "study")
    assert not (tmp_path / "study" / MANIFEST).exists()


def test_a_folder_that_only_another_may_read_is_refused_in_one_line(tmp_path: Path) -> None:
    folder, user = tmp_path / "storage" / "study", os.geteuid()
    folder.mkdir(parents=True)
    folder.parent.chmod(0)
    os.seteuid(user or 65534)
    try:
        with pytest.raises(
            ConfigError, match=r"cannot be read \(Permission denied: .*; give a --storage-path of your own$"
        ):
            opened(folder)
    finally:
        os.seteuid(user)
        folder.parent.chmod(0o755)


def test_a_run_that_is_chosen_again_counts_as_a_trial(tmp_path: Path) -> None:
    plan = Plan(base=PLAN.base, space=Space(alphas=(0.5,)), num_samples=3)
    study = Study("study", plan, tmp_path, NoTracker())
    for left in (2, 1, 0, 0):
        study.results.append({"run_id": plan.base.run_id, "status": "FINISHED"})
        assert study.left() == study.missing() == left


def test_results_on_other_data_are_not_added_to(tmp_path: Path) -> None:
    study = Study("study", PLAN, tmp_path, NoTracker())
    study.results.append(
        {**columns_of(PLAN.base), "run_id": PLAN.base.run_id, "status": "FINISHED", "dataset_digest": "0123"}
    )
    with pytest.raises(ConfigError, match=r"results on other data named 'cifar10-sample' \(digest 0123, here \w+\)"):
        run_trials(study, {"cifar10-sample": load_dataset("cifar10-sample")})


def test_a_file_that_changes_while_a_study_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "std_loss.py").write_text("def loss(logits, labels): ...")
    files = {("loss", "std_loss:loss"): "0123"}
    with imported_from(tmp_path):
        report = trial({}, PLAN, ClusterResources(num_gpus=0, num_cpus=1), {}, tmp_path / "runs", files, DEFAULT)
    assert report is not None
    assert report[FAILURE].startswith("loss='std_loss:loss' has changed since the study was started; restore the file")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("executor", "transport"), [("ray", "collective"), ("local", "auto"), ("threads", "auto")])
def test_a_transport_is_for_the_trials_that_have_stages_on_ray(
    executor: str, transport: str, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def told(*_: object, options: RunOptions, **__: object) -> None:
        raise ConfigError(options.transport)

    monkeypatch.setattr("backlink_ray.tuning.trial.run", told)
    plan, data = Plan(base=PLAN.base.replace(executor=executor)), ray.put(None)
    cluster, options = ClusterResources(num_gpus=0, num_cpus=2), RunOptions(transport="collective")
    report = trial({}, plan, cluster, {data_key(plan.base): data}, tmp_path, {}, options)
    assert report == {FAILURE: transport, IS_FULL: False}


def test_a_trial_is_started_again_only_where_a_new_process_may_have_more_luck() -> None:
    hung, diverged = StageError(1, 2, "step 3", "hangs", lost=True), StageError(1, 2, "step 3", "it raised")
    assert may_pass(ClusterError("the stages were not ready within 120 s"), "ray")
    assert may_pass(hung, "threads")  # a thread cannot be ended
    assert not may_pass(hung, "ray")  # the run has replaced its process max_recoveries times
    for error in (diverged, NotFiniteError("it is nan"), ConfigError("no"), StorageError("full"), KeyError("bug")):
        assert not any(may_pass(error, executor) for executor in ("local", "threads", "ray"))


def test_own_options_hide_no_parameter_of_a_run(tmp_path: Path) -> None:
    write_project(tmp_path, "std")
    method = tmp_path / "std_method.py"
    method.write_text(method.read_text().replace("gamma", "K").replace("float = 0.3", "int = 3"))
    with imported_from(tmp_path):
        params = run_params(RunConfig(method="std_method:Mine", num_modules=2, options={"K": 7}))
    assert (params["K"], params["options.K"], params["eta"], params["twice"]) == (2, 7, 0.5, False)


def test_a_trial_that_can_never_be_placed_is_refused_before_anything_starts() -> None:
    config = RunConfig(num_modules=4, propagation_length=1, executor="ray")
    with pytest.raises(ConfigError, match=r"4 stages need 0\.9 CPUs, the cluster has 0\.5"):
        ClusterResources(num_gpus=0, num_cpus=0.5).check(config)
    with pytest.raises(ConfigError, match=r"4 stages need 0\.75 GPUs each, the cluster has 3, which hold 3"):
        ClusterResources(num_gpus=3, num_cpus=8, stage=StageResources(gpus_per_stage=0.75)).check(config)
    ClusterResources(num_gpus=2, num_cpus=8, stage=StageResources(gpus_per_stage=0.5)).check(config)
    assert ClusterResources(num_gpus=3, num_cpus=8).resolve(config.replace(executor="auto")).executor == "local"


SHARED = RunConfig(num_modules=2, propagation_length=1, executor="local")


@pytest.mark.parametrize(
    ("executor", "gpus", "gpus_per_stage", "runs_per_gpu", "bundles"),
    [
        ("local", 1, 1, 4, [{"CPU": 1, "GPU": 0.25}]),
        ("auto", 1, 1, 4, [{"CPU": 1, "GPU": 0.25}]),  # one GPU is too few for two stages
        ("local", 1, 1, 1, [{"CPU": 1, "GPU": 1}]),
        ("local", 1, 1, MEASURED, [{"CPU": 1, "GPU": 1}]),
        ("local", 0, 1, 4, [{"CPU": 1}]),
        ("local", 1, 0, 4, [{"CPU": 1}]),
        ("threads", 1, 1, 4, [{"CPU": 1, "GPU": 1}]),
        ("ray", 2, 1, 4, [{"CPU": 0.1}, {"CPU": 0.2, "GPU": 1}, {"CPU": 0.2, "GPU": 1}]),
    ],
)
def test_trials_of_executor_local_reserve_a_part_of_a_gpu(
    executor: str, gpus: int, gpus_per_stage: float, runs_per_gpu: int, bundles: list[dict[str, float]]
) -> None:
    stage = StageResources(gpus_per_stage=gpus_per_stage)
    cluster = ClusterResources(num_gpus=gpus, num_cpus=8, stage=stage, runs_per_gpu=runs_per_gpu)
    assert cluster.bundles(SHARED.replace(executor=executor)) == bundles


@pytest.mark.parametrize(("num_gpus", "executor"), [(0, "local"), (1, "threads")])
def test_where_no_gpu_can_be_shared_a_line_says_so(
    num_gpus: int, executor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [SHARED.replace(executor=executor)]
    cluster = ClusterResources(num_gpus=num_gpus, num_cpus=2, runs_per_gpu=MEASURED)
    assert with_sharing(cluster, runs, {}).runs_per_gpu == 1
    assert capsys.readouterr().err == "runs per GPU: 1; no run here has executor local and a GPU\n"
    assert with_sharing(ClusterResources(num_gpus=num_gpus, num_cpus=2), runs, {}).runs_per_gpu == 1
    assert capsys.readouterr().err == ""


def test_a_time_that_other_runs_change_is_not_minimised(tmp_path: Path) -> None:
    plan = Plan(base=PLAN.base, space=Space(alphas=(0.5,)), objectives=("val_error_pct", "step_ms"))
    with pytest.raises(ConfigError, match="step_ms cannot be minimised on a shared GPU; allowed: runs_per_gpu=1"):
        run_trials(Study("study", plan, tmp_path, NoTracker()), {}, runs_per_gpu=2)


def test_runs_per_gpu_is_a_number_or_auto() -> None:
    assert [read_runs_per_gpu(given) for given in (1, "4", "auto")] == [1, 4, MEASURED]
    for wrong in (0, -1, 2.5, "many", "", True):
        with pytest.raises(ConfigError, match=f"^runs_per_gpu={wrong} is out of range; allowed: 1 or more, or auto$"):
            read_runs_per_gpu(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("changes", "way_out"), [({"precision": "tf32"}, "fp32, bf16"), ({"graph": True}, "False")])
def test_a_cluster_without_gpus_refuses_what_is_for_gpus(changes: dict[str, object], way_out: str) -> None:
    run = RunConfig(network="resnet8", num_modules=2, executor="local").replace(**changes)
    with pytest.raises(ConfigError, match=f"allowed: {way_out}"):
        ClusterResources(num_gpus=0, num_cpus=2).check(run)
    ClusterResources(num_gpus=1, num_cpus=2).check(run)
