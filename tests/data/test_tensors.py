"""Data sets of the user's own tensors: what they become, and every refusal by name."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

import backlink_ray as bl
from backlink_ray.data.datasets import hold_out
from backlink_ray.data.loader import Batches, EvaluationBatches
from backlink_ray.data.tensors import LabelledSet, digest

NAN = float("nan")


def table(count: int = 12, **changes: object) -> dict[str, tuple[object, object]]:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    return {"train": (x, torch.arange(count) % 3), "test": (x[:6], torch.arange(6) % 3), **changes}  # type: ignore[dict-item]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64, torch.int8, np.uint16])
def test_integers_of_every_type_are_classes(dtype: object) -> None:
    labels = [2, 0, 1, 1]
    y = np.array(labels, dtype) if isinstance(dtype, type) else torch.tensor(labels, dtype=dtype)  # type: ignore[call-overload]
    data = bl.Dataset.from_tensors(train=(np.zeros((4, 5)), y), test=(np.zeros((4, 5)), y))
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.tolist() == labels
    assert (data.num_classes, data.class_names, data.train_counts) == (3, ("0", "1", "2"), [1, 2, 1])


@pytest.mark.parametrize(("shape", "columns"), [((12,), 1), ((12, 1), 1), ((12, 4), 4)])
def test_float_labels_are_targets_of_the_logits_shape(shape: tuple[int, ...], columns: int) -> None:
    y = torch.randn(shape, dtype=torch.float64)
    data = bl.Dataset.from_tensors(**table(train=(torch.zeros(12, 5), y), test=(torch.zeros(12, 5), y)))
    assert data.train.labels.shape == (12, columns)
    assert torch.equal(data.train.labels.flatten(), y.flatten())
    assert (data.num_classes, data.class_names, data.train.has_classes) == (columns, (), False)
    kept, held = hold_out(data, 0.25, seed=1)
    assert (len(kept), len(held)) == (9, 3)
    assert sorted(torch.cat([kept.labels, held.labels])[:, 0].tolist()) == sorted(y.view(12, -1)[:, 0].tolist())
    assert torch.equal(hold_out(data, 0.25, seed=1)[1].labels, held.labels)
    assert not torch.equal(hold_out(data, 0.25, seed=2)[1].labels, held.labels)


X, Y = torch.zeros(4, 5), torch.tensor([0, 1, 2, 0])
FLOATS = torch.tensor([0.5, 1.0, 2.0, 0.0])
PAD_8 = bl.Augmentation(pad=8, mode="constant", flip=True)
BYTES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": (X, Y[:3])}, r"train has 4 inputs and 3 labels.*one label per input"),
        ({"train": X}, r"train is a Tensor; allowed: a pair"),
        ({"train": (X[:0], Y[:0])}, r"train inputs are empty.*\(0, 5\)"),
        ({"test": (X[:, :0], Y)}, r"test inputs are empty.*\(4, 0\)"),
        ({"train": ("abc", Y)}, r"train inputs are a str .*allowed: a tensor"),
        ({"train": (X > 0, Y)}, r"train inputs are torch.bool.*x.float\(\)"),
        ({"train": (X.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(NAN)), Y)}, r"inputs hold nan at \[2, 3\]"),
        ({"test": (X, Y), "train": (X.double(), Y)}, r"train inputs are torch.float64 \(4, 5\), test inputs torch.float32"),
        ({"test": (X[:, :4], Y)}, r"\(4, 5\), test inputs torch.float32 \(4, 4\); allowed"),
        ({"test": (X, Y + 1)}, r"test labels hold 3 at \[2\]; allowed: classes 0..2"),
        ({"train": (X, Y - 1)}, r"train labels hold -1 at \[0\]; allowed: classes 0..1"),
        ({"train": (X, Y * 10**12)}, r"no train label is 1, and the largest is 2000000000000;"),
        ({"train": (X, Y + 1)}, r"no train label is 0, and the largest is 3; number the classes from 0"),
        ({"train": (X, Y), "class_names": ("a", "b")}, r"train labels hold 2 at \[2\]; allowed: classes 0..1"),
        ({"train": (X, Y[:, None])}, r"train labels have shape \(4, 1\).*y.flatten\(\)"),
        ({"train": (X, FLOATS)}, r"train labels are torch.float32, test labels torch.int64"),
        ({"train": (X, FLOATS), "test": (X, FLOATS), "class_names": "abc"}, r"targets of a regression.*y.long\(\)"),
        ({"train": (X, FLOATS / 0), "test": (X, FLOATS)}, r"train labels hold inf at \[0\]"),
        ({"train": (X, FLOATS), "test": (X, FLOATS.view(2, 2).repeat(2, 1))}, r"have 1 columns, test labels 2"),
        ({"train": (X, FLOATS.view(1, 2, 2).repeat(4, 1, 1)), "test": (X, FLOATS)}, r"\(4, 2, 2\).*\(N,\) or \(N, D\)"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\), std=\(\) do not fit 5 channels; allowed: 1 or 5 of both"),
        ({"mean": (0.5, 1), "std": (1, 1)}, r"do not fit 5 channels"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std above 0"),
        ({"mean": NAN, "std": 1.0}, r"mean=\(nan,\).*finite"),
        ({"train": (X, Y.to(torch.complex64))}, r"train labels are torch.complex64; allowed: floating"),
        ({"train": (Y[:, None], Y), "test": (Y[:, None], Y), "mean": (1,), "std": (1,)}, r"no meaning for torch.int64"),
        ({"augmentation": bl.Augmentation(pad=1, mode="reflect", flip=True)}, r"for images .* not for inputs .*\(4, 5\)"),
        ({"train": (BYTES, Y), "test": (BYTES, Y), "augmentation": PAD_8}, r"pad=8 .*allowed 0\.\.7"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_by_name(given: dict[str, object], message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        bl.Dataset.from_tensors(**{"train": (X, Y), "test": (X, Y), **given})  # type: ignore[arg-type]


def test_arrays_in_reverse_and_numbers_for_all_channels_are_read() -> None:
    x = np.arange(20.0).reshape(4, 5)
    data = bl.Dataset.from_tensors(train=(x[::-1], Y), test=(x, Y), mean=2.0, std=np.float32(4))
    assert data.train.prepared(torch.float64).tolist() == ((x[::-1] - 2) / 4).tolist()


def test_class_names_allow_a_class_without_examples() -> None:
    data = bl.Dataset.from_tensors(train=(X, Y), test=(X, Y), class_names=("a", "b", "c", "d"))
    assert (data.num_classes, data.train_counts) == (4, [2, 1, 1, 0])


def test_nothing_is_normalised_or_augmented_unless_asked() -> None:
    data = bl.Dataset.from_tensors(**table())
    batches = Batches(data.train, 4, seed=0)
    rows = {tuple(row) for row in data.train.inputs.tolist()}
    assert {tuple(row) for step in range(3) for row in batches.inputs(step).tolist()} == rows
    images = bl.Dataset.from_tensors(train=(BYTES + 51, Y), test=(BYTES, Y))
    assert Batches(images.train, 4, seed=0).inputs(0).unique().tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 7), (12, 5, 4, 4)])
def test_floats_are_normalised_per_channel_in_training_and_evaluation(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 1e9
    mean, std = [1e9 + i for i in range(5)], [1.0 + i for i in range(5)]
    data = bl.Dataset.from_tensors(train=(x, torch.zeros(12)), test=(x, torch.zeros(12)), mean=mean, std=std)
    ((found, _),) = EvaluationBatches(data.test, 12)
    ends = (1, 5, *(1,) * (len(shape) - 2))
    wanted = (x - torch.tensor(mean, dtype=torch.float64).view(ends)) / torch.tensor(std, dtype=torch.float64).view(
        ends
    )
    assert torch.equal(found, wanted.float())  # subtracted in float64, as 1e9 needs
    assert torch.equal(found, data.test.prepared())
    assert torch.equal(data.test.inputs, x)  # not in place
    batches = Batches(data.train, 12, seed=0)
    assert torch.equal(batches.inputs(0).flatten(1).sort(0).values, wanted.float().flatten(1).sort(0).values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_a_network_gets_its_own_type(dtype: torch.dtype) -> None:
    images = LabelledSet(inputs=BYTES + 51, labels=Y, mean=(0.1,), std=(2.0,))
    assert Batches(images, 4, seed=0, dtype=dtype).inputs(0).dtype == dtype
    assert next(iter(EvaluationBatches(images, 4, dtype=dtype)))[0].unique().tolist() == [pytest.approx(0.05, rel=4e-3)]
    targets = Batches(LabelledSet(inputs=X, labels=FLOATS[:, None]), 4, seed=0, dtype=dtype).labels(0)
    assert (targets.dtype, targets.shape) == (dtype, (4, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_tokens_of_every_type_reach_the_network_as_int64(dtype: torch.dtype) -> None:
    tokens = torch.arange(20, dtype=dtype).view(4, 5)
    data = bl.Dataset.from_tensors(train=(tokens, Y), test=(tokens, Y))
    found = Batches(data.train, 4, seed=0, dtype=torch.bfloat16).inputs(0)
    assert found.dtype == torch.int64
    assert sorted(found.flatten().tolist()) == list(range(20))
    assert data.image_size == 0


def test_own_augmentation_is_drawn_from_seed_and_step_and_changes_no_evaluation() -> None:
    def noise(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs + torch.randn(inputs.shape, generator=generator)

    data = bl.Dataset.from_tensors(**table(), augmentation=noise)
    first, again, other = (Batches(data.train, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.inputs(2), again.inputs(2))
    assert not torch.equal(first.inputs(2), other.inputs(2))
    plain = Batches(replace(data.train, augmentation=None), 4, seed=0)
    assert not torch.equal(first.inputs(2), plain.inputs(2))
    assert torch.equal(next(iter(EvaluationBatches(data.test, 6)))[0], data.test.inputs)
    halved = replace(data.train, augmentation=lambda inputs, _generator: inputs[:2])
    with pytest.raises(bl.ConfigError, match=r"returns torch.float32 \(2, 5\) for torch.float32 \(4, 5\)"):
        Batches(halved, 4, seed=0).inputs(0)


def test_the_digest_is_that_of_the_bytes_of_any_type_and_follows_every_change() -> None:
    data = bl.Dataset.from_tensors(**table())
    same, other = table(), table()
    other["test"] = (other["test"][0], (torch.arange(6) + 1) % 3)
    assert bl.Dataset.from_tensors(**same).digest == data.digest != bl.Dataset.from_tensors(**other).digest
    assert data.first(test_images=5).digest != data.digest == data.first().digest
    half = [(x.bfloat16(), y) for x, y in (same["train"], same["test"])]  # type: ignore[attr-defined]
    assert bl.Dataset.from_tensors(half[0], half[1]).digest != data.digest


def test_the_digest_copies_no_data() -> None:
    large = LabelledSet(inputs=torch.zeros(4, 1_000_000), labels=Y)
    tracemalloc.start()
    digest(large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_first_examples_take_no_others_along_and_all_are_not_copied() -> None:
    data = bl.Dataset.from_tensors(**table())
    few = data.first(train_images=5).train
    assert few.inputs.untyped_storage().nbytes() == few.inputs.nbytes
    assert torch.equal(few.inputs, data.train.inputs[:5])
    assert data.first(train_images=12, test_images=6) is data.first() is data
