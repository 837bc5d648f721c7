"""Does a feature mean a set of tokens? Log-likelihood ratios of every feature at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.kernels.sparse import moments

MINIMUM_FIRINGS = 20
"""Firings on the set below which `best_feature` passes a feature over."""


class LLR(NamedTuple):
    """How well each feature fits the hypothesis "it fires on these tokens".

    A feature that never fires has nan everywhere.
    """

    weighted: np.ndarray
    """float64 [d_sae]: log(P_act(t in set) / P(t in set)) in nats, firings weighted by activation; -inf when it never
    fires on the set."""
    counted: np.ndarray
    """float64 [d_sae]: the same with every firing counted once."""
    base_rate: float
    """P(t in set): share of the tokens that are in the set. No LLR exceeds -log(base_rate)."""
    sensitivity: np.ndarray
    """float64 [d_sae]: Pearson r of the activation and the indicator of the set, silent positions included."""
    firings: np.ndarray
    """int64 [d_sae]: tokens on which the feature fires."""
    hits: np.ndarray
    """int64 [d_sae]: those of them that are in the set."""


def llr(acts: FeatureActs, hit: np.ndarray) -> LLR:
    """Log-likelihood ratios of all features under a token-set hypothesis (Horn & Elliott, appendix D).

    P(t in set) is the unigram probability of the set on the sample; P_act is the distribution of tokens a feature
    fires on. (The paper leaves open how its one number a feature is weighted: both ways are given.) Activations are
    taken to be positive; a feature whose activations sum to 0 or less has weighted LLR nan.

    hit: bool [tokens], whether the token at each position is in the set.
    Raises `ValueError` when no token or every token is in the set.
    """
    hit = np.asarray(hit, bool)
    base_rate = float(hit.mean()) if hit.shape == (acts.tokens,) and acts.tokens else float("nan")
    if not 0 < base_rate < 1:
        raise ValueError(
            f"hit of shape {hit.shape} marks {int(hit.sum())} of {acts.tokens} tokens; one bool a token is needed, "
            "some tokens in the set and some not"
        )
    everywhere, inside = moments(acts.sparse), moments(acts.where(hit).sparse)
    counted = _log_ratio(inside.stored, everywhere.stored, base_rate)
    weighted = _log_ratio(inside.total, everywhere.total, base_rate)
    # The indicator has mean p and centered norm sqrt(T p (1 - p)).
    covariance = inside.total - everywhere.total * base_rate
    norm = np.sqrt(everywhere.square * acts.tokens * base_rate * (1 - base_rate))
    sensitivity = np.divide(covariance, norm, out=np.full(acts.d_sae, np.nan), where=norm > 0)
    return LLR(weighted, counted, base_rate, np.clip(sensitivity, -1, 1), everywhere.stored, inside.stored)


def _log_ratio(inside: np.ndarray, everywhere: np.ndarray, base_rate: float) -> np.ndarray:
    """log(inside / everywhere / base_rate); nan where a sum that should be positive is not."""
    share = np.divide(inside, everywhere, out=np.full(len(inside), np.nan), where=everywhere > 0)
    ratio = np.where(share >= 0, share, np.nan) / base_rate
    return np.log(ratio, out=np.full(len(inside), -np.inf), where=ratio != 0)


def best_feature(found: LLR, minimum_firings: int = MINIMUM_FIRINGS) -> int | None:
    """The feature that stands for the hypothesis: of the features that fire at least `minimum_firings` times on the set
    and more on it than by chance (both LLRs above 0), the one with the highest sensitivity; ties to the lower index.

    Not the highest LLR: every feature that fires on the set alone reaches the same maximum, however rarely it fires.
    Sensitivity also asks that it fires whenever the tokens occur. None when no feature qualifies.
    """
    fits = (found.hits >= minimum_firings) & (found.weighted > 0) & (found.counted > 0)
    score = np.where(fits & np.isfinite(found.sensitivity), found.sensitivity, -np.inf)
    chosen = int(np.argmax(score)) if len(score) else -1
    return chosen if chosen >= 0 and np.isfinite(score[chosen]) else None
