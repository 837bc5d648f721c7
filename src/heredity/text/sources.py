"""Documents of `local:PATH` (texts, and records of every usual form) and `hub:NAME` (data sets of the hub).

Every source streams: what `max_bytes` leaves out is not read.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from heredity.errors import reading, short
from heredity.study import CorpusConfig
from heredity.study.places import fault_of, local_path
from heredity.text.forms import COLUMNS, TOKENIZED, Form, FormError, Reading, decoded, form_of, rendered
from heredity.text.readers import CorpusError, Kind, Part, is_packed, kind_of, members, rows, texts_of

Split = Literal["train", "validation"]
Read = tuple["Document", "Split | None"]

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_STRONG, _WEAK = ("lines", "parquet", "arrow"), ("json", "csv")  # records; records, or text among texts
# What lies beside the files of a data set and is about it.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|contributing|code_of_conduct)([._-].*)?"
    r"|(dataset_infos?|dataset_dict|state|sae_lens|metadata|config)\.json",
    re.IGNORECASE,
)
_WORDS = "train(?:ing)?|valid(?:ation)?|val|dev|eval(?:uation)?|test(?:ing)?"
_SPLIT = re.compile(rf"(?:^|[._-])({_WORDS})(?=$|[._-]|\d)", re.IGNORECASE)
_SPLIT_OF_TEXT = re.compile(rf"(?:.*\.)?({_WORDS})\d*", re.IGNORECASE)  # `test_names.py` is a text like any other
# Ends of texts and turns as tokenizers write them.
_MARKERS = re.compile(
    r"<\|(?:endoftext|end_of_text|begin_of_text|eot_id|im_start|im_end)\|>|</?(?:bos|eos|start_of_turn|end_of_turn)>"
    r"|^</?s>[ \t]*$",
    re.MULTILINE,
)

_SHUFFLED_CHARACTERS = 256 * 2**20
_SHUFFLED_ROWS = 10_000
_SOME_DAMAGE = 100  # damaged rows after which their share is compared before the end
_SAME = 0.9  # share of token ids that come out of their own text again; blocks are cut within words
_AT_REST = 2 * 10**9  # nanoseconds; file systems date changes to between 1 ns and 2 s


class Document(NamedTuple):
    """One text of a corpus."""

    text: str
    source: str  # file, package or data set of the text
    license: str  # as stated by the source
    spans: tuple[int, ...] = ()  # of a dialogue: start, end, start, end ... of what the assistant says, characters


@dataclass
class Account:
    """What reading a source came across besides its documents."""

    form: Form = "text"
    rows: int = 0
    empty: int = 0  # rows or files without text
    copies: int = 0  # documents left out because an earlier one has the same text
    damaged: int = 0  # rows left out because they cannot be read
    left_out: Counter[str] = field(default_factory=Counter[str])  # files that are not read, by why
    same: int = 0  # of token ids, those that come out of their own text again
    ids: int = 0  # of how many
    markers: Counter[str] = field(default_factory=Counter[str])  # ends of texts and turns that stand in texts
    remarks: list[str] = field(default_factory=list[str])
    first: CorpusError | None = None  # the first damage

    def damage(self, error: CorpusError, share: float) -> None:
        """Count a damaged row. Raises the error where none may be left out, or too many are."""
        self.damaged, self.first = self.damaged + 1, self.first or error
        if not share:
            raise error
        if self.damaged > _SOME_DAMAGE:
            self.check(share)

    def check(self, share: float) -> None:
        """Raises CorpusError where more than the share of rows that may be left out is damaged, and where token ids are
        not those of the tokenizer that decoded them."""
        if self.same < _SAME * self.ids:
            raise CorpusError(
                f"token ids of another tokenizer: {self.same:,} of {self.ids:,} come out of their own text again; load "
                "the one they came from (tokenizer.load), or decode them to a column of text"
            )
        if self.first and self.damaged > share * self.rows:
            count = f"{self.damaged:,} of {self.rows:,} rows are damaged, more than skip_damaged={share:g}"
            raise CorpusError(f"{count}; the first: {self.first}")

    def document(self, document: Document) -> bool:
        """Count what stands in a document; whether there is any text."""
        if not document.text.strip():
            self.empty += 1
            return False
        if not document.spans and ("<" in document.text):
            self.markers.update(match[0].strip() for match in _MARKERS.finditer(document.text))
        return True

    def notes(self) -> list[str]:
        """In sentences."""
        said = list(dict.fromkeys(self.remarks))
        if self.left_out:
            files = ", ".join(f"{why} {count:,}" for why, count in sorted(self.left_out.items()))
            said.append(f"files left out: {files}")
        if self.empty:
            said.append(f"{self.empty:,} rows or files without text left out")
        if self.copies:
            said.append(f"{self.copies:,} documents left out whose text an earlier one has")
        if self.damaged:
            said.append(f"{self.damaged:,} of {self.rows:,} rows damaged and left out, the first: {self.first}")
        if self.markers:
            marks = ", ".join(f"{mark} {count:,} times" for mark, count in self.markers.most_common(5))
            said.append(
                f"{marks} in the texts, read as text there; where texts of a file end at such lines, set "
                'separator = "..." in the corpus, and give dialogues as lists of messages (format = "chat")'
            )
        return said


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


def local_documents(
    config: CorpusConfig, spec: str, seed: int, root: Path, account: Account, tokenizer: Callable[[], Any]
) -> Iterator[Read]:
    """Documents at a local path, each with the split that its file's or folder's name states.

    `listed` says which files are read. A file of records gives the texts of one column; a text file is a document, a
    long one several, cut at blank lines. The order is random, by `seed`, when `config.max_bytes` is set.
    tokenizer: gives the one that renders dialogues and decodes token ids, or None.
    Raises CorpusError: nothing to read, bytes that are not UTF-8, damaged rows or files, a missing column.
    """
    path = resolve(spec, root)
    folder = path if path.is_dir() else path.parent
    parts, texts = listed(config, path, account)
    mixed = config.max_bytes is not None
    if mixed and texts:
        random.Random(seed).shuffle(parts)
    documents: Iterator[Read] = (
        (document, split)
        for part, split in parts
        for document in _documents(part, part.below(folder).as_posix(), texts, config, account, tokenizer)
    )
    return shuffled(documents, seed, _SHUFFLED_CHARACTERS) if mixed and not texts else documents


def check_local(config: CorpusConfig, spec: str, root: Path) -> None:
    """Read two documents, so that a wrong column, a broken file, and too little text for a training and a validation
    split are found before any work. Raises CorpusError."""
    parts, texts = listed(config, resolve(spec, root), account := Account())
    seen = set[str]()
    for part, _ in parts:
        documents = _documents(part, str(part), True, config, account, lambda: None) if texts else ()
        for value in (one.text for one in documents) if texts else _values(part, config):
            if str(value).strip():
                seen.add(hashlib.sha256(repr(value).encode()).hexdigest())
            if len(seen) > 1:
                return
    if not seen:
        raise CorpusError(f"local:{spec} holds no text; point it at documents that are not empty")
    raise CorpusError(
        f"local:{spec} holds one document, and both splits need one: add documents (each .txt file is one, each line "
        "of a .jsonl), or cut it into several by separator"
    )


def local_form(config: CorpusConfig, spec: str, root: Path) -> Form:
    """What a local source holds: what the settings say, else the first row. Raises CorpusError for nothing to read."""
    if config.format is not None:
        return config.format
    path = resolve(spec, root)
    if _found(config, path, Account())[1]:  # whatever is in them
        return "text"
    parts, _ = listed(config, path, Account())
    return form_of(next(_values(parts[0][0], config), None)) or "text"


def _values(part: Part, config: CorpusConfig) -> Iterator[object]:
    """Values of the rows of a file that can be read."""
    for place, row in rows(part, _columns(config)):
        if isinstance(row, CorpusError):
            if config.skip_damaged:
                continue
            raise row
        if (value := _value(row, config, f"{part}, {place}")[1]) is not None:
            yield value


def local_bytes(config: CorpusConfig, spec: str, root: Path) -> int | None:
    """Bytes of the files that are read of a local source, somewhat more than their texts have; None where one is
    packed. Raises CorpusError as reading does."""
    parts = [part for part, _ in listed(config, resolve(spec, root), Account())[0]]
    return None if any(map(is_packed, parts)) else sum(part.file.stat().st_size for part in parts)


def local_digest(spec: str, root: Path) -> str:
    """SHA-256 over relative path, size and SHA-256 of the content of every file that may be read."""
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


def hub_documents(
    config: CorpusConfig, spec: str, seed: int, account: Account, tokenizer: Callable[[], Any]
) -> Iterator[Document]:
    """Rows of the data set's `train` split, streamed; shuffled through a buffer when `config.max_bytes` is set.

    account, tokenizer: as in `local_documents`.
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
            named = config.model_copy(update={"column": column, "format": config.format or "text"})
            for document in _of_row(row, f"hub:{spec}, row {number}", dataset, named, license, account, tokenizer):
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


