"""`installed:NAME`: text that any machine able to run the package already has on disk.

Documents are named by package and version, never by their place on the machine, and come in a seeded order that is
the same for the same installation. The second half of the file extracts plain English from program documentation.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from email import message_from_string
from functools import cache, partial
from pathlib import Path

from heredity.text.sources import CorpusError, Document

NAMES = ("cpp-headers", "python-english", "python-packages", "python-stdlib")

_RULES = 2  # raised whenever the choice or the cleaning of files changes, so that no cached corpus is reused
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
# Text files that are not documentation, by the beginning of their names.
_NO_DOCUMENTATION = "license|licence|copying|notice|authors|requirements|top_level|entry_points|sources"

_Item = tuple[str, Callable[[], str]]  # path below the folder of packages, which determines the order; its text


def documents(name: str, seed: int) -> Iterator[Document]:
    """Documents of an installed source, in a seeded random order.

    Raises CorpusError for an unknown name, and where the packages it reads are not installed.
    """
    items = sorted(_items(name), key=lambda item: item[0])
    if not items:
        raise CorpusError(
            f"installed:{name}: this installation of Python has no such files; install torch (cpp-headers), use "
            f"another of {', '.join(NAMES)}, or use local:PATH"
        )
    random.Random(seed).shuffle(items)
    seen: set[str] = set()
    for path, read in items:
        text = read()
        if name == "python-english":  # libraries repeat much of their documentation
            fresh = dict.fromkeys(paragraph for paragraph in text.split("\n\n") if paragraph not in seen)
            seen.update(fresh)
            text = "\n\n".join(fresh)
        if len(text) >= _FEWEST_CHARACTERS:
            package, license = _owner(path.split("/")[0])
            yield Document(text, f"{package}:{path}", license)


def versions(name: str) -> str:
    """Everything that the content of an installed source depends on: versions of Python and of the packages read.

    Raises CorpusError for an unknown name.
    """
    _check(name)
    parts = [f"rules {_RULES}"]
    if name.startswith("python"):
        parts.append(f"{platform.python_implementation()} {platform.python_version()}")
    if name != "python-stdlib":
        wanted = _HEADER_PACKAGES if name == "cpp-headers" else _requirements()
        packages = _distributions().items()
        parts += sorted(f"{package.name} {package.version}" for name, package in packages if name in wanted)
    return "; ".join(parts)


def _check(name: str) -> None:
    if name not in NAMES:
        raise CorpusError(f"installed:{name}: unknown name; use one of {', '.join(NAMES)}")


def _items(name: str) -> list[_Item]:
    _check(name)
    stdlib = Path(sysconfig.get_path("stdlib"))
    if name == "python-stdlib":
        return _files(stdlib, (".py",), _STDLIB_SKIPPED, _source, "python/")
    if name == "python-packages":
        return _of_requirements((".py",), _source)
    if name == "python-english":
        try:  # the language reference that `help()` shows
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            topics = {}
        items = _files(stdlib, (".py",), _STDLIB_SKIPPED, _english, "python/")
        items += _of_requirements((".py", ".md", ".rst", ".txt", "/METADATA"), _english)
        return items + [(f"python/topics/{topic}", partial(prose, text)) for topic, text in topics.items()]
    folders = {package: folder for package in _HEADER_PACKAGES if (folder := _include_folder(package)) is not None}
    endings = (".h", ".hpp", ".cuh")
    headers = [_files(folder, endings, _HEADERS_SKIPPED, _source, f"{p}/include/") for p, folder in folders.items()]
    # Single files at the top belong to C libraries that torch passes on.
    return [item for items in headers for item in items if item[0].count("/") > 2]


def _files(
    folder: Path, endings: tuple[str, ...], skipped: frozenset[str], read: Callable[[str], str], prefix: str = ""
) -> list[_Item]:
    """Files below `folder` with one of the endings; `prefix` stands for the folder in the items' paths."""
    items, start = [], len(str(folder)) + 1
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in skipped and name[0] != "."]
        for name in names:
            path = f"{parent}/{name}"
            unwanted = "_sysconfigdata" if name.endswith(".py") else _NO_DOCUMENTATION
            if path.endswith(endings) and not re.match(unwanted, name, re.IGNORECASE):
                items.append((prefix + path[start:].replace(os.sep, "/"), partial(read, path)))
    return items


