"""Broken files: each gives one error with the file, what was expected and found, and the command that fixes it."""

import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.provision import Download, provide
from backlink_ray.errors import DataError
from tests.data.originals import REPOSITORY, md5
from tests.data.tiny import TRAIN_IMAGES, Tiny, build_svhn

FOLDER = "cifar-10-batches-py"


def _flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("damage", [_flip_byte, _truncate])
def test_corrupt_file_is_named_with_both_checksums_and_the_fix(tiny: Tiny, damage, download: bool) -> None:
    for name in tiny.files:
        path = tiny.folder / name
        good, expected = path.read_bytes(), md5(path)
        damage(path)
        with pytest.raises(DataError) as caught:
            load_dataset(tiny.name, tiny.folder, download=download)
        message = f"{path} is corrupt: expected md5 {expected}, found md5 {md5(path)}; fix: rm {path} and run again"
        assert str(caught.value).startswith(message)
        path.write_bytes(good)
    assert len(load_dataset(tiny.name, tiny.folder).train) == TRAIN_IMAGES


def test_missing_file_with_downloads_off_names_file_and_fix(tiny: Tiny) -> None:
    for name in tiny.files:
        path = tiny.folder / name
        good = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError) as caught:
            load_dataset(tiny.name, tiny.folder, download=False)
        assert str(caught.value).startswith(f"{path} is missing; fix: curl -fL -o {tiny.folder}/")
        assert ("&& tar -xzf" in str(caught.value)) == (tiny.name != "svhn")
        path.write_bytes(good)


def test_the_printed_command_fixes_it(tiny_cifar10: Tiny, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_cifar10.source(), "url", address + tiny_cifar10.downloads[0])
    tiny_cifar10.remove_files()
    root = tiny_cifar10.folder.parent / "a root with spaces"
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", root, download=False)
    command = str(caught.value).partition("fix: ")[2].rpartition(" (md5")[0]
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)
    assert len(load_dataset("cifar10", root, download=False).train) == TRAIN_IMAGES


def test_archive_in_the_root_needs_no_network(tiny: Tiny) -> None:
    tiny.remove_files()
    assert len(load_dataset(tiny.name, tiny.folder).train) == TRAIN_IMAGES
    assert {path.name for path in tiny.folder.rglob("*") if path.is_file()} == {
        *(Path(name).name for name in (*tiny.files, *tiny.downloads)),
        *(path.name for path in tiny.folder.glob(".*.lock")),
    }  # STL-10's images without labels are not unpacked, and no partial file is left behind


def test_failed_download_is_one_clear_error(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"download failed.*{tiny.downloads[0]}"):
        load_dataset(tiny.name, tmp_path / "empty")


@pytest.mark.parametrize("download", [True, False])
def test_root_that_cannot_be_written_is_named(tiny: Tiny, tmp_path: Path, download: bool) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "data"
    with pytest.raises(DataError, match=re.escape(str(root))):
        load_dataset(tiny.name, root, download=download)


def test_without_scipy_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build_svhn(tmp_path / "tiny")
    monkeypatch.setattr(made.source(), "split_list", made.attributes("")["split_list"])
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match="pip install scipy"):
        load_dataset("svhn", made.folder)


def test_a_damaged_file_of_the_real_set_is_found(full_root: Path, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for source in (full_root / FOLDER).iterdir():
        (tmp_path / FOLDER / source.name).symlink_to(source)
    damaged = tmp_path / FOLDER / "data_batch_2"
    damaged.unlink()
    shutil.copyfile(full_root / FOLDER / "data_batch_2", damaged)
    _flip_byte(damaged)
    with pytest.raises(DataError, match="d4bba439e000b95fd0a9bffe97cbabec") as caught:
        load_dataset("cifar10", tmp_path, download=False)
    assert str(damaged) in str(caught.value)


def test_original_addresses_have_a_checksum() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100, STL10, SVHN

    for source in (CIFAR10, CIFAR100):
        assert source.url.startswith("https://")
    sums = [*(s.tgz_md5 for s in (CIFAR10, CIFAR100, STL10)), *(SVHN.split_list[s][2] for s in ("train", "test"))]
    assert [len(md5) for md5 in sums] == [32] * 5


@pytest.mark.slow
def test_a_part_of_svhn_is_not_svhn(svhn_root: Path) -> None:
    if (svhn_root / "train_32x32.mat").stat().st_size > 182_000_000:
        pytest.skip("the files here are the whole SVHN")
    with pytest.raises(DataError, match="e26dedcc434d2e4c54c9b2d4a06d8373"):
        load_dataset("svhn", svhn_root)


class _Handler(http.server.SimpleHTTPRequestHandler):
    delay_s = 0.0

    def do_GET(self) -> None:
        time.sleep(self.delay_s)
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tiny_cifar10: Tiny) -> Iterator[str]:
    handler = functools.partial(_Handler, directory=str(tiny_cifar10.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _start(tiny: Tiny, address: str, root: Path) -> subprocess.Popen[str]:
    attributes = json.dumps(tiny.attributes(address))
    command = [sys.executable, "-m", "tests.data.tiny", attributes, str(root)]
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_at_once_download_once_and_leave_one_good_copy(
    tiny_cifar10: Tiny, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "delay_s", 1.0)  # the other process finds the set still missing
    root = tmp_path / "fresh"
    processes = [_start(tiny_cifar10, address, root) for _ in range(2)]
    outputs = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    expected = load_dataset("cifar10", tiny_cifar10.folder, download=False).digest
    assert [out.strip() for out, _ in outputs] == [expected, expected]
    said = [line for _, error in outputs for line in error.splitlines()]
    assert said == [f"downloading {tiny_cifar10.downloads[0]} to {root}"]
    assert md5(root / tiny_cifar10.downloads[0]) == md5(tiny_cifar10.folder / tiny_cifar10.downloads[0])


def test_a_file_that_another_process_still_writes_is_waited_for(tmp_path: Path) -> None:
    """SVHN's files are what is downloaded, so that they are there, and incomplete, while it lasts."""
    whole, path = b"all of it", tmp_path / "train.mat"
    digest = hashlib.md5(whole).hexdigest()
    one = Download(url="no url", filename=path.name, md5=digest, members=((path.name, digest),))
    begun = threading.Event()

    def download() -> None:
        with FileLock(tmp_path / ".svhn.lock"):
            path.write_bytes(whole[:3])
            begun.set()
            time.sleep(0.3)
            path.write_bytes(whole)

    threading.Thread(target=download).start()
    begun.wait()
    provide("svhn", [one], tmp_path, download=False)
    assert path.read_bytes() == whole


def test_damaged_download_is_refused(
    tiny_cifar10: Tiny, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_cifar10.source(), "url", address + tiny_cifar10.downloads[0])
    _truncate(tiny_cifar10.folder / tiny_cifar10.downloads[0])
    with pytest.raises(DataError, match=tiny_cifar10.downloads[0]):
        load_dataset("cifar10", tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "cifar-10-batches-py").exists()
