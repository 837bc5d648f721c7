"""Documents of `local:PATH` (text files, JSON lines, Parquet) and `hub:NAME` (data sets of the Hugging Face hub).

Local files are read here and not through `datasets`, whose readers name neither file nor line of a malformed row and
keep copies in a cache folder. Every source streams: what `max_bytes` leaves out is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from heredity.study import CorpusConfig
from heredity.study.places import local_path

Split = Literal["train", "validation"]

_RECORD_SUFFIXES = (".jsonl", ".ndjson", ".zst", ".parquet")
_TEXT = (
    ".txt .text .md .markdown .rst .tex .org .adoc .log .csv .tsv .html .htm .xml .json .yaml .yml .toml .ini .cfg "
    ".py .pyi .pyx .lua .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .js .mjs .jsx .ts .tsx .svelte .css .go "
    ".rs .rb .php .pl .pm .r .jl .swift .m .mm .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .sql .cs "
    ".fs .dart .nim .zig .v .sv .vhd .f .f90 .pas .asm .s .proto .cmake .gradle .tcl .vim .nse"
)
_TEXT_SUFFIXES = frozenset(_TEXT.split())
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_SPLIT_NAME = re.compile(r"(train|validation)(?![a-z0-9])", re.IGNORECASE)

_SHUFFLED_CHARACTERS = 256 * 2**20
_SHUFFLED_ROWS = 10_000
_LINE_BYTES = 256 * 2**20  # a longer line is damage or a decompression bomb
_PARQUET_ROWS = 64  # few, since a row of some kilobytes on disk can be megabytes of text
_LONGEST_TEXT, _PIECE = 200_000, 100_000
_AT_REST = 2 * 10**9  # nanoseconds; file systems date changes to between 1 ns and 2 s


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the value, the place and the way out."""


class Document(NamedTuple):
    """One text of a corpus."""

    text: str
    source: str  # file, package or data set of the text
    license: str  # as stated by the source


class Preset(NamedTuple):
    """Place of a named corpus on the hub."""

    dataset: str
    subset: str | None = None  # configuration name, or data folder when it contains a slash
    column: str = "text"
    keep: Mapping[str, tuple[float, float]] = {}  # closed ranges of numeric columns; rows outside are left out
    license: str = "unknown"


# The ranges drop minified and generated files: the filters usual for The Stack.
_READABLE_CODE = {"avg_line_length": (0, 100), "max_line_length": (0, 1000), "alphanum_fraction": (0.25, 1)}
_STACK = Preset("bigcode/the-stack-dedup", None, "content", _READABLE_CODE, "permissive (The Stack)")
PRESETS = {
    "babylm": Preset("nilq/babylm-100M"),
    "stack-lua": _STACK._replace(subset="data/lua"),
    "stack-python": _STACK._replace(subset="data/python"),
    "tinystories": Preset("roneneldan/TinyStories", license="CDLA-Sharing-1.0"),
}


def local_documents(config: CorpusConfig, spec: str, seed: int, root: Path) -> Iterator[tuple[Document, Split | None]]:
    """Documents at a local path, each with the split that its file's name states.

    A folder is searched recursively, hidden files aside. If it holds record files (JSON lines, Parquet), only those
    are read, and if their names start with `train` and `validation` these are the splits (others, such as `test`,
    are left out). Otherwise every file with a known text suffix is a document, a long one several, cut at blank lines.
    The order is random, by `seed`, when `config.max_bytes` is set.
    Raises CorpusError: nothing to read, bytes that are not UTF-8, broken JSON, zstandard or Parquet, a missing column.
    """
    path = resolve(spec, root)
    folder, files = path if path.is_dir() else path.parent, _files(path)
    if not files:
        raise CorpusError(
            f"local:{spec}: {path} holds no text, JSON lines or Parquet file; name one file, or give files a suffix "
            f"such as .txt, .jsonl, .jsonl.zst or .parquet"
        )
    records = [file for file in files if _is_record(file)]
    named = {file: match[1].lower() for file in records if (match := _SPLIT_NAME.match(file.name))}
    splits = cast(dict[Path, Split], named if len(set(named.values())) == 2 else {})
    files = list(splits) or files
    mixed = config.max_bytes is not None
    if mixed and not records:
        random.Random(seed).shuffle(files)
    documents: Iterator[tuple[Document, Split | None]] = (
        (document, splits.get(file))
        for file in files
        for document in _documents(file, file.relative_to(folder).as_posix(), config)
    )
    return shuffled(documents, seed, _SHUFFLED_CHARACTERS) if mixed and records else documents


