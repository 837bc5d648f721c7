"""What single features of the source's SAE keep in the target of a stitch (Chen et al. 2025, section 5).

Each feature stands beside its transfer, by Pearson r over tokens, zeros included: of their activations, and of their
attributions (activation times the logit weight of the next token, equation 10), the latter beside random directions
transferred alike. Features that fire on fewer than 30 tokens in the source are not judged.

Structural features fire in all versions of a text whose content words are swapped, in at least half of the texts that
they fire in; the others that fire are semantic (the paper rewrites by a language model, here words are swapped within
word classes of the corpus). Classes are compared by the two-sided Mann-Whitney test. Functional features (section 5.2)
write where the unembedding hardly reads (entropy features: share of the direction's length in its effective null
space), or turn a head to the first token, that is, off (attention deactivation features; a head's score is the first
token's attention logit for an activation of 1, before the norm's scale); heads are then run with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.sae_transfer import source_sae_need
from heredity.analyses.stitch_maps import Sides, StitchSettings, by_stitch, pass_cost, percent, stitch_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Study
from heredity.tables import Column, Plot, Table

_READ = 5_000  # documents in which words are counted, and from which texts are taken
_ABLATED = 10_000  # tokens, at most, on which heads are run with and without a feature
_BINS = np.linspace(-1, 1, 41)
_LEVELS = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
_QUANTILES = tuple(
    Column(name, "r", f"{level:.0%} quantile; null without values.".replace("%", " %"))
    for name, level in _LEVELS.items()
)
_MEASURE = Column("measure", "text", "activation or attribution.")
_GROUP = Column("features", "text", "judged, structural, semantic, or random directions.")

FEATURE_TRANSFER = Table(
    "feature_transfer",
    "Features of the source's SAE in the target.",
    ("stitch",),
    (
        Column("d_sae", "count", "Features."),
        Column("judged", "count", "Features that fire often enough in the source; all figures are theirs.", of="d_sae"),
        Column("tokens", "count", "Validation tokens behind the correlations of activations."),
        Column("attribution_tokens", "count", "Tokens behind the correlations of attributions; null without them."),
        Column("k", "count", "Random directions that fire per token: the L0 of the source's SAE."),
        Column("cut", "r", "95 % quantile of the attribution r of random directions."),
        Column("above", "share", "Share of features with an attribution r above it."),
        Column("negative", "share", "Share with an attribution r below 0: they push the other way."),
        Column("null_share_rank", "r", "Spearman correlation of the null-space shares in both models."),
        Column("head_score_rank", "r", "Spearman correlation of the highest head scores in both models."),
        Column("first_token", "text", "Token read as the first one: bos or eos of the tokenizer."),
    ),
    brief=("stitch", "d_sae", "judged", "above", "negative", "null_share_rank", "head_score_rank"),
)
TRANSFER_GAPS = Table(
    "transfer_gaps",
    "Parts without a result.",
    ("stitch", "part"),
    (Column("part", "text", "attribution, split, entropy or deactivation."), Column("reason", "text", "Reason.")),
)
TRANSFER_CORRELATIONS = Table(
    "transfer_correlations",
    "r of features with their transfers: quantiles.",
    ("stitch", "measure", "features"),
    (_MEASURE, _GROUP, Column("n", "count", "Features with an r."), *_QUANTILES),
    brief=("stitch", "measure", "features", "n", *_LEVELS),
)
TRANSFER_HISTOGRAMS = Table(
    "transfer_histograms",
    "r of features with their transfers, binned.",
    ("stitch", "measure", "features", "r"),
    (_MEASURE, _GROUP, Column("r", "r", "Lower edge of the bin."), Column("n", "count", "Features in the bin.")),
    plot=Plot("histogram", x="r", y="n", by="features"),
)
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
        Column("features", "text", "structural or semantic."),
        Column("n", "count", "Features of the class."),
        Column("silent", "count", "Features of the class that never fire in the target.", of="n"),
        Column("density", "share", "Median share of the source's tokens on which they fire."),
    ),
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
TRANSFER_NULL_SPACE = Table(
    "transfer_null_space",
    "Shares of decoder directions in the effective null space of the unembedding.",
    ("stitch", "end"),
    (
        Column("end", "text", "source, or target (transferred directions)."),
        Column("by_chance", "share", "Root mean square of a random direction's share."),
        Column("dimensions", "count", "Dimensions of the null space."),
        *_QUANTILES,
    ),
)
ENTROPY_FEATURES = Table(
    "entropy_features",
    "Features of the largest null-space share times push.",
    ("stitch", "feature"),
    (
        Column("share", "share", "Share of the direction in the null space, in the source."),
        Column("carried", "share", "Share of the transferred direction, in the target."),
        Column("push", "number", "Norm of the direction times its largest activation, in the source."),
        Column("carried_push", "number", "The same in the target."),
    ),
)
DEACTIVATION_FEATURES = Table(
    "deactivation_features",
    "Features of the highest head scores, and their head with and without them.",
    ("stitch", "feature", "end"),
    (
        Column("end", "text", "source, or target (transferred feature)."),
        Column("layer", "count", "Layer of the head of the highest score."),
        Column("head", "feature", "Head."),
        Column("score", "number", "Attention logit of the first token for an activation of 1."),
        Column("tokens", "count", "Tokens on which the feature fires."),
        Column("attention", "share", "Mean attention to the first token; null for a feature that never fires."),
        Column("attention_drop", "number", "Decrease of the attention without the feature."),
        Column("norm", "number", "Mean length of the head's output."),
        Column("norm_drop", "number", "Decrease without the feature; below 0 where the feature turns the head off."),
    ),
)
TRANSFERRED_FEATURES = Table(
    "transferred_features",
    "Every feature of the source's SAE and its transfer. Columns of a part without a result are null.",
    ("stitch", "feature"),
    (
        Column("judged", "flag", "Whether it fires often enough in the source."),
        Column("activation_r", "r", "Pearson r of the activations in both models."),
        Column("source_firings", "count", "Tokens on which it fires in the source."),
        Column("target_firings", "count", "Tokens on which it fires in the target."),
        Column("source_peak", "number", "Largest activation in the source."),
        Column("target_peak", "number", "Largest activation in the target."),
        Column("attribution_r", "r", "Pearson r of the attributions in both models."),
        Column("share", "share", "Share of the texts it fires in where all versions fire."),
        Column("prompts", "count", "Texts it fires in."),
        Column("share_by_chance", "share", "Share expected if versions were as unlike as texts."),
        Column("structural", "flag", "Whether it is structural."),
        Column("semantic", "flag", "Whether it is semantic."),
        Column("null_share", "share", "Share of its direction in the source's null space."),
        Column("carried_null_share", "share", "Share of the transferred direction in the target's null space."),
        Column("head_score", "number", "Highest head score in the source."),
        Column("carried_head_score", "number", "Highest head score of the transferred feature in the target."),
    ),
    large=True,
)
_TABLES = (
    FEATURE_TRANSFER,
    TRANSFER_GAPS,
    TRANSFER_CORRELATIONS,
    TRANSFER_HISTOGRAMS,
    TRANSFER_SPLIT,
    TRANSFER_CLASSES,
    TRANSFER_CLASS_TESTS,
    TRANSFER_NULL_SPACE,
    ENTROPY_FEATURES,
    DEACTIVATION_FEATURES,
    TRANSFERRED_FEATURES,
)


def _needs(study: Study, item: Item) -> Needs:
    name, config = item["stitch"], study.config.stitch[item["stitch"]]
    corpora = [config.features.corpus] if config.features.corpus else study.stitch_corpora(name)
    return stitch_needs(study, item, corpora, source_sae=source_sae_need(name, config.widths[0]))


def _run(work: Work, settings: StitchSettings) -> Results:
    inquiry = _Inquiry(work, settings)
    parts: dict[str, Callable[[], None]] = {"attribution": inquiry.attribution, "split": inquiry.split}
    if settings.config.features.functional:
        parts |= {"entropy": inquiry.entropy, "deactivation": inquiry.deactivation}
    for done, (part, answer) in enumerate(parts.items(), 1):
        try:
            answer()
        except ValueError as error:  # a model or a text that this part cannot handle
            inquiry.rows["transfer_gaps"].append({"part": part, "reason": str(error)})
        work.progress(done, len(parts))
    return inquiry.rows | {"feature_transfer": [inquiry.row], "transferred_features": inquiry.columns}


class _Inquiry:
    """The parts of the analysis, which share models, tokens and the columns of the feature table."""

    def __init__(self, work: Work, settings: StitchSettings) -> None:
        from heredity.features.fates import RARE_FIRINGS
        from heredity.stitch.functional import Side, activation_correlation
        from heredity.stitch.transfer import transfer_sae

        self.work, self.settings, self.config, self.sides = work, settings, settings.config.features, Sides.of(work)
        sae = self.sides.read_sae(work.inputs["source_sae"])
        self.source = Side(*self.sides.source, sae, settings.precision)
        self.target = Side(*self.sides.target, transfer_sae(sae, *self.sides.stitch), settings.precision)
        self.blocks = settings.blocks(work, "validation", self.config.tokens)
        self.paired = activation_correlation(self.source, self.target, self.blocks)
        self.judged = self.paired.source_firings >= RARE_FIRINGS
        arrays = self.paired._asdict()
        tokens, r = arrays.pop("tokens"), arrays.pop("r")
        # Columns of parts that turn out to have no result stay null.
        names = [name for name in TRANSFERRED_FEATURES.schema.names if name != "stitch"]
        self.columns: dict[str, Any] = dict.fromkeys(names, [None] * sae.d_sae)
        self.columns |= {"feature": np.arange(sae.d_sae), "judged": self.judged, "activation_r": r, **arrays}
        self.row = {"d_sae": sae.d_sae, "judged": int(self.judged.sum()), "tokens": tokens}
        self.rows: dict[str, Any] = {table.name: [] for table in _TABLES}
        self._correlated("activation", "judged", r[self.judged])

    def _correlated(self, measure: str, features: str, r: np.ndarray) -> None:
        """Quantiles and histogram of the finite r of a group."""
        key, known = {"measure": measure, "features": features}, r[np.isfinite(r)]
        self.rows["transfer_correlations"].append({**key, "n": len(known), **quantiles(known)})
        counts = np.histogram(known, _BINS)[0]
        self.rows["transfer_histograms"] += [
            {**key, "r": round(float(edge), 2), "n": int(count)} for edge, count in zip(_BINS, counts, strict=False)
        ]

    def attribution(self) -> None:
        """Whether features push the same next tokens in both models, beside random directions."""
        from heredity.features.fates import RARE_FIRINGS
        from heredity.stitch.functional import attribution_correlation, random_baseline

        paired = attribution_correlation(self.source, self.target, self.blocks)
        k = max(1, round(float(paired.source_firings.sum()) / paired.tokens))
        chance = random_baseline(self.source, self.target[:2], *self.sides.stitch, self.blocks, k, self.settings.seed)
        self.columns["attribution_r"] = paired.r
        own, other = paired.r[self.judged], chance.r[chance.source_firings >= RARE_FIRINGS]
        own, cut = own[np.isfinite(own)], quantiles(other)["q95"]
        self._correlated("attribution", "judged", own)
        self._correlated("attribution", "random", other)
        above = float((own > cut).mean()) if len(own) and cut is not None else None
        negative = float((own < 0).mean()) if len(own) else None
        self.row |= {"attribution_tokens": paired.tokens, "k": k, "cut": cut, "above": above, "negative": negative}

    def split(self) -> None:
        """Structural and semantic features, and how they differ."""
        from heredity.explain.scores import compare
        from heredity.features.correlate import median
        from heredity.stitch.probe import means, text_vectors
        from heredity.stitch.transfer import sparse_codes
        from heredity.stitch.word_swaps import split_features

        corpus = prose_corpus(self.work.inputs["corpus"], self.config.corpus)
        texts, unchanged = self._versions(self.work.inputs["corpus"][corpus])
        flat, (model, hook_point, sae, precision) = [text for versions in texts for text in versions], self.source
        context = self.settings.config.context_size
        vectors = text_vectors(model, hook_point, self.sides.tokenizer, flat, context, precision)
        _, (acts,) = means(vectors, len(flat), partial(sparse_codes, sae))
        fired = acts.astype(bool).toarray().reshape(len(texts), len(texts[0]), -1)
        split = split_features(fired)._asdict()
        self.columns |= {"share_by_chance": split.pop("by_chance"), **split}
        prompts = {"corpus": corpus, "prompts": len(texts), "versions": len(texts[0]), "unchanged": unchanged}
        neither = int((self.judged & (split["prompts"] == 0)).sum())
        self.rows["transfer_split"].append(prompts | {"neither": neither})
        classes = [split[name] & self.judged for name in ("structural", "semantic")]
        density, silent = self.paired.source_firings / self.paired.tokens, self.paired.target_firings == 0
        values = {"attribution": np.array(self.columns["attribution_r"], np.float64), "activation": self.paired.r}
        for name, own in zip(("structural", "semantic"), classes, strict=True):
            row = {"features": name, "n": int(own.sum()), "silent": int((own & silent).sum())}
            self.rows["transfer_classes"].append(row | {"density": median(density[own])})
            for measure, r in values.items():
                self._correlated(measure, name, r[own])
        for measure, each in {**values, "density": density}.items():
            test = compare(*(each[own] for own in classes), seed=self.settings.seed)
            row = {"measure": measure, "p": test.p, "effect": test.effect}
            self.rows["transfer_class_tests"].append(row | {"effect_low": test.low, "effect_high": test.high})

    def _versions(self, corpus: Artifact) -> tuple[list[list[str]], int]:
        """Held-out texts with their rewrites, and the number without a word to swap. Raises ValueError for none."""
        from heredity.stitch.probe_datasets import CHARACTERS
        from heredity.stitch.word_swaps import read_lexicon, rewrites, snippets
        from heredity.text.corpora import read_corpus

        train, held_out = (
            [text[:CHARACTERS] for text in islice(read_corpus(corpus.folder, split), _READ)]
            for split in ("train", "validation")
        )
        lexicon, seed = read_lexicon(train), self.settings.seed
        chosen = enumerate(snippets(held_out, self.config.prompts, seed))
        made = [[text, *rewrites(text, lexicon, self.config.rewrites, seed + number)] for number, text in chosen]
        kept = [versions for versions in made if len(set(versions)) > 1]
        if not kept:
            raise ValueError(f"none of {len(made)} held-out texts has a word that could be swapped; give more prose")
        return kept, len(made) - len(kept)

    def entropy(self) -> None:
        """Shares of features in the null space of the unembedding, in both models."""
        from heredity.features.correlate import rank_correlation
        from heredity.stitch.functional import null_share

        before, after = (null_share(side.model, side.hook_point, side.sae.W_dec) for side in (self.source, self.target))
        push, later = before.norm * self.paired.source_peak, after.norm * self.paired.target_peak
        self.columns |= {"null_share": before.share, "carried_null_share": after.share}
        self.row["null_share_rank"] = rank_correlation(before.share[self.judged], after.share[self.judged])
        for end, space in (("source", before), ("target", after)):
            figures = {"by_chance": space.by_chance, "dimensions": space.dimensions}
            self.rows["transfer_null_space"].append({"end": end, **figures, **quantiles(space.share[self.judged])})
        columns = {"share": before.share, "carried": after.share, "push": push, "carried_push": later}
        self.rows["entropy_features"] += [
            {"feature": i} | {name: values[i] for name, values in columns.items()}
            for i in self._best(before.share * push)
        ]

    def deactivation(self) -> None:
        """Features that turn heads to the first token, in both models."""
        from heredity.features.correlate import rank_correlation
        from heredity.stitch.functional import head_scores, strongest_head

        first = "bos" if self.sides.tokenizer.bos_token_id is not None else "eos"
        bos = int(getattr(self.sides.tokenizer, f"{first}_token_id"))
        sides = {"source": self.source, "target": self.target}
        scores = {end: head_scores(side.model, side.hook_point, side.sae.W_dec, bos) for end, side in sides.items()}
        own, carried = (each.max((1, 2)) for each, _ in scores.values())
        self.columns |= {"head_score": own, "carried_head_score": carried}
        rank = rank_correlation(own[self.judged], carried[self.judged])
        self.row |= {"first_token": first, "head_score_rank": rank}
        blocks = self.blocks[: max(1, _ABLATED // self.blocks.shape[1])].copy()
        blocks[:, 0] = bos
        self.rows["deactivation_features"] += [
            {"feature": i, "end": end, **strongest_head(side, scores[end], i, blocks)}
            for i in self._best(own)
            for end, side in sides.items()
        ]

    def _best(self, values: np.ndarray) -> list[int]:
        """The judged features of the largest values, largest first."""
        order = np.argsort(-np.where(self.judged & np.isfinite(values), values, -np.inf), kind="stable")
        return [int(i) for i in order[: self.config.functional] if self.judged[i] and np.isfinite(values[i])]


def prose_corpus(corpora: Mapping[str, Artifact], named: str | None) -> str:
    """The corpus that texts are taken from: the named one, else the first that is not mostly code.

    Raises ValueError when all are code.
    """
    from heredity.stitch.probe_datasets import LOOKED_AT, mostly_code
    from heredity.text.corpora import read_corpus

    for name, corpus in corpora.items():
        if named == name or not mostly_code(list(islice(read_corpus(corpus.folder, "train"), LOOKED_AT))):
            return name
    raise ValueError(f"of the common corpora, {', '.join(corpora)}, none is prose, whose words could be swapped")


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Quantiles of the finite values by name; None without any."""
    known = values[np.isfinite(values)]
    if not len(known):
        return dict.fromkeys(_LEVELS)
    return dict(zip(_LEVELS, map(float, np.quantile(known, list(_LEVELS.values()))), strict=True))


