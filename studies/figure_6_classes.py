"""Figure 6: training images per class in (a) long-tailed CIFAR-10 and (b) SVHN.

Panel (a) needs the files of CIFAR-10 and downloads them if they are missing. Panel (b) is drawn if those of SVHN are in the
data root; --svhn downloads them. --smoke-test makes (a) from the embedded sample, with all counts scaled down.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.commands.command import Command, run_command
from backlink_ray.commands.flags import CommonFlags
from backlink_ray.data.choice import LONG_TAIL_RATIO
from backlink_ray.data.datasets import data_root, load_dataset
from backlink_ray.data.originals import long_tailed
from backlink_ray.data.provision import MissingError
from backlink_ray.data.tensors import Dataset
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import COLOURS, INK, format_axes, legend, new_figure
from backlink_ray.output import say
from backlink_ray.tuning.plan import Plan

NAME = "figure_6_classes"


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags of this figure; --seed chooses the images of the long-tailed set, as in a run of that seed."""

    svhn: bool = False
    """Draw panel (b), and download SVHN's files (236 MiB) if they are missing."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One data set in the figure; `whole` is the balanced set that it was cut from, or itself."""

    title: str
    dataset: Dataset
    whole: Dataset
    x: str
    note: str

    def rows(self) -> list[dict[str, str | int]]:
        """Return the figure's data, one row per class."""
        tests = self.dataset.test.labels.bincount(minlength=self.dataset.num_classes).tolist()
        columns = (self.dataset.class_names, self.dataset.train_counts, self.whole.train_counts, tests)
        return [
            {
                "dataset": self.dataset.name, "class": index, "name": name, "train_images": kept,
                "train_images_before": before, "test_images": test, "seed": self.dataset.seed,
                "digest": self.dataset.digest,
            }
            for index, (name, kept, before, test) in enumerate(zip(*columns, strict=True))
        ]  # fmt: skip


def panel_a(flags: Flags) -> Panel:
    if flags.smoke_test:
        whole = load_dataset("cifar10-sample")
        dataset = long_tailed(whole, "cifar10-sample-lt", flags.seed)
    else:
        root = data_root(flags.data_root)
        whole, dataset = load_dataset("cifar10", root), load_dataset("cifar10-lt", root, seed=flags.seed)
    title = f"(a) long-tailed {'sample of ' if flags.smoke_test else ''}CIFAR-10"
    return Panel(title=title, dataset=dataset, whole=whole, x="class", note=note_a(dataset, whole, flags))


def note_a(dataset: Dataset, whole: Dataset, flags: Flags) -> str:
    largest, test = whole.train_counts[0], len(dataset.test)
    formula = (
        f"class i, counted from 0, keeps floor({largest} / {LONG_TAIL_RATIO}^i) of its {largest} training images, chosen "
        f"by seed {flags.seed}: {len(dataset.train):,} of {len(whole.train):,} in all; the {test:,} test images stay balanced"
    )
    scaled = "Not the paper's set: made from the embedded sample in the same way, with counts scaled by "
    return f"{scaled}{largest} / 5000. In (a) {formula}." if flags.smoke_test else f"In (a) {formula}."


def panels_b(flags: Flags) -> list[Panel]:
    """Return panel (b), or none if its files are missing and --svhn was not given."""
    if flags.smoke_test and not flags.svhn:
        return []
    try:
        dataset = load_dataset("svhn", data_root(flags.data_root), download=flags.svhn)
    except MissingError as error:
        say(f"panel (b) is left out: {error}; --svhn downloads the missing files")
        return []
    note = f"(b) has all {len(dataset.train):,} training images; its {len(dataset.test):,} test images are similarly imbalanced."
    return [Panel(title="(b) SVHN", dataset=dataset, whole=dataset, x="class (digit)", note=note)]


def draw(axes: Any, panel: Panel) -> None:
    counts, places = panel.dataset.train_counts, range(panel.dataset.num_classes)
    if len(panel.whole.train) > len(panel.dataset.train):
        axes.bar(places, panel.whole.train_counts, 0.84, color="#EAEAEA", label="left out")
    bars = axes.bar(places, counts, 0.84, color=COLOURS[1], label="training images")
    axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, color=INK, padding=1)
    slanted = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(panel.dataset.class_names[0]) > 1 else {}
    )
    labels = [f"{i} {name}" if slanted else name for i, name in enumerate(panel.dataset.class_names)]
    axes.set_xticks(list(places), labels, fontsize=8.5, **slanted)
    axes.set_ylim(0, max(panel.whole.train_counts) * 1.1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    format_axes(axes, panel.title, panel.x, "number of training images")


class ClassesFigure(Command):
    """Figure 6: drawn from the data sets, without training, so --report-only draws it again."""

    flags: Flags

    def __init__(self, flags: Flags) -> None:
        dataset = "cifar10-sample" if flags.smoke_test else "cifar10-lt"
        plan = Plan(base=RunConfig(dataset=dataset), metric="train_images")
        super().__init__(flags, plan, NAME, "smoke" if flags.smoke_test else "")

    def note(self) -> str:
        return "Figure 6 of the paper: training images per class."

    def check_report(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        self._panels = [panel_a(self.flags), *panels_b(self.flags)]

    def carry_out(self, tracker: Any) -> None:
        """Nothing has to run."""

    def write(self) -> Sequence[Path]:
        figure, axes = new_figure(len(self._panels), "Fig. 6  Training images per class", height_in=4.0)
        for place, panel in zip(axes, self._panels, strict=True):
            draw(place, panel)
        legend(figure)
        rows = [row for panel in self._panels for row in panel.rows()]
        notes = [panel.note for panel in self._panels]
        notes += ["Panel (b), SVHN, is drawn with --svhn."] if len(notes) == 1 else []
        return save_figure(figure, rows, self.name, self.folder, caption=" ".join(notes))

    def show(self) -> None:
        for panel in self._panels:
            print(f"{panel.title}: {panel.dataset.train_counts}")

    def dry_run(self) -> None:
        flags, root = self.flags, data_root(self.flags.data_root)
        print(
            f"(a) {'cifar10-sample, embedded' if flags.smoke_test else f'cifar10-lt, seed {flags.seed}, files in {root}'}"
        )
        if flags.svhn or not flags.smoke_test:
            print(f"(b) svhn, files in {root}" + ", if they exist; --svhn downloads them" * (not flags.svhn))
        print("no training; takes seconds")


if __name__ == "__main__":
    sys.exit(run_command(ClassesFigure, Flags, NAME, __doc__))
