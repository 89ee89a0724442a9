"""The run folder: all files of a run, and the one log that results and tracking are derived from."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError, StorageError, first_line
from backlink_ray.files import (
    append_line,
    exclusive,
    make_folder,
    read_json,
    read_lines,
    remove_leftovers,
    write_json,
    write_whole,
)
from backlink_ray.runs.config import RunConfig

CONFIG, ENVIRONMENT, METRICS, FAILURE, RESULT = (
    "config.yaml", "environment.json", "metrics.jsonl", "failure.json", "result.json",
)  # fmt: skip
FORMAT = 4  # of run folders, written into config.yaml
_WRITTEN_BY = {None: "backlink_ray 0.1.0", 2: "backlink_ray 0.2.0", 3: "backlink_ray 0.3.0"}
# Its networks can be read; its runs, which computed in another memory format, cannot be continued with the same rounding.
_CONTIGUOUS = 3

FACTS = ("num_classes", "image_size")  # of the data set, so that the network can be built without it

CHECKPOINTS, LOCK = "checkpoints", ".lock"
RUN_AGAIN = "fix: rm {file}, and start again: the run resumes from its checkpoint"


class RunFolder:
    """The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, result.json or failure.json.

    Raises:
        ConfigError: the folder belongs to another run, or to this one on other data, is of another format, or lies inside
            another run's.
        StorageError: its config.yaml or result.json is damaged.
    """

    def __init__(self, path: Path, config: RunConfig, dataset: Dataset) -> None:
        self.path, self._config, self._dataset = path, config, dataset
        self._check()

    @contextmanager
    def opened(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Lock the folder for this process, and begin an attempt at the run unless it has its result.

        Raises:
            BusyError: another process still trained this run after `timeout_s`; nothing is changed.
            ConfigError, StorageError: the folder cannot be written or locked.
        """
        make_folder(self.path, "output_dir")
        with exclusive(self.path / LOCK, timeout_s, f"output_dir={str(self.path)!r}"):
            if not self.result():
                remove_leftovers(self.path)
                self._begin()
            yield

    def _begin(self) -> None:
        import yaml  # imported here: measurements need no run folder

        content = {
            "format": FORMAT,
            "run_id": self._config.run_id,
            **dataclasses.asdict(self._config),
            **{name: getattr(self._dataset, name) for name in FACTS},
            "dataset_digest": self._dataset.digest,
            "files": self._config.digests,
        }
        write_whole(self.path / CONFIG, yaml.safe_dump(content, sort_keys=False))
        (self.path / FAILURE).unlink(missing_ok=True)

    def _check(self) -> None:
        config, digest, label = self._config, self._dataset.digest, f"output_dir={str(self.path)!r}"
        found = _read(self.path)
        if outer := next((parent for parent in self.path.absolute().parents if _is_run(parent)), None):
            raise ConfigError(f"{label} lies in the run folder {str(outer)!r}; give a folder outside of it")
        has_trained = any((self.path / name).exists() for name in (ENVIRONMENT, METRICS, CHECKPOINTS))
        if not found or ((self.path / FAILURE).exists() and not has_trained):
            return
        if found.get("run_id") != config.run_id:
            files = found.get("files", {})
            changed = [name for name, known in config.digests.items() if files.get(name, known) != known]
            why = f" (changed: the file of {', '.join(changed)})" * bool(changed)
            raise ConfigError(f"{label} holds run {found.get('run_id')}, not {config.run_id}{why}; give another folder")
        _check_format(self.path, found, *[_CONTIGUOUS] * bool(self.result()))
        if found.get("dataset_digest") != digest:
            raise ConfigError(
                f"{label} holds this run on other data (digest {found.get('dataset_digest')}, here {digest}); restore "
                "the data, or give another folder"
            )

    def result(self) -> dict[str, Any]:
        """Return the result of a finished run, else {}."""
        return read_json(self.path / RESULT, RUN_AGAIN)

    def describe(self, executor: str, first_epoch: int, stages: Sequence[dict[str, Any]]) -> None:
        """Add this attempt at the run to environment.json, with the first epoch that it trains; see `Executor.environments`."""
        file = self.path / ENVIRONMENT
        earlier = read_json(file, "fix: rm {file}; it only says where the run was trained").get("attempts", [])
        attempt = {"executor": executor, "first_epoch": first_epoch, "stages": list(stages)}
        write_json(file, {"attempts": [*earlier, attempt]})

    def fail(self, reason: str, *, lost: bool) -> None:
        """Write failure.json: why the run failed, and whether a process or machine was lost, so that it can be resumed."""
        write_json(self.path / FAILURE, {"status": "LOST" if lost else "FAILED", "reason": reason})

    def append(self, metrics: dict[str, Any]) -> None:
        """Append one epoch to metrics.jsonl, which has one line per epoch."""
        append_line(self.path / METRICS, metrics)

    def resume(self, last: dict[str, Any]) -> list[dict[str, Any]]:
        """Make metrics.jsonl end at the checkpoint that the run resumes from; return its epochs.

        Args:
            last: metrics of the checkpoint's epoch, {} without a checkpoint. Its line is missing if the run was killed
                before writing it. Later epochs exist if an older checkpoint had to be used; they run again.

        Raises:
            StorageError: the file is damaged, or lacks an epoch before the checkpoint's.
        """
        file, folder = self.path / METRICS, shlex.quote(str(self.path))
        way_out = f"fix: rm -r {folder}, and start again, from the beginning"
        epochs = read_lines(file, way_out)
        curve = [*epochs[: last["epoch"] - 1], last] if last else []
        if [metrics.get("epoch") for metrics in curve] != list(range(1, last.get("epoch", 0) + 1)):
            raise StorageError(f"{file} lacks epochs before {last['epoch']}, the epoch of its checkpoint; {way_out}")
        content = "".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in curve).encode()
        if (file.exists() and file.read_bytes() != content) or curve != epochs:
            write_whole(file, content)
        return curve

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write result.json."""
        write_json(self.path / RESULT, result)
        return result


def read_config(path: Path) -> tuple[RunConfig, dict[str, int]]:
    """Return the configuration of a run folder, and the FACTS of the run's data set.

    Raises:
        ConfigError: it is no run folder, or of another format, or the file of its network or head has changed.
        StorageError: config.yaml is damaged.
    """
    found = _read(path)
    if not found:
        raise ConfigError(f"run_folder={str(path)!r} has no {CONFIG}; give the --output-dir of a run")
    _check_format(path, found, _CONTIGUOUS)
    found = {"memory_format": "contiguous", **found}
    fields = {field.name: found[field.name] for field in dataclasses.fields(RunConfig) if field.name in found}
    config = RunConfig(**fields)
    for name in found["files"].keys() & {"network", "head"}:
        if config.digests[name] != found["files"][name]:
            raise ConfigError(
                f"run folder {str(path)!r} was trained with another version of the file of {name}={fields[name]!r}; restore it"
            )
    return config, {name: found[name] for name in FACTS}


def recorded_run_id(path: Path) -> str:
    """Return the run_id of a run folder, "" if it is none."""
    return str(_read(path).get("run_id", ""))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of config.yaml, {} if there is none."""
    import yaml

    file = path / CONFIG
    try:
        found = yaml.safe_load(file.read_bytes())
        return {str(name): value for name, value in found.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise StorageError(
            f"{file} is damaged or cannot be read ({first_line(error)}); fix: rm -r {shlex.quote(str(path))}, and start again, "
            "from the beginning, or give another folder"
        ) from error


def _is_run(folder: Path) -> bool:
    try:
        return bool(recorded_run_id(folder))
    except StorageError:  # some other program's
        return False


def _check_format(path: Path, found: dict[str, Any], *also: int) -> None:
    number = found.get("format")
    if number not in (FORMAT, *also):
        by = _WRITTEN_BY.get(number, f"another version (format {number})")
        raise ConfigError(
            f"run folder {str(path)!r} was written by {by}, which this version cannot read; give another folder"
        )
