"""Precision, memory format and compiled units: the same bits in every executor, over links, and after a checkpoint."""

from collections.abc import Callable, Iterator
from itertools import product, starmap
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import LocalModule, ModuleSpec
from backlink_ray.methods.base import Batch
from backlink_ray.pipeline.exchange import Kind, QueueLink
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.provenance import flushes_subnormals
from backlink_ray.train.checkpoint import Checkpoints
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import job
from tests.methods.settings import SETTINGS
from tests.pipeline.test_transparency import check_equal, check_same, outcome

Make = Callable[[Job], Executor]
BF16 = Engine(precision="bf16")


class Setting(NamedTuple):
    """K and l as one, the rest as in `Engine` and `BackLink`."""

    cut: tuple[int, int]
    precision: str
    memory_format: str
    tail_memory: str
    link: str

    def job(self, compiled: str = "none", transport: str = "auto") -> Job:
        num_modules, length = self.cut
        method = bl.BackLink(propagation_length=length, alpha=0.25, tail_memory=self.tail_memory, link=self.link)
        engine = Engine(precision=self.precision, memory_format=self.memory_format, compile=compiled)
        return job(method, num_modules, "conv", batch_size=4, engine=engine, transport=transport)


CUTS = ((1, 0), (2, 1), (3, 0), (4, 2))
MATRIX = list(
    starmap(
        Setting,
        product(CUTS, ("fp32", "bf16"), ("channels_last", "contiguous"), ("retain", "recompute"), ("replica", "error")),
    )
)
# Over Ray every time: every precision and format with every other value, once.
SOME = [
    Setting((2, 1), "fp32", "contiguous", "recompute", "error"),
    Setting((2, 1), "bf16", "channels_last", "retain", "replica"),
    Setting((3, 0), "bf16", "contiguous", "retain", "error"),
    Setting((4, 2), "fp32", "contiguous", "retain", "replica"),
    Setting((4, 2), "bf16", "channels_last", "recompute", "replica"),
]
some_ids = pytest.mark.parametrize("setting", SOME, ids=lambda s: "-".join(map(str, s)))
ids = pytest.mark.parametrize("setting", MATRIX, ids=lambda s: "-".join(map(str, s)))


@ids
def test_threads(setting: Setting) -> None:
    check_same(outcome(ThreadsExecutor, setting.job()), outcome(LocalExecutor, setting.job()))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["objectstore", "collective"])
@some_ids
def test_ray(setting: Setting, transport: str, pooled_executor: Make) -> None:
    check_same(outcome(pooled_executor, setting.job(transport=transport)), outcome(LocalExecutor, setting.job()))


@pytest.mark.slow
@pytest.mark.timeout(180)
@ids
def test_ray_everywhere(setting: Setting, pooled_executor: Make) -> None:
    check_same(outcome(pooled_executor, setting.job()), outcome(LocalExecutor, setting.job()))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_in_bf16(name: str) -> None:
    check_equal(ThreadsExecutor, lambda: job(SETTINGS[name], 3, "fc", dropout=0.2, batch_size=8, engine=BF16))


def test_tail_memory_and_link_change_no_bit_and_precision_and_format_do() -> None:
    found = {setting: outcome(LocalExecutor, setting.job()) for setting in MATRIX if setting.cut == (4, 2)}
    ways = {(s.precision, s.memory_format): o for s, o in found.items()}
    for setting, own in found.items():
        check_same(own, ways[setting.precision, setting.memory_format])
    assert not torch.equal(ways["bf16", "contiguous"][3], ways["fp32", "contiguous"][3])


