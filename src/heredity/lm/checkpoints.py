"""Checkpoints of a training run: which of them are whole, and whether they belong to this run."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

_STATE, _RUN = "trainer_state.json", "run.json"
_ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def newest_checkpoint(folder: Path, tensors: Collection[str] = ()) -> Path | None:
    """The last whole checkpoint in `folder`; broken ones are deleted on the way.

    `tensors` are names that its weights must hold. Whole means: every file is there, the safetensors have the length
    their header says, the archives pass their checksums, and the trainer's state, written last, names this step.
    """
    found = [(int(path.name.rpartition("-")[2]), path) for path in folder.glob("checkpoint-*") if _numbered(path)]
    for _, path in sorted(found, reverse=True):
        if is_whole(path, tensors):
            return path
        shutil.rmtree(path, ignore_errors=True)
    return None


def is_whole(checkpoint: Path, tensors: Collection[str] = ()) -> bool:
    """Whether a checkpoint was written to its end (see `newest_checkpoint`)."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        names: set[str] = set()
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                names.update(opened.keys())
        for archive in _ARCHIVES:
            with zipfile.ZipFile(checkpoint / archive) as opened:
                if opened.testzip() is not None:
                    return False
        index = checkpoint / "model.safetensors.index.json"
        if index.is_file():
            tensors = {*tensors, *json.loads(index.read_text(encoding="utf-8"))["weight_map"]}
        return bool(names) and names.issuperset(tensors) and f"checkpoint-{state['global_step']}" == checkpoint.name
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False


def claim(folder: Path, settings: dict[str, object]) -> None:
    """Note in `folder` which run its checkpoints belong to.

    Raises ValueError when they belong to a run with other settings, naming the ones that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _RUN
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    now = json.loads(json.dumps(settings))
    if before is not None and before != now:
        differ = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
        if newest_checkpoint(folder) is not None:
            raise ValueError(
                f"{folder} holds checkpoints of another run ({', '.join(differ)} differ); delete it or take another"
            )
    # Without a note that says whose they are, checkpoints are not trusted.
    if before is None:
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(now), encoding="utf-8")
    partial.replace(note)


def _numbered(path: Path) -> bool:
    return path.is_dir() and path.name.rpartition("-")[2].isdecimal()
