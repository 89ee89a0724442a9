"""Steps: how many of a run's steps a stage has begun, and where the run ends, which can be brought forward meanwhile."""

import threading
from collections.abc import Iterator

from backlink_ray.errors import LinkAbortedError, LinkError
from backlink_ray.pipeline.progress import wait_patiently


class Steps:
    """The steps of one stage; its loop takes them, while another thread may bring the end of the run forward.

    That takes two calls: first every stage holds before its next step, then all are told the largest of these steps. So none
    can be past it, whatever their speeds, and none waits for a message of a step that another does not do.

    Args:
        timeout_s: longest wait, once held, for the step to end at.

    Attributes:
        next: the step that begins next; between runs, the number of steps done.
    """

    def __init__(self, timeout_s: float) -> None:
        self.next = 0
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._is_held = self._is_aborted = False
        self._agreed = (0, 0)  # a run that would end at the first ends at the second

    def run(self, num_steps: int) -> Iterator[int]:
        """Yield the next `num_steps` steps, or fewer if the end is brought forward."""
        end = self.next + num_steps
        while self._begin(end):
            yield self.next - 1

    def _begin(self, end: int) -> bool:
        with self._changed:
            has_answer = wait_patiently(lambda s: self._changed.wait_for(self._may_begin, s), self._timeout_s)
            if self._is_aborted:
                raise LinkAbortedError(f"step {self.next} does not begin: another stage failed")
            if not has_answer:
                raise LinkError(f"the driver did not say at which step to end within {self._timeout_s:g} s")
            agreed_for, last = self._agreed
            if self.next >= (last if agreed_for == end else end):
                self._agreed = (0, 0)  # the rest of these steps is a run with the same end
                return False
            self.next += 1
            return True

    def _may_begin(self) -> bool:
        return not self._is_held or self._is_aborted

    def hold(self, end: int) -> int:
        """Begin no further step of the run that ends at `end`, which may not have begun here yet; return the next step."""
        with self._changed:
            self._is_held = self.next < end
            return self.next

    def end_at(self, end: int, step: int) -> None:
        """Go on, and end the run that would end at `end` before `step`."""
        with self._changed:
            self._is_held, self._agreed = False, (end, step)
            self._changed.notify_all()

    def abort(self) -> None:
        """End a hold, and whatever step would begin next, with LinkAbortedError."""
        with self._changed:
            self._is_aborted = True
            self._changed.notify_all()
