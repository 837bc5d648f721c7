"""How far a model's activations move with a feature of another model, all its other features fixed.

Activations of both models are regressed on all features of the feature's own SAE at once. Row i of the coefficients is
how far a model's activations move per unit of feature i while all other features stay as they are, so that what
features that fire together with it do is not counted as its own. `strength` is the length of the row in the other model
over that in its own; `direction` its cosine with the image of the own row under the affine map that fits all
activations best, so that a change of basis is no change; `transmission` their product. Such a map forgets directions
that the other model lost; `retained` looks along the feature's own decoder row instead, turned by an orthogonal map:
the part of the other model's row that lies along it over the part of its own.

Two things beside a lost feature leave something in its row. Features that only the other model has may fire together
with it (the child of a new root, half of a new pair) and count as its own, since no regressor stands for them;
`remainder` is the strength in what they leave of the other model's activations. And a latent often writes what fires
with its feature as well (an ancestor that it absorbed, a neighbor that the SAE has no feature for), which the other
model still has: `residual_strength` and `residual_retained` are `remainder` and `retained` off the directions, two at
most, of other features of both models that the other model's row lies along.

Standard errors: jackknife over groups of documents, to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups
from heredity.kernels.grouped import COLUMNS, products_of, scores_of
from heredity.kernels.processors import free_memory
from heredity.kernels.sparse import in_ranges, moments

LEAST_RESIDUAL = 0.3
"""Share of its own row's squared length that the residual of a feature must keep; it has none otherwise."""
SHARED_STRENGTH = 0.5
"""Strength above which a feature is one of both models."""
_OWN_COSINE = 0.7  # with its own row, above which a direction is the feature's own
_MOST_DIRECTIONS = 2  # that a residual is taken off
_BEYOND_CHANCE = 1.25  # cosine of a row with such a direction, over the largest expected of as many random ones
_LEAST_NEW = 0.1  # length of a direction off those before it, below which it is none
_LEAST_TOLD = 1e-3  # of the squared length of an effect, which is left when its variance is taken off
LEAST_FIRINGS = 10  # of a feature whose effect is estimated
_RIDGE = 1e-3  # of the median variance, against features that never fire apart
_COLUMNS = 128  # of the activations regressed at a time
_OPENBLAS = 8192  # rows of the largest matrix that SciPy's is trusted with: on several threads it crashes at 16,384
_TOGETHER = 512  # tokens that are made float64 at a time, and stay in the cache
_BLOCK = 1024  # features whose Gram matrix is made at a time
_PAIRS = {
    "own": ("own", "own"),
    "image": ("image", "image"),
    "other": ("other", "other"),
    "across": ("image", "other"),
    "rest": ("rest", "rest"),
}


class Effects(NamedTuple):
    """Effects of every feature in another model relative to its own, float64 [d_sae]; nan for features that fired on
    fewer than 10 tokens or never vary, and for those whose own effect is not told from noise. Errors are standard
    errors."""

    strength: np.ndarray
    strength_error: np.ndarray
    direction: np.ndarray
    direction_error: np.ndarray
    transmission: np.ndarray
    transmission_error: np.ndarray
    remainder: np.ndarray
    remainder_error: np.ndarray
    retained: np.ndarray
    retained_error: np.ndarray
    residual_strength: np.ndarray  # nan where less than `LEAST_RESIDUAL` of its own row is left
    residual_strength_error: np.ndarray
    residual_retained: np.ndarray
    residual_retained_error: np.ndarray
    apart: np.ndarray  # share of a feature's variance that the other features do not explain
    groups: int  # of documents

    @classmethod
    def unknown(cls, d_sae: int) -> Effects:
        """Of features that were not regressed."""
        return cls(*np.full((len(cls._fields) - 1, d_sae), np.nan), groups=0)


