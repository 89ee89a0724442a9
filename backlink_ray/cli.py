"""Command line: backlink-ray train | plan | bench | report | sync."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from backlink_ray.commands.bench import Bench
from backlink_ray.commands.exit_codes import guarded
from backlink_ray.commands.flags import LimitFlags, parse
from backlink_ray.commands.plan import Plan
from backlink_ray.errors import ConfigError
from backlink_ray.files import local_path, write_whole
from backlink_ray.methods.catalogue import own_options
from backlink_ray.options import mapping
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import epoch_line, test_text
from backlink_ray.runs.runner import run


@dataclass(frozen=True, kw_only=True)
class RunFlags(RunConfig):
    """The fields of a run as flags; its method's own options are flags of their own."""

    options: Annotated[Mapping[str, Any], tyro.conf.Fixed, tyro.conf.Suppress] = mapping()


@dataclass(frozen=True, kw_only=True)
class OwnFlags:
    """The options of a method of the user's; the built-in methods have none."""


@dataclass(frozen=True, kw_only=True)
class Train(LimitFlags):
    """Train one configuration into a run folder; the same command again resumes where it stopped."""

    config: Annotated[RunFlags, tyro.conf.arg(name="")] = field(default_factory=RunFlags)
    own: Annotated[OwnFlags, tyro.conf.arg(name="")] = field(default_factory=OwnFlags)
    output_dir: Path
    """The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, result.json."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    timeline: str = ""
    """PNG file for a chart of when each stage runs forward, backward and its update, waits and exchanges."""

    @property
    def run_config(self) -> RunConfig:
        """Return the run; ConfigError if a field of it is out of range."""
        return RunConfig(**{**vars(self.config), "options": vars(self.own)})

    def main(self) -> int:
        """Train, and print one line per epoch."""
        config = self.run_config
        if self.timeline and not self.timeline.endswith(".png"):
            raise ConfigError(f"timeline={self.timeline!r} is not a PNG file; give a name that ends in .png")
        options = replace(self.options, timeline=self.timeline, on_epoch=_print_epoch(config))
        result = run(config, self.output_dir, data_root=self.data_root, options=options)
        print(f"{test_text(result)}, {result['images_per_s']:.0f} images/s, in {self.output_dir}")
        return 0


def _train_with(arguments: Sequence[str]) -> type[Train]:
    """Return the command with the options of the method or base that the arguments name by an import path as flags."""
    found = {"method": "", "base": ""}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag[2:] in found:
            found[flag[2:]] = value if equals else following
    own_by_name = own_options(found["method"] or RunConfig.method, found["base"] or RunConfig.base)
    for name in own_by_name.keys() & {each.name for each in (*fields(Train), *fields(StageResources))}:
        raise ConfigError(
            f"method={found['method']!r} has a field {name!r}, which is another flag; give it another name"
        )
    flags: list[Any] = [
        (name, Annotated[type(option.default), tyro.conf.arg(help="Option of your own method.")], option.default)
        for name, option in own_by_name.items()
    ]
    own = make_dataclass("OwnFlags", flags, bases=(OwnFlags,), frozen=True, kw_only=True)
    field_of_own: Any = ("own", Annotated[own, tyro.conf.arg(name="")], field(default_factory=own))
    return make_dataclass("Train", [field_of_own], bases=(Train,), frozen=True, kw_only=True)


def _print_epoch(config: RunConfig) -> Callable[[dict[str, Any]], None]:
    def show(metrics: dict[str, Any]) -> None:
        step = f"step {metrics['step_ms']:.1f} ms (link {metrics['link_ms']:.1f})"
        print(f"{epoch_line(metrics, config.epochs)}  {step}", flush=True)

    return show


@dataclass(frozen=True, kw_only=True)
class Sync:
    """Bring MLflow up to date with recorded runs, for example after its server was down; nothing is logged twice."""

    storage: tyro.conf.Positional[Path]
    """The storage path of studies and figures, or the folder of one study."""
    tracking_uri: str = ""
    """sqlite:////ABSOLUTE/mlflow.db or http://HOST:PORT; default $MLFLOW_TRACKING_URI, else SQLite in the storage path."""

    def main(self) -> int:
        """Sync, and print how many runs are in MLflow."""
        from backlink_ray.runs.tracked import sync  # pyarrow and mlflow take seconds to import
        from backlink_ray.tracking.uri import default_tracking_uri, redact
        from backlink_ray.tuning.folder import MANIFEST

        storage = local_path(self.storage, "storage")
        home = storage.parent if (storage / MANIFEST).exists() else storage
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default_tracking_uri(home)
        logged, refused = sync(storage, uri)
        print(f"in MLflow at {redact(uri)}: {logged} of {logged + refused} runs" + ", see above" * bool(refused))
        return 1 if refused else 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Summarise the recorded studies."""

    claims: bool = False
    """The paper's claims: the evidence for each, its number, ours if it ran at the paper's budget, and the verdict."""
    storage_path: tuple[Path, ...] = (Path("results"),)
    """One or more folders of studies and figures, as given to their --storage-path."""
    output: str = ""
    """Markdown file to write the report to as well."""

    def main(self) -> int:
        """Print the report, and write it to a file if requested."""
        from rich.console import Console
        from rich.markdown import Markdown as RichMarkdown

        from backlink_ray.paper.claims import markdown  # these take seconds to import
        from backlink_ray.paper.evidence import Evidence

        if not self.claims:
            raise ConfigError(
                "report has nothing to print without --claims; for a table run studies/table_2.py --report-only"
            )
        is_default = self.storage_path == (Path("results"),) and not self.storage_path[0].exists()
        folders = [local_path(each, "storage_path") for each in self.storage_path]
        page = markdown(Evidence(() if is_default else folders))
        if self.output:
            write_whole(local_path(self.output, "output"), page)
        if sys.stdout.isatty():
            Console().print(RichMarkdown(page))
        else:
            print(page, end="")
        return 0


def read_command(arguments: Sequence[str]) -> Train | Plan | Bench | Report | Sync:
    """Return the command that the arguments ask for, not run yet."""
    train = _train_with(arguments) if arguments[:1] == ["train"] else Train
    commands: dict[str, Callable[..., Any]] = {
        "train": train, "plan": Plan, "bench": Bench, "report": Report, "sync": Sync
    }  # fmt: skip
    read = partial(tyro.extras.subcommand_cli_from_dict, commands, prog="backlink-ray", description=__doc__)
    command: Train | Plan | Bench | Report | Sync = parse(read, arguments)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code as `guarded` does."""
    return guarded(
        lambda: read_command(sys.argv[1:] if arguments is None else list(arguments)).main(),
        lambda: "run the same command again to resume",
    )


if __name__ == "__main__":
    sys.exit(main())
