"""Queues: the order in which messages of one kind leave a mailbox."""

from collections import deque
from typing import Any

Message = tuple[int, Any]  # step, payload


class FifoQueue:
    """Each message once, oldest first; full at `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self) -> bool:
        return len(self) < self._capacity

    def put(self, message: Message) -> None:
        self._waiting.append(message)

    def take(self) -> Message:
        return self._waiting.popleft()


class ReplayQueue:
    """The last `size` messages, never full; `take` returns the newest of the least used ones and keeps it.

    Source: Belilovsky et al. (2020), Algorithm 2.

    Attributes:
        kept: [uses, message], oldest first.
    """

    def __init__(self, size: int) -> None:
        self.kept: deque[list[Any]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self.kept)

    def has_room(self) -> bool:
        return True

    def put(self, message: Message) -> None:
        self.kept.append([0, message])

    def take(self) -> Message:
        chosen = min(reversed(self.kept), key=lambda entry: entry[0])
        chosen[0] += 1
        return chosen[1]  # type: ignore[no-any-return]
