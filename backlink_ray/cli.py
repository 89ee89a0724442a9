"""Command line: backlink-ray train | report | sync."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from backlink_ray.data.datasets import data_root
from backlink_ray.errors import CheckpointError, ConfigError, NonFiniteLossError, StageError
from backlink_ray.files import write_whole
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one configuration into a run folder; the same command again goes on where it stopped."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    output_dir: Path
    """The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, result.json."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    timeline: str = ""
    """PNG file: when each stage forwards, waits, runs backward, exchanges and updates."""
    stage_timeout_s: float = 120.0
    """Longest wait of a stage for its neighbour, in seconds."""
    cpus_per_stage: float = 0.25
    """CPUs that Ray reserves for a stage."""
    gpus_per_stage: float = 1.0
    """GPUs that Ray reserves for a stage, where there are GPUs; a fraction lets stages share one."""

    def main(self) -> int:
        """Run it, an epoch a line."""
        config = self.config
        if self.timeline and not self.timeline.endswith(".png"):
            raise ConfigError(f"timeline={self.timeline!r} is no PNG file; give a name that ends in .png")
        dataset = dataset_of(config, data_root(self.data_root))
        options = RunOptions(
            output_dir=self.output_dir,
            timeline=self.timeline,
            stage_timeout_s=self.stage_timeout_s,
            cpus_per_stage=self.cpus_per_stage,
            gpus_per_stage=self.gpus_per_stage,
            on_epoch=_print_epoch(config),
        )
        result = run(config, dataset, options)
        print(
            f"test error {result['test_error_pct']:.2f} %, {result['images_per_s']:.0f} images/s, in {self.output_dir}"
        )
        return 0


def _print_epoch(config: RunConfig) -> Callable[[dict[str, Any]], None]:
    def show(m: dict[str, Any]) -> None:
        losses = " ".join(f"{loss:.3f}" for loss in m["local_loss"])
        print(
            f"epoch {m['epoch']}/{config.epochs}  test error {m['test_error_pct']:.2f} %  local losses {losses}  "
            f"{m['images_per_s']:.0f} images/s  step {m['step_ms']:.1f} ms (link {m['link_ms']:.1f})",
            flush=True,
        )

    return show


@dataclass(frozen=True, kw_only=True)
class Sync:
    """Bring MLflow up to what was run, for example after its server was down; nothing is doubled."""

    storage: tyro.conf.Positional[Path]
    """The storage path of studies and figures, or the folder of one of them."""
    tracking_uri: str = ""
    """Where to: sqlite:////ABSOLUTE/mlflow.db or http://HOST:PORT; default $MLFLOW_TRACKING_URI, else sqlite in the storage."""

    def main(self) -> int:
        """Sync and say how much."""
        from backlink_ray.runs.tracked import sync  # pyarrow and mlflow take seconds to import
        from backlink_ray.tracking.uri import default_tracking_uri, redact

        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default_tracking_uri(self.storage)
        there, refused = sync(self.storage, uri)
        print(f"in MLflow at {redact(uri)}: {there} of {there + refused} runs" + ", see above" * bool(refused))
        return 1 if refused else 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Say what the recorded studies come to."""

    claims: bool = False
    """The paper's claims: what each rests on, its number, ours where that ran at the paper's budget, and the verdict."""
    storage_path: tuple[Path, ...] = (Path("results"),)
    """Folders of studies and figures: their --storage-path; several may follow."""
    output: str = ""
    """Markdown file for the same."""

    def main(self) -> int:
        """Print it, and write it where asked."""
        from rich.console import Console
        from rich.markdown import Markdown as RichMarkdown

        from backlink_ray.paper.claims import markdown  # these take seconds to import
        from backlink_ray.paper.evidence import Evidence

        if not self.claims:
            raise ConfigError("report says nothing yet: give --claims; a table is studies/table_2.py --report-only")
        usual = self.storage_path == (Path("results"),) and not self.storage_path[0].exists()
        page = markdown(Evidence(() if usual else self.storage_path))
        if self.output:
            write_whole(Path(self.output), page)
        if sys.stdout.isatty():
            Console().print(RichMarkdown(page))
        else:
            print(page, end="")
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; 0 done, 1 the run failed, 2 bad arguments or data, 3 interrupted and resumable."""
    try:
        command: Train | Report | Sync = tyro.extras.subcommand_cli_from_dict(
            {"train": Train, "report": Report, "sync": Sync}, prog="backlink-ray", args=arguments, description=__doc__
        )
        return command.main()
    except (NonFiniteLossError, StageError, CheckpointError, ConnectionError) as error:
        return _say(f"failed: {error}", 1)
    except (ValueError, OSError) as error:  # ConfigError, DataError, a tracking URI; a full or forbidden disk
        return _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 3)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
