"""Sharing: a device on which several stages compute at once, and how much slower each is for that."""

import heapq
from collections.abc import Sequence
from itertools import count

import simpy


def speed_of(num_stages: int, cores: int = 1, speeds: Sequence[float] = (1.0,)) -> float:
    """Return the speed of each of `num_stages` stages that compute at once, in that of one alone.

    Args:
        num_stages: 1 or more.
        cores: of the device, which stages take in turn if there are more; 1 for a GPU.
        speeds: of each of 1, 2, .. stages in its turn: less than 1 where they slow each other down; more are as the last.
    """
    return speeds[min(num_stages, len(speeds)) - 1] * min(1.0, cores / num_stages)


class Processor:
    """A device in a simulation, shared equally by all that compute on it: each gets slower whenever another one begins.

    Args:
        env: of the simulation.
        cores, speeds: as of `speed_of`.
    """

    def __init__(self, env: simpy.Environment, cores: int = 1, speeds: Sequence[float] = (1.0,)) -> None:
        self._env, self._cores, self._speeds = env, cores, speeds
        # What each has done since the beginning if it had computed from then on: equal for all, since all are equally fast.
        self._done_s, self._since = 0.0, env.now
        self._ends: list[tuple[float, int, simpy.Event]] = []  # by what will have been done then
        self._numbers, self._version = count(), 0

    def compute(self, seconds: float) -> simpy.Event:
        """Begin what takes `seconds` alone, and return the event of its end."""
        self._done_s += (self._env.now - self._since) * self._speed
        self._since = self._env.now
        end = self._env.event()
        heapq.heappush(self._ends, (self._done_s + seconds, next(self._numbers), end))
        self._look_ahead()
        return end

    @property
    def _speed(self) -> float:
        return speed_of(len(self._ends), self._cores, self._speeds) if self._ends else 0.0

    def _look_ahead(self) -> None:
        """Wake up when the next one ends, unless another one begins before."""
        self._version += 1
        if self._ends:
            wait_s = max(0.0, self._ends[0][0] - self._done_s) / self._speed
            self._env.timeout(wait_s, self._version).callbacks.append(self._end)

    def _end(self, alarm: simpy.Event) -> None:
        if alarm.value != self._version:
            return
        self._done_s, self._since = self._ends[0][0], self._env.now
        while self._ends and self._ends[0][0] <= self._done_s:
            heapq.heappop(self._ends)[2].succeed()
        self._look_ahead()
