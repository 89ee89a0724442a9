"""The pages say what is so: links lead somewhere, commands and flags are the real ones, Python runs, output is what is shown."""

import ast
import inspect
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.cli import Train, read_command
from backlink_ray.commands.bench import Bench
from backlink_ray.commands.command import Command
from backlink_ray.commands.plan import Plan
from tests.pages import LINKED, PAGES, README, ROOT, blocks, broken_links, commands, inline, unseen
from tests.pipeline.picture import picture
from tests.studies.recipes import run_recipe

DOCS = ROOT / "docs"
of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


def test_the_rules_can_fail() -> None:
    assert broken_links(README, "[a](nowhere.md) [b](docs/method.md#nothing) [c](LICENSE)") == [
        "nowhere.md",
        "docs/method.md#nothing",
    ]
    assert unseen("epoch 1/3 error 9.50 % ...\n...\ndone 3", "epoch 2/3 error 8 % more\nhere") == ["done 0"]
    with pytest.raises(SystemExit):
        read_command(["train", "--no-such-flag"])


def test_readme_is_a_screen_and_a_half() -> None:
    assert len(README.read_text().splitlines()) <= 115


# --- Commands ---------------------------------------------------------------------------------------------------


def check_ours(words: list[str]) -> None:
    """Read a command of backlink-ray as it is read when it runs, and check its values; a bare name is only a mention."""
    if len(words) == 1 or words[1:] == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            read_command([words[0], "--help"])
        return
    command = read_command(words)
    if isinstance(command, Train):
        _ = (command.run_config, command.options)
    elif isinstance(command, Plan) or (isinstance(command, Bench) and command.item != "headline"):  # needs a GPU
        command._check()


def check_python(words: list[str]) -> None:
    """Read the flags of a script of studies/ up to where it would run; of other scripts and tests, the files exist."""
    if words[0].startswith("studies/"):
        assert run_recipe(Path(words[0]).stem, *words[1:]) == 0
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), words


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:2] == ["install", "-e"]
    assert words[2] == "." or words[2][2:-1] in extras


CHECKS = {"backlink-ray": check_ours, "python": check_python, "pip": check_pip}
# What .ci/run does as well.
BY_CI = {"python3", "ruff", "mypy", "."}


@of_each_page
def test_commands_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Command, "run", lambda _command: 0)  # all flags are read and checked before
    for name, *words in commands(page.read_text()):
        assert name in {*CHECKS, *BY_CI}, f"{name}: say here how this command is tried"
        if name in CHECKS:
            CHECKS[name](words)


HELPS = (
    "train",
    "plan",
    "bench",
    "report",
    "sync",
    "table_3",
    "tune_resnet110",
    "figure_6_classes",
    "figure_9_runtime",
)


def help_of(name: str) -> None:
    if name in HELPS[:5]:
        with pytest.raises(SystemExit):
            read_command([name, "--help"])
    else:
        run_recipe(name, "--help")


def test_flags_that_the_text_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name in HELPS:
        help_of(name)
    known = capsys.readouterr().out.replace("|", " ").split()
    named = {
        word for page in (README, *DOCS.glob("*.md")) for code in inline(page.read_text()) for word in code.split()
    }
    flags = {word.rstrip(",") for word in named if word.startswith("--")} - {"--help", "--gamma"}
    assert len(flags) > 30
    assert {flag for flag in flags if flag not in {word.strip("{},") for word in known}} == set()


# --- Python -----------------------------------------------------------------------------------------------------


def unknown_calls(source: str) -> list[str]:
    """Return the calls of bl.NAME that NAME would not take, and names that the library lacks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "bl" and not hasattr(bl, node.attr):
            found.append(node.attr)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func).startswith("bl.")
        ):
            called: Any = bl
            for name in ast.unparse(node.func).split(".")[1:]:
                called = getattr(called, name)
            known = inspect.signature(called).parameters
            found += [f"{node.func.attr}({each.arg}=)" for each in node.keywords if each.arg and each.arg not in known]
    return found


@of_each_page
def test_python_calls_the_library_as_it_is(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        assert unknown_calls(block) == []


def test_python_that_does_not_fit_is_found() -> None:
    assert unknown_calls("bl.split(n, modules=4); bl.nothing") == ["split(modules=)", "nothing"]


def python(page: Path, place: int, *changes: tuple[str, str]) -> str:
    """Return a page's Python block, made shorter by changes that must fit."""
    source = blocks(page.read_text(), "python")[place]
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return source


def points() -> dict[str, Any]:
    """What the blocks take as given: a network of linear units, and data."""
    units = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(8)]
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    given = {"sequential": nn.Sequential(*units, nn.Linear(4, 3)), "x": x, "y": y, "x_test": x, "y_test": y}
    return {"bl": bl, "torch": torch, "nn": nn, "loader": [(x, y)], **given}


