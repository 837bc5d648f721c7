"""`installed:NAME`: text that any machine able to run the package already has on disk.

Documents are named by package and version, never by their place on the machine, and come in a seeded order that is
the same for the same installation.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from heredity.data.documents import CorpusError, Document, Found
from heredity.data.prose import docstrings, prose

NAMES = ("cpp-headers", "python-english", "python-packages", "python-stdlib")

_RULES = 1  # raised whenever the choice or the cleaning of files changes, so that cached corpora are made anew
_FEWEST_CHARACTERS = 200
_MOST_BYTES = 300_000  # beyond this, source files are tables or generated

_NEVER = frozenset(
    "__pycache__ site-packages dist-packages test tests testing idle_test _vendor vendor _vendored vendored heredity "
    "licenses".split()
)
_STDLIB_SKIPPED = _NEVER | {"encodings", "pydoc_data", "ensurepip", "lib-dynload"}
# Generated operator declarations, and C code bases that torch only passes on.
_HEADERS_SKIPPED = _NEVER | {"ops", "google", "oneapi", "kineto", "sleef", "fp16", "psimd"}
_HEADER_PACKAGES = ("torch", "pyarrow")
_NO_PROSE_FILES = ("license", "licence", "copying", "notice", "authors", "requirements", "top_level", "entry_points",
                   "sources", "record", "thirdparty", "third_party", "_sysconfigdata")  # fmt: skip


class _Item(NamedTuple):
    """One candidate: read only when its turn comes."""

    path: str
    """Relative to the folder of packages; what the order is made from."""
    read: Callable[[], str]


def found(name: str, seed: int) -> Iterator[Found]:
    """Documents of an installed source, in a seeded random order.

    Raises:
        CorpusError: unknown name, or the packages it reads are not installed.
    """
    items = sorted(_items(name), key=lambda item: item.path)
    if not items:
        raise CorpusError(
            f"installed:{name}: this installation of Python has no such files; install torch (cpp-headers), use another "
            f"of {', '.join(NAMES)}, or use local:PATH"
        )
    random.Random(seed).shuffle(items)
    owners = _owners()
    seen: set[str] = set()
    for item in items:
        text = item.read()
        if name == "python-english":
            text = _unseen(text, seen)
        if len(text) >= _FEWEST_CHARACTERS:
            package, licence = owners.get(item.path.split("/")[0].removesuffix(".py"), (None, "unknown"))
            yield Found(Document(text, f"{package}:{item.path}" if package else item.path, licence), None)


def versions(name: str) -> str:
    """What the content of an installed source depends on: versions of Python and of the packages it reads.

    Raises:
        CorpusError: unknown name.
    """
    if name not in NAMES:
        raise CorpusError(f"installed:{name}: unknown name; use one of {', '.join(NAMES)}")
    parts = [f"rules {_RULES}"]
    if name.startswith("python"):
        parts.append(f"{platform.python_implementation()} {platform.python_version()}")
    if name != "python-stdlib":
        wanted = None if name.startswith("python") else _HEADER_PACKAGES
        installed = {f"{found.name} {found.version}" for found in importlib.metadata.distributions()}
        parts += sorted(entry for entry in installed if wanted is None or entry.split()[0] in wanted)
    return "; ".join(parts)


def _items(name: str) -> list[_Item]:
    if name == "python-stdlib":
        return _python_files(_stdlib(), _STDLIB_SKIPPED, "python/")
    if name == "python-packages":
        return [item for folder in _package_folders() for item in _python_files(folder, _NEVER)]
    if name == "python-english":
        return _english_items()
    if name == "cpp-headers":
        return [
            _Item(path.relative_to(include.parent.parent).as_posix(), partial(_source, path))
            for include in map(_include_folder, _HEADER_PACKAGES)
            if include is not None
            for path in _walk(include, (".h", ".hpp", ".cuh"), _HEADERS_SKIPPED)
            if path.parent != include
        ]
    raise CorpusError(f"installed:{name}: unknown name; use one of {', '.join(NAMES)}")


def _python_files(folder: Path, skipped: frozenset[str], prefix: str = "") -> list[_Item]:
    return [
        _Item(prefix + path.relative_to(folder).as_posix(), partial(_source, path))
        for path in _walk(folder, (".py",), skipped)
    ]


def _english_items() -> list[_Item]:
    items = [item._replace(read=partial(_docstring_prose, item.read)) for item in _items("python-stdlib")]
    items += [item._replace(read=partial(_docstring_prose, item.read)) for item in _items("python-packages")]
    for folder in _package_folders():
        for path in _walk(folder, (".md", ".rst", ".txt", "/METADATA"), _NEVER):
            items.append(_Item(path.relative_to(folder).as_posix(), partial(_readme_prose, path)))
    return items + _topics()


def _topics() -> list[_Item]:
    """The language reference that `help()` shows."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [_Item(f"python/topics/{topic}", partial(prose, text)) for topic, text in topics.items()]


