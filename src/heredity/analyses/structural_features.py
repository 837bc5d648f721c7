"""Structural and semantic features across a stitch; a part of `feature_transfer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity import format
from heredity.analyses.analysis import Tables, rows_of
from heredity.engine.store import Artifact
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.feature_transfer import Inquiry
    from heredity.stitch.word_swaps import Split

_READ = 5_000  # documents in which words are counted, and from which texts are taken
_TENTHS = 10
_EXAMPLES, _TOKENS, _LEAST = 5, 5, 5  # features of a class that are shown, tokens of each, texts they fire in
_CLASS = Column("features", "text", "structural or semantic.")
_BY_CHANCE = "share expected if versions of a text were as unlike as different texts."

TRANSFER_SPLIT = Table(
    "transfer_split",
    "Texts that tell structural from semantic features.",
    ("stitch",),
    (
        Column("corpus", "text", "The texts are sentences of its held-out documents."),
        Column("prompts", "count", "Texts."),
        Column("versions", "count", "Versions of each text, itself included."),
        Column("unchanged", "count", "Texts left out because no word could be swapped."),
        Column("neither", "count", "Judged features that fire in none of the texts."),
    ),
)
TRANSFER_CLASSES = Table(
    "transfer_classes",
    "Structural and semantic features.",
    ("stitch", "features"),
    (
        _CLASS,
        Column("n", "count", "Features of the class."),
        Column("silent", "count", "Features of the class that never fire in the target.", of="n"),
        Column("density", "share", "Median share of the source's tokens on which they fire."),
        Column("share", "share", "Median share of the texts a feature fires in where all versions fire."),
        Column("share_by_chance", "share", f"Median {_BY_CHANCE}"),
        Column("structural_by_chance", "count", "Features whose share by chance is one half or more already.", of="n"),
    ),
    brief=("stitch", "features", "n", "silent", "density", "share", "share_by_chance", "structural_by_chance"),
)
TRANSFER_CLASS_TESTS = Table(
    "transfer_class_tests",
    "Structural against semantic features.",
    ("stitch", "measure"),
    (
        Column("measure", "text", "activation or attribution r, or density."),
        Column("p", "number", "Mann-Whitney test, two-sided; null unless both classes have values."),
        Column("effect", "share", "Probability that a structural feature has the larger value, ties half.", ci=True),
    ),
)
TRANSFER_PERCENTILES = Table(
    "transfer_percentiles",
    "Classes by percentile of the attribution r: tenths of the judged features that have one.",
    ("stitch", "features", "percentile"),
    (
        _CLASS,
        Column("percentile", "number", "Lower end: 0 for the tenth of the lowest r, 90 for that of the highest."),
        Column("r", "r", "Lowest r of the tenth."),
        Column("judged", "count", "Features of the tenth."),
        Column("n", "count", "Those of the class.", of="judged"),
        Column("share", "share", "Share of the tenth.", ci=True),
        Column("overall", "share", "Share of the class among all tenths."),
    ),
    plot=Plot("lines", x="percentile", y="share", by="features"),
)
CLASS_EXAMPLES = Table(
    "class_examples",
    "Clearest features of both classes: the largest share beyond chance, and the smallest share.",
    ("stitch", "features", "feature"),
    (
        _CLASS,
        Column("share", "share", "Share of the texts it fires in where all versions fire."),
        Column("share_by_chance", "share", f"The {_BY_CHANCE}"),
        Column("prompts", "count", "Texts it fires in."),
        Column("attribution_r", "r", "Pearson r of its attributions in both models."),
        Column("tokens", "text", "Tokens of most of its activation, each with its share."),
        Column("context", "text", "Text of its strongest activation, which stands in « »."),
        Column("version", "text", "Another version: its strongest activation there, or none for a semantic feature."),
    ),
    brief=(
        "stitch",
        "features",
        "feature",
        "share",
        "share_by_chance",
        "attribution_r",
        "tokens",
        "context",
    ),
)
TABLES = (TRANSFER_SPLIT, TRANSFER_CLASSES, TRANSFER_CLASS_TESTS, TRANSFER_PERCENTILES, CLASS_EXAMPLES)


def split(inquiry: Inquiry) -> None:
    """Structural and semantic features, and how they differ."""
    from heredity.features.correlate import median
    from heredity.stitch.probe import means, text_vectors
    from heredity.stitch.transfer import sparse_codes
    from heredity.stitch.word_swaps import split_features

    corpus = prose_corpus(inquiry.work.inputs["corpus"], inquiry.config.corpus)
    texts, unchanged = _versions(inquiry, inquiry.work.inputs["corpus"][corpus])
    flat, (model, hook_point, sae, precision) = [text for versions in texts for text in versions], inquiry.source
    context = inquiry.settings.config.context_size
    vectors = text_vectors(model, hook_point, inquiry.sides.tokenizer, flat, context, precision)
    _, (acts,) = means(vectors, len(flat), partial(sparse_codes, sae))
    strength = acts.toarray().reshape(len(texts), len(texts[0]), -1)
    found = split_features(strength > 0)
    inquiry.columns |= {name: getattr(found, name) for name in ("share", "prompts", "structural", "semantic")}
    inquiry.columns["share_by_chance"] = found.by_chance
    prompts = {"corpus": corpus, "prompts": len(texts), "versions": len(texts[0]), "unchanged": unchanged}
    neither = int((inquiry.judged & (found.prompts == 0)).sum())
    inquiry.rows["transfer_split"].append(prompts | {"neither": neither})
    classes = {"structural": found.structural & inquiry.judged, "semantic": found.semantic & inquiry.judged}
    density, silent = inquiry.paired.source_firings / inquiry.paired.tokens, inquiry.paired.target_firings == 0
    attribution = np.array(inquiry.columns["attribution_r"], np.float64)
    values = {"attribution": attribution, "activation": inquiry.paired.r}
    for name, own in classes.items():
        row = {"features": name, "n": int(own.sum()), "silent": int((own & silent).sum())}
        row |= {"density": median(density[own]), "share": median(found.share[own])}
        row |= {"share_by_chance": median(found.by_chance[own])}
        row |= {"structural_by_chance": int((found.by_chance[own] >= found.threshold).sum())}
        inquiry.rows["transfer_classes"].append(row)
        for measure, r in values.items():
            inquiry.correlated(measure, name, r[own])
    inquiry.rows["transfer_class_tests"] += _tests({**values, "density": density}, classes, inquiry.settings.seed)
    inquiry.rows["transfer_percentiles"] += percentiles(attribution, inquiry.judged, classes)
    inquiry.rows["class_examples"] += _examples(inquiry, texts, strength, found, classes)


def prose_corpus(corpora: Mapping[str, Artifact], named: str | None) -> str:
    """The corpus that texts are taken from: the named one, else the first that is not mostly code.

    Raises ValueError when all are code.
    """
    from heredity.stitch.probe_datasets import LOOKED_AT, mostly_code
    from heredity.text.corpora import read_corpus

    for name, corpus in corpora.items():
        if named == name or not mostly_code(list(islice(read_corpus(corpus / ".", "train"), LOOKED_AT))):
            return name
    raise ValueError(f"of the common corpora, {', '.join(corpora)}, none is prose, whose words could be swapped")


def _versions(inquiry: Inquiry, corpus: Artifact) -> tuple[list[list[str]], int]:
    """Held-out texts with their rewrites, and the number without a word to swap. Raises ValueError for none."""
    from heredity.stitch.probe_datasets import CHARACTERS
    from heredity.stitch.word_swaps import read_lexicon, rewrites, snippets
    from heredity.text.corpora import read_corpus

    train, held_out = (
        [text[:CHARACTERS] for text in islice(read_corpus(corpus / ".", split), _READ)]
        for split in ("train", "validation")
    )
    lexicon, seed, config = read_lexicon(train), inquiry.settings.seed, inquiry.config
    chosen = enumerate(snippets(held_out, config.prompts, seed))
    made = [[text, *rewrites(text, lexicon, config.rewrites, seed + number)] for number, text in chosen]
    kept = [versions for versions in made if len(set(versions)) > 1]
    if not kept:
        raise ValueError(f"none of {len(made)} held-out texts has a word that could be swapped; give more prose")
    return kept, len(made) - len(kept)


def _tests(values: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `transfer_class_tests`, one per measure."""
    from heredity.explain.scores import compare

    for measure, each in values.items():
        test = compare(each[classes["structural"]], each[classes["semantic"]], seed=seed)
        yield {"measure": measure, "p": test.p, "effect": test.effect, "effect_low": test.low, "effect_high": test.high}