def shuffled(documents: Iterable[Read], seed: int, capacity: int) -> Iterator[Read]:
    """Yield everything in a seeded random order, holding at most about `capacity` characters at once.

    A source that fits into `capacity` is shuffled uniformly. Of a larger one, the order is random among the
    documents held: each newcomer takes the place of a random one, which is yielded.
    """
    rng = random.Random(seed)
    held: list[Read] = []
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


def listed(config: CorpusConfig, path: Path, account: Account) -> tuple[list[tuple[Part, Split | None]], bool]:
    """Files to read at a path, each with the split it belongs to, and whether they are texts rather than records.

    A folder is searched recursively, through links, hidden files aside. Where it holds files of records (JSON lines,
    Parquet, Arrow; or JSON, CSV and TSV without texts beside them), these are the corpus, otherwise every file with a
    known text suffix; files about the data (README, license, `dataset_info.json` ...) never are, unless alone.
    Names such as `train`, `dev` and `test`, of files or folders, are splits: a test set is left out, and with
    none for validation that is taken from train. What is left out is counted in `account`, by why.
    Raises CorpusError: nothing to read, files that are git-lfs pointers, a setting that means nothing here.
    """
    files = _files(path)
    if pointers := [fault for file in files if (fault := fault_of(file))]:
        raise CorpusError(f"{pointers[0]}" + (f" ({len(pointers)} of {len(files)} files are)" if files[1:] else ""))
    chosen, texts = _found(config, path, account, files)
    alone = path.is_file() and not _is_zip(path)
    _check_settings(config, texts, chosen[0])
    return _split(chosen, path.parent if alone else path, texts, alone, account, config), texts


