"""The picture over devices: what it compares, and which number it marks."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from backlink_ray.figures.scaling import draw_scaling
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Prediction
from backlink_ray.planning.scaling import Choice


def choice(devices: int, length: int, step_s: float) -> Choice:
    plan = Prediction(
        sizes=(1,) * devices, link=Link(length=length), step_s=step_s, ratio_to_bp=step_s, busy=(1.0,), memory_mib=1.0,
        cut_bytes=(), fits=True,
    )  # fmt: skip
    return Choice(devices=devices, length=length, plan=plan)


def test_the_number_that_is_enough_is_ringed_on_the_line_of_the_fastest_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    times = {0: (1.0, 0.5, 0.25), 1: (1.0, 0.6, 0.55), 2: (1.0, 0.7, 0.65)}
    found = [choice(n, length, s) for length, of in times.items() for n, s in zip((1, 2, 4), of, strict=True)]
    draw_scaling(found, 1.0, tmp_path / "p.png", "title")
    axes, share = kept[0].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("N devices, each with one stage at most", "ms")
    (legend,) = kept[0].legends
    lines = ["GLL", "BackLink l=1", "BackLink l=2", "BP on one device", "BP / N"]
    assert [text.get_text() for text in legend.get_texts()] == lines
    assert [line.get_ydata()[-1] for line in share.lines] == pytest.approx([1.0, 1 / 2.2, 1 / 2.6, 1.0])
    (ring,) = [line.get_xydata().tolist() for line in axes.lines if line.get_fillstyle() == "none"]
    assert ring == [[2, 600]]
    assert [text.get_text() for text in axes.texts] == [
        "beyond 2 devices,\ntwice as many save less than 10 % of a step"
    ]
