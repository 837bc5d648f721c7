"""Records of what single features keep on the way through a stitch."""

from __future__ import annotations

import numpy as np

from heredity.report.record import Count, Frozen, Interval, Number

_BINS = np.linspace(-1, 1, 41)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Quantiles = tuple[Number, Number, Number, Number, Number]
"""5, 25, 50, 75 and 95 % quantile; null without values."""


class SpreadSummary(Frozen):
    """Correlations of a group of features."""

    n: Count
    """Features with one."""
    quantiles: Quantiles
    """Of them."""
    histogram: tuple[Count, ...]
    """Features in 40 equal bins from -1 to 1."""


class AttributionSummary(Frozen):
    """Whether features push the same next tokens in both models (Chen et al. 2025, equation 10)."""

    tokens: Count
    """Behind every correlation."""
    trained: SpreadSummary
    """Of the source's SAE and what the maps make of it."""
    random: SpreadSummary
    """Of random directions and what the maps make of them."""
    k: Count
    """Random features that fire at a token: the L0 of the source's SAE."""
    cut: Number
    """95 % quantile of the random ones."""
    above: Number
    """Share of the trained ones above it."""
    negative: Number
    """Share of the trained ones below 0: they push the other way."""


class ClassSummary(Frozen):
    """Structural or semantic features."""

    features: Count
    """Of the class."""
    silent: Count
    """Those that never fire in the target, and so have no correlation."""
    density: Number
    """Median share of the source's tokens on which they fire."""
    attribution: SpreadSummary
    """Correlation of their attributions in both models."""
    activation: SpreadSummary
    """Correlation of their activations in both models."""


class RankTestSummary(Frozen):
    """Structural features beside semantic ones."""

    p: Number
    """Mann-Whitney test, two-sided; null unless both classes have values."""
    effect: Number
    """Chance that a structural feature's value is above a semantic one's, ties counted half."""
    interval: Interval
    """Its bootstrap interval over features."""


class SplitSummary(Frozen):
    """Features told apart by texts of one structure and other words (section 5.1)."""

    corpus: str
    """The texts are held-out documents of it."""
    prompts: Count
    """Texts."""
    versions: Count
    """Of each text, itself among them."""
    unchanged: Count
    """Texts left out, because no word of them could be swapped."""
    neither: Count
    """Judged features that fire in none of them."""
    structural: ClassSummary
    """Fire in all versions of at least half of the texts that they fire in."""
    semantic: ClassSummary
    """The rest."""
    tests: dict[str, RankTestSummary]
    """Of `attribution` and `activation` correlations, and of `density`."""


class EntropyFeature(Frozen):
    """A feature that writes where the unembedding hardly reads."""

    feature: Count
    """Its index."""
    share: Number
    """Of its direction in the effective null space of the source's unembedding."""
    carried: Number
    """The same of the transferred direction in the target."""
    push: Number
    """Norm of its direction times its largest activation, in the source."""
    carried_push: Number
    """The same in the target."""


class EntropySummary(Frozen):
    """Where features write: in the effective null space of the unembedding, or where it reads (section 5.2)."""

    source: Quantiles
    """Shares in the null space, in the source."""
    target: Quantiles
    """Of the transferred features, in the target."""
    by_chance: tuple[Number, Number]
    """Root mean square of a random direction's share, in the source and in the target."""
    dimensions: tuple[Count, Count]
    """Of the null spaces."""
    rank: Number
    """Spearman correlation of the shares in both models."""
    features: tuple[EntropyFeature, ...]
    """Those of the largest share times push."""


class HeadSummary(Frozen):
    """One head with and without one feature in its queries, where the feature fires."""

    layer: Count
    """Of the head."""
    head: Count
    """Which one."""
    score: Number
    """Attention logit of the first token for an activation of 1, before the norm divides by its scale."""
    tokens: Count
    """On which the feature fires."""
    attention: Number
    """Mean attention to the first token; null where it never fires."""
    attention_drop: Number
    """By how much it falls without the feature; above 0, the feature turns the head off."""
    norm: Number
    """Mean length of the head's output."""
    norm_drop: Number
    """By how much it falls without the feature; below 0 where the feature turns the head off."""


class DeactivationFeature(Frozen):
    """A feature that may turn a head to the first token."""

    feature: Count
    """Its index."""
    source: HeadSummary
    """The source's head that it scores highest on."""
    target: HeadSummary
    """The target's head that the transferred one scores highest on."""


class DeactivationSummary(Frozen):
    """Features that turn heads to the first token, which is to say off (section 5.2)."""

    first: str
    """The token read as the first: `bos` or `eos` of the tokenizer."""
    rank: Number
    """Spearman correlation of the features' highest scores in both models."""
    features: tuple[DeactivationFeature, ...]
    """Those of the highest scores in the source."""


class KeptSummary(Frozen):
    """What single features of the source's SAE keep in the target."""

    d_sae: Count
    """Features."""
    judged: Count
    """Those that fire often enough in the source to be judged; everything here is about them."""
    tokens: Count
    """Validation tokens that activations are correlated on."""
    activation: SpreadSummary
    """Correlation of each feature's activations in both models."""
    attribution: AttributionSummary | None
    """Null where it could not be told."""
    split: SplitSummary | None
    """Null where it could not be told."""
    entropy: EntropySummary | None
    """Null where it could not be told, or was not asked for."""
    deactivation: DeactivationSummary | None
    """Null where it could not be told, or was not asked for."""
    reasons: dict[str, str]
    """Why a part could not be told, by its name."""


def quantiles(values: np.ndarray) -> Quantiles:
    """Of the finite values; all null without any."""
    known = values[np.isfinite(values)]
    if not len(known):
        return (None, None, None, None, None)
    a, b, c, d, e = map(float, np.quantile(known, _QUANTILES))
    return a, b, c, d, e


def spread(r: np.ndarray) -> SpreadSummary:
    """Of correlations [features], nan for a feature without one."""
    known = r[np.isfinite(r)]
    counts = np.histogram(known, _BINS)[0]
    return SpreadSummary(n=len(known), quantiles=quantiles(known), histogram=tuple(int(count) for count in counts))