def check_local(config: CorpusConfig, spec: str, root: Path) -> None:
    """Read one document, so that a wrong column or a broken file is found before any work. Raises CorpusError."""
    for file in _files(resolve(spec, root))[:1]:
        next(_documents(file, file.name, config), None)


def local_digest(spec: str, root: Path) -> str:
    """SHA-256 over relative path, size and SHA-256 of the content of every file that `local_documents` may read."""
    path, total = resolve(spec, root), hashlib.sha256()
    folder = path if path.is_dir() else path.parent
    for file in _files(path):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0{file_sha256(file)}\n".encode())
    return total.hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 in hex of a file's content, computed once per process while size, inode and dates stay the same.

    Within two seconds of a change its date may not tell it from the next, and the content is read again.
    """
    stat = file.stat()
    state = (stat.st_size, stat.st_ino, stat.st_dev, stat.st_mtime_ns, stat.st_ctime_ns)
    at_rest = time.time_ns() - max(state[3:]) > _AT_REST
    return (_sha256 if at_rest else _sha256.__wrapped__)(file, state)


@cache
def _sha256(file: Path, _: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hub_preset(config: CorpusConfig, spec: str) -> Preset:
    """Data set, subset and column that `spec` and the settings of the corpus name; settings win over the preset's.

    Raises CorpusError for what is neither a preset nor an `owner/name`.
    """
    preset = PRESETS.get(spec, Preset(spec))
    if spec not in PRESETS and spec.count("/") != 1:
        raise CorpusError(f"hub:{spec}: unknown name; use one of {', '.join(PRESETS)} or hub:OWNER/NAME")
    return preset._replace(
        subset=config.subset or preset.subset,
        column=preset.column if config.column == "text" else config.column,
        license=config.license or preset.license,
    )


def hub_documents(config: CorpusConfig, spec: str, seed: int) -> Iterator[Document]:
    """Rows of the data set's `train` split, streamed; shuffled through a buffer when `config.max_bytes` is set.

    Raises CorpusError when the data set cannot be reached, or the column is missing or not text.
    """
    from datasets import load_dataset

    dataset, subset, column, keep, license = hub_preset(config, spec)
    name, folder = (None, subset) if subset and "/" in subset else (subset, None)
    options = {"name": name, "data_dir": folder, "split": "train", "revision": config.revision, "streaming": True}
    try:
        rows: Any = load_dataset(dataset, **options)
        if config.max_bytes is not None:
            rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLED_ROWS)
        for number, row in enumerate(rows):
            if not all(low <= row.get(key, low) <= high for key, (low, high) in keep.items()):
                continue
            document = _document(row, column, f"hub:{spec}, row {number}", dataset, license)
            if stated := row.get("max_stars_repo_licenses"):
                document = document._replace(license=" AND ".join(map(str, stated)))
            if repository := row.get("max_stars_repo_name"):
                document = document._replace(source=f"{dataset}/{repository}")
            yield document
    except CorpusError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorpusError(
            f"hub:{spec}: {dataset} cannot be read ({reason}); check name, subset, revision and network, accept "
            f"its terms and log in if it is gated, or use local:PATH"
        ) from error


def shuffled(
    documents: Iterable[tuple[Document, Split | None]], seed: int, capacity: int
) -> Iterator[tuple[Document, Split | None]]:
    """Yield everything in a seeded random order, holding at most about `capacity` characters at once.

    A source that fits into `capacity` is shuffled uniformly. Of a larger one, the order is random among the
    documents held: each newcomer takes the place of a random one, which is yielded.
    """
    rng = random.Random(seed)
    held: list[tuple[Document, Split | None]] = []
    size = 0
    for newcomer in documents:
        held.append(newcomer)
        size += len(newcomer[0].text)
        while size > capacity:
            chosen = rng.randrange(len(held))
            held[chosen], held[-1] = held[-1], held[chosen]
            size -= len(held[-1][0].text)
            yield held.pop()
    rng.shuffle(held)
    yield from held


def resolve(spec: str, root: Path) -> Path:
    """Absolute path of `local:spec` (see `local_path`). Raises CorpusError where there is nothing."""
    try:
        path = local_path(spec, root)
    except ValueError as error:
        raise CorpusError(f"local:{spec}: {error}") from None
    if not path.exists():
        raise CorpusError(
            f"local:{spec}: no file or folder {path}; correct the path (relative ones start at the study file's folder)"
        )
    return path


def _is_record(file: Path) -> bool:
    return file.name.lower().endswith(_RECORD_SUFFIXES)


def _files(path: Path) -> list[Path]:
    """Files to read below `path`, in the order of their names."""
    if path.is_file():
        return [path]
    everything: list[Path] = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if name[0] != "." and name not in _SKIPPED_FOLDERS]
        everything += [Path(folder, name) for name in names if name[0] != "."]
    records = list(filter(_is_record, everything))
    return sorted(records or [file for file in everything if file.suffix.lower() in _TEXT_SUFFIXES])


def _documents(file: Path, name: str, config: CorpusConfig) -> Iterator[Document]:
    """Documents of one file; an error of the file's content or of the disk names the file."""
    if _is_record(file):
        for place, record in records(file, (config.column,), ("source", "licence", "license")):
            yield _document(record, config.column, f"{file}, {place}", name, config.license)
    else:
        yield from (Document(piece, name, config.license or "unknown") for piece in _pieces(read_text(file)))


