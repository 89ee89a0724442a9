"""The house: imports go down only, and importing the library is light."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).parents[1] / "backlink_ray"
LAYERS = [
    {"errors", "seeds", "provenance", "files", "text", "options", "importing", "allocator", "signals", "processes", "output"},
    {"nets", "data", "measure", "tracking"}, {"local"}, {"methods"}, {"train"}, {"pipeline"}, {"runs"},
    {"benchmarks", "planning"}, {"paper"}, {"tuning"}, {"figures"}, {"commands"}, {"cli"},
]  # fmt: skip
ALLOWED = {
    "ray": (
        "pipeline/actors.py",
        "pipeline/objectstore.py",
        "pipeline/pool.py",
        "pipeline/reach.py",
        "pipeline/stageactor.py",
        "pipeline/watch.py",
        "runs/cluster.py",
        "runs/executors.py",
        "tuning/",
        "benchmarks/",
        "commands/",
    ),
    "mlflow": ("tracking/",),
    "optuna": ("tuning/",),
}


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def faults(relative: str, source: str) -> list[str]:
    """Return what a file of the package imports against the rules."""
    found = []
    own = relative.split("/")[0].removesuffix(".py")
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "." * node.level]
        for name in names:
            top, *rest = name.split(".")
            if top in ALLOWED and not relative.startswith(ALLOWED[top]):
                found.append(f"{relative}:{node.lineno} imports {top}")
            if top == "backlink_ray" and rest and own != "__init__" and layer(rest[0]) > layer(own):
                found.append(f"{relative}:{node.lineno} imports upward: {name}")
            if top == "":
                found.append(f"{relative}:{node.lineno} imports relatively")
    return found


def test_imports_go_down() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    assert [f for path in files for f in faults(str(path.relative_to(PACKAGE)), path.read_text())] == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("nets/network.py", "from backlink_ray.train.trainer import Trainer"),
        ("methods/base.py", "import backlink_ray.pipeline.stage"),
        ("train/trainer.py", "def f():\n    import ray"),
        ("runs/results.py", "import mlflow"),
        ("pipeline/stage.py", "from optuna import Trial"),
        ("pipeline/controller.py", "import ray"),
        ("local/module.py", "from . import heads"),
    ],
)
def test_the_rule_can_fail(relative: str, source: str) -> None:
    assert len(faults(relative, source)) == 1


def test_importing_the_library_loads_torch_alone() -> None:
    heavy = ("ray", "mlflow", "optuna", "torchvision", "pyarrow", "pandas", "matplotlib")
    code = f"import sys, backlink_ray; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_training_does_not_load_what_compiles_and_its_first_step_nothing_at_all() -> None:
    """It would take every stage's process a second; what is imported in a step counts as its time."""
    code = """
import sys, torch, backlink_ray as bl
modules = bl.split(bl.build_network("resnet8", num_classes=10, image_size=32), num_modules=2, head="fc")
trainer = bl.Trainer(modules, bl.BackLink(propagation_length=1), lr=0.1)
before = set(sys.modules)
trainer.step(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
print([m for m in ("torch._dynamo", "pandas") if m in sys.modules] + sorted(set(sys.modules) - before))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_contents_page_is_complete() -> None:
    import backlink_ray as bl

    assert list(bl.__all__) == sorted(bl.__all__, key=lambda n: (not n.isupper(), n))
    assert all(hasattr(bl, name) for name in bl.__all__)
    assert set(bl.__all__) <= set(dir(bl))
    listed = (PACKAGE.parent / "docs" / "architecture.md").read_text().split("## The library")[1].split("## ")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(bl.__all__)


def test_no_file_is_long() -> None:
    assert [p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 350] == []


FORBIDDEN = ("torch.load(", "pickle.load", "allow_pickle=True", "yaml.load(", "eval(", "exec(")


def test_no_code_is_ever_loaded_from_a_file() -> None:
    found = [(p.name, w) for p in PACKAGE.rglob("*.py") for w in FORBIDDEN if w in p.read_text().replace(".eval()", "")]
    assert found == []


# The version below each was published with a hole: torch.load, CVE-2025-62593, CVE-2026-116690.
TOO_OLD = {"torch": "2.5.1", "ray": "2.51.2", "mlflow": "3.16.9"}


def test_no_version_with_a_known_hole_is_allowed() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    named = [each for each in map(Requirement, [*project["dependencies"], *extras]) if each.name in TOO_OLD]
    assert {each.name for each in named} == set(TOO_OLD)
    assert [str(each) for each in named if each.specifier.contains(TOO_OLD[each.name])] == []
