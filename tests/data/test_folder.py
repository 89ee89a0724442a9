"""Data sets of image files, a folder for every class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backlink_ray as bl
from backlink_ray.errors import DataError


def write(
    folder: Path, count: int = 10, size: tuple[int, int] = (8, 8), mode: str = "RGB", ending: str = "png"
) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:02d}.{ending}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "Dog"):
            write(tmp_path / "pets" / part / name, count)
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "pets"


def test_files_are_read_by_class_in_the_order_of_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bl.Dataset.from_folder(folder)
    assert (data.name, data.class_names, data.image_size) == ("pets", ("Dog", "cat"), 8)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    wanted = np.asarray(Image.open(folder / "train" / "cat" / "01.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train.inputs[5].numpy(), wanted)
    assert (data.train.mean, data.train.augmentation) == ((), None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inner", ["", "train"])
def test_without_a_test_folder_a_part_of_every_class_is_held_out_and_said(
    tmp_path: Path, inner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write(tmp_path / inner / name, 10)
    data = bl.Dataset.from_folder(tmp_path, test_fraction=0.2, seed=1)
    assert "no folder test: 4 of its 20 images, chosen by seed 1, are held out" in capsys.readouterr().err
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert bl.Dataset.from_folder(tmp_path, test_fraction=0.2, seed=1).digest == data.digest
    assert bl.Dataset.from_folder(tmp_path, test_fraction=0.2, seed=2).digest != data.digest


def test_a_class_of_one_image_cannot_be_divided(tmp_path: Path) -> None:
    write(tmp_path / "a", 4)
    write(tmp_path / "b", 1)
    with pytest.raises(DataError, match=r"b has one image; expected two or more"):
        bl.Dataset.from_folder(tmp_path)


def test_sizes_must_agree_unless_all_are_resized(folder: Path) -> None:
    write(folder / "test" / "cat" / "more", 1, (9, 6))
    with pytest.raises(DataError, match=r"more/00.png is 9 x 6, the first image 8 x 8; give image_size"):
        bl.Dataset.from_folder(folder)
    data = bl.Dataset.from_folder(folder, image_size=5)
    assert data.test.inputs.shape == (5, 3, 5, 5)


def test_grey_images_and_other_formats_become_rgb(tmp_path: Path) -> None:
    write(tmp_path / "a", 2, mode="L", ending="bmp")
    write(tmp_path / "b", 2, mode="RGBA", ending="PNG")
    data = bl.Dataset.from_folder(tmp_path, test_fraction=0.5)
    assert data.train.inputs.shape == (2, 3, 8, 8)
    assert np.ptp(data.train.inputs[0].numpy(), axis=0).max() == 0  # grey


def test_hidden_files_are_no_images(folder: Path) -> None:
    before = bl.Dataset.from_folder(folder).digest
    write(folder / "train" / "cat" / ".ipynb_checkpoints", 1)
    (folder / "train" / "cat" / "._01.png").write_bytes(b"no image")
    assert bl.Dataset.from_folder(folder).digest == before


def test_a_test_folder_is_never_a_class(folder: Path) -> None:
    for name in ("cat", "Dog"):
        (folder / "train" / name).rename(folder / name)
    (folder / "train").rmdir()
    with pytest.raises(DataError, match=r"train has no folders of images"):
        bl.Dataset.from_folder(folder)


@pytest.mark.parametrize(("kind", "ending"), [(np.uint16, "png"), (np.float32, "tiff")])
def test_images_of_more_than_8_bits_are_refused(folder: Path, kind: type, ending: str) -> None:
    Image.fromarray(np.full((8, 8), 1000, kind)).save(folder / "test" / "cat" / f"x.{ending}")
    with pytest.raises(DataError, match=rf"cat/x.{ending} cannot be read .*more than 8 bits"):
        bl.Dataset.from_folder(folder)


def test_what_is_wrong_with_a_folder_is_said_with_its_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere has no folders of images; expected .*nowhere/<class>/\*"):
        bl.Dataset.from_folder(tmp_path / "nowhere")
    with pytest.raises(bl.ConfigError, match="image_size=0"):
        bl.Dataset.from_folder(folder, 0)
    with pytest.raises(bl.ConfigError, match="test_fraction=0.9"):
        bl.Dataset.from_folder(folder, test_fraction=0.9)
    write(folder / "test" / "fish", 1)
    with pytest.raises(DataError, match=r"test/fish is a class that training lacks; its classes are Dog, cat"):
        bl.Dataset.from_folder(folder)
    (folder / "train" / "fish").mkdir()
    with pytest.raises(DataError, match=r"train/fish has no images; expected files that end in"):
        bl.Dataset.from_folder(folder)
    (folder / "train" / "fish" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"fish/1.png cannot be read as an image"):
        bl.Dataset.from_folder(folder)
