"""Broken files: each gives one error with the file, what was expected and found, and the mend; none is trained on."""

import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backlink_ray.data.datasets import DataError, load_dataset
from tests.cifar10_files import REPOSITORY
from tests.data.tiny_cifar import ARCHIVE, FOLDER, Tiny


def _flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_good_files_load(tiny: Tiny) -> None:
    dataset = load_dataset("cifar10", tiny.folder, download=False)
    assert (len(dataset.train), len(dataset.test)) == (100, 20)


@pytest.mark.parametrize("harm", [_flip_byte, _truncate])
@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("download", [True, False])
def test_corrupt_file_is_named_with_both_checksums_and_the_mend(tiny: Tiny, harm, name: str, download: bool) -> None:
    path = tiny.folder / FOLDER / name
    expected = _md5(path)
    harm(path)
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", tiny.folder, download=download)
    message = str(caught.value)
    assert str(path) in message
    assert expected in message
    assert _md5(path) in message
    assert "rm " in message


def test_missing_file_with_downloads_off_names_file_and_mend(tiny: Tiny) -> None:
    path = tiny.folder / FOLDER / "data_batch_3"
    path.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        load_dataset("cifar10", tiny.folder, download=False)
    assert str(path) in str(caught.value)
    assert ARCHIVE in str(caught.value)


def test_archive_in_the_root_needs_no_network(tiny: Tiny) -> None:
    shutil.rmtree(tiny.folder / FOLDER)
    assert len(load_dataset("cifar10", tiny.folder).train) == 100


def test_failed_download_is_one_clear_error(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="download failed") as caught:
        load_dataset("cifar10", tmp_path / "empty")
    assert ARCHIVE in str(caught.value)


@pytest.mark.parametrize("download", [True, False])
def test_root_that_cannot_be_written_is_named(tiny: Tiny, tmp_path: Path, download: bool) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "data"
    with pytest.raises(DataError, match="root") as caught:
        load_dataset("cifar10", root, download=download)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("harm", [_flip_byte, _truncate])
def test_a_harmed_file_of_the_real_set_is_found(full_root: Path, tmp_path: Path, harm) -> None:
    (tmp_path / FOLDER).mkdir()
    for source in (full_root / FOLDER).iterdir():
        (tmp_path / FOLDER / source.name).symlink_to(source)
    harmed = tmp_path / FOLDER / "data_batch_2"
    harmed.unlink()
    shutil.copyfile(full_root / FOLDER / "data_batch_2", harmed)
    harm(harmed)
    with pytest.raises(DataError, match="expected md5 d4bba439e000b95fd0a9bffe97cbabec") as caught:
        load_dataset("cifar10", tmp_path, download=False)
    assert str(harmed) in str(caught.value)


def test_original_addresses_are_https_with_a_checksum() -> None:
    from torchvision.datasets import CIFAR10

    assert CIFAR10.url.startswith("https://")
    assert len(CIFAR10.tgz_md5) == 32


class _SlowHandler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(1)  # the other process finds the set still missing
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tiny: Tiny) -> Iterator[str]:
    handler = functools.partial(_SlowHandler, directory=str(tiny.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _start(tiny: Tiny, address: str, root: Path) -> subprocess.Popen[str]:
    attributes = json.dumps(tiny.attributes(address))
    command = [sys.executable, "-m", "tests.data.tiny_cifar", attributes, str(root)]
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_at_once_download_once_and_leave_one_good_copy(tiny: Tiny, address: str, tmp_path: Path) -> None:
    root = tmp_path / "fresh"
    processes = [_start(tiny, address, root) for _ in range(2)]
    outputs = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    expected = load_dataset("cifar10", tiny.folder, download=False).digest
    assert [out.strip() for out, _ in outputs] == [expected, expected]
    assert sum("fetching" in error for _, error in outputs) == 1
    assert _md5(root / ARCHIVE) == _md5(tiny.folder / ARCHIVE)


def test_download_says_one_line(tiny: Tiny, address: str, tmp_path: Path) -> None:
    process = _start(tiny, address, tmp_path / "fresh")
    _, error = process.communicate(timeout=90)
    assert process.returncode == 0
    assert len(error.splitlines()) == 1


def test_damaged_download_is_refused(tiny: Tiny, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", address + ARCHIVE)
    _truncate(tiny.folder / ARCHIVE)
    with pytest.raises(DataError, match="download failed"):
        load_dataset("cifar10", tmp_path / "fresh")
    assert not (tmp_path / "fresh" / FOLDER).exists()
