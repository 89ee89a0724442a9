"""A batch in equal parts, as the replicas of a pipeline's stages take it: the reference in one process."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.commands.results_table import table_rows
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import StepSeed
from backlink_ray.runs.results import columns_of
from backlink_ray.train.optim import Sgd
from backlink_ray.train.parts import mean, merged
from backlink_ray.tuning.callback import run_params
from tests.examples import batch, job, tiny_network
from tests.methods.settings import SETTINGS

PLAIN = Sgd(momentum=0.0, weight_decay=0.0)


def modules_of(num_modules: int, dropout: float = 0.0) -> list[bl.LocalModule]:
    """Return modules in float64."""
    modules = bl.split(tiny_network(dropout=dropout), num_modules)
    for module in modules:
        module.double()
    return modules


def state_after(
    replicas: int, method: bl.Method, num_modules: int, inputs: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    trainer = bl.Trainer(modules_of(num_modules), method, 0.5, optimizer=PLAIN, replicas=replicas)
    trainer.step(inputs, labels)
    return trainer.state().weights


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize(
    ("num_modules", "method"),
    [
        (1, bl.BP()),
        (2, bl.GLL()),
        (2, bl.BackLink(propagation_length=1, alpha=0.25)),
        (3, bl.BackLink(propagation_length=2, tail_memory="recompute")),
    ],
)
def test_a_step_is_that_of_the_mean_gradient_over_parts_taken_alone(
    num_modules: int, method: bl.Method, replicas: int
) -> None:
    """By `gradients` of each part, and batch norms' statistics by a step with lr 0 on each."""
    inputs, labels = batch(8)
    found = state_after(replicas, method, num_modules, inputs, labels)
    pairs = list(zip(inputs.chunk(replicas), labels.chunk(replicas), strict=True))
    gradients = [bl.gradients(modules_of(num_modules), method, *pair) for pair in pairs]
    start = bl.Trainer(modules_of(num_modules), method).state().weights
    alone = [state_after(1, method, num_modules, *pair) for pair in pairs]
    for name, tensor in found.items():
        known = name.replace("classifier", f"heads.{num_modules - 1}")
        if known in gradients[0]:
            expected = start[name] - 0.5 * sum(g[known] for g in gradients) / replicas
        elif tensor.is_floating_point():
            expected = torch.stack([each[name] for each in alone]).mean(dim=0)
        else:
            expected = torch.ones_like(tensor)  # num_batches_tracked
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)


def test_one_replica_is_the_whole_batch_and_two_are_another_result() -> None:
    found = {d: state_after(d, bl.GLL(), 2, *batch(8)) for d in (1, 2)}
    plain = bl.Trainer(modules_of(2), bl.GLL(), 0.5, optimizer=PLAIN)
    plain.step(*batch(8))
    assert all(torch.equal(t, found[1][n]) for n, t in plain.state().weights.items())
    assert not torch.equal(found[1]["units.0.0.weight"], found[2]["units.0.0.weight"])


def test_every_part_draws_its_own_masks() -> None:
    inputs, labels = batch(4)
    twice = torch.cat([inputs, inputs]), torch.cat([labels, labels])

    def loss(replicas: int, dropout: float, pair: tuple[Tensor, Tensor]) -> Tensor:
        return bl.Trainer(modules_of(2, dropout), bl.GLL(), replicas=replicas).step(*pair)

    assert torch.equal(loss(1, 0.0, (inputs, labels)), loss(2, 0.0, twice))
    assert not torch.equal(loss(1, 0.3, (inputs, labels)), loss(2, 0.3, twice))
    first, second = StepSeed(3, 4, part=0), StepSeed(3, 4, part=1)
    draws = []
    for seed in (StepSeed(3, 4), first, second):
        with seed.drawing("unit", 0):
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[1] != draws[2]


def test_the_mean_is_summed_in_order() -> None:
    big, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    assert torch.equal(mean([[big], [small], [small]])[0], big / 3)  # 2^24 + 1 is rounded to 2^24
    assert torch.equal(mean([[small], [small], [big]])[0], (big + 2) / 3)
    assert mean([[], []]) == []