class Predictor:
    """Affine maps of least squared error from one model's activations to any others on the same tokens."""

    def __init__(self, x: np.ndarray) -> None:
        """x: [tokens, d_in]. A ridge of 1e-6 of the mean variance keeps dimensions that never vary at 0."""
        self._x, self._mean = x, x.mean(0, dtype=np.float64)
        covariance = centered_products(x, x)
        ridge = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-30)
        covariance[np.diag_indices_from(covariance)] += ridge
        self._factor = linalg.cho_factor(covariance, overwrite_a=True)

    def to(self, y: np.ndarray, products: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The map to y [tokens, d_out]: weight [d_in, d_out], bias [d_out], both float64. products:
        `centered_products` of x and y, where they are known."""
        products = centered_products(self._x, y) if products is None else products
        weight = linalg.cho_solve(self._factor, products)
        return weight, y.mean(0, dtype=np.float64) - self._mean @ weight


def mapped(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x [tokens, d_in] through an affine map of float64, as `Predictor.to` gives it: float32 [tokens, d_out]."""
    made = np.empty((len(x), len(bias)), np.float32)
    for start in range(0, len(x), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        made[part] = x[part] @ weight + bias
    return made


def centered_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Products of x [tokens, d_x] and y [tokens, d_y] less their means, summed over tokens: float64 [d_x, d_y]."""
    means = [each.mean(0, dtype=np.float64) for each in (x, y)]
    total = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        total += (x[part] - means[0]).T @ (y[part] - means[1])
    return total


def orthogonal(products: np.ndarray) -> np.ndarray:
    """The orthogonal map from x [tokens, d_in] to y [tokens, d_out] of least squared error, up to scale (Procrustes):
    [d_in, d_out], float64. The identity where widths are equal and it fits nearly as well: models of one family share
    their basis, and directions that hardly vary say nothing about a map. products: `centered_products` of x and y."""
    left, values, right = np.linalg.svd(products, full_matrices=False)
    if products.shape[0] == products.shape[1] and float(np.trace(products)) >= 0.9 * float(values.sum()):
        return np.eye(len(products))
    return left @ right


class TooWideError(ValueError):
    """More features fire than there is memory to regress on at once; says how many, and what they would take."""


class Regression:
    """A model's activations regressed on all features of its SAE at once, to be compared with any other model's.

    What is only the model's own is made once: the inverse of the features' Gram matrix, and what each group of
    documents adds to the coefficients. Memory in bytes: of the features that fire, 16 d_sae² and 64 d_sae d_own, 6 GiB
    at 16,384 features of 2,048 dimensions, beside copies of the activations.
    """

    def __init__(self, acts: FeatureActs, own: np.ndarray, documents: np.ndarray, seed: int = 0) -> None:
        """acts: [tokens, d_sae] of an SAE on its own model; own [tokens, d_own]: that model's activations; documents:
        int [tokens]; seed: of their groups.

        Raises ValueError for samples of different length or fewer than two documents, TooWideError where what this
        takes is more than is free.
        """
        self._same_tokens(acts.tokens, own, documents)
        group = document_groups(documents, 16, seed)
        self._order, self._groups, self._d_sae = np.argsort(group, kind="stable"), int(group.max()) + 1, acts.d_sae
        if self._groups < 2:
            raise ValueError("all tokens are of one document; give text of two or more, of ten for usable errors")
        self._bounds = np.searchsorted(group[self._order], np.arange(self._groups + 1))
        # A feature that never varies has no effect that could be told from what is always there.
        self._seen = np.flatnonzero((acts.firings() >= LEAST_FIRINGS) & (moments(acts.sparse).square > 0))
        needed, free = len(self._seen) * (16 * len(self._seen) + 64 * own.shape[1]), free_memory()
        if needed > free:
            wide = f"{len(self._seen):,} features that fire take {needed / 2**30:.0f} GiB to be told apart"
            raise TooWideError(
                f"{wide}, and {free / 2**30:.0f} are free; judge on fewer tokens, or with a narrower SAE"
            )
        if not len(self._seen):
            return
        self._features = acts.matrix()[self._order][:, self._seen]
        self._mean = np.asarray(self._features.mean(0)).ravel()
        inverse, self._apart = _inverse(self._features, self._mean)
        self._own = own[self._order]
        self._rows = _rows(inverse, self._features, self._own)
        self._exact, self._inverse = inverse, inverse.astype(np.float32)

    @staticmethod
    def _same_tokens(tokens: int, *parts: np.ndarray) -> None:
        if any(len(part) != tokens for part in parts):
            sizes = ", ".join(str(len(part)) for part in parts)
            raise ValueError(f"{tokens} tokens of features, and {sizes} of activations and documents; give the same")

    @cached_property
    def _own_moved(self) -> np.ndarray:
        return self._moved(self._inverse, self._own, self._rows)

    def effects(
        self,
        weight: np.ndarray,
        other: np.ndarray,
        alone: np.ndarray | None = None,
        directions: tuple[np.ndarray, np.ndarray] | None = None,
        shared: tuple[np.ndarray, np.ndarray] | None = None,
        wanted: np.ndarray | None = None,
    ) -> Effects:
        """Effects of the features in another model, relative to their own.

        other [tokens, d_other]: the other model's activations on the same tokens; weight [d_own, d_other]: of the
        affine map from its own activations that fits `other` best, fitted on other tokens. alone [tokens, d_other]:
        what features that only the other model has add to its activations; None: nothing. directions: the SAE's decoder
        rows [d_sae, d_own] and their images [d_sae, d_other] under an orthogonal map, for `retained`, which is nan
        without them. shared: directions [n, d_own] and [n, d_other] of features of the other model's SAEs that both
        models have, for residuals, beside those of the SAE itself. wanted: bool [d_sae], features whose effects are
        asked for, nan for others; None: all. Time grows like d_sae d times the features that are wanted.

        Raises ValueError for samples of different length.
        """
        columns = np.full((len(Effects._fields) - 1, self._d_sae), np.nan)
        self._same_tokens(len(self._order), other, *(() if alone is None else (alone,)))
        chosen = np.arange(len(self._seen)) if wanted is None else np.flatnonzero(wanted[self._seen])
        if not len(chosen):
            return Effects(*columns, groups=self._groups)
        parts = {"other": other[self._order]}
        parts |= {} if alone is None else {"rest": parts["other"] - alone[self._order]}
        rows = {"own": self._rows, "image": self._rows @ weight}
        rows |= {name: _rows(self._exact, self._features, x) for name, x in parts.items()}
        rows.setdefault("rest", rows["other"])
        found = _bases(rows["own"], rows["other"], shared)
        bases = {end: [each[chosen] for each in each_of] for end, each_of in found.items()}
        lines = {f"{of} {k}": (of, each) for of in ("own", "rest") for k, each in enumerate(bases[of])}
        for end, written in zip(("own", "other"), directions or (), strict=False):
            along = written[self._seen[chosen]].astype(np.float64)
            lines |= {f"{end} retained": (end, along)}
            lines |= {f"{end} residual": (end, _off(along, bases["own" if end == "own" else "rest"]))}
        sums, solver = _Sums(self._groups, len(chosen), lines), self._inverse[chosen]
        own_moved, turned = self._own_moved[:, chosen], weight.astype(np.float32)
        for start in range(0, max(weight.shape), _COLUMNS):
            at = slice(start, start + _COLUMNS)
            moved = {name: self._moved(solver, x[:, at], rows[name][:, at]) for name, x in parts.items()}
            moved |= {"own": own_moved[:, :, at], "image": own_moved @ turned[:, at]}
            moved.setdefault("rest", moved["other"])
            sums.add({name: each[chosen, at] for name, each in rows.items()}, moved, at)
        estimates, errors = sums.result()
        columns[:-1, self._seen[chosen]] = np.stack([estimates, errors], axis=1).reshape(len(columns) - 1, -1)
        columns[-1, self._seen[chosen]] = self._apart[chosen]
        return Effects(*columns, groups=self._groups)

    def _moved(self, solver: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What each group of documents adds to rows, to first order: float32 [groups, features, columns].

        solver [features, all features]: rows of the inverse. Products are float32: what they make are errors.
        """
        made = np.empty((self._groups, len(solver), x.shape[1]), np.float32)
        mean, f = x.mean(0, dtype=np.float64), self._features
        for start in range(0, x.shape[1], _COLUMNS):
            at = slice(start, start + _COLUMNS)
            some, y = np.ascontiguousarray(rows[:, at]), np.ascontiguousarray(x[:, at])
            scores = np.empty((self._groups, *some.shape), np.float32)
            given = self._bounds, y, mean[at] - self._mean @ some, some, self._mean, scores, COLUMNS
            pieces, cost = self._groups * -(-some.shape[1] // COLUMNS), 2 * f.nnz * some.shape[1]
            in_ranges(partial(scores_of, f.indptr, f.indices, f.data, *given), pieces, cost, 2)
            for group in range(self._groups):
                made[group, :, at] = solver @ scores[group]
        return made


class _Sums:
    """Inner products of rows, summed over columns, with what leaving out each group of documents makes of them."""

    def __init__(self, groups: int, features: int, lines: dict[str, tuple[str, np.ndarray]]) -> None:
        """lines: by name, the rows to take and what along, a direction for each feature [features, d]."""
        self._groups, self._lines = groups, lines
        self._products = {name: np.zeros(features) for name in _PAIRS}
        self._noise = {name: np.zeros(features) for name in _PAIRS}
        self._without = {name: np.zeros((groups, features)) for name in _PAIRS}
        self._along = {name: np.zeros((groups + 1, features)) for name in lines}  # the last without no group

    def add(self, rows: dict[str, np.ndarray], moved: dict[str, np.ndarray], at: slice) -> None:
        """Add some columns: rows [features, columns] by name, and what each group adds to them [groups, ...]."""
        for name, (a, b) in _PAIRS.items():
            both = np.einsum("gfd,gfd->gf", moved[a], moved[b], dtype=np.float64)
            self._products[name] += (rows[a] * rows[b]).sum(1)
            self._noise[name] += both.sum(0)
            crossed = (np.einsum("fd,gfd->gf", rows[i], moved[j]) for i, j in ((a, b), (b, a)))
            self._without[name] += both - sum(crossed)
        for name, (of, direction) in self._lines.items():
            self._along[name] += (rows[of] * direction[:, at]).sum(1)
            self._along[name][: self._groups] -= np.einsum("gfd,fd->gf", moved[of], direction[:, at])

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Estimates in the order of `Effects`, and their standard errors, each float64 [estimates, features]."""
        groups = self._groups
        each = np.stack([self._ratios(group) for group in (*range(groups), None)])
        # Nothing can be said relative to an effect that is noise alone.
        own, noise = self._products["own"], self._noise["own"]
        each[:, :, ~(own - noise > _LEAST_TOLD * own)] = np.nan
        left_out = each[:groups]
        return each[-1], np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean(0)).sum(0))

    def _ratios(self, group: int | None) -> np.ndarray:
        """Estimates without a group of documents."""
        at = self._groups if group is None else group
        # A squared length of an estimate holds its variance, which the jackknife knows.
        free = {name: self._products[name] - self._noise[name] for name in _PAIRS}
        if group is not None:
            free = {name: value + self._without[name][group] for name, value in free.items()}
        least = 1e-12 * np.maximum(self._products["own"], 1e-30)
        own, image, other, rest = (np.sqrt(np.maximum(free[name], least)) for name in ("own", "image", "other", "rest"))
        residual_own, residual_rest = (
            np.sqrt(np.maximum(free[of] - sum(self._squared(f"{of} {k}", at) for k in range(_MOST_DIRECTIONS)), least))
            for of in ("own", "rest")
        )
        left = np.where(residual_own**2 >= LEAST_RESIDUAL * own**2, residual_own, np.nan)
        strength, direction = other / own, free["across"] / (image * other)
        retained, residual = (self._part(name, at) for name in ("retained", "residual"))
        estimates = strength, direction, strength * direction, rest / own, retained, residual_rest / left, residual
        return np.stack(estimates)

    def _squared(self, line: str, at: int) -> np.ndarray | float:
        """Squared length of rows along a direction, free of its variance."""
        if line not in self._along:
            return 0.0
        along = self._along[line]
        return along[at] ** 2 - np.square(along[-1] - along[:-1]).sum(0)

    def _part(self, line: str, at: int) -> np.ndarray:
        """Part of the other model's rows along a direction over that of its own; nan without directions."""
        if f"own {line}" not in self._along:
            return np.full(len(self._products["own"]), np.nan)
        own = self._along[f"own {line}"][at]
        return self._along[f"other {line}"][at] / np.where(own == 0, np.nan, own)


def _rows(inverse: np.ndarray, features: csr_array, x: np.ndarray) -> np.ndarray:
    """Regression coefficients of activations [tokens, d] on all features: float64 [features, d]."""
    products, x = np.empty((len(inverse), x.shape[1])), np.ascontiguousarray(x)
    work = partial(
        products_of, features.indptr, features.indices, features.data, x, x.mean(0, dtype=np.float64), products, COLUMNS
    )
    in_ranges(work, -(-x.shape[1] // COLUMNS), features.nnz * x.shape[1], 2)
    return inverse @ products


def _bases(
    own: np.ndarray, other: np.ndarray, shared: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, list[np.ndarray]]:
    """What the residual of each feature is taken off, at both ends (`own`, `rest`): orthonormal directions [features,
    d], rows of zeros where there are fewer.

    They are the directions of other features of both models that its row in the other model lies along, greedily, and
    more than the largest of as many random directions would; none is its own (a cosine of 0.7 in its own model).
    """
    there = np.linalg.norm(other, axis=1) > SHARED_STRENGTH * np.linalg.norm(own, axis=1)
    candidates = own[there], other[there]
    if shared is not None:
        candidates = tuple(np.concatenate(pair) for pair in zip(candidates, shared, strict=True))
    at_own, at_other = (_unit(each).astype(np.float32) for each in candidates)
    bases: dict[str, list[np.ndarray]] = {"own": [], "rest": []}
    if not len(at_own):
        return bases
    least = _BEYOND_CHANCE * np.sqrt(2 * np.log(max(2, len(at_own))) / other.shape[1])
    for _ in range(_MOST_DIRECTIONS):
        best, cosine, residual = np.zeros(len(own), np.int64), np.zeros(len(own)), _unit(_off(other, bases["rest"]))
        for start in range(0, len(own), _BLOCK):
            block = slice(start, start + _BLOCK)
            along = np.abs(residual[block].astype(np.float32) @ at_other.T)
            along[np.abs(_unit(own[block]).astype(np.float32) @ at_own.T) > _OWN_COSINE] = 0
            best[block], cosine[block] = along.argmax(1), along.max(1)
        for end, directions in (("own", at_own), ("rest", at_other)):
            new = _off(directions[best].astype(np.float64), bases[end])
            usable = (cosine > least) & (np.linalg.norm(new, axis=1) > _LEAST_NEW)
            bases[end].append(np.where(usable[:, None], _unit(new), 0))
    return bases


def _off(rows: np.ndarray, basis: Sequence[np.ndarray]) -> np.ndarray:
    """Rows without their parts along orthonormal directions."""
    return rows - sum((rows * each).sum(1, keepdims=True) * each for each in basis) if basis else rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _inverse(features: csr_array, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of the features' centered Gram matrix with its ridge, and the share of each feature's variance that the
    others do not explain: 1 / (Gram_ii (Gram⁻¹)_ii). Products with the inverse are several times as fast as solving
    with the Cholesky factor, for the many right-hand sides there are."""
    tokens, count = len(features.indptr) - 1, len(mean)
    gram = np.empty((count, count), order="F")
    transposed = features.T.tocsr()
    for start in range(0, count, _BLOCK):  # whole, the sparse product takes more than the matrix it becomes
        block = slice(start, start + _BLOCK)
        gram[:, block] = (transposed @ features[:, block]).toarray()
        gram[:, block] -= np.outer(tokens * mean, mean[block])
    gram[np.diag_indices_from(gram)] += _RIDGE * float(np.median(np.diag(gram)))
    own = np.diag(gram).copy()
    if count > _OPENBLAS:
        factor = torch.linalg.cholesky(torch.from_numpy(gram.T), out=torch.from_numpy(gram.T))
        inverse = torch.cholesky_inverse(factor).numpy()
        return inverse, 1 / (own * np.diag(inverse))
    factor = linalg.cho_factor(gram, lower=True, overwrite_a=True)[0]
    inverse, _ = linalg.get_lapack_funcs(("potri",), (factor,))[0](factor, lower=True, overwrite_c=True)
    for start in range(0, count, _BLOCK):  # LAPACK fills the lower triangle alone
        block, below = slice(start, start + _BLOCK), slice(start + _BLOCK, count)
        inverse[block, below] = inverse[below, block].T
        lower = np.tril(inverse[block, block])
        inverse[block, block] = lower + np.tril(lower, -1).T
    return inverse, 1 / (own * np.diag(inverse))
