"""Ends of edges whose answer is known, and dictionaries that nobody trained, to hold verdicts against.

A model that has no SAEs of its own, such as one made for reference, is read by the second SAE of the model that it is
compared with: what an unchanged model's SAE of another seed would find. Dictionaries of one kind read both ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from heredity.features.acts import FeatureActs
from heredity.features.ends import End, end_of
from heredity.features.transmission import Regression
from heredity.features.verdicts import Followed, Judged, judge
from heredity.sae.model import SAE

_LEAST_FIRINGS = 30  # of a token that counts as a feature


def unchanged(own: End) -> End:
    """The model itself, read by its second SAE."""
    return End(own.saes[1:], own.acts[1:], own.x, own.fitting)


def without(own: End, features: np.ndarray) -> End:
    """The model without the directions of some features of its first SAE, read by its second."""
    directions = np.linalg.qr(own.saes[0].W_dec.detach().cpu().double().numpy()[features].T)[0]
    left = [(x - (x @ directions) @ directions.T).astype(np.float32) for x in (own.x, own.fitting)]
    return end_of(own.saes[1:], *left)


def untrained(own: End, other: End, make: Callable[[End, int], SAE], seed: int) -> tuple[End, End]:
    """Both models read by two dictionaries of one kind, of different seeds."""
    saes = [make(own, seed + number) for number in (0, 1)]
    return end_of(saes, own.x, own.fitting), end_of(saes, other.x, other.fitting)


def codebook(end: End, seed: int) -> SAE:
    """Random tokens' activations, as many as the end's SAE has features."""
    size, tokens = end.saes[0].d_sae, len(end.fitting)
    chosen = np.random.default_rng(seed).choice(tokens, size, replace=tokens < size)
    return _dictionary(end, end.fitting[chosen] - end.fitting.mean(0))


def random_decoder(end: End, seed: int) -> SAE:
    """Random directions, uniform on the sphere, as many as the end's SAE has features."""
    return _dictionary(end, np.random.default_rng(seed).standard_normal(end.saes[0].W_dec.shape))


def neurons(end: End, seed: int) -> SAE:  # noqa: ARG001 (every seed gives the same)
    """The dimensions of the hook point, above and below their means."""
    return _dictionary(end, np.concatenate([np.eye(end.x.shape[1]), -np.eye(end.x.shape[1])]))


def _dictionary(end: End, rows: np.ndarray) -> SAE:
    """Features along rows [d_sae, d_in] around the mean, encoded by their transpose; as many are active per token as of
    the end's SAE."""
    rows = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    sae = SAE(rows.shape[1], len(rows), "topk", min(max(1, round(end.acts[0].l0)), len(rows)))
    sae.W_dec.copy_(torch.from_numpy(rows))
    sae.W_enc.copy_(torch.from_numpy(rows.T.copy()))
    sae.b_dec.copy_(torch.from_numpy(end.fitting.mean(0)))
    return sae.to(end.saes[0].W_enc.device)


def judge_tokens(own: End, other: End, tokens: np.ndarray, documents: np.ndarray, groups: int) -> Judged:
    """Verdicts on one feature per frequent token: 1 where it stands, the same in both models.

    tokens: int [tokens], those of the ends' activations. documents, groups: as of `ends.judge_end`.
    """
    weight, _ = own.predictor.to(other.fitting)
    acts = _token_identity(tokens)
    effect = Regression(acts, own.x, documents, groups).effects(weight, other.x)
    same = Followed.exactly(np.ones(acts.d_sae))
    return judge(effect, np.ones(acts.d_sae, bool), same, same)


def _token_identity(tokens: np.ndarray) -> FeatureActs:
    _, place, count = np.unique(tokens, return_inverse=True, return_counts=True)
    number = np.where(count >= _LEAST_FIRINGS, np.cumsum(count >= _LEAST_FIRINGS) - 1, -1)[place]
    kept = number >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])
    return FeatureActs(indptr, number[kept], np.ones(int(kept.sum())), max(1, int((count >= _LEAST_FIRINGS).sum())))


def retrained_interval(
    share: float, interval: tuple[float, float], child: np.ndarray, twin: np.ndarray
) -> tuple[float, float]:
    """A 95 % interval of a share for another training of the child, from one that covers SAE seeds and features.

    child, twin: bool [features], whether each judged feature counts in the child, and in the same fine-tune of another
    seed, both read the same way. What another training would give differs from `share` as the twin differs from the
    child, so the variance of their difference is added to the interval, on each side. It is McNemar's, of features
    that change their verdicts one by one, or the squared difference where the trainings differ as a whole by more: a
    shift of all features is known from two trainings only, with one degree of freedom.
    """
    one, other = int((child & ~twin).sum()), int((twin & ~child).sum())
    spread = 1.96 * np.sqrt(max(one + other, (one - other) ** 2)) / max(1, len(child))
    low, high = share - np.hypot(share - interval[0], spread), share + np.hypot(interval[1] - share, spread)
    return max(0.0, float(low)), min(1.0, float(high))
