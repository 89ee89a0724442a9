"""Modules as people write them: trained as torch trains them and alike in every executor, or refused by name."""

import copy
import itertools
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.errors import StageError
from backlink_ray.local.engine import Engine
from backlink_ray.local.graph import Graph
from backlink_ray.local.module import StepSeed
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.seeds import seeded
from backlink_ray.train.checkpoint import weights_sha256
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from backlink_ray.train.optim import Sgd
from tests.examples import different, job_with
from tests.nets.awkward import (
    AS_TORCH,
    NO_COPY,
    RANDOM,
    REFUSED,
    WIDTH,
    Applies,
    Freezes,
    Merging,
    layer_drop,
    norm_in_eval,
    normed,
    plain,
)

Make = Callable[[], nn.Module]
ONE = bl.BackLink(propagation_length=1, alpha=0.5)


def network(*makes: Make, first: Make = plain) -> bl.Network:
    """The units of `makes` between two plain ones, for images (N, 3, 32, 32)."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), first())
    last = Applies(lambda u, x: u.inner(x.float()))
    return bl.Network([small, *(make() for make in makes), last], nn.Linear(WIDTH, 10), torch.zeros(2, 3, 32, 32))


def images(step: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 32, 32, generator=g), torch.randint(0, 10, (8,), generator=g)


def job_of(net: bl.Network, method: bl.BackLink = ONE) -> Job:
    return job_with(bl.split(net, 2), method, batch_size=8)


def outcome(executor: Callable[[Job], Executor], training: Job) -> tuple[Tensor, dict[str, Tensor], object]:
    for draw in (random.random, np.random.rand, lambda: torch.rand(())):
        draw()  # what was drawn before makes no difference
    with executor(training) as running:
        return running.train(3).losses, running.state().weights, running.evaluate("test")


def check_same(make: Callable[[], bl.Network], method: bl.BackLink) -> None:
    ours, theirs = (outcome(executor, job_of(make(), method)) for executor in (ThreadsExecutor, LocalExecutor))
    assert torch.equal(ours[0], theirs[0])
    assert different(ours[1], theirs[1]) == []
    assert ours[2] == theirs[2]


@pytest.mark.parametrize("name", AS_TORCH)
def test_bp_trains_it_as_plain_torch(name: str) -> None:
    ours, theirs = (network(*[AS_TORCH[name]] * 2) for _ in range(2))
    trainer = bl.Trainer(bl.split(ours, 2), bl.BP(), lr=0.05, engine=Engine(memory_format="contiguous"))
    sgd = Sgd()(list(theirs.parameters()))
    sgd.param_groups[0]["lr"] = 0.05
    for step in range(3):
        x, labels = images(step)
        trainer.step(x, labels)
        sgd.zero_grad()
        F.cross_entropy(theirs(x), labels).backward()
        sgd.step()
    assert different(ours.state_dict(), theirs.state_dict()) == []


LINKS = list(itertools.product(("replica", "error"), ("retain", "recompute")))


@pytest.mark.parametrize("name", {**AS_TORCH, **RANDOM})
def test_threads_equal_one_process(name: str) -> None:
    make = {**AS_TORCH, **RANDOM}[name]
    for link, tail_memory in LINKS:
        method = bl.BackLink(propagation_length=1, alpha=0.5, link=link, tail_memory=tail_memory)
        check_same(lambda: network(make, make), method)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_refuses(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(bl.ConfigError, match=message):
        network(make)


@pytest.mark.parametrize("name", NO_COPY)
def test_what_cannot_be_copied_trains_without_a_replica(name: str) -> None:
    make, message = NO_COPY[name]
    with pytest.raises(bl.ConfigError, match=message):
        ThreadsExecutor(job_of(network(make, plain)))
    check_same(lambda: network(make, plain), bl.BackLink(propagation_length=1, alpha=0.5, link="error"))


# Modes (P8) and frozen parameters


@pytest.mark.parametrize(
    ("make", "modes"),
    [
        (norm_in_eval, [True, True, False, True]),
        (lambda: Freezes(*normed(), nn.Dropout(0.5).eval()), [True, True, False, True, False]),
    ],
    ids=["eval()", "train() overridden"],
)
@pytest.mark.parametrize("executor", [LocalExecutor, ThreadsExecutor])
def test_what_is_in_evaluation_mode_keeps_it_and_its_statistics(
    make: Make, modes: list[bool], executor: Callable[[Job], Executor]
) -> None:
    net = network(make, normed)
    before = copy.deepcopy(net.units[1][1].state_dict())
    with executor(job_of(net)) as running:
        running.train(2)
        running.evaluate("test")
        running.train(1)
        weights = running.state().weights
    assert [part.training for part in net.units[1].modules()] == modes
    assert all(part.training for part in net.units[2].modules())
    assert all(torch.equal(weights[f"units.1.1.{n}"], t) for n, t in before.items() if n.startswith("running"))
    assert [int(weights[f"units.{i}.1.num_batches_tracked"]) for i in (1, 2)] == [0, 3]


def test_who_evaluated_before_training_and_between_trains_in_the_modes_first_found() -> None:
    net = network(norm_in_eval, normed)
    modules = bl.split(net, 2)
    trainer = bl.Trainer(modules, ONE)
    net.eval()
    trainer.step(*images())
    assert [net.units[1][1].training, net.units[2][1].training, net.units[3].training] == [False, True, True]
    net.eval()
    bl.Trainer(bl.split(net, 2), ONE).step(*images())
    assert all(part.training for unit in net.units for part in unit.modules())


def test_a_unit_that_merges_weights_for_evaluation_is_taken_apart_again_for_training() -> None:
    net = network(Merging, Merging)
    trainer = bl.Trainer(bl.split(net, 2), ONE)
    for leave in (lambda: None, net.eval, lambda: bl.predict(net, images()[0])):
        before = [net.units[i].a.clone() for i in (1, 2)]
        leave()
        trainer.step(*images())
        assert not any(torch.equal(a, net.units[i].a) for i, a in zip((1, 2), before, strict=True))
    check_same(lambda: network(Merging, Merging), ONE)


def test_a_frozen_module_trains_its_head_alone() -> None:
    net = network(plain, plain)
    net.units[:2].requires_grad_(False)
    training = job_of(net)
    before = {n: t.clone() for m in training.modules for n, t in m.named_state()}
    with ThreadsExecutor(training) as running:
        running.train(2)
        after = running.state().weights
    moved = set(different(after, before))
    assert {n for n in moved if n.startswith(("units.0", "units.1"))} == set()
    assert {n for n in before if n.startswith(("heads.0", "units.2", "units.3"))} <= moved


def test_nothing_to_train_is_refused() -> None:
    net = network(plain).requires_grad_(False)
    with pytest.raises(bl.ConfigError, match="every parameter is frozen"):
        bl.Trainer(bl.split(net, 1), bl.BP())


# Sharing (P1)


def shared_pair() -> tuple[nn.Module, nn.Module]:
    norm = nn.BatchNorm1d(WIDTH, affine=False)
    return nn.Sequential(plain(), norm), nn.Sequential(plain(), norm)


def same_storage() -> tuple[nn.Module, nn.Module]:
    a, b = plain(), plain()
    b[0].weight.data = a[0].weight.data[:]
    return a, b


@pytest.mark.parametrize(
    ("pair", "names"),
    [(shared_pair, ("1.running_mean", "1.running_mean")), (same_storage, ("0.weight", "0.weight"))],
    ids=["buffer", "storage"],
)
def test_shared_memory_is_refused_with_both_places(
    pair: Callable[[], tuple[nn.Module, nn.Module]], names: tuple[str, str]
) -> None:
    a, b = pair()
    for units, classifier, second in (([a, b], nn.Linear(WIDTH, 3), "units[1]"), ([a], b, "classifier")):
        with pytest.raises(bl.ConfigError) as caught:
            bl.Network(units, classifier, torch.zeros(2, WIDTH))
        assert f"units[0].{names[0]} and {second}.{names[1]} share memory" in str(caught.value)


def test_memory_shared_after_the_network_was_made_is_refused_by_split() -> None:
    net = network(plain, plain)
    net.units[2][0].weight = net.units[1][0].weight
    with pytest.raises(bl.ConfigError, match=r"units\[1\]\.0\.weight and units\[2\]\.0\.weight share memory"):
        bl.split(net, 2)


def test_one_storage_without_overlap_and_one_dropout_are_no_sharing() -> None:
    flat, dropout = torch.randn(2, WIDTH, WIDTH), nn.Dropout(0.3)
    units = [nn.Sequential(plain(), dropout) for _ in range(2)]
    for unit, part in zip(units, flat, strict=True):
        unit[0][0].weight = nn.Parameter(part)
    check_same(lambda: network(*(lambda unit=unit: copy.deepcopy(unit) for unit in units)), ONE)
    shared = nn.Dropout(0.3)
    for _ in range(5):  # stages as threads switch its mode for each other
        with ThreadsExecutor(job_of(network(*[lambda: nn.Sequential(plain(), shared)] * 2))) as running:
            running.train(1)
            assert running.evaluate("test") == running.evaluate("test")
            assert shared.training


# Randomness (P3)


def test_draws_from_python_and_numpy_are_seen_and_leave_no_trace() -> None:
    states = random.getstate(), torch.get_rng_state()
    net = network(layer_drop, RANDOM["numpy's generator"], plain)
    assert [facts.uses_rng for facts in net.facts] == [False, True, True, False, False]
    assert random.getstate() == states[0]


def test_seeding_does_not_need_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy.random")
    drawn = []
    for _ in range(2):
        with seeded(1, "test"):
            drawn.append((random.random(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_a_backward_that_may_draw_waits_while_another_stage_draws() -> None:
    """torch.utils.checkpoint sets the states of the default generators in the backward."""
    module = bl.split(network(RANDOM["dropout, checkpointed"]), 1)[0]
    graph = Graph(module.chain, images()[0], StepSeed(), wants_input_gradient=False)
    backward = threading.Thread(target=graph.backward, args=(torch.ones_like(graph.output),))
    with seeded(0, "test"):
        backward.start()
        backward.join(0.2)
        assert backward.is_alive()
    backward.join(10)
    assert not backward.is_alive()


# Steps without a graph (P6), batches of one (P36), hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused(mode: Callable[[], torch.no_grad]) -> None:
    modules = bl.split(network(normed), 2)
    trainer = bl.Trainer(modules, ONE)
    before = {n: t.clone() for n, t in trainer.state().weights.items()}
    with mode(), pytest.raises(bl.ConfigError, match=r"no_grad\(\) or torch\.inference_mode\(\)"):
        trainer.step(*images())
    with mode(), pytest.raises(bl.ConfigError, match="no_grad"):
        bl.gradients(modules, ONE, *images())
    assert different(trainer.state().weights, before) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert trainer.step(*images()).isfinite().all()


def test_a_network_made_in_inference_mode_is_refused_but_heads_and_the_network_around_its_modules_may_be() -> None:
    with torch.inference_mode(), pytest.raises(bl.ConfigError, match=r"units\[0\] was made under torch.inference_mode"):
        network(normed)
    parts = [nn.Flatten(), nn.Linear(3072, WIDTH), nn.Linear(WIDTH, WIDTH)]
    classifier = nn.Linear(WIDTH, 10)
    with torch.inference_mode():
        modules = bl.split(bl.Network(parts, classifier, torch.zeros(2, 3, 32, 32)), 2)
    assert bl.Trainer(modules, ONE).step(*images()).isfinite().all()


def test_a_batch_of_uint8_images_is_refused() -> None:
    trainer = bl.Trainer(bl.split(network(normed), 2), ONE)
    with pytest.raises(bl.ConfigError, match=r"batch inputs are torch.uint8; .* x\.float\(\) / 255"):
        trainer.step(images()[0].to(torch.uint8), images()[1])


def test_a_batch_of_one_names_unit_and_batch_size(narrow_linear_units: None) -> None:
    net = network(plain, normed)
    x, labels = images()
    with pytest.raises(
        bl.ConfigError, match=r"units\[2\] cannot take a batch of one: .*; allowed: batch_size 2 or more"
    ):
        bl.Trainer(bl.split(net, 2), ONE).step(x[:1], labels[:1])
    assert int(net.units[2][1].num_batches_tracked) == 0
    training = replace(job_of(net), batch_size=1)
    with pytest.raises(StageError, match=r"units\[2\] .*batch_size 2"), ThreadsExecutor(training) as running:
        running.train(1)
    modules = bl.split(bl.build_network("vgg16"), 4, head="mlp-sr")
    with pytest.raises(bl.ConfigError, match=r"heads\.\d cannot take a batch of one"):
        bl.Trainer(modules, bl.GLL()).step(x[:1], labels[:1])


def test_a_hook_of_a_parameter_is_refused() -> None:
    net = network(plain, plain)
    net.units[1][0].weight.register_hook(lambda gradient: 0.1 * gradient)
    for make in (lambda: bl.Trainer(bl.split(net, 2), ONE), lambda: ThreadsExecutor(job_of(net))):
        with pytest.raises(bl.ConfigError, match=r"units\.1\.0\.weight has a hook"):
            make()


def test_late_errors_of_checkpointed_units_use_the_weights_of_their_forward() -> None:
    found = []
    for make in (plain, AS_TORCH["checkpointed"]):
        net = network(make, make)
        trainer = bl.Trainer(bl.split(net, 2), bl.DDG(), lr=0.3)
        for step in range(4):
            trainer.step(*images(step))
        found.append(list(net.units.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_late_errors_after_a_resume_leave_unused_weights_alone() -> None:
    one, again = (
        bl.Trainer(bl.split(network(*[AS_TORCH["unused weights"]] * 2), 2), bl.DDG(), lr=0.1) for _ in range(2)
    )
    one.step(*images(0))
    again.load_state_dict(copy.deepcopy(one.state_dict()))
    for trainer in (one, again):
        trainer.step(*images(1))
    assert one.state_dict().keys() == again.state_dict().keys()
    assert different(one.state().weights, again.state().weights) == []


def test_a_checkpointed_batch_norm_is_refused_since_it_would_count_twice() -> None:
    make = AS_TORCH["checkpointed"]

    def with_norm() -> nn.Module:
        unit = make()
        unit.inner = normed()
        return unit

    trainer = bl.Trainer(bl.split(network(with_norm, plain), 2), ONE)
    with pytest.raises(bl.ConfigError, match="leave batch norms out of what is checkpointed"):
        trainer.step(*images())


# torch.compile; backend aot_eager compiles the same backward passes without a compiler


def compiled_norm() -> nn.Module:
    return torch.compile(normed(), backend="aot_eager")  # type: ignore[return-value]


def test_a_compiled_network_is_refused() -> None:
    net = network(plain)
    with pytest.raises(bl.ConfigError, match=r"torch\.compile\(network\) .* units one by one"):
        bl.split(torch.compile(net), 2)  # type: ignore[arg-type]
    net.compile()
    with pytest.raises(bl.ConfigError, match=r"torch\.compile\(network\)"):
        bl.split(net, 2)
    with pytest.raises(bl.ConfigError, match="network is a Linear"):
        bl.split(nn.Linear(2, 2), 2)  # type: ignore[arg-type]


def test_compiled_units_train_as_the_units_with_the_same_names() -> None:
    method = bl.BackLink(propagation_length=1, alpha=0.5, tail_memory="recompute")
    ours, theirs = (outcome(LocalExecutor, job_of(network(m, m), method)) for m in (compiled_norm, normed))
    assert ours[1].keys() == theirs[1].keys()
    assert all(torch.allclose(ours[1][n], theirs[1][n], atol=1e-6) for n in theirs[1])
    check_same(lambda: network(compiled_norm, compiled_norm), method)


def test_a_compiled_tail_that_retains_its_graph_is_refused_with_the_way_out_or_right() -> None:
    """Torch frees a compiled graph in its first backward, or does not: that depends on what it compiled before."""
    ours, theirs = (bl.Trainer(bl.split(network(make, make), 2), ONE) for make in (compiled_norm, normed))
    try:
        losses = ours.step(*images())
    except bl.ConfigError:
        with pytest.raises(bl.ConfigError, match="allowed here: tail_memory='recompute'"):
            ours.step(*images())
    else:
        assert torch.allclose(losses, theirs.step(*images()), atol=1e-6)
        assert torch.allclose(ours.step(*images()), theirs.step(*images()), atol=1e-6)


def test_weights_of_any_type_have_a_hash() -> None:
    found = []
    for _ in range(2):
        with LocalExecutor(job_of(network(AS_TORCH["bfloat16"], AS_TORCH["bfloat16"]))) as running:
            found.append(weights_sha256(running.state()))
            running.train(1)
            found.append(weights_sha256(running.state()))
    assert found[:2] == found[2:]
    assert found[0] != found[1]
