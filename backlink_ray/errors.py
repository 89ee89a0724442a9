"""Errors whose message says what to do; any other exception is a bug in this package and keeps its traceback."""

import errno
from typing import ClassVar


class BacklinkError(Exception):
    """Base of every error that a command reports in one line, without a traceback.

    Attributes:
        exit_code: of the command: 1 if the work failed, 2 if arguments, configuration or data are wrong, 3 if Ray failed.
        lost: a process or machine is gone, hangs or is not to be had; the run itself may be sound.
    """

    exit_code: ClassVar[int] = 1
    lost: bool = False


class ConfigError(BacklinkError, ValueError):
    """A value that cannot be used; the message gives the value received, the rule, and what is allowed."""

    exit_code = 2


class DataError(BacklinkError, ValueError):
    """Data that cannot be used; the message names the file, what was expected and found, and the command that fixes it."""

    exit_code = 2


class StorageError(BacklinkError, OSError):
    """A file or folder that cannot be read or written; the message names it and says what to do."""

    lost = True  # it is not the run's fault, which goes on when this is mended

    @property
    def is_full(self) -> bool:
        """Whether there is no space left, so that the next file cannot be written either."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


class BusyError(BacklinkError, TimeoutError):
    """Another process holds the lock."""

    exit_code = 2


class NotFiniteError(BacklinkError, RuntimeError):
    """A local loss, a weight, a statistic or an evaluation became NaN or infinite, so the run stops."""


class StageError(BacklinkError, RuntimeError):
    """A stage failed or was lost; the message names the stage, where it was, and why.

    Attributes:
        machine_lost: it was lost with its machine.
        part: of the batch, whose stage it was; of `replicas`.
    """

    machine_lost: bool = False

    def __init__(
        self,
        stage_index: int,
        num_stages: int,
        where: str,
        reason: str,
        lost: bool = False,
        part: int = 0,
        replicas: int = 1,
    ) -> None:
        super().__init__(stage_index, num_stages, where, reason, lost, part, replicas)
        self.stage_index, self.num_stages, self.part, self.replicas = stage_index, num_stages, part, replicas
        self.where, self.reason, self.lost = where, reason, lost

    @property
    def place(self) -> int:
        """Return the stage's place among all: those of part 0 come first."""
        return self.part * self.num_stages + self.stage_index

    def __str__(self) -> str:
        which = f", replica {self.part} of {self.replicas}," if self.replicas > 1 else ""
        return f"stage {self.stage_index} of {self.num_stages}{which} failed at {self.where}: {self.reason}"


class ClusterError(BacklinkError, RuntimeError):
    """Ray does not start, has no room, or is gone; the same command can succeed later.

    Attributes:
        final: this process cannot reach the cluster any more.
    """

    exit_code = 3
    lost = True

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason, final)
        self.reason, self.final = reason, final

    def __str__(self) -> str:
        return self.reason


class TrackingError(BacklinkError, ConnectionError):
    """MLflow did not accept what it was sent; the runs stay on disk."""


class StudyError(BacklinkError, RuntimeError):
    """Ray Tune could not continue a study; the message is Tune's."""


class LinkError(BacklinkError, RuntimeError):
    """A message did not arrive or could not be sent; the error names kind, step and time waited, never the data."""


class LinkAbortedError(LinkError):
    """Another stage failed, so this one stopped waiting."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, else its type: CUDA's and Ray's go on with advice, or a trace."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
