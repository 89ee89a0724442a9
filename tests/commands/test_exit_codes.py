"""How errors end a command, and what it prints."""

import contextlib
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch

from backlink_ray.commands.command import Command, run_command
from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.commands.flags import CommonFlags, choose_preset
from backlink_ray.errors import ClusterError, ConfigError, NotFiniteError, StageError, StorageError


def exit_code(error: BaseException) -> int:
    def run() -> int:
        raise error

    return guarded(run, lambda: "resume: it")


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (StageError(1, 4, "step 3", "lost"), 1, "failed: stage 1 of 4 failed at step 3: lost; resume: it"),
        (
            NotFiniteError("the local loss of stage 0 is nan at step 7"),
            1,
            "failed: the local loss of stage 0 is nan at step 7",
        ),
        (StorageError("no space"), 1, "failed: no space; resume: it"),
        (torch.OutOfMemoryError("CUDA out of memory.\nIf reserved"), 1, "failed: CUDA out of memory.; resume: it"),
        (ConfigError("alpha=2 is out of range"), 2, "error: alpha=2 is out of range"),
        (
            PermissionError(13, "Permission denied", "/x"),
            2,
            "error: /x cannot be used (Permission denied); give a path",
        ),
        (KeyboardInterrupt(), 3, "interrupted; resume: it"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(error) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(start)


@pytest.mark.parametrize("fault", [ValueError("bug"), OSError("bug"), PermissionError("bug"), KeyError("bug")])
def test_a_bug_is_not_reported_as_a_bad_argument(fault: Exception) -> None:
    with pytest.raises(type(fault), match="bug"):
        exit_code(fault)


@pytest.mark.parametrize(
    ("secret", "note"),
    [
        (["--tracking-uri", "http://u:s3cret@host?token=t0ken"], "MLFLOW_TRACKING_URI set"),
        (["--tracking_uri=postgresql://u:s3cret@host/db?token=t0ken"], "MLFLOW_TRACKING_URI set"),
        (["--tracking-uri", "http://host", "--tracking-uri", "http://u:s3cret@host"], "MLFLOW_TRACKING_URI set"),
        (["--address", "ray://u:s3cret@host:1"], "--address as before"),
        (["--tracking-uri=postgresql:/u:s3cret@host"], "MLFLOW_TRACKING_URI set"),
    ],
)
def test_the_resume_line_contains_no_secret(monkeypatch: pytest.MonkeyPatch, secret: list[str], note: str) -> None:
    monkeypatch.setattr("sys.argv", ["table_2.py", *secret, "--resume", "never", "--seed", "1"])
    kept = " --tracking-uri http://host" if len(secret) > 2 else ""
    assert resume_line().endswith(f" table_2.py{kept} --seed 1 --resume auto  (with {note})")
    monkeypatch.setattr("sys.argv", ["table_2.py", "--tracking-uri", "http://host", "--seed", "1"])
    assert resume_line().endswith(" table_2.py --tracking-uri http://host --seed 1 --resume auto")


@pytest.mark.parametrize(
    "secret", ["--preset=http://u:s3cret@host", "--seed=http://u:s3cret@host", "--x=http://u:s3cret@host"]
)
def test_no_error_of_a_command_line_contains_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    monkeypatch.setattr("sys.argv", ["tune.py", secret])

    def make(flags: CommonFlags) -> Command:
        raise ConfigError(f"{choose_preset(['paper'], flags)} is no preset")

    with contextlib.suppress(SystemExit):  # tyro's
        assert run_command(make, CommonFlags, "tune", None) == 2
    told = capsys.readouterr().err
    assert "http://u:***@host" in told
    assert "s3cret" not in told


def test_the_last_words_about_a_ray_that_is_gone_contain_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tune.py", "--address=ray://u:s3cret@host"])
    said: list[str] = []

    def leave(code: int, text: str) -> None:
        said.append(text)
        raise SystemExit(code)

    monkeypatch.setattr("backlink_ray.commands.exit_codes.leave", leave)
    gone = ClusterError("ray://u:s3cret@host is gone", final=True)
    with pytest.raises(SystemExit, match="3"):
        exit_code(gone)
    assert said == ["failed: ray://u:***@host is gone; resume: it"]


def test_what_the_output_cannot_encode_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [TextIOWrapper(BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])

    def run() -> int:
        print("2 ± 1 µs", flush=True)
        raise ConfigError("größer")

    assert guarded(run, str) == 2
    assert [stream.buffer.getvalue() for stream in streams] == [b"2 ? 1 ?s\n", b"error: gr??er\n"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["s3://bucket/x", "gs://b", "file:///tmp/x", "hdfs://host/x"])
def test_a_storage_path_that_is_an_address_is_refused_and_a_home_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^storage_path='{path}' is an address; allowed: a path on this machine"):
        _ = CommonFlags(storage_path=path).storage
    assert CommonFlags(storage_path="~/x").storage == tmp_path / "x"
