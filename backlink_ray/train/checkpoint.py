"""Checkpoints: a run's state on disk, complete or absent, with a checksum per file; the last two are kept."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backlink_ray.errors import CheckpointError
from backlink_ray.files import sync_folder, write_synced
from backlink_ray.train.state import PARTS, TrainState

MANIFEST = "manifest.json"
KEPT = 2  # the newest, and one to fall back on


class Checkpoints:
    """The checkpoints of one run.

    Weights are named by global unit index and module index, so they load into another split; safetensors and JSON contain
    no code. A checkpoint is written under a temporary name and renamed once it is on disk, so the newest is always complete.

    Args:
        folder: created if missing; remains of an interrupted write are removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stray in folder.glob(".writing-*"):
                shutil.rmtree(stray)
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be used for checkpoints: {error.strerror}; remove what is there"
            ) from error

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> Path:
        """Write a state with some JSON; on CheckpointError (a full disk, say) the older checkpoints are untouched."""
        from safetensors.torch import save  # imported here: the library itself needs torch alone

        final = self._folder / f"step-{state.step:09d}"
        working = self._folder / f".writing-{os.getpid()}-{final.name}"
        files = {
            f"{part}.safetensors": save({n: t.detach().cpu().contiguous() for n, t in getattr(state, part).items()})
            for part in PARTS
        }
        files["state.json"] = json.dumps({"step": state.step, "extra": dict(extra)}).encode()
        files[MANIFEST] = json.dumps({name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}).encode()
        try:
            self._write(working, final, files)
        except OSError as error:
            shutil.rmtree(working, ignore_errors=True)
            size = sum(map(len, files.values()))
            raise CheckpointError(
                f"{final} ({size} bytes) cannot be written: {error.strerror}; free space there"
            ) from error
        for old in _all(self._folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def _write(self, working: Path, final: Path, files: Mapping[str, bytes]) -> None:
        working.mkdir()
        for name, raw in files.items():
            write_synced(working / name, raw)
        if final.exists():
            shutil.rmtree(final)
        working.replace(final)
        sync_folder(self._folder)

    def newest(self) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest intact checkpoint with its JSON; None if there is none."""
        return newest(self._folder)


def newest(folder: Path) -> tuple[TrainState, dict[str, Any]] | None:
    """Return the newest intact checkpoint in a folder with its JSON, None if there is none; a run may be writing there."""
    for one in reversed(_all(folder)):
        try:
            return _read(one)
        except CheckpointError as error:
            print(f"{error}; falling back to the previous one", file=sys.stderr, flush=True)
    return None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _read(folder: Path) -> tuple[TrainState, dict[str, Any]]:
    from safetensors.torch import load

    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        files = {name: (folder / name).read_bytes() for name in manifest}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is incomplete ({error})") from error
    if not {*(f"{part}.safetensors" for part in PARTS), "state.json"} <= set(manifest):
        raise CheckpointError(f"checkpoint {folder} is incomplete (its manifest does not name all of its files)")
    for name, raw in files.items():
        if hashlib.sha256(raw).hexdigest() != manifest[name]:
            raise CheckpointError(f"checkpoint file {folder / name} is corrupt: expected sha256 {manifest[name]}")
    state = json.loads(files["state.json"])
    parts = {part: load(files[f"{part}.safetensors"]) for part in PARTS}
    return TrainState(**parts, step=state["step"]), state["extra"]


def weights_sha256(state: TrainState) -> str:
    """Return the hash of all unit parameters and buffers in name order; it does not depend on method, split or heads."""
    total = hashlib.sha256()
    for name in sorted(n for n in state.weights if n.startswith("units.")):
        flat = state.weights[name].detach().cpu().contiguous().view(-1)  # numpy lacks bfloat16, but not its bytes
        total.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
