"""Figure 4: test error over alpha, the weight of the local error in the linked units: ResNet32, fc heads, K = 2 and 4.

alpha = 1 is GLL for every l, so one GLL run is the last point of all lines of a panel.
"""

import sys
from pathlib import Path

from backlink_ray import RunConfig
from backlink_ray.commands.search import main
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.sensitivity import PAPER, SMOKE, Axis, draw_sensitivity
from backlink_ray.paper.recipes import ALPHAS
from backlink_ray.tuning.plan import Plan


def runs(base: RunConfig, lengths: dict[int, tuple[int, ...]], alphas: tuple[float, ...]) -> tuple[RunConfig, ...]:
    found = []
    for k, ls in lengths.items():
        linked = ((n, alpha) for n in ls for alpha in alphas if alpha < 1)
        found += [base.replace(num_modules=k, propagation_length=n, alpha=alpha) for n, alpha in linked]
        found.append(base.replace(method="gll", num_modules=k))
    return tuple(found)


PRESETS = {
    "paper": Plan(base=PAPER, runs=runs(PAPER, {2: (1, 2, 3, 4), 4: (1, 2, 3, 4)}, ALPHAS), metric="test_error_pct"),
    "smoke": Plan(base=SMOKE, runs=runs(SMOKE, {2: (2,), 4: (1,)}, (0.0, 0.5)), metric="test_error_pct"),
}


def picture(data: FigureData) -> list[Path]:
    quoted = ((0.5, "paper: best α at l = 4\nis below 0.5"),)
    axis = Axis(field="alpha", label="α, weight of the local error", values=ALPHAS, quoted=quoted)
    title = "Fig. 4  Sensitivity to the weighting factor α"
    note = "Paper: K = 4 is more sensitive than K = 2, and at l = 4 the best α is below 0.5"
    return draw_sensitivity(data, axis, "figure_4_alpha", title, "α = 1 is GLL", note)


if __name__ == "__main__":
    sys.exit(main("figure_4_alpha", PRESETS, __doc__ or "", picture=picture))
