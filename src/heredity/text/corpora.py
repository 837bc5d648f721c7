"""Named corpora: documents from any source, no text twice, split by the hash of the text, on disk as Parquet."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from heredity.demo import installed, stories
from heredity.study import CorpusConfig
from heredity.text import sources
from heredity.text.forms import Form
from heredity.text.readers import CorpusError
from heredity.text.sources import Account, Document, Split
from heredity.text.spoken import Spoken

_SPANS = pa.field("spans", pa.list_(pa.int32()))
_SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("license", pa.string()), _SPANS])
_FEW = 500
_GROUP_BYTES = 8 * 2**20
_STORIES = 8000

# A document with its place in the corpus, the SHA-256 of its text, and its UTF-8 bytes.
_Placed = tuple[Document, Literal["train", "validation", "duplicate"], bytes, int]


class CorpusRecord(NamedTuple):
    """Contents of a corpus on disk; bytes are those of UTF-8."""

    corpus: str  # its name in the study
    documents_train: int
    documents_validation: int
    bytes_train: int
    bytes_validation: int
    duplicates: int  # documents left out because an earlier one has the same text
    form: Form  # what the rows hold
    empty: int  # rows or files without text
    damaged: int  # rows left out because they cannot be read
    notes: list[str]  # what to know of them, in sentences
    sha256: str  # SHA-256 over the SHA-256 of every text, in order
    licenses: dict[str, int]  # documents by license
    sources: int  # distinct files, packages or data sets of the documents
    source: str  # the source as the study gives it


def documents(
    config: CorpusConfig,
    seed: int,
    root: Path,
    tokenizer: Callable[[], Any] = lambda: None,
    account: Account | None = None,
) -> Iterator[Document]:
    """Documents of a corpus: no two with the same text, none empty, at most `config.max_bytes` bytes in all.

    The order is random, fixed by `seed`, when `max_bytes` is set or the source is installed or generated; otherwise it
    is the source's. The last document is cut where the limit falls, but for dialogues. Relative `local:` paths start at
    `root`. tokenizer: gives the one that renders lists of messages and decodes token ids, where there is one.
    account: gets what was left out.
    Raises CorpusError for a source that is unknown, missing, empty or broken.
    """
    account = account or Account()
    for document, fate, _, _ in _placed(config, seed, root, account, tokenizer):
        if fate == "duplicate":
            account.copies += 1
        else:
            yield document


def form_of(config: CorpusConfig, root: Path) -> Form:
    """What a corpus holds: as its settings say, or as the first row of its local files. Raises CorpusError for files
    that cannot be read."""
    scheme, spec = _parts(config.source)
    return sources.local_form(config, spec, root) if scheme == "local" else config.format or "text"


def fingerprint(name: str, config: CorpusConfig, root: Path) -> str:
    """SHA-256 in hex that changes whenever the content of the corpus would: cheap, nothing is fetched or generated.

    It covers the content of local files, id, revision, subset and column of a hub data set, versions of installed
    packages or of the generator, and the settings that choose documents; not the corpus's name, share or place.
    Raises CorpusError, with the corpus's name, for an unknown source or missing files.
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
    settings = config.model_dump(exclude={"source", "share", "roles"})
    return hashlib.sha256(json.dumps([scheme, content, settings]).encode()).hexdigest()


def write_corpus(
    name: str,
    config: CorpusConfig,
    folder: Path,
    seed: int,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
    tokenizer: Callable[[], Any] = lambda: None,
) -> CorpusRecord:
    """Write `train.parquet` and `validation.parquet` (columns text, source, license, spans) into `folder`.

    A document is held out when the SHA-256 of its text, read as a number in [0, 1), is below `config.validation`, so
    that it stays where it is when others are added; a local source with split files keeps its splits. When that would
    leave a small corpus without any, the document with the lowest number is held out.
    `progress` gets (bytes so far, all bytes or 0 when unknown). tokenizer: as in `documents`.
    Raises CorpusError, with the corpus's name, for a source that is unknown, missing or broken and for an empty split.
    """
    count, size, licenses, origins = Counter[str](), Counter[str](), Counter[str](), set[str]()
    total, waiting, account = hashlib.sha256(), Counter[str](), Account()
    groups: dict[str, list[Document]] = {"train": [], "validation": []}
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", _SCHEMA, compression="zstd"))
            for split in groups
        }

        def flush(split: str) -> None:
            rows = [document._asdict() for document in groups[split]]
            files[split].write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            groups[split], waiting[split] = [], 0

        stack.enter_context(_naming(name))
        scheme, spec = _parts(config.source)
        there = sources.local_bytes(config, spec, root) if scheme == "local" else None
        expected = min(filter(None, (there, config.max_bytes)), default=0)
        for document, fate, digest, bytes_ in _with_validation(_placed(config, seed, root, account, tokenizer)):
            count[fate] += 1
            if fate == "duplicate":
                continue
            groups[fate].append(document)
            waiting[fate] += bytes_
            if waiting[fate] >= _GROUP_BYTES:
                flush(fate)
            size[fate] += bytes_
            licenses[document.license] += 1
            origins.add(document.source)
            total.update(digest)
            if progress and (count["train"] + count["validation"]) % 100 == 0:
                progress(size.total(), expected)
        for split in files:
            flush(split)
            if not count[split]:
                raise CorpusError(
                    f"no {split} document in {config.source} ({count['train'] + count['validation']} in all, "
                    f"{size.total()} bytes); both splits need one: add documents (each .txt file is one, each line of "
                    f"a .jsonl), or change validation={config.validation}"
                )
    sizes = count["train"], count["validation"], size["train"], size["validation"], count["duplicate"]
    left = account.form, account.empty, account.damaged, account.notes()
    found = dict(licenses.most_common())
    return CorpusRecord(name, *sizes, *left, total.hexdigest(), found, len(origins), config.source)


