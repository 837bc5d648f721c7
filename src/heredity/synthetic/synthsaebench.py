"""Planted edges on SAELens' generator: SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), made smaller.

Structure and statistics are those of SynthSAEBench-16k, with as many features per tree: densities fall like the root of
the rank, features form trees of three levels below a root, children fire only with their parent and exclude each other,
their magnitudes follow it, firings have a correlation of low rank, and directions are pushed apart. Tokens are
independent of each other, so that a document is only a group of them.

Fates are planted on the features in trees, parents and siblings alike; features outside of trees are all kept. Both
ends have the same firings: what is lost is silent in the child, what is new in the parent, whatever becomes of the
features above and below it.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from heredity.errors import install
from heredity.features.acts import FeatureActs
from heredity.synthetic.planted_edges import COSINE, FAINT, PLANTED, EdgeEnd, EdgeSample

_ROWS = 4096  # tokens drawn at a time
_KEPT, _TURNED, _FAINT, _LOST, _NEW = (PLANTED.index(name) for name in ("kept", "turned", "faint", "lost", "new"))


@dataclass(frozen=True, kw_only=True)
class SynthSAEBenchConfig:
    """Sizes and fates. Raises `ValueError`, naming field and value, for fates that do not fit into the trees."""

    features: int = 1024
    """Features of both ends together."""
    d: int = 128
    """Width of both models' vectors."""
    max_prob: float = 0.4
    """Firing probability of the most frequent feature."""
    min_prob: float = 5e-4
    """Firing probability of the rarest one, before the hierarchy takes its part."""
    roots: int = 8
    """Trees, each of 1 + 4 + 16 + 64 features."""
    turned: float = 0.05
    faint: float = 0.05
    lost: float = 0.1
    new: float = 0.1
    """Shares of `features` by fate; the others are kept."""
    document: int = 64
    """Tokens per document."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("turned", "faint", "lost", "new")}
        inside = 85 * self.roots
        if min(shares.values()) < 0 or inside > self.features or sum(shares.values()) * self.features > inside:
            raise ValueError(
                f"{shares} of features={self.features} do not fit into roots={self.roots} trees of 85 features each; "
                "lower them, or change the number of trees"
            )


def available() -> bool:
    """Whether SAELens is installed, and can be imported: other packages beside it may break that."""
    try:
        importlib.import_module("sae_lens.synthetic")
    except ImportError:
        return False
    return True


class SynthSAEBenchEdge:
    """A parent and a child on one generator; configuration and seed determine everything."""

    def __init__(self, config: SynthSAEBenchConfig, seed: int) -> None:
        """seed: 0 or more. Raises `ImportError` without SAELens."""
        self.config, self.seed = config, seed
        model = _model(config, seed)
        self._generator = model.activation_generator
        self._bias = model.feature_dict.bias.detach().numpy()
        rng, inside = np.random.default_rng((seed, 0)), 85 * config.roots
        fate = np.full(config.features, _KEPT)
        counts = {_TURNED: config.turned, _FAINT: config.faint, _LOST: config.lost, _NEW: config.new}
        planted = np.repeat(list(counts), [round(share * config.features) for share in counts.values()])
        fate[rng.permutation(inside)[: len(planted)]] = planted
        own = model.feature_dict.feature_vectors.detach().numpy()
        own = own / np.linalg.norm(own, axis=1, keepdims=True)
        other = rng.standard_normal(own.shape)
        other -= (other * own).sum(1, keepdims=True) * own
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        turned = np.where(fate[:, None] == _TURNED, COSINE * own + math.sqrt(1 - COSINE**2) * other, own)
        self._strength = np.where(fate == _FAINT, FAINT, 1.0).astype(np.float32)
        self._in = np.flatnonzero(fate != _NEW), np.flatnonzero(fate != _LOST)  # features of parent and child
        self.parent, self.child = (
            EdgeEnd(fate[chosen].astype(np.int8), rows[chosen].astype(np.float32))
            for chosen, rows in zip(self._in, (own, turned), strict=True)
        )

    def draw(self, tokens: int, seed: int) -> EdgeSample:
        """Both ends on the first `tokens` tokens of the text of a seed. Raises `ValueError` for less than one."""
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: draw one or more")
        parts = []
        with torch.random.fork_rng(devices=[]):  # SAELens draws from torch's global generator
            torch.manual_seed(int(np.random.SeedSequence((self.seed, 1, seed)).generate_state(1)[0]))
            for start in range(0, tokens, _ROWS):
                parts.append(self._part(self._generator.sample(_ROWS).numpy()[: tokens - start]))
        acts, x = zip(*parts, strict=True)
        parent, child = (FeatureActs.concatenate([part[end] for part in acts]) for end in (0, 1))
        vectors = np.concatenate([part[0] for part in x]), np.concatenate([part[1] for part in x])
        return EdgeSample((parent, child), vectors, np.arange(tokens) // self.config.document)

    def _part(self, fired: np.ndarray) -> tuple[list[FeatureActs], list[np.ndarray]]:
        acts, x = [], []
        for chosen, model, values in zip(
            self._in, (self.parent, self.child), (fired, fired * self._strength), strict=True
        ):
            own = values[:, chosen]
            acts.append(FeatureActs.from_dense(own))
            x.append(own @ model.directions + self._bias)
        return acts, x


def _model(config: SynthSAEBenchConfig, seed: int) -> Any:
    """SAELens' synthetic model, configured as SynthSAEBench-16k but for its sizes and densities."""
    try:
        synthetic = importlib.import_module("sae_lens.synthetic")
    except ImportError:
        raise ImportError(f"planted edges of SynthSAEBench need SAELens; {install('interop')}") from None
    made = synthetic.SyntheticModelConfig(
        num_features=config.features,
        hidden_dim=config.d,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=config.max_prob, min_prob=config.min_prob
        ),
        hierarchy=synthetic.HierarchyConfig(
            total_root_nodes=config.roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        correlation=synthetic.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=seed,
    )
    apart = synthetic.orthogonal_initializer(num_steps=100, lr=3e-4, show_progress=False)
    rows = synthetic.FeatureDictionary(config.features, config.d, bias=0.5, initializer=apart, seed=seed)
    return synthetic.SyntheticModel(made, feature_dict=rows)
