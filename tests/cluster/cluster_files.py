"""What the tests of the cluster files share: reading them, closed schemas, the options of a shell command."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no type information; it comes with Ray
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"

Config = dict[str, Any]

STRING, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}


def load(name: str) -> Config:
    config = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(config, dict)
    return config


def texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(CLUSTER.rglob("*")) if path.is_file()}


def pyproject() -> Config:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def closed(properties: Config, *required: str) -> Config:
    """A JSON schema of an object that may hold these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def schema_problems(document: Config, schema: Config) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def rename(mapping: Config, old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


def options(command: str, program: str) -> dict[str, str]:
    """The `--name=value` and `--name value` options of the simple command that starts with `program`."""
    words = shlex.split(command.split(program, 1)[1].split(" > ")[0])
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else following
    return found
