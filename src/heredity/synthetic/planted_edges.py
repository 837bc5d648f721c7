"""Planted edges of realistic size: a parent and a child with a thousand true features and more, in superposition.

Sources fire on tokens; each is a true feature of the parent, of the child, or of both, as its fate says. Densities fall
like a power of the rank, documents have topics, and firings come in bursts. Sources may be organized (`structure`):

flat: they fire on their own.
trees: a root has four children that exclude each other; one of them or none fires at each firing of the root.
nested: trees of two levels: a root has three branches, a branch three leaves, each of them exclusive.
pairs: half of all sources are pairs of which the second fires at 80 % of the firings of the first, and rarely alone.
chains: of four sources each fires at 60 % of the firings of the one before it.

Fates, of sources of the parent unless something else is written:

kept: the same direction, magnitudes and tokens in the child.
rotated, turned: another direction; one at 60° to its own.
faint: 0.3 times the magnitude.
narrowed: half of its firings are gone. split: half of them have another direction, a new feature of the child.
absorbed: it is silent where a source organized below it fires; without one, at 70 % of its firings.
lost: none of it is left. new: of the child only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.synthetic.world import Rates, fire, rates

Structure = Literal["flat", "trees", "nested", "pairs", "chains"]
PLANTED = ("kept", "rotated", "turned", "faint", "narrowed", "split", "absorbed", "lost", "new")
"""Names of fates, in the order of their labels."""
_KEPT, _ROTATED, _TURNED, _FAINT, _NARROWED, _SPLIT, _ABSORBED, _LOST, _NEW = range(9)
FAINT, ABSORBED, COSINE = 0.3, 0.7, 0.5
"""Strength of faint features, share of firings that absorption takes, cosine of turned directions."""


class Organized(NamedTuple):
    """How sources of one structure hang together."""

    below: tuple[tuple[int, ...], ...]  # members of a group that each member hands its firings down to
    handed: float  # share of its firings at which it does, to one of them
    own: float = 0.0  # further firings of a member below another, as a share of that one's density
    grouped: float = 1.0  # share of sources in groups


_TREE, _NESTED = tuple(range(1, 5)), tuple(tuple(range(3 * i + 1, 3 * i + 4)) for i in range(4))
STRUCTURES: dict[Structure, Organized] = {
    "flat": Organized(((),), 0.0),
    "trees": Organized((_TREE, (), (), (), ()), 0.8),
    "nested": Organized((*_NESTED, *((),) * 9), 0.75),
    "pairs": Organized(((1,), ()), 0.8, 0.2, 0.5),
    "chains": Organized(((1,), (2,), (3,), ()), 0.6),
}


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """Sizes and statistics of a planted edge. Raises `ValueError`, naming field and value, for impossible ones."""

    features: int = 1000
    """True features of the parent."""
    d: int = 128
    """Width of both models' vectors."""
    structure: Structure = "flat"
    l0: float = 12.0
    """Mean number of true features active per token of the parent."""
    rotated: float = 0.06
    turned: float = 0.05
    faint: float = 0.05
    narrowed: float = 0.03
    split: float = 0.03
    absorbed: float = 0.02
    lost: float = 0.11
    """Shares of `features` by fate; the others are kept."""
    new: float = 0.11
    """Features of the child alone, relative to `features`."""
    rotate_space: bool = False
    """Whether all of the child's vectors are rotated by one random rotation, which changes no feature."""
    rarity: float = 0.6
    """Densities fall like (rank + 10)^−rarity; none exceeds 0.3."""
    sigma: float = 0.5
    """Standard deviation of the log of the lognormal magnitudes, whose mean is 1."""
    noise: float = 0.02
    """Share of Gaussian noise in the variance of the parent's vectors; the child has as much."""
    overlap: float = 0.5
    """Share of a feature's firings confined to documents of its topic."""
    topics: int = 20
    burst: float = 4.0
    """A feature fires in one of this many documents only, and there this many times as often."""
    document: int = 64
    """Tokens per document."""

    def __post_init__(self) -> None:
        large = math.inf
        ranges = {"features": (len(PLANTED), large), "d": (2, large), "l0": (1e-9, large), "new": (0, large)}
        ranges |= dict.fromkeys(PLANTED[_ROTATED:_NEW], (0, 1)) | {"overlap": (0, 1), "noise": (0, 0.999)}
        ranges |= dict.fromkeys(("topics", "burst", "document"), (1, large))
        ranges |= dict.fromkeys(("rarity", "sigma"), (0, large))
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must lie between {least} and {most}")
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure={self.structure!r} is unknown; choose one of {', '.join(STRUCTURES)}")
        if self.counts[_KEPT] < 0:
            raise ValueError(f"fates take {self.features - self.counts[_KEPT]} of {self.features} features; lower them")
        if self.features == self.counts[_LOST] and not self.counts[_NEW]:
            raise ValueError(f"lost={self.lost} and new={self.new} leave the child no feature; lower lost or raise new")

    @property
    def counts(self) -> list[int]:
        """Sources by fate, as in `PLANTED`."""
        others = [round(getattr(self, name) * self.features) for name in PLANTED[_ROTATED:]]
        return [self.features - sum(others[:-1]), *others]


