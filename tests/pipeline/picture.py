"""A schedule as a picture: every computation takes one tick, and every message is instant."""

from backlink_ray.pipeline.schedule import run_actions, step_actions
from backlink_ray.planning.simulation import Simulation, StageWork, Transfer

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
    ticks = {name: float(name in COMPUTE) for of_stage in actions for name, _ in run_actions(range(2), of_stage)}
    spans = Simulation(
        [StageWork(each, ticks, dict.fromkeys(SENDS, 0)) for each in actions], Transfer(), num_steps
    ).spans
    rows = [[".."] * int(max(span.end_s for span in spans)) for _ in actions]
    for span in spans:
        if span.action in COMPUTE:
            rows[span.stage_index][int(span.end_s) - 1] = f"{COMPUTE[span.action]}{span.step}"
    return "\n".join(f"stage {k}  {' '.join(row)}".rstrip(" .") for k, row in enumerate(rows))
