"""Schedule: what each stage does, in which order, as plain data.

K = 3 stages, l >= 1, four steps, every computation one tick (r replica forward, b body forward, t tail forward,
L local backward, R replica backward; digits are steps, dots are waiting), with the link `replica`:

    stage 0  b0 t0 L0 b1 .. .. t1 L1 b2 .. .. t2 L2 b3 .. .. t3 L3
    stage 1  .. r0 b0 t0 L0 R0 r1 b1 t1 L1 R1 r2 b2 t2 L2 R2 r3 b3 t3 L3 R3
    stage 2  .. .. .. r0 b0 t0 L0 R0 r1 b1 t1 L1 R1 r2 b2 t2 L2 R2 r3 b3 t3 L3 R3

Stage 0 has no replica, so it has time to wait; every other stage works without a gap once it has started. With the link
`error` (E link backward) nothing is computed twice, but the output of the tail is what travels, so the next stage waits
until the error of the previous step has updated that tail:

    stage 0  b0 t0 L0 b1 .. E0 t1 L1 b2 .. .. E1 t2 L2 b3 .. .. E2 t3 L3 .. .. .. E3
    stage 1  .. .. b0 t0 L0 .. .. b1 E0 t1 L1 .. .. b2 E1 t2 L2 .. .. b3 E2 t3 L3 .. .. E3
    stage 2  .. .. .. .. b0 t0 L0 .. .. .. b1 t1 L1 .. .. .. b2 t2 L2 .. .. .. b3 t3 L3
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a stage does; `lag` is how many steps it lies behind the current one (1 if it waits for the next stage)."""

    name: str
    lag: int = 0


def step_actions(
    *, is_first: bool, is_last: bool, link: str = "", has_tail: bool = True, is_stale: bool = False
) -> tuple[Action, ...]:
    """Return what one stage does in one step, in order.

    The activation is sent before anything else is computed, and the only wait for a later module (for the previous step)
    comes after it, so no stage delays the start of another. Body and head are updated at once, since they depend on their own
    loss alone. With the link "error" a tail must be updated before its output can be sent; without a tail (DNI) nothing
    waits. A stale tail, and a module with a delayed error (DDG), use the gradients of the previous step.

    Args:
        is_first, is_last: the stage has no previous, or no next, stage.
        link: "", "replica", "error" or "delayed", as `Method.link_kind`.
        has_tail: all modules but the last have tail units.
        is_stale: as `Method.is_stale`.
    """
    has_next, has_previous = not is_last, not is_first
    replica, error, delayed = link == "replica", link == "error", link == "delayed"
    sends_tail_output = error and has_tail
    names: list[tuple[str, int, bool]] = [
        ("receive_activation", 0, has_previous),
        ("replica_forward", 0, replica and has_previous),
        ("body_forward", 0, True),
        ("send_activation", 0, has_next and not sends_tail_output),
        ("receive_link_gradient", 1, replica and has_next and not is_stale),
        ("receive_error", 1, (error or delayed) and has_next),
        ("link_backward", 1, error and has_next),
        ("tail_update", 1, (replica or error) and has_next and not is_stale),
        ("tail_forward", 0, True),
        ("send_output", 0, has_next and sends_tail_output),
        ("local_backward", 0, True),
        ("send_error", 0, (error or delayed) and has_previous),
        ("send_local_gradient", 0, replica and has_next),
        ("body_update", 0, True),
        ("receive_link_gradient", 1, replica and has_next and is_stale),
        ("tail_update", 0, replica and has_next and is_stale),
        ("replica_backward", 0, replica and has_previous),
        ("send_link_gradient", 0, replica and has_previous),
        ("receive_local_gradient", 0, replica and has_previous),
        ("replica_update", 0, replica and has_previous),
    ]
    return tuple(Action(name, lag) for name, lag, present in names if present)


def async_actions(*, is_first: bool, is_last: bool) -> tuple[Action, ...]:
    """Return what one stage does in one step if stages do not keep step: only its first input can make it wait."""
    names = [
        ("receive_fresh_activation", not is_first),
        ("body_forward", True),
        ("send_fresh_activation", not is_last),
        ("tail_forward", True),
        ("local_backward", True),
        ("body_update", True),
    ]
    return tuple(Action(name) for name, present in names if present)


def run_actions(steps: Iterable[int], actions: Sequence[Action]) -> Iterator[tuple[str, int]]:
    """Yield (action, step) for a run of consecutive steps that begins and ends drained: no action and no message is left over.

    A step is taken from the iterable only when all of its predecessor is done.
    """
    done: list[int] = []
    for step in steps:
        for action in actions:
            if done or not action.lag:
                yield action.name, step - action.lag
        done = [step]
    for action in actions:
        if action.lag:
            yield from ((action.name, step) for step in done)


# Names of consecutive actions.
Stretch = tuple[str, ...]


def is_link(action: str) -> bool:
    """Return whether an action sends or receives, and computes nothing."""
    return action.startswith(("send_", "receive_"))


def stretches(actions: Sequence[Action]) -> list[Stretch]:
    """Return the longest runs of actions that compute, of one lag, and with no link between them.

    Of one lag, since a run's first step leaves out the actions that lie behind, and its end does them alone.
    """
    runs = groupby(actions, key=lambda action: (is_link(action.name), action.lag))
    return [tuple(action.name for action in run) for (sends_or_receives, _), run in runs if not sends_or_receives]
