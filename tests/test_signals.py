"""Signals to a real command: it saves a checkpoint, ends within 10 s, leaves no process, and resumes to the same result."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
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
            process_group=0,
            **how,  # type: ignore[call-overload]
        )
        self.started: set[psutil.Process] = set()
        self.ended = 0.0

    def wait_for(self, file: Path, pattern: str, timeout_s: float = 150.0) -> None:
        """Wait until a file below the given one, a glob, contains a pattern."""
        deadline = time.monotonic() + timeout_s
        while not any(re.search(pattern, path.read_text()) for path in Path("/").glob(str(file)[1:])):
            assert self._child.poll() is None, self._child.communicate()
            assert time.monotonic() < deadline, f"no {pattern} in {file}"
            time.sleep(0.02)

    def send(self, number: int, to_group: bool = False) -> float:
        """Send a signal, to the process alone or to its whole group, as a terminal and `timeout` do; return when."""
        self.started |= set(psutil.Process(self._child.pid).children(recursive=True))
        (os.killpg if to_group else os.kill)(self._child.pid, number)
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


def check_stopped(folder: Path, number: int, *flags: str, seconds: float, **how: object) -> None:
    """Send a signal to the command's group some seconds after training has begun, and check how the command ends."""
    with running(command(folder, *flags), **how) as child:
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


ENDS_SLOWLY = """
import atexit
import sys
import time
import backlink_ray as bl

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(60)

sys.slow = Slow()  # what the interpreter clears last
atexit.register(lambda: open({flag!r}, "w").close())

def network(num_classes, image_size, seed):
    return bl.build_network("resnet8", num_classes=num_classes, image_size=image_size)
"""


def test_sigterm_saves_a_checkpoint_and_exits_with_3_without_pythons_slow_end(tmp_path: Path) -> None:
    flag = tmp_path / "atexit"
    (tmp_path / "slow.py").write_text(ENDS_SLOWLY.format(flag=str(flag)))
    own = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    flags = ["--executor", "local", "--network", "slow:network"]
    check_stopped(tmp_path / "run", signal.SIGTERM, *flags, seconds=0.2, env=own)
    assert any(step % 120 for step in steps_in(tmp_path / "run"))
    assert flag.exists(), "what Python calls at its end is called"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [0.5, 2, 4])
def test_a_signal_while_ray_starts(tmp_path: Path, seconds: float) -> None:
    """With a handler of Ray's own, which only ends Python; the machine's load decides what has been reached."""
    with running(command(tmp_path / "run", "--executor", "ray")) as child:
        child.wait_for(tmp_path / "run" / "config.yaml", "run_id")
        time.sleep(seconds)
        start = child.send(signal.SIGTERM)
        code, _, err = child.end()
        print(f"exit {code} after {child.ended - start:.1f} s, left {child.left()}: {err.splitlines()[-3:]}")
        assert (code, err.splitlines()[-1]) == (3, "interrupted; run the same command again to resume"), err
        assert child.ended - start < GONE_S
        assert not re.search("Traceback|stack trace", err)
        assert child.left() == []


HANGS = """
import time
import torch
from torch import nn
import backlink_ray as bl

class Hangs(nn.Module):
    calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.calls > 8:
            open({flag!r}, "w").close()
            time.sleep(600)
        return x

def network(num_classes, image_size, seed):
    built = bl.build_network("resnet8", num_classes=num_classes, image_size=image_size)
    built.units[1] = nn.Sequential(Hangs(), built.units[1])
    return bl.Network(list(built.units), built.classifier, torch.zeros(1, 3, image_size, image_size))
"""


@contextlib.contextmanager
def hanging(tmp_path: Path, executor: str) -> Iterator[Command]:
    flag = tmp_path / "hangs"
    (tmp_path / "hanging.py").write_text(HANGS.format(flag=str(flag)))
    line = command(tmp_path / "run", "--executor", executor, "--network", "hanging:network")
    with running(line, env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}) as child:
        child.wait_for(flag, "")
        yield child


