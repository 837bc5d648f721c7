"""Corpora, the tokenizer that the models of a study share, those of stitched models with another, and packed tokens.

Documents are deduplicated, split by the hash of their text, and packed into one row of tokens per split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from heredity.analyses.analysis import Analysis, Aside, Cost, Item, Needs, Results, Statement, Tables
from heredity.analyses.loaded import reader
from heredity.analyses.reading import RECORD, tokenizer_of
from heredity.engine.stage import Work
from heredity.engine.store import write_json
from heredity.study import CorpusConfig, Study
from heredity.tables import Column, Table
from heredity.text.spoken import Roles

FEW_UNKNOWN = 0.01  # share of unknown tokens above which it is said

_TOKENIZED = 1.5
"""Seconds for a megabyte of text: 0.7 were measured of a byte-level tokenizer that is loaded, 5 of Gemma's."""
_TOKENIZED_BY_OWN = 0.25
"""The same of a tokenizer that the study trains, of few words."""
CORPORA = Table(
    "corpora",
    "Corpora as read: where the text comes from and how much of it there is.",
    ("corpus",),
    (
        Column("source", "text", "Source named in the study file."),
        Column("documents_train", "count", "Documents in the training split."),
        Column("documents_validation", "count", "Documents in the validation split."),
        Column("bytes_train", "count", "UTF-8 bytes in the training split."),
        Column("bytes_validation", "count", "UTF-8 bytes in the validation split."),
        Column("duplicates", "count", "Documents dropped because their text occurred before."),
        Column("form", "text", "What the rows hold: text, chat (lists of messages) or ids (token ids)."),
        Column("empty", "count", "Rows or files left out because they hold no text."),
        Column("damaged", "count", "Rows left out because they cannot be read (`skip_damaged`)."),
        Column("notes", "text", "Files left out and what else to know of them."),
        Column("licenses", "text", "Licenses with their numbers of documents."),
        Column("sha256", "text", "Hash of all documents."),
    ),
)
TOKENS_TABLE = Table(
    "tokens",
    "Corpora as the tokenizer reads them.",
    ("corpus",),
    (
        Column("tokens_train", "count", "Tokens in the training split."),
        Column("tokens_validation", "count", "Tokens in the validation split."),
        Column("unknown", "text", "The tokenizer's token for what it does not know; null where it has none."),
        Column("unknown_share", "share", "Share of that token in both splits."),
    ),
)
TOKENS_APART_TABLE = Table(
    "tokens_apart",
    "Corpora as the tokenizers of stitched models read them, where these are others than the study's.",
    ("model", "corpus"),
    TOKENS_TABLE.columns,
)


class CorpusSettings(NamedTuple):
    name: str
    corpus: CorpusConfig
    fingerprint: Any
    seed: int
    root: Aside


def _corpora(study: Study) -> list[Item]:
    return [{"corpus": name} for name in study.config.corpus]


def _corpus_settings(study: Study, item: Item) -> CorpusSettings:
    from heredity.text.corpora import fingerprint

    name = item["corpus"]
    corpus = study.config.corpus[name].model_copy(update={"share": None, "roles": "all"})  # which do not change it
    content = study.identity(f"corpus.{name}", lambda: fingerprint(name, corpus, study.root))
    return CorpusSettings(name, corpus, content, study.config.seed, Aside(study.root))


def _corpus_needs(study: Study, item: Item) -> Needs:
    """Nothing, or the tokenizer whose template renders dialogues, or which decodes token ids: a loaded one."""
    from heredity.text.corpora import form_of
    from heredity.text.readers import CorpusError

    name = item["corpus"]
    if not (study.config.tokenizer.load or study.config.model[study.starts[0]].load):
        return {}
    try:
        form = study.identity(f"corpus.{name}.form", lambda: form_of(study.config.corpus[name], study.root))
    except CorpusError:  # said where the corpus is read
        return {}
    return {} if form == "text" else {"tokenizer": tokenizer_need(study)}


def _write_corpus(work: Work, settings: CorpusSettings) -> Results:
    from heredity.text.corpora import fingerprint, write_corpus
    from heredity.text.sources import CorpusError

    name, corpus, root = settings.name, settings.corpus, settings.root.value
    given = work.inputs.get("tokenizer")
    tokenizer = cache(lambda: tokenizer_of(given) if given else None)
    record = write_corpus(name, corpus, work.folder, settings.seed, root, work.progress, tokenizer)._asdict()
    if fingerprint(name, corpus, root) != settings.fingerprint:
        source = f"corpus {name}: {corpus.source}"
        raise CorpusError(f"{source} changed while the study ran; run again when it stays as it is")
    write_json(work.folder / RECORD, record)
    licenses = ", ".join(f"{name} {count}" for name, count in record["licenses"].items())
    columns = {name: record[name] for name in CORPORA.schema.names if name in record}
    return {"corpora": [columns | {"licenses": licenses, "notes": "; ".join(record["notes"]) or None}]}


