"""Ray as this package starts it: what it listens on, who can read its token, and what a driver without the token is told."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from backlink_ray.runs.token import provide_token
from tests.test_cli import train

# Starts a private Ray whose stages exchange through torch.distributed, and prints what it listens on, its token, and where the
# token can be seen.
PRIVATE = """
import json, os, psutil, ray
from pathlib import Path
import backlink_ray as bl
from backlink_ray.pipeline.actors import RayExecutor
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.runs.cluster import start_once
from tests.examples import job
start_once()
pool = StagePool()
executor = RayExecutor(job(bl.GLL(), 2, transport="collective"), pool)
stages = [psutil.Process(home.process_id) for home in pool.homes.values()]
count = [len([c for c in stage.net_connections("inet") if c.status == psutil.CONN_LISTEN]) for stage in stages]
mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [(p.name(), c.laddr.ip) for p in mine for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
token = file.read_text()
shown = [p.name() for p in mine if token in " ".join([*p.cmdline(), *p.environ().values()])]
session = Path(ray._private.worker._global_node.get_session_dir_path())
logs = [str(f) for f in session.rglob("*") if f.is_file() and token in f.read_text(errors="replace")]
print(json.dumps(dict(listening=listening, count=count, file=str(file), length=len(token), shown=shown, logs=logs,
                      modes=[file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777])))
"""


@pytest.mark.timeout(150)
def test_a_private_ray_listens_on_loopback_only_and_only_its_owner_can_read_its_token(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PRIVATE], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name for name, _ in found["listening"]} >= {"gcs_server", "raylet", "ray::StageActor"}
    assert min(found["count"]) > 1  # Ray's own, and those of torch.distributed
    assert {ip.removeprefix("::ffff:") for _, ip in found["listening"]} == {"127.0.0.1"}
    assert found["modes"] == [0o600, 0o700]
    assert (found["length"], found["shown"], found["logs"]) == (64, [], [])
    assert not Path(found["file"]).parent.exists()  # gone with its cluster
    assert not (tmp_path / ".ray").exists()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("mode", ["", pytest.param("token", marks=pytest.mark.slow)])
def test_a_driver_without_the_token_is_told_so(tmp_path: Path, ray_here: None, mode: str) -> None:
    import ray

    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address} | ({"RAY_AUTH_MODE": mode} if mode else {})
    command = [sys.executable, "-m", "backlink_ray.cli", *train(tmp_path / "run", "--executor", "ray")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 2, done.stderr
    assert (
        "is a Ray cluster that wants a token, and this process has none or another one; set "
        in done.stderr.splitlines()[-1]
    )
    assert "Traceback" not in done.stderr


# Has a private Ray's environment, as `start_once` and Ray leave it, and then looks for a cluster.
LATER = """
import os
from backlink_ray.errors import ConfigError
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.token import provide_token
from ray._private.authentication import authentication_token_setup as authentication
provide_token()
authentication.enable_token_auth_by_default()
authentication.ensure_token_if_auth_enabled()
try:
    start_once("127.0.0.1:1")
except ConfigError as error:
    from ray._raylet import AuthenticationTokenLoader, AuthenticationMode, get_authentication_mode as mode
    has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    names = [name for name in os.environ if name.startswith("RAY_AUTH")]
    print(names, has_token, mode() == AuthenticationMode.TOKEN)
"""


@pytest.mark.parametrize(("own", "left"), [("", "[] False False"), ("0" * 64, "['RAY_AUTH_MODE'] True True")])
def test_a_cluster_that_is_joined_later_is_not_given_the_private_token(tmp_path: Path, own: str, left: str) -> None:
    (tmp_path / ".ray").mkdir()
    if own:  # the user's, which Ray looks for at home
        (tmp_path / ".ray" / "auth_token").write_text(own)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LATER], env=environment, capture_output=True, text=True, timeout=50)
    assert done.stdout == f"{left}\n", done.stderr


def test_tokens_of_killed_processes_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = {}
    for name in ("killed", "new", "living"):
        for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(variable, "")
        provide_token()
        files[name] = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    for name in ("killed", "new"):  # a copy has no lock, as after a kill
        copy = files[name].read_text()
        files[name].unlink()
        files[name].write_text(copy)
    for name in ("killed", "living"):
        os.utime(files[name], (0, 0))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    provide_token()
    assert [name for name, file in files.items() if file.parent.exists()] == ["new", "living"]
    assert len({file.read_text() for file in tmp_path.glob("*/auth_token")}) == 3


# In a mount of its own, which ends with the process: a full temporary folder.
FULL = 'mount -t tmpfs -o size=1m tmpfs "$1" && (head -c 2m /dev/zero > "$1/filler" 2>/dev/null; shift; exec "$@")'


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("folder", ["full", "file"])
def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path, folder: str) -> None:
    """Its head cannot write its log, and is waited for until Ray gives up; or there can be no folder at all."""
    command = [sys.executable, "-m", "backlink_ray.cli", *train(tmp_path / "run", "--executor", "ray")]
    with tempfile.TemporaryDirectory() as parent:  # Ray's sockets need a short path
        place = Path(parent) / "place"
        if folder == "full":
            place.mkdir()
            command = ["unshare", "-rm", "sh", "-c", FULL, "sh", str(place), *command]
        else:
            place.write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(place)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    if "unshare" in done.stderr:
        pytest.skip("a process of this user cannot mount")
    assert done.returncode == 3, done.stderr
    reason = {"full": "Timed out waiting for file", "file": "Not a directory"}[folder]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("failed: Ray could not be started on this machine: ")
    assert reason in last
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["status"] == "LOST"
