"""What a stage has come to, kept on shared storage while it works, so that another machine goes on from there.

A snapshot is what a kill at that instant would have left: files under their checksums, and last a list that names them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from heredity.engine.shared import Shared, StorageError, checksum, remove

LIST = "snapshot.json"
MARK = ".snapshot"
"""File in a working folder: the list of the snapshot that it goes on from or was last kept as."""
EVERY = 120.0  # seconds between snapshots


@contextlib.contextmanager
def snapshots(folder: Path, there: Shared, every: float = EVERY) -> Iterator[None]:
    """Let a working folder go on from its newest snapshot, and keep one every so many seconds while the block is open,
    and at its end if that is an error. A storage that fails is asked again at the next turn."""
    _restore(folder, there)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(every):
            with contextlib.suppress(StorageError):
                save(folder, there)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        thread.join()
        with contextlib.suppress(StorageError):
            save(folder, there)
        raise
    ended.set()
    thread.join()
    (folder / MARK).unlink(missing_ok=True)


def save(folder: Path, there: Shared) -> bool:
    """Keep the folder as it is; False where its files changed meanwhile, or are those of the last snapshot."""
    before = _state(folder)
    try:
        files = {name: checksum(folder / name) for name in before}
    except OSError:
        return False
    if not files or _state(folder) != before:
        return False
    content = json.dumps(files, sort_keys=True).encode()
    mark = folder / MARK
    if mark.exists() and mark.read_bytes() == content:
        return False
    kept = set(there.sizes())
    new = {digest: name for name, digest in files.items() if digest not in kept}
    try:
        there.put(folder, list(new.values()), list(new))
    except StorageError:
        if _state(folder) == before:
            raise
        return False  # a file was gone before it was sent
    if _state(folder) != before:
        return False
    there.write(LIST, content)
    mark.write_bytes(content)
    there.remove(*sorted(kept - set(files.values()) - {LIST}))
    return True


def _restore(folder: Path, there: Shared) -> None:
    """Put the snapshot in the place of what the folder holds, unless it is what the folder was last kept as."""
    content, mark = there.read(LIST), folder / MARK
    if content is None or (mark.exists() and mark.read_bytes() == content):
        return
    try:
        files = {str(name): str(digest) for name, digest in json.loads(content).items()}
    except (ValueError, AttributeError):
        return
    fetched = folder / f".restored.{os.getpid()}"
    try:
        for name, digest in files.items():
            path = fetched / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not there.get(digest, path) or checksum(path) != digest:
                return  # half a snapshot is none
        for path in folder.iterdir():
            if path != fetched:
                remove(path)
        for path in fetched.iterdir():
            path.rename(folder / path.name)
        mark.write_bytes(content)
    finally:
        remove(fetched)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, by name."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if name != MARK):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found[str(path.relative_to(folder))] = stat.st_size, stat.st_mtime_ns
    return found
