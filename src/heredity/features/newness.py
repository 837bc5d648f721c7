"""Is a child's feature new to its parent? Latent scaling of child features in the activations of both models.

A feature without a match may still be in the parent: its SAE may have missed it, or spread it over several features.
Latent scaling (Minder et al. 2025, arXiv 2504.02922, section 3) measures the activations. Where all of a child's
features are weaker in the parent, fixed cuts call inherited ones new; `calibrate` lowers the cuts until they do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader
from heredity.features.correlate import Matches
from heredity.features.fates import RARE_FIRINGS
from heredity.kernels.sparse import moments, transpose
from heredity.lm.activations import aligned, blocks_at_once

NU_EPS, NU_R = 0.2, 0.5  # below both, Minder et al. call a feature genuinely new
FALSE_RATE = 0.05
"""Share of inherited features that calibrated cuts may call new."""
LEAST_KNOWN = 20  # inherited features in each half of those that calibrate
_STRATUM = 80  # inherited features in each stratum by firings
HALF = 0.5  # the parent has a feature from this nu on, and moves on its firings from this strength on
SAME_DIRECTION = 0.7  # alignment below which it moves in other directions
AS_STRONG = 0.9
"""Strength from which on the parent has something in a feature's place, in whichever direction. Higher than `HALF`:
what fires together with a new feature moves the parent too."""
_TARGETS = ("parent", "parent_hat", "child", "child_hat")
_CHUNK = 1 << 22  # numbers of Σ f_j y made at a time


class Newness(NamedTuple):
    """How much of each child feature the parent has. All [d_sae] and float64 unless another type is named.

    A beta is how many times the feature's contribution f_j d_j is in a target y: the least-squares beta of
    y = c + beta f_j d_j over all tokens, with a free constant vector c. A nu is the parent's beta over the child's; nan
    where the feature is constant or d_j is 0, and where the child's own beta is not positive. Low nu means "not in this
    direction": a feature that turned keeps its firings (Pearson r near 1) and has a nu near 0. `strength` and
    `alignment`, or the correlation of activations, tell a turned feature from one that was not there.
    """

    nu: np.ndarray  # target: the activations x. 1: all there; 0.5: half as strong; near 0: not in this direction
    nu_r: np.ndarray  # target: the reconstruction x̂ of each model by its own SAE. High: the parent's SAE expresses it
    nu_eps: np.ndarray
    """Target: the error x − x̂; for the child with the feature's own contribution put back, x − x̂ + f_j d_j. High: the
    parent has it, but its SAE missed it (complete shrinkage, in Minder et al.)."""
    nu_error: np.ndarray  # standard errors, by leaving out one fold of the updates at a time; nan with one fold
    nu_r_error: np.ndarray
    nu_eps_error: np.ndarray
    beta_parent: np.ndarray  # of the parent's activations
    beta_child: np.ndarray  # of the child's: 1 when the SAE measures the feature's size right and others add nothing
    strength: np.ndarray
    """|b_parent| / |b_child| where b is the vector by which x changes per unit of f_j (the least-squares b of
    x = c + f_j b), less the share of |b|² that independent noise gives. Features that fire together with it add to it:
    low strength says new, high strength says something is there."""
    alignment: np.ndarray  # cosine of b_parent and b_child, corrected likewise, within ±1; nan where one is all noise
    firings: np.ndarray  # int64: tokens on which the child's feature fired
    tokens: int  # aligned tokens seen

    def new(self, errors: float = 0.0) -> np.ndarray:
        """bool [d_sae]: nu_eps and nu_r are below `NU_EPS` and `NU_R` by `errors` standard errors or more; False where
        one is nan. Both count: what the parent's SAE expresses is not in its error, and the other way round."""
        # 0 x nan would let a missing standard error decide where errors = 0.
        eps_margin, r_margin = (errors * error if errors else 0.0 for error in (self.nu_eps_error, self.nu_r_error))
        return (self.nu_eps + eps_margin < NU_EPS) & (self.nu_r + r_margin < NU_R)

    def presence(self, errors: float = 0.0) -> np.ndarray:
        """float64 [d_sae]: how much of a feature the parent has, in its direction or in any other: the largest of nu_r,
        nu_eps and strength, each over its cut (`NU_R`, `NU_EPS`, `AS_STRONG`), the first two with `errors` standard
        errors more. From 1 on it is there; nan where a nu is."""
        eps_margin, r_margin = (errors * error if errors else 0.0 for error in (self.nu_eps_error, self.nu_r_error))
        parts = (self.nu_eps + eps_margin) / NU_EPS, (self.nu_r + r_margin) / NU_R, self.strength / AS_STRONG
        return np.maximum.reduce(parts)


