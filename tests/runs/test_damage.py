"""Nothing is believed unread: damaged, foreign and diverged files of a run are named, and never change a result."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import ConfigError, NotFiniteError, StorageError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import Checkpoints, newest
from backlink_ray.train.executor import Job, LocalExecutor
from backlink_ray.train.state_check import StateCheck

CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=40, epochs=3, train_images=120,
    test_images=50, executor="local",
)  # fmt: skip
DATA = load_dataset("cifar10-sample", train_images=120, test_images=50)


def interrupted(folder: Path, config: RunConfig = CONFIG, epoch: int = 2) -> None:
    def stop(metrics: dict[str, int]) -> None:
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, folder, dataset=DATA, options=RunOptions(on_epoch=stop))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with two of its three epochs."""
    interrupted(tmp_path_factory.mktemp("half") / "run")
    return tmp_path_factory.getbasetemp() / "half0" / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(run(CONFIG, tmp_path_factory.mktemp("whole"), dataset=DATA)["weights_sha256"])


def rewritten(checkpoints: Path, change: Callable[[dict[str, dict[str, Tensor]]], None], run_id: str) -> None:
    """Replace the newest checkpoint by a changed one with correct checksums."""
    found = newest(checkpoints)
    assert found is not None
    state, extra = found
    parts = {"weights": dict(state.weights), "optimizer": dict(state.optimizer)}
    change(parts)
    extra.pop("run_id")
    Checkpoints(checkpoints, run_id).save(replace(state, **parts), extra)


CONV, MOMENTUM = "units.1.conv1.weight", "units.1.conv1.weight/momentum_buffer"


def squeezed(part: str, name: str) -> Callable[[dict[str, dict[str, Tensor]]], None]:
    return lambda parts: parts[part].update({name: parts[part][name][:1]})


