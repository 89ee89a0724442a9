"""Save: write a figure with its caption and its data."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from backlink_ray.errors import ConfigError
from backlink_ray.files import make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION_PT = 8.0


def save_figure(
    figure: "Figure", rows: Sequence[Mapping[str, Any]], name: str, folder: Path, *, caption: str
) -> list[Path]:
    """Write a figure as PNG with its caption below, and its data as CSV and Parquet.

    Args:
        figure: laid out by "constrained"; see `new_figure`.
        rows: the data, one row per point; columns missing in a row are left empty.
        folder: for the files; created if missing.

    Returns:
        The PNG, the CSV and the Parquet file.

    Raises:
        ConfigError: no rows, or the folder is not writable.
    """
    if not rows:
        raise ConfigError(f"figure {name!r} has no data to draw; measure or run something first")
    _write_caption(figure, caption)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "csv", "parquet")]
    make_folder(folder, "folder")
    try:
        figure.savefig(paths[0], dpi=150, metadata={"Description": caption})
        table = _table(rows)
        pyarrow.csv.write_csv(table, paths[1])
        pq.write_table(table, paths[2])
    except OSError as error:
        raise ConfigError(f"folder {str(folder)!r} cannot be written ({error.strerror}); choose another") from error
    return paths


def _write_caption(figure: "Figure", caption: str) -> None:
    width_in, height_in = figure.get_size_inches()
    lines = textwrap.wrap(caption, int(width_in * 72 / (CAPTION_PT * 0.54)))
    share = (len(lines) * CAPTION_PT * 1.35 + 6) / 72 / height_in
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=CAPTION_PT, color="#555555", ha="left", va="bottom")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[call-arg]  # constrained layout has it


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return pa.Table.from_pydict({column: [row.get(column) for row in rows] for column in columns})
