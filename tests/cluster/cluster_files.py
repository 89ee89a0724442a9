"""What the tests of the cluster files share: reading them, the fields that are known, the options of a shell command."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"

Config = dict[str, Any]


def load(name: str) -> Config:
    config = yaml.safe_load((CLUSTER / name).read_text())
    assert isinstance(config, dict)
    return config


def texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(CLUSTER.rglob("*")) if path.is_file()}


def pyproject() -> Config:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def unknown_fields(part: object, name: str, known: Mapping[str, str]) -> Iterator[str]:
    """Fields that are not in the words of `known` for what they are in; what has no words may hold anything."""
    if isinstance(part, list):
        for each in part:
            yield from unknown_fields(each, name, known)
    elif isinstance(part, dict):
        for field, content in part.items():
            if name in known and field not in known[name].split():
                yield f"{name}.{field}"
            yield from unknown_fields(content, field, known)


def options(command: str, program: str) -> dict[str, str]:
    """The `--name=value` and `--name value` options of the simple command that starts with `program`."""
    words = shlex.split(command.split(program, 1)[1].split(" > ")[0])
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else following
    return found
