"""Output: standard output and error go on when nobody reads them any more, and with characters that they cannot encode."""

import errno
import io
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

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


def told(items: Sequence[_T], what: str, every_s: float = 10.0) -> Iterator[_T]:
    """Yield items; where they take long, say on standard error how many are done and how long the others may take.

    Args:
        what: is done, for example "rounds of measuring".
        every_s: between two such lines.
    """
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said > every_s:
            left_s = (now - start) / done * (len(items) - done)
            say(f"{done} of {len(items)} {what}, about {left_s:.0f} s to go")
            said = now
        yield item


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
