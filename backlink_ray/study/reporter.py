"""Reporter: carries what trials report to the record, to the tracker and to the terminal, in the study's driver."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune

from backlink_ray import environment
from backlink_ray.config import RunConfig
from backlink_ray.data.datasets import Dataset
from backlink_ray.study.paper import published_error_pct
from backlink_ray.study.record import Record
from backlink_ray.study.runner import FAILURE
from backlink_ray.study.search import base_with
from backlink_ray.study.tracking import Tracker
from backlink_ray.study.trial import choice_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where a study's results go, and the configuration its trials start from."""

    name: str
    base: RunConfig
    folder: Path
    record: Record
    tracker: Tracker


class Reporter(tune.Callback):
    """Writes what trials report to the record and the tracker, in the driver, and a line an epoch to the terminal."""

    def __init__(self, ledger: Ledger, dataset: Dataset, size: int, ended: int) -> None:
        self._study, self._dataset = ledger, dataset
        self._size, self._ended = size, ended

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file for Tuner.restore, which is never used here."""
        return {}

    def setup(
        self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any
    ) -> None:
        """Ray asks for it; nothing to prepare."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the run."""
        config = self._config(trial)
        print(f"{self._label(config)} starts", flush=True)
        published = published_error_pct(config)
        tags = {
            "study": self._study.name, "method": config.method, "version": environment.describe()["backlink_ray"],
            "commit": environment.commit(), **({"paper.error_pct": str(published)} if published is not None else {}),
        }  # fmt: skip
        known = {
            "name": self._dataset.name,
            "md5": self._dataset.digest,
            "source": json.dumps(_sizes(self._dataset)),
        }
        self._study.tracker.start_run(config.run_id, config.run_name, run_params(config), tags, known)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log one epoch."""
        config = self._config(trial)
        self._study.tracker.log_metrics(config.run_id, curve_points(result), int(result["epoch"]))
        losses = " ".join(f"{loss:.3f}" for loss in result["local_loss"])
        left = (config.epochs - int(result["epoch"])) * result["epoch_s"]
        print(
            f"{self._label(config)} {result['executor']}  epoch {result['epoch']}/{config.epochs}  "
            f"test error {result['test_error_pct']:.2f} %  losses {losses}  {result['images_per_s']:.0f} images/s  "
            f"{left / 60:.1f} min left",
            flush=True,
        )

    def _label(self, config: RunConfig) -> str:
        return (
            f"[{self._ended}/{self._size} done] {config.method} K={config.num_modules} l={config.propagation_length} "
            f"alpha={config.alpha:g} eta={config.lr:.3g}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the result, or what there is of it where the trial was stopped early."""
        if (self._folder(trial) / "result.json").exists():
            self._end(trial, "FINISHED", "done")
        else:
            self._end(trial, "STOPPED", f"stopped early, after epoch {trial.last_result['epoch']}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the failure with its reason."""
        self._end(trial, "FAILED", failure_reason(self._folder(trial)))

    def _end(self, trial: Any, status: Literal["FINISHED", "STOPPED", "FAILED"], reason: str) -> None:
        self._ended += 1
        config = self._config(trial)
        folder = self._folder(trial)
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
        if status == "STOPPED":
            result = {name: trial.last_result[name] for name in HEADLINE if name in trial.last_result}
        for metrics in result.get("curve", []):  # epochs whose report was lost with a killed driver
            self._study.tracker.log_metrics(config.run_id, curve_points(metrics), int(metrics["epoch"]))
        headline = {k: v for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if headline:
            self._study.tracker.log_metrics(config.run_id, headline, config.epochs)
        for name in ("config.yaml", "environment.json", "result.json"):
            if (folder / name).exists():
                self._study.tracker.log_artifact(config.run_id, folder / name)
        self._study.record.append(
            {**dataclasses.asdict(config), "run_id": config.run_id, "status": status, "reason": reason, **headline}
        )
        self._study.tracker.end_run(config.run_id, "FAILED" if status == "FAILED" else "FINISHED", reason)
        if status == "FAILED":
            print(f"trial {config.run_name} failed: {reason}", file=sys.stderr, flush=True)

    def _folder(self, trial: Any) -> Path:
        return self._study.folder / "runs" / self._config(trial).run_id

    def _config(self, trial: Any) -> RunConfig:
        return base_with(self._study.base, choice_of(trial.config))


# What a run that was stopped early still tells.
HEADLINE = ("test_error_pct", "val_error_pct", "images_per_s", "epoch_s", "peak_memory_mib")


def failure_reason(folder: Path) -> str:
    """Return why a run failed: what it wrote itself, naming stage and step, or that its process died."""
    file = folder / FAILURE
    return str(json.loads(file.read_text())["reason"]) if file.exists() else "the trial's process died"


def run_params(config: RunConfig) -> dict[str, str | int | float]:
    """Return the few parameters that MLflow's table shows; everything is in config.yaml."""
    return {
        "K": config.num_modules, "l": config.propagation_length, "alpha": config.alpha, "eta": round(config.lr, 6),
        "seed": config.seed, "dataset": config.dataset, "network": config.network, "head": config.head,
        "method": config.method, "batch_size": config.batch_size, "epochs": config.epochs,
    }  # fmt: skip


def curve_points(metrics: dict[str, Any]) -> dict[str, float]:
    """Return one epoch's points: curve/... for the run, local_loss/stage_00... for its stages."""
    names = ("test_error_pct", "val_error_pct", "train_loss", "images_per_s", "epoch_s", "link_ms")
    points = {f"curve/{name}": float(metrics[name]) for name in names if name in metrics}
    return points | {f"local_loss/stage_{k:02d}": float(loss) for k, loss in enumerate(metrics["local_loss"])}


def _sizes(dataset: Dataset) -> dict[str, int]:
    return {"train_images": len(dataset.train), "test_images": len(dataset.test)}