@pytest.mark.parametrize("setting", [SOME[0], SOME[4]], ids=lambda s: "-".join(map(str, s)))
def test_compiled_units(setting: Setting) -> None:
    ours, theirs = (outcome(make, setting.job("units")) for make in (ThreadsExecutor, LocalExecutor))
    check_same(ours, theirs)
    plain = outcome(LocalExecutor, setting.job())
    assert plain[0].keys() == ours[0].keys()  # parameters keep their names
    torch.testing.assert_close(ours[3], plain[3], rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_units_over_ray(ray_executor: Make) -> None:
    check_same(outcome(ray_executor, SOME[4].job("units")), outcome(LocalExecutor, SOME[4].job("units")))


def test_what_is_bfloat16_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations and errors at the cuts are; weights, momentum, statistics, losses and the link's gradients are float32."""
    sent: dict[Kind, set[torch.dtype]] = {}
    sizes: set[int] = set()  # of messages of bytes, which are a tail's gradients
    send = QueueLink.send

    def watched(self: QueueLink, kind: Kind, step: int, tensor: Tensor) -> None:
        sent.setdefault(kind, set()).add(tensor.dtype)
        sizes.update([tensor.nbytes] if tensor.dtype == torch.uint8 else [])
        send(self, kind, step, tensor)

    monkeypatch.setattr(QueueLink, "send", watched)
    for link in ("replica", "error"):
        with ThreadsExecutor(Setting((3, 1), "bf16", "channels_last", "retain", link).job()) as executor:
            executor.train(3)
            state = executor.state()
            tails = [module.tail(1).weights for module in executor._modules[:-1]]
            assert {t.dtype for n, t in state.weights.items() if not n.endswith("batches_tracked")} == {torch.float32}
            assert {t.dtype for t in state.optimizer.values()} == {torch.float32}
    half, raw = {torch.bfloat16}, {torch.uint8}
    assert sent == {Kind.ACTIVATION: half, Kind.ERROR: half, Kind.LINK_GRADIENT: raw, Kind.LOCAL_GRADIENT: raw}
    assert sizes == {4 * sum(weight.numel() for weight in tail) for tail in tails}


def test_a_loss_of_the_users_is_float32_whatever_it_computes() -> None:
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        mixed = logits.softmax(dim=1) @ torch.eye(10)
        seen.append(mixed.dtype)
        return -mixed.clamp_min(1e-6).log()[torch.arange(len(labels)), labels].mean()

    with LocalExecutor(job(bl.BackLink(propagation_length=1), 2, batch_size=4, loss=loss, engine=BF16)) as executor:
        executor.train(1)
    assert set(seen) == {torch.float32}


class Contiguous(torch.nn.Module):
    """A unit whose output is not channels_last, and which writes down whether subnormal numbers are flushed."""

    seen: ClassVar[list[bool]] = []

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(width, 16, 3, padding=1), torch.nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(flushes_subnormals())
        return self.layers(x).relu().contiguous()


def test_late_errors_of_units_in_another_order_continue_bit_for_bit() -> None:
    def new() -> bl.Trainer:
        torch.manual_seed(0)
        units = [Contiguous(3), torch.nn.BatchNorm2d(16), Contiguous(16), torch.nn.BatchNorm2d(16)]
        head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 256, 10))
        return bl.Trainer(bl.split(bl.Network(units, head, torch.zeros(1, 3, 16, 16)), 4), bl.DDG(), 0.1)

    def steps(trainer: bl.Trainer, first: int, last: int) -> Tensor:
        found = []
        for t in range(first, last):
            g = torch.Generator().manual_seed(t)
            found.append(trainer.step(torch.randn(16, 3, 16, 16, generator=g), torch.arange(16) % 10))
        return torch.stack(found)

    whole, rest = new(), new()
    steps(whole, 0, 6)
    state = {n: t.contiguous() if isinstance(t, Tensor) else t for n, t in whole.state_dict().items()}  # as on disk
    Contiguous.seen.clear()
    rest.load_state_dict({n: t.clone() if isinstance(t, Tensor) else t for n, t in state.items()})
    assert Contiguous.seen
    assert all(Contiguous.seen)
    assert torch.equal(steps(rest, 6, 10), steps(whole, 6, 10))


