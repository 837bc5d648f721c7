"""Labeled texts with labels of their own: local files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from heredity.stitch.probe_datasets import CHARACTERS, LabeledTexts, LabelError, balanced
from heredity.study.stitch import ProbeSetConfig
from heredity.text import readers, sources
from heredity.text.readers import CorpusError

_ROWS, _BUFFER = 20_000, 10_000  # of a data set of the hub: rows read at most, and rows shuffled at a time
_TABLES = {".csv": ",", ".tsv": "\t"}
_RECORDS = (".jsonl", ".ndjson", ".zst", ".parquet", *_TABLES)
_TEXTS = (".txt", ".text", ".md")
_Labeled = tuple[str, str]
"""Label and text."""


def labeled_set(config: ProbeSetConfig, root: Path, *, most: int = 1000, seed: int = 0) -> LabeledTexts:
    """The texts of a set, equally many of every label, `most` at most, split for fitting and testing.

    root: where relative `local:` paths start. Raises LabelError, with file and line, for what cannot be read, a column
    that is missing, a text that is empty, and as `balanced` does.
    """
    scheme, _, spec = config.source.partition(":")
    rows = _of_files(config, spec, root) if scheme == "local" else _of_hub(config, spec, seed)
    groups: dict[str, list[str]] = {}
    for label, text in rows:
        groups.setdefault(label, []).append(text[:CHARACTERS])
    return balanced(dict(sorted(groups.items())), most=most, seed=seed)


def fingerprint(config: ProbeSetConfig, root: Path) -> str | None:
    """SHA-256 over path and content of the files of a local set; None for one of the hub, which identifies itself.

    Raises LabelError for a missing path.
    """
    scheme, _, spec = config.source.partition(":")
    if scheme != "local":
        return None
    total = hashlib.sha256()
    for file, name in _files(spec, root):
        total.update(f"{name.as_posix()}\0{sources.file_sha256(file)}\n".encode())
    return total.hexdigest()


def _files(spec: str, root: Path) -> list[tuple[Path, Path]]:
    """Files of a local set, each with its path below the set's folder: records where there are any, else texts."""
    try:
        path = sources.resolve(spec, root)
    except CorpusError as error:
        raise LabelError(str(error)) from error
    if path.is_file():
        return [(path, Path(path.name))]
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [(file, file.relative_to(path)) for file in files]
    files = [(file, name) for file, name in files if not any(part.startswith(".") for part in name.parts)]
    records = [one for one in files if one[0].name.lower().endswith(_RECORDS)]
    chosen = records or [one for one in files if one[0].suffix.lower() in _TEXTS]
    if not chosen:
        raise LabelError(f"local:{spec}: {path} holds none of {', '.join((*_RECORDS, *_TEXTS))}; correct the path")
    return chosen


def _of_files(config: ProbeSetConfig, spec: str, root: Path) -> Iterator[_Labeled]:
    """Label and text of every row, or of every line or file of text, of a local set."""
    for file, name in _files(spec, root):
        own = name.parts[0] if len(name.parts) > 1 else name.name.partition(".")[0]
        columns = [config.text, config.label] if config.label else [config.text]
        try:
            if file.name.lower().endswith(_RECORDS):
                for place, row in _records(file, columns):
                    label = _label(row[config.label], config, place) if config.label else own
                    yield label, _text(row[config.text], config, place)
            else:
                whole = readers.read_text(file)
                pieces = [whole] if len(name.parts) > 1 else whole.splitlines()
                for number, piece in enumerate(pieces, 1):
                    yield own, _text(piece, config, f"{file}, line {number}" if len(name.parts) == 1 else str(file))
        except CorpusError as error:
            raise LabelError(str(error)) from error


def _records(file: Path, columns: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file of records with the columns, each with its place."""
    delimiter = _TABLES.get(file.suffix.lower())
    rows = _table(file, delimiter) if delimiter else readers.records(file)
    for at, row in rows:
        place = f"{file}, {at}"
        if missing := [column for column in columns if column not in row]:
            way_out = f"set {'text' if missing[0] == columns[0] else 'label'} to one of these"
            if missing[0] != columns[0]:
                way_out += ', or to "" where names of files or folders are the labels'
            raise LabelError(
                f"{place}: no column {missing[0]!r}; it has {', '.join(map(str, row)) or 'none'}; {way_out}"
            )
        yield place, row


def _table(file: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file of separated values, with the line that each ends on."""
    csv.field_size_limit(2**31 - 1)
    with readers.faults_of(file), file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row:
                    raise LabelError(f"{file}, {place}: more values than columns; quote texts that hold {delimiter!r}")
                yield place, row
        except csv.Error as error:
            raise LabelError(f"{file}, line {reader.reader.line_num}: broken CSV ({error}); repair that line") from None


def _text(value: Any, config: ProbeSetConfig, place: str) -> str:
    if not isinstance(value, str):
        raise LabelError(
            f"{place}: column {config.text!r} is {type(value).__name__}, not text; name another, or mend it"
        )
    if not value.strip():
        raise LabelError(f"{place}: the text is empty; delete it, or fill it in")
    return value


def _label(value: Any, config: ProbeSetConfig, place: str) -> str:
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise LabelError(f"{place}: column {config.label!r} holds no label ({value!r}); fill it in, or delete that row")
    return str(value).strip()


def _of_hub(config: ProbeSetConfig, dataset: str, seed: int) -> Iterable[_Labeled]:
    """Label and text of rows of a data set of the hub, streamed through a seeded shuffle; those without are left out.

    Labels have the data set's names for them, or else are the values.
    """
    from datasets import load_dataset

    how: Any = {"name": config.subset, "split": config.split, "revision": config.revision, "streaming": True}
    found: list[_Labeled] = []
    try:
        stream: Any = load_dataset(dataset, **how)
        named = getattr((stream.features or {}).get(config.label), "int2str", str)
        for row in stream.shuffle(seed=seed, buffer_size=_BUFFER).take(_ROWS):
            if config.text not in row or config.label not in row:
                has = ", ".join(row)
                raise LabelError(f"{dataset}: no column {config.text!r} or {config.label!r}; it has {has}")
            # -1 marks a missing label and has no name.
            if row[config.label] is not None and row[config.label] != -1 and isinstance(row[config.text], str):
                found.append((named(row[config.label]), row[config.text]))
    except LabelError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        way_out = "check name, subset, split, revision and network"
        raise LabelError(f"{dataset}: cannot be read ({reason}); {way_out}") from error
    return found
