"""Import paths: what cannot be imported is one line with the way out, and a changed file has another digest."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backlink_ray import importing
from backlink_ray.errors import ConfigError
from tests.users import imported_from


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with imported_from(tmp_path):
        yield tmp_path


FILES = {
    "imp_fine": "def network(): pass\nsize = 3\n",
    "imp_needs": "import imp_absent\n",
    "imp_broken": "def network(:\n",
    "imp_raises": "raise OSError('no such disk\\nmore')\n",
    "imp_exits": "import sys\nsys.exit(2)\n",
}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("imp_none:network", "there is no module imp_none in .* or on PYTHONPATH; run from its folder, or add that to"),
        ("imp_none.sub:network", "there is no module imp_none "),
        ("imp_fine.sub:network", r"there is no module imp_fine.sub|ModuleNotFoundError: .*imp_fine"),
        ("imp_needs:network", "ModuleNotFoundError: No module named 'imp_absent'; try python -c 'import imp_needs'"),
        ("imp_broken:network", "SyntaxError: "),
        ("imp_raises:network", "OSError: no such disk; try"),
        ("imp_exits:network", "SystemExit: 2; try"),
        ("imp_fine:nets", r"does not exist; .*imp_fine.py defines network"),
        ("imp_fine:size", "is a int, which cannot be called; .*imp_fine.py defines network"),
        ("imp_fine:", "is no import path; give MODULE:NAME, for example my_model:network"),
        (":network", "is no import path"),
        ("imp-fine:network", "is no import path"),
        ("imp_fine.py:network", "imp_fine.py"),
        ("__main__:network", "move it to a file such as my_model.py and give my_model:network"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(folder: Path, path: str, message: str) -> None:
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        importing.load(path, "network")
    assert str(caught.value).startswith(f"network={path!r} ")
    assert "\n" not in str(caught.value)


def test_a_module_without_a_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = type(sys)("imp_made")
    made.network = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imp_made", made)
    with pytest.raises(ConfigError, match="has no file that another process could import"):
        importing.load("imp_made:network", "network")
    with zipfile.ZipFile(folder / "imp.zip", "w") as archive:
        archive.writestr("imp_zipped.py", "def network(): ...")
    monkeypatch.syspath_prepend(folder / "imp.zip")
    with pytest.raises(ConfigError, match="has no file that another process could import"):
        importing.load("imp_zipped:network", "network")


def test_arguments_are_checked_by_name_and_the_functions_own_errors_pass(folder: Path) -> None:
    (folder / "imp_calls.py").write_text(
        "def narrow(seed): pass\ndef wide(seed, **_): return seed\ndef bad(**_): 1 / 0\n"
    )
    with pytest.raises(ConfigError, match=r"does not take the arguments seed, root .*; give it these, or \*\*_"):
        importing.call("imp_calls:narrow", "dataset", seed=1, root=2)
    assert importing.call("imp_calls:wide", "dataset", seed=1, root=2) == 1
    with pytest.raises(ZeroDivisionError):
        importing.call("imp_calls:bad", "dataset", seed=1)


def test_the_digest_is_of_the_files_that_name_and_define_it(folder: Path) -> None:
    package = folder / "imp_package"
    package.mkdir()
    (package / "__init__.py").write_text("from imp_package.net import network\n")
    (package / "net.py").write_text("def network(): pass\n")
    found = importing.digest("imp_package:network", "network")
    both = (package / "__init__.py").read_bytes() + (package / "net.py").read_bytes()
    assert found == hashlib.sha256(both).hexdigest()[:16]
    assert importing.digest("torch.optim:AdamW", "optimizer") == ""
    (folder / "imp_again.py").write_text("from torch.optim import AdamW\nexec('def loss(a, b): ...')\n")
    of_file = hashlib.sha256((folder / "imp_again.py").read_bytes()).hexdigest()[:16]
    assert importing.digest("imp_again:AdamW", "optimizer") == importing.digest("imp_again:loss", "loss") == of_file
    (package / "net.py").write_text("changed")
    assert importing.digest("imp_package:network", "network") == found  # the process still runs what it imported


def test_what_another_process_needs(folder: Path) -> None:
    (folder / "imp_helper.py").write_text("x = 1\n")
    (folder / "imp_lib").mkdir()
    (folder / "imp_lib" / "__init__.py").write_text("")
    (folder / "imp_lib" / "deep.py").write_text("import imp_helper\ndef network(): pass\n")
    paths = ["imp_lib.deep:network", "torch.optim:AdamW"]
    for path in paths:
        importing.load(path, "network")
    assert importing.folders(paths) == [str(folder)]
    assert importing.sources(paths) == [str(folder / "imp_helper.py"), str(folder / "imp_lib")]


SCRIPT = """
import backlink_ray as bl
def network(**_): ...
try:
    print(bl.RunConfig(network="other:network").identity["network"])
    bl.RunConfig(network="script:network").run_id
except bl.ConfigError as error:
    print(error)
"""


def test_a_script_elsewhere_imports_from_the_working_folder_and_names_itself_in_vain(folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "script.py").write_text(SCRIPT)
    (folder / "other.py").write_text("def network(**_): ...\n")
    command = [sys.executable, str(folder / "scripts" / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "other:network@" in done.stdout
    assert "names a script that trains when it is imported; put what it runs under if __name__" in done.stdout
