"""Weights: units and the classifier from any split, and what does not fit, by name."""

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray.local.weights import state_of
from tests.examples import batch, different, tiny_network


def trained(units: int, k: int, head: str = "fc") -> tuple[bl.Trainer, bl.Network]:
    network = tiny_network(units)
    trainer = bl.Trainer(bl.split(network, k, head=head), bl.BackLink(propagation_length=1), lr=0.1)
    images, labels = batch()
    trainer.step(images.float(), labels)
    return trainer, network


@pytest.mark.parametrize(("units", "k", "other_k"), [(10, 5, 2), (16, 16, 4), (10, 1, 2)])
@pytest.mark.parametrize("head", ["fc", "conv"])
def test_the_units_and_the_classifier_of_one_split_load_into_another(
    units: int, k: int, other_k: int, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, network = trained(units, k, head)
    other = tiny_network(units, seed=5)
    modules = bl.split(other, other_k, head=head)
    before = {name: tensor.clone() for name, tensor in state_of(modules).items()}
    left = bl.load_units(modules, trainer.state_dict())
    assert left == [f"heads.{i}" for i in range(other_k - 1)]
    assert f"{', '.join(left)} do not come from these weights" in capsys.readouterr().err
    images = batch()[0].to(memory_format=torch.channels_last)  # as the trained weights are
    assert torch.equal(bl.predict(other, images), bl.predict(network, images))
    moved = set(different(state_of(modules), before))
    assert {name for name in before if name.endswith("weight") and not name.startswith("heads.")} <= moved
    assert not {name for name in moved if name.startswith("heads.")}


def test_a_classifier_of_another_family_is_left_new_and_named() -> None:
    trainer, _ = trained(8, 2, "conv")
    modules = bl.split(tiny_network(8), 2)
    assert bl.load_units(modules, trainer.state_dict()) == ["heads.0", "classifier"]
    assert torch.equal(state_of(modules)["units.3.0.weight"], trainer.state_dict()["units.3.0.weight"])


def test_a_state_of_another_split_is_refused_by_tensor_and_shape_and_nothing_moves() -> None:
    trainer, _ = trained(8, 4)
    other = bl.Trainer(bl.split(tiny_network(8, seed=1), 2), bl.BackLink(propagation_length=1))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items() if name != "step"}
    with pytest.raises(
        bl.ConfigError, match=r"heads\.1\.2\.weight is unknown here, .* and 1 more; allowed: .*load_units"
    ):
        other.load_state_dict(trainer.state_dict())
    state = trained(8, 2)[0].state_dict()
    # A copy would broadcast it.
    with pytest.raises(bl.ConfigError, match=r"units\.0\.1\.weight has shape \(1,\), here \(6,\); allowed"):
        other.load_state_dict({**state, "units.0.1.weight": torch.ones(1)})
    with pytest.raises(bl.ConfigError, match=r"units\.0\.1\.bias is missing; allowed"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "units.0.1.bias"})
    with pytest.raises(bl.ConfigError, match=r"has no step; give what Trainer\.state_dict\(\) returned"):
        other.load_state_dict(tiny_network().state_dict())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in before.items())


def test_units_of_another_network_are_refused_and_nothing_moves() -> None:
    trainer, _ = trained(8, 4)
    for other, wrong in (
        (tiny_network(9), r"units\.8\.0\.weight is missing"),
        (tiny_network(7), r"units\.7.* unknown"),
    ):
        modules = bl.split(other, 2)
        before = {name: tensor.clone() for name, tensor in state_of(modules).items()}
        with pytest.raises(bl.ConfigError, match=f"{wrong}.*; allowed: weights of a network with the same units"):
            bl.load_units(modules, trainer.state_dict())
        assert different(state_of(modules), before) == []


def test_the_last_heads_weights_are_called_the_classifiers_in_every_split() -> None:
    for k in (1, 2, 8):
        network = tiny_network()
        modules = bl.split(network, k, head="conv")
        names = {name.rpartition(".")[0].split(".")[0] for name in state_of(modules)}
        assert names == {"units", "classifier"} | ({"heads"} if k > 1 else set())
        own = dict([*network.named_parameters(), *network.named_buffers()])
        assert own.keys() <= state_of(modules).keys()
        assert f"heads.{k - 1}.8.weight" in bl.gradients(modules, bl.GLL(), *floats())


def floats() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = batch()
    return images.float(), labels


def test_a_bare_classifier_without_weights_is_no_misfit() -> None:
    units = [nn.Flatten(), nn.Linear(12, 4)]
    modules = bl.split(bl.Network(units, nn.Identity(), torch.zeros(1, 3, 2, 2)), 1)
    assert bl.load_units(modules, state_of(modules)) == []