def _say_corpora(tables: Tables) -> Iterable[Statement]:
    for row in tables.get("corpora", ()):
        if row["form"] != "text":
            how = {"chat": "dialogues, rendered by the chat template", "ids": "token ids, decoded"}[row["form"]]
            yield Statement(row["corpus"], "note", f"corpus {row['corpus']} ({row['source']}): {how}")
        if row["notes"]:
            yield Statement(row["corpus"], "note", f"corpus {row['corpus']} ({row['source']}): {row['notes']}")


class TokenizerSettings(NamedTuple):
    source: str | None  # hub id; None to train one, and for a folder, which its content identifies
    content: str | None  # digest of a local folder's tokenizer files
    vocab_size: int
    trust_remote_code: bool
    revision: str | None
    folder: Aside


def _tokenizer_settings(study: Study, item: Item) -> TokenizerSettings:
    from heredity.analyses.loaded import local_folder
    from heredity.lm.checkpoint import tokenizer_place

    start, first = study.config.model[item["model"]], item["model"] == study.starts[0]
    given = study.config.tokenizer.load if first else None
    source = given or start.load
    if source is None:
        return TokenizerSettings(None, None, study.config.tokenizer.vocab_size, False, None, Aside(None))
    path = local_folder(study, "tokenizer.load" if given else f"model.{item['model']}.load", source)
    folder = None if path is None else Path(tokenizer_place(path))
    content = study.identity("tokenizer", lambda: None if folder is None else _tokenizer_digest(folder))
    if content is None:
        revision = None if given else start.revision
        return TokenizerSettings(source, None, 0, start.trust_remote_code, revision, Aside(None))
    return TokenizerSettings(None, content, 0, start.trust_remote_code, None, Aside(folder and str(folder)))


def _tokenizer_digest(folder: Path) -> str:
    from heredity.text.corpora import file_digest

    files = sorted(folder.glob("*")) if folder.is_dir() else [folder]
    return file_digest([file for file in files if _of_tokenizer(file.name) or file == folder])


def _of_tokenizer(name: str) -> bool:
    return "token" in name or name.startswith(("vocab.", "merges.", "spiece.", "chat_template"))


def _tokenizer_needs(study: Study, item: Item) -> Needs:
    if study.config.tokenizer.load or study.config.model[item["model"]].load:
        return {}
    return {"corpus": {name: ("corpus", {"corpus": name}) for name in study.own_corpora(item["model"])}}


def _write_tokenizer(work: Work, settings: TokenizerSettings) -> Results:
    from heredity.text.corpora import read_corpus
    from heredity.text.tokens import load_tokenizer, train_tokenizer

    if (place := settings.folder.value or settings.source) is not None:
        tokenizer = load_tokenizer(place, settings.revision, settings.trust_remote_code)
    else:
        # one text of each corpus in turn, so that a prefix of the stream is a mixture
        turns = zip_longest(*(read_corpus(corpus / ".", "train") for corpus in work.inputs["corpus"].values()))
        texts = (text for turn in turns for text in turn if text is not None)
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    tokenizer.save_pretrained(work.folder / "tokenizer")
    return {}


class TokensSettings(NamedTuple):
    corpus: str
    roles: Roles


def _write_tokens(work: Work, settings: TokensSettings) -> Results:
    from heredity.text.corpora import read_corpus, read_dialogues
    from heredity.text.tokens import fingerprint_tokenizer, pack, unknown_tokens

    tokenizer, corpus = tokenizer_of(work.inputs["tokenizer"]), work.inputs["corpus"]
    row: dict[str, Any] = {"unknown": tokenizer.unk_token}
    record, read = corpus.json(RECORD), count(1)
    unknown, dialogues = 0, record["form"] == "chat"
    documents = record["documents_train"] + record["documents_validation"]

    def counted(texts: Iterable[Any]) -> Iterator[Any]:
        for text in texts:
            yield text
            if (number := next(read)) % 100 == 0:
                work.progress(number, documents)

    for split in ("train", "validation"):
        try:
            texts_of = read_corpus if settings.roles == "all" else read_dialogues
            texts = counted(texts_of(corpus / ".", split))
            packed = pack(texts, tokenizer, work.folder / split, dialogues, settings.roles)
        except ValueError as error:
            raise ValueError(f"corpus {settings.corpus}: {error}") from error
        row[f"tokens_{split}"] = len(packed.tokens)
        unknown += unknown_tokens(packed, tokenizer)
    row["unknown_share"] = unknown / (row["tokens_train"] + row["tokens_validation"])
    counts = {name: count for name, count in row.items() if name.startswith("tokens_")}
    write_json(work.folder / RECORD, {"tokenizer": fingerprint_tokenizer(tokenizer), **counts})
    return {"tokens": [row]}