class EdgeEnd(NamedTuple):
    """The true features of one end."""

    fate: np.ndarray  # int8 [n]: index into `PLANTED`
    directions: np.ndarray  # float32 [n, d]: unit rows


class EdgeSample(NamedTuple):
    """Both ends on the same tokens."""

    acts: tuple[FeatureActs, FeatureActs]  # of the true features of parent and child
    x: tuple[np.ndarray, np.ndarray]  # float32 [tokens, d] of parent and child
    document: np.ndarray  # int64 [tokens], never falling


class PlantedEdge:
    """A parent and a child with known features; configuration and seed determine everything."""

    def __init__(self, config: EdgeConfig, seed: int) -> None:
        """seed: 0 or more. Raises `ValueError` when the densities cannot sum to `l0`."""
        self.config, self.seed = config, seed
        rng = np.random.default_rng((seed, 0))
        fate = rng.permutation(np.repeat(np.arange(len(PLANTED)), config.counts))
        self._fate, self._organized = fate, STRUCTURES[config.structure]
        self._below = _groups(self._organized, len(fate), rng)
        density = self._densities(rng)
        topic = rng.integers(0, config.topics, len(fate))
        self._rates: Rates = rates(density, topic, config.overlap, config.topics, config.burst)
        self._to_parent = np.where(fate == _NEW, -1, np.cumsum(fate != _NEW) - 1)
        halves = np.flatnonzero(fate == _SPLIT)
        at_child = int((fate != _LOST).sum())
        self._to_child = np.where(fate == _LOST, -1, np.cumsum(fate != _LOST) - 1)
        self._half = np.full(len(fate), -1)
        self._half[halves] = at_child + np.arange(len(halves))
        at_parent = _unit(rng.standard_normal((len(fate), config.d)))
        other = _unit(rng.standard_normal((len(fate), config.d)))
        turned = other - (other * at_parent).sum(1, keepdims=True) * at_parent
        turned = COSINE * at_parent + math.sqrt(1 - COSINE**2) * _unit(turned)
        column = fate[:, None]
        directions = np.where(column == _ROTATED, other, np.where(column == _TURNED, turned, at_parent))
        directions = np.concatenate([directions[fate != _LOST], other[halves]])
        if config.rotate_space:
            directions = directions @ np.linalg.qr(rng.standard_normal((config.d, config.d)))[0]
        fates = np.concatenate([fate[fate != _LOST], fate[halves]]).astype(np.int8)
        self.parent = EdgeEnd(fate[fate != _NEW].astype(np.int8), at_parent[fate != _NEW].astype(np.float32))
        self.child = EdgeEnd(fates, directions.astype(np.float32))

    def _densities(self, rng: np.random.Generator) -> np.ndarray:
        """Share of tokens on which each source fires on its own, float64, so that l0 features of the parent do."""
        config, organized, below = self.config, self._organized, self._below
        count = len(below)
        top = np.ones(count, bool)
        top[below[below >= 0]] = False
        weight = rng.permutation((np.arange(count) + 10.0) ** -config.rarity)

        def own_and_all(scale: float) -> tuple[np.ndarray, np.ndarray]:
            own = np.where(top, np.minimum(0.3, scale * weight), 0.0)
            every, level = own.copy(), np.flatnonzero(top)
            while len(level := level[below[level, 0] >= 0]):
                under, parts = below[level], (below[level] >= 0).sum(1)
                share = np.repeat(every[level] / parts, parts)
                under = under[under >= 0]
                own[under] = organized.own * share
                every[under] = (organized.own + organized.handed) * share
                level = under
            return own, every

        low, high = 0.0, 1.0
        at_parent = self._fate != _NEW
        while own_and_all(high)[1][at_parent].sum() < config.l0:
            high *= 2
            if high > 1e9:
                most = own_and_all(high)[1][at_parent].sum()
                raise ValueError(f"l0={config.l0} is out of reach: {config.features} features make {most:.3g} at most")
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if own_and_all(middle)[1][at_parent].sum() < config.l0 else (low, middle)
        own, every = own_and_all(high)
        variance = (every[at_parent] * math.exp(config.sigma**2) - every[at_parent] ** 2).sum()
        self._noise = math.sqrt(variance / config.d * config.noise / (1 - config.noise))
        return own

    def draw(self, tokens: int, seed: int) -> EdgeSample:
        """Both ends on the first `tokens` tokens of the text of a seed. Raises `ValueError` for less than one."""
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: draw one or more")
        config, rng = self.config, np.random.default_rng((self.seed, 1, seed))
        documents = -(-tokens // config.document)
        token, source = fire(self._rates, rng.integers(0, config.topics, documents), config.document, rng)
        token, source, handed = self._hand_down(token, source, rng)
        within = token < tokens
        token, source, handed = token[within], source[within], handed[within]
        value = np.exp(config.sigma * rng.standard_normal(len(token)) - config.sigma**2 / 2)
        coin, fate = rng.random(len(token)), self._fate[source]
        taken = np.where(self._below[source, 0] >= 0, handed, coin < ABSORBED)
        gone = (fate == _NARROWED) & (coin < 0.5) | (fate == _ABSORBED) & taken | (fate == _LOST)
        at_child = np.where((fate == _SPLIT) & (coin < 0.5), self._half[source], self._to_child[source])

        def end(feature: np.ndarray, value: np.ndarray, model: EdgeEnd) -> tuple[FeatureActs, np.ndarray]:
            fires, count = feature >= 0, len(model.fate)
            indptr = np.concatenate([[0], np.cumsum(np.bincount(token[fires], minlength=tokens))])
            acts = FeatureActs(indptr, feature[fires], value[fires], count)
            rows = csr_array((acts.values, acts.indices, acts.indptr), shape=(tokens, count))
            noise = rng.standard_normal((tokens, config.d), np.float32)
            return acts, np.asarray(rows @ model.directions) + np.float32(self._noise) * noise

        parent = end(self._to_parent[source], value, self.parent)
        child = end(np.where(gone, -1, at_child), np.where(fate == _FAINT, FAINT * value, value), self.child)
        return EdgeSample((parent[0], child[0]), (parent[1], child[1]), np.arange(tokens) // config.document)

    def _hand_down(
        self, token: np.ndarray, source: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Firings with those that sources hand down, by token and source, and whether each is handed on further."""
        below = self._below
        parts = (below >= 0).sum(1)
        every, level = [], (token, source)
        while len(level[0]):
            token, source = level
            hands = (parts[source] > 0) & (rng.random(len(token)) < self._organized.handed)
            every.append((token, source, hands))
            token, source = token[hands], source[hands]
            level = token, below[source, rng.integers(0, np.maximum(parts[source], 1))]
        token, source, hands = (np.concatenate(columns) for columns in zip(*every, strict=True))
        key, first = np.unique(token * len(below) + source, return_index=True)
        return *np.divmod(key, len(below)), hands[first]


def _groups(organized: Organized, sources: int, rng: np.random.Generator) -> np.ndarray:
    """Sources that each source hands its firings down to, int64 [sources, most], -1 for none."""
    size, most = len(organized.below), max(1, *map(len, organized.below))
    below = np.full((sources, most), -1)
    members = rng.permutation(sources)[: int(organized.grouped * sources) // size * size].reshape(-1, size)
    for member, under in enumerate(organized.below):
        below[members[:, member], : len(under)] = members[:, list(under)]
    return below


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