DAMAGE: dict[str, tuple[Callable[[dict[str, dict[str, Tensor]]], object], str]] = {
    "weights of shape 1": (squeezed("weights", CONV), rf"{CONV} has shape \(1, .*here"),
    "momentum of shape 1": (squeezed("optimizer", MOMENTUM), "lacks momentum_buffer.* or has it in another shape"),
    "a tensor is missing": (lambda parts: parts["weights"].pop(CONV), f"{CONV} is missing"),
    "a tensor is unknown": (lambda parts: parts["weights"].update(x=torch.ones(1)), "x is unknown here"),
    "momentum of nothing": (lambda parts: parts["optimizer"].update({"x/y": torch.ones(1)}), "x/y do not fit"),
    "float64": (
        lambda parts: parts["weights"].update({CONV: parts["weights"][CONV].double()}), f"{CONV} is of torch.float64"
    ),
    "nan": (
        lambda parts: parts["weights"].update({CONV: parts["weights"][CONV] * torch.nan}), f"{CONV} is not finite"
    ),
    "an infinite momentum": (
        lambda parts: parts["optimizer"].update({MOMENTUM: parts["optimizer"][MOMENTUM] + torch.inf}),
        f"{MOMENTUM} is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_is_taken(
    tmp_path: Path, half: Path, whole: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    shutil.copytree(half, tmp_path / "run")
    change, words = DAMAGE[kind]
    rewritten(tmp_path / "run" / "checkpoints", change, CONFIG.run_id)
    result = run(CONFIG, tmp_path / "run", dataset=DATA)
    assert result["weights_sha256"] == whole
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoint ")]
    assert "run/checkpoints/step-000000006 is not used (" in line
    assert line.endswith("; trying the one before")
    assert re.search(words, line)


def test_a_checkpoint_of_another_run_is_never_taken(
    tmp_path: Path, half: Path, whole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CONFIG.replace(seed=1)
    interrupted(tmp_path / "other", other)
    shutil.copytree(half, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    assert run(CONFIG, tmp_path / "run", dataset=DATA)["weights_sha256"] == whole
    said = capsys.readouterr().err
    assert said.count(f"is not used (it is of run {other.run_id}, not of {CONFIG.run_id})") == 2
    assert "no checkpoint in " in said
    assert "can be used; training starts at epoch 1" in said


def test_what_diverges_last_fails_by_name_and_is_never_saved(tmp_path: Path) -> None:
    config = CONFIG.replace(lr=1e30, epochs=1, train_images=40, warmup_fraction=0.0, momentum=0.0, weight_decay=0.0)
    with pytest.raises(NotFiniteError, match="^test_loss is not finite after step 0; try a smaller lr"):
        run(config, tmp_path, dataset=DATA.first(train_images=40))
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert json.loads((tmp_path / "failure.json").read_text())["status"] == "FAILED"
    assert not (tmp_path / "result.json").exists()


FILES = {
    "result.json": ("{", "rm {file}, and start again: the run resumes from its checkpoint"),
    "config.yaml": ("[1]", "rm -r {folder}, and start again, from the beginning"),
    "environment.json": ("", "rm {file}; it only says where the run was trained"),
    "metrics.jsonl": ("\0\n{}\n", "rm -r {folder}, and start again, from the beginning"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line_with_its_path_and_the_command_that_mends_it(
    tmp_path: Path, half: Path, whole: str, name: str
) -> None:
    folder = tmp_path / "a run"
    shutil.copytree(half, folder)
    content, fix = FILES[name]
    (folder / name).write_text(content)
    with pytest.raises(StorageError) as caught:
        run(CONFIG, folder, dataset=DATA)
    assert str(caught.value).startswith(f"{folder / name}")
    assert "\n" not in str(caught.value)
    command = "fix: " + fix.format(file=f"'{folder / name}'", folder=f"'{folder}'")
    assert command in str(caught.value)
    shutil.rmtree(folder) if "-r" in fix else (folder / name).unlink()  # as the line says
    assert run(CONFIG, folder, dataset=DATA)["weights_sha256"] == whole


def test_a_state_that_is_not_finite_or_not_of_its_job_is_never_saved(tmp_path: Path, half: Path) -> None:
    job = make_job(CONFIG, DATA)
    found = newest(half / "checkpoints")
    assert found is not None
    checkpoints = Checkpoints(tmp_path, CONFIG.run_id, StateCheck(job))
    for value in (torch.nan, torch.inf, -torch.inf):
        weights = {**found[0].weights, CONV: found[0].weights[CONV].clone()}
        weights[CONV].view(-1)[-1] = value
        with pytest.raises(NotFiniteError, match=f"^{CONV} is not finite after step 5; try a smaller lr$"):
            checkpoints.save(replace(found[0], weights=weights), {})
    with pytest.raises(ConfigError, match="is missing"):
        checkpoints.save(replace(found[0], weights={}), {})
    assert list(tmp_path.iterdir()) == []
    checkpoints.save(found[0], {})


def test_a_buffer_that_was_infinite_from_the_start_may_be_saved(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("mask", torch.zeros(8).index_fill(0, torch.tensor([3]), -torch.inf))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).softmax(-1) + (self.linear(x) + self.mask).softmax(-1)

    network = bl.Network([Masked(), Masked()], nn.Linear(8, 3), torch.zeros(1, 8))
    data = LabelledSet(inputs=torch.randn(8, 8), labels=torch.arange(8) % 3)
    job = Job(modules=bl.split(network, 2), method=bl.GLL(), train=data, evaluations={}, batch_size=4, lr=0.1)
    with LocalExecutor(job) as executor:
        executor.train(1)
        check = StateCheck(job)
        Checkpoints(tmp_path, "", check).save(executor.state(), {})
        assert Checkpoints(tmp_path, "", check).newest()


@pytest.mark.parametrize(
    "method", [bl.DDG(), bl.BackLink(propagation_length=1, alpha_mode="once", mode="stale")], ids=str
)
def test_what_a_method_carries_is_checked_too(method: bl.Method) -> None:
    job = make_job(CONFIG, DATA).with_parts(method=method)
    with LocalExecutor(job) as executor:
        executor.train(2)
        state = executor.state()
    check = StateCheck(job)
    check(state)
    assert state.method_state
    names = [name for name in state.method_state if ".link." in name or ".weights." in name]
    assert names
    for name, value in (
        (names[0], state.method_state[names[0]][:0]),
        ("modules.7.error", torch.ones(1)),
        ("x", torch.ones(1)),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(name)} do"):
            check(replace(state, method_state={**state.method_state, name: value}))
