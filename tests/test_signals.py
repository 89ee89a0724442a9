"""Signals to a real command: it saves a checkpoint, ends within 10 s, leaves no process, and resumes to the same result."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
TRAIN = (
    "train --network resnet8 --num-modules 2 --propagation-length 1 --lr 0.05 --batch-size 10 --epochs 2 "
    "--train-images 1200 --test-images 20"
)
EXECUTORS = {
    "local": "--executor local",
    "threads": "--executor threads",
    "ray": "--executor ray",
    "turns": "--executor local --method dgl --mode async --propagation-length 0",
}
GONE_S = 10.0


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "backlink_ray.cli", *TRAIN.split(), *more, "--output-dir", str(folder)]


class Command:
    """A command in a process of its own; what it has started is known, also after its end."""

    def __init__(self, line: list[str], **how: object) -> None:
        self._child = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            **how,  # type: ignore[call-overload]
        )
        self.started: set[psutil.Process] = set()
        self.ended = 0.0

    def wait_for(self, file: Path, pattern: str, timeout_s: float = 90.0) -> None:
        """Wait until a file below the given one, a glob, contains a pattern."""
        deadline = time.monotonic() + timeout_s
        while not any(re.search(pattern, path.read_text()) for path in file.parent.glob(file.name) if path.is_file()):
            assert self._child.poll() is None, self._child.communicate()
            assert time.monotonic() < deadline, f"no {pattern} in {file}"
            time.sleep(0.02)

    def send(self, number: int) -> float:
        self.started |= set(psutil.Process(self._child.pid).children(recursive=True))
        self._child.send_signal(number)
        return time.monotonic()

    def end(self, timeout_s: float = 60.0) -> tuple[int, str, str]:
        self._child.wait(timeout_s)
        self.ended = time.monotonic()
        out, err = self._child.communicate(timeout=timeout_s)
        return self._child.returncode, out, err

    def left(self, timeout_s: float = 5.0) -> list[str]:
        """Return the processes that are still there; those that were told to end are given a moment."""
        psutil.wait_procs(self.started, timeout_s)
        return [str(process) for process in self.started if process.is_running()]

    def kill(self) -> None:
        for process in (self._child, *self.started):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def running(line: list[str], **how: object) -> Iterator[Command]:
    child = Command(line, **how)
    try:
        yield child
    finally:
        child.kill()


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def check_stopped(folder: Path, number: int, *flags: str, seconds: float) -> None:
    """Send a signal some seconds after training has begun, and check how the command ends."""
    with running(command(folder, *flags)) as child:
        child.wait_for(folder / "environment.json", "attempts")
        time.sleep(seconds)
        start = child.send(number)
        code, _, err = child.end()
        took = child.ended - start
        print(f"{number} {flags}: exit {code} after {took:.1f} s, checkpoints {steps_in(folder)}, left {child.left()}")
        assert (code, err.splitlines()[-1]) == (3, "interrupted; run the same command again to resume"), err
        assert took < GONE_S
        assert not re.search("Traceback|stack trace|SIG[A-Z]{3}", err)
        assert child.left() == []
    assert not (folder / "failure.json").exists()
    assert not (folder / "result.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_signal_saves_a_checkpoint_and_the_run_resumes_bit_for_bit(
    executor: str, number: int, tmp_path: Path
) -> None:
    flags = EXECUTORS[executor].split()
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    check_stopped(cut, number, *flags, seconds=0.4)
    assert any(step % 120 for step in steps_in(cut)), "it was saved inside an epoch"
    for folder in (cut, whole):
        subprocess.run(command(folder, *flags), cwd=ROOT, check=True, capture_output=True, timeout=170)
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (cut, whole))
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert [m["local_loss"] for m in found["curve"]] == [m["local_loss"] for m in expected["curve"]]
