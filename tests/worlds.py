"""Worlds with a known truth: models as sums of sparse latents; and random activations with their plain definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches
from heredity.kernels.sparse import Sparse

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


class World(NamedTuple):
    """Models whose vectors are x = sum over their latents of magnitude x direction, plus noise.

    A latent fires at the same tokens with the same magnitudes in every model that has it.
    """

    density: np.ndarray  # float64 [latents]: share of tokens on which a latent fires
    group: np.ndarray  # str [latents]: the group a latent belongs to
    latents: dict[str, np.ndarray]  # by model, int64 [features]: the latent behind each feature, in an order of its own
    directions: dict[str, np.ndarray]  # by model, float32 [features, d_in]: unit rows

    def fire(self, tokens: int, rng: np.random.Generator, spread: float = 0.5) -> FeatureActs:
        """Firings of all latents: independent coins, lognormal magnitudes of the given spread (sigma)."""
        counts = rng.binomial(tokens, self.density)
        rows = np.concatenate([rng.choice(tokens, count, replace=False) for count in counts])
        latents = np.repeat(np.arange(len(counts)), counts)
        return _sparse(rows, latents, rng.lognormal(0, spread, len(rows)), tokens, len(counts))

    def acts(self, model: str, fired: FeatureActs) -> FeatureActs:
        """The true activations of a model's features [tokens, features]."""
        latents = self.latents[model]
        feature = np.full(len(self.density), -1)
        feature[latents] = np.arange(len(latents))
        own = feature[fired.indices]
        token = np.repeat(np.arange(fired.tokens), np.diff(fired.indptr))[own >= 0]
        return _sparse(token, own[own >= 0], fired.values[own >= 0], fired.tokens, len(latents))

    def x(self, model: str, fired: FeatureActs, noise: float, rng: np.random.Generator) -> np.ndarray:
        """The model's vectors, float32 [tokens, d_in]; noise: its length relative to the signal's, root mean square."""
        acts, starts = self.acts(model, fired), range(0, fired.tokens, 4096)
        x = np.concatenate([acts.rows(start, start + 4096).dense() @ self.directions[model] for start in starts])
        error = rng.standard_normal(x.shape, dtype=np.float32)
        return x + error * (noise * np.sqrt(np.square(x, dtype=np.float64).mean())).astype(np.float32)

    def has(self, model: str, other: str) -> np.ndarray:
        """bool [features of model]: whether the other model has the latent too."""
        return np.isin(self.latents[model], self.latents[other])


def plant(
    groups: Mapping[str, int], models: Mapping[str, Sequence[str]], d_in: int, l0: float, seed: int,
    rotated: Mapping[str, Sequence[str]] | None = None
) -> World:  # fmt: skip
    """A world of latents in groups.

    groups: latents in each. models: the groups each model has. l0: mean number of active latents a token in the first
    model; densities are spread like 1 / rank. rotated: by model, the groups whose directions are its own; all others
    keep one direction in every model.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(list(groups), list(groups.values()))
    density = rng.permutation(1.0 / (np.arange(len(group)) + 0.2 * len(group)))
    density *= l0 / density[np.isin(group, models[next(iter(models))])].sum()
    shared = _unit(rng.standard_normal((len(group), d_in)))
    latents, directions = {}, {}
    for model, members in models.items():
        latents[model] = rng.permutation(np.flatnonzero(np.isin(group, members)))
        own = np.isin(group[latents[model]], (rotated or {}).get(model, ()))
        turned = _unit(rng.standard_normal((len(own), d_in)))
        directions[model] = np.where(own[:, None], turned, shared[latents[model]]).astype(np.float32)
    return World(np.minimum(density, 0.5), group, latents, directions)


def measured(
    acts: FeatureActs, rng: np.random.Generator, missed: float = 0.0, jitter: float = 0.0, spurious: float = 0.0
) -> FeatureActs:
    """Activations as an imperfect SAE would report them.

    missed: share of firings that are lost, the weak ones first to go. jitter: sigma of a lognormal factor on what is
    left. spurious: false firings at random places, as a share of the true ones, with the lower half of the magnitudes.
    """
    token = np.repeat(np.arange(acts.tokens), np.diff(acts.indptr))
    # A firing survives by its magnitude with noise: the order is mostly, not only, that of the magnitudes.
    strength = np.log(acts.values) + rng.normal(0, 0.5, acts.n)
    kept = strength >= np.quantile(strength, missed) if acts.n else np.zeros(0, bool)
    values = acts.values[kept] * rng.lognormal(0, jitter, int(kept.sum()))
    places = np.unique(rng.integers(0, acts.tokens * acts.d_sae, int(spurious * acts.n)))
    places = places[~np.isin(places, token * acts.d_sae + acts.indices)]
    weak = acts.values[acts.values <= np.median(acts.values)] if len(places) else acts.values[:1]
    token = np.concatenate([token[kept], places // acts.d_sae])
    feature = np.concatenate([acts.indices[kept], places % acts.d_sae])
    values = np.concatenate([values, rng.choice(weak, len(places))])
    return _sparse(token, feature, values, acts.tokens, acts.d_sae)


def precision_and_recall(called: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Of a yes-no call against the truth, both bool [n]."""
    right = (called & truth).sum()
    return float(right / max(called.sum(), 1)), float(right / max(truth.sum(), 1))


