"""Watch: asks the stages of a run where they are while their calls run, and finds one that hangs."""

import time
from collections.abc import Sequence
from typing import Any

import ray

from backlink_ray.pipeline.pool import ANSWER_TIMEOUT_S, answer_of
from backlink_ray.pipeline.progress import SILENT, UNKNOWN, Patience, Position


class Watch:
    """Knows of every stage when it last answered, and where it was."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self._asked = [(time.monotonic(), actor.position.remote()) for actor in actors]
        self._heard = [when for when, _ in self._asked]
        self._patience, self._watched_s = Patience(time.monotonic()), 0.0
        self._positions = [UNKNOWN] * len(actors)

    def update(self) -> None:
        """Take the answers that have come, and ask again."""
        self._watched_s = self._patience.look(time.monotonic())
        for k, (when, ref) in enumerate(self._asked):
            if ray.wait([ref], timeout=0)[0]:
                self._heard[k], self._positions[k] = when, _position(ref)
                self._asked[k] = time.monotonic(), self._actors[k].position.remote()

    def hangs(self, limit_s: float) -> bool:
        """Return whether a stage, watched for longer than this, has not answered or has been in one action by itself."""
        silent_s = [time.monotonic() - heard for heard in self._heard]
        longest_s = max(*silent_s, *(position.busy_s for position in self._positions))
        return min(longest_s, self._watched_s) > limit_s

    def positions(self) -> list[Position]:
        """Return where every stage is now; of one that does not answer, the action SILENT and for how long it has been."""
        refs = [actor.position.remote() for actor in self._actors]
        answered = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_TIMEOUT_S)[0]
        now = time.monotonic()
        return [
            _position(ref) if ref in answered else Position(-1, SILENT, now - self._heard[k])
            for k, ref in enumerate(refs)
        ]


def _position(ref: Any) -> Position:
    """Return a stage's answer; a dead one has none, and its pending call fails as well."""
    found = answer_of(ref)
    return UNKNOWN if isinstance(found, Exception) else found
