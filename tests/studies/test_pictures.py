"""What figures draw from made-up records: axes with units, legends, the paper's points, and captions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backlink_ray.figures import sensitivity
from backlink_ray.figures.data import FigureData
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.results import Results
from backlink_ray.tuning.plan import Plan
from tests.paper.rows import Row, row_of
from tests.studies.recipes import script

HERE = {"hardware": "2 cores of A", "device": "cpu"}
Draw = Callable[..., list[tuple[Any, str]]]


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draw a figure from rows; return matplotlib's figures with their captions instead of writing files."""

    def drawn(name: str, plan: Plan, rows: list[Row], **instead: Any) -> list[tuple[Any, str]]:
        of, kept = script(name), []

        def keep(figure: Any, _rows: Any, _name: str, _folder: Path, *, caption: str, **_: Any) -> list[Path]:
            kept.append((figure, caption))
            return []

        for part, replacement in (instead | {"save_figure": keep}).items():
            monkeypatch.setitem(of["picture"].__globals__, part, replacement)
        monkeypatch.setattr(sensitivity, "save_figure", keep)
        of["picture"](FigureData(plan=plan, rows=rows, folder=tmp_path / name))
        return kept

    return drawn


def paper_plan(name: str, **changes: Any) -> Plan:
    plan: Plan = script(name)["PRESETS"]["paper"]
    return Plan(base=plan.base.replace(**changes), runs=tuple(run.replace(**changes) for run in plan.runs))


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_xlabel()]


def labels(figure: Any) -> set[tuple[str, str]]:
    return {(axes.get_xlabel(), axes.get_ylabel()) for axes in panels(figure)}


def legend_of(figure: Any) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def stars(axes: Any) -> list[tuple[float, float]]:
    found = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "*"]
    return [(float(x), pytest.approx(float(y))) for x, y in found]


