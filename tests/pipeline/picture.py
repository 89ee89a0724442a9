"""A schedule as a picture: every computation takes one tick, and every message is instant."""

from backlink_ray.pipeline.schedule import run_actions, step_actions

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


def picture(
    num_stages: int, num_steps: int, link: str = "replica", *, has_tail: bool = True, is_stale: bool = False
) -> str:
    """Draw a run as text: one row per stage, one column per tick."""
    kind = {"link": link, "has_tail": has_tail, "is_stale": is_stale}
    last = num_stages - 1
    actions = [step_actions(is_first=k == 0, is_last=k == last, **kind) for k in range(num_stages)]  # type: ignore[arg-type]
    queues = [list(run_actions(range(num_steps), of_stage)) for of_stage in actions]
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