def test_readme_trains_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = points()
    exec(python(README, 0), given)
    assert 0 <= float(capsys.readouterr().out) <= 100
    again = bl.Network.from_sequential(points()["sequential"], given["x"][:1])
    again.load_state_dict(torch.load("network.pt"))
    assert torch.equal(bl.predict(again, given["x"]), bl.predict(given["network"], given["x"]))


def test_own_models_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = bl.RunConfig(
        network="resnet8", num_modules=2, propagation_length=1, train_images=16, test_images=16, epochs=1
    )
    bl.run(run.replace(batch_size=8), "runs/first", executor="local")
    given: dict[str, Any] = {}
    exec(python(DOCS / "own-models.md", 0), given)
    assert given["losses"].shape == (4,)
    assert given["logits"].shape == (8, 10)


def test_own_models_what_a_unit_is() -> None:
    given = points()
    stem, *blocks_ = [nn.Conv2d(3, 3, 3, 2, 1) for _ in range(8)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    sequential = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(8)), nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    )
    given |= {
        "stem": stem,
        "blocks": blocks_,
        "head": head,
        "sequential": sequential,
        "example": torch.zeros(1, 3, 224, 224),
    }
    exec(python(DOCS / "own-models.md", 1), given)
    assert [len(module.chain) for module in given["modules"]] == [3, 3, 2]


def test_own_models_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("pets") / part / name for part in ("train", "test") for name in ("cat", "dog")):
        folder.mkdir(parents=True)
        Image.new("RGB", (70, 80)).save(folder / "1.jpg")
    given = points()
    given["network"] = bl.Network.from_sequential(given["sequential"], given["x"][:1])
    exec(python(DOCS / "own-models.md", 3), given)
    assert given["logits"].shape == (16, 3)


def test_own_methods(tmp_path: Path) -> None:
    given = {**points(), "dataclass": dataclass, "ClassVar": ClassVar, "Tensor": Tensor}
    exec(python(DOCS / "own-methods.md", 0), given)
    modules = bl.split(bl.Network.from_sequential(given["sequential"], given["x"][:1]), num_modules=2)
    losses = bl.Trainer(modules, bl.BackLink(base=given["Doubt"]()), lr=0.1).step(given["x"], given["y"])
    assert losses.isfinite().all()


MODEL = """
import torch, backlink_ray as bl
def network(num_classes, image_size, seed):
    return bl.build_network("resnet8", num_classes=num_classes, image_size=image_size)
"""
METHOD = "import dataclasses, backlink_ray as bl\n@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Mine(bl.Method):\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["README.md", "own-models.md"])
def test_searches_of_the_pages(tmp_path: Path, where: str) -> None:
    """As a script of its own, with fewer trials and epochs than a person would take."""
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_method.py").write_text(METHOD + "    gamma: float = 0.1\n")
    if where == "README.md":
        source = "import backlink_ray as bl\n" + python(
            README, 1, ("num_samples=20", "num_samples=2"), ("epochs=5", "epochs=1")
        )
    else:
        source = python(DOCS / where, 2, ("num_samples=50", "num_samples=2"), ("epochs=20", "epochs=1"))
    (tmp_path / "search.py").write_text(source + "print('loaded', type(network).__name__)\n")
    done = subprocess.run([sys.executable, "search.py"], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded Network\n")


# --- Output, pictures -------------------------------------------------------------------------------------------


def test_the_schedule_is_drawn_as_it_is() -> None:
    lines = (DOCS / "architecture.md").read_text().splitlines()
    drawn = [line for line in lines if line.startswith("stage ")]
    assert drawn == [*picture(3, 4).splitlines(), *picture(3, 4, "error").splitlines()]


@pytest.mark.parametrize("path", sorted((DOCS / "pictures").iterdir()), ids=lambda path: path.name)
def test_pictures_are_small_and_shown(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width <= 1200
    assert path.stat().st_size < 150_000
    assert any(f"pictures/{path.name})" in page.read_text() for page in PAGES)


# What a page says to run and a test can within minutes: a block with this word, and what it prints, if that is shown.
RUN = [
    (README, "--executor ray", "epoch 4/4"),
    (README, "--smoke-test\n", "A=table2"),
    (DOCS / "settings.md", "--executor threads", ""),
    (DOCS / "settings.md", "backlink-ray plan", ""),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("page", "word", "shown"), RUN, ids=[f"{page.name}: {word.strip()}" for page, word, _ in RUN])
def test_blocks_of_the_pages_run(tmp_path: Path, page: Path, word: str, shown: str) -> None:
    (block,) = [block for block in blocks(page.read_text(), "bash") if word in block and "venv" not in block]
    source = block.replace("backlink-ray ", f"{sys.executable} -m backlink_ray.cli ")
    source = source.replace("python studies/", f"{sys.executable} {ROOT}/studies/")
    done = subprocess.run(["bash", "-euc", source], capture_output=True, text=True, cwd=tmp_path, timeout=880)
    assert done.returncode == 0, done.stderr
    for text in blocks(page.read_text(), "text"):
        if shown and shown in text:
            assert unseen(text, done.stdout) == []
