"""Boxes: in what order messages of one kind leave a mailbox."""

from abc import ABC, abstractmethod
from collections import deque
from typing import Any

Message = tuple[int, Any]


class MessageQueue(ABC):
    """Messages (step, payload) of one kind that wait for a stage."""

    @abstractmethod
    def has_room(self) -> bool:
        """Tell whether another message fits."""

    @abstractmethod
    def put(self, message: Message) -> None:
        """Take a message in."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Tell whether there is nothing to take."""

    @abstractmethod
    def take(self) -> Message:
        """Return the message whose turn it is."""


class FifoQueue(MessageQueue):
    """Every message once, oldest first; full at `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[Message] = deque()

    def has_room(self) -> bool:
        return len(self._waiting) < self._capacity

    def put(self, message: Message) -> None:
        self._waiting.append(message)

    def is_empty(self) -> bool:
        return not self._waiting

    def take(self) -> Message:
        return self._waiting.popleft()


class ReplayQueue(MessageQueue):
    """The last `size` messages; the freshest among the least used is taken, and stays.

    Source: Belilovsky et al. (2020), Algorithm 2.
    """

    def __init__(self, size: int) -> None:
        self._kept: deque[list[Any]] = deque(maxlen=size)  # [uses, message], oldest first

    def has_room(self) -> bool:
        return True

    def put(self, message: Message) -> None:
        self._kept.append([0, message])

    def is_empty(self) -> bool:
        return not self._kept

    def take(self) -> Message:
        chosen = min(reversed(self._kept), key=lambda entry: entry[0])
        chosen[0] += 1
        return chosen[1]  # type: ignore[no-any-return]


class LatestQueue(MessageQueue):
    """The newest message, once; one that comes before it was taken replaces it."""

    def __init__(self) -> None:
        self._newest: list[Message] = []

    def has_room(self) -> bool:
        return True

    def put(self, message: Message) -> None:
        self._newest = [message]

    def is_empty(self) -> bool:
        return not self._newest

    def take(self) -> Message:
        return self._newest.pop()
