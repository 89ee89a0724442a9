"""Files: a reader always finds the old or the new content, and a lock ends with its process."""

import ctypes
import errno
import itertools
import json
import os
import platform
import random
import resource
import signal
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from backlink_ray.errors import BusyError, StorageError
from backlink_ray.files import (
    append_line,
    exclusive,
    is_held,
    make_folder,
    read_json,
    read_lines,
    remove_leftovers,
    temporary,
    write_json,
    write_whole,
)
from tests.children import started


def write_forever(sender: Connection, file: Path) -> None:
    for count in itertools.count(1):
        write_whole(file, str(count % 10) * 3_000_000)
        sender.send(count)


@pytest.mark.timeout(60)
def test_a_kill_while_writing_leaves_whole_content(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(5):
        with started(write_forever, tmp_path / "file") as child:
            for _ in range(chance.randrange(1, 12)):
                child.receive()
        found = (tmp_path / "file").read_text()
        assert len(found) == 3_000_000
        assert set(found) == {found[0]}


def write_too_much(sender: Connection, folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    messages = []
    for write in (
        lambda: write_whole(folder / "file", b"x" * 30_000),
        lambda: append_line(folder / "log", {"a": "x" * 30_000}),
    ):
        try:
            write()
        except StorageError as error:
            messages.append(str(error))
    sender.send(messages)


def test_a_disk_without_room_is_named_with_path_and_bytes_and_what_was_there_stays(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    append_line(tmp_path / "log", {"a": "old"})
    with started(write_too_much, tmp_path) as child:
        messages = child.receive()
    assert messages == [
        f"{tmp_path / name} ({size} bytes) cannot be written: File too large; free some space or give another folder"
        for name, size in (("file", 30_000), ("log", 30_010))
    ]
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log"]
    append_line(tmp_path / "log", {"a": "new"})
    assert read_lines(tmp_path / "log", "") == [{"a": "old"}, {"a": "new"}]


def hold_forever(sender: Connection, lock: Path) -> None:
    with exclusive(lock, 0.0):
        sender.send("held")
        time.sleep(60)


@pytest.mark.timeout(60)
def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with started(hold_forever, lock) as child:
        assert child.receive() == "held"
        assert is_held(lock)
        with pytest.raises(BusyError, match=r"lock is in use by another process; wait"), exclusive(lock, 0.0):
            pass
    assert not is_held(lock)
    assert not is_held(tmp_path / "no lock")
    with exclusive(lock, 5.0):
        assert is_held(lock)  # this process counts as well


def test_a_row_is_never_joined_to_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_lines(log, "") == []
    for torn in (b"", b'{"a": 0, "b', b"\0\0\0", b'{"a": 0}'):
        with log.open("ab") as file:
            file.write(torn)
        rows = read_lines(log, "")
        append_line(log, {"a": len(rows)})
        assert read_lines(log, "") == [*rows, {"a": len(rows)}]
    assert [json.loads(line)["a"] for line in log.read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [b"no json", b"[1]", b"\xff\xfe", b"\0\0"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 0}\n' + damage + b"\n" + b'{"a": 1}\n')
    with pytest.raises(StorageError, match=r"log\.jsonl, line 2 is damaged \(.*\); do this") as caught:
        read_lines(log, "do this")
    assert "\n" not in str(caught.value)


def append_forever(sender: Connection, log: Path) -> None:
    for i in itertools.count():
        append_line(log, {"i": i, "text": "x" * 5000})
        sender.send(i)


@pytest.mark.timeout(60)
def test_a_killed_writer_loses_no_row_that_it_reported(tmp_path: Path) -> None:
    log, count = tmp_path / "log.jsonl", 40
    with started(append_forever, log) as child:
        for _ in range(count):
            child.receive()
    append_line(log, {"i": -1})
    rows = [row["i"] for row in read_lines(log, "")]
    assert rows == [*range(len(rows) - 1), -1]
    assert len(rows) > count


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "file").write_bytes(damage)
    with pytest.raises(StorageError, match=r"file is damaged \(.*\); do this"):
        read_json(tmp_path / "file", "do this")
    assert read_json(tmp_path / "none", "") == {}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.timeout(60)
def test_what_a_dead_process_left_is_removed_and_never_what_a_living_one_works_on(
    tmp_path: Path, is_folder: bool
) -> None:
    (tmp_path / ".notes.tmp").touch()  # nobody's temporary file: another program's
    with started(work_forever, tmp_path / "made", is_folder) as child:
        working = tmp_path / child.receive()
        remove_leftovers(tmp_path)
        assert working.exists()
        assert working.is_dir() == is_folder
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".notes.tmp"]


def work_forever(sender: Connection, path: Path, is_folder: bool) -> None:
    with temporary(path, is_folder=is_folder) as working:
        sender.send(working.name)
        time.sleep(60)


def test_the_next_writer_of_a_file_removes_what_a_dead_one_left(tmp_path: Path) -> None:
    for name in (".a[1].0123456789ab.tmp", ".a1.0123456789ab.tmp"):
        (tmp_path / name).touch()
    write_whole(tmp_path / "a[1]", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", ".a1.0123456789ab.tmp"}


def test_json_is_strict(tmp_path: Path) -> None:
    for write in (write_json, append_line):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(tmp_path / "file", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_what_we_make_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        make_folder(tmp_path / "a" / "b", "flag")
        write_whole(tmp_path / "a" / "b" / "file", "")
        append_line(tmp_path / "a" / "b" / "log", {})
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o022 for path in (tmp_path / "a").rglob("*")] == [0, 0, 0]


def without_locks(sender: Connection, folder: Path) -> None:
    """Have the kernel answer flock as an NFS without its lock service does."""
    errno_of_flock = struct.pack("HBBI", 6, 0, 0, 0x00050000 | errno.ENOLCK)  # BPF_RET: ERRNO
    load, jump, allow = (
        struct.pack("HBBI", 0x20, 0, 0, 0),
        struct.pack("HBBI", 0x15, 0, 1, FLOCK),
        struct.pack("HBBI", 6, 0, 0, 0x7FFF0000),
    )
    filters = ctypes.create_string_buffer(load + jump + errno_of_flock + allow)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    write_whole(folder / "file", "new")
    remove_leftovers(folder)
    try:
        with exclusive(folder / "lock", 0.0):
            pass
    except StorageError as error:
        sender.send((str(error), is_held(folder / "lock"), sorted(path.name for path in folder.iterdir())))


FLOCK = {"x86_64": 73, "aarch64": 32}.get(platform.machine(), 0)


@pytest.mark.skipif(not FLOCK, reason="the number of flock is known for two processors")
def test_a_file_system_without_locks_is_said_with_the_path_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".other.0123456789ab.tmp").touch()
    with started(without_locks, tmp_path) as child:
        message, held, names = child.receive()
    assert message.startswith(f"{tmp_path / 'lock'} cannot be locked (No locks available), and two processes must not")
    assert message.endswith(
        "give a folder on a file system with locks, such as a local disk, or NFS mounted without nolock"
    )
    assert not held
    # It is written all the same, and nothing is removed that may be a living process's.
    assert names == [".other.0123456789ab.tmp", "file", "lock"]
