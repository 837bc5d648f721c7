"""Named corpora: documents from any source, no text twice, split by the hash of the text, on disk as Parquet."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from heredity.demo import installed, stories
from heredity.study import CorpusConfig
from heredity.text import sources
from heredity.text.sources import CorpusError, Document, Split

_SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("licence", pa.string())])
_ROWS = 1000
_FEW = 500
_GROUP_BYTES = 8 * 2**20
_STORIES = 8000


class CorpusRecord(NamedTuple):
    """Contents of a corpus on disk."""

    corpus: str
    """Its name in the study."""
    documents_train: int
    """Training documents."""
    documents_validation: int
    """Held-out documents."""
    bytes_train: int
    """UTF-8 bytes of the training documents."""
    bytes_validation: int
    """UTF-8 bytes of the held-out documents."""
    duplicates: int
    """Documents left out because an earlier one has the same text."""
    sha256: str
    """SHA-256 over the SHA-256 of every text, in order."""
    licences: dict[str, int]
    """Documents by license."""
    sources: int
    """Distinct files, packages or data sets of the documents."""
    source: str
    """The source as the study gives it."""


class _Fated(NamedTuple):
    """A document and its place in the corpus."""

    document: Document
    fate: Literal["train", "validation", "duplicate"]
    digest: bytes
    size: int


def documents(config: CorpusConfig, seed: int, root: Path) -> Iterator[Document]:
    """Documents of a corpus: no two with the same text, none empty, at most `config.max_bytes` bytes in all.

    The order is random, fixed by `seed`, when `max_bytes` is set or the source is installed or generated; otherwise it
    is the source's. The last document is cut where the limit falls. Relative `local:` paths start at `root`.

    Raises:
        CorpusError: the source is unknown, missing, empty or broken.
    """
    return (row.document for row in _fated(config, seed, root) if row.fate != "duplicate")


def fingerprint(name: str, config: CorpusConfig, root: Path) -> str:
    """SHA-256 in hex that changes whenever the content of the corpus would: cheap, nothing is fetched or generated.

    It covers the content of local files, id, revision, subset and column of a hub data set, versions of installed
    packages or of the generator, and the settings that choose documents; not the name of the corpus, its share or the
    place of its files.

    Raises:
        CorpusError: the source is unknown or its files are missing; the message starts with the corpus's name.
    """
    with _naming(name):
        scheme, spec = _parts(config.source)
        content: object
        if scheme == "local":
            content = sources.local_digest(spec, root)
        elif scheme == "hub":
            content = sources.hub_preset(config, spec)[:3]
        else:
            content = [spec, installed.versions(spec) if scheme == "installed" else stories.VERSION]
    settings = config.model_dump(exclude={"source", "share"})
    return hashlib.sha256(json.dumps([scheme, content, settings]).encode()).hexdigest()


def write_corpus(
    name: str,
    config: CorpusConfig,
    folder: Path,
    seed: int,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusRecord:
    """Write `train.parquet` and `validation.parquet` (columns text, source, licence) into `folder`.

    A document is held out when the SHA-256 of its text, read as a number in [0, 1), is below `config.validation`, so
    that it stays where it is when others are added; a local source with split files keeps its splits. When that would
    leave a small corpus without any, the document with the lowest number is held out.
    `progress` gets (bytes so far, `config.max_bytes` or 0 when unknown).

    Raises:
        CorpusError: the source is unknown, missing or broken, or one of the splits would be empty; the message starts
            with the corpus's name.
    """
    count, size = Counter[str](), Counter[str]()
    licences, origins = Counter[str](), set[str]()
    total = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", _SCHEMA, compression="zstd"))
            for split in ("train", "validation")
        }
        groups: dict[str, list[Document]] = {split: [] for split in files}
        waiting = Counter[str]()

        def flush(split: str) -> None:
            if groups[split]:
                rows = [document._asdict() for document in groups[split]]
                files[split].write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            groups[split], waiting[split] = [], 0

        stack.enter_context(_naming(name))
        for document, fate, digest, bytes_ in _with_validation(_fated(config, seed, root)):
            count[fate] += 1
            if fate == "duplicate":
                continue
            groups[fate].append(document)
            waiting[fate] += bytes_
            if waiting[fate] >= _GROUP_BYTES:
                flush(fate)
            size[fate] += bytes_
            licences[document.licence] += 1
            origins.add(document.source)
            total.update(digest)
            if progress and (count["train"] + count["validation"]) % 100 == 0:
                progress(size.total(), config.max_bytes or 0)
        for split in files:
            flush(split)
            if not count[split]:
                raise CorpusError(
                    f"no {split} document in {config.source} ({count['train'] + count['validation']} in all, "
                    f"{size.total()} bytes); both splits need one: add documents (each .txt file is one, each line of "
                    f"a .jsonl), or change validation={config.validation}"
                )
    return CorpusRecord(
        corpus=name,
        documents_train=count["train"],
        documents_validation=count["validation"],
        bytes_train=size["train"],
        bytes_validation=size["validation"],
        duplicates=count["duplicate"],
        sha256=total.hexdigest(),
        licences=dict(licences.most_common()),
        sources=len(origins),
        source=config.source,
    )


def read_corpus(folder: Path, split: Split) -> Iterator[str]:
    """Texts of one split that `write_corpus` wrote into `folder`, in order.

    Raises:
        CorpusError: the file is missing or broken.
    """
    path = folder / f"{split}.parquet"
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_ROWS, columns=["text"]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); write the corpus again") from error


def file_digest(files: Iterable[Path]) -> str:
    """SHA-256 over name and content of each file, in the order given."""
    lines = (f"{file.name}\0{sources.file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except CorpusError as error:
        raise CorpusError(f"corpus {name}: {error}") from error


def _parts(source: str) -> tuple[str, str]:
    """Scheme and the rest of a source, both known to exist."""
    scheme, colon, spec = source.partition(":")
    if not colon or not spec or scheme not in {"local", "hub", "installed", "generated"}:
        raise CorpusError(
            f'source "{source}" is none of local:PATH, hub:NAME, installed:NAME, generated:NAME; use one of them'
        )
    if scheme == "generated" and spec != "stories":
        raise CorpusError(f"generated:{spec}: unknown name; the one generator is generated:stories")
    return scheme, spec


def _from_source(config: CorpusConfig, seed: int, root: Path) -> Iterator[tuple[Document, Split | None]]:
    """Every document of the source, with the split that the source puts it in, if it does."""
    scheme, spec = _parts(config.source)
    if scheme == "local":
        return sources.local_documents(config, spec, seed, root)
    if scheme == "hub":
        rows = sources.hub_documents(config, spec, seed)
    elif scheme == "installed":
        rows = installed.documents(spec, seed)
    else:
        texts = stories.stories(_STORIES if config.max_bytes is None else None, seed)
        rows = (Document(text, config.source, "generated") for text in texts)
    return ((document, None) for document in rows)


def _fated(config: CorpusConfig, seed: int, root: Path) -> Iterator[_Fated]:
    seen: set[bytes] = set()
    left = config.max_bytes
    for document, split in _from_source(config, seed, root):
        if not document.text.strip():
            continue
        content = document.text.encode()
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            yield _Fated(document, "duplicate", digest, len(content))
            continue
        seen.add(digest)
        fate = split or ("validation" if int.from_bytes(digest[:8]) < config.validation * 2**64 else "train")
        if left is not None and len(content) > left:
            content = content[:left].decode(errors="ignore").encode()
            document = document._replace(text=content.decode())
            digest = hashlib.sha256(content).digest()
            left = len(content)
        if content:
            yield _Fated(document, fate, digest, len(content))
        if left is not None:
            left -= len(content)
            if left <= 0:
                break
    if not seen:
        raise CorpusError(f"{config.source} holds no text; point it at documents that are not empty")


def _with_validation(rows: Iterator[_Fated]) -> Iterator[_Fated]:
    """The same documents; if none of the first few hundred, and so of a small corpus, is held out, one is."""
    first: list[_Fated] = []
    for row in rows:
        first.append(row)
        if row.fate == "validation" or len(first) >= _FEW:
            break
    unique = [place for place, row in enumerate(first) if row.fate == "train"]
    if 1 < len(unique) < _FEW and all(row.fate != "validation" for row in first):
        lowest = min(unique, key=lambda place: first[place].digest)
        first[lowest] = first[lowest]._replace(fate="validation")
    yield from first
    yield from rows
