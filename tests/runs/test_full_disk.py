"""A full disk: what is there stays good, the error names path and bytes, and with room again the run goes on, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a mount of its own, which ends with the process: a tmpfs of a few checkpoints, and a file that leaves room for two.
SCRIPT = """
import json, sys
from pathlib import Path
from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import StorageError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.outcome import outcome_of
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import Checkpoints

disk, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
config = RunConfig(network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=40, epochs=4, train_images=80,
                   test_images=40, executor="local")
data = load_dataset("cifar10-sample", train_images=80, test_images=40)
filler = disk / "filler"
filler.write_bytes(bytes(int(sys.argv[3])))
found = {}
try:
    run(config, disk / "run", dataset=data)
except StorageError as error:
    found["error"] = str(error)
newest = Checkpoints(disk / "run" / "checkpoints", config.run_id).newest()
found["names"] = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
found["step"] = newest[0].step if newest else 0
found["outcome"] = outcome_of(disk / "run", 4, {}, found.get("error")).status
filler.unlink()
found["again"] = run(config, disk / "run", dataset=data)["weights_sha256"]
found["whole"] = run(config, elsewhere / "whole", dataset=data)["weights_sha256"]
print(json.dumps(found))
"""
MOUNT = 'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4" "$5"'


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_with_room(tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    filler = 8 * 2**20 - 1_600_000  # a checkpoint has 640 kB, and a third one is written before the first is removed
    arguments = [str(disk), sys.executable, SCRIPT, str(elsewhere), str(filler)]
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT, "sh", *arguments], capture_output=True, text=True, check=False
    )
    if "unshare" in ran.stderr:
        pytest.skip("a process of this user cannot mount")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    print(found)
    assert found["names"] == ["step-000000002", "step-000000004"]
    assert found["step"] == 4
    assert f"{disk}/run/checkpoints/step-000000006 (" in found["error"]
    assert " bytes) cannot be written: No space left on device; free space there" in found["error"]
    assert found["outcome"] == "LOST"
    assert found["again"] == found["whole"]
