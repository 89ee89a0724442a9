"""Split and heads."""

import pytest
import torch

import backlink_ray as bl
from tests.examples import tiny_network


@pytest.mark.parametrize(
    ("k", "remainder", "sizes"),
    [
        (2, "front", [28, 27]),
        (4, "back", [13, 14, 14, 14]),
        (16, "front", [4] * 7 + [3] * 9),
    ],
)
def test_sizes(k: int, remainder: str, sizes: list[int]) -> None:
    network = bl.build_network("resnet110")
    modules = bl.split(network, k, remainder=remainder)
    assert [len(m.units) for m in modules] == sizes
    assert [u for m in modules for u in m.units] == list(network.units), "units are shared, not copied"


def test_names_do_not_depend_on_the_split() -> None:
    network = bl.build_network("resnet14")
    whole, parts = bl.split(network, 1), bl.split(network, 3)
    names = [n for m in parts for n, _ in m.chain.named()]
    assert names == [n for n, _ in whole[0].chain.named()]
    assert names[0] == "units.0.conv.weight"


def test_head_parameters() -> None:
    """fc: C classes + classes. conv: 9 C W + 2 W + 128 W + 128 + 128 classes + classes."""
    modules = bl.split(bl.build_network("resnet8"), 4, head="conv")
    for module, (c, w) in zip(modules, [(16, 32), (16, 32), (32, 64), (64, 64)], strict=True):
        expected = 9 * c * w + 2 * w + w * 128 + 128 + 128 * 10 + 10
        assert sum(p.numel() for p in module.head.parameters()) == expected
        assert module.head_random
    fc = bl.split(bl.build_network("resnet8"), 4, head="fc")
    assert [sum(p.numel() for p in m.head.parameters()) for m in fc] == [170, 170, 330, 650]


def test_final_head() -> None:
    network = bl.build_network("resnet8")
    assert bl.split(network, 2, head="fc")[-1].head is network.classifier
    assert bl.split(network, 2, head="conv", final_head="native")[-1].head is network.classifier
    assert bl.split(network, 2, head="conv")[-1].head is not network.classifier


def test_heads_take_type_and_initial_weights_from_where_they_stand() -> None:
    one = bl.split(tiny_network().double(), 2, head="conv", seed=4)[0].head
    two = bl.split(tiny_network().double(), 2, head="conv", seed=4)[0].head
    assert next(one.parameters()).dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_refusals() -> None:
    with pytest.raises(bl.ConfigError, match="allowed 1..8"):
        bl.split(tiny_network(), 9)
    with pytest.raises(bl.ConfigError, match="head='mlp'"):
        bl.split(tiny_network(), 2, head="mlp")
    flat = bl.Network([torch.nn.Flatten(), torch.nn.Linear(12, 4)], torch.nn.Linear(4, 2), torch.zeros(1, 3, 2, 2))
    with pytest.raises(bl.ConfigError, match="needs features"):
        bl.split(flat, 2, head="conv")