def words(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


LINKED = [f"BackLink l={length}" for length in (1, 2, 3, 4)]


def test_figure_7_marks_what_the_paper_says_of_memory(draw: Draw) -> None:
    plan = paper_plan("figure_7_memory")
    rows = [row_of(c, 0.0, memory_mib=1000.0 if c.method == "bp" else 500.0, **HERE) for c in plan.runs]
    ((figure, caption),) = draw("figure_7_memory", plan, rows)
    assert labels(figure) == {("number of local modules K", "peak memory [MiB]")}
    assert legend_of(figure) == ["BP", "GLL", "InfoPro", *LINKED]
    small, _, deep, _ = panels(figure)
    assert stars(small) == [(16, 0.31 * 1.71 * 1000), (16, 0.31 * 1.23 * 1000), (16, 310)]
    assert stars(deep) == [(16, 210), (16, 190)]
    assert [text.split(",")[0] for text in words(small)] == ["paper: InfoPro", "paper: BackLink", "paper: GLL"]
    assert "counted, not computed" in caption
    assert "Left out" not in caption


def test_figure_7_without_bp_of_the_larger_network_shows_the_rest_and_says_so(draw: Draw) -> None:
    plan = paper_plan("figure_7_memory")
    chosen = [c for c in plan.runs if (c.network, c.method) != ("resnet110", "bp")]
    ((figure, caption),) = draw("figure_7_memory", plan, [row_of(c, 0.0, memory_mib=500.0, **HERE) for c in chosen])
    assert [len(stars(axes)) for axes in panels(figure)] == [3, 3, 0, 0]
    assert "Left out for lack of a result: 1 (resnet110 bp K01" in caption


def test_figure_9_draws_the_quoted_best_cases_and_names_the_k_left_out(draw: Draw) -> None:
    plan = paper_plan("figure_9_runtime")
    times = {"time_ratio": 0.8, "time_ratio_min": 0.7, "time_ratio_max": 0.9, "n": 7, "steps": 10, "bp_step_ms": 800.0}
    about = {**times, **HERE, "device": "cuda", "devices": 4, "load_average": 0.1, "executor": "threads"}
    rows = [row_of(c, 0.0, **about) for c in plan.runs if c.num_modules <= 4]
    ((figure, caption),) = draw("figure_9_runtime", plan, rows)
    assert labels(figure) == {("number of local modules K, one GPU each", "time of a step, BP = 1")}
    assert legend_of(figure) == ["BP", "GLL", "InfoPro", *LINKED]
    (axes,) = panels(figure)
    dashed = [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [0.77, 0.48]
    assert words(axes) == ["paper: GLL at best, V100", "paper: BackLink at best (GLL 0.47), P100"]
    assert "4 devices; left out in whole or in part: K = 8, 16" in caption


@pytest.mark.parametrize(
    ("name", "at", "quoted", "lines"),
    [
        ("figure_4_alpha", 1.0, "paper: best α at l = 4\nis below 0.5", LINKED),
        ("figure_5_lr", 0.5, "paper: the best η", ["GLL", *LINKED]),
    ],
)
def test_sensitivity_marks_the_papers_gll_and_what_it_names(
    name: str, at: float, quoted: str, lines: list[str], draw: Draw, tmp_path: Path
) -> None:
    plan = paper_plan(name)
    rows = [row_of(c.replace(seed=seed), 12.0 + seed) for c in plan.runs for seed in range(c.num_modules)]
    environment(tmp_path / name, rows)
    ((figure, caption),) = draw(name, plan, rows)
    assert {y for _, y in labels(figure)} == {"test error [%]"}
    assert legend_of(figure) == lines
    two, four = panels(figure)
    assert (stars(two), stars(four)) == ([(at, 10.35)], [(at, 15.02)])  # Table II, ResNet32, CIFAR-10
    assert quoted in words(two)
    assert any(float(line.get_xdata()[0]) == 0.5 and line.get_linestyle() == "--" for line in two.lines)
    assert "Mean and standard deviation of n = 2 to 4 seeds per point" in caption
    assert f"Hardware: H100, torch 2.9, backlink_ray 1, commit abc, executor auto: {len(rows)} runs" in caption


def environment(folder: Path, rows: list[Row]) -> None:
    stage = {"versions": {"torch": "2.9"}, "hardware": "H100", "backlink_ray": "1", "commit": "abc"}
    about = {"attempts": [{"executor": "ray", "first_epoch": 1, "stages": [stage, stage]}]}
    for row in rows:
        run = folder / "runs" / str(row["run_id"])
        run.mkdir(parents=True)
        (run / "environment.json").write_text(json.dumps(about))


def test_figure_3_has_both_numbers_for_all_units_and_module_by_module(draw: Draw) -> None:
    plan = paper_plan("figure_3_descent", epochs=1)
    ends = ("", *(f"_module_{k}" for k in range(4)))
    names = [f"{column}{end}" for column in ("constant", "norm_ratio") for end in ends]
    epochs = [(c, e) for c in plan.runs for e in (0, 1) if e == 0 or c.alpha != 0.0]  # alpha = 0 diverged
    rows = [row_of(c, 0.0, epoch=e, hardware="A", **dict.fromkeys(names, 0.5)) for c, e in epochs]
    (whole, caption), (by_module, _) = draw("figure_3_descent", plan, rows)
    both = {("epochs trained", "∇L·g / ‖∇L‖²"), ("epochs trained", "‖g‖ / ‖∇L‖")}
    assert labels(whole) == labels(by_module) == both
    assert len(panels(whole)) == len(panels(by_module)) == 8
    assert legend_of(whole) == ["α = 0", "α = 0.25", "α = 0.5", "α = 0.75", "GLL (α = 1)"]
    assert legend_of(by_module) == [f"module {k}" for k in range(4)]
    assert "Not measured to the end: BackLink l=1 K=2 α = 0 (to epoch 0), " in caption


BASE = recipe(find("table3/cifar10/resnet110/conv/K4/l2")).replace(network="resnet32", batch_size=8)


def test_figure_10_draws_what_the_paper_says_of_k_and_of_l(draw: Draw) -> None:
    linked = [BASE.replace(num_modules=k, propagation_length=n) for k, n in ((2, 2), (4, 1), (4, 4))]
    plan = Plan(base=BASE, runs=(BASE.replace(method="bp"), *linked))
    errors = dict(zip([c.run_id for c in plan.runs], (6.0, 7.0, 9.0, 8.5), strict=True))
    rows = [row_of(c, errors[c.run_id], step_ms=100.0 if c.method == "bp" else 60.0) for c in plan.runs]
    rows.append(row_of(plan.runs[1].replace(seed=1), 7.5, step_ms=60.0))
    memory_mib = {1: 100.0, 2: 70.0, 4: 50.0}
    ((figure, caption),) = draw(
        "figure_10_tradeoff", plan, rows, footprint_mib=lambda config, _device: memory_mib[config.num_modules]
    )
    drop = "accuracy drop relative to BP [percentage points]"
    assert labels(figure) == {
        ("memory reduction relative to BP [%]", drop), ("step time reduction relative to BP [%]", drop),
    }  # fmt: skip
    assert legend_of(figure)[-2:] == ["paper: l = 2,\nK doubled", "paper: l = 1 to 4,\nK = 4"]
    memory, time = (
        [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 2.5] for axes in panels(figure)
    )
    assert memory[0] == approximately((30, 1.25), (53, 2.82))
    assert memory[1] == approximately((50, 3), (50, 2.13), (50, 2.13))  # memory stays
    assert time == [approximately((40, 1.25), (63, 2.82)), approximately((40, 3), (40, 2.13), (34, 2.13))]
    assert "n = 1 to 2 seeds per point" in caption


def approximately(*points: tuple[float, float]) -> list[Any]:
    return [pytest.approx(list(point)) for point in points]


def test_figure_10_takes_table_iiis_runs_of_the_same_recipe_and_no_other(tmp_path: Path) -> None:
    same = [
        BASE.replace(method="bp", seed=3), BASE.replace(num_modules=8, propagation_length=1, alpha=0.0, executor="ray"),
    ]  # fmt: skip
    other = [
        BASE.replace(base="infopro"), BASE.replace(method="gll"), BASE.replace(method="dgl"), BASE.replace(mode="stale"),
        BASE.replace(validation_fraction=0.1), BASE.replace(body_scale="alpha"), BASE.replace(lr=0.1, method="bp"),
    ]  # fmt: skip
    table_rows = script("figure_10_tradeoff")["table_rows"]
    assert table_rows(tmp_path, BASE) == []
    for config in (*same, *other):
        Results(tmp_path / "table_3").append(row_of(config, 8.0))
    Results(tmp_path / "table_3").append(row_of(BASE.replace(seed=7), 8.0) | {"status": "FAILED"})
    assert {row["run_id"] for row in table_rows(tmp_path, BASE)} == {config.run_id for config in same}
