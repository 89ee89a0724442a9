"""Trainer.fit over a DataLoader or a list, and batches that a step refuses before anything moves."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import backlink_ray as bl
from backlink_ray.errors import NotFiniteError

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def trainer(dtype: torch.dtype = torch.float32, lr: float = 0.1) -> bl.Trainer:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()) for _ in range(3)]
    network = bl.Network(units, nn.Linear(6, 3), torch.zeros(1, 6)).to(dtype)
    return bl.Trainer(bl.split(network, 3), bl.BackLink(propagation_length=1), lr=lr)


def weights(of: bl.Trainer) -> list[Tensor]:
    return [tensor.clone() for tensor in of.state().weights.values()]


def test_a_data_loader_gives_the_mean_losses_of_every_epoch_and_the_weights_of_its_steps() -> None:
    loader = DataLoader(TensorDataset(X, Y.int()), batch_size=8)
    fitted, stepped = trainer(), trainer()
    losses = fitted.fit(loader, epochs=2)
    wanted = [[stepped.step(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)] for _ in range(2)]
    assert (losses.shape, losses.dtype) == ((2, 3), torch.float64)
    assert torch.equal(losses, torch.stack([torch.stack(epoch).double().mean(dim=0) for epoch in wanted]))
    assert all(torch.equal(a, b) for a, b in zip(weights(fitted), weights(stepped), strict=True))
    assert fitted.step_index == 6


def test_an_iterator_is_fit_once_and_refused_for_more_before_it_is_used() -> None:
    one, batches = trainer(), iter([(X, Y), (X, Y)])
    with pytest.raises(bl.ConfigError, match=r"epochs=2 of a list_iterator; .*1 for an iterator"):
        one.fit(batches, epochs=2)
    assert one.step_index == 0
    one.fit(batches)
    assert one.step_index == 2


class Once:
    """An iterable that is no iterator and gives its batches once."""

    def __init__(self) -> None:
        self._left = [(X, Y)]

    def __iter__(self) -> object:
        while self._left:
            yield self._left.pop()


@pytest.mark.parametrize(
    ("batches", "epochs", "message"),
    [
        ([], 1, "a list gave no batch at step 0"),
        (Once(), 2, "a Once gave no batch at step 1"),
        ([(X, Y)], 0, "epochs=0"),
        ([X], 1, r"a batch is a Tensor; allowed: a pair \(inputs, labels\)"),
        ([{"x": X, "y": Y}], 1, "a batch is a dict"),
        ([(X, Y, Y)], 1, "a batch is a tuple"),
        ([(X, Y.tolist())], 1, r"a batch of \(Tensor, list\)"),
    ],
)
def test_what_is_no_iterable_of_pairs_is_refused(batches: object, epochs: int, message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        trainer().fit(batches, epochs)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_the_fit_with_its_step() -> None:
    with pytest.raises(NotFiniteError, match="stage 0 .*at step 1"):
        trainer().fit([(X, Y), (X * float("nan"), Y)])


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (X, Y[:7], "20 inputs and 7 labels"),
        (X[:0], Y[:0], "0 inputs and 0 labels"),
        (X, Y + 1, r"labels hold 3 at \[2\]; allowed: classes 0..2"),
        (X[:, :5], Y, r"inputs have shape \(5,\), but the network was built for \(6,\)"),
        (X.long(), Y, "inputs are torch.int64, but the network takes floating-point numbers"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_moves_nothing(inputs: Tensor, labels: Tensor, message: str) -> None:
    one = trainer()
    before = weights(one)
    with pytest.raises(bl.ConfigError, match=message):
        one.step(inputs, labels)
    with pytest.raises(bl.ConfigError, match=message):
        bl.gradients(one.modules, one.method, inputs, labels)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(one), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_takes_a_loader_of_float32(dtype: torch.dtype) -> None:
    one = trainer(dtype)
    assert one.fit([(X, Y.to(torch.uint8))]).isfinite().all()
    assert {t.dtype for t in one.state().weights.values() if t.is_floating_point()} == {dtype}
