"""`local:PATH`: text files, JSON lines and Parquet, single files or whole folders."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from heredity.study import CorpusConfig
from heredity.text.documents import CorpusError, Document, Found, Split, shuffled

RECORD_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.zst", ".ndjson.zst", ".zst", ".parquet")
_TEXT = (
    ".txt .text .md .markdown .rst .tex .org .adoc .log .csv .tsv .html .htm .xml .json .yaml .yml .toml .ini .cfg "
    ".py .pyi .pyx .lua .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .js .mjs .jsx .ts .tsx .svelte .css .go "
    ".rs .rb .php .pl .pm .r .jl .swift .m .mm .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .sql .cs "
    ".fs .dart .nim .zig .v .sv .vhd .f .f90 .pas .asm .s .proto .cmake .gradle .tcl .vim .nse"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_DEFAULTS = {"HEREDITY_DATA": "../shared/data"}
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_OWN_SPLIT = re.compile(r"(train|validation)(?![a-z0-9])", re.IGNORECASE)
_HELD_CHARACTERS = 256 * 2**20
_READ_BYTES = 2**20
_LONGEST_TEXT = 200_000
_PIECE = 100_000


def resolve(spec: str, root: Path) -> Path:
    """Absolute path that `spec` (the part after `local:`) means.

    `$NAME` and `${NAME}` come from the environment, `~` is the home folder, relative paths start at `root`.
    `HEREDITY_DATA` alone has a default, `../shared/data` below the working directory.

    Raises:
        CorpusError: an environment variable is not set, or nothing exists at the path.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if os.environ.get(name):
            return os.environ[name]
        if name in _DEFAULTS:
            return str(Path(_DEFAULTS[name]).absolute())
        raise CorpusError(
            f"local:{spec}: environment variable {name} is not set; export {name}=FOLDER or write the path out"
        )

    path = (root / Path(_VARIABLE.sub(value, spec)).expanduser()).resolve()
    if not path.exists():
        raise CorpusError(
            f"local:{spec}: no file or folder {path}; correct the path (relative ones start at the study file's folder)"
        )
    return path


def found(config: CorpusConfig, spec: str, seed: int, root: Path) -> Iterator[Found]:
    """Documents at a local path; a seeded random order when `config.max_bytes` cuts the corpus short.

    A folder is searched recursively, hidden files aside. If it holds record files (JSON lines, Parquet), only those
    are read, and if their names start with `train` and `validation` these are the splits (others, such as `test`,
    are left out). Otherwise every file with a known text suffix is a document; a file of more than 200,000
    characters is cut at blank lines into several.

    Raises:
        CorpusError: nothing to read, bytes that are no UTF-8, broken JSON, zstandard or Parquet, a missing column.
    """
    path = resolve(spec, root)
    files = _files(path)
    if not files:
        raise CorpusError(
            f"local:{spec}: {path} holds no text, JSON lines or Parquet file; name one file, or give files a suffix "
            f"such as .txt, .jsonl, .jsonl.zst or .parquet"
        )
    folder = path if path.is_dir() else path.parent
    splits: dict[Path, Split | None] = {file: _own_split(file) for file in files}
    if set(splits.values()) >= {"train", "validation"} and all(map(_is_record, files)):
        files = [file for file in files if splits[file]]
    else:
        splits = dict.fromkeys(files, None)
    if config.max_bytes is None:
        yield from _read(files, splits, folder, config)
    elif any(map(_is_record, files)):
        yield from shuffled(_read(files, splits, folder, config), seed, _HELD_CHARACTERS)
    else:
        random.Random(seed).shuffle(files)
        yield from _read(files, splits, folder, config)


def content_hash(spec: str, root: Path) -> str:
    """SHA-256 over relative path, size and SHA-256 of the content of every file that `found` may read."""
    path = resolve(spec, root)
    folder = path if path.is_dir() else path.parent
    total = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0{digest}\n".encode())
    return total.hexdigest()


def _files(path: Path) -> list[Path]:
    """Files to read below `path`, in the order of their names."""
    if path.is_file():
        return [path]
    everything: list[Path] = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name not in _SKIPPED_FOLDERS)
        everything += [Path(folder, name) for name in names if name[0] != "."]
    everything.sort()
    records = [file for file in everything if _is_record(file)]
    return records or [file for file in everything if file.suffix.lower() in TEXT_SUFFIXES]