class LatentScaling:
    """Betas of a child's features from a stream of aligned tokens: `update` many times, `result` once.

    beta_j = Σ_t (f_j(t) − mean f_j) y(t)·d_j / (Σ_t (f_j(t) − mean f_j)² ‖d_j‖²)

    (Minder et al. 2025, section 3, with a free constant added: without it a mean of y that points along d_j counts as
    the feature's.) The sums kept are Σ f_j y, so the cost per token is its active features times d_in. All sums are
    float64; memory is 16 d_sae d_in bytes and 48 d_sae per fold, on the device of the directions.
    """

    def __init__(self, directions: Tensor, folds: int = 10) -> None:
        """directions [d_sae, d_in]: rows of the child SAE's W_dec, of any length. folds: updates are dealt to so many
        in turn, for standard errors; each should hold whole blocks of text, since neighboring tokens are alike."""
        self._directions = directions.detach().double()
        (d_sae, d_in), zeros = directions.shape, self._directions.new_zeros
        self._updates = 0
        self._tokens = np.zeros(folds)
        self._firings = np.zeros(d_sae, np.int64)
        self._f = zeros(folds, d_sae)
        self._f_square = zeros(folds, d_sae)
        self._f_y = zeros(folds, len(_TARGETS), d_sae)  # Σ f_j (y · d_j)
        self._y = zeros(folds, len(_TARGETS), d_in)
        self._response = zeros(2, d_sae, d_in)  # Σ f_j x of the parent and of the child
        self._products = zeros(2, 2)  # Σ x · x' of the two

    def update(
        self, acts: FeatureActs, parent: Tensor, parent_hat: Tensor, child: Tensor, child_hat: Tensor
    ) -> LatentScaling:
        """Take in n aligned tokens; returns itself.

        acts: [n, d_sae] of the child's SAE on `child`. parent, child [n, d_in]: activations of the two models on the
        same tokens. parent_hat, child_hat [n, d_in]: their reconstructions, each by the SAE of its own model.
        Raises ValueError for other shapes, and for values that are not finite.
        """
        d_sae, d_in = self._directions.shape
        device, fold = self._directions.device, self._updates % len(self._tokens)
        ys, sums = [], []
        for name, y in zip(_TARGETS, (parent, parent_hat, child, child_hat), strict=True):
            if y.shape != (acts.tokens, d_in):
                shapes = f"{name} is {list(y.shape)}, not [{acts.tokens}, {d_in}]"
                raise ValueError(f"{shapes}; parent and child need the same tokens and hook points of the same width")
            ys.append(y.detach().to(device, torch.float64))
            sums.append(ys[-1].sum(0))
            if not torch.isfinite(sums[-1]).all():
                raise ValueError(f"{name} holds NaN or infinity in update {self._updates}; check the model and its SAE")
        self._updates += 1
        self._tokens[fold] += acts.tokens
        self._y[fold] += torch.stack(sums)
        x = torch.stack([ys[0], ys[2]])
        self._products += torch.einsum("and,bnd->ab", x, x)
        count, total, square = moments(acts.sparse)
        self._firings += count
        self._f[fold] += torch.from_numpy(total).to(device)
        # Moments are about the mean; the sum of squares is about zero, so that folds add up.
        self._f_square[fold] += torch.from_numpy(square + np.square(total) / max(acts.tokens, 1)).to(device)
        columns = transpose(acts.sparse)
        tokens = torch.from_numpy(columns.indices).to(device).long()
        values = torch.from_numpy(columns.values).to(device).double()
        step = max(1, _CHUNK // d_in)
        for start in range(0, d_sae, step):
            part = slice(start, min(start + step, d_sae))
            offsets = columns.indptr[part.start : part.stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            if entries.start == entries.stop:
                continue
            bags = torch.from_numpy(offsets - offsets[0]).to(device)
            for target, y in enumerate(ys):
                f_y = torch.nn.functional.embedding_bag(
                    tokens[entries], y, bags, mode="sum", per_sample_weights=values[entries], include_last_offset=True
                )
                if target % 2 == 0:
                    self._response[target // 2, part] += f_y
                self._f_y[fold, target, part] += f_y.mul_(self._directions[part]).sum(1)
        return self

    def result(self) -> Newness:
        """The figures of all tokens so far. Raises ValueError when there were none."""
        if not self._tokens.sum():
            raise ValueError("no tokens were given; call update with at least one batch")
        used = np.flatnonzero(self._tokens)
        betas = self._betas(used)
        with np.errstate(invalid="ignore", divide="ignore"):
            nus, errors = _nus(betas), np.full((3, len(betas[0])), np.nan)
            if len(used) > 1:
                # Jackknife: standard errors from estimates that leave out one fold each (Tukey 1958).
                left_out = np.array([_nus(self._betas(used[used != fold])) for fold in used])
                errors = np.sqrt((len(used) - 1) / len(used) * np.square(left_out - left_out.mean(0)).sum(0))
            response = self._responses()
        counts = self._firings.copy(), int(self._tokens.sum())
        return Newness._make([*nus, *errors, betas[0], betas[2], *response, *counts])

    def _spread(self, folds: np.ndarray) -> tuple[Tensor, Tensor, float]:
        """Σ f and Σ (f − mean f)², [d_sae], the second nan for a constant feature; and the tokens, of some folds."""
        tokens = float(self._tokens[folds].sum())
        f, f_square = self._f[folds].sum(0), self._f_square[folds].sum(0)
        spread = f_square - f.square() / tokens  # a constant feature is left with rounding
        return f, torch.where(spread > 1e-12 * f_square, spread, torch.nan), tokens

    def _betas(self, folds: np.ndarray) -> np.ndarray:
        """float64 [4, d_sae]: beta of each target over the tokens of some folds."""
        f, spread, tokens = self._spread(folds)
        mean = self._y[folds].sum(0) @ self._directions.T / tokens
        norm = self._directions.square().sum(1)
        scale = spread * torch.where(norm > 0, norm, torch.nan)
        return ((self._f_y[folds].sum(0) - f * mean) / scale).cpu().numpy()

    def _responses(self) -> tuple[np.ndarray, np.ndarray]:
        """Strength and alignment, each [d_sae]."""
        f, spread, tokens = self._spread(np.flatnonzero(self._tokens))
        means = self._y.sum(0)[[0, 2]] / tokens
        # Independent noise adds the (co)variance of x over the spread of f to a product of two responses.
        noise = (self._products / tokens - means @ means.T)[..., None] / spread
        products = torch.empty_like(noise)
        step = max(1, _CHUNK // self._directions.shape[1])
        for start in range(0, len(f), step):
            part = slice(start, start + step)
            b = (self._response[:, part] - f[part, None] * means[:, None]) / spread[part, None]
            products[..., part] = torch.einsum("amd,bmd->abm", b, b)
        products -= noise
        parent_square, child_square = products[0, 0].clamp(min=0), products[1, 1].clamp(min=0)
        there = torch.where(child_square > 0, child_square, torch.nan)
        strength = (parent_square / there).sqrt()
        alignment = products[0, 1] / (torch.where(parent_square > 0, parent_square, torch.nan) * there).sqrt()
        return strength.cpu().numpy(), alignment.clamp(-1, 1).cpu().numpy()


def newness(parent: Reader, child: Reader, blocks: np.ndarray, folds: int = 10) -> Newness:
    """Newness of the features of the child's SAE on token blocks [n, context], of a tokenizer that both models use.

    parent, child: a model and one SAE each. folds: as in `LatentScaling`; a fold holds whole blocks.
    Raises ValueError when a reader has more than one SAE, or widths differ.
    """
    parent_sae, child_sae = parent.sae, child.sae
    scaling = LatentScaling(child_sae.W_dec, folds)
    # At most so many blocks per step that every fold gets a step.
    step = min(blocks_at_once(blocks.shape[1]), max(1, -(-len(blocks) // folds)))
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        for (x_parent, x_child), _ in aligned([parent.side, child.side], some):
            entries = child_sae.encode_sparse(x_child)
            acts = FeatureActs(*entries, child_sae.d_sae)
            child_hat = child_sae.decode_sparse(*entries) + child_sae.bypass(x_child)
            parent_hat = parent_sae.reconstruct(x_parent)
            scaling.update(acts, x_parent, parent_hat, x_child, child_hat)
    return scaling.result()


def _nus(betas: np.ndarray) -> np.ndarray:
    """nu, nu_r and nu_eps, float64 [3, d_sae], from betas [4, d_sae] of x and x̂ of the parent and of the child."""
    parent, parent_hat, child, child_hat = betas
    # beta is linear in its target, and the own contribution has beta 1.
    above = np.stack([parent, parent_hat, parent - parent_hat])
    below = np.stack([child, child_hat, child - child_hat + 1])
    return above / np.where(below > 0, below, np.nan)


class Calibration(NamedTuple):
    """Cuts on presence for one edge, from its inherited features."""

    cut: np.ndarray
    """float64 [d_sae], at most 1. Of an inherited feature that calibrates: the cut that the other half of them sets."""
    known: int  # inherited features that calibrate; with fewer than 2 `LEAST_KNOWN` cuts stay at 1
    false: int  # of them below the cut of the half that they are not in
    calibrated: bool


def calibrate(newness: Newness, inherited: np.ndarray, seed: int) -> Calibration:
    """Lower the cut on presence until at most `FALSE_RATE` of inherited features lie below, among features that fire
    about as often where there are enough.

    inherited: bool [d_sae], features that are surely in the parent, in whichever direction. They are dealt into halves:
    each half sets the cut at which the other is judged, so that `false` is measured on features that set nothing. All
    others meet the cut of both halves together, the k-th smallest of n scores with k = ⌊rate (n + 1)⌋ (Vovk et al.
    2005, conformal).
    """
    score = newness.presence()
    cut, known = np.ones(len(score)), np.flatnonzero(inherited & np.isfinite(score))
    if len(known) < 2 * LEAST_KNOWN:
        return Calibration(cut, len(known), int((score < cut)[known].sum()), False)
    levels = np.linspace(0, 1, max(1, min(4, len(known) // _STRATUM)) + 1)[1:-1]
    stratum = np.searchsorted(np.quantile(newness.firings[known], levels), newness.firings, side="right")
    rng = np.random.default_rng(seed)
    for number in range(len(levels) + 1):
        own = rng.permutation(known[stratum[known] == number])
        halves = own[::2], own[1::2]
        cut[stratum == number] = _cut(score[own])
        for half, other in (halves, halves[::-1]):
            cut[half] = _cut(score[other])
    return Calibration(cut, len(known), int((score < cut)[known].sum()), True)


def _cut(scores: np.ndarray) -> float:
    """The cut below which at most `FALSE_RATE` of further scores of this kind lie; no higher than 1."""
    allowed = int(FALSE_RATE * (len(scores) + 1))
    return min(1.0, float(np.sort(scores)[allowed - 1])) if allowed else -np.inf


def groups_of(
    matches: Matches, firings: np.ndarray, threshold: float, stable: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Child features by fate, each bool [d_child]: `emerged` and `inherited` as the edge counts them; `unseen` never
    fired on the edge's common trace, so that nothing could match them, but fire on the text of the child's trace
    (firings: int [d_child]). `unstable` are those of all three that are not in `stable`, bool [d_child], which the
    three then leave out; without it nobody knows."""
    live, matched = matches.child_density > 0, matches.child_r[:, 0] > threshold
    groups = {"emerged": live & ~matched, "inherited": matched, "unseen": ~live & (firings > 0)}
    if stable is None:
        return groups
    unstable = np.any(list(groups.values()), axis=0) & ~stable
    return {name: group & stable for name, group in groups.items()} | {"unstable": unstable}


def judged_of(newness: Newness) -> np.ndarray:
    """bool [d_child]: features that fire on at least 30 tokens, and have a nu."""
    return (newness.firings >= RARE_FIRINGS) & np.isfinite(newness.nu_eps) & np.isfinite(newness.nu_r)


def origins_of(newness: Newness, cut: float | np.ndarray = 1.0) -> dict[str, np.ndarray]:
    """Origins of each child feature in the parent, each bool [d_child]: `judged`, and of these `new` (presence below
    the cut: in no direction), `new_fixed` (`Newness.new`: not in this direction), `surely_new` (new by two standard
    errors), `turned` (not in this direction and not new: the parent's activations move on the same tokens in others),
    `missed` (not new; the parent has at least half of it)."""
    judged = judged_of(newness)
    with np.errstate(invalid="ignore"):
        new, fixed = judged & (newness.presence() < cut), judged & newness.new()
        return {
            "judged": judged,
            "new": new,
            "new_fixed": fixed,
            "surely_new": new & (newness.presence(2) < cut),
            "turned": fixed & ~new & (newness.strength >= HALF) & (newness.alignment < SAME_DIRECTION),
            "missed": judged & ~new & (newness.nu >= HALF),
        }


def matched_pairs(matches: Matches, chosen: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Child features chosen, bool [d_child], with their best match: int64 [n, 2] of (parent, child feature), by child
    feature. Features without a match are left out; of more than `most`, that many are sampled."""
    matched = np.flatnonzero(chosen & (matches.child_match[:, 0] >= 0))
    if len(matched) > most:
        matched = np.sort(np.random.default_rng(seed).choice(matched, most, replace=False))
    return np.stack([matches.child_match[matched, 0].astype(np.int64), matched], axis=1)
