"""Soak: how much a run still gets done while its stages are killed at random times, as a share of what it does undisturbed."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

from backlink_ray.errors import ConfigError
from backlink_ray.processes import descendants
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.folder import CHECKPOINTS, ENVIRONMENT
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.results import Row
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import newest

# It never gets to its end. A checkpoint costs little, so it is saved often beside the time between two kills.
CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, batch_size=20, epochs=100_000, train_images=500,
    test_images=100, executor="ray",
)  # fmt: skip
CHECKPOINT_EVERY_S = 5.0


def soak_rows(minutes: float, kill_every_s: float) -> Iterator[Row]:
    """Yield steps and steps per second of a run on a private Ray, undisturbed and then with kills, and the goodput in percent.

    Only steps of the last checkpoint count, which the run saves when its time is over. A kill may hit the process that stands by
    to replace a stage, which costs no work: `kills` counts these, too, and `recoveries` how often work was lost.

    Args:
        minutes: of the run with kills; the undisturbed one takes half as long.
        kill_every_s: mean time between two kills of a random one of these processes, a Poisson process.

    Raises:
        ConfigError: $RAY_ADDRESS names a cluster, whose processes are not for this to kill.
    """
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']!r} is a cluster, and soak has a Ray of its own: unset it"
        )
    alone = _row(30 * minutes, lambda ended: None)
    yield {"run": "undisturbed", **alone}
    kills: list[float] = []
    disturbed = _row(60 * minutes, lambda ended: _kill(ended, kill_every_s, random.Random(0), kills))
    goodput = 100 * disturbed["steps_per_s"] / alone["steps_per_s"]
    name = f"a kill every {kill_every_s:g} s, of a stage or a stand-by"
    yield {"run": name, **disturbed, "kills": len(kills), "goodput_pct": goodput}


def _row(seconds: float, disturb: Callable[[threading.Event], None]) -> dict[str, float]:
    """Train for a time, which begins with the first step, and return what was done."""
    started: list[float] = []
    ended = threading.Event()

    def is_over() -> bool:
        if not started:
            started.append(time.monotonic())
            threading.Thread(target=disturb, args=(ended,), daemon=True).start()
        return time.monotonic() - started[0] >= seconds

    options = RunOptions(checkpoint_every_s=CHECKPOINT_EVERY_S, max_recoveries=10**6, stop=is_over)
    with TemporaryDirectory() as folder:
        try:
            run(CONFIG, folder, options=options)
        except KeyboardInterrupt:
            if not is_over():
                raise
        finally:
            ended.set()
        taken = time.monotonic() - started[0]
        state, _ = newest(Path(folder) / CHECKPOINTS) or (None, {})
        attempts = json.loads((Path(folder) / ENVIRONMENT).read_text())["attempts"]
    steps = state.step if state else 0
    return {"seconds": taken, "steps": steps, "steps_per_s": steps / taken, "recoveries": len(attempts) - 1}


def _kill(ended: threading.Event, every_s: float, draw: random.Random, kills: list[float]) -> None:
    while not ended.wait(draw.expovariate(1 / every_s)):
        if stages := sorted(pid for pid in descendants(os.getpid()) if _is_stage(pid)):
            with suppress(ProcessLookupError):
                os.kill(draw.choice(stages), SIGKILL)
                kills.append(time.monotonic())


def _is_stage(pid: int) -> bool:
    """Return whether a process is a stage, or stands by to become one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::StageActor")
    except OSError:
        return False
