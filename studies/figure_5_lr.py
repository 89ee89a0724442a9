"""Figure 5: test error over eta, the peak learning rate: ResNet32, fc heads, K = 2 and 4, GLL and BackLink."""

import sys
from pathlib import Path

from backlink_ray import RunConfig
from backlink_ray.commands.search import main
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.sensitivity import PAPER, SMOKE, Axis, draw_sensitivity
from backlink_ray.paper.recipes import default_alpha
from backlink_ray.tuning.plan import Plan

ETAS = (0.01, 0.05, 0.1, 0.5, 1.0)


def runs(base: RunConfig, lengths: dict[int, tuple[int, ...]], etas: tuple[float, ...]) -> tuple[RunConfig, ...]:
    found = []
    for k, ls in lengths.items():
        found += [base.replace(method="gll", num_modules=k, lr=eta) for eta in etas]
        # The paper does not state alpha for this figure.
        linked = [base.replace(num_modules=k, propagation_length=n, alpha=default_alpha(n)) for n in ls]
        found += [run.replace(lr=eta) for run in linked for eta in etas]
    return tuple(found)


PRESETS = {
    "paper": Plan(base=PAPER, runs=runs(PAPER, {2: (1, 2, 3, 4), 4: (1, 2, 3, 4)}, ETAS), metric="test_error_pct"),
    "smoke": Plan(
        base=SMOKE,
        runs=(
            *runs(SMOKE, {2: (2,)}, (0.01, 0.1)),
            *(SMOKE.replace(num_modules=4, propagation_length=1, lr=eta) for eta in (0.01, 0.1)),
        ),
        metric="test_error_pct",
    ),
}


def picture(data: FigureData) -> list[Path]:
    quoted = ((PAPER.lr, "paper: the best η"),)
    axis = Axis(field="lr", label="η, peak learning rate (logarithmic)", values=ETAS, logarithmic=True, quoted=quoted)
    title = "Fig. 5  Sensitivity to the learning rate η"
    note = "Paper: the best η is 0.5, and both ends are worse"
    return draw_sensitivity(data, axis, "figure_5_lr", title, "α = 0.5 for l up to 2, 0.25 beyond", note)


if __name__ == "__main__":
    sys.exit(main("figure_5_lr", PRESETS, __doc__ or "", picture=picture))
