"""Output: standard output and error go on when nobody reads them any more, and with characters that they cannot encode."""

import errno
import io
import sys
from typing import Any

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # a reader that had enough (`| head -1`); a terminal that was closed


class _Forgiving(io.FileIO):
    """A file descriptor that drops what nobody reads."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            return len(data)


def say(line: str) -> None:
    """Print a line for the user on standard error, at once; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def forgive_output() -> None:
    """Let this process go on where a line cannot be written: what cannot be encoded is replaced, what nobody reads is dropped."""
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="replace")
        if stream is original:
            raw = io.BufferedWriter(_Forgiving(stream.fileno(), "w", closefd=False))
            how: Any = {"encoding": stream.encoding, "errors": "replace", "line_buffering": stream.line_buffering}
            setattr(sys, name, io.TextIOWrapper(raw, write_through=stream.write_through, **how))
