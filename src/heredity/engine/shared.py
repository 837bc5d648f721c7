"""Results on storage that several machines share: any that fsspec knows, such as `s3://bucket/prefix`.

Machines read and write a folder of their own, a cache; here is what lies behind it. Storage has no renames: whoever
writes sends files first and what names them last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from heredity.errors import install, reason

ORIGIN = ".origin"
"""File in a cache folder: the URL that it is a cache of."""
CACHE = "HEREDITY_CACHE"
"""Environment variable: folder of the caches; by default `heredity` in the user's cache folder."""
_LOCK, _FREE_AFTER, _RENEWED = ".lock", 300.0, 60.0  # seconds: a lock that nobody renews is free after the former
# A request that gets no answer or an error of the server is asked again, in the storage's own client.
_S3 = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 4, "mode": "standard"}}}
_TRIES = 3  # of s3fs around those of its client, for connections that break


class StorageError(ValueError):
    """Shared storage refused or did not answer; the message names the URL, the reason and the way out."""


class Shared:
    """A prefix on shared storage. Every method raises StorageError when the storage fails, after bounded retries."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __reduce__(self) -> tuple[type[Shared], tuple[str]]:
        return Shared, (self.url,)

    def __truediv__(self, name: str) -> Shared:
        return Shared(f"{self.url}/{name}")

    def read(self, name: str) -> bytes | None:
        """Content of a file; None where there is none."""
        with self._asked(name), contextlib.suppress(FileNotFoundError):
            return self._system.cat_file(self._path(name))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in the place of one that is there."""
        with self._asked(name):
            self._system.pipe_file(self._path(name), content)

    def put(self, folder: Path, names: Sequence[str], to: Sequence[str] | None = None) -> None:
        """Send files of a folder, in no order; to: their names there, by default the same."""
        with self._asked(""):
            for name, other in zip(names, to or names, strict=True):
                self._system.put_file(str(folder / name), self._path(other))

    def get(self, name: str, path: Path) -> bool:
        """Fetch a file; False where there is none."""
        with self._asked(name):
            try:
                self._system.get_file(self._path(name), str(path))
            except FileNotFoundError:
                return False
        return True

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the prefix, by name."""
        root = self._path("")
        with self._asked(""), contextlib.suppress(FileNotFoundError):
            self._system.invalidate_cache()
            found = self._system.find(root, detail=True)
            return {path.strip("/").removeprefix(root.strip("/") + "/"): one["size"] for path, one in found.items()}
        return {}

    def sha256(self, name: str) -> str:
        """Checksum of a file, read from the storage. FileNotFoundError where there is none."""
        with self._asked(name), self._system.open(self._path(name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self, *names: str) -> None:
        """Delete files, in this order; one that is not there is none to delete."""
        for name in names:
            with self._asked(name), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the prefix for one writer, on whatever machine; StorageError where another holds it.

        The holder renews the lock every minute. One that was killed holds it for five minutes, or until a process on
        the same machine asks.
        """
        mine = {"host": socket.gethostname(), "process": os.getpid()}
        held, ended = f"{self.url} is being written by process", threading.Event()
        if not self._created(mine | {"until": time.time() + _FREE_AFTER}):
            if (whose := self._holder(mine["host"])) is not None:
                raise StorageError(f"{held} {whose}; wait for it, or choose another place with --runs")
            self.remove(_LOCK)
            if not self._created(mine | {"until": time.time() + _FREE_AFTER}):
                raise StorageError(f"{held} that began just now; wait for it, or choose another place with --runs")

        def renew() -> None:
            while not ended.wait(_RENEWED):
                with contextlib.suppress(StorageError):
                    self.write(_LOCK, json.dumps(mine | {"until": time.time() + _FREE_AFTER}).encode())

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(StorageError):
                self.remove(_LOCK)

    def _holder(self, host: str) -> str | None:
        """Who holds the lock; None where nobody does any more."""
        content = self.read(_LOCK) or b"{}"
        try:
            other = json.loads(content)
            process, where, until = int(other["process"]), str(other["host"]), float(other["until"])
        except (ValueError, LookupError, TypeError):
            return None
        gone = until < time.time() or (where == host and not alive(process))
        return None if gone else f"{process} on {where}"

    def _created(self, value: dict[str, Any]) -> bool:
        """Write the lock if there is none."""
        with self._asked(_LOCK):
            try:
                self._system.pipe_file(self._path(_LOCK), json.dumps(value).encode(), mode="create")
            except FileExistsError:
                return False
            except OSError as error:  # what S3 answers where the file is there
                if error.errno == errno.EINVAL:
                    return False
                raise
        return True

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}" if name else self._place

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _place(self) -> str:
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the prefix under its own name."""
        from fsspec.core import url_to_fs

        scheme = self.url.partition("://")[0]
        s3 = scheme in ("s3", "s3a")
        try:
            system, path = url_to_fs(self.url, **({**_S3, "use_listings_cache": False} if s3 else {}))
        except ImportError:
            way_out = install("s3") if s3 else f"install the package of fsspec that reads {scheme}://"
            raise StorageError(f"{self.url}: reading it needs a package that is not installed; {way_out}") from None
        except ValueError as error:
            raise StorageError(f"{self.url}: is no storage that is known ({error}); give s3://bucket/prefix") from None
        if s3:
            system.retries = _TRIES
        return system, path.rstrip("/")

    @contextlib.contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """One line for whatever the storage answers."""
        _ = self._opened
        start = time.monotonic()
        try:
            yield
        except (FileNotFoundError, FileExistsError, StorageError):
            raise
        except Exception as error:
            place = f"{self.url}/{name}" if name else self.url
            tried = f"tried for {time.monotonic() - start:.0f} s"
            raise StorageError(
                f"{place}: the storage fails ({reason(error)}; {tried}); see to the storage, its endpoint and "
                "credentials; the same command goes on from here"
            ) from error


def place(runs: str | Path) -> Path:
    """The folder on this machine for results at a path or URL; for a URL, the folder that caches it."""
    text = str(runs)
    if "://" not in text:
        return Path(runs)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    url = text.rstrip("/")
    _ = Shared(url)._opened  # what is no storage is refused before anything is made
    caches = Path(os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "heredity")
    name = re.sub(r"[^\w.-]+", "-", url)[-60:].strip("-")
    return cache_of(url, caches.expanduser() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}")


def shown(runs: Path) -> str:
    """What `place` was given for a folder of results."""
    try:
        return (runs / ORIGIN).read_text(encoding="utf-8")
    except OSError:
        return str(runs)


def cache_of(url: str, folder: Path) -> Path:
    """Make a folder the cache of a URL."""
    origin = folder / ORIGIN
    if not origin.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{ORIGIN}.{os.getpid()}"
        partial.write_text(url, encoding="utf-8")
        partial.replace(origin)
    return folder


def behind(root: Path) -> Shared | None:
    """The shared storage that a study's folder is a cache of; None for a plain folder."""
    try:
        return Shared((root.parent / ORIGIN).read_text(encoding="utf-8")) / root.name
    except OSError:
        return None


def alive(process: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
