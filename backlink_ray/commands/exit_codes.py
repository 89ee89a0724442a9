"""Exit codes: what a command returns and prints when it ends."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence

import torch

from backlink_ray.errors import BacklinkError, ClusterError, NotFiniteError, StageError, first_line
from backlink_ray.output import forgive_output, say
from backlink_ray.signals import INTERRUPTED, handled, leave, skip_teardown, stopping
from backlink_ray.tracking.uri import hide_secrets, redact

# These end one run or measurement; the next one can still succeed.
RUN_ERRORS = (NotFiniteError, StageError, torch.OutOfMemoryError)


def guarded(run: Callable[[], int], resume: Callable[[], str]) -> int:
    """Return run()'s exit code; our own errors, and paths that may not be read, become one line on stderr; any other exception
    keeps its traceback.

    Returns:
        0 done; 1 some or all of it failed; 2 bad arguments, configuration or data; 3 interrupted by SIGINT (Ctrl-C) or SIGTERM,
        or trials were lost, or Ray is gone, has no room or does not start: resumable. A second signal ends the process at once,
        with 130. After a signal this process ends with that code as soon as `atexit` is done, whatever the caller returns.
    """
    forgive_output()
    with handled(lambda: f"interrupted; {resume()}"):
        code = _exit_code(run, resume)
    if stopping():
        skip_teardown(code)
    return code


def _exit_code(run: Callable[[], int], resume: Callable[[], str]) -> int:
    try:
        return run()
    except (BacklinkError, torch.OutOfMemoryError) as error:
        code = error.exit_code if isinstance(error, BacklinkError) else 1
        text = f"error: {error}" if code == 2 else f"failed: {first_line(error)}; {resume()}"
        if isinstance(error, ClusterError) and error.final:
            sys.stdout.flush()
            leave(code, _hidden(text))  # Ray would wait for what is gone, and then end this process in its own way
        return _end(text, code)
    except PermissionError as error:  # a folder that another user keeps closed, wherever it is first looked into
        if not error.filename:
            raise
        return _end(f"error: {error.filename} cannot be used ({error.strerror}); give a path of your own", 2)
    except KeyboardInterrupt:
        return _end(f"interrupted; {resume()}", INTERRUPTED)


def _end(text: str, code: int) -> int:
    say(_hidden(text))
    return code


def _hidden(text: str) -> str:
    for given in (*sys.argv, os.environ.get("MLFLOW_TRACKING_URI", "")):
        text = hide_secrets(text, given)
    return text


def resume_line() -> str:
    """Return the command that resumes this one, as the user typed it but without secrets."""
    arguments, left_out = _without_secrets(sys.argv)
    line = shlex.join([sys.orig_argv[0], *arguments])  # the Python as the user typed it
    notes = ["MLFLOW_TRACKING_URI set" if flag == "--tracking-uri" else f"{flag} as before" for flag in left_out]
    note = f"  (with {' and '.join(notes)})" if notes else ""
    return "resume: " + re.sub(r" --resume[ =]\w+", "", line) + " --resume auto" + note


def _without_secrets(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without those that contain a password or token, since output is kept in logs, and their flags."""
    kept: list[str] = []
    flags = []
    for argument in arguments:
        if redact(argument) == argument:
            kept.append(argument)
        else:
            own = re.match(r"--[\w-]+(?==)", argument)
            flags.append((own[0] if own else kept.pop()).replace("_", "-"))
    return kept, list(dict.fromkeys(flags))
