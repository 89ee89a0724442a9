"""Split and heads."""

from typing import Any

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray.local.heads import build_head
from backlink_ray.methods.base import Method
from tests.examples import batch, tiny_network
from tests.own import narrow_head


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
        assert module.head_uses_rng
    fc = bl.split(bl.build_network("resnet8"), 4, head="fc")
    assert [sum(p.numel() for p in m.head.parameters()) for m in fc] == [170, 170, 330, 650]


def test_head_parameters_of_predsim_and_dgl() -> None:
    """pool: at most 512 features. mlp-sr: three 1x1 convolutions with batch norm, three linear maps on 4 C features."""
    network = bl.build_network("resnet8")
    pooled = bl.split(network, 4, head="pool")
    sides = {16: 5, 32: 4, 64: 2}
    assert [sum(p.numel() for p in m.head.parameters()) for m in pooled] == [
        10 * c * sides[c] ** 2 + 10 for c in (16, 16, 32, 64)
    ]
    assert all(c * sides[c] ** 2 <= 512 < c * (sides[c] + 1) ** 2 for c in sides)
    for module, c in zip(bl.split(network, 4, head="mlp-sr"), (16, 16, 32, 64), strict=True):
        wide = 4 * c
        expected = 3 * (c * c + 2 * c) + 2 * (wide * wide + wide) + wide * 10 + 10
        assert sum(p.numel() for p in module.head.parameters()) == expected


def test_helper_parameters() -> None:
    """Decoder 9 C 12 + 24 + 9 12 3 + 3; similarity branch 9 C C; synthesizer 3 x 25 C C + 4 C, and linear C C + C."""
    modules = bl.split(bl.build_network("resnet8"), 4)
    widths = (16, 16, 32)

    def counts(method: Method) -> list[int]:
        return [sum(p.numel() for p in m.helper.parameters()) for m in method.prepare(modules)]

    assert counts(bl.InfoPro()) == [9 * c * 12 + 24 + 9 * 12 * 3 + 3 for c in widths] + [0]
    assert counts(bl.PredSim()) == [9 * c * c for c in widths] + [0]
    assert counts(bl.DNI()) == [75 * c * c + 4 * c for c in widths] + [0]
    tokens = bl.split(bl.build_network("vit3"), 2)
    assert [sum(p.numel() for p in m.helper.parameters()) for m in bl.DNI().prepare(tokens)] == [192 * 192 + 192, 0]


def test_the_last_modules_head_is_the_networks_classifier() -> None:
    flat = bl.Network([torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()], torch.nn.Identity(), torch.zeros(1, 3, 8, 8))
    network = bl.build_network("resnet8")
    for built, options, is_native in (
        (flat, {"head": "conv"}, True),
        (network, {"head": "fc"}, True),
        (network, {"head": "conv", "final_head": "native"}, True),
        (network, {"head": "conv"}, False),
    ):
        native = bl.split(built, 1)[-1].head
        head = bl.split(built, 2, **options)[-1].head
        assert built.classifier is head
        assert (head is native) == is_native


def test_a_network_that_is_split_again_keeps_its_classifier_of_every_family() -> None:
    network = tiny_network()
    native, first, pool = (bl.split(network, 2, head=head)[-1].head for head in ("fc", "conv", "pool"))
    assert [bl.split(network, 4, head=head)[-1].head for head in ("conv", "pool", "fc")] == [first, pool, native]
    assert network.classifier is native
    assert bl.split(network, 4, head="conv")[0].head is not bl.split(network, 4, head="conv")[0].head
    network.double()
    assert next(bl.split(network, 2, head="pool")[-1].head.parameters()).dtype == torch.float64
    network.classifier = own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6 * 32 * 32, 10)).double()
    assert bl.split(network, 3)[-1].head is own
    assert bl.split(network, 3, head="conv")[-1].head is not first
    flat = bl.Network([nn.Flatten(), nn.Linear(12, 4)], nn.Linear(4, 2), torch.zeros(1, 3, 2, 2))
    with pytest.raises(bl.ConfigError, match=r"head='conv'.*\(12,\)"):
        bl.split(flat, 2, head="conv")


def test_a_conv_head_keeps_the_width_of_the_last_feature_maps(narrow_linear_units: None) -> None:
    """Even if fully connected units follow, as in AlexNet: 192 is doubled, 256 is kept."""
    network = bl.build_network("alexnet")
    convolutions = [build_head("conv", network, index)[0] for index in (1, 3, 4)]
    widths = [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions]
    assert widths == [(192, 384, 2), (256, 256, 1), (256, 256, 1)]


def test_networks_and_modules_introduce_themselves() -> None:
    network = bl.build_network("resnet8")
    assert repr(network) == "Network(resnet8: 4 units, 78,042 parameters, inputs (3, 32, 32), 10 classes)"
    first, last = bl.split(network, 2)
    assert repr(first) == "LocalModule(0 of 2, units 0..1: 5,136 parameters, head PixelMean-Flatten-Linear: 170)"
    assert repr(bl.InfoPro().prepare([first, last])[0]).endswith(", helper Decoder: 2,079)")


