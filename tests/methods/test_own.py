"""A method of the user's own: in a Trainer, as BackLink's base, and what cannot be a base."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import backlink_ray as bl
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Named
from backlink_ray.methods.catalogue import BASES
from tests.examples import batch, different, tiny_network
from tests.own import Sharpened


def modules_of(k: int = 3) -> list[LocalModule]:
    return bl.split(tiny_network(6).double(), k)


def test_its_gradients_follow_its_option_and_reach_its_helper() -> None:
    one, two = (bl.gradients(modules_of(), Sharpened(temperature=t), *batch()) for t in (0.5, 2.0))
    assert {n for n in one if n.startswith("helpers.")} == {
        f"helpers.{k}.{n}" for k in (0, 1) for n in ("weight", "bias")
    }
    assert all(not torch.equal(one[n], two[n]) for n in one if n.startswith("units."))


def test_it_is_backlinks_base() -> None:
    """With l = 0 BackLink is its base; with alpha = 0 the tail follows the next module's own loss."""
    base = bl.gradients(modules_of(), Sharpened(), *batch())
    none = bl.gradients(modules_of(), bl.BackLink(propagation_length=0, base=Sharpened()), *batch())
    assert different(base, none) == []
    linked, other = (
        bl.gradients(
            modules_of(), bl.BackLink(propagation_length=1, alpha=0.0, base=Sharpened(temperature=t)), *batch()
        )
        for t in (0.5, 2.0)
    )
    assert not torch.equal(linked["units.1.0.weight"], base["units.1.0.weight"])
    assert not torch.equal(linked["units.1.0.weight"], other["units.1.0.weight"])


@dataclass(frozen=True, kw_only=True)
class HelpedEverywhere(Sharpened):
    def loss(self, module: LocalModule, features: torch.Tensor, batch: bl.Batch) -> torch.Tensor:
        logits = module.logits(features, batch.step_seed)
        return batch.loss(logits, batch.labels) + module.helper(logits).mean()


def test_the_last_module_says_that_it_has_no_helper() -> None:
    with pytest.raises(bl.ConfigError, match=r"no helper; the last one never has \(module.is_last\)"):
        bl.gradients(modules_of(), HelpedEverywhere(), *batch())


def test_bases_are_what_changes_no_more_than_the_loss() -> None:
    assert list(BASES) == ["gll", "dgl", "predsim", "infopro"]


@dataclass(frozen=True, kw_only=True)
class OwnParameters(bl.GLL):
    def local_parameters(self, module: LocalModule) -> Named:
        return module.network_named()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (bl.DNI(), "base='dni' changes link_kind, .*local_backward"),
        (bl.DDG(), "base='ddg' changes link_kind"),
        (bl.BackLink(), "base='backlink' changes linked_units, link_kind"),
        (bl.DGL(mode="async"), "base='dgl' changes replay_size, which BackLink decides itself"),
        (bl.BP(), r"changes prepare, wants_error, which .* allowed: .* such as GLL\(\) or InfoPro\(\)"),
        (OwnParameters(), "base='gll' changes local_parameters"),
        (bl.GLL, "base=<class .*> is no method"),
    ],
)
def test_what_cannot_be_a_base_is_refused(base: Any, message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        bl.BackLink(base=base)


@pytest.mark.parametrize("old", ["arrange", "rest_named", "linked_named", "settle", "keeps_tail", "wants_images"])
def test_a_part_by_its_old_name_is_refused(old: str) -> None:
    """It would never be called, and the method would train as GLL."""
    with pytest.raises(bl.ConfigError, match=rf"Mine\.{old} is called .* now"):
        type("Mine", (bl.Method,), {old: lambda self: None})
