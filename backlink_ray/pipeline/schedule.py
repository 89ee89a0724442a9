"""Schedule: who does what in which order, as plain data.

K = 3 stages, l >= 1, four steps, every computation one tick (r replica forward, b body forward, t tail forward,
L local backward, R replica backward; digits are steps, dots are waiting), with the link `replica`:

    stage 0  b0 t0 L0 b1 .. .. t1 L1 b2 .. .. t2 L2 b3 .. .. t3 L3
    stage 1  .. r0 b0 t0 L0 R0 r1 b1 t1 L1 R1 r2 b2 t2 L2 R2 r3 b3 t3 L3 R3
    stage 2  .. .. .. r0 b0 t0 L0 R0 r1 b1 t1 L1 R1 r2 b2 t2 L2 R2 r3 b3 t3 L3 R3

Stage 0 has no replica, so it is the one with time to wait; every other stage works without a gap once it has started.
With the link `error` (E link backward) nothing is computed twice, and the tail, whose output is what travels, makes the
next stage wait for the error of the step before:

    stage 0  b0 t0 L0 b1 .. E0 t1 L1 b2 .. .. E1 t2 L2 b3 .. .. E2 t3 L3 .. .. .. E3
    stage 1  .. .. b0 t0 L0 .. .. b1 E0 t1 L1 .. .. b2 E1 t2 L2 .. .. b3 E2 t3 L3 .. .. E3
    stage 2  .. .. .. .. b0 t0 L0 .. .. .. b1 t1 L1 .. .. .. b2 t2 L2 .. .. .. b3 t3 L3
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

COMPUTE = {
    "replica_forward": "r",
    "body_forward": "b",
    "tail_forward": "t",
    "local_backward": "L",
    "replica_backward": "R",
    "link_backward": "E",
}
SENDS = {
    "send_activation": "activation",
    "send_output": "activation",
    "send_local_gradient": "local_gradient",
    "send_link_gradient": "link_gradient",
    "send_error": "error",
}
RECEIVES = {
    "receive_activation": "activation",
    "receive_local_gradient": "local_gradient",
    "receive_link_gradient": "link_gradient",
    "receive_error": "error",
}
BACKWARD = ("link_gradient", "error")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a stage does, and how many steps behind the current one it belongs (only the tail waits: lag 1)."""

    name: str
    lag: int = 0


def step_actions(
    *, is_first: bool, is_last: bool, link: str = "", has_tail: bool = True, is_stale: bool = False
) -> tuple[Action, ...]:
    """Return what one stage does in one step, in order.

    The activation leaves before anything else is computed, and the only wait for a later module (for the step before)
    comes after it, so no stage keeps another from starting. Body and head update at once, since they hear their own loss
    only. With the link "error" a tail must be updated before its output can leave; without a tail (DNI) nothing waits. A
    stale tail, and a module whose error is delayed (DDG), take what the step before left.

    Args:
        is_first, is_last: the stage has no neighbour before, or after.
        link: "", "replica", "error" or "delayed", as `Method.link_kind`.
        has_tail: whether modules but the last have tail units.
        is_stale: as `Method.is_stale`.
    """
    has_next, has_previous = not is_last, not is_first
    replica, error, delayed = link == "replica", link == "error", link == "delayed"
    late = error and has_tail
    names: list[tuple[str, int, bool]] = [
        ("receive_activation", 0, has_previous),
        ("replica_forward", 0, replica and has_previous),
        ("body_forward", 0, True),
        ("send_activation", 0, has_next and not late),
        ("receive_link_gradient", 1, replica and has_next and not is_stale),
        ("receive_error", 1, (error or delayed) and has_next),
        ("link_backward", 1, error and has_next),
        ("tail_update", 1, (replica or error) and has_next and not is_stale),
        ("tail_forward", 0, True),
        ("send_output", 0, has_next and late),
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


def async_actions(*, is_first: bool, is_last: bool, has_tail: bool) -> tuple[Action, ...]:
    """Return what one stage does in one step where stages do not keep step (mode async).

    It waits for nothing but its first input: it works on the freshest of the least used activations it has, and hears the
    newest link gradients that have come. The next stage's copy of a tail is refreshed with the tail's own weights, since
    nothing could keep two copies equal here.
    """
    has_next, has_previous = has_tail and not is_last, has_tail and not is_first
    names = [
        ("receive_fresh_activation", not is_first),
        ("replica_refresh", has_previous),
        ("replica_forward", has_previous),
        ("body_forward", True),
        ("send_fresh_activation", not is_last),
        ("send_tail_weights", has_next),
        ("tail_forward", True),
        ("local_backward", True),
        ("body_update", True),
        ("receive_newest_gradient", has_next),
        ("tail_update", has_next),
        ("replica_backward", has_previous),
        ("send_newest_gradient", has_previous),
    ]
    return tuple(Action(name) for name, present in names if present)


def run_actions(first_step: int, num_steps: int, actions: Sequence[Action]) -> Iterator[tuple[str, int]]:
    """Yield (action, step) for a run of steps that begins and ends drained: nothing of it is left under way."""
    last = first_step + num_steps - 1
    for step in range(first_step, first_step + num_steps):
        for action in actions:
            if step - action.lag >= first_step:
                yield action.name, step - action.lag
    for action in actions:
        if action.lag:
            yield action.name, last


def picture(
    num_stages: int, num_steps: int, link: str = "replica", *, has_tail: bool = True, is_stale: bool = False
) -> str:
    """Draw a run as text: one row a stage, one column a tick, every computation one tick and every message instant."""
    ends = [(k == 0, k == num_stages - 1) for k in range(num_stages)]
    queues = [
        list(
            run_actions(
                0, num_steps, step_actions(is_first=a, is_last=b, link=link, has_tail=has_tail, is_stale=is_stale)
            )
        )
        for a, b in ends
    ]
    rows: list[list[str]] = [[] for _ in queues]
    arrived: set[tuple[int, str, int]] = set()
    while any(queues):
        sent = [_tick(k, queue, rows[k], arrived) for k, queue in enumerate(queues)]
        arrived.update(message for messages in sent for message in messages)
    return "\n".join(f"stage {k}  {' '.join(row)}".rstrip(" .") for k, row in enumerate(rows))


def _tick(
    k: int, queue: list[tuple[str, int]], row: list[str], arrived: set[tuple[int, str, int]]
) -> list[tuple[int, str, int]]:
    """Advance one stage by one computation, and by everything instant before and after it; return what it sent."""
    sent: list[tuple[int, str, int]] = []
    computed = False
    while queue:
        name, step = queue[0]
        if name in COMPUTE and computed:
            break
        if name in RECEIVES and (k, RECEIVES[name], step) not in arrived:
            break
        queue.pop(0)
        if name in COMPUTE:
            row.append(f"{COMPUTE[name]}{step}")
            computed = True
        elif name in SENDS:
            sent.append((_receiver(k, name), SENDS[name], step))
    if not computed:
        row.append("..")
    return sent


def _receiver(k: int, send: str) -> int:
    return k - 1 if SENDS[send] in BACKWARD else k + 1