def _say(tables: Tables) -> Iterable[Statement]:
    for name, (source, target), (row,) in by_stitch(tables, "feature_transfer"):
        correlations = rows_of(tables, "transfer_correlations", stitch=name)
        medians = {(one["measure"], one["features"]): one["median"] for one in correlations}
        for gap in rows_of(tables, "transfer_gaps", stitch=name):
            note = f"features of {source}: {gap['part']} is left out: {gap['reason']}"
            yield Statement(f"stitch {name}", "note", note)
        if (median := medians["activation", "judged"]) is None:
            continue
        text = (
            f"Half of the {row['judged']:,} judged features of {source} correlate with their transfers in {target} "
            f"with an r above {format.value('r', median)}"
        )
        evidence = [f"{row['judged']:,} of {row['d_sae']:,} features, {row['tokens']:,} tokens"]
        if row["attribution_tokens"] is not None:
            text += f"; by their attributions, {percent(row['above'])} do so more than 95 % of random directions"
            evidence.append(f"{percent(row['negative'])} below 0 in attributions, {row['attribution_tokens']:,} tokens")
        if classes := rows_of(tables, "transfer_classes", stitch=name):
            halves = (
                f"{one['features']} {format.value('r', medians['attribution', one['features']]) or 'unknown'} "
                f"({one['n']:,})"
                for one in classes
            )
            evidence.append(f"median r of attributions: {', '.join(halves)}")
        yield Statement(f"stitch {name}", "features", f"{text}.", tuple(evidence))


ANALYSIS = Analysis(
    kind="feature_transfer",
    version=1,
    title="Single features across a stitch",
    items=lambda study: ({"stitch": name} for name, stitch in study.config.stitch.items() if stitch.features.tokens),
    settings=lambda study, item: StitchSettings.of(study, item["stitch"], "kept", "features"),
    needs=_needs,
    run=_run,
    tables=_TABLES,
    cost=lambda study, item, shapes: pass_cost(study, item["stitch"], shapes, 8),
    say=_say,
)
