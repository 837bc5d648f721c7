"""The one door to disk: a folder for each stage's result, written whole or not at all, verified when read.

An artifact's key is the hash of its recipe: the stage, the settings that matter to it and the keys of its inputs.
`manifest.json` in its folder records that recipe, a checksum of every file, versions, seconds and peak memory. A folder
is filled under a hidden name, gets its manifest last and is then renamed; the hidden folder stays after a kill, and a
long stage resumes from it.

Where results lie on shared storage, the folder is a cache of them: an artifact is there once its manifest is, which
goes up last; its files come when they are read, each held to its checksum.
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
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.engine.shared import Shared, alive, behind, cache_of, checksum, remove
from heredity.engine.snapshot import snapshots
from heredity.errors import UNSUPPORTED, read_json, reading

if TYPE_CHECKING:
    import pyarrow as pa

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
    """A complete folder on disk, or on shared storage, from which what is read comes into the folder."""

    folder: Path
    key: str  # hash of its recipe
    shared: Shared | None = None  # where it lies on shared storage

    def __truediv__(self, name: str) -> Path:
        """A file or folder of it; `.` is all of it."""
        if self.shared is not None:
            _bring(self.folder, self.shared, name)
        return self.folder / name

    def json(self, name: str) -> Any:
        """Content of a JSON file of the folder."""
        return read_json(self / name, "delete its folder and run again", ArtifactError, object)

    def table(self, name: str, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """A table of the folder, or some of its columns and rows; filters: as of `pyarrow.parquet.read_table`."""
        import pyarrow.parquet as pq

        path = self / f"{name}.parquet"
        with reading(path, "delete its folder and run again", ArtifactError):
            return pq.read_table(path, columns=columns, filters=filters)

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
        if match and (int(match[1]) == os.getpid() or not alive(int(match[1]))):
            remove(stray)
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
            remove(old)
    finally:
        remove(partial)


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
        """root: a folder; where it is the cache of a URL (see `shared.place`), the artifacts lie there."""
        self.root = root
        self.shared = behind(root)
        self._verified: set[Path] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # On another machine the cache may not have been made yet.
        return _store, (self.root, None if self.shared is None else self.shared.url.rpartition("/")[0])

    def path(self, stage: str, name: str, key: str) -> Path:
        """Present or future folder of the artifact of this key."""
        return self.root / stage / f"{name}-{key[:12]}"

    def place(self, folder: Path) -> str:
        """Where an artifact lies, as shown."""
        return str(folder) if self.shared is None else self._behind(folder).url

    def of_other_keys(self, stage: str, name: str, key: str) -> list[Path]:
        """Whole artifacts of a stage and name that were made with another key."""
        own = self.path(stage, name, key)
        return [
            path for path in self.folders() if path.parent.name == stage and path != own and path.name[:-13] == name
        ]

    def folders(self) -> list[Path]:
        """Every artifact folder, whole or damaged, by name."""
        return sorted(path for path in self._listed() if _ARTIFACT.fullmatch(path.name))

    def left_over(self, wanted: Iterable[tuple[str, str, str]]) -> list[Path]:
        """Folders of artifacts, and working folders of those that were begun, which are none of the wanted ones (stage,
        name, key); by name. Nothing else that lies there, nor a folder whose manifest is not its own, is among them.
        """
        kept, found = {self.path(*one) for one in wanted}, []
        for path in sorted(self._listed()):
            name = path.name.removeprefix(_PARTIAL)
            if path.is_symlink() or not _ARTIFACT.fullmatch(name):
                continue
            ours = name != path.name or self._own(path)
            if ours and path.with_name(name) not in kept:
                found.append(path)
        return found

    def size_of(self, folder: Path) -> int:
        """Bytes of all files of an artifact or working folder; of links, their own."""
        if self.shared is not None:
            return sum(self._behind(folder).sizes().values())
        return sum(Path(parent, name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)

    def faults(self, folder: Path) -> list[str]:
        """As `faults`, of an artifact where it lies."""
        return faults(folder) if self.shared is None else _faults_there(folder, self._behind(folder))

    def delete(self, folder: Path) -> None:
        """Delete a folder of an artifact, or a working folder. A kill leaves a working folder, never half an artifact;
        the caller holds the lock."""
        if self.shared is not None:
            there = self._behind(folder)
            there.remove(MANIFEST, *there.sizes())
            if not folder.exists():
                return
        if not folder.name.startswith(_PARTIAL):
            begun = folder.with_name(_PARTIAL + folder.name)
            remove(begun)
            folder = folder.rename(begun)
        remove(folder)

    def find(self, stage: str, name: str, key: str) -> Artifact | None:
        """The complete artifact of this key, or None.

        Raises ArtifactError when it is damaged or of another recipe; checked once per process. On shared storage its
        files are checked as they are read.
        """
        folder = self.path(stage, name, key)
        if self.shared is not None:
            there = self._behind(folder)
            known = folder in self._verified or self._found_there(folder, there, key)
            return Artifact(folder, key, there) if known else None
        if not (folder / MANIFEST).exists():
            return None
        if folder not in self._verified and (damage := faults(folder, key)):
            raise ArtifactError(f"{folder}: {damage[0]}; mend that, or delete the folder and run again to make it anew")
        self._verified.add(folder)
        return Artifact(folder, key)

    def recorded(self, stage: str, name: str, key: str) -> dict[str, Any]:
        """The manifest of the artifact of this key, its files unchecked; empty where there is none."""
        folder = self.path(stage, name, key)
        if self.shared is not None:
            found = self.find(stage, name, key)
            return {} if found is None else found.manifest
        if not (folder / MANIFEST).exists():
            return {}
        return read_json(folder / MANIFEST, "delete its folder and run again", ArtifactError)

    @contextlib.contextmanager
    def writing(
        self, stage: str, name: str, key: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator[Path]:
        """A working folder that becomes the artifact when the block ends without an error; the caller holds the lock.

        After an error or a kill the folder stays, temporary files aside, so that a stage can resume from what it finds
        there; on shared storage a copy of it is renewed meanwhile, for another machine. `config` and `inputs` (name ->
        key) are recorded.
        """
        final = self.path(stage, name, key)
        partial = final.with_name(_PARTIAL + final.name)
        partial.mkdir(parents=True, exist_ok=True)
        kept = None if self.shared is None else self._behind(partial)
        with contextlib.nullcontext() if kept is None else snapshots(partial, kept):
            for stray in [partial / MANIFEST, *partial.rglob(".*")]:
                if stray.name == MANIFEST or _TEMPORARY.fullmatch(stray.name):
                    remove(stray)
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
        remove(clock)
        write_json(partial / CONFIG, dict(config))
        manifest = {
            "stage": stage,
            "name": name,
            "key": key,
            "inputs": dict(inputs),
            "files": {path: checksum(partial / path) for path in _files(partial)},
            "versions": versions(),
            "seconds": round(spent + time.monotonic() - start, 3),
            "peak_memory_gib": round(_peak_gib(), 3),
        }
        write_json(partial / MANIFEST, manifest)
        flush(partial)
        remove(final)
        partial.rename(final)
        if kept is not None:
            self._publish(final)
            kept.remove(*kept.sizes())
        self._verified.add(final)

    def share(self, *names: str) -> None:
        """Send files of the study's folder itself, such as its summary, to the shared storage, if it lies there."""
        if self.shared is not None:
            self.shared.put(self.root, names)

    def file(self, name: str) -> Path:
        """A file of the study's folder itself, as it is on the shared storage, if it lies there."""
        path, partial = self.root / name, self.root / f".{name}.{uuid.uuid4().hex}"
        if self.shared is not None:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                if self.shared.get(name, partial):
                    partial.replace(path)
                else:
                    path.unlink(missing_ok=True)
            finally:
                partial.unlink(missing_ok=True)
        return path

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
            with contextlib.nullcontext() if self.shared is None else self.shared.lock():
                yield

    def _behind(self, folder: Path) -> Shared:
        """Where a folder of an artifact lies on the shared storage."""
        assert self.shared is not None
        return self.shared / f"{folder.parent.name}/{folder.name}"

    def _listed(self) -> Iterator[Path]:
        """Folders that may be artifacts or working folders, in no order."""
        if self.shared is None:
            return (path for path in self.root.glob("*/*") if path.is_dir())
        parts = (name.split("/") for name in self.shared.sizes())
        return iter({self.root / part[0] / part[1] for part in parts if len(part) > 2})

    def _own(self, folder: Path) -> bool:
        """Whether a folder has a manifest, and not that of another artifact, or of none."""
        try:
            content = (folder / MANIFEST).read_bytes() if self.shared is None else self._behind(folder).read(MANIFEST)
            manifest = json.loads((content or b"").decode())
            recorded = manifest["stage"], f"{manifest['name']}-{manifest['key'][:12]}"
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False
        return recorded == (folder.parent.name, folder.name)

    def _found_there(self, folder: Path, there: Shared, key: str) -> bool:
        """Whether an artifact is on the shared storage; its manifest is then here. One that was made here and could not
        be sent is sent."""
        content, here = there.read(MANIFEST), folder / MANIFEST
        if content is None:
            if not here.exists():
                return False
            if faults(folder, key):
                remove(folder)  # some of the files of an artifact that has been deleted there
                return False
            self._publish(folder)
        else:
            if isinstance(fault := _entries(content, folder, key), str):
                raise ArtifactError(f"{there.url}: {fault}; delete it and run again to make it anew")
            if here.exists() and here.read_bytes() != content:
                remove(folder)
            if not here.exists():
                folder.mkdir(parents=True, exist_ok=True)
                partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
                partial.write_bytes(content)
                partial.replace(here)
        self._verified.add(folder)
        return True

    def _publish(self, folder: Path) -> None:
        """Send a whole artifact: an older manifest goes first, then files come, the manifest last."""
        there, manifest = self._behind(folder), (folder / MANIFEST).read_bytes()
        there.remove(MANIFEST)
        there.put(folder, list(json.loads(manifest)["files"]))
        there.write(MANIFEST, manifest)


