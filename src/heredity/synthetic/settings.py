"""What a planted world is made of: its fates, and the sizes and statistics that a configuration sets."""

from __future__ import annotations

from dataclasses import dataclass

KEPT, ROTATED, FAINT, NOISY, SPLIT, MERGED, LOST, NEW = range(8)
"""Labels of fates."""
FATES = ("kept", "rotated", "faint", "noisy", "split", "merged", "lost", "new")
"""Their names, in the order of the labels."""

MOST = 0.5
"""Highest density of a true feature."""
BLOCK = 16_384
"""Tokens drawn at a time, rounded down to whole documents, each block with a seed of its own. Other blocks are other
worlds: a change of it changes every sample."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes and statistics of a planted world. Raises `ValueError`, naming field and value, for what cannot be."""

    d: int = 64
    """Width of both models' vectors."""
    kept: int = 60
    """Features with the same direction at both ends."""
    rotated: int = 20
    """Features that fire as before, with a new direction in the child."""
    faint: int = 0
    """Features whose activation in the child is `faint_strength` times the parent's; same direction."""
    noisy: int = 0
    """Features whose firings are in part drawn anew in the child, so that both ends have an r of `noisy_r`."""
    split: int = 0
    """Parent features that become two child features each; every firing goes to one of them, by a fair coin. One keeps
    the direction, the other has a new one."""
    merged: int = 0
    """Child features that fire when either of two parent features does, with the larger of the two activations; the
    direction lies halfway between theirs."""
    lost: int = 80
    """Features of the parent only."""
    new: int = 80
    """Features of the child only."""
    noisy_r: float = 0.7
    """True r of a noisy feature across the edge; a little higher with `overlap`, because the topic stays."""
    faint_strength: float = 0.3
    """Activation of a faint feature in the child over that in the parent."""
    l0: float = 6.0
    """Mean number of true features that fire at a token of the parent."""
    rarity: float = 0.5
    """Densities fall like rank^−rarity; 0: all are equal. None is above one half."""
    rare: float = 0.0
    """Share of features whose density is `rare_density` instead."""
    rare_density: float = 1e-3
    """Density of the rare features."""
    sigma: float = 0.5
    """Spread of the lognormal magnitudes, whose mean is 1."""
    noise: float = 0.02
    """Share of Gaussian noise in the variance of x."""
    overlap: float = 0.0
    """Share of a feature's firings that is confined to documents of its topic; 0: features are independent. A feature
    too frequent for that is confined as far as possible."""
    topics: int = 16
    """Topics; each document and each feature has one."""
    burst: float = 4.0
    """A feature fires in one of so many documents only, and there so many times as often; 1: tokens do not depend on
    each other, but for the topic. Less for features too frequent for that."""
    document: int = 64
    """Tokens of a document."""

    def __post_init__(self) -> None:
        least = {"d": 1, "topics": 1, "document": 1, "burst": 1} | dict.fromkeys((*FATES, "rarity", "sigma"), 0)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} is below {bound}")
        for name in ("rare", "overlap", "noisy_r"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} is a share of the variance of x; give 0 or more and less than 1")
        if self.faint_strength <= 0:
            raise ValueError(f"faint_strength={self.faint_strength} is not positive; count the features as lost")
        if not 0 < self.rare_density <= MOST:
            raise ValueError(f"rare_density={self.rare_density} must be positive and at most {MOST}")
        if self.document > BLOCK:
            raise ValueError(f"document={self.document} is longer than {BLOCK} tokens; use shorter documents")
        if not self.parents or not self.children:
            raise ValueError(f"{self.parents} parent and {self.children} child features; each end needs one or more")
        if self.l0 <= 0:
            raise ValueError(f"l0={self.l0} must be positive")

    @property
    def parents(self) -> int:
        """True features of the parent."""
        return self.kept + self.rotated + self.faint + self.noisy + self.split + 2 * self.merged + self.lost

    @property
    def children(self) -> int:
        """True features of the child."""
        return self.kept + self.rotated + self.faint + self.noisy + 2 * self.split + self.merged + self.new
