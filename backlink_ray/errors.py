"""Errors that tell their user what to do; whatever is not one of them is a fault of ours, and keeps its traceback."""

from typing import ClassVar


class BacklinkError(Exception):
    """Base of every error that is told in one line.

    Attributes:
        exit_code: of a command that it ends: 1 where the work failed, 2 where arguments, configuration or data are wrong.
    """

    exit_code: ClassVar[int] = 1


class ConfigError(BacklinkError, ValueError):
    """A value that cannot be used: the message gives what was received, the rule, and what is allowed."""

    exit_code = 2


class DataError(BacklinkError, ValueError):
    """Data that cannot be used: the message names the file, what was expected and found, and the command to type."""

    exit_code = 2


class StorageError(BacklinkError, OSError):
    """A file or folder that cannot be read or written: the message names it and says what to do."""


class CheckpointError(StorageError):
    """A checkpoint that cannot be written or read: names the file, and what was expected."""


class BusyError(BacklinkError, TimeoutError):
    """Another process holds the lock."""

    exit_code = 2


class NonFiniteLossError(BacklinkError, RuntimeError):
    """A local loss became NaN or infinite: training on would only hide it."""

    def __init__(self, stage_index: int, step: int, value: float) -> None:
        super().__init__(stage_index, step, value)
        self.stage_index, self.step, self.value = stage_index, step, value

    def __str__(self) -> str:
        return f"the local loss of stage {self.stage_index} is {self.value} at step {self.step}; try a smaller lr"


class StageError(BacklinkError, RuntimeError):
    """A stage failed or was lost, and with it the run: names the stage, where it was, and why.

    Attributes:
        lost: its process or machine went, or hangs: the run itself may be in order.
    """

    def __init__(self, stage_index: int, num_stages: int, where: str, reason: str, lost: bool = False) -> None:
        super().__init__(stage_index, num_stages, where, reason, lost)
        self.stage_index, self.num_stages = stage_index, num_stages
        self.where, self.reason, self.lost = where, reason, lost

    def __str__(self) -> str:
        return f"stage {self.stage_index} of {self.num_stages} failed at {self.where}: {self.reason}"


class StudyError(BacklinkError, RuntimeError):
    """Ray Tune could not go on with a study: its own words."""


class LinkError(BacklinkError, RuntimeError):
    """A message did not come or could not be sent: names the kind, the step and the time waited, never the data."""


class LinkAbortedError(LinkError):
    """Another stage failed, so this one was told to stop waiting."""
