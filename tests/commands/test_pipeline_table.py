"""Pipeline table: what is said where data parallel training is faster."""

from typing import Any

from backlink_ray.commands.pipeline_table import notes


def row(name: str, k: int, ratio: float, mib: float, transport: str | None = None) -> dict[str, Any]:
    return {
        "name": name, "num_modules": k, "step_s": ratio, "ratio_to_bp": ratio, "device_mib": mib, "transport": transport
    }  # fmt: skip


def test_where_data_parallel_training_is_faster_the_table_says_so_and_why_one_would_cut() -> None:
    ddp = [row("ddp", 2, 0.6, 300), row("ddp", 4, 0.6, 200)]
    ours = [row("gll", 2, 0.7, 250, "queue"), row("gll", 2, 0.65, 260, "collective"), row("gll", 4, 0.5, 150, "queue")]
    (note,) = notes([*ddp, *ours])
    assert note.startswith("K = 2: data parallel training (ddp) is faster, 0.60 of BP against 0.65")
    assert "300 MiB" in note
    assert "260 MiB" in note
    assert note.endswith("one cuts by modules what does not fit a device.")


def test_where_data_parallel_training_needs_less_memory_too_nothing_is_made_up() -> None:
    (note,) = notes([row("ddp", 2, 0.6, 24), row("gll", 2, 0.7, 26, "queue")])
    assert "here nothing speaks for that cut" in note
