"""Rows and texts of local files, whatever they are packed in, each with its place in the file.

Parsing is left to `json`, `csv`, pyarrow and the archives of the standard library, and not to `datasets`, whose readers
name neither file nor line of a malformed row and keep copies in a cache folder. Everything streams: memory is bounded
whatever a line, a row group or an archive unpacks to.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import IO, Any, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from heredity.study.places import fault_of

Kind = Literal["lines", "json", "csv", "parquet", "arrow", "text"]

_ROWS: dict[str, Kind] = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_SEEKING: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_PACKED = {".gz": "gzip", ".zst": "zstandard", ".xz": "xz", ".bz2": "bzip2"}
_FOREIGN = frozenset({".tar", ".zip", ".7z", ".rar", ".npy", ".npz", ".bin", ".pt", ".pkl", *_SEEKING})  # once unpacked
_SUFFIXES = (
    ".txt .text .md .markdown .rst .tex .org .adoc .log .html .htm .xml .yaml .yml .toml .ini .cfg "
    ".py .pyi .pyx .lua .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .js .mjs .jsx .ts .tsx .svelte .css .go "
    ".rs .rb .php .pl .pm .r .jl .swift .m .mm .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .sql .cs "
    ".fs .dart .nim .zig .v .sv .vhd .f .f90 .pas .asm .s .proto .cmake .gradle .tcl .vim .nse"
)
_TEXT = frozenset(_SUFFIXES.split())
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

_LINE_BYTES = 64 * 2**20  # a longer line is damage or a decompression bomb
_CHUNK = 2**20
_LARGE, _TIMES = 256 * 2**20, 200  # unpacked bytes beyond both, the second times the packed ones, are a bomb
_TOGETHER = 16  # rows of a table at a time, since a row of some kilobytes on disk can be megabytes of text
_LONGEST_TEXT, _PIECE = 200_000, 100_000  # characters


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the value, the place and the way out."""


class Part(NamedTuple):
    """A file, or one in a zip archive."""

    file: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.member}" if self.member else str(self.file)

    def below(self, folder: Path) -> PurePath:
        """Its path in a folder."""
        return PurePath(self.file.relative_to(folder), self.member)


Row = tuple[str, "dict[str, Any] | CorpusError"]
"""Place in the file, and the row, or what is wrong with it."""


def kind_of(name: str) -> Kind | None:
    """What a file holds, by its name; None for a suffix that nobody here reads. What is packed and says no more than
    that holds JSON lines."""
    path = PurePath(name.lower())
    if path.suffix in _PACKED:
        inner = PurePath(path.stem).suffix
        return None if inner in _FOREIGN else _ROWS.get(inner) or ("text" if inner in _TEXT else "lines")
    return _ROWS.get(path.suffix) or _SEEKING.get(path.suffix) or ("text" if path.suffix in _TEXT else None)


def is_packed(part: Part) -> bool:
    """Whether a file's size says little of its texts'."""
    return bool(part.member) or part.file.suffix.lower() in (*_PACKED, *_SEEKING)


def members(file: Path) -> list[Part]:
    """Files in a zip archive; those of a form that cannot be read inside one are left out. Raises CorpusError."""
    with faults_of(file), zipfile.ZipFile(file) as archive:
        return [Part(file, one.filename) for one in archive.infolist() if not one.is_dir()]


def rows(part: Part, columns: Sequence[str] = (), others: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a file of records, each with its place; a damaged line is an error in place of the row.

    columns: of a table the first of these that it has is read, or all if it has none; a dot leads into nested ones.
    others: further columns to read where they are there. Raises CorpusError for a file that cannot be read on.
    """
    kind = kind_of(part.member or part.file.name)
    with faults_of(part.file):
        if kind in ("parquet", "arrow"):
            yield from (_parquet if kind == "parquet" else _arrow)(part.file, columns, others)
            return
        with _opened(part) as stream:
            if kind == "csv":
                yield from _csv(part, stream, "\t" if ".tsv" in part.below(part.file.parent).name.lower() else ",")
            else:
                yield from _json_values(part, stream) if kind == "json" else _json_lines(part, stream)


def records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one file with all their columns. Raises CorpusError for the first damaged one as well."""
    for place, row in rows(Part(file)):
        if isinstance(row, CorpusError):
            raise row
        yield place, row


def texts_of(part: Part, separator: str | None = None) -> Iterator[str]:
    """Documents of a text file: all of it, or what stands between lines that hold a separator. A very long one is
    several, of about 100,000 characters, that end at blank lines. Raises CorpusError."""
    line = re.compile(rf"^{re.escape(separator)}[ \t]*\n", re.MULTILINE) if separator else None
    held = ""
    with faults_of(part.file), _opened(part) as stream:
        for chunk in chain(_decoded(part, stream), ["\n"] if line else []):
            held += chunk
            if line:
                *whole, held = line.split(held)
                yield from chain.from_iterable(map(_pieces, whole))
            if len(held) > _LONGEST_TEXT:
                *whole, held = _pieces(held)
                yield from whole
    yield held


def read_text(file: Path) -> str:
    """A text file in one piece. Raises CorpusError for bytes that are not UTF-8, and for what cannot be read."""
    with faults_of(file), _opened(Part(file)) as stream:
        return "".join(_decoded(Part(file), stream))


@contextlib.contextmanager
def faults_of(file: Path) -> Iterator[None]:
    """An error of the file's content or of the disk becomes a CorpusError that names the file."""
    suffix = file.suffix.lower()
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, *_BROKEN) as error:
        if isinstance(error, OSError) and error.strerror and error.errno:
            reason = f"cannot be read ({error.strerror}); check the file and its permissions"
        else:
            broken = {".zip": "zip archive", ".parquet": "Parquet", **_PACKED}.get(suffix, "Arrow")
            said = (str(error) or type(error).__name__).splitlines()[0]
            reason = f"broken {broken} ({said}); fetch or write the file again"
        raise CorpusError(f"{file}: {reason}") from error


