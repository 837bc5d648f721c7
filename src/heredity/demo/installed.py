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
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from email import message_from_string
from email.message import Message
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from heredity.demo.prose import docstrings, prose
from heredity.text.documents import CorpusError, Document, Found

NAMES = ("cpp-headers", "python-english", "python-packages", "python-stdlib")

_RULES = 2  # raised whenever the choice or the cleaning of files changes, so that cached corpora are made anew
_FEWEST_CHARACTERS = 200
_MOST_BYTES = 300_000  # beyond this, source files are tables or generated

_NEVER = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "licenses", "heredity"}
    | {"_vendor", "vendor", "_vendored", "vendored"}
)
_STDLIB_SKIPPED = _NEVER | {"encodings", "pydoc_data", "ensurepip", "lib-dynload"}
# Generated operator declarations, and C code bases that torch only passes on.
_HEADERS_SKIPPED = _NEVER | {"ops", "google", "oneapi", "kineto", "sleef", "fp16", "psimd"}
_HEADER_PACKAGES = ("torch", "pyarrow")
# Text files that are no documentation, by how their names start.
_NO_PROSE = (
    "license",
    "licence",
    "copying",
    "notice",
    "authors",
    "requirements",
    "top_level",
    "entry_points",
    "sources",
)


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
            f"installed:{name}: this installation of Python has no such files; install torch (cpp-headers), use "
            f"another of {', '.join(NAMES)}, or use local:PATH"
        )
    random.Random(seed).shuffle(items)
    owner = cache(_owner)
    seen: set[str] = set()
    for item in items:
        text = item.read()
        if name == "python-english":
            text = _unseen(text, seen)
        if len(text) >= _FEWEST_CHARACTERS:
            package, licence = owner(item.path.split("/")[0])
            yield Found(Document(text, f"{package}:{item.path}", licence), None)


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
        wanted = _HEADER_PACKAGES if name == "cpp-headers" else tuple(_requirements())
        installed = {f"{found.name} {found.version}" for found in importlib.metadata.distributions()}
        parts += sorted(entry for entry in installed if _plain(entry.split()[0]) in wanted)
    return "; ".join(parts)


def _items(name: str) -> list[_Item]:
    if name == "python-stdlib":
        return _files(_stdlib(), (".py",), _STDLIB_SKIPPED, _source, "python/")
    if name == "python-packages":
        return _of_requirements(
            item for folder in _package_folders() for item in _files(folder, (".py",), _NEVER, _source)
        )
    if name == "python-english":
        items = _files(_stdlib(), (".py",), _STDLIB_SKIPPED, _docstring_prose, "python/")
        endings = (".py", ".md", ".rst", ".txt", "/METADATA")
        parts = (_files(folder, endings, _NEVER, _any_prose) for folder in _package_folders())
        return items + _of_requirements(item for part in parts for item in part) + _topics()
    if name == "cpp-headers":
        includes = [(package, _include_folder(package)) for package in _HEADER_PACKAGES]
        return [
            item
            for package, include in includes
            if include is not None
            for item in _files(include, (".h", ".hpp", ".cuh"), _HEADERS_SKIPPED, _source, f"{package}/include/")
            if item.path.count("/") > 2  # single files at the top belong to C libraries that torch passes on
        ]
    raise CorpusError(f"installed:{name}: unknown name; use one of {', '.join(NAMES)}")


def _files(
    folder: Path, endings: tuple[str, ...], skipped: frozenset[str], read: Callable[[str], str], prefix: str = ""
) -> list[_Item]:
    """Files below `folder` with one of the endings; `prefix` is what stands for the folder in the items' paths."""
    items = []
    start = len(str(folder)) + 1
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in skipped and name[0] != "."]
        for name in names:
            path = f"{parent}/{name}"
            unwanted = name.startswith("_sysconfigdata") if name.endswith(".py") else name.lower().startswith(_NO_PROSE)
            if path.endswith(endings) and not unwanted:
                items.append(_Item(prefix + path[start:].replace(os.sep, "/"), partial(read, path)))
    return items


def _topics() -> list[_Item]:
    """The language reference that `help()` shows."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [_Item(f"python/topics/{topic}", partial(prose, text)) for topic, text in topics.items()]


def _any_prose(path: str) -> str:
    return _docstring_prose(path) if path.endswith(".py") else _readme_prose(path)


def _docstring_prose(path: str) -> str:
    return prose("\n\n".join(docstrings(_source(path))))


def _readme_prose(path: str) -> str:
    text = _source(path)
    if path.endswith("/METADATA"):
        text = text.partition("\n\n")[2]  # the description follows the header, as in a mail
    return prose(text)


def _unseen(text: str, seen: set[str]) -> str:
    """`text` without the paragraphs that an earlier document had; libraries repeat much of their documentation."""
    fresh = [paragraph for paragraph in text.split("\n\n") if paragraph not in seen]
    seen.update(fresh)
    return "\n\n".join(dict.fromkeys(fresh))


def _source(path: str) -> str:
    """Content of a file, empty when it is huge, unreadable or no UTF-8: an installation's files are not the user's."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        return content.decode().replace("\r\n", "\n") if len(content) <= _MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _of_requirements(items: Iterable[_Item]) -> list[_Item]:
    """Items of the packages that this one is installed with. Whatever else is on the machine would change the text
    whenever somebody installs something."""
    wanted = _requirements()
    tops = {top for top, names in _providers().items() if any(_plain(name) in wanted for name in names)}

    @cache
    def kept(top: str) -> bool:
        if top.endswith(".dist-info"):
            return _plain(top.removesuffix(".dist-info").rpartition("-")[0]) in wanted
        return top.removesuffix(".py") in tops

    return [item for item in items if kept(item.path.split("/")[0])]


@cache
def _requirements() -> frozenset[str]:
    """Installed packages that this one requires, directly or through others, extras left out; all packages when this
    one is not installed itself."""
    installed = {_plain(found.name): found for found in importlib.metadata.distributions()}
    waiting, needed = ["heredity"], set()
    if waiting[0] not in installed:
        return frozenset(installed)
    while waiting:
        for requirement in installed[waiting.pop()].requires or ():
            name = _plain(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
            if "extra ==" not in requirement and name in installed and name not in needed:
                needed.add(name)
                waiting.append(name)
    return frozenset(needed)


def _plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


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


def _owner(top: str) -> tuple[str, str]:
    """Name with version, and licence, of the package that a top-level folder or file belongs to."""
    if top == "python":
        return f"python-{platform.python_version()}", "PSF-2.0"
    name = top.removesuffix(".py").removesuffix(".dist-info")
    if name != top and not top.endswith(".py"):
        name = name.rpartition("-")[0]
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        providers = _providers().get(name)
        if not providers:
            return name, "unknown"
        distribution = importlib.metadata.distribution(providers[0])
    header = message_from_string((distribution.read_text("METADATA") or "").partition("\n\n")[0])
    return f"{header['Name']}-{header['Version']}", _licence(header)


@cache
def _providers() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _licence(header: Message) -> str:
    """Licence as a package's metadata state it: an SPDX expression, a short text or a classifier."""
    stated = header["License-Expression"] or header["License"] or ""
    if stated and "\n" not in stated and len(stated) <= 120:
        return stated
    classifiers = [entry.split(" :: ")[-1] for entry in header.get_all("Classifier", []) if entry.startswith("License")]
    return " AND ".join(classifiers) or "unknown"