def read_corpus(folder: Path, split: Split) -> Iterator[str]:
    """Texts of one split written by `write_corpus`, in order. CorpusError for a missing or broken file."""
    return (text for (text,) in _columns(folder / f"{split}.parquet", "text"))


def read_dialogues(folder: Path, split: Split) -> Iterator[Spoken]:
    """The same, with what the assistant says in each."""
    return (Spoken(text, spans or ()) for text, spans in _columns(folder / f"{split}.parquet", "text", "spans"))


def _columns(path: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    try:
        # Arrow else keeps what it has read ahead, by and by the whole file.
        with pq.ParquetFile(path, pre_buffer=False) as table:
            for group in range(table.num_row_groups):
                rows = table.read_row_group(group, names)
                yield from zip(*(rows.column(name).to_pylist() for name in names), strict=True)
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


def _from_source(
    config: CorpusConfig, seed: int, root: Path, account: Account, tokenizer: Callable[[], Any]
) -> Iterator[tuple[Document, Split | None]]:
    """Every document of the source, with the split that the source puts it in, if it does."""
    scheme, spec = _parts(config.source)
    if scheme == "local":
        return sources.local_documents(config, spec, seed, root, account, tokenizer)
    if scheme == "hub":
        rows = sources.hub_documents(config, spec, seed, account, tokenizer)
    elif scheme == "installed":
        rows = installed.documents(spec, seed)
    else:
        texts = stories.stories(_STORIES if config.max_bytes is None else None, seed)
        rows = (Document(text, config.source, "generated") for text in texts)
    return ((document, None) for document in rows)


def _placed(
    config: CorpusConfig, seed: int, root: Path, account: Account, tokenizer: Callable[[], Any]
) -> Iterator[_Placed]:
    seen: set[bytes] = set()
    left = config.max_bytes
    for document, split in _from_source(config, seed, root, account, tokenizer):
        if not document.text.strip():
            continue
        content = document.text.encode()
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            yield document, "duplicate", digest, len(content)
            continue
        seen.add(digest)
        fate = split or ("validation" if int.from_bytes(digest[:8]) < config.validation * 2**64 else "train")
        if left is not None and len(content) > left and document.spans:
            break  # half a dialogue is none
        if left is not None and len(content) > left:
            content = content[:left].decode(errors="ignore").encode()
            document = document._replace(text=content.decode())
            digest = hashlib.sha256(content).digest()
            left = len(content)
        if content:
            yield document, fate, digest, len(content)
        if left is not None:
            left -= len(content)
            if left <= 0:
                break
    account.check(config.skip_damaged)
    if not seen:
        raise CorpusError(f"{config.source} holds no text; point it at documents that are not empty")


def _with_validation(rows: Iterator[_Placed]) -> Iterator[_Placed]:
    """The same documents; if none of the first few hundred, and so of a small corpus, is held out, one is."""
    first: list[_Placed] = []
    for row in rows:
        first.append(row)
        if row[1] == "validation" or len(first) >= _FEW:
            break
    unique = [place for place, (_, fate, _, _) in enumerate(first) if fate == "train"]
    if 1 < len(unique) < _FEW and all(fate != "validation" for _, fate, _, _ in first):
        lowest = min(unique, key=lambda place: first[place][2])
        document, _, digest, size = first[lowest]
        first[lowest] = document, "validation", digest, size
    yield from first
    yield from rows