_BROKEN = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[io.BufferedReader[Any]]:
    """The unpacked bytes of a file, as UTF-8 where a mark at its beginning says UTF-16."""
    if fault := fault_of(part.file):
        raise CorpusError(fault)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(part.file.open("rb"))
        size = part.file.stat().st_size
        if part.member:
            stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(stream)).open(part.member))
        packing = _PACKED.get(PurePath(part.member or part.file.name).suffix.lower())
        if packing == "zstandard":  # Arrow's tells a stream that was cut short
            stream = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"))
        elif packing:
            module = {"gzip": gzip, "xz": lzma, "bzip2": bz2}[packing]
            stream = stack.enter_context(module.open(stream))
        bounded = _Bounded(part, stream, size) if packing or part.member else stream
        reader: io.BufferedReader[Any] = io.BufferedReader(bounded, _CHUNK)
        encoding = _MARKS.get(reader.peek(2)[:2])
        if encoding:
            recoded = codecs.EncodedFile(cast(IO[bytes], reader), "utf-8", encoding)
            reader = io.BufferedReader(_Bounded(part, recoded, size), _CHUNK)
        yield reader


class _Bounded(io.RawIOBase):
    """A stream that ends in a CorpusError where it unpacks to more than any text does."""

    def __init__(self, part: Part, stream: Any, packed: int) -> None:
        self._part, self._stream, self._packed, self._read = part, stream, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(max(1, len(buffer) // 3))  # two bytes of UTF-16 are up to three of UTF-8
        buffer[: len(data)] = data
        self._read += len(data)
        if _is_bomb(self._read, self._packed):
            raise _bomb(self._part, self._read, self._packed)
        return len(data)


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > _LARGE and unpacked > _TIMES * packed


def _bomb(part: Part | Path, unpacked: int, packed: int) -> CorpusError:
    return CorpusError(
        f"{part}: {packed:,} bytes unpack to {unpacked:,} or more, which no text does; leave the file out of the corpus"
    )


def _decoded(part: Part, stream: IO[bytes]) -> Iterator[str]:
    """Text of a stream in UTF-8, without a byte order mark and with line feeds for ends of line."""
    decoder, done, kept = codecs.getincrementaldecoder("utf-8-sig")(), 0, ""
    while True:
        chunk, before = stream.read(_CHUNK), len(decoder.getstate()[0])
        try:
            text = kept + decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            byte = f"byte {done - before + error.start} (0x{error.object[error.start]:02x})"
            reason = f"{byte} is not UTF-8; save the file as UTF-8 or move it out of the corpus"
            raise CorpusError(f"{part}: {reason}") from None
        done += len(chunk)
        kept = "\r" if chunk and text.endswith("\r") else ""
        yield text[: len(text) - len(kept)].replace("\r\n", "\n")
        if not chunk:
            return


def _pieces(text: str) -> Iterator[str]:
    """`text` itself, or, when it is very long, pieces of about 100,000 characters that end at blank lines."""
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        blank = text.find("\n\n", start + _PIECE, start + _LONGEST_TEXT)
        stop = start + _PIECE if blank < 0 else blank + 2
        yield text[start:stop]
        start = stop
    yield text[start:]


def _lines(part: Part, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers. Raises CorpusError for one that is too long to be a record."""
    number = 0
    while line := stream.readline(_LINE_BYTES + 1):
        number += 1
        if len(line) > _LINE_BYTES:
            raise CorpusError(f"{part}, line {number}: longer than {_LINE_BYTES:,} bytes; split that record")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _json_lines(part: Part, stream: io.BufferedReader) -> Iterator[Row]:
    for number, line in _lines(part, stream):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            yield place, _object(part, place, json.loads(line.removesuffix(b"\n").decode()))
        except UnicodeDecodeError as error:
            reason = f"byte {error.start} of the line is not UTF-8; save the file as UTF-8"
            yield place, CorpusError(f"{part}, {place}: {reason}")
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            yield place, CorpusError(f"{part}, {place}: broken JSON ({reason}); repair or delete that line")


def _object(part: Part, place: str, value: Any) -> dict[str, Any] | CorpusError:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):  # a list of texts
        return {"text": value}
    return CorpusError(f'{part}, {place}: {type(value).__name__} instead of an object such as {{"text": "..."}}')


def _json_values(part: Part, stream: io.BufferedReader) -> Iterator[Row]:
    """Objects of an array, or one after the other, each placed by the line it begins in.

    Nothing tells where the next object begins after a damaged one, so that ends the file.
    """
    decoder, chunks = json.JSONDecoder(), _decoded(part, stream)
    text, at, line, listed = next(chunks, ""), 0, 1, False
    while True:
        blank = cast(re.Match[str], re.compile(r"[\s,]*").match(text, at)).end()
        line, at = line + text.count("\n", at, blank), blank
        if not listed and text[at : at + 1] == "[":
            listed, at = True, at + 1
            continue
        if at == len(text) or (listed and text[at] == "]"):
            more = next(chunks, None)
            if more is None:
                return
            text, at = text[at:] + more, 0
            if listed and text[:1] == "]":  # after the array
                at = 1
            continue
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wanted, some = max(_CHUNK, len(text) - at), [text[at:]]  # as much again: the object may go on
            while wanted > 0 and len(text) - at <= _LINE_BYTES and (more := next(chunks, None)) is not None:
                some.append(more)
                wanted -= len(more)
            if len(some) > 1 and isinstance(error, json.JSONDecodeError):
                text, at = "".join(some), 0
                continue
            if isinstance(error, json.JSONDecodeError):
                line += text.count("\n", at, error.pos)
                reason = f"{error.msg}, column {error.colno}"
            else:
                reason = error
            raise CorpusError(f"{part}, line {line}: broken JSON ({reason}); repair or delete that record") from None
        yield f"line {line}", _object(part, f"line {line}", value)
        line, at = line + text.count("\n", at, end), end
        if at > _CHUNK:
            text, at = text[at:], 0


def _csv(part: Part, stream: io.BufferedReader, delimiter: str) -> Iterator[Row]:
    """Rows of separated values under their header, each placed by the line it ends in."""
    csv.field_size_limit(_LINE_BYTES)

    def lines() -> Iterator[str]:
        for number, line in _lines(part, stream):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                reason = f"byte {error.start} of the line is not UTF-8; save the file as UTF-8"
                raise CorpusError(f"{part}, line {number}: {reason}") from None

    reader = csv.DictReader(lines(), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:
                wrong = f"more values than columns; quote texts that hold {delimiter!r}"
                yield place, CorpusError(f"{part}, {place}: {wrong}")
            else:
                yield place, row
    except csv.Error as error:
        at = f"{part}, line {reader.reader.line_num}"
        raise CorpusError(f"{at}: broken CSV ({error}); repair that line") from None


def _wanted(names: Sequence[str], columns: Sequence[str], others: Sequence[str]) -> list[str] | None:
    """Columns to read of a table that has some; None for all."""
    found = [column for column in columns if column in names or column.split(".")[0] in names][:1]
    return [*found, *(name for name in others if name in names)] if found else None


def _parquet(file: Path, columns: Sequence[str], others: Sequence[str]) -> Iterator[Row]:
    if fault := fault_of(file):
        raise CorpusError(fault)
    # Arrow else keeps what it has read ahead, by and by the whole file.
    with pq.ParquetFile(file, pre_buffer=False) as table:
        wanted = _wanted(table.schema_arrow.names, columns, others)
        # Not those of single columns: damaged ones end the process inside pyarrow.
        unpacked = sum(
            table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups)
        )
        if _is_bomb(unpacked, packed := file.stat().st_size):
            raise _bomb(file, unpacked, packed)
        batches = table.iter_batches(batch_size=_TOGETHER, columns=wanted)
        yield from _placed(row for batch in batches for row in batch.to_pylist())


def _arrow(file: Path, columns: Sequence[str], others: Sequence[str]) -> Iterator[Row]:
    """Rows of what `datasets` saves (a stream), or of an Arrow file; both stay mapped to the disk."""
    if fault := fault_of(file):
        raise CorpusError(fault)
    with pa.memory_map(str(file)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
            batches = iter(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        names = reader.schema.names
        wanted = _wanted(names, [column.split(".")[0] for column in columns], others) or names
        yield from _placed(
            row
            for batch in batches
            for start in range(0, batch.num_rows, _TOGETHER)
            for row in batch.select(wanted).slice(start, _TOGETHER).to_pylist()
        )


def _placed(table: Iterator[dict[str, Any]]) -> Iterator[Row]:
    yield from ((f"row {number}", row) for number, row in enumerate(table, start=1))
