"""Pairs of models whose true features are known: what each parent feature became in the child is planted.

A model's vectors are x = Σ a_i direction_i + noise over its true features. Every true feature follows a source, which
fires at the same tokens and with the same magnitude at both ends; the fate says what the child makes of it.

Firings of a source are coins of its density that depend on the document in two ways, both of which leave the mean
density as it is: the document's topic (`overlap`) makes unrelated features of one topic fire together, and `burst`
gathers a feature's firings in few documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.synthetic.firing import Rates, fire
from heredity.synthetic.settings import BLOCK, FAINT, MERGED, NOISY, SPLIT, WorldConfig
from heredity.synthetic.sources import Sources, draw_models, draw_sources

End = Literal["parent", "child"]
DENSEST = 0.9
"""Highest chance of firing at a token of a document that suits the feature."""
_TEXT, _FATES, _PARENT_NOISE, _CHILD_NOISE = range(4)  # independent streams of chance within a block


class Sample(NamedTuple):
    """True activations of both ends on the same tokens."""

    parent: FeatureActs
    """[n, parent features]."""
    child: FeatureActs
    """[n, child features]."""
    document: np.ndarray
    """int64 [n]: number of the document a token belongs to; never falls."""

    def rows(self, start: int, stop: int) -> Sample:
        """Tokens start to stop (slice rules)."""
        return Sample(self.parent.rows(start, stop), self.child.rows(start, stop), self.document[start:stop])

    @staticmethod
    def joined(parts: Sequence[Sample]) -> Sample:
        """The tokens of one or more parts, one after the other."""
        parents, children, documents = zip(*parts, strict=True)
        return Sample(FeatureActs.concatenate(parents), FeatureActs.concatenate(children), np.concatenate(documents))


class Vectors(NamedTuple):
    """The vectors of both ends on the same tokens."""

    x_parent: np.ndarray
    """float32 [n, d]."""
    x_child: np.ndarray
    """float32 [n, d]."""
    document: np.ndarray
    """int64 [n]: as in `Sample`."""

    def rows(self, start: int, stop: int) -> Vectors:
        """Tokens start to stop (slice rules)."""
        return Vectors(*(array[start:stop] for array in self))

    @staticmethod
    def joined(parts: Sequence[Vectors]) -> Vectors:
        """The tokens of one or more parts, one after the other."""
        return Vectors(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


Part = TypeVar("Part", Sample, Vectors)


class World:
    """A parent and a child with known features; everything follows from the configuration and the seed."""

    def __init__(self, config: WorldConfig, seed: int) -> None:
        """Draw directions, densities, topics and the order of features.

        seed: 0 or more. Raises `ValueError` when the densities cannot sum to `l0`.
        """
        self.config, self.seed = config, seed
        rng = np.random.default_rng(seed)
        self._sources = draw_sources(config, rng)
        self.parent, self.child = draw_models(config, self._sources, rng)
        self._rates = _rates(config, self._sources)

    def sample(self, tokens: int, seed: int, batch: int = BLOCK) -> Iterator[Sample]:
        """True activations of the first `tokens` tokens of the text that the seed writes, in batches of `batch`.

        The same seed gives the same tokens whatever the batch; a longer sample goes on where a shorter one ends.
        Raises `ValueError` for less than one token or a batch below 1.
        """
        return _batched(
            (self._text(seed, block).rows(0, n) for block, n in _blocks(tokens, self.config)), batch, Sample.joined
        )

    def draw(self, tokens: int, seed: int) -> Sample:
        """The same at once; memory grows with tokens x l0."""
        return next(self.sample(tokens, seed, max(tokens, 1)))

    def activations(self, tokens: int, seed: int, batch: int = BLOCK) -> Iterator[Vectors]:
        """The vectors of both ends on the tokens of `sample` with the same arguments; noise is independent."""

        def vectors(block: int) -> Vectors:
            text = self._text(seed, block)
            return Vectors(self._x("parent", text, seed, block), self._x("child", text, seed, block), text.document)

        return _batched((vectors(block).rows(0, n) for block, n in _blocks(tokens, self.config)), batch, Vectors.joined)

    def x(self, end: End, tokens: int, seed: int) -> np.ndarray:
        """The vectors of one end at once, float32 [tokens, d]: those of `activations`."""
        blocks = _blocks(tokens, self.config)
        return np.concatenate([self._x(end, self._text(seed, block), seed, block)[:n] for block, n in blocks])

    def _rng(self, seed: int, block: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, seed, block, stream))

    def _text(self, seed: int, block: int) -> Sample:
        token, source, value = self._firings(self._rng(seed, block, _TEXT))
        size, sources = self.config.document, self._sources
        documents = BLOCK // size
        feature = sources.to_parent[source]
        own = feature >= 0
        parent = _acts(token[own], feature[own], value[own], documents * size, self.config.parents)
        coin = self._rng(seed, block, _FATES).random(len(token))
        fate = sources.fate[source]
        half = (fate == SPLIT) & (coin < 0.5)
        feature = sources.to_child[source, half.astype(np.int64)]
        own = (feature >= 0) & ((fate != NOISY) | sources.redrawn[source] | (coin < self.config.noisy_r))
        shared = (fate == MERGED) | (fate == NOISY)  # two sources may make such a feature fire at one token
        own[_smaller_doubles(token, feature, value, np.flatnonzero(own & shared))] = False
        value = np.where(fate == FAINT, np.float32(self.config.faint_strength) * value, value)
        child = _acts(token[own], feature[own], value[own], documents * size, self.config.children)
        return Sample(parent, child, np.repeat(np.arange(documents) + block * documents, size))

    def _firings(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, source, magnitude) of every firing of one block, by tokens."""
        topic = rng.integers(0, self.config.topics, BLOCK // self.config.document)
        token, source = fire(self._rates, topic, self.config.document, rng)
        sigma = np.float32(self.config.sigma)
        magnitude = np.exp(sigma * rng.standard_normal(len(token), np.float32) - sigma * sigma / 2)
        return token, source, magnitude

    def _x(self, end: End, text: Sample, seed: int, block: int) -> np.ndarray:
        """Vectors float32 [n, d] of one block."""
        model, acts = (self.parent, text.parent) if end == "parent" else (self.child, text.child)
        rows = csr_array((acts.values, acts.indices, acts.indptr), shape=(acts.tokens, acts.d_sae))
        x = np.asarray(rows @ model.directions)
        rng = self._rng(seed, block, _PARENT_NOISE if end == "parent" else _CHILD_NOISE)
        return x + np.float32(model.noise_deviation) * rng.standard_normal(x.shape, np.float32)


def _rates(config: WorldConfig, sources: Sources) -> Rates:
    """Overlap and burst as far as the densities leave room for them."""
    density = sources.density
    room = np.maximum(DENSEST / density, 1.0)
    overlap = np.minimum(config.overlap, (room - 1) / max(1, config.topics - 1))
    own = 1 - overlap + overlap * config.topics
    burst = np.minimum(config.burst, np.maximum(DENSEST / (density * own), 1.0))
    return Rates(sources.topic, -np.log1p(-density * own * burst), -np.log1p(-density * (1 - overlap) * burst), burst)


def _smaller_doubles(token: np.ndarray, feature: np.ndarray, value: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of the entries `among` are not the largest of their token and feature; positions, int64."""
    order = among[np.lexsort((value[among], feature[among], token[among]))]
    same = (token[order[1:]] == token[order[:-1]]) & (feature[order[1:]] == feature[order[:-1]])
    return order[:-1][same]


def _acts(token: np.ndarray, feature: np.ndarray, value: np.ndarray, tokens: int, width: int) -> FeatureActs:
    """Entries by rising token as activations."""
    indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=tokens))])
    return FeatureActs(indptr, feature, value, width)


def _blocks(tokens: int, config: WorldConfig) -> Iterator[tuple[int, int]]:
    """(number, tokens used) of each block that a sample takes."""
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: draw one or more")
    size = BLOCK // config.document * config.document
    for block, start in enumerate(range(0, tokens, size)):
        yield block, min(size, tokens - start)


def _batched(blocks: Iterator[Part], batch: int, join: Callable[[Sequence[Part]], Part]) -> Iterator[Part]:
    """The same tokens in parts of `batch`, the last one what is left."""
    if batch < 1:
        raise ValueError(f"batch={batch}: a batch holds one token or more")
    kept: list[Part] = []
    held = 0
    for block in blocks:
        kept.append(block)
        held += len(block.document)
        if held >= batch:
            whole = join(kept)
            full = held // batch * batch
            yield from (whole.rows(start, start + batch) for start in range(0, full, batch))
            kept, held = [whole.rows(full, held)], held - full
    if held:
        yield join(kept)
