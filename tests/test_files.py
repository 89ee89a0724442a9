"""Files: a reader finds the old or the new content whatever happens, and a lock ends with its process."""

import itertools
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from backlink_ray.errors import BusyError
from backlink_ray.files import exclusive, write_whole
from tests.children import started


def write_for_ever(telling: Connection, file: Path) -> None:
    for count in itertools.count(1):
        write_whole(file, str(count % 10) * 3_000_000)
        telling.send(count)


@pytest.mark.timeout(60)
def test_a_kill_while_writing_leaves_whole_content(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(5):
        with started(write_for_ever, tmp_path / "file") as child:
            for _ in range(chance.randrange(1, 12)):
                child.told()
        found = (tmp_path / "file").read_text()
        assert len(found) == 3_000_000
        assert set(found) == {found[0]}


def test_what_the_disk_refuses_leaves_the_old_content_and_no_stray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def hold_for_ever(telling: Connection, lock: Path) -> None:
    with exclusive(lock, 0.0):
        telling.send("held")
        time.sleep(60)


@pytest.mark.timeout(60)
def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with started(hold_for_ever, lock) as child:
        assert child.told() == "held"
        with pytest.raises(BusyError, match=r"lock .* 0 s"), exclusive(lock, 0.0):
            pass
    with exclusive(lock, 5.0):
        pass