def test_tf32_is_switched_so_that_torch_can_still_be_asked() -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    try:
        for precision in ("fp32", "tf32", "bf16", "fp32"):
            with Engine(precision=precision).running(torch.device("cuda")):
                on = precision == "tf32"
                assert (cuda.allow_tf32, cudnn.allow_tf32) == (on, on)
                assert cudnn.rnn.fp32_precision == cudnn.conv.fp32_precision == ("tf32" if on else "ieee")  # type: ignore[attr-defined]
                torch.get_float32_matmul_precision()
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before[:2]
        cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before[2:]  # type: ignore[attr-defined]


def test_compile_asks_for_the_compiler_that_inductor_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "c++").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    engine, here = Engine(compile="units"), (torch.device("cpu"), torch.float32)
    with pytest.raises(bl.ConfigError, match="is not on PATH"):
        engine.check(*here)
    monkeypatch.setenv("CXX", "c++")
    engine.check(*here)


@pytest.mark.parametrize("name", ["backlink, mode=stale", "ddg", "dni", "infopro", "predsim"])
@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_a_run_in_bf16_continues_from_a_checkpoint_bit_for_bit(name: str, make: Make, tmp_path: Path) -> None:
    def new() -> Job:
        return job(SETTINGS[name], 3, "conv", dropout=0.2, engine=BF16)

    with make(new()) as whole:
        whole.train(3)
        Checkpoints(tmp_path).save(whole.state(), {})
        losses, expected = whole.train(3).losses, whole.state()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    with make(new()) as rest:
        rest.load(found[0])
        assert torch.equal(rest.train(3).losses, losses)
        assert all(torch.equal(t, expected.weights[n]) for n, t in rest.state().weights.items())


class Watched(torch.nn.Module):
    """A unit that writes down whether subnormal numbers are flushed where it runs, forward and backward."""

    seen: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(flushes_subnormals())
        if x.requires_grad:
            x.register_hook(lambda _: self.seen.append(flushes_subnormals()))
        return x * 1.0


@pytest.fixture
def watched() -> Iterator[list[bool]]:
    Watched.seen.clear()
    yield Watched.seen
    Watched.seen.clear()


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_subnormals_are_flushed_while_a_run_computes_and_not_afterwards(make: Make, watched: list[bool]) -> None:
    flat = torch.nn.Flatten()
    network = bl.Network([Watched(), torch.nn.Sequential(flat, torch.nn.Linear(3072, 4)), Watched()],
                         torch.nn.Linear(4, 10), torch.zeros(1, 3, 32, 32))  # fmt: skip
    watched.clear()
    training = job(bl.GLL(), 1, batch_size=4)
    training = training.with_parts(modules=bl.split(network, 2))
    watched.clear()
    with make(training) as executor:
        executor.train(2)
        executor.evaluate("test")
        assert all(process["subnormals_flushed"] for process in executor.environments())
    assert len(watched) > 6
    assert all(watched)
    assert not flushes_subnormals()


class Viewed(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class ViewingHelper(bl.Method):
    name: ClassVar[str] = "viewing"

    def build_helper(self, spec: ModuleSpec) -> torch.nn.Module:
        return Viewed()

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        return super().loss(module, features, batch) + (0 if module.is_last else module.helper(features).mean())


@pytest.mark.parametrize(
    ("method", "flat", "found"),
    [(bl.BP(), Viewed(), r"units\[1\]"), (ViewingHelper(), torch.nn.Flatten(), "helper or loss of module 0")],
)
def test_a_view_that_channels_last_breaks_says_what_to_do(method: bl.Method, flat: torch.nn.Module, found: str) -> None:
    units, batch = [torch.nn.Conv2d(3, 4, 3), flat], (torch.randn(4, 3, 8, 8), torch.arange(4))
    network = bl.Network(units, torch.nn.Linear(4 * 36, 10), torch.zeros(1, 3, 8, 8))
    with pytest.raises(bl.ConfigError, match=rf"{found} .*memory_format='contiguous'"):
        bl.Trainer(bl.split(network, 2), method).step(*batch)
    bl.Trainer(bl.split(network, 2), method, engine=Engine(memory_format="contiguous")).step(*batch)
