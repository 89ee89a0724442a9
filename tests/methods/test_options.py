"""Options: numbers of other types, and wrong values, in every method and everything else that takes a number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import backlink_ray as bl
from backlink_ray.methods.catalogue import METHODS
from backlink_ray.options import check_needs, check_options, choice, options_of, whole
from backlink_ray.train.optim import Sgd
from tests.examples import batch, tiny_network

NUMBERS = [(name, option) for name, m in METHODS.items() for option, o in options_of(m).items() if not o.choices]


@pytest.mark.parametrize(("method", "option"), NUMBERS)
def test_numpy_numbers_are_accepted_and_anything_else_is_refused(method: str, option: str) -> None:
    made, declared = METHODS[method], options_of(METHODS[method])[option]
    beside = dict([declared.needs]) if declared.needs else {}
    kind = type(declared.default)
    found = getattr(made(**beside, **{option: {int: np.int64, float: np.float64}[kind](1)}), option)
    assert (type(found), found) == (kind, 1)
    for wrong in (True, np.bool_(True), "1", None, *([1.5, 1.0, np.float64(1)] if kind is int else [float("nan")])):
        with pytest.raises(bl.ConfigError, match=f"{option}=.* is (a|out of range)"):
            made(**beside, **{option: wrong})


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda x: Sgd(momentum=x), [True, 1, -0.1]),
        (lambda x: Sgd(weight_decay=x), [True, -1e-4]),
        (lambda x: Sgd(nesterov=x), [1, 0.5]),
        (lambda x: bl.Trainer(bl.split(tiny_network(4), 2), bl.GLL(), lr=x), [True, -0.1, float("inf")]),
        (lambda x: bl.Trainer(bl.split(tiny_network(4), 2), bl.GLL(), seed=x), [True, 1.0, -1]),
        (lambda x: bl.split(tiny_network(4), x), [True, 2.0, 0]),
        (lambda x: bl.split(tiny_network(4), 2, seed=x), [False, 0.5]),
        (lambda x: bl.split(tiny_network(4), 2, final_head=x), ["mine"]),
        (lambda x: bl.build_network("resnet8", num_classes=x), [True, 10.0, 0]),
        (lambda x: bl.build_network("resnet8", image_size=x), [True, 32.0]),
        (lambda x: bl.build_network("resnet8", seed=x), [True, 0.0]),
        (lambda x: bl.DGL(buffer_size=x), [3]),
    ],
)  # fmt: skip
def test_other_arguments_are_refused_by_the_same_rules(make: Callable[[Any], object], wrong: list[object]) -> None:
    for value in wrong:
        with pytest.raises(bl.ConfigError):
            make(value)


def test_numpy_numbers_give_the_same_network_and_training() -> None:
    plain = bl.split(bl.build_network("resnet8", num_classes=3, image_size=16, seed=5), 2, head="conv", seed=5)
    five, two = np.int64(5), np.int32(2)
    other = bl.split(
        bl.build_network("resnet8", num_classes=np.int8(3), image_size=np.int16(16), seed=five), two, "conv", seed=five
    )
    for ours, theirs in zip(plain, other, strict=True):
        assert all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    method, (images, labels) = bl.BackLink(propagation_length=1), batch(classes=3, size=16)
    one, two = (
        bl.Trainer(modules, method, number(0.5), optimizer=Sgd(momentum=number(0.5)))
        for modules, number in ((plain, float), (other, np.float64))
    )
    assert torch.equal(one.step(images.float(), labels), two.step(images.float(), labels))


def test_subclasses_keep_the_checks_of_their_options() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Another(bl.PredSim):
        beta: float = 0.5

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Slotted(bl.GLL):
        kind: str = choice("a", "b")
        width: int = whole(2, needs=("kind", "b"))

        def __post_init__(self) -> None:
            check_options(self)
            check_needs(self)

    assert Another().beta == 0.5
    with pytest.raises(bl.ConfigError, match="beta=7"):
        Another(beta=7)
    assert Slotted(kind="b", width=5).width == 5
    with pytest.raises(bl.ConfigError, match="width=5 has no meaning with kind='a'"):
        Slotted(width=5)
