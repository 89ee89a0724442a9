"""How errors end a command."""

import pytest
import torch

from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.errors import CheckpointError, ConfigError, NonFiniteLossError, StageError


def exit_code(error: BaseException) -> int:
    def run() -> int:
        raise error

    return guarded(run, lambda: "resume: it")


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (StageError(1, 4, "step 3", "lost"), 1, "failed: stage 1 of 4 failed at step 3: lost; resume: it"),
        (NonFiniteLossError(0, 7, float("nan")), 1, "failed: the local loss of stage 0 is nan at step 7"),
        (CheckpointError("no space"), 1, "failed: no space; resume: it"),
        (torch.OutOfMemoryError("CUDA out of memory.\nIf reserved"), 1, "failed: CUDA out of memory.; resume: it"),
        (ConfigError("alpha=2 is out of range"), 2, "error: alpha=2 is out of range"),
        (KeyboardInterrupt(), 3, "interrupted; resume: it"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(error) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(start)


@pytest.mark.parametrize("fault", [ValueError("bug"), OSError("bug"), TimeoutError("bug"), KeyError("bug")])
def test_a_bug_is_not_reported_as_a_bad_argument(fault: Exception) -> None:
    with pytest.raises(type(fault), match="bug"):
        exit_code(fault)


@pytest.mark.parametrize(
    "uri",
    [
        ["--tracking-uri", "http://u:s3cret@host?token=t0ken"],
        ["--tracking-uri=postgresql://u:s3cret@host/db?token=t0ken"],
    ],
)
def test_the_resume_line_contains_no_secret(monkeypatch: pytest.MonkeyPatch, uri: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["table_2.py", *uri, "--resume", "never", "--seed", "1"])
    assert resume_line().endswith(" table_2.py --seed 1 --resume auto  (with MLFLOW_TRACKING_URI set)")
    monkeypatch.setattr("sys.argv", ["table_2.py", "--tracking-uri", "http://host", "--seed", "1"])
    assert resume_line().endswith(" table_2.py --tracking-uri http://host --seed 1 --resume auto")
