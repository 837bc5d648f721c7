"""Whether two features of two models do the same to the prediction: both are taken away, and one is put in the other's
place.

The ablation fingerprint of a feature is how the log-probabilities of the next token change when its contribution is
taken away in its own model, at the tokens on which it fires most. That of its match in the other model is taken on the
same tokens, beside that of a hard negative: the next best partner that fires about as often. A match that is no better
than a hard negative says what the text is about, not what the feature does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader
from heredity.features.correlate import correlate
from heredity.features.effects import check_vocab, id_batches
from heredity.lm.evaluate import arithmetic
from heredity.lm.hooks import replaced

_PARTNERS = 10  # that a hard negative is sought among
_ALIKE = 2.0  # ratio of densities up to which features fire about as often


class Fingerprints(NamedTuple):
    """Of n features with their matches, each float64 [n]; nan where nothing of one fires on the tokens."""

    r: np.ndarray  # Pearson r of the fingerprints of feature and match, over tokens and vocabulary
    hard_negative_r: np.ndarray
    kl: np.ndarray  # mean KL(model || model without the feature) at these tokens, nats
    repaired: np.ndarray  # share of this KL that goes when the match's activation, scaled, is put in its place
    hard_negative_repaired: np.ndarray

    @property
    def passes(self) -> np.ndarray:
        """bool [n]: the match's fingerprint is like the feature's (r above 0), and more so than the hard negative's."""
        return self.r > np.fmax(self.hard_negative_r, 0)


def with_hard_negatives(own: FeatureActs, other: FeatureActs, features: np.ndarray) -> np.ndarray:
    """Features, int [n], with their best match and its hard negative: int64 [n, 3]. Features without two partners are
    left out. The hard negative is the next best partner by r whose density is within a factor of 2 of the match's, or
    the next best where none of ten is."""
    matches, firings, triples = correlate(own, other, _PARTNERS), other.firings(), []
    for feature in features:
        match, *others = (int(one) for one in matches.parent_match[feature] if one >= 0)
        alike = [one for one in others if 1 / _ALIKE <= firings[one] / firings[match] <= _ALIKE]
        if others:
            triples.append((int(feature), match, (alike or others)[0]))
    return np.array(triples, np.int64).reshape(-1, 3)


def fingerprints(
    own: Reader,
    other: Reader,
    acts: tuple[FeatureActs, FeatureActs],
    triples: np.ndarray,
    blocks: np.ndarray,
    places: int = 8,
) -> Fingerprints:
    """Fingerprints and substitutions at the highest activation of a feature in each of the blocks where it is highest.

    own, other: a model and the one SAE whose features are compared, as numbered in acts, on all tokens of the blocks.
    triples: int [n, 3] of (feature, match, hard negative). blocks: int [blocks, context] of a tokenizer both models
    use. places: blocks for each feature. Costs 7 passes over n · places blocks. A match's activations are scaled by
    least squares on all tokens. Raises ValueError for vocabularies of different size and unknown tokens.
    """
    if not len(triples):
        return Fingerprints(*np.empty((5, 0)))
    check_vocab(own.model, other.model)
    shape = len(triples), *blocks.shape
    f, m, h = (_columns(acts[side], triples[:, place]).reshape(shape) for place, side in enumerate((0, 1, 1)))
    put = [one * _scale(f, one)[:, None, None] for one in (m, h)]
    rows = np.concatenate([_highest(f[number], number, places) for number in range(len(f))])
    sums, done, vocab = np.zeros((len(triples), 11)), 0, 1
    for ids in id_batches(own.model, blocks[rows[:, 1]]):
        feature, block, position = rows[done : done + len(ids)].T
        done += len(ids)
        mine, match, hard = (part[feature, block] for part in (f, m, h))
        swapped = [part[feature, block] - mine for part in put]
        changes = [np.zeros_like(mine), -mine, *swapped]
        base, ablated, *substituted = _log_probs(own, ids, triples[feature, 0], changes, position)
        before, without = _log_probs(other, ids, triples[feature, 1], [np.zeros_like(mine), -match], position)
        (without_hard,) = _log_probs(other, ids, triples[feature, 2], [-hard], position)
        a, b, c = ablated - base, without - before, without_hard - before
        parts = [a, b, c, a * a, b * b, c * c, a * b, a * c]
        parts += [base.exp() * (base - one) for one in (ablated, *substituted)]
        np.add.at(sums, feature, torch.stack([part.sum(1) for part in parts], 1).cpu().numpy())
        vocab = base.shape[1]
    return _figures(sums, np.bincount(rows[:, 0], minlength=len(triples)), vocab)


def _columns(acts: FeatureActs, features: np.ndarray) -> np.ndarray:
    """Activations of some features, float32 [features, tokens]."""
    matrix = csr_array((acts.values, acts.indices, acts.indptr), shape=(acts.tokens, acts.d_sae))
    return matrix[:, features].toarray().T


def _scale(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The factor on g that fits f with least squared error, [features]."""
    return (f * g).sum((1, 2), dtype=np.float64) / np.maximum(np.square(g, dtype=np.float64).sum((1, 2)), 1e-30)


def _highest(f: np.ndarray, number: int, places: int) -> np.ndarray:
    """Rows (number, block, position) of the highest activation in each of the blocks where it is highest."""
    position = f.argmax(1)
    peak = f[np.arange(len(f)), position]
    chosen = np.argsort(-peak, kind="stable")[:places]
    chosen = chosen[peak[chosen] > 0]
    return np.stack([np.full(len(chosen), number), chosen, position[chosen]], axis=1)


def _log_probs(
    reader: Reader, ids: Tensor, features: np.ndarray, changes: Sequence[np.ndarray], position: np.ndarray
) -> list[Tensor]:
    """Log-probabilities of the next token at one position of each block, float64 [blocks, vocabulary], with every
    change of the blocks' activations, float32 [blocks, context], along the decoder rows of features, [blocks]."""
    sae, at = reader.sae, torch.from_numpy(np.asarray(position))
    rows = sae.W_dec[torch.from_numpy(features).to(sae.W_dec.device)]
    made = []
    for change in changes:
        moved = torch.from_numpy(np.asarray(change, np.float32)).to(rows.device)[..., None] * rows[:, None]
        with (
            replaced(reader.model, reader.hook_point, lambda x, moved=moved: x.float() + moved),
            torch.no_grad(),
            arithmetic(ids.device, reader.precision),
        ):
            logits = reader.model(input_ids=ids, use_cache=False).logits
        made.append(logits[torch.arange(len(ids)), at.to(logits.device)].double().log_softmax(-1))
    return made


def _figures(sums: np.ndarray, rows: np.ndarray, vocab: int) -> Fingerprints:
    """From sums over rows and vocabulary, [features, 11]; rows: those of each feature."""
    a, b, c, aa, bb, cc, ab, ac, kl, match, hard = sums.T
    count = np.maximum(rows * vocab, 1)

    def r(x: np.ndarray, xx: np.ndarray, ax: np.ndarray) -> np.ndarray:
        spread = (aa - a * a / count) * (xx - x * x / count)
        varies = spread > 1e-24
        return np.where(varies, (ax - a * x / count) / np.sqrt(np.where(varies, spread, 1)), np.nan)

    known = kl > 1e-12
    repaired = [np.where(known, 1 - left / np.where(known, kl, 1), np.nan) for left in (match, hard)]
    return Fingerprints(r(b, bb, ab), r(c, cc, ac), kl / np.maximum(rows, 1), *repaired)