@pytest.mark.slow
@pytest.mark.timeout(360)
@pytest.mark.parametrize("executor", ["local", "threads", "ray"])
def test_a_command_that_hangs_is_gone_after_10_s_and_after_a_second_signal_at_once(
    tmp_path: Path, executor: str
) -> None:
    for again_s in (0.0, 0.5):
        (tmp_path / "hangs").unlink(missing_ok=True)
        with hanging(tmp_path, executor) as child:
            start = child.send(signal.SIGTERM)
            if again_s:
                time.sleep(again_s)
                start = child.send(signal.SIGINT)
            code, _, err = child.end()
            print(f"{executor} again={again_s}: exit {code} after {child.ended - start:.1f} s, left {child.left()}")
            assert (code, err.splitlines()[-1]) == (
                130 if again_s else 3, "interrupted; run the same command again to resume",
            ), err  # fmt: skip
            assert child.ended - start < (2 if again_s else GONE_S)
            assert "Traceback" not in err
            assert child.left() == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_driver_that_was_killed_leaves_nothing_once_the_next_one_has_started(tmp_path: Path) -> None:
    # Other tests' commands would end what is left, too.
    own = {**os.environ, "TMPDIR": str(tmp_path), "RAY_TMPDIR": tempfile.gettempdir()}
    with running(command(tmp_path / "killed", "--executor", "ray"), env=own) as killed:
        killed.wait_for(tmp_path / "killed" / "environment.json", "attempts")
        killed.send(signal.SIGKILL)
        assert [name for name in map(str, killed.left(4.0)) if "Agent" in name], "Ray ends them after a minute"
        with running(command(tmp_path / "next", "--executor", "ray"), env=own) as following:
            following.wait_for(tmp_path / "next" / "environment.json", "attempts")
            print(f"left of the first: {killed.left(1.0)}")
            assert killed.left(1.0) == []
            following.send(signal.SIGTERM)
            assert following.end()[0] == 3
            assert following.left() == []


def test_training_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    line = shlex.join(command(tmp_path / "run", "--executor", "local", "--train-images", "20"))
    done = subprocess.run(
        f"set -o pipefail; {line} | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("epoch 1/2")
    assert done.stderr == "executor local: as configured\n"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "FINISHED"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_training_goes_on_when_its_terminal_is_closed(tmp_path: Path, executor: str) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command(tmp_path / "run", "--executor", executor), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"epoch 1/" not in shown:
        shown += os.read(ours, 1000)
    os.close(ours)  # the system sends SIGHUP, and every later write fails
    assert child.wait(100) == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_listing_is_silent_when_its_reader_has_enough() -> None:
    line = f"set -o pipefail; {sys.executable} studies/table_2.py --dry-run --preset smoke --executor local | head -1"
    done = subprocess.run(line, shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("executor", ["threads", "ray"])
def test_a_run_that_stood_still_for_longer_than_its_timeout_goes_on(tmp_path: Path, executor: str) -> None:
    """All its processes, as on a machine that was paused."""
    with running(command(tmp_path / "run", "--executor", executor, "--stage-timeout-s", "6")) as child:
        child.wait_for(tmp_path / "run" / "environment.json", "attempts")
        time.sleep(0.3)
        child.send(signal.SIGSTOP)
        for process in child.started:
            process.suspend()
        time.sleep(9)
        for process in child.started:
            process.resume()
        child.send(signal.SIGCONT)
        code, out, err = child.end(120)
    assert (code, len(out.splitlines())) == (0, 3), err
    assert not re.search("recovering|failed|Traceback", err), err


SLOW_STEPS = """
import time
import torch
from torch import nn
import backlink_ray as bl

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.5 * (self.training and torch.is_grad_enabled()))
        return x

def network(num_classes, image_size, seed):
    built = bl.build_network("resnet8", num_classes=num_classes, image_size=image_size)
    built.units[1] = nn.Sequential(Slow(), built.units[1])
    return bl.Network(list(built.units), built.classifier, torch.zeros(1, 3, image_size, image_size))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ray_outlives_a_signal_to_the_group_until_slow_stages_have_saved(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_STEPS)
    own = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    flags = ["--executor", "ray", "--network", "slow:network"]
    check_stopped(tmp_path / "run", signal.SIGTERM, *flags, seconds=0.5, env=own)
    assert steps_in(tmp_path / "run")
