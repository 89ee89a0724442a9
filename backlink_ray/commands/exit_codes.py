"""Exit codes: how a command ends, and what it says last."""

import re
import shlex
import sys
from collections.abc import Callable

from ray.tune import TuneError

from backlink_ray.commands.flags import RUN_ERRORS
from backlink_ray.errors import CheckpointError
from backlink_ray.tracking.uri import redact


class SecondInterruptError(KeyboardInterrupt):
    """Ctrl-C while the trials were already being ended after an earlier one."""


def guarded(run: Callable[[], int]) -> int:
    """Return run()'s exit code; an error becomes one line on stderr.

    Returns:
        0 done; 1 done, but some trials failed, or a failure ended it all; 2 bad arguments or configuration; 3 interrupted
        and resumable; 130 the same at a second Ctrl-C.
    """
    try:
        return run()
    except (*RUN_ERRORS, CheckpointError) as error:
        return _say(f"failed: {first_line(error)}; resume: {resume_line()}", 1)
    # ConfigError, DataError, a tracking URI; no cluster at the address, a full disk
    except (ValueError, OSError) as error:
        return _say(f"error: {error}", 2)
    except TuneError as error:
        return _say(f"failed: {str(error).strip().splitlines()[-1]}; resume: {resume_line()}", 1)
    except KeyboardInterrupt as error:
        return _say(f"interrupted; resume: {resume_line()}", 130 if isinstance(error, SecondInterruptError) else 3)


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
    return re.sub(r" --resume[ =]\w+", "", line) + " --resume auto" + note


def _without_secret(arguments: list[str]) -> list[str]:
    """Leave out a tracking URI that holds a password or token: what is printed ends in logs."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--tracking-uri", "--tracking_uri"):
            end = i + 1 if equals else i + 2
            uri = value if equals else " ".join(arguments[i + 1 : end])
            return arguments if redact(uri) == uri else arguments[:i] + arguments[end:]
    return arguments