def test_what_nobody_changes_does_not_move() -> None:
    """The lowest number, of which two add up to -inf, and numbers whose sum of three, divided by three, is another."""
    lowest, own = torch.full((2,), torch.finfo(torch.float32).min), torch.rand(1000)
    assert all(torch.equal(each, lowest) for each in merged([[lowest], [lowest.clone()]]))
    assert not torch.equal(mean([[own]] * 3)[0], own)
    assert torch.equal(merged([[own]] * 3)[0], own)
    moved = own.clone()
    moved[0] += 1
    (found,) = merged([[own], [moved], [own]])
    assert torch.equal(found[1:], own[1:])
    assert own[0] < found[0] < moved[0]
    assert merged([[torch.tensor(3)], [torch.tensor(5)]]) == [torch.tensor(3)]


class Chooses(nn.Module):
    """Uses one of its two layers, according to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[int(x.mean() > 0)](x)  # type: ignore[no-any-return]


def test_a_layer_that_one_part_leaves_out_moves_as_much_as_if_all_had_used_it() -> None:
    torch.manual_seed(0)
    chooses = Chooses()
    network = bl.Network([chooses], nn.Linear(4, 2), torch.zeros(1, 4))
    start = [layer.weight.clone() for layer in chooses.layers]  # type: ignore[union-attr, operator]
    trainer = bl.Trainer(bl.split(network, 1), bl.BP(), replicas=2)
    trainer.step(torch.tensor([[1.0] * 4, [1.0] * 4, [-1.0] * 4, [-1.0] * 4]), torch.tensor([0, 1, 0, 0]))
    for layer, before in zip(chooses.layers, start, strict=True):
        assert not torch.equal(layer.weight, before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: bl.Trainer(modules_of(2), bl.GLL(), replicas=0), "replicas=0 is out of range; allowed 1 or more"),
        (lambda: bl.Trainer(modules_of(2), bl.GLL(), replicas=3).step(*batch(8)), "a batch of 8 has no replicas=3"),
        (lambda: job(bl.GLL(), 2, batch_size=16, replicas=3), "a batch of 16 has no replicas=3 equal parts"),
        (lambda: job(bl.DDG(), 2, replicas=2), "replicas=2 with method='ddg', whose errors arrive in a later step"),
        (lambda: job(SETTINGS["backlink, mode=stale"], 2, replicas=2), "method='backlink' in mode='stale'"),
        (lambda: bl.RunConfig(replicas=0), "replicas=0 is out of range; allowed 1 or more"),
        (lambda: bl.RunConfig(replicas=2, batch_size=15), "a batch of 15 has no replicas=2"),
        (lambda: bl.RunConfig(replicas=2, mode="stale", num_modules=2), "mode='stale', whose errors"),
        (lambda: bl.RunConfig(replicas=2, method="dgl", mode="async", num_modules=2), "mode='async', whose errors"),
        (lambda: bl.RunConfig(replicas=2, graph=True), "replicas=2 with graph=True"),
        (lambda: bl.Trainer(modules_of(2), bl.GLL(), engine=Engine(graph=True), replicas=2), "with graph=True"),
    ],
)  # fmt: skip
def test_what_has_no_replicas_is_refused_in_one_line(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(bl.ConfigError, match=rule) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_replicas_are_part_of_a_runs_identity_unless_there_is_one() -> None:
    plain, one, two = bl.RunConfig(), bl.RunConfig(replicas=1), bl.RunConfig(replicas=2)
    assert plain.run_id == one.run_id != two.run_id
    whole = two.replace(num_modules=2, batch_norm="whole")
    assert [one.run_name[:5], two.replace(num_modules=2).run_name[:7], whole.run_name[:13]] == [
        "K04-l",
        "K02-D2-",
        "K02-D2-whole-",
    ]
    assert run_params(whole).items() >= {"replicas": 2, "batch_norm": "whole"}.items()
    rows = [{**columns_of(each), "executor": "ray", "status": "FINISHED", "reason": ""} for each in (plain, whole)]
    assert {cells[1] for cells in table_rows(rows, "test_error_pct")} == {f"{plain.num_modules}", "2 x 2"}
    assert (two.num_stages, plain.replace(num_modules=4, replicas=2).num_stages) == (2 * two.num_modules, 8)
