"""Pairs of models with known true features and known fates of them in the child.

A model's vectors are x = Σ a_i direction_i + noise over its true features. Each true feature follows a source, which
fires on the same tokens with the same magnitude at both ends; the fate decides what the child makes of it.

A source fires by coin flips at its density. They depend on the document in two ways, neither of which changes the mean
density: with `overlap`, unrelated features of one topic fire together; with `burst`, a feature's firings gather in few
documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.kernels.sparse import compiled

End = Literal["parent", "child"]
KEPT, ROTATED, FAINT, NOISY, SPLIT, MERGED, LOST, NEW = range(8)  # labels of fates
FATES = ("kept", "rotated", "faint", "noisy", "split", "merged", "lost", "new")  # their names

BLOCK = 16_384
"""Tokens drawn at a time, rounded down to whole documents, each block with its own seed. Changing it changes every
sample."""
_MAX_DENSITY = 0.5
_MAX_CHANCE = 0.9  # of firing at a token of a document that suits the feature
_TEXT, _FATES, _PARENT_NOISE, _CHILD_NOISE = range(4)  # independent random streams within a block


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes and statistics of a planted world. Raises `ValueError`, naming field and value, for impossible ones."""

    d: int = 64  # width of both models' vectors
    # Numbers of features by fate; they fire on the same tokens at both ends, unless something else is written.
    kept: int = 60  # same direction at both ends
    rotated: int = 20  # new direction in the child
    faint: int = 0  # same direction, `faint_strength` times the activation in the child
    noisy: int = 0  # part of their firings is redrawn in the child, so that r across the edge is `noisy_r`
    split: int = 0  # of the parent: two in the child, a fair coin per firing; one of them has a new direction
    merged: int = 0  # of the child: fires when either of two parent features does, with the larger activation, halfway
    lost: int = 80  # of the parent only
    new: int = 80  # of the child only
    noisy_r: float = 0.7  # slightly higher in truth with `overlap`, because the topic stays
    faint_strength: float = 0.3
    l0: float = 6.0  # mean number of true features active per token of the parent
    rarity: float = 0.5  # densities fall like rank^−rarity; 0: all are equal. None exceeds one half
    rare: float = 0.0  # share of features whose density is `rare_density` instead
    rare_density: float = 1e-3
    sigma: float = 0.5  # standard deviation of the log of the lognormal magnitudes, whose mean is 1
    noise: float = 0.02  # share of Gaussian noise in the variance of x
    overlap: float = 0.0
    """Share of a feature's firings confined to documents of its topic; 0: features are independent. A feature too
    frequent for that is confined as far as possible."""
    topics: int = 16  # each document and each feature has one of them
    burst: float = 4.0
    """A feature fires in one of this many documents only, and there this many times as often; 1: tokens are
    independent apart from the topic. Less for features too frequent for that."""
    document: int = 64  # tokens per document

    def __post_init__(self) -> None:
        positive = (1e-9, math.inf)
        ranges = dict.fromkeys((*FATES, "rarity", "sigma"), (0, math.inf)) | {
            "l0": positive,
            "faint_strength": positive,
        }
        ranges |= dict.fromkeys(("d", "topics", "burst"), (1, math.inf)) | {"document": (1, BLOCK)}
        ranges |= dict.fromkeys(("rare", "overlap", "noisy_r"), (0, 1))
        ranges |= {"noise": (0, 0.999), "rare_density": (1e-9, _MAX_DENSITY)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must lie between {least} and {most}")
        if not self.parents or not self.children:
            raise ValueError(f"{self.parents} parent and {self.children} child features; each end needs one or more")

    @property
    def parents(self) -> int:
        """True features of the parent."""
        return self.kept + self.rotated + self.faint + self.noisy + self.split + 2 * self.merged + self.lost

    @property
    def children(self) -> int:
        """True features of the child."""
        return self.kept + self.rotated + self.faint + self.noisy + 2 * self.split + self.merged + self.new


class Model(NamedTuple):
    """The true features of one end."""

    directions: np.ndarray  # float32 [n, d]: unit rows; more rows than d are in superposition
    fate: np.ndarray  # int8 [n]: KEPT ... NEW
    density: np.ndarray  # float64 [n]: expected share of tokens on which a feature fires
    partners: np.ndarray  # int32 [n, 2]: the features it became or came from at the other end; -1 for none
    noise_deviation: float  # standard deviation of the noise in each element of x


class Sample(NamedTuple):
    """True activations of both ends on the same tokens."""

    parent: FeatureActs  # [n, parent features]
    child: FeatureActs  # [n, child features]
    document: np.ndarray  # int64 [n]: document of each token, never falling


class World:
    """A parent and a child with known features; configuration and seed determine everything."""

    def __init__(self, config: WorldConfig, seed: int) -> None:
        """seed: 0 or more. Raises `ValueError` when the densities cannot sum to `l0`."""
        self.config, self.seed = config, seed
        rng = np.random.default_rng(seed)
        self._sources = _draw_sources(config, rng)
        self.parent, self.child = _draw_models(config, self._sources, rng)
        sources = self._sources
        self._rates = rates(sources.density, sources.topic, config.overlap, config.topics, config.burst)

    def draw(self, tokens: int, seed: int) -> Sample:
        """True activations on the first `tokens` tokens of the text of a seed; memory grows with tokens × l0.

        A longer sample continues a shorter one. Raises `ValueError` for less than one token.
        """
        blocks = list(self._blocks(tokens, seed))
        parent = FeatureActs.concatenate([text.parent.rows(0, n) for _, n, text in blocks])
        child = FeatureActs.concatenate([text.child.rows(0, n) for _, n, text in blocks])
        return Sample(parent, child, np.concatenate([text.document[:n] for _, n, text in blocks]))

    def x(self, end: End, tokens: int, seed: int) -> np.ndarray:
        """Vectors of one end on the tokens of `draw`, float32 [tokens, d]; noise is independent between the ends."""
        model, stream = (self.parent, _PARENT_NOISE) if end == "parent" else (self.child, _CHILD_NOISE)
        parts = []
        for block, n, text in self._blocks(tokens, seed):
            acts = text.parent if end == "parent" else text.child
            rows = csr_array((acts.values, acts.indices, acts.indptr), shape=(acts.tokens, acts.d_sae))
            x = np.asarray(rows @ model.directions)
            noise = self._rng(seed, block, stream).standard_normal(x.shape, np.float32)
            parts.append((x + np.float32(model.noise_deviation) * noise)[:n])
        return np.concatenate(parts)

    def _rng(self, seed: int, block: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, seed, block, stream))

    def _blocks(self, tokens: int, seed: int) -> Iterator[tuple[int, int, Sample]]:
        """Number, tokens used, and whole text of each block of a sample."""
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: draw one or more")
        size = BLOCK // self.config.document * self.config.document
        for block, start in enumerate(range(0, tokens, size)):
            yield block, min(size, tokens - start), self._text(seed, block)

    def _text(self, seed: int, block: int) -> Sample:
        config, sources = self.config, self._sources
        size, documents = config.document, BLOCK // config.document
        rng = self._rng(seed, block, _TEXT)
        topic = rng.integers(0, config.topics, documents)
        token, source = fire(self._rates, topic, size, rng)
        sigma = np.float32(config.sigma)
        value = np.exp(sigma * rng.standard_normal(len(token), np.float32) - sigma * sigma / 2)

        def acts(feature: np.ndarray, active: np.ndarray, value: np.ndarray, width: int) -> FeatureActs:
            indptr = np.concatenate([[0], np.cumsum(np.bincount(token[active], minlength=documents * size))])
            return FeatureActs(indptr, feature[active], value[active], width)

        feature = sources.to_parent[source]
        parent = acts(feature, feature >= 0, value, config.parents)
        coin = self._rng(seed, block, _FATES).random(len(token))
        fate = sources.fate[source]
        half = (fate == SPLIT) & (coin < 0.5)
        feature = sources.to_child[source, half.astype(np.int64)]
        active = (feature >= 0) & ((fate != NOISY) | sources.redrawn[source] | (coin < config.noisy_r))
        # Two sources may make a merged or noisy feature fire at one token: the larger activation stays.
        shared = np.flatnonzero(active & ((fate == MERGED) | (fate == NOISY)))
        order = shared[np.lexsort((value[shared], feature[shared], token[shared]))]
        same = (token[order[1:]] == token[order[:-1]]) & (feature[order[1:]] == feature[order[:-1]])
        active[order[:-1][same]] = False
        value = np.where(fate == FAINT, np.float32(config.faint_strength) * value, value)
        child = acts(feature, active, value, config.children)
        return Sample(parent, child, np.repeat(np.arange(documents) + block * documents, size))


