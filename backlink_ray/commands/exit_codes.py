"""Exit codes: how a command ends, and what it says last."""

import re
import shlex
import sys
from collections.abc import Callable

import torch

from backlink_ray.errors import BacklinkError, NonFiniteLossError, StageError
from backlink_ray.tracking.uri import redact

# What ends one run or measurement, and says nothing about the next.
RUN_ERRORS = (NonFiniteLossError, StageError, torch.OutOfMemoryError)


class SecondInterruptError(KeyboardInterrupt):
    """Ctrl-C while the trials were already being ended after an earlier one."""


def guarded(run: Callable[[], int], go_on: Callable[[], str]) -> int:
    """Return run()'s exit code; an error that is its user's to know becomes one line on stderr, a fault of ours stays one.

    Args:
        run: the command.
        go_on: says how to go on with it.

    Returns:
        0 done; 1 done, but some of it failed, or a failure ended it all; 2 bad arguments, configuration or data; 3
        interrupted and resumable; 130 the same at a second Ctrl-C.
    """
    try:
        return run()
    except BacklinkError as error:
        if error.exit_code == 2:
            return _say(f"error: {error}", 2)
        return _say(f"failed: {first_line(error)}; {go_on()}", error.exit_code)
    except torch.OutOfMemoryError as error:
        return _say(f"failed: {first_line(error)}; {go_on()}", 1)
    except KeyboardInterrupt as error:
        return _say(f"interrupted; {go_on()}", 130 if isinstance(error, SecondInterruptError) else 3)


def first_line(error: BaseException) -> str:
    """Return what an error says first; CUDA's go on with advice on its allocator."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def resume_line() -> str:
    """Return the command that goes on with what this process was asked for, as the user typed it, but for secrets."""
    arguments = _without_secret(sys.argv)
    line = shlex.join([sys.orig_argv[0], *arguments])  # the Python as the user typed it
    note = "" if arguments == sys.argv else "  (with MLFLOW_TRACKING_URI set)"
    return "resume: " + re.sub(r" --resume[ =]\w+", "", line) + " --resume auto" + note


def _without_secret(arguments: list[str]) -> list[str]:
    """Leave out a tracking URI that holds a password or token: what is printed ends in logs."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--tracking-uri", "--tracking_uri"):
            end = i + 1 if equals else i + 2
            uri = value if equals else " ".join(arguments[i + 1 : end])
            return arguments if redact(uri) == uri else arguments[:i] + arguments[end:]
    return arguments
