"""Networks: units, parameter counts computed by hand, and user networks."""

import itertools

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray.nets.names import unit_count
from backlink_ray.nets.plain import plain_units


def block(width_in: int, width_out: int) -> int:
    """Two 3x3 convolutions and two batch norms, and a projecting shortcut where the width changes."""
    shortcut = width_in * width_out + 2 * width_out if width_in != width_out else 0
    return 9 * width_in * width_out + 9 * width_out**2 + 4 * width_out + shortcut


@pytest.mark.parametrize(("name", "units"), [("resnet8", 4), ("resnet32", 16), ("resnet110", 55)])
def test_units_and_parameters(name: str, units: int) -> None:
    n = (units - 1) // 3
    groups = n * block(16, 16) + block(16, 32) + (n - 1) * block(32, 32) + block(32, 64) + (n - 1) * block(64, 64)
    network = bl.build_network(name, num_classes=10, image_size=32)
    assert len(network.units) == units == unit_count(name)
    assert sum(p.numel() for p in network.units.parameters()) == 27 * 16 + 32 + groups
    assert sum(p.numel() for p in network.classifier.parameters()) == 64 * 10 + 10


def conv(width_in: int, width_out: int) -> int:
    """A 3x3 convolution without bias, and batch norm."""
    return 9 * width_in * width_out + 2 * width_out


def linear(width_in: int, width_out: int) -> int:
    return width_in * width_out + width_out


VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.mark.parametrize(
    ("name", "widths", "pools", "flat"),
    [("alexnet", (64, 192, 384, 256, 256), [1, 2, 5], 256 * 16), ("vgg16", VGG, [2, 4, 7, 10, 13], 512)],
)
@pytest.mark.parametrize("size", [32, 96])
def test_alexnet_and_vgg16(name: str, widths: tuple[int, ...], pools: list[int], flat: int, size: int) -> None:
    with torch.device("meta"):
        units = plain_units(name, 100, size)
    convolutions = [conv(a, b) for a, b in itertools.pairwise((3, *widths))]
    maps = [linear(flat * (size // 32) ** 2, 4096), linear(4096, 4096), linear(4096, 100)]
    assert [sum(p.numel() for p in u.parameters()) for u in units] == [*convolutions, *maps]
    assert len(units) == unit_count(name) == len(widths) + 3
    assert [i + 1 for i, u in enumerate(units[:-3]) if isinstance(u.pool, nn.MaxPool2d)] == pools


def test_vit() -> None:
    network = bl.build_network("vit3", image_size=32)
    block = 3 * linear(192, 192) + linear(192, 192) + linear(192, 384) + linear(384, 192) + 4 * 192
    counts = [sum(p.numel() for p in u.parameters()) for u in network.units]
    assert counts == [3 * 16 * 192 + 192 + 64 * 192, block, block, block]
    assert sum(p.numel() for p in network.classifier.parameters()) == 2 * 192 + linear(192, 10)
    assert [fact.shape for fact in network.facts] == [(64, 192)] * 4
    assert len(network.units) == unit_count("vit3")


def test_attention_is_initialised_as_torch_does() -> None:
    network = bl.build_network("vit2")
    attentions = [part for part in network.modules() if isinstance(part, nn.MultiheadAttention)]
    assert len(attentions) == 2
    assert not any(part.out_proj.bias.any() or part.in_proj_bias.any() for part in attentions)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 4), ("vgg16", 16), ("vit2", 30)])
def test_images_too_small_are_refused(name: str, size: int) -> None:
    with pytest.raises(bl.ConfigError, match=rf"image_size={size} .* {name}; allowed"):
        bl.build_network(name, image_size=size)


@pytest.mark.parametrize("size", [32, 96])
def test_any_image_size(size: int) -> None:
    network = bl.build_network("resnet8", num_classes=7, image_size=size)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert [fact.shape[1] for fact in network.facts] == [size, size, size // 2, size // 4]


def test_initial_weights_depend_on_seed_and_index_alone() -> None:
    one, same, other = (bl.build_network("resnet8", seed=s).state_dict() for s in (0, 0, 1))
    torch.manual_seed(99)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["units.0.conv.weight"], other["units.0.conv.weight"])
    vits = [bl.build_network("vit2", seed=3).state_dict() for _ in range(2)]
    assert all(torch.equal(vits[0][n], vits[1][n]) for n in vits[0])
    deep = bl.build_network("resnet14", seed=0).state_dict()
    assert torch.equal(one["units.0.conv.weight"], deep["units.0.conv.weight"])


def test_a_user_network() -> None:
    units = [nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.1))]
    network = bl.Network(units, nn.Linear(6, 3), torch.zeros(1, 3, 2, 2))
    assert [(f.shape, f.uses_rng) for f in network.facts] == [((5,), False), ((6,), True)]
    assert network.num_classes == 3
    assert [len(m.units) for m in bl.split(network, 2)] == [1, 1]


def test_inspecting_a_network_changes_nothing() -> None:
    unit = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2))
    state = torch.get_rng_state()
    bl.Network([unit], classifier, torch.ones(1, 3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert int(unit[1].num_batches_tracked) == 0
    assert unit.training


def test_what_a_network_refuses() -> None:
    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(bl.ConfigError, match=r"units=\[\]"):
        bl.Network([], nn.Identity(), example)
    for units, given in ((nn.Conv2d(3, 4, 3), "Conv2d"), ([torch.relu], "list")):
        with pytest.raises(bl.ConfigError, match=rf"units is a {given}; allowed: a list of torch.nn.Module"):
            bl.Network(units, nn.Identity(), example)  # type: ignore[arg-type]
    with pytest.raises(bl.ConfigError, match=r"units\[1\] .*\(2, 4, 6, 6\)"):
        bl.Network([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)], nn.Identity(), example)
    with pytest.raises(bl.ConfigError, match="classifier .*inplace=False"):
        bl.Network([nn.Conv2d(3, 4, 3)], nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), example)
    with pytest.raises(bl.ConfigError, match=r"classifier cannot take its input of shape \(2, 4, 6, 6\)"):
        bl.Network([nn.Conv2d(3, 4, 3)], nn.Linear(5, 10), example)
    with pytest.raises(bl.ConfigError, match=r"units\[0\] .*\(2, 3, 8, 8\)"):
        bl.Network([nn.Flatten(5)], nn.Identity(), example)