def _found(
    config: CorpusConfig, path: Path, account: Account, files: list[Path] | None = None
) -> tuple[list[Part], bool]:
    """The files at a path that are its corpus, none of them opened, and whether they are texts; as of `listed`."""
    parts = [part for file in files or _files(path) for part in (members(file) if _is_zip(file) else [Part(file)])]
    parts = [part for part in parts if not any(name.startswith(".") for name in PurePath(part.member).parts)]
    if path.is_file() and not _is_zip(path):
        return parts, (kind_of(path.name) or "text") == "text"
    chosen, texts = _chosen(parts, path, config, account)
    if not chosen:
        unread = ", ".join(f"{why} {count}" for why, count in sorted(account.left_out.items()))
        raise CorpusError(
            f"{config.source}: {path} holds no text, JSON lines or Parquet file{f' ({unread})' if unread else ''}; "
            "name one file, or give files a suffix such as .txt, .jsonl, .jsonl.zst, .csv or .parquet (hidden "
            "files and folders are not read)"
        )
    return chosen, texts


def _chosen(parts: list[Part], folder: Path, config: CorpusConfig, account: Account) -> tuple[list[Part], bool]:
    """The files of a folder or archive that are its corpus, and whether they are texts."""
    about, kinds = list[Part](), dict[Part, Kind]()
    for part in parts:
        name = PurePath(part.member or part.file.name).name
        kind = kind_of(name)
        if part.member and kind in ("parquet", "arrow"):
            kind = None  # they cannot be read without unpacking
        if _ABOUT.fullmatch(name) and (kind != "text" or part.file.parent == folder):
            about.append(part)
        elif kind is None:
            account.left_out[PurePath(name).suffix or "without suffix"] += 1
        else:
            kinds[part] = kind
    texts = False
    chosen = [part for part, kind in kinds.items() if kind in _STRONG]
    if not chosen and (config.column != "text" or "text" not in kinds.values()):
        chosen = [part for part, kind in kinds.items() if kind in _WEAK]
    if not chosen:
        chosen, texts = list(kinds), True
        if tables := sum(kind in _WEAK for kind in kinds.values()):
            account.remarks.append(f"{tables:,} files of JSON, CSV or TSV stand among texts and are read as text")
    if not chosen and not account.left_out:
        chosen, about = about, []
    left = [*about, *(kinds.keys() - set(chosen))]
    account.left_out.update(PurePath(part.member or part.file.name).suffix for part in left)
    return chosen, texts