def _docstring_prose(read: Callable[[], str]) -> str:
    return prose("\n\n".join(docstrings(read())))


def _readme_prose(path: Path) -> str:
    text = _source(path)
    if path.name == "METADATA":
        text = text.partition("\n\n")[2]  # the description follows the header, as in a mail
    return prose(text)


def _unseen(text: str, seen: set[str]) -> str:
    """`text` without the paragraphs that an earlier document had; libraries repeat much of their documentation."""
    fresh = [paragraph for paragraph in text.split("\n\n") if paragraph not in seen]
    seen.update(fresh)
    return "\n\n".join(dict.fromkeys(fresh))


def _source(path: Path) -> str:
    """Content of a file, empty when it is huge, unreadable or no UTF-8: an installation's files are not the user's."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        return content.decode().replace("\r\n", "\n") if len(content) <= _MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _walk(folder: Path, endings: tuple[str, ...], skipped: frozenset[str]) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in skipped and name[0] != "."]
        for name in names:
            if f"/{name}".endswith(endings) and not name.lower().startswith(_NO_PROSE_FILES):
                yield Path(parent, name)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _package_folders() -> list[Path]:
    """Folders that packages are installed in."""
    folders = [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    folders += [include.parent.parent for include in map(_include_folder, _HEADER_PACKAGES) if include is not None]
    return [folder for folder in dict.fromkeys(map(Path.resolve, folders)) if folder.is_dir()]


def _include_folder(package: str) -> Path | None:
    """Folder of C++ headers inside a package, found without importing it."""
    spec = importlib.util.find_spec(package)
    places: Iterable[str] = (spec.submodule_search_locations or ()) if spec else ()
    return next((Path(place, "include") for place in places if Path(place, "include").is_dir()), None)


def _owners() -> dict[str, tuple[str, str]]:
    """Package name with version, and licence, for every top-level folder, module and `.dist-info` folder."""
    owners = {"python": (f"python-{platform.python_version()}", "PSF-2.0")}
    stated: dict[str, tuple[str, str]] = {}
    for distribution in importlib.metadata.distributions():
        owner = f"{distribution.name}-{distribution.version}", _licence(distribution)
        stated[distribution.name] = owner
        folder = f"{distribution.name.replace('-', '_')}-{distribution.version}.dist-info"
        owners |= {folder: owner, folder.lower(): owner}
    for top, names in importlib.metadata.packages_distributions().items():
        owners[top] = stated.get(names[0], (names[0], "unknown"))
    return owners


def _licence(distribution: importlib.metadata.Distribution) -> str:
    """Licence as the package's metadata state it: an SPDX expression, a short text or a classifier."""
    header = distribution.metadata
    stated = header.get("License-Expression") or header.get("License") or ""
    if stated and "\n" not in stated and len(stated) <= 60:
        return stated
    classifiers = [
        entry.split(" :: ")[-1] for entry in header.get_all("Classifier") or [] if entry.startswith("License")
    ]
    return " AND ".join(classifiers) or "unknown"
