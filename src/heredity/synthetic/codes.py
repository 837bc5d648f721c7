"""Feature activations of untrained SAEs: true activations with an SAE's errors added.

A code is a·F at the firings it does not miss, with a lognormal factor F of mean 1, and fires falsely elsewhere. Effects
that depend on x are absent: directions, interference, and the higher miss rate of faint features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.synthetic.world import Sample, World


class Code(NamedTuple):
    """Activations of one untrained SAE, with the truth."""

    acts: FeatureActs
    """[tokens, d_sae]."""
    feature: np.ndarray
    """int32 [d_sae]: the true feature behind each SAE feature."""


def noisy_code(
    acts: FeatureActs,
    rng: np.random.Generator,
    reliability: float = 0.9,
    miss: float | np.ndarray = 0.1,
    false_fire: float = 0.05,
) -> Code:
    """The code of an SAE whose features are the true ones, in random order.

    acts: true activations. reliability: r of the code with the truth due to the factor alone, for rare features:
    E F² = 1 / reliability². miss: share of firings left out at random, one number or float [d_sae]. false_fire: false
    firings as a share of the true ones, feature by feature, at uniform places and with the magnitudes of true ones;
    nothing is added where the feature fires anyway. Raises `ValueError` for shares out of range.

    A rare feature's code has r = reliability (1 − miss) / √(1 − miss + false_fire) with the true activation; two codes
    of one true feature with independent errors have the product of their values.
    """
    if not 0 < reliability <= 1:
        raise ValueError(f"reliability={reliability} is an r; give more than 0 and at most 1")
    missed = np.broadcast_to(np.asarray(miss, np.float64), acts.d_sae)
    if not ((missed >= 0) & (missed <= 1)).all() or false_fire < 0:
        raise ValueError(f"miss={miss} must lie between 0 and 1, and false_fire={false_fire} must not be negative")
    order = rng.permutation(acts.d_sae)
    token = np.repeat(np.arange(acts.tokens), np.diff(acts.indptr))
    key = token * acts.d_sae + acts.indices
    kept = rng.random(acts.n) >= missed[acts.indices]
    copied = rng.integers(0, max(acts.n, 1), rng.poisson(false_fire * acts.n))
    false = rng.integers(0, max(acts.tokens, 1), len(copied)) * acts.d_sae + acts.indices[copied]
    every = np.concatenate([key, false])
    by_key = np.argsort(every, kind="stable")  # a true firing comes before the false ones at its place
    first = np.diff(every[by_key], prepend=-1) > 0
    chosen = by_key[first & np.concatenate([kept, np.ones(len(false), bool)])[by_key]]
    token, feature = np.divmod(every[chosen], acts.d_sae)
    variance = -2 * math.log(reliability)
    factor = np.exp(math.sqrt(variance) * rng.standard_normal(len(chosen)) - variance / 2)
    values = np.concatenate([acts.values, acts.values[copied]])[chosen] * factor
    indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=acts.tokens))])
    return Code(FeatureActs(indptr, np.argsort(order)[feature], values, acts.d_sae), order.astype(np.int32))


def noisy_codes(
    world: World, tokens: int, seed: int, reliability: float = 0.9, miss: float = 0.1, false_fire: float = 0.05
) -> tuple[Code, Code, Sample]:
    """Codes of parent and child on `world.draw(tokens, seed)`, with independent errors, and this sample.

    The other arguments are those of `noisy_code`.
    """
    sample = world.draw(tokens, seed)
    # The last number separates the errors from the draws of the text, which use the same seed.
    rngs = [np.random.default_rng((world.seed, seed, end, 99)) for end in (0, 1)]
    parent = noisy_code(sample.parent, rngs[0], reliability, miss, false_fire)
    child = noisy_code(sample.child, rngs[1], reliability, miss, false_fire)
    return parent, child, sample