def test_given_sizes() -> None:
    modules = bl.split(tiny_network(8), sizes=(3, 3, 2))
    assert [(len(m.units), m.num_modules) for m in modules] == [(3, 3), (3, 3), (2, 3)]
    assert [len(m.units) for m in bl.split(tiny_network(8), 2, sizes=[1, 7])] == [1, 7]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sizes": (3, 3)}, r"sizes=\(3, 3\) sum to 6, and tiny has 8 units; allowed: sizes that sum to 8"),
        ({"sizes": (8, 0)}, "each of sizes=0 is out of range; allowed 1 or more"),
        ({"sizes": (4.0, 4)}, r"each of sizes=4\.0 is a float"),
        ({"sizes": (4, 4), "num_modules": 3}, r"num_modules=3 with sizes=\(4, 4\); allowed: 2"),
        ({"sizes": (4, 4), "remainder": "back"}, "remainder='back' has no meaning with sizes"),
        ({}, r"num_modules=0 .*1\.\.8"),
        ({"num_modules": 9}, r"num_modules=9 .*1\.\.8"),
        ({"num_modules": 2, "head": "mlp"}, "head='mlp'.*fc, conv, pool, mlp-sr"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        bl.split(tiny_network(8), **asked)


def test_a_head_of_ones_own_stays_as_it_was_built_from_its_position() -> None:
    """In the network's type; the last module keeps the network's own classifier."""
    network = tiny_network(6).double()
    one, two, other = (bl.split(network, 3, head=narrow_head, seed=seed) for seed in (4, 4, 5))
    weights = [[m.head[0].weight for m in modules[:2]] for modules in (one, two, other)]  # type: ignore[index]
    assert weights[0][0].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[0][1])
    assert not torch.equal(weights[0][0], weights[2][0])
    bound = (1 / 6) ** 0.5  # of torch's own initial weights, on 6 channels; He's would be wider
    assert all(w.abs().max() <= bound for w in weights[0])
    assert one[-1].head is network.classifier
    assert bl.gradients(one, bl.GLL(), *batch())["heads.0.0.weight"].any()


SHARED = nn.Sequential(nn.Flatten(), nn.Linear(6 * 32 * 32, 10))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda shape, classes: None, r"head returns a NoneType for \(6, 32, 32\); allowed: a torch.nn.Module"),
        (lambda shape, classes: nn.Identity(), r"maps \(2, 6, 32, 32\) to \(2, 6, 32, 32\); allowed: logits \(N, 10\)"),
        (
            lambda shape, classes: nn.Linear(7, classes),
            r"heads\[0\] cannot take its input of shape \(2, 6, 32, 32\)",
        ),
        (
            lambda shape, classes: nn.Sequential(nn.ReLU(inplace=True), SHARED),
            r"heads\[0\] changes its input in place",
        ),
        (lambda shape, classes: SHARED, r"heads\[0\]\..* and .* share memory"),
        (7, "head=7 is a int"),
    ],
)
def test_heads_that_cannot_be_used_are_refused(head: Any, message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        bl.split(tiny_network(6), 3, head=head)


def test_a_sequential_becomes_a_network() -> None:
    sequential = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6)), nn.Linear(6, 3))
    network = bl.Network.from_sequential(sequential, torch.zeros(1, 4))
    assert [*network.units, network.classifier] == list(sequential)
    x = torch.randn(5, 4)
    assert torch.equal(network(x), sequential(x))
    with pytest.raises(bl.ConfigError, match=r"network is a Sequential; allowed: .* bl\.Network\.from_sequential"):
        bl.split(sequential, 2)  # type: ignore[arg-type]
    for wrong in (nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3))):
        with pytest.raises(bl.ConfigError, match="allowed: a torch.nn.Sequential of one unit or more and a classifier"):
            bl.Network.from_sequential(wrong, torch.zeros(1, 4))  # type: ignore[arg-type]


def test_logits_that_are_not_flat_are_refused() -> None:
    with pytest.raises(bl.ConfigError, match=r"classifier returns \(2, 5, 8, 8\); allowed: logits \(N, classes\)"):
        bl.Network([nn.Conv2d(3, 4, 3, padding=1)], nn.Conv2d(4, 5, 1), torch.zeros(1, 3, 8, 8))


def test_a_split_that_is_refused_leaves_the_network_as_it_was() -> None:
    network, shared = tiny_network(), nn.Linear(6, 10)
    bl.split(network, 2, head="conv")
    before = network.classifier
    with pytest.raises(bl.ConfigError, match="share memory"):
        bl.split(network, 3, head=lambda shape, classes: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared))
    assert network.classifier is before
