"""The run folder: everything that a run leaves on disk."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import yaml

from backlink_ray import provenance
from backlink_ray.errors import ConfigError
from backlink_ray.files import write_whole
from backlink_ray.runs.config import RunConfig

FAILURE, RESULT = "failure.json", "result.json"


class RunFolder:
    """The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, result.json or failure.json."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._claim(config)
        except OSError as error:
            raise ConfigError(
                f"output_dir={str(path)!r} cannot be written ({error.strerror}); give another folder"
            ) from error

    def _claim(self, config: RunConfig) -> None:
        file = self._path / "config.yaml"
        wanted = {"run_id": config.run_id, **dataclasses.asdict(config)}
        if file.exists():
            found = yaml.safe_load(file.read_text()) or {}
            if found.get("run_id") != config.run_id:
                raise ConfigError(
                    f"output_dir={str(self._path)!r} holds run {found.get('run_id')}, not {config.run_id}; give another folder"
                )
        write_whole(file, yaml.safe_dump(wanted, sort_keys=False))
        (self._path / FAILURE).unlink(missing_ok=True)
        write_whole(self._path / "environment.json", json.dumps(provenance.describe(), indent=2))

    def result(self) -> dict[str, Any]:
        """Return the finished run's result, {} if it is not finished."""
        file = self._path / RESULT
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def fail(self, reason: str, *, lost: bool) -> None:
        """Write into failure.json why the run failed, and whether a process or machine was lost, so that it may go on."""
        write_whole(self._path / FAILURE, json.dumps({"status": "LOST" if lost else "FAILED", "reason": reason}))

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one epoch to metrics.jsonl; an epoch that ran again after a crash stands there again, the last one counts."""
        with (self._path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write result.json."""
        write_whole(self._path / RESULT, json.dumps(result, indent=2))
        return result
