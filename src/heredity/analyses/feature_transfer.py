"""What single features of the source's SAE keep in the target of a stitch (Chen et al. 2025, section 5).

Each feature stands beside its transfer, by Pearson r over tokens, zeros included: of their activations, and of their
attributions (activation times the logit weight of the next token, equation 10), the latter beside random directions
transferred alike. Features that fire on fewer than 30 tokens in the source are not judged.

Structural features fire in all versions of a text whose content words are swapped, in at least half of the texts that
they fire in; the others that fire are semantic (the paper rewrites by a language model, here words are swapped within
word classes of the corpus). A feature that fires nearly everywhere is structural for that alone, so the share expected
by chance stands beside each share. Classes are compared by the two-sided Mann-Whitney test.

Functional features (section 5.2) write where the unembedding hardly reads, or turn heads off. Entropy features have a
share of their direction's length in the unembedding's effective null space, the lowest 2 % of its singular directions,
and a push, largest activation times the direction's norm, that are both above the 95 % quantile of the judged features.
Attention deactivation features turn a head to the first token, that is, off; a head's score is the first token's
attention logit for an activation of 1, before the norm's scale. Those of the highest scores are taken from the queries
of all later heads, where they fire; told are the heads whose attention to the first token drops most (off) and least
(on). Every fifth block chooses the heads and the others measure; intervals: 95 %, over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity import format
from heredity.analyses import functional_features, structural_features
from heredity.analyses.analysis import Analysis, Cost, Item, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.functional_features import LEVELS, QUANTILES, quantiles
from heredity.analyses.loaded import across
from heredity.analyses.sae_transfer import source_sae_need
from heredity.analyses.stitch_maps import Sides, StitchSettings, by_stitch, pass_cost, percent, stitch_needs
from heredity.engine.stage import Work
from heredity.study import Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes

_BINS = np.linspace(-1, 1, 41)
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
    (_MEASURE, _GROUP, Column("n", "count", "Features with an r."), *QUANTILES),
    brief=("stitch", "measure", "features", "n", *LEVELS),
)
TRANSFER_HISTOGRAMS = Table(
    "transfer_histograms",
    "r of features with their transfers, binned.",
    ("stitch", "measure", "features", "r"),
    (_MEASURE, _GROUP, Column("r", "r", "Lower edge of the bin."), Column("n", "count", "Features in the bin.")),
    plot=Plot("histogram", x="r", y="n", by="features"),
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
    *structural_features.TABLES,
    *functional_features.TABLES,
    TRANSFERRED_FEATURES,
)


def _needs(study: Study, item: Item) -> Needs:
    name, config = item["stitch"], study.config.stitch[item["stitch"]]
    corpora = [config.features.corpus] if config.features.corpus else study.stitch_corpora(name)
    return stitch_needs(study, item, corpora, source_sae=source_sae_need(name, config.widths[0]))


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    """Passes of every part, and of each functional feature through all heads that it may move."""
    return pass_cost(study, item["stitch"], shapes, 8 + 4 * study.config.stitch[item["stitch"]].features.functional)


def _run(work: Work, settings: StitchSettings) -> Results:
    inquiry = Inquiry(work, settings)
    parts: dict[str, Callable[[Inquiry], None]] = {"attribution": attribution, "split": structural_features.split}
    if settings.config.features.functional:
        parts |= {"entropy": functional_features.entropy, "deactivation": functional_features.deactivation}
    for done, (part, answer) in enumerate(parts.items(), 1):
        try:
            answer(inquiry)
        except ValueError as error:  # a model or a text that this part cannot handle
            inquiry.rows["transfer_gaps"].append({"part": part, "reason": str(error)})
        work.progress(done, len(parts))
    return inquiry.rows | {"feature_transfer": [inquiry.row], "transferred_features": inquiry.columns}


class Inquiry:
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
        self.correlated("activation", "judged", r[self.judged])

    def correlated(self, measure: str, features: str, r: np.ndarray) -> None:
        """Quantiles and histogram of the finite r of a group."""
        key, known = {"measure": measure, "features": features}, r[np.isfinite(r)]
        self.rows["transfer_correlations"].append({**key, "n": len(known), **quantiles(known)})
        counts = np.histogram(known, _BINS)[0]
        self.rows["transfer_histograms"] += [
            {**key, "r": round(float(edge), 2), "n": int(count)} for edge, count in zip(_BINS, counts, strict=False)
        ]

    def token(self, number: int) -> str:
        """A token as text, decoded alone."""
        return self.sides.tokenizer.decode([int(number)])

    def best(self, values: np.ndarray) -> list[int]:
        """The judged features of the largest values, largest first."""
        order = np.argsort(-np.where(self.judged & np.isfinite(values), values, -np.inf), kind="stable")
        return [int(i) for i in order[: self.config.functional] if self.judged[i] and np.isfinite(values[i])]


def attribution(inquiry: Inquiry) -> None:
    """Whether features push the same next tokens in both models, beside random directions."""
    from heredity.features.fates import RARE_FIRINGS
    from heredity.stitch.functional import attribution_correlation, random_baseline

    paired = attribution_correlation(inquiry.source, inquiry.target, inquiry.blocks)
    k = max(1, round(float(paired.source_firings.sum()) / paired.tokens))
    chance = random_baseline(
        inquiry.source, inquiry.target[:2], *inquiry.sides.stitch, inquiry.blocks, k, inquiry.settings.seed
    )
    inquiry.columns["attribution_r"] = paired.r
    own, other = paired.r[inquiry.judged], chance.r[chance.source_firings >= RARE_FIRINGS]
    own, cut = own[np.isfinite(own)], quantiles(other)["q95"]
    inquiry.correlated("attribution", "judged", own)
    inquiry.correlated("attribution", "random", other)
    above = float((own > cut).mean()) if len(own) and cut is not None else None
    negative = float((own < 0).mean()) if len(own) else None
    inquiry.row |= {"attribution_tokens": paired.tokens, "k": k, "cut": cut, "above": above, "negative": negative}


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
        evidence += structural_features.evidence(tables, name, medians)
        evidence += functional_features.evidence(tables, name, (source, target))
        yield Statement(f"stitch {name}", "features", f"{text}.", tuple(evidence))


ANALYSIS = Analysis(
    kind="feature_transfer",
    version=3,
    title="Single features across a stitch",
    items=lambda study: (
        {"stitch": name}
        for name, stitch in study.config.stitch.items()
        if stitch.features.tokens and not across(study, name)
    ),
    settings=lambda study, item: StitchSettings.of(study, item["stitch"], "kept", "features"),
    needs=_needs,
    run=_run,
    tables=_TABLES,
    cost=_cost,
    say=_say,
)
