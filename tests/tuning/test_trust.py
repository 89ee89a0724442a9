"""A study goes on only from what nobody else can change."""

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from backlink_ray.errors import ConfigError
from backlink_ray.tuning.trust import check_trust

NOBODY = 65534


def study(tmp_path: Path) -> Path:
    """Make a storage path with a study as it is on disk, under a folder of the user's."""
    folder = tmp_path / "storage" / "study"
    (folder / "runs" / "r").mkdir(parents=True, mode=0o755)
    for file in ("optuna.db", "runs/r/result.json", "../mlflow.db"):
        (folder / file).touch(0o644)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def linked(folder: Path) -> None:
    """Put a link to an empty folder of everybody's in the place of the storage path."""
    storage, target = folder.parent, folder.parent.parent / "elsewhere"
    target.mkdir()
    target.chmod(0o777)
    storage.rename(storage.with_name("old"))
    storage.symlink_to(target)


def linked_runs(folder: Path) -> None:
    target = folder.parent.parent / "elsewhere"
    (folder / "runs").rename(target)
    target.chmod(0o777)
    (folder / "runs").symlink_to(target)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the storage path": (lambda f: f.parent.chmod(0o777), "/storage is writable for everybody"),
    "the folder above": (lambda f: f.parent.parent.chmod(0o777), " is writable for everybody"),
    "an empty folder": (lambda f: (f.rename(f.with_name("x")), f.mkdir(), f.chmod(0o777)), "/study is writable for everybody"),
    "the end of a link": (linked, "/elsewhere is writable for everybody"),
    "the end of a link inside": (linked_runs, "/study/runs is writable for everybody"),
    "runs": (lambda f: (f / "runs").chmod(0o777), "/study/runs is writable for everybody"),
    "a result": (lambda f: (f / "runs" / "r" / "result.json").chmod(0o666), "/result.json is writable for everybody"),
    "Optuna's database": (lambda f: (f / "optuna.db").chmod(0o666), "/optuna.db is writable for everybody"),
    "MLflow's database": (lambda f: (f.parent / "mlflow.db").chmod(0o666), "/mlflow.db is writable for everybody"),
    "the folder of another": (lambda f: os.chown(f.parent, NOBODY, -1), "/storage belongs to another user (65534, nobody)"),
    "a run of another": (lambda f: os.chown(f / "runs" / "r", NOBODY, -1), "/runs/r belongs to another user (65534, nobody)"),
    "a group": (lambda f: (os.chown(f, -1, NOBODY), f.chmod(0o775)), "/study is writable for its group (65534)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_another_can_change_is_refused_and_named(tmp_path: Path, case: str) -> None:
    if os.getuid() != 0 and case in ("the folder of another", "a run of another", "a group"):
        pytest.skip("gives files to other users")
    change, message = REFUSED[case]
    folder = study(tmp_path)
    check_trust(folder)
    change(folder)
    with pytest.raises(ConfigError) as refused:
        check_trust(folder)
    assert message in str(refused.value)
    place = message.split(" ")[0].lstrip("/")
    found = next(tmp_path.rglob(place), tmp_path).resolve()
    fix = (
        f"as root, chown -R {os.getuid()} {found}, or, where that is refused"
        if "another user" in message
        else (f"fix, if nobody else has changed it: chmod {'-R go-w' if place else 'o-w'} {found}, or give")
    )
    assert fix in str(refused.value)
    assert str(refused.value).endswith(" give a --storage-path of your own")


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to other users")
def test_what_nobody_else_can_change_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path)
    folder.parent.chmod(0o1777)  # as /tmp
    folder.chmod(0o2775)  # a group of one's own, here root's
    os.chown(folder.parent.parent, NOBODY, NOBODY)  # shared by a group
    folder.parent.parent.chmod(0o775)
    (folder / "tune").mkdir(mode=0o775)
    for file in ("tune/trial.json", "table.md", "figure.png"):  # never read back
        (folder / file).touch()
        os.chown(folder / file, NOBODY, NOBODY)
    check_trust(folder)
    check_trust(folder.parent / "new")
    daemon = pwd.getpwnam("daemon")  # a user that has such a group on every Linux
    monkeypatch.setattr("os.getuid", lambda: daemon.pw_uid)
    os.chown(folder, daemon.pw_uid, daemon.pw_gid)
    check_trust(folder)
    monkeypatch.setattr("os.getuid", lambda: NOBODY - 1)  # as in a container that knows no users
    check_trust(folder.parent / "new")
    with pytest.raises(ConfigError, match=f"belongs to another user \\({daemon.pw_uid}, daemon\\)"):
        check_trust(folder)


def test_what_only_another_can_mend_is_not_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path)
    folder.parent.parent.chmod(0o777)  # as a volume of Kubernetes
    owner = pwd.getpwuid(os.getuid())
    monkeypatch.setattr("os.getuid", lambda: NOBODY - 1)
    told = f"only its owner \\({owner.pw_uid}, {owner.pw_name}\\) can mend that: give a --storage-path of your own$"
    with pytest.raises(ConfigError, match=told):
        check_trust(folder)
