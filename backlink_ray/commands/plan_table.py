"""Plan table: predictions as rows of a table, and as the flags of `train` that they stand for."""

from collections.abc import Sequence
from itertools import groupby

from backlink_ray.planning.plan import Prediction
from backlink_ray.planning.scaling import Choice

COLUMNS = ("K x D", "l", "link", "tail", "step ms", "/ BP", "busy %", "MiB", "cut MiB", "sizes")
# Over N devices, and without sizes: at most 80 characters.
SCALING_COLUMNS = ("N", *COLUMNS[:-2])


def cells(each: Prediction) -> list[str]:
    """Return a row of the table."""
    number = f"{len(each.sizes)}" + f" x {each.replicas}" * (each.replicas > 1)
    row, busy = each.row, [f"{100 * share:.0f}" for share in (min(each.busy), max(each.busy))]
    linked = bool(each.link.length)
    return [
        number, str(row["propagation_length"]), row["link"] * linked, row["tail_memory"] * linked,
        f"{row['step_ms']:.1f}", f"{each.ratio_to_bp:.3f}", "..".join(busy),
        f"{each.memory_mib:,.0f}" + " (too much)" * (not each.fits), f"{row['widest_cut_mib']:.2f}", short_sizes(each.sizes),
    ]  # fmt: skip


def scaling_cells(each: Choice) -> list[str]:
    """Return a row of the table over devices."""
    return [str(each.devices), *cells(each.plan)[:-2]]


def short_sizes(sizes: Sequence[int]) -> str:
    """Return sizes with repetitions counted: "7 9", "4x3 2"."""
    groups = [(size, len(list(group))) for size, group in groupby(sizes)]
    return " ".join(f"{count}x{size}" if count > 2 else " ".join([str(size)] * count) for size, count in groups)


def best_of_each(found: Sequence[Prediction]) -> list[Prediction]:
    """Return the fastest of every K, D and l, of those that fit if any does."""
    best: dict[tuple[int, int, int], Prediction] = {}
    for each in sorted(found, key=lambda each: (not each.fits, each.step_s)):
        best.setdefault((len(each.sizes), each.replicas, each.link.length), each)
    return [best[key] for key in sorted(best)]


def cut_flags(prediction: Prediction) -> str:
    """Return a cut and its method as flags of train."""
    sizes, link = " ".join(map(str, prediction.sizes)), prediction.link
    replicas = f" --replicas {prediction.replicas}" * (prediction.replicas > 1)
    if len(prediction.sizes) == 1:
        return f"--method bp{replicas}"
    if not link.length:
        return f"--method gll --sizes {sizes}{replicas}"
    tail = "recompute" if link.recompute else "retain"
    return f"--sizes {sizes} --propagation-length {link.length} --link {link.kind} --tail-memory {tail}{replicas}"
