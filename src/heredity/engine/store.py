"""The one door to disk: a folder for each stage's result, written whole or not at all, verified when read.

An artifact's key is the hash of its recipe: the stage, the settings that matter to it and the keys of what it
was made from. `manifest.json` in its folder records that recipe, a checksum of every file, versions, seconds and
peak memory. A folder is filled under a hidden name and renamed when it is complete, so that a half-written artifact
cannot be mistaken for a whole one; the hidden folder stays after a kill and a long stage resumes from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CONFIG = "config.json"
_VERSIONS = ("heredity", "torch", "transformers", "tokenizers", "numpy")


class ArtifactError(ValueError):
    """An artifact is missing, damaged or of another recipe; the message names the folder and the way out."""


@dataclass(frozen=True)
class Artifact:
    """A complete folder on disk."""

    folder: Path
    """Where it lies."""
    key: str
    """Hash of its recipe."""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str) -> Any:
        """The parsed content of a JSON file of the folder."""
        return json.loads((self.folder / name).read_text())

    @property
    def manifest(self) -> dict[str, Any]:
        """Recipe, inputs, checksums, versions, seconds and peak memory."""
        return self.json(MANIFEST)


def digest(value: object) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all (`nan` is refused: JSON has none)."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


class Store:
    """The artifacts of one study under `runs/<study>/`."""

    def __init__(self, root: Path):
        self.root = root
        self._verified: set[Path] = set()

    def path(self, stage: str, name: str, key: str) -> Path:
        """Where the artifact of this key lies, or would lie."""
        return self.root / stage / f"{name}-{key[:12]}"

    def find(self, stage: str, name: str, key: str) -> Artifact | None:
        """The complete artifact of this key, or None.

        Raises ArtifactError when a file differs from its recorded checksum; checked once a process.
        """
        folder = self.path(stage, name, key)
        if not (folder / MANIFEST).exists():
            return None
        artifact = Artifact(folder, key)
        if folder not in self._verified:
            if damage := faults(folder):
                raise ArtifactError(f"{folder}: {damage[0]}; delete the folder and run again to make it anew")
            self._verified.add(folder)
        return artifact

    @contextlib.contextmanager
    def writing(
        self, stage: str, name: str, key: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator[Path]:
        """A working folder that becomes the artifact when the block ends without an error.

        What a killed run left in the working folder is still there, so that a stage can resume; what it does not
        want kept it deletes. `config` and `inputs` (name -> key) are recorded. After an error the folder stays too.
        """
        final = self.path(stage, name, key)
        partial = final.with_name(f".partial-{final.name}")
        partial.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        earlier = partial / ".seconds"
        spent = float(earlier.read_text()) if earlier.exists() else 0.0
        try:
            yield partial
        except BaseException:
            earlier.write_text(str(spent + time.monotonic() - start))
            raise
        earlier.unlink(missing_ok=True)
        write_json(partial / CONFIG, dict(config))
        manifest = {
            "stage": stage,
            "name": name,
            "key": key,
            "inputs": dict(inputs),
            "files": {path: _sha256(partial / path) for path in _files(partial)},
            "versions": versions(),
            "seconds": round(spent + time.monotonic() - start, 3),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        }
        write_json(partial / MANIFEST, manifest)
        for path in (partial / MANIFEST, partial):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        self._verified.add(final)

    def all(self) -> list[Artifact]:
        """Every complete artifact of the store, by folder name."""
        manifests = sorted(self.root.glob(f"*/*/{MANIFEST}"))
        return [
            Artifact(path.parent, json.loads(path.read_text())["key"])
            for path in manifests
            if not path.parent.name.startswith(".")
        ]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one writer; a second one is refused, by the process id of the first."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = open(self.root / ".lock", "a+")  # noqa: SIM115 - closed below
        except OSError as error:
            raise ArtifactError(
                f"{self.root} cannot be written ({error.strerror}); choose another folder with --runs"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ArtifactError(
                    f"{self.root} is being written by process {file.read().strip() or 'unknown'}; wait for it, "
                    "or choose another folder with --runs"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def faults(folder: Path) -> list[str]:
    """What is wrong with the files of a complete artifact: one line for each missing, changed or foreign file."""
    try:
        recorded = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return [f"{MANIFEST} is unreadable"]
    found = set(_files(folder)) - {MANIFEST}
    lines = [f"{name} is missing" for name in recorded if name not in found]
    lines += [f"{name} is not part of the artifact" for name in sorted(found - set(recorded))]
    for name in sorted(found & set(recorded)):
        if _sha256(folder / name) != recorded[name]:
            lines.append(f"{name} differs from its recorded checksum")
    return lines


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