def _of_requirements(endings: tuple[str, ...], read: Callable[[str], str]) -> list[_Item]:
    """Files of the packages that this one requires: other packages would change the text whenever one is installed."""
    folders = [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    folders += [include.parent.parent for include in map(_include_folder, _HEADER_PACKAGES) if include is not None]
    wanted = _requirements()
    tops = {top for top, names in _providers().items() if any(_plain(name) in wanted for name in names)}

    @cache
    def belongs(top: str) -> bool:
        if top.endswith(".dist-info"):
            return _plain(top.removesuffix(".dist-info").rpartition("-")[0]) in wanted
        return top.removesuffix(".py") in tops

    folders = [folder for folder in dict.fromkeys(map(Path.resolve, folders)) if folder.is_dir()]
    items = [item for folder in folders for item in _files(folder, endings, _NEVER, read)]
    return [item for item in items if belongs(item[0].split("/")[0])]


@cache
def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """Installed packages by name, without those that another one carries in its own folder: it puts that on the path of
    the processes that it starts, as Ray does, and they would see other versions than their parent."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for package in importlib.metadata.distributions():
        carried = {"site-packages", "dist-packages"} & set(Path(str(package.locate_file(""))).resolve().parent.parts)
        if not carried:
            found.setdefault(_plain(package.name), package)
    return found


@cache
def _requirements() -> frozenset[str]:
    """Installed packages that this one requires, directly or through others, extras left out; all packages when this
    one is not installed itself."""
    installed = _distributions()
    if "heredity" not in installed:
        return frozenset(installed)
    waiting, needed = ["heredity"], set()
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


def _include_folder(package: str) -> Path | None:
    """Folder of C++ headers inside a package, found without importing it."""
    spec = importlib.util.find_spec(package)
    places: Iterable[str] = (spec.submodule_search_locations or ()) if spec else ()
    return next((Path(place, "include") for place in places if Path(place, "include").is_dir()), None)


_providers = cache(importlib.metadata.packages_distributions)


@cache
def _owner(top: str) -> tuple[str, str]:
    """Name with version, and license, of the package that a top-level folder or file belongs to."""
    if top == "python":
        return f"python-{platform.python_version()}", "PSF-2.0"
    name = top.removesuffix(".dist-info").rpartition("-")[0] if top.endswith(".dist-info") else top.removesuffix(".py")
    distribution = _distributions().get(_plain(name))
    if distribution is None:
        providers = [_distributions().get(_plain(one)) for one in _providers().get(name, ())]
        distribution = next((one for one in providers if one is not None), None)
    if distribution is None:
        return name, "unknown"
    header = message_from_string((distribution.read_text("METADATA") or "").partition("\n\n")[0])
    license = header["License-Expression"] or header["License"] or ""
    if not license or "\n" in license or len(license) > 120:  # no SPDX expression or short text
        classifiers = header.get_all("Classifier", [])
        license = " AND ".join(line.split(" :: ")[-1] for line in classifiers if line.startswith("License"))
    return f"{header['Name']}-{header['Version']}", license or "unknown"


def _source(path: str) -> str:
    """Content of a file, empty when it is huge, unreadable or not UTF-8: an installation's files are not the user's."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        return content.decode().replace("\r\n", "\n") if len(content) <= _MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _english(path: str) -> str:
    """Prose of a Python file's docstrings, of a text file, or of the description in a package's metadata."""
    text = _source(path)
    if path.endswith(".py"):
        text = "\n\n".join(docstrings(text))
    elif path.endswith("/METADATA"):
        text = text.partition("\n\n")[2]  # the description follows the header, as in a mail
    return prose(text)


# -- prose -------------------------------------------------------------------------------------------------------

# Text before a docstring: a line that ends in a colon, or nothing but comments since the beginning of the file.
_BELOW_COLON = re.compile(r"[^\n]*:[ \t]*(?:#[^\n]*)?\n[ \t]*([rRuU]?)")
_AT_THE_TOP = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*([rRuU]?)")
_QUOTES = '"""'
_BLANK = re.compile(r"\n[ \t]*\n")
_LABEL = re.compile(r"(?:[-*•+] +|\d+[.)] +|:\w+[^:\n]*:\s*|[\w*.`\[\]]+(?: *\([^)\n]*\))? *:\s+(?!:))")
_MARKUP = (
    ("`", re.compile(r":[\w:]+:`~?([^`<]+?)(?: *<[^>`]*>)?`"), r"\1"),
    ("](", re.compile(r"\[([^\]\n]+)\]\((?:[^()\s]|\([^()]*\))*\)"), r"\1"),
    ("`", re.compile(r"`+([^`<]+?)(?: *<[^>`]*>)?`+_{0,2}"), r"\1"),
    ("*", re.compile(r"(?<![\w*])(\*{1,2})(?=\w)([^*\n]+?)\1(?![\w*])"), r"\2"),
    ("  ", re.compile(r"\s+"), " "),
)
_NOT_PROSE = (">>>", "...", ".. ", "|", "+-", "+=", "#!", "$ ", "```", "@", "<", "![", "//", "Copyright", "SPDX")
_RARE_IN_PROSE = re.compile(r"[^A-Za-z ,.;:'\"()-]")
_COMMON_WORDS = (
    "the of to a an and in is are be for that this it as with on by or if not from when which will can has have was "
    "at you we they its into than then there these used one all any only may must should but do does no so more"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_FEWEST_WORDS = 8
_CODE_SIGNS = re.compile(r"[=<>{}\[\]\\|_^~%$#@]|\w\(|\.\w|::")


def docstrings(source: str) -> Iterator[str]:
    """Docstrings in triple double quotes of Python source text, in order, escapes resolved, indentation as written.

    Parsing with `ast` gives the same (a test compares) some twenty times slower: too slow for megabytes of prose.
    """
    start = source.find(_QUOTES)
    first = True
    while start >= 0:
        line = source.rfind("\n", 0, start)
        above = source.rfind("\n", 0, max(line, 0)) + 1
        before = (first and _AT_THE_TOP.fullmatch(source, 0, start)) or _BELOW_COLON.fullmatch(source, above, start)
        first = False
        stop = source.find(_QUOTES, start + 3)
        if before is None or stop < 0:
            start = stop
            continue
        body = source[start + 3 : stop]
        start = source.find(_QUOTES, stop + 3)
        if "\\" in body and before[1].lower() != "r":
            try:
                body = ast.literal_eval(_QUOTES + body + _QUOTES)
            except (SyntaxError, ValueError):
                continue
        yield body


def prose(text: str) -> str:
    """English paragraphs of `text`, unwrapped, markup removed, separated by blank lines; an empty string for none.

    Code, doctests, tables, headings, signatures and lists of names are left out.
    """
    blocks = (block for paragraph in _BLANK.split(text) for block in _blocks(paragraph))
    return "\n\n".join(filter(None, map(_sentence, blocks)))


def _blocks(paragraph: str) -> Iterator[str]:
    """Runs of lines that belong together: a new run starts at a smaller indent, a list mark or below a label."""
    block: list[str] = []
    indent = 0
    for line in paragraph.split("\n"):
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith(_NOT_PROSE):
            return
        margin = len(line) - len(line.lstrip())
        below_label = margin > indent and bool(block) and " : " in block[-1]
        if block and (margin < indent or below_label or _LABEL.match(stripped)):
            yield " ".join(block)
            block = []
        block.append(stripped)
        indent = margin
    if block:
        yield " ".join(block)


def _sentence(block: str) -> str | None:
    """The block as plain text when it reads as English, else `None`."""
    if block.count(" ") < _FEWEST_WORDS - 1 or block[-1] not in ".!?:)\"'":
        return None
    if label := _LABEL.match(block):
        block = block[label.end() :]
    if not block[:1].isupper():
        return None
    for mark, pattern, replacement in _MARKUP:
        if mark in block:
            block = pattern.sub(replacement, block)
    block = block.strip().removesuffix("::")
    words = block.lower().split(" ")
    if len(words) < _FEWEST_WORDS or sum(map(_COMMON.__contains__, words)) < 0.2 * len(words):
        return None
    rare = len(_RARE_IN_PROSE.findall(block))
    return block if rare <= 0.07 * len(block) and len(_CODE_SIGNS.findall(block)) <= 0.12 * len(words) else None
