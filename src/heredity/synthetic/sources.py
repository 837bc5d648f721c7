"""What fires in a planted world, and the true features of both ends that it makes fire."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.synthetic.settings import FAINT, KEPT, LOST, MERGED, MOST, NEW, NOISY, SPLIT, WorldConfig


class Model(NamedTuple):
    """The true features of one end."""

    directions: np.ndarray
    """float32 [n, d]: unit rows; more rows than d are in superposition."""
    fate: np.ndarray
    """int8 [n]: KEPT ... NEW."""
    density: np.ndarray
    """float64 [n]: expected share of tokens on which a feature fires."""
    partners: np.ndarray
    """int32 [n, 2]: the features it became or came from at the other end; -1 where there is none."""
    noise_deviation: float
    """Standard deviation of the noise in each element of x."""


class Sources(NamedTuple):
    """What fires."""

    fate: np.ndarray
    """int8 [sources]."""
    density: np.ndarray
    """float64 [sources]."""
    topic: np.ndarray
    """int64 [sources]."""
    to_parent: np.ndarray
    """int64 [sources]: the parent feature it makes fire, or -1."""
    to_child: np.ndarray
    """int64 [sources, 2]: the child feature, or the two halves of a split, or -1."""
    redrawn: np.ndarray
    """bool [sources]: it stands in for the firings of a noisy feature that the child draws anew."""


def draw_sources(config: WorldConfig, rng: np.random.Generator) -> Sources:
    """Densities, topics and the features of each source. Raises `ValueError` when densities cannot sum to `l0`."""
    counts = [config.kept, config.rotated, config.faint, config.noisy, config.split, 2 * config.merged, config.lost]
    fate = np.repeat(np.arange(8), [*counts, config.new])
    density = _densities(config, fate != NEW, rng)
    topic = rng.integers(0, config.topics, len(fate))
    to_parent = np.full(len(fate), -1)
    to_parent[fate != NEW] = rng.permutation(config.parents)
    child = rng.permutation(config.children)
    # Behind the features with one source come those of the merges, then the second halves of the splits.
    to_child = np.full((len(fate), 2), -1)
    single = (fate != LOST) & (fate != MERGED)
    to_child[single, 0] = to_child[single, 1] = child[: single.sum()]
    merges = child[single.sum() : single.sum() + config.merged]
    to_child[fate == MERGED] = np.repeat(merges, 2)[:, None]
    to_child[fate == SPLIT, 1] = child[single.sum() + config.merged :]
    noisy = np.flatnonzero(fate == NOISY)
    anew = density[noisy] * (1 - config.noisy_r)
    # With certainty nothing is drawn anew, and a source that never fires has no use.
    noisy, anew = noisy[anew > 0], anew[anew > 0]
    return Sources(
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
        return np.where(rare, config.rare_density, np.minimum(MOST, weight * np.exp(log_scale)))

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


def draw_models(config: WorldConfig, sources: Sources, rng: np.random.Generator) -> tuple[Model, Model]:
    """Parent and child."""
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
    strength = np.where(child_fate == FAINT, config.faint_strength, 1.0)
    return (
        _model(config, parent_directions, parent_fate, parent_density, links, np.ones(config.parents)),
        _model(config, child_directions, child_fate, child_density, links[:, ::-1], strength),
    )


def _model(
    config: WorldConfig,
    directions: np.ndarray,
    fate: np.ndarray,
    density: np.ndarray,
    links: np.ndarray,
    strength: np.ndarray,
) -> Model:
    """links: int [n, 2], pairs of a feature of this model and one of the other."""
    # Variance of a feature: E a² − (E a)², with magnitudes of mean 1 and mean square exp(sigma²).
    variance = (strength**2 * (density * np.exp(config.sigma**2) - density**2)).sum()
    deviation = float(np.sqrt(variance / config.d * config.noise / (1 - config.noise)))
    partners = np.full((len(fate), 2), -1, np.int32)
    own, other = links[np.lexsort(links.T[::-1])].T
    second = np.concatenate([[False], own[1:] == own[:-1]])
    partners[own, second.astype(np.int64)] = other
    return Model(directions.astype(np.float32), fate, density, partners, deviation)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
