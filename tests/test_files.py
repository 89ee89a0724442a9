"""Files: a reader finds the old or the new content whatever happens, and a lock ends with its process."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backlink_ray.errors import BusyError
from backlink_ray.files import exclusive, write_whole

WRITER = """
import sys
from pathlib import Path
from backlink_ray.files import write_whole
count = 0
while True:
    count += 1
    write_whole(Path(sys.argv[1]), str(count % 10) * 3_000_000)
    print(count, flush=True)
"""


@pytest.mark.timeout(60)
def test_a_kill_while_writing_leaves_whole_content(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 20)):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
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


HOLDER = """
import sys, time
from pathlib import Path
from backlink_ray.files import exclusive
with exclusive(Path(sys.argv[1]), 0.0):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.timeout(60)
def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="lock was held by another process for 0 s"), exclusive(lock, 0.0):
        pass
    child.kill()
    child.wait()
    with exclusive(lock, 5.0):
        pass