def _store(root: Path, origin: str | None) -> Store:
    if origin is not None:
        cache_of(origin, root.parent)
    return Store(root)


_checked: dict[Path, str] = {}  # files of caches that this process has checked, with what they were checked against


def _bring(folder: Path, there: Shared, name: str) -> None:
    """Fetch what is not here yet, or is not as recorded, of a file or folder of an artifact on shared storage.

    Raises ArtifactError for a file that is missing there or has another checksum than its manifest says.
    """
    recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for file, digest in recorded.items():
        path = folder / file
        if name not in (".", file) and not file.startswith(f"{name}/") or _checked.get(path) == digest:
            continue
        if not path.is_file() or checksum(path) != digest:
            partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
            try:
                if not there.get(file, partial):
                    raise ArtifactError(f"{there.url}: {file} is missing; delete it and run again to make it anew")
                if checksum(partial) != digest:
                    reason = f"{file} differs from its recorded checksum"
                    raise ArtifactError(f"{there.url}: {reason}; delete it and run again to make it anew")
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        _checked[path] = digest


def faults(folder: Path, key: str | None = None) -> list[str]:
    """Faults of an artifact, one line each: its manifest, and each missing, changed or foreign file.

    `key`: the whole key, where it is known; the folder's name has its first 12 digits.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except OSError as error:
        return [f"{MANIFEST} cannot be read ({error.strerror})"]
    if isinstance(recorded := _entries(content, folder, key), str):
        return [recorded]
    files = set(_files(folder)) - {MANIFEST}
    lines = [f"{name} is missing" for name in recorded if name not in files]
    lines += [f"{name} is not part of the artifact (delete that file)" for name in sorted(files - set(recorded))]
    for name in sorted(files & set(recorded)):
        try:
            if checksum(folder / name) != recorded[name]:
                lines.append(f"{name} differs from its recorded checksum")
        except OSError as error:
            lines.append(f"{name} cannot be read ({error.strerror})")
    return lines


def _faults_there(folder: Path, there: Shared) -> list[str]:
    """As `faults`, of an artifact on shared storage."""
    content = there.read(MANIFEST)
    if content is None:
        return [f"{MANIFEST} is missing"]
    if isinstance(recorded := _entries(content, folder), str):
        return [recorded]
    lines = [f"{name} is not part of the artifact" for name in sorted(there.sizes()) if name not in recorded]
    lines.remove(f"{MANIFEST} is not part of the artifact")
    for name, digest in sorted(recorded.items()):
        try:
            if there.sha256(name) != digest:
                lines.append(f"{name} differs from its recorded checksum")
        except FileNotFoundError:
            lines.append(f"{name} is missing")
    return lines


def _entries(content: bytes, folder: Path, key: str | None = None) -> dict[str, str] | str:
    """Files with their checksums, from the manifest of an artifact's folder; what is wrong where it is not its own."""
    try:
        manifest = json.loads(content.decode())
        stage, name, recorded_key = manifest["stage"], manifest["name"], manifest["key"]
        recorded, _, _ = (dict(manifest[entry]) for entry in ("files", "inputs", "versions"))
        timed = math.isfinite(manifest["seconds"]) and math.isfinite(manifest["peak_memory_gib"])
        here = stage == folder.parent.name and f"{name}-{recorded_key[:12]}" == folder.name
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return f"{MANIFEST} is unreadable or incomplete"
    if not here or not timed or recorded_key != (key or recorded_key):
        return f"{MANIFEST} is that of another artifact, {stage}/{name} with key {recorded_key}"
    return recorded


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


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    installed = {}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


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


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Name the place in an error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