def read_text(file: Path) -> str:
    """A text file. Raises CorpusError for bytes that are not UTF-8, and for what cannot be read."""
    with faults_of(file):
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def records(
    file: Path, columns: Sequence[str] = (), others: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file or objects of JSON lines, each with its place in the file.

    columns, others: needed and optional ones of Parquet, without which all are read. Raises CorpusError.
    """
    with faults_of(file):
        yield from _parquet_rows(file, columns, others) if file.suffix.lower() == ".parquet" else _json_lines(file)


@contextlib.contextmanager
def faults_of(file: Path) -> Iterator[None]:
    """An error of the file's content or of the disk becomes a CorpusError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) and not _is_record(file):
            byte = f"byte {error.start} (0x{error.object[error.start]:02x})"
            reason = f"{byte} is not UTF-8; save the file as UTF-8 or move it out of the corpus"
        elif isinstance(error, OSError) and error.strerror and error.errno:
            reason = f"cannot be read ({error.strerror}); check the file and its permissions"
        else:
            broken = "zstandard" if file.suffix.lower() == ".zst" else "Parquet"
            reason = f"broken {broken} ({str(error).splitlines()[0]}); fetch or write the file again"
        raise CorpusError(f"{file}: {reason}") from error


def _pieces(text: str) -> Iterator[str]:
    """`text` itself, or, when it is very long, pieces of about 100,000 characters that end at blank lines."""
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        blank = text.find("\n\n", start + _PIECE, start + _LONGEST_TEXT)
        stop = start + _PIECE if blank < 0 else blank + 2
        yield text[start:stop]
        start = stop
    yield text[start:]


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a plain or zstandard file; a compressed one that was cut short is an error, not an early end."""
    compression = "zstd" if file.suffix.lower() == ".zst" else None
    with io.BufferedReader(pa.input_stream(str(file), compression=compression), 2**20) as lines:
        number = 0
        while line := lines.readline(_LINE_BYTES + 1):
            number += 1
            place = f"{file}, line {number}"
            if len(line) > _LINE_BYTES:
                raise CorpusError(f"{place}: longer than {_LINE_BYTES:,} bytes; split that record")
            if not line.strip():
                continue
            try:
                record = json.loads(line.removesuffix(b"\n").decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                reason = f"byte {error.start} of the line is not UTF-8; save the file as UTF-8"
                raise CorpusError(f"{place}: {reason}") from None
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise CorpusError(f"{place}: broken JSON ({reason}); repair or delete that line") from None
            if not isinstance(record, dict):
                raise CorpusError(f'{place}: {type(record).__name__} instead of an object such as {{"text": "..."}}')
            yield f"line {number}", record


def _parquet_rows(file: Path, needed: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with pq.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        if missing := [column for column in needed if column not in columns]:
            raise _no_column(missing[0], columns, str(file))
        wanted = [name for name in (*needed, *others) if name in columns] or None
        batches = table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"row {row}", record) for row, record in enumerate(rows, start=1))


def _document(record: Mapping[str, Any], column: str, place: str, source: str, license: str | None) -> Document:
    """Document of a row or JSON object; its `source` and `license` (or `licence`) win over those given."""
    if column not in record:
        raise _no_column(column, record, place)
    text = record[column]
    if not isinstance(text, str):
        raise CorpusError(
            f'{place}: column "{column}" is {type(text).__name__}, not text; set column = "..." in the corpus or '
            f"drop that record"
        )
    stated = [(record.get("source"), source), (record.get("licence") or record.get("license"), license or "unknown")]
    document = Document(text, *(own if isinstance(own, str) and own else given for own, given in stated))
    try:
        for value in document:
            value.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{place}: character {error.start} is half a surrogate pair; repair that record") from None
    return document


def _no_column(column: str, columns: Iterable[object], place: str) -> CorpusError:
    names = ", ".join(map(str, columns)) or "none"
    return CorpusError(f'{place}: no column "{column}" (it has {names}); set column = "..." in the corpus')
