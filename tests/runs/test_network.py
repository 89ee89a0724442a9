"""Load a network: a run folder gives the network that was trained, and that answers as the run did."""

from pathlib import Path

import pytest
import torch
import yaml

import backlink_ray as bl
from backlink_ray.errors import StorageError
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from tests.examples import sample
from tests.users import imported_from, write_project

BASE = bl.RunConfig(
    network="resnet8", num_modules=4, propagation_length=1, lr=0.1, batch_size=32, epochs=1, executor="local"
)


def error_pct(network: bl.Network) -> float:
    wrong = bl.predict(network, sample().test.prepared(), batch_size=32).argmax(dim=1) != sample().test.labels
    return 100 * int(wrong.sum()) / len(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "conv"},
        {"head": "mlp-sr", "executor": "threads"},
        {"method": "bp"},
        {"method": "dni"},
        {"head": "pool"},
    ],
    ids=str,
)
def test_a_run_folder_gives_the_network_with_the_runs_error(tmp_path: Path, changes: dict[str, str]) -> None:
    result = run(BASE.replace(**changes), tmp_path, dataset=sample())
    network = bl.load_network(tmp_path)
    assert error_pct(network) == result["test_error_pct"]
    logits = bl.predict(network, sample().test.prepared())
    loss = float(torch.nn.functional.cross_entropy(logits, sample().test.labels))
    assert loss == pytest.approx(result["test_loss"], rel=1e-6)
    # Cut in another way, it is trained just the same; only the new heads are new.
    modules = bl.split(network, 2, head=changes.get("head", "fc"))
    assert torch.equal(bl.predict(modules, sample().test.prepared()), logits)


def test_the_folder_of_a_run_that_is_going_on_is_read_and_not_touched(tmp_path: Path) -> None:
    def look(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 1:
            (tmp_path / "checkpoints" / ".step-000000009.0123456789ab.tmp").mkdir()
            assert error_pct(bl.load_network(tmp_path)) == metrics["test_error_pct"]
            assert (tmp_path / "checkpoints" / ".step-000000009.0123456789ab.tmp").exists()
            seen.append(1)

    seen: list[int] = []
    run(BASE.replace(epochs=2, head="conv"), tmp_path, dataset=sample(), options=RunOptions(on_epoch=look))
    assert seen == [1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(bl.ConfigError, match=r"has no config\.yaml; give the --output-dir of a run"):
        bl.load_network(tmp_path)
    run(BASE, tmp_path, dataset=sample())
    file = tmp_path / "config.yaml"
    content = yaml.safe_load(file.read_text())
    for changes, words in (
        ({"format": 2}, r"was written by backlink_ray 0\.2\.0, .*; give another folder"),
        ({"network": "resnet14"}, r"shape .*; allowed: the network 'resnet14' that the run trained"),
        ({"num_classes": 7}, r"classifier\.2\.weight has shape \(10, 64\), here \(7, 64\)"),
    ):
        file.write_text(yaml.safe_dump({**content, **changes}))
        with pytest.raises(bl.ConfigError, match=words):
            bl.load_network(str(tmp_path))
    file.write_text(yaml.safe_dump(content))
    for weights in tmp_path.rglob("weights.safetensors"):
        weights.unlink()
    with pytest.raises(StorageError, match="checkpoints has no good checkpoint"):
        bl.load_network(tmp_path)


def test_a_network_of_the_users_is_built_again_but_not_from_a_changed_file(tmp_path: Path) -> None:
    write_project(tmp_path, "net")
    with imported_from(tmp_path):
        result = run(BASE.replace(network="net_model:network", head="conv"), tmp_path / "run", dataset=sample())
        assert error_pct(bl.load_network(tmp_path / "run")) == result["test_error_pct"]
    (tmp_path / "net_model.py").write_text((tmp_path / "net_model.py").read_text() + "# changed\n")
    message = "another version of the file of network='net_model:network'; restore it"
    with imported_from(tmp_path), pytest.raises(bl.ConfigError, match=message):
        bl.load_network(tmp_path / "run")


DENSE = """
import backlink_ray as bl
import torch
from torch import nn

def network(num_classes, image_size, seed):
    units = [nn.Embedding(7, 8), *(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))]
    return bl.Network(units, head((5, 8), num_classes), torch.zeros(1, 5, dtype=torch.int64))

def too_many(num_classes, image_size, seed):
    return bl.Network([nn.Embedding(7, 8)], nn.Sequential(nn.Flatten(), nn.Linear(40, 36)), torch.zeros(1, 5, dtype=torch.int64))

def head(shape, outputs):
    return nn.Sequential(nn.Linear(8, 7), nn.Flatten())

def loss(logits, labels):
    return nn.functional.cross_entropy(logits.view(-1, 7), labels.flatten().long())

def data(root, download, seed):
    x = torch.arange(6).repeat(40, 1).add(torch.arange(40)[:, None]) % 7
    return bl.Dataset.from_tensors((x[:32, :5], x[:32, 1:].float()), (x[32:, :5], x[32:, 1:].float()))
"""


def test_answers_at_every_place_are_trained_by_a_loss_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "dense.py").write_text(DENSE)
    parts = {"network": "dense:network", "dataset": "dense:data", "head": "dense:head", "loss": "dense:loss"}
    dense = BASE.replace(**parts, batch_size=8, epochs=30)
    with imported_from(tmp_path):
        result = run(dense, tmp_path / "run")
        data, network = bl.load_dataset("dense:data").test, bl.load_network(tmp_path / "run")
        answer = bl.predict(network, data.prepared()).view(8, 5, 7).argmax(dim=2)
        assert (result["test_loss"] < 0.5, answer.tolist()) == (True, data.labels.tolist())
        for changes, words in (
            ({"network": "dense:too_many", "num_modules": 1, "propagation_length": 0}, "has 36 outputs; .* needs 5"),
            ({"loss": "cross-entropy"}, "has 35 outputs; .* needs 5"),
        ):
            with pytest.raises(bl.ConfigError, match=words):
                run(dense.replace(**changes), tmp_path / "other")
