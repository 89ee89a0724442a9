"""Output: standard output and error go on when nobody reads them any more."""

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


def forgive_closed_output() -> None:
    """Let this process go on if the reader of its standard output or error goes away, instead of failing at the next line."""
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is original and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = io.BufferedWriter(_Forgiving(stream.fileno(), "w", closefd=False))
            how: Any = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
            setattr(sys, name, io.TextIOWrapper(raw, write_through=stream.write_through, **how))
