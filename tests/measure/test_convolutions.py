"""Convolutions: which there are in a network, and the warning if bfloat16 is slow for some."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import backlink_ray as bl
from backlink_ray.measure import convolutions as measured
from backlink_ray.measure.convolutions import Convolution, convolutions, slow_in_bf16

CPU = torch.device("cpu")


def test_every_distinct_convolution_once() -> None:
    network = bl.build_network("resnet14")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    found = convolutions(network.units, network.example(1), CPU)
    assert [(each.input_shape, each.count) for each in found] == [
        ((3, 32, 32), 1), ((16, 32, 32), 4), ((16, 32, 32), 1), ((32, 16, 16), 3), ((16, 32, 32), 1),
        ((32, 16, 16), 1), ((64, 8, 8), 3), ((32, 16, 16), 1),
    ]  # fmt: skip
    assert found[2].name == "Conv2d(16, 32, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)"
    assert all(each.fp32_s > 0 and each.bf16_s > 0 for each in found)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_groups_and_strides_are_kept_and_other_units_do_not_matter() -> None:
    units = [
        nn.Conv2d(4, 8, (1, 3), stride=(2, 1), groups=4),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 2 * 2, 3)),
    ]
    (found,) = convolutions(units, torch.zeros(1, 4, 4, 4), CPU)
    assert found.name == "Conv2d(4, 8, kernel_size=(1, 3), stride=(2, 1), groups=4)"
    assert convolutions(units[1:], torch.zeros(1, 8, 2, 2), CPU) == []


def test_a_convolution_called_by_the_name_of_its_argument_counts() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(input=x)  # type: ignore[no-any-return]

    (found,) = convolutions([Named()], torch.zeros(1, 3, 8, 8), CPU)
    assert found.input_shape == (3, 8, 8)


FAST = Convolution(name="Conv2d(a)", input_shape=(1, 2, 2), count=5, fp32_s=1.0, bf16_s=0.5)
SLOW = replace(FAST, name="Conv2d(b)", count=2, bf16_s=2.0)
SLOWER = replace(SLOW, name="Conv2d(c)", bf16_s=16.0)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([FAST], "^$"),
        ([FAST, SLOW], r"^.*2 of 7 convolutions take longer.*Conv2d\(b\) on \(1, 2, 2\), 2\.0 times as long.*$"),
        (
            [SLOWER, FAST, SLOW],
            r"^.*4 of 9 convolutions take longer.*Conv2d\(c\) on \(1, 2, 2\), 16\.0 times as long.*$",
        ),
    ],
)
def test_one_line_names_the_slow_ones_and_the_worst(
    found: list[Convolution], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "convolutions", lambda *_: found)
    assert re.search(told, slow_in_bf16([], torch.zeros(1), CPU).rstrip("\n"))
