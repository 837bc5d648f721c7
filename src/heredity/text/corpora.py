"""Named corpora: documents from any source, no text twice, split by the hash of the text, on disk as Parquet."""

from __future__ import annotations

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
from heredity.text import hub, local
from heredity.text.documents import CorpusError, Document, Found, Split

__all__ = [
    "CorpusError",
    "CorpusRecord",
    "Document",
    "documents",
    "file_digest",
    "fingerprint",
    "read_corpus",
    "write_corpus",
]

_SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("licence", pa.string())])
_ROWS = 1000
_FEW = 500
_GROUP_BYTES = 8 * 2**20
_STORIES = 8000


class CorpusRecord(NamedTuple):
    """What a corpus on disk consists of."""

    corpus: str
    """Its name in the study."""
    documents_train: int
    """Documents to train on."""
    documents_validation: int
    """Documents held out."""
    bytes_train: int
    """UTF-8 bytes to train on."""
    bytes_validation: int
    """UTF-8 bytes held out."""
    duplicates: int
    """Documents left out because an earlier one has the same text."""
    sha256: str
    """SHA-256 over the SHA-256 of every text, in order."""
    licences: dict[str, int]
    """Documents by licence."""
    sources: int
    """Distinct files, packages or data sets that documents came from."""
    source: str
    """The source as the study gives it."""


class _Kept(NamedTuple):
    """A document and what becomes of it."""

    document: Document
    fate: Literal["train", "validation", "duplicate"]
    digest: bytes
    size: int


def documents(config: CorpusConfig, seed: int, root: Path) -> Iterator[Document]:
    """Documents of a corpus: no two with the same text, none empty, at most `config.max_bytes` bytes in all.

    The order is random, fixed by `seed`, when `max_bytes` is set or the source is installed or generated; otherwise it
    is the source's own. The last document is cut where the limit falls. Relative `local:` paths start at `root`.

    Raises:
        CorpusError: the source is unknown, missing, empty or broken.
    """
    return (kept.document for kept in _kept(config, seed, root) if kept.fate != "duplicate")


def fingerprint(name: str, config: CorpusConfig, root: Path) -> str:
    """SHA-256 in hex that changes whenever the content of the corpus would: cheap, nothing is fetched or generated.

    It covers the content of local files, id, revision, subset and column of a hub data set, versions of installed
    packages or of the generator, and the settings that choose documents; not the name of the corpus, its share or the
    place of its files.

    Raises:
        CorpusError: the source is unknown or its files are missing; the message starts with the corpus's name.
    """
    try:
        scheme, spec = _parts(config.source)
        content: object
        if scheme == "local":
            content = local.content_hash(spec, root)
        elif scheme == "hub":
            content = hub.preset(config, spec)[:3]
        else:
            content = [spec, installed.versions(spec) if scheme == "installed" else stories.VERSION]
    except CorpusError as error:
        raise CorpusError(f"corpus {name}: {error}") from error
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
    that it stays where it is when others are added; a local source with splits of its own keeps them. When that would
    leave a small corpus without any, the document with the lowest number is held out.
    `progress` gets (bytes so far, `config.max_bytes` or 0 when unknown).

    Raises:
        CorpusError: the source is unknown, missing or broken, or one of the splits would be empty; the message starts
            with the corpus's name.
    """
    count, size = Counter[str](), Counter[str]()
    licences, sources = Counter[str](), set[str]()
    total = hashlib.sha256()
    with _Writer(folder / "train.parquet") as train, _Writer(folder / "validation.parquet") as validation:
        try:
            for kept in _with_validation(_kept(config, seed, root)):
                count[kept.fate] += 1
                if kept.fate == "duplicate":
                    continue
                (train if kept.fate == "train" else validation).add(kept.document, kept.size)
                size[kept.fate] += kept.size
                licences[kept.document.licence] += 1
                sources.add(kept.document.source)
                total.update(kept.digest)
                if progress and (count["train"] + count["validation"]) % 100 == 0:
                    progress(size.total(), config.max_bytes or 0)
        except CorpusError as error:
            raise CorpusError(f"corpus {name}: {error}") from error
    for split in ("train", "validation"):
        if not count[split]:
            documents = count["train"] + count["validation"]
            raise CorpusError(
                f"corpus {name}: no {split} document in {config.source} ({documents} in all, {size.total()} bytes); "
                f"both splits need one: add documents (each .txt file is one, each line of a .jsonl), "
                f"or change validation={config.validation}"
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
        sources=len(sources),
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
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


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


def _found(config: CorpusConfig, seed: int, root: Path) -> Iterator[Found]:
    scheme, spec = _parts(config.source)
    if scheme == "local":
        return local.found(config, spec, seed, root)
    if scheme == "hub":
        return hub.found(config, spec, seed)
    if scheme == "installed":
        return installed.found(spec, seed)
    texts = stories.stories(_STORIES if config.max_bytes is None else None, seed)
    return (Found(Document(text, config.source, "generated"), None) for text in texts)


def _kept(config: CorpusConfig, seed: int, root: Path) -> Iterator[_Kept]:
    seen: set[bytes] = set()
    left = config.max_bytes
    for document, split in _found(config, seed, root):
        if not document.text.strip():
            continue
        content = document.text.encode()
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            yield _Kept(document, "duplicate", digest, len(content))
            continue
        seen.add(digest)
        fate = split or ("validation" if int.from_bytes(digest[:8]) < config.validation * 2**64 else "train")
        if left is not None and len(content) > left:
            content = content[:left].decode(errors="ignore").encode()
            document = document._replace(text=content.decode())
            digest = hashlib.sha256(content).digest()
            left = len(content)
        if content:
            yield _Kept(document, fate, digest, len(content))
        if left is not None:
            left -= len(content)
            if left <= 0:
                break
    if not seen:
        raise CorpusError(f"{config.source} holds no text; point it at documents that are not empty")


def _with_validation(documents: Iterator[_Kept]) -> Iterator[_Kept]:
    """The same documents, but if none of the first few hundred, and so of a small corpus, is held out, one is."""
    first: list[_Kept] = []
    for kept in documents:
        first.append(kept)
        if kept.fate == "validation" or len(first) >= _FEW:
            break
    unique = [place for place, kept in enumerate(first) if kept.fate == "train"]
    if len(unique) > 1 and len(unique) < _FEW and all(kept.fate != "validation" for kept in first):
        lowest = min(unique, key=lambda place: first[place].digest)
        first[lowest] = first[lowest]._replace(fate="validation")
    yield from first
    yield from documents


class _Writer:
    """A Parquet file written group by group."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, _SCHEMA, compression="zstd")
        self._rows: list[dict[str, str]] = []
        self._size = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def add(self, document: Document, size: int) -> None:
        self._rows.append(document._asdict())
        self._size += size
        if self._size >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows, self._size = [], 0