class _Sources(NamedTuple):
    fate: np.ndarray  # int8 [sources]
    density: np.ndarray  # float64 [sources]
    topic: np.ndarray  # int64 [sources]
    to_parent: np.ndarray  # int64 [sources]: the parent feature it makes fire, or -1
    to_child: np.ndarray  # int64 [sources, 2]: the child feature twice, or the two halves of a split, or -1
    redrawn: np.ndarray  # bool [sources]: stands in for the firings of a noisy feature that the child draws anew


def _draw_sources(config: WorldConfig, rng: np.random.Generator) -> _Sources:
    counts = [config.kept, config.rotated, config.faint, config.noisy, config.split, 2 * config.merged, config.lost]
    fate = np.repeat(np.arange(8), [*counts, config.new])
    density = _densities(config, fate != NEW, rng)
    topic = rng.integers(0, config.topics, len(fate))
    to_parent = np.full(len(fate), -1)
    to_parent[fate != NEW] = rng.permutation(config.parents)
    child = rng.permutation(config.children)
    # After the features with one source come those of the merges, then the second halves of the splits.
    to_child = np.full((len(fate), 2), -1)
    single = (fate != LOST) & (fate != MERGED)
    to_child[single, 0] = to_child[single, 1] = child[: single.sum()]
    merges = child[single.sum() : single.sum() + config.merged]
    to_child[fate == MERGED] = np.repeat(merges, 2)[:, None]
    to_child[fate == SPLIT, 1] = child[single.sum() + config.merged :]
    noisy = np.flatnonzero(fate == NOISY)
    anew = density[noisy] * (1 - config.noisy_r)
    noisy, anew = noisy[anew > 0], anew[anew > 0]  # at noisy_r = 1 nothing is drawn anew
    return _Sources(
        np.concatenate([fate, fate[noisy]]).astype(np.int8),
        np.concatenate([density, anew]),
        np.concatenate([topic, topic[noisy]]),
        np.concatenate([to_parent, np.full(len(noisy), -1)]),
        np.concatenate([to_child, to_child[noisy]]),
        np.arange(len(fate) + len(noisy)) >= len(fate),
    )


