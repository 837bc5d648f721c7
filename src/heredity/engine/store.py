"""The one door to disk: a folder for each stage's result, written whole or not at all, verified when read.

An artifact's key is the hash of its recipe: the stage, the settings that matter to it and the keys of its inputs.
`manifest.json` in its folder records that recipe, a checksum of every file, versions, seconds and peak memory. A folder
is filled under a hidden name, gets its manifest last and is then renamed; the hidden folder stays after a kill, and a
long stage resumes from it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from heredity.errors import UNSUPPORTED, read_json

try:
    import fcntl
    import resource
except ImportError:  # a folder could not be locked, nor a file be made sure of
    raise ImportError(UNSUPPORTED) from None

MANIFEST = "manifest.json"
CONFIG = "config.json"
_VERSIONS = ("heredity", "torch", "transformers", "tokenizers", "numpy")
_TEMPORARY = re.compile(r"\..+\.([1-9]\d{0,6})")  # the names that `whole` gives: .NAME.PROCESS
_ARTIFACT, _PARTIAL = re.compile(r"[^.].*-[0-9a-f]{12}"), ".partial-"
_FOREIGN = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs.*")  # left by file managers and file systems


class ArtifactError(ValueError):
    """An artifact is missing, damaged or of another recipe; the message names the folder and the way out."""


@dataclass(frozen=True)
class Artifact:
    """A complete folder on disk."""

    folder: Path
    key: str  # hash of its recipe

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def json(self, name: str) -> Any:
        """Content of a JSON file of the folder."""
        return read_json(self.folder / name, "delete its folder and run again", ArtifactError, object)

    @property
    def manifest(self) -> dict[str, Any]:
        """Recipe, inputs, checksums, versions, seconds and peak memory."""
        return self.json(MANIFEST)


def digest(value: object) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; it becomes `path` when the block ends well.

    After an error it is deleted and `path` is as before; so is what a killed process left. A file never replaces a
    folder: ValueError. A full disk raises OSError with `path` in it. Replacing a folder takes two renames: a kill
    between them leaves none.
    """
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = _TEMPORARY.fullmatch(stray.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            _remove(stray)
    partial, old = (path.with_name(f".{path.name}.{middle}{os.getpid()}") for middle in ("", "old."))
    try:
        with _placed(path):
            yield partial
            for file in [*partial.rglob("*"), partial]:
                if file.is_file():
                    flush(file)
            if path.is_dir() and not path.is_symlink():
                if partial.is_file():
                    raise ValueError(f"{path}: is a folder, and what is written there is a file; give a file's name")
                path.rename(old)
            partial.replace(path)
            _remove(old)
    finally:
        _remove(partial)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process to read a file of a folder, change it and write it; others wait meanwhile."""
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all (`nan` is refused: JSON has none)."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


class Store:
    """The artifacts of one study under `runs/<study>/`."""

    def __init__(self, root: Path):
        self.root = root
        self._verified: set[Path] = set()

    def path(self, stage: str, name: str, key: str) -> Path:
        """Present or future folder of the artifact of this key."""
        return self.root / stage / f"{name}-{key[:12]}"

    def of_other_keys(self, stage: str, name: str, key: str) -> list[Path]:
        """Whole artifacts of a stage and name that were made with another key."""
        own, found = self.path(stage, name, key), (self.root / stage).glob(f"{glob.escape(name)}-{'?' * 12}")
        return sorted(path for path in found if path != own and _ARTIFACT.fullmatch(path.name))

    def folders(self) -> list[Path]:
        """Every artifact folder, whole or damaged, by name."""
        return sorted(path for path in self.root.glob("*/*") if _ARTIFACT.fullmatch(path.name) and path.is_dir())

    def left_over(self, wanted: Iterable[tuple[str, str, str]]) -> list[Path]:
        """Folders of artifacts, and working folders of those that were begun, which are none of the wanted ones (stage,
        name, key); by name. Nothing else that lies there, nor a folder whose manifest is not its own, is among them.
        """
        kept, found = {self.path(*one) for one in wanted}, []
        for path in sorted(self.root.glob("*/*")):
            name = path.name.removeprefix(_PARTIAL)
            if path.is_symlink() or not path.is_dir() or not _ARTIFACT.fullmatch(name):
                continue
            ours = name != path.name or (path / MANIFEST).is_file() and not _misplaced(path)
            if ours and path.with_name(name) not in kept:
                found.append(path)
        return found

    def delete(self, folder: Path) -> None:
        """Delete a folder of an artifact, or a working folder. A kill leaves a working folder, never half an artifact;
        the caller holds the lock."""
        if not folder.name.startswith(_PARTIAL):
            begun = folder.with_name(_PARTIAL + folder.name)
            _remove(begun)
            folder = folder.rename(begun)
        _remove(folder)

    def find(self, stage: str, name: str, key: str) -> Artifact | None:
        """The complete artifact of this key, or None.

        Raises ArtifactError when it is damaged or of another recipe; checked once per process.
        """
        folder = self.path(stage, name, key)
        if not (folder / MANIFEST).exists():
            return None
        if folder not in self._verified and (damage := faults(folder, key)):
            raise ArtifactError(f"{folder}: {damage[0]}; mend that, or delete the folder and run again to make it anew")
        self._verified.add(folder)
        return Artifact(folder, key)

    @contextlib.contextmanager
    def writing(
        self, stage: str, name: str, key: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator[Path]:
        """A working folder that becomes the artifact when the block ends without an error; the caller holds the lock.

        After an error or a kill the folder stays, temporary files aside, so that a stage can resume from what it finds
        there. `config` and `inputs` (name -> key) are recorded.
        """
        final = self.path(stage, name, key)
        partial = final.with_name(_PARTIAL + final.name)
        partial.mkdir(parents=True, exist_ok=True)
        for stray in [partial / MANIFEST, *partial.rglob(".*")]:
            if stray.name == MANIFEST or _TEMPORARY.fullmatch(stray.name):
                _remove(stray)
        _forget_peak()
        start, spent, clock = time.monotonic(), 0.0, partial / ".seconds"
        with contextlib.suppress(OSError, ValueError):
            earlier = float(clock.read_text(encoding="utf-8"))
            spent = earlier if 0 <= earlier < math.inf else 0.0
        try:
            with _placed(partial):
                yield partial
        except BaseException:
            with contextlib.suppress(OSError), whole(clock) as file:
                file.write_text(str(spent + time.monotonic() - start), encoding="utf-8")
            raise
        _remove(clock)
        write_json(partial / CONFIG, dict(config))
        manifest = {
            "stage": stage,
            "name": name,
            "key": key,
            "inputs": dict(inputs),
            "files": {path: _sha256(partial / path) for path in _files(partial)},
            "versions": versions(),
            "seconds": round(spent + time.monotonic() - start, 3),
            "peak_memory_gib": round(_peak_gib(), 3),
        }
        write_json(partial / MANIFEST, manifest)
        flush(partial)
        _remove(final)
        partial.rename(final)
        self._verified.add(final)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one writer; a second one is refused, by the process id of the first."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = open(self.root / ".lock", "a+")  # noqa: SIM115 - closed below
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); choose another folder with --runs"
            raise ArtifactError(f"{self.root} {reason}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                reason = f"is being written by process {file.read().strip() or 'unknown'}; wait for it, or choose"
                raise ArtifactError(f"{self.root} {reason} another folder with --runs") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def faults(folder: Path, key: str | None = None) -> list[str]:
    """Faults of an artifact, one line each: its manifest, and each missing, changed or foreign file.

    `key`: the whole key, where it is known; the folder's name has its first 12 digits.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        stage, name, recorded_key = manifest["stage"], manifest["name"], manifest["key"]
        recorded, _, _ = (dict(manifest[entry]) for entry in ("files", "inputs", "versions"))
        timed = math.isfinite(manifest["seconds"]) and math.isfinite(manifest["peak_memory_gib"])
        here = stage == folder.parent.name and f"{name}-{recorded_key[:12]}" == folder.name
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except OSError as error:
        return [f"{MANIFEST} cannot be read ({error.strerror})"]
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return [f"{MANIFEST} is unreadable or incomplete"]
    if not here or not timed or recorded_key != (key or recorded_key):
        return [f"{MANIFEST} is that of another artifact, {stage}/{name} with key {recorded_key}"]
    files = set(_files(folder)) - {MANIFEST}
    lines = [f"{name} is missing" for name in recorded if name not in files]
    lines += [f"{name} is not part of the artifact (delete that file)" for name in sorted(files - set(recorded))]
    for name in sorted(files & set(recorded)):
        try:
            if _sha256(folder / name) != recorded[name]:
                lines.append(f"{name} differs from its recorded checksum")
        except OSError as error:
            lines.append(f"{name} cannot be read ({error.strerror})")
    return lines


def _forget_peak() -> None:
    """Let the peaks of this process's memory and of its workers' begin anew, where the system lets it."""
    for process in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{process}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")


def _peak_gib() -> float:
    """Peaks of the memory of this process and its workers, added up, since `_forget_peak`; where the system does not
    know them, that of this process since it began."""
    peak = 0
    for process in _processes():
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/status", encoding="ascii") as file:
            peak += next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    if peak:
        return peak / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _processes() -> list[int | None]:
    return [os.getpid(), *(process.pid for process in multiprocessing.active_children())]


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; of links, their own."""
    return sum(Path(parent, name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    installed = {}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def _misplaced(folder: Path) -> bool:
    """Whether the manifest of a folder is that of another artifact, or of none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return (manifest["stage"], f"{manifest['name']}-{manifest['key'][:12]}") != (folder.parent.name, folder.name)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return True


def _files(folder: Path) -> list[str]:
    """Files below a folder, links followed, without those of file managers and file systems. A folder is entered once,
    links last: they may lead in a circle."""
    found, waiting, entered = list[str](), deque([folder]), set[str]()
    while waiting:
        place = waiting.popleft()
        if (real := os.path.realpath(place)) in entered:
            continue
        entered.add(real)
        for entry in os.scandir(place):
            path = Path(entry.path)
            if entry.is_dir():
                (waiting.append if entry.is_symlink() else waiting.appendleft)(path)
            elif entry.is_file() and not _FOREIGN.fullmatch(entry.name):
                found.append(str(path.relative_to(folder)))
    return sorted(found)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Name the place in an error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