def _sparse(token: np.ndarray, feature: np.ndarray, values: np.ndarray, tokens: int, d_sae: int) -> FeatureActs:
    order = np.argsort(token, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=tokens))])
    return FeatureActs(indptr, feature[order], values[order], d_sae)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense_to_csr(acts: torch.Tensor) -> Sparse:
    """CSR arrays of dense activations [n, d_sae] >= 0, zeros left out."""
    token, feature = acts.nonzero(as_tuple=True)
    indptr = np.concatenate([[0], np.cumsum((acts != 0).sum(1).numpy())])
    return Sparse(indptr, feature.to(torch.int32).numpy(), acts[token, feature].float().numpy(), acts.shape[1])


def dense_of(acts: Sparse) -> np.ndarray:
    """float64 [rows, width] of CSR arrays."""
    dense = np.zeros((len(acts.indptr) - 1, acts.width))
    dense[np.repeat(np.arange(len(dense)), np.diff(acts.indptr)), acts.indices] = acts.values
    return dense


def random_acts(seed: int, tokens: int = 2000, d: int = 30, density: float | None = 0.05) -> np.ndarray:
    """float32 [tokens, d]; density None: rates from 0.002 to 0.6, feature 1 dead, 4 constant, 5 always on."""
    rng = np.random.default_rng(seed)
    rate = np.geomspace(0.002, 0.6, d) if density is None else density
    acts = rng.lognormal(0, 1, (tokens, d)) * (rng.random((tokens, d)) < rate)
    if density is None:
        acts[:, 1], acts[:, 4] = 0, 0.7
        acts[:, 5] += 30
    return acts.astype(np.float32)


def dense_pearson(parent: np.ndarray, child: np.ndarray) -> np.ndarray:
    """Pearson r of all pairs of columns of [tokens, d], the plain way: float64 [d_parent, d_child], nan if constant."""
    sides = []
    for x in (np.asarray(parent, np.float64), np.asarray(child, np.float64)):
        centered = x - x.mean(0)
        norm = np.sqrt(np.square(centered).sum(0))
        norm[x.min(0) == x.max(0)] = np.nan
        sides.append(centered / norm)
    return sides[0].T @ sides[1]


def best_of(r: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(match, r) of the best partners of each row, -1 and nan where there is none; ties to the lower index."""
    r = np.concatenate([r, np.full((len(r), top), np.nan)], 1)
    order = np.argsort(np.where(np.isnan(r), np.inf, -r), axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(r, order, 1)
    return np.where(np.isnan(best), -1, order).astype(np.int32), best


def matches_of(r: np.ndarray, top: int = 5, density: tuple[np.ndarray, np.ndarray] | None = None) -> Matches:
    """What matching would keep of a full matrix of r [d_parent, d_child], nan for dead features."""
    live = density or ((~np.isnan(r).all(1)).astype(float), (~np.isnan(r).all(0)).astype(float))
    return Matches(*best_of(r, top), *best_of(r.T, top), *live, tokens=1000)