def _split(
    parts: list[Part], folder: Path, texts: bool, alone: bool, account: Account, config: CorpusConfig
) -> list[tuple[Part, Split | None]]:
    """The files to read of those chosen, with their splits."""
    names = {part: _split_name(part.file.name if alone else part.below(folder), texts) for part in parts}
    if alone:
        if names[parts[0]] == "test":
            account.remarks.append(f"{parts[0]} is a test set by its name, and is read because it was named itself")
        return [(parts[0], None)]
    found = Counter(names.values())
    if texts and not found["train"]:
        return [(part, None) for part in parts]
    train = "train" if found["train"] else None  # without one, files of no split
    if not found[train]:
        train = "validation"
    kept = [part for part in parts if names[part] in (train, "validation")]
    if not kept:
        raise CorpusError(f"{config.source}: {folder} holds a test set alone; name its file if that is what to read")
    account.left_out.update(
        f"{names[part] or 'of no split'} set" if names[part] == "test" else "beside the splits"
        for part in parts
        if names[part] not in (train, "validation")
    )
    if train == "validation" or not found["validation"]:
        if found["test"]:
            account.remarks.append(
                f"no validation set beside the test set: {config.validation:g} of the rest is held out"
            )
        return [(part, None) for part in kept]
    return [(part, "validation" if names[part] == "validation" else "train") for part in kept]


def _split_name(path: PurePath | str, texts: bool) -> Literal["train", "validation", "test"] | None:
    """The split that a file's name states, else that of the nearest folder."""
    *folders, name = PurePath(path).parts
    for part in (PurePath(name).stem if texts else name, *reversed(folders)):
        match = _SPLIT_OF_TEXT.fullmatch(part) if texts else _SPLIT.search(part)
        if match:
            word = match[1].lower()
            return "train" if word.startswith("train") else "test" if word.startswith("test") else "validation"
    return None


def _check_settings(config: CorpusConfig, texts: bool, first: Part) -> None:
    """Raises CorpusError for a setting that would be taken and mean nothing."""
    for key in ("subset", "revision"):
        if getattr(config, key):
            raise CorpusError(f"{key}: belongs to hub: data sets; leave it out for {config.source}")
    if texts and config.column != "text":
        raise CorpusError(f'column = "{config.column}": {first} is plain text, which has no columns; leave column out')
    if texts and config.format not in (None, "text"):
        raise CorpusError(
            f'format = "{config.format}": {first} is plain text; give JSON lines or Parquet, or leave it out'
        )
    if config.separator and not texts:
        raise CorpusError(f"separator: {first} holds records, which are documents of their own; leave it out")


def _is_zip(file: Path) -> bool:
    return file.name.lower().endswith(".zip")


def _files(path: Path) -> list[Path]:
    """All files below `path` but hidden ones, in the order of their names; links are followed, each folder once."""
    if path.is_file():
        return [path]
    found: list[Path] = []
    known: set[str] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in known:
            subfolders.clear()
            continue
        known.add(real)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name not in _SKIPPED_FOLDERS)
        with reading(folder, "choose a folder that holds the text alone, and may be read", CorpusError):
            found += [
                Path(folder, name) for name in names if name[0] != "." and os.path.isfile(os.path.join(folder, name))
            ]
    return sorted(found, key=lambda file: file.parts)


