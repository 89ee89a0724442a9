"""Tables and tokens, in networks of any floating-point type, on the executors of one process: equal bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import different, falling_lr


def table_network() -> bl.Network:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()) for _ in range(4)]
    return bl.Network(units, nn.Linear(6, 3), torch.zeros(1, 6))


def token_network() -> bl.Network:
    torch.manual_seed(0)
    mix = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(5 * 8, 3))
    return bl.Network([nn.Embedding(20, 8), *mix, nn.Linear(8, 8)], classifier, torch.zeros(1, 5, dtype=torch.int64))


def data_of(kind: str) -> bl.Dataset:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(40) % 3
    if kind == "table":
        x = torch.randn(40, 6, generator=g, dtype=torch.float64) * 7 + y[:, None]
        return bl.Dataset.from_tensors(train=(x, y), test=(x[:9], y[:9]), mean=[1.0], std=[7.0])
    x = torch.randint(0, 20, (40, 5), generator=g, dtype=torch.uint8)
    return bl.Dataset.from_tensors(train=(x, y.int()), test=(x[:9], y[:9].int()))


def job(kind: str, method: bl.BackLink, dtype: torch.dtype = torch.float32) -> Job:
    network, data = {"table": table_network, "tokens": token_network}[kind]().to(dtype), data_of(kind)
    given = {"train": data.train, "evaluations": {"test": data.test}, "batch_size": 8, "lr": falling_lr, "seed": 2}
    return Job(modules=bl.split(network, 2), method=method, **given)  # type: ignore[arg-type]


def trained(make: Callable[[Job], Executor], of: Job) -> tuple[dict[str, Tensor], Tensor, float]:
    with make(of) as executor:
        losses = executor.train(6).losses
        return executor.state().weights, losses, executor.evaluate("test").loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["table", "tokens"])
@pytest.mark.parametrize("link", ["replica", "error"])
def test_any_data_in_any_type_trains_to_the_same_bits_on_both_executors(
    kind: str, dtype: torch.dtype, link: str
) -> None:
    method = bl.BackLink(propagation_length=1, alpha=0.5, link=link)
    local, threads = (trained(make, job(kind, method, dtype)) for make in (LocalExecutor, ThreadsExecutor))
    assert different(local[0], threads[0]) == []
    assert torch.equal(local[1], threads[1])
    assert local[2] == threads[2]
    start = {name: tensor for module in job(kind, method, dtype).modules for name, tensor in module.named_state()}
    assert {tensor.dtype for tensor in local[0].values() if tensor.is_floating_point()} == {dtype}
    moved = different(start, local[0])
    assert any(name.startswith("units.0") and name.endswith("weight") for name in moved)


@pytest.mark.parametrize("base", [False, True])
def test_a_method_that_reconstructs_images_refuses_other_inputs(base: bool) -> None:
    method = bl.BackLink(base=bl.InfoPro()) if base else bl.InfoPro()
    with pytest.raises(bl.ConfigError, match=r"infopro reconstructs images, uint8 .*torch.float64 of shape \(40, 6\)"):
        job("table", method)  # type: ignore[arg-type]


def test_a_job_gives_infopro_the_normalisation_of_its_images() -> None:
    images, y = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 3
    network = bl.Network(
        [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images.float()
    )
    for given, wanted in (({}, ((0.0,), (1.0,))), ({"mean": [0.1], "std": [0.3]}, ((0.1,), (0.3,)))):
        data = bl.Dataset.from_tensors(train=(images, y), test=(images, y), **given)  # type: ignore[arg-type]
        modules = bl.split(network, 2)
        made = Job(modules=modules, method=bl.InfoPro(), train=data.train, evaluations={}, batch_size=2, lr=0.1)
        assert (made.method.mean, made.method.std) == wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("network", "kind", "message"),
    [
        (lambda: bl.Network([nn.Embedding(9, 2)], nn.Flatten(), torch.zeros(1, 6, dtype=torch.int64)), "table", "takes integers"),
        (lambda: bl.Network([nn.Linear(5, 5)], nn.Linear(5, 3), torch.zeros(1, 5)), "tokens", "takes floating-point numbers"),
        (lambda: bl.Network([nn.Linear(6, 6)], nn.Linear(6, 2), torch.zeros(1, 6)), "table", r"hold 2 at \[2\].*0\.\.1"),
    ],
)  # fmt: skip
def test_data_that_a_network_cannot_take_is_refused_before_anything_starts(
    network: Callable[[], bl.Network], kind: str, message: str
) -> None:
    data, modules = data_of(kind), bl.split(network(), 1)
    with pytest.raises(bl.ConfigError, match=message):
        Job(modules=modules, method=bl.GLL(), train=data.train, evaluations={}, batch_size=8, lr=falling_lr)  # type: ignore[arg-type]