def _say_tokens(tables: Tables) -> Iterable[Statement]:
    for row in (*tables.get("tokens", ()), *tables.get("tokens_apart", ())):
        if row["unknown_share"] > FEW_UNKNOWN:
            said = unknown_note(f"corpus {row['corpus']}", row["unknown_share"], row["unknown"])
            yield Statement(row["corpus"], "note", said)


def unknown_note(about: str, share: float, unknown: str) -> str:
    """What a share of unknown tokens means."""
    return (
        f"{about}: {share:.1%} of the tokens are {unknown}, the unknown token: the tokenizer does not know that part "
        "of the text, and what is said of features there is said of this one token"
    )


def tokenizer_need(study: Study, model: str | None = None) -> tuple[str, Item]:
    """The tokenizer that a model reads by; by default the one that all models on edges share."""
    return ("tokenizer", {"model": reader(study, model) if model else study.starts[0]})


def tokens_needs(corpora: Iterable[str]) -> dict[str, tuple[str, Item]]:
    """Packed tokens of some corpora, by name."""
    return {corpus: ("tokens", {"corpus": corpus}) for corpus in corpora}


def tokens_for(study: Study, model: str, corpora: Iterable[str]) -> dict[str, tuple[str, Item]]:
    """Packed tokens of some corpora, by name, as a model reads them."""
    if (start := reader(study, model)) == study.starts[0]:
        return tokens_needs(corpora)
    return {corpus: ("tokens_apart", {"model": start, "corpus": corpus}) for corpus in corpora}


def _apart_items(study: Study) -> list[Item]:
    """Corpora as other tokenizers than the study's read them."""
    return [{"model": name, "corpus": corpus} for name in _readers(study)[1:] for corpus in study.config.corpus]


def _readers(study: Study) -> list[str]:
    """Starts whose tokenizers are read by, the study's first."""
    return list(dict.fromkeys(reader(study, name) for name in study.starts))


def _read_cost(study: Study, item: Item, seconds_a_megabyte: float) -> Cost:
    """Cost of going through a corpus; how long one without a limit is, is not known."""
    return Cost(seconds=seconds_a_megabyte * (study.config.corpus[item["corpus"]].max_bytes or 0) / 1e6)


def _loaded(study: Study) -> bool:
    """Whether a model is loaded whose tokenizer reads, in place of one that the study trains."""
    return bool(study.config.tokenizer.load or study.config.model[study.starts[0]].load)


CORPUS = Analysis(
    kind="corpus",
    version=2,
    title="Corpora",
    items=_corpora,
    settings=_corpus_settings,
    needs=_corpus_needs,
    run=_write_corpus,
    tables=(CORPORA,),
    cost=lambda study, item, _: _read_cost(study, item, 0.2),
    say=_say_corpora,
)
TOKENIZER = Analysis(
    kind="tokenizer",
    version=1,
    title="Tokenizer",
    items=lambda study: [{"model": name} for name in _readers(study)],
    settings=_tokenizer_settings,
    needs=_tokenizer_needs,
    run=_write_tokenizer,
)
TOKENS = Analysis(
    kind="tokens",
    version=2,
    title="Tokens",
    items=_corpora,
    settings=lambda study, item: TokensSettings(item["corpus"], study.config.corpus[item["corpus"]].roles),
    needs=lambda study, item: {"corpus": ("corpus", item), "tokenizer": tokenizer_need(study)},
    run=_write_tokens,
    tables=(TOKENS_TABLE,),
    cost=lambda study, item, _: _read_cost(study, item, _TOKENIZED if _loaded(study) else _TOKENIZED_BY_OWN),
    say=_say_tokens,
)
TOKENS_APART = Analysis(
    kind="tokens_apart",
    version=1,
    title="Tokens by the tokenizers of stitched models",
    items=_apart_items,
    settings=lambda study, item: TokensSettings(item["corpus"], study.config.corpus[item["corpus"]].roles),
    needs=lambda study, item: {
        "corpus": ("corpus", {"corpus": item["corpus"]}),
        "tokenizer": ("tokenizer", {"model": item["model"]}),
    },
    run=lambda work, settings: {"tokens_apart": _write_tokens(work, settings)["tokens"]},
    tables=(TOKENS_APART_TABLE,),
    cost=lambda study, item, _: _read_cost(study, item, _TOKENIZED),
)
