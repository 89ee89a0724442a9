"""Predict: logits of the trained network, which is left as it was."""

import pytest
import torch
from torch import nn

import backlink_ray as bl
from tests.examples import batch, different, tiny_network


def modes(network: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in network.named_modules()}


@pytest.mark.parametrize("of", ["network", "modules"])
def test_modes_statistics_and_gradients_are_left_as_found(of: str) -> None:
    network = tiny_network(dropout=0.5)
    modules = bl.split(network, 2, head="conv")
    network.units[0][1].eval()  # a frozen batch norm
    network.units[5].eval()
    before, state = modes(network), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images, _ = batch()
    logits = bl.predict(network if of == "network" else modules, images, batch_size=3)
    assert modes(network) == before
    assert len(set(before.values())) == 2
    assert different(network.state_dict(), state) == []
    assert (logits.shape, logits.requires_grad) == ((8, 10), False)
    expected = torch.cat([network.eval()(part) for part in images.float().split(3)])
    assert torch.equal(logits, expected)


def test_a_failure_restores_the_modes() -> None:
    network = tiny_network()
    with pytest.raises(RuntimeError):
        bl.predict(network, torch.zeros(2, 4, 32, 32))
    assert all(modes(network).values())


def test_inputs_take_the_networks_type_and_integers_their_own() -> None:
    images, _ = batch()
    assert bl.predict(tiny_network().double(), images.float()).dtype == torch.float64
    tokens = torch.arange(12).view(4, 3)
    network = bl.Network([nn.Embedding(12, 5), nn.Flatten()], nn.Linear(15, 2), tokens)
    assert bl.predict(network, tokens).shape == (4, 2)
    assert bl.predict(network, tokens[:0]).shape == (0, 2)


def test_refusals() -> None:
    modules = bl.split(tiny_network(), 2)
    with pytest.raises(bl.ConfigError, match="batch_size=0 is out of range; allowed 1 or more"):
        bl.predict(modules, batch()[0], batch_size=0)
    for incomplete in (modules[:1], []):
        with pytest.raises(bl.ConfigError, match="the last module is missing .*give all modules"):
            bl.predict(incomplete, batch()[0])