def _documents(
    part: Part, name: str, texts: bool, config: CorpusConfig, account: Account, tokenizer: Callable[[], Any]
) -> Iterator[Document]:
    """Documents of one file of texts or of records."""
    if texts:
        account.rows += 1
        try:
            for text in texts_of(part, config.separator):
                document = Document(text, name, config.license or "unknown")
                if account.document(document):
                    yield document
        except CorpusError as error:
            account.damage(error, config.skip_damaged)
        return
    for place, row in rows(part, _columns(config), ("source", "licence", "license")):
        yield from _of_row(row, f"{part}, {place}", name, config, config.license, account, tokenizer)


def _columns(config: CorpusConfig) -> tuple[str, ...]:
    return COLUMNS if config.column == "text" else (config.column,)


def _value(row: Mapping[str, Any], config: CorpusConfig, place: str) -> tuple[str, object]:
    """A row's column, or, where none is named, the first of a usual name, and what it holds. Raises CorpusError."""
    for column in _columns(config):
        value: Any = row
        for name in [column] if column in row else column.split("."):
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            return column, value
    names = short(", ".join(short(str(name), 60) for name in row) or "none")
    way = 'set column = "..." in the corpus'
    only = next(iter(row.values()), None)
    if len(row) == 1 and isinstance(only, list) and any(isinstance(one, dict) for one in only):
        way = "its rows stand inside that list: save the list itself, as a JSON array"
    raise CorpusError(f'{place}: no column "{config.column}" (it has {names}); {way}')


def _of_row(
    row: Mapping[str, Any] | CorpusError,
    place: str,
    source: str,
    config: CorpusConfig,
    license: str | None,
    account: Account,
    tokenizer: Callable[[], Any],
) -> Iterator[Document]:
    """Documents of a row; its `source` and `license` (or `licence`) win over those given."""
    account.rows += 1
    try:
        if isinstance(row, CorpusError):
            raise row
        column, value = _value(row, config, place)
        found = _readings(column, value, place, config, account, tokenizer)
        stated = [(row.get("source"), source), (row.get("licence") or row.get("license"), license or "unknown")]
        origin, terms = (own if isinstance(own, str) and own else given for own, given in stated)
        documents = [Document(one.text, origin, terms, one.spans) for one in found]
        for part in (part for document in documents for part in document[:3]):
            part.encode()
    except UnicodeEncodeError as error:
        reason = f"character {error.start} is half a surrogate pair; repair that record"
        account.damage(CorpusError(f"{place}: {reason}{_WAY_ON}"), config.skip_damaged)
        return
    except CorpusError as error:
        way = "" if _WAY_ON in str(error) else _WAY_ON
        account.damage(CorpusError(f"{error}{way}"), config.skip_damaged)
        return
    account.empty += not documents
    yield from filter(account.document, documents)


_WAY_ON = ", or leave such rows out with skip_damaged = 0.01 (a share)"


def _readings(
    column: str, value: object, place: str, config: CorpusConfig, account: Account, tokenizer: Callable[[], Any]
) -> list[Reading]:
    """Texts of a row's value; none where it is null. Raises CorpusError."""
    if value is None:
        return []
    form = form_of(value)
    try:
        if form == "text" and config.format in (None, "text"):
            return [Reading(str(value))]
        if form == "chat" and config.format in (None, "chat"):
            account.form = "chat"
            return [rendered(value, tokenizer())]  # pyright: ignore[reportArgumentType]
        if form == "ids" and config.format == "ids":
            account.form = "ids"
            found, same, total = decoded(value, tokenizer())  # pyright: ignore[reportArgumentType]
            account.same, account.ids = account.same + same, account.ids + total
            return found
        if form == "ids" and config.format is None:
            raise FormError(f"holds token ids, not text; {TOKENIZED}")
    except FormError as error:
        raise CorpusError(f"{place}: {error}") from None
    wanted = {"chat": "a list of messages", "ids": "a list of token ids"}.get(config.format or "", "text")
    held = {"text": "text", "chat": "a list of messages", "ids": "a list of token ids"}.get(form or "")
    way = f'set format = "{form}"' if form else 'set column = "..."'
    raise CorpusError(
        f'{place}: column "{column}" is {held or type(value).__name__}, not {wanted}; {way} in the corpus, or '
        "drop that record"
    )