def percentiles(r: np.ndarray, judged: np.ndarray, classes: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Rows of `transfer_percentiles`: equal tenths of the judged features by r, nan for none; ties by number."""
    from heredity.stitch.probe import proportion

    known = np.flatnonzero(judged & np.isfinite(r))
    order = known[np.argsort(r[known], kind="stable")]
    for name, own in classes.items():
        for tenth, part in enumerate(np.array_split(order, _TENTHS)):
            if not len(part):
                continue
            n = int(own[part].sum())
            row = {"features": name, "percentile": 100 / _TENTHS * tenth, "r": float(r[part[0]]), "judged": len(part)}
            yield row | {"n": n, **proportion(n, len(part)).columns("share"), "overall": float(own[known].mean())}


def _examples(
    inquiry: Inquiry,
    texts: Sequence[Sequence[str]],
    strength: np.ndarray,
    found: Split,
    classes: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Rows of `class_examples`. strength: mean activation of each feature [prompts, versions, d_sae]."""
    surest = {"structural": found.share - found.by_chance, "semantic": -found.share}
    chosen: list[tuple[str, int]] = []
    for name, own in classes.items():
        order = np.lexsort((-found.prompts, -np.where(own & (found.prompts >= _LEAST), surest[name], -np.inf)))
        chosen += [(name, int(i)) for i in order[:_EXAMPLES] if own[i] and found.prompts[i] >= _LEAST]
    if not chosen:
        return
    places: list[tuple[int, int, int]] = []  # text, its version of the strongest activation, and another one
    for name, i in chosen:
        fires = strength[..., i] > 0
        fits: Any = fires.all(1) if name == "structural" else fires.any(1) & ~fires.all(1)
        best = int(np.where(fits[:, None], strength[..., i], -1).argmax())
        text, version = divmod(best, fires.shape[1])
        wanted = fires[text] if name == "structural" else ~fires[text]
        others = [other for other in np.flatnonzero(wanted) if other != version]
        places.append((text, version, int(others[0])))
    features = [i for _, i in chosen]
    tokens = _most_active(inquiry, features)
    marked = _marked(inquiry, [texts[text][at] for text, *both in places for at in both], np.repeat(features, 2))
    for number, (name, i) in enumerate(chosen):
        columns = ("share", "share_by_chance", "prompts", "attribution_r")
        row = {column: inquiry.columns[column][i] for column in columns}
        row |= {"features": name, "feature": i, "tokens": tokens[number]}
        yield row | {"context": marked[2 * number], "version": marked[2 * number + 1]}


def _most_active(inquiry: Inquiry, features: Sequence[int]) -> list[str]:
    """The tokens that carry most of each feature's activation in the source's validation text, with their shares."""
    from heredity.lm.activations import activations
    from heredity.stitch.transfer import sparse_codes

    model, hook_point, sae, precision = inquiry.source
    ids = inquiry.blocks.ravel()
    total, done = np.zeros((int(ids.max()) + 1, len(features))), 0
    for x in activations(model, hook_point, inquiry.blocks, precision):
        np.add.at(total, ids[done : done + len(x)], sparse_codes(sae, x)[:, list(features)].toarray())
        done += len(x)
    told = []
    for column in total.T:
        best = np.argsort(-column, kind="stable")[:_TOKENS]
        parts = [(token, column[token] / column.sum()) for token in best if column[token] > 0]
        told.append(", ".join(f"{inquiry.token(token)!r} {format.percent(share)}" for token, share in parts))
    return told


def _marked(inquiry: Inquiry, texts: Sequence[str], features: np.ndarray) -> list[str]:
    """Each text as the source reads it, with the strongest activation of one feature in « », where it has any."""
    from heredity.stitch.probe import text_vectors
    from heredity.stitch.transfer import sparse_codes

    (model, hook_point, sae, precision), tokenizer = inquiry.source, inquiry.sides.tokenizer
    context, written = inquiry.settings.config.context_size, list(texts)
    for x, numbers in text_vectors(model, hook_point, tokenizer, texts, context, precision):
        codes = sparse_codes(sae, x)
        for number in np.unique(numbers):
            acts = codes[numbers == number][:, [features[number]]].toarray().ravel()
            ids = [i for i in tokenizer(texts[number])["input_ids"][:context] if i not in tokenizer.all_special_ids]
            pieces, at = [inquiry.token(i) for i in ids], int(acts.argmax())
            mark = [f"«{pieces[at]}»"] if acts[at] > 0 else pieces[at : at + 1]
            written[number] = "".join([*pieces[:at], *mark, *pieces[at + 1 :]])
    return written


def evidence(tables: Tables, stitch: str, medians: Mapping[tuple[str, str], float | None]) -> Iterator[str]:
    """Classes of a stitch: how many there are, how structural they are, by chance too, and how they carry."""
    if classes := rows_of(tables, "transfer_classes", stitch=stitch):
        halves = (
            f"{one['features']} {format.value('r', medians['attribution', one['features']]) or 'unknown'} "
            f"({one['n']:,}; median share {format.value('share', one['share']) or 'unknown'}, "
            f"by chance {format.value('share', one['share_by_chance']) or 'unknown'})"
            for one in classes
        )
        yield f"median r of attributions: {', '.join(halves)}"
