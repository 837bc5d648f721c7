"""Stages that make text into tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heredity.engine.stage import Stage, Work
from heredity.engine.store import CONFIG, Artifact, write_json
from heredity.study import CorpusConfig, Study
from heredity.text.corpora import fingerprint, read_corpus, write_corpus
from heredity.text.sources import CorpusError
from heredity.text.tokenizer import fingerprint_tokenizer, load_tokenizer, train_tokenizer
from heredity.text.tokens import PackedTokens, pack

RECORD = "record.json"


def corpus_stage(study: Study, name: str) -> Stage:
    """The documents of one corpus: deduplicated, split, with a record of where they came from."""
    settings = study.config.corpus[name].model_dump(exclude={"share"})
    config = {**settings, "fingerprint": fingerprint(name, study.config.corpus[name], study.root)}

    def make(work: Work) -> None:
        corpus = CorpusConfig.model_validate(settings)
        record = write_corpus(name, corpus, work.folder, study.config.seed, study.root, work.progress)
        if fingerprint(name, corpus, study.root) != config["fingerprint"]:
            raise CorpusError(
                f"corpus {name}: {corpus.source} changed while the study ran; run again when it stays as it is"
            )
        write_json(work.folder / RECORD, record._asdict())

    return Stage("corpus", name, {**config, "seed": study.config.seed}, {}, make)


def tokenizer_stage(study: Study, corpora: dict[str, Stage]) -> Stage:
    """The tokenizer all models share: trained on the start model's corpora, or loaded."""
    config = study.config.tokenizer
    start = study.starts[0]
    source = config.load or study.config.model[start].load
    if source is not None:
        path = study.root / source
        named = str(path) if path.exists() else source
        settings: dict[str, object] = {"load": named, "content": _content(path)}
        trusted = study.config.model[start].trust_remote_code
        if trusted:
            settings["trust_remote_code"] = True

        def load(work: Work) -> None:
            tokenizer = load_tokenizer(named, trust_remote_code=trusted)
            tokenizer.save_pretrained(work.folder / "tokenizer")

        return Stage("tokenizer", start, settings, {}, load)

    def train(work: Work) -> None:
        parts = [read_corpus(artifact.folder, "train") for artifact in work.inputs.values()]
        tokenizer = train_tokenizer(_alternate(parts), config.vocab_size)
        tokenizer.save_pretrained(work.folder / "tokenizer")

    inputs = {f"corpus:{name}": corpora[name] for name in study.own_corpora(start)}
    return Stage("tokenizer", start, {"vocab_size": config.vocab_size}, inputs, train)


def tokens_stage(name: str, corpus: Stage, tokenizer: Stage) -> Stage:
    """One corpus as packed tokens, training and validation apart."""

    def make(work: Work) -> None:
        loaded = tokenizer_of(work.inputs["tokenizer"])
        record: dict[str, object] = {"tokenizer": fingerprint_tokenizer(loaded)}
        for split in ("train", "validation"):
            texts = read_corpus(work.inputs["corpus"].folder, split)
            record[f"tokens_{split}"] = len(pack(texts, loaded, work.folder / split).tokens)
        write_json(work.folder / RECORD, record)

    return Stage("tokens", name, {}, {"corpus": corpus, "tokenizer": tokenizer}, make)


def tokenizer_of(artifact: Artifact):
    """The tokenizer of a tokenizer artifact."""
    trusted = artifact.json(CONFIG).get("trust_remote_code", False)
    return load_tokenizer(str(artifact / "tokenizer"), trust_remote_code=trusted)


def packs(artifacts: dict[str, Artifact], split: str) -> dict[str, PackedTokens]:
    """Packed tokens of one split, by corpus."""
    return {name: PackedTokens.open(artifact / split) for name, artifact in artifacts.items()}


def _alternate(parts: list[Iterator[str]]) -> Iterator[str]:
    """One text of each corpus in turn, so that a prefix of the stream is a mixture."""
    while parts:
        for part in list(parts):
            text = next(part, None)
            if text is None:
                parts.remove(part)
            else:
                yield text


def _content(path: Path) -> str | None:
    """What identifies the tokenizer files of a local folder; a hub id identifies itself."""
    if not path.is_dir():
        return None
    from heredity.text.corpora import file_digest

    return file_digest([file for file in sorted(path.glob("*")) if "token" in file.name or file.name == "vocab.json"])
