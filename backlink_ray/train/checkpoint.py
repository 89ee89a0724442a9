"""Checkpoints: a run's state on disk, complete or absent, with a checksum per file; the last two are kept."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from backlink_ray.errors import BacklinkError, StorageError
from backlink_ray.files import make_own_folder, remove_leftovers, sync_folder, temporary, write_synced
from backlink_ray.output import say
from backlink_ray.train.state import PARTS, TrainState

MANIFEST = "manifest.json"
STATE = "state.json"
KEPT = 2  # the newest, and one to fall back on
_TENSORS = tuple(f"{part}.safetensors" for part in PARTS)
_NAME = re.compile(r"step-\d{9}")
Check = Callable[[TrainState], None]


class Checkpoints:
    """The checkpoints of one run.

    Weights are named by global unit index and module index, so they load into another split; safetensors and JSON contain
    no code. A checkpoint is written under a temporary name and renamed once it is on disk, so the newest is always complete.

    Args:
        folder: created if missing; what dead processes have left of their writes is removed.
        run_id: of the run whose checkpoints these are; every other run's is refused.
        check: raises a BacklinkError unless a state is one of this run, see `StateCheck`; asked before a state is written,
            and before one is returned.
    """

    def __init__(self, folder: Path, run_id: str = "", check: Check = lambda _: None) -> None:
        self._folder, self._run_id, self._check = folder, run_id, check
        try:
            make_own_folder(folder)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be used for checkpoints: {error.strerror}; remove what is there"
            ) from error
        remove_leftovers(folder)

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> Path:
        """Write a state with some JSON.

        Raises:
            StorageError: it cannot be written (a full disk, say); the older checkpoints are untouched.
            NotFiniteError: it has a NaN or an infinite number, see `StateCheck`; nothing is written.
        """
        from safetensors.torch import save  # imported here: the library itself needs torch alone

        self._check(state)
        content = {"step": state.step, "extra": {**extra, **({"run_id": self._run_id} if self._run_id else {})}}
        files = {
            name: save({n: t.detach().cpu().contiguous() for n, t in getattr(state, part).items()})
            for part, name in zip(PARTS, _TENSORS, strict=True)
        }
        files[STATE] = json.dumps(content, allow_nan=False).encode()
        files[MANIFEST] = json.dumps({name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}).encode()
        final = self._folder / _name(state.step)
        try:
            _write(final, files)
        except OSError as error:
            size = sum(map(len, files.values()))
            raise StorageError(
                f"{final} ({size} bytes) cannot be written: {error.strerror}; free space there"
            ) from error
        for old in _superseded(self._folder, final):
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest(self) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest good checkpoint with its JSON; None if there is none, which is said if there are bad ones."""
        found = newest(self._folder, self._run_id, self._check)
        if not found and _all(self._folder):
            say(f"no checkpoint in {self._folder} can be used; training starts at epoch 1")
        return found


def newest(folder: Path, run_id: str = "", check: Check = lambda _: None) -> tuple[TrainState, dict[str, Any]] | None:
    """Return the newest good checkpoint in a folder with its JSON, None if there is none; a run may be writing there.

    Args:
        folder, run_id, check: as for `Checkpoints`; run_id "" takes any run's.
    """
    for one in reversed(_all(folder)):
        try:
            state, extra = _read(one)
            if run_id and extra.get("run_id") != run_id:
                raise StorageError(f"it is of run {extra.get('run_id')}, not of {run_id}")
            check(state)
        except BacklinkError as error:
            say(f"checkpoint {one} is not used ({error}); trying the one before")
        else:
            return state, extra
    return None


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _superseded(folder: Path, newest: Path) -> list[Path]:
    """Return the checkpoints that a new one makes needless; later ones could not be used, or the run would not be here again."""
    found = _all(folder)
    count = found.index(newest) + 1
    return [*found[: max(0, count - KEPT)], *found[count:]]


def _write(final: Path, files: Mapping[str, bytes]) -> None:
    with temporary(final, is_folder=True) as working:
        for name, raw in files.items():
            write_synced(working / name, raw)
        sync_folder(working)
        if final.exists():  # of the same step, saved before its evaluation
            with temporary(final, is_folder=True) as old:
                final.replace(old)
                working.replace(final)
        else:
            working.replace(final)
    sync_folder(final.parent)


def _read(folder: Path) -> tuple[TrainState, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        files = {name: (folder / name).read_bytes() for name in (*_TENSORS, STATE)}
        for name, raw in files.items():
            if hashlib.sha256(raw).hexdigest() != manifest[name]:
                raise StorageError(f"{name} is corrupt: expected sha256 {manifest[name]}")
        parts = {part: load(files[name]) for part, name in zip(PARTS, _TENSORS, strict=True)}
        state = json.loads(files[STATE])
        step, extra = int(state["step"]), dict(state["extra"])
    except StorageError:  # itself an OSError
        raise
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise StorageError(f"incomplete or damaged: {type(error).__name__}: {error}") from error
    if folder.name != _name(step):
        raise StorageError(f"it is of step {step}")
    return TrainState(**parts, step=step), extra


def weights_sha256(state: TrainState) -> str:
    """Return the hash of all unit parameters and buffers in name order; it does not depend on method, split or heads."""
    total = hashlib.sha256()
    for name in sorted(n for n in state.weights if n.startswith("units.")):
        flat = state.weights[name].detach().cpu().contiguous().view(-1)  # numpy lacks bfloat16, but not its bytes
        total.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