def _is_record(file: Path) -> bool:
    return file.name.lower().endswith(RECORD_SUFFIXES)


def _own_split(file: Path) -> Split | None:
    match = _OWN_SPLIT.match(file.name)
    if match is None:
        return None
    return "train" if match[1].lower() == "train" else "validation"


def _read(
    files: Iterable[Path], splits: Mapping[Path, Split | None], folder: Path, config: CorpusConfig
) -> Iterator[Found]:
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() == ".parquet":
            documents = _parquet(file, name, config)
        elif _is_record(file):
            documents = _json_lines(file, name, config)
        else:
            licence = config.licence or "unknown"
            documents = (Document(text, name, licence) for text in _pieces(_text(file)))
        for document in documents:
            yield Found(document, splits[file])


def _text(file: Path) -> str:
    """Content of a text file, without a byte order mark, lines ended by a line feed."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file}: byte {error.start} (0x{error.object[error.start]:02x}) is no UTF-8; save the file as UTF-8 or "
            f"move it out of the corpus"
        ) from None
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return text.replace("\r\n", "\n")


def _pieces(text: str) -> Iterator[str]:
    """`text` itself, or, when it is very long, pieces of about 100,000 characters that end at blank lines."""
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        blank = text.find("\n\n", start + _PIECE, start + _LONGEST_TEXT)
        stop = start + _PIECE if blank < 0 else blank + 2
        yield text[start:stop]
        start = stop
    yield text[start:]


def _json_lines(file: Path, name: str, config: CorpusConfig) -> Iterator[Document]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise CorpusError(f"{place}: byte {error.start} of the line is no UTF-8; save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{place}: broken JSON ({error.msg}, column {error.colno}); repair or delete that line"
            ) from None
        if not isinstance(record, dict):
            raise CorpusError(f'{place}: {type(record).__name__} instead of an object such as {{"text": "..."}}')
        yield document_of(record, config.column, place, name, config.licence)


def _parquet(file: Path, name: str, config: CorpusConfig) -> Iterator[Document]:
    try:
        table = pq.ParquetFile(file)
        columns = table.schema_arrow.names
        if config.column not in columns:
            document_of(dict.fromkeys(columns), config.column, str(file), name, config.licence)
        wanted = [column for column in (config.column, "source", "licence", "license") if column in columns]
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            for record in batch.to_pylist():
                row += 1
                yield document_of(record, config.column, f"{file}, row {row}", name, config.licence)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{file}: broken Parquet ({reason}); fetch or write the file again") from error


def document_of(record: Mapping[str, object], column: str, place: str, source: str, licence: str | None) -> Document:
    """Document in a row or JSON object; its own `source` and `licence` (or `license`) win over those given.

    Raises:
        CorpusError: the column is missing, is no text, or holds half a surrogate pair.
    """
    if column not in record:
        names = ", ".join(map(str, record)) or "none"
        raise CorpusError(f'{place}: no column "{column}" (it has {names}); set column = "..." in the corpus')
    text = record[column]
    if not isinstance(text, str):
        raise CorpusError(
            f'{place}: column "{column}" is {type(text).__name__}, not text; set column = "..." in the corpus or '
            f"drop that record"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{place}: character {error.start} is half a surrogate pair; repair that record") from None
    own_source, own_licence = record.get("source"), record.get("licence") or record.get("license")
    return Document(
        text,
        own_source if isinstance(own_source, str) and own_source else source,
        own_licence if isinstance(own_licence, str) and own_licence else licence or "unknown",
    )


def _lines(file: Path) -> Iterator[bytes]:
    """Lines of a plain or zstandard file, without their line feeds."""
    rest = b""
    for chunk in _chunks(file):
        *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
        yield from lines
    if rest:
        yield rest


def _chunks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            raw = iter(lambda: stream.read(_READ_BYTES), b"")
            yield from _decompressed(raw, file) if file.suffix.lower() == ".zst" else raw
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _decompressed(raw: Iterable[bytes], file: Path) -> Iterator[bytes]:
    """Content of a zstandard file of one or more frames; a frame cut short is an error, not an early end."""
    frame = None
    try:
        for block in raw:
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise CorpusError(f"{file}: broken zstandard ({error}); fetch or compress the file again") from error
    if frame is not None:
        raise CorpusError(f"{file}: broken zstandard (it ends inside a frame); fetch or compress the file again")