def _densities(config: WorldConfig, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Density of each feature, float64; those of the parent (bool) sum to l0."""
    weight = rng.permutation(np.arange(1.0, len(parents) + 1) ** -config.rarity)
    rare = rng.permutation(len(parents)) < round(config.rare * len(parents))

    def densities(log_scale: float) -> np.ndarray:
        return np.where(rare, config.rare_density, np.minimum(_MAX_DENSITY, weight * np.exp(log_scale)))

    low, high = -60.0, 60.0
    least, most = (densities(scale)[parents].sum() for scale in (low, high))
    if not least < config.l0 <= most:
        raise ValueError(
            f"l0={config.l0} is out of reach: {config.parents} parent features, {config.rare:.0%} of them rare, make "
            f"{least:.3g} to {most:.3g}; change l0, rare or the number of features"
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if densities(middle)[parents].sum() < config.l0 else (low, middle)
    return densities(high)


def _draw_models(config: WorldConfig, sources: _Sources, rng: np.random.Generator) -> tuple[Model, Model]:
    base = ~sources.redrawn
    fate, density, to_parent, to_child = (column[base] for column in (sources.fate, sources.density, *sources[3:5]))
    at_parent, at_child = to_parent >= 0, to_child[:, 0] >= 0
    parent_fate, child_fate = np.empty(config.parents, np.int8), np.empty(config.children, np.int8)
    parent_density, child_density = np.zeros(config.parents), np.zeros(config.children)
    parent_fate[to_parent[at_parent]] = fate[at_parent]
    parent_density[to_parent[at_parent]] = density[at_parent]
    for column in to_child[at_child].T:  # the halves of a split; otherwise the same feature twice
        child_fate[column] = fate[at_child]
        np.add.at(child_density, column, density[at_child] / 2)
    merged = fate == MERGED
    pairs, joint = to_parent[merged].reshape(-1, 2), to_child[merged][::2, 0]
    child_density[joint] = 1 - np.prod(1 - parent_density[pairs], axis=1)

    parent_directions = _unit(rng.standard_normal((config.parents, config.d)))
    child_directions = _unit(rng.standard_normal((config.children, config.d)))
    same = np.isin(fate, (KEPT, FAINT, NOISY, SPLIT))
    child_directions[to_child[same, 0]] = parent_directions[to_parent[same]]
    child_directions[joint] = _unit(parent_directions[pairs].sum(1))

    both = at_parent & at_child
    links = np.unique(np.stack([np.repeat(to_parent[both], 2), to_child[both].ravel()], axis=1), axis=0)

    def model(
        directions: np.ndarray, fate: np.ndarray, density: np.ndarray, links: np.ndarray, strength: np.ndarray
    ) -> Model:
        # Variance of a feature: E a² − (E a)², with magnitudes of mean 1 and mean square exp(sigma²).
        variance = (strength**2 * (density * np.exp(config.sigma**2) - density**2)).sum()
        deviation = float(np.sqrt(variance / config.d * config.noise / (1 - config.noise)))
        partners = np.full((len(fate), 2), -1, np.int32)
        here, there = links[np.lexsort(links.T[::-1])].T
        second = np.concatenate([[False], here[1:] == here[:-1]])
        partners[here, second.astype(np.int64)] = there
        return Model(directions.astype(np.float32), fate, density, partners, deviation)

    strength = np.where(child_fate == FAINT, config.faint_strength, 1.0)
    return (
        model(parent_directions, parent_fate, parent_density, links, np.ones(config.parents)),
        model(child_directions, child_fate, child_density, links[:, ::-1], strength),
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Rates(NamedTuple):
    """Firing rate of each source. `within` and `outside` hold in documents that suit the source, one in `burst`."""

    topic: np.ndarray  # int64 [sources]
    within: np.ndarray  # float64 [sources]: draws per token, in documents of the source's topic
    outside: np.ndarray  # float64 [sources]: draws per token, in other documents
    burst: np.ndarray  # float64 [sources]: 1 or more


def rates(density: np.ndarray, topic: np.ndarray, overlap: float, topics: int, burst: float) -> Rates:
    """Rates of sources with these densities, float64 [sources], 0 for sources that never fire, and topics, with overlap
    and burst as far as the densities leave room for them."""
    room = np.maximum(_MAX_CHANCE / np.maximum(density, 1e-12), 1.0)
    overlaps = np.minimum(overlap, (room - 1) / max(1, topics - 1))
    gain = 1 - overlaps + overlaps * topics
    bursts = np.minimum(burst, np.maximum(_MAX_CHANCE / np.maximum(density * gain, 1e-12), 1.0))
    within, outside = -np.log1p(-density * gain * bursts), -np.log1p(-density * (1 - overlaps) * bursts)
    return Rates(topic, within, outside, bursts)


def fire(rates: Rates, topic: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(token, source) of every firing in a block of documents, int64 [n] each, sorted by token and source.

    A source's draws are a Poisson process along the tokens, of rate −log(1 − p): a token is hit with probability p,
    independently of the others. The cost is that of the draws, whatever the number of sources and tokens. Which
    documents suit a source follows from the generator.

    topic: int64 [documents]. size: tokens per document.
    """
    by_topic = np.argsort(topic, kind="stable")
    topics = int(max(rates.topic.max(initial=-1), topic.max(initial=-1))) + 1
    first = np.searchsorted(topic[by_topic], np.arange(topics + 1))
    salt = rng.integers(0, 2**64, dtype=np.uint64)
    token, source = _fire(*rates, by_topic, first, size, salt, rng)
    token, source = np.divmod(np.sort(token * len(rates.topic) + source), len(rates.topic))
    return token, source


@compiled()
def coin(document: int, source: int, salt: np.uint64) -> float:
    """A uniform number in [0, 1), the same for the same arguments (splitmix64)."""
    mixed = np.uint64(salt) + (np.uint64(source) << np.uint64(32)) + np.uint64(document)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.float64(mixed >> np.uint64(11)) * 2.0**-53


@compiled()
def _fire(topic, within, outside, burst, by_topic, first, size, salt, rng):  # noqa: ANN001, ANN202 (typed by numba)
    """Firings source by source: (token int64 [n], source int64 [n]).

    by_topic: documents in order of their topics; those of topic t are `by_topic[first[t]:first[t + 1]]`.
    """
    tokens, sources, n = np.empty(1024, np.int64), np.empty(1024, np.int64), 0
    for source in range(len(topic)):
        start, stop = first[topic[source]], first[topic[source] + 1]
        for rate, begin, span in (
            (within[source], start, (stop - start) * size),
            (outside[source], stop, (len(by_topic) - stop + start) * size),
        ):
            if rate <= 0:
                continue
            place, last, seen, suits = 0.0, -1, -1, False
            while True:
                # 1 − u is never 0, so its logarithm is finite.
                place -= np.log(1.0 - rng.random()) / rate
                if place >= span:
                    break
                at = np.int64(place)
                if at == last:
                    continue
                last = at
                # Counted around the circle, from the source's own topic (or the end of it) on.
                number = at // size
                document = by_topic[(begin + number) % len(by_topic)]
                if number != seen:
                    seen, suits = number, coin(document, source, salt) * burst[source] < 1
                if not suits:
                    # The process has no memory, so it may restart at the next document.
                    place = float((number + 1) * size)
                    continue
                if n == len(tokens):
                    tokens, sources = np.append(tokens, tokens), np.append(sources, sources)
                tokens[n], sources[n] = document * size + at % size, source
                n += 1
    return tokens[:n], sources[:n]
