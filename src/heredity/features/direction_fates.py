"""What became of a direction along an edge: kept, changed, lost or undecided, by the margins of `features.verdicts`.

A direction v reads s = v · x. In the other model it is read along v', the image of v under the orthogonal map of
`features.transmission` (v itself where both models share their basis). Nothing is known of features beside it, as it
belongs to no dictionary, so that the evidence is:

- transmission: slope of v' · x' on v · x over the same tokens, which is what `retained` is of a feature; relative to
  the median of random directions of equal variance that both models have.
- r: Pearson r of the two readouts, in the place of `match_r` and `map_r`.
- readable: R² of the best linear readout of v · x from the other model's activations. What fires together leaks: much
  of most readouts can be told from the other directions of its own model. `rest` is how much, R² of the best linear
  readout from its own activations without v; `own` is what the other model says of what they leave, 1 - (1 - readable)
  / (1 - rest), in the place of a feature's readability.

The cosine of effects, a criterion of features, is left out: the image of a linear readout under the best affine map is
what the other model's activations do with it, so that the cosine is always 1.

Lost: the activations no longer move along it (transmission below 0.2) and what it alone said is not said elsewhere (own
below 0.25). Kept: transmission between 0.5 and 2 and r above 0.6. Changed: transmission outside of 0.6 to 1.67, or r
below 0.5. Bounds are one-sided, of 95 % each, by a jackknife over groups of documents; there is no correction for
several directions. Lost does not mean that the child cannot tell what the direction told: other directions may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor, nn

from heredity.features.bootstrap import document_groups
from heredity.features.effects import id_batches
from heredity.features.transmission import Predictor
from heredity.features.verdicts import (
    CHANGED_R,
    CHANGED_TRANSMISSION,
    KEPT_R,
    KEPT_TRANSMISSION,
    LEVEL,
    LOST_TRANSMISSION,
    UNREAD,
)
from heredity.lm.evaluate import arithmetic
from heredity.lm.hooks import evaluating, replaced
from heredity.study import Precision

_GROUPS = 16  # of documents
_RIDGE = 1e-6  # of the mean variance, as of `Predictor`
_SAME_R, _LEAST_SAME = 0.7, 20  # random directions that set the scale, and the fewest that can, as of features


class Fates(NamedTuple):
    """Evidence on directions, float64 [m] each, with standard errors; nan for a readout that never varies."""

    transmission: np.ndarray
    transmission_error: np.ndarray
    r: np.ndarray
    r_error: np.ndarray
    strength: np.ndarray
    """Standard deviation of the readout in the other model over that in its own."""
    strength_error: np.ndarray
    readable: np.ndarray
    readable_error: np.ndarray
    own: np.ndarray
    own_error: np.ndarray
    agreement: np.ndarray
    """R² of its own readout by the other as it is, up to a constant."""
    agreement_error: np.ndarray
    rest: np.ndarray
    groups: int
    """Groups of documents behind the errors."""

    def at(self, chosen: slice) -> Fates:
        """Of some of the directions."""
        return Fates(*(one[chosen] for one in self[:-1]), groups=self.groups)  # type: ignore[index, arg-type]

    def columns(self, name: str, number: int = 0) -> dict[str, float]:
        """A figure of one direction with its interval, as columns of a table: `name`, `name_low`, `name_high`."""
        value, error = getattr(self, name)[number], getattr(self, f"{name}_error")[number]
        margin = stats.t(max(self.groups - 1, 1)).ppf((1 + LEVEL) / 2) * error
        return {name: value, f"{name}_low": value - margin, f"{name}_high": value + margin}


class Readouts(NamedTuple):
    """A model on tokens to judge on, with directions in its basis."""

    x: np.ndarray  # float32 [tokens, d]
    fitting: np.ndarray  # float32 [other tokens, d]
    directions: np.ndarray  # float64 [m, d], of length 1


def alike(covariance: np.ndarray, direction: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random directions of the variance of one, float64 [count, d] of length 1.

    covariance: [d, d]. Each is a random vector whose parts along the principal directions are weighted by a power of
    their variances, the power chosen so that the variance along the vector is that along `direction`.
    """
    values, axes = np.linalg.eigh(covariance)
    values = np.maximum(values, max(float(values[-1]), 1e-30) * 1e-12)
    logs, wanted = np.log(values), float(direction @ covariance @ direction / (direction @ direction))
    made = []
    for part in np.random.default_rng(seed).standard_normal((count, len(values))):
        squares = np.log(np.maximum(part**2, 1e-30))

        def weights(power: float, squares: np.ndarray = squares) -> np.ndarray:
            each = power * logs + squares
            each = np.exp(each - each.max())
            return each / each.sum()

        def excess(power: float, weights=weights) -> float:  # noqa: ANN001
            return float(weights(power) @ values) - wanted

        ends = -64.0, 64.0
        power = brentq(excess, *ends) if excess(ends[0]) < 0 < excess(ends[1]) else ends[int(excess(0.0) < 0)]
        made.append(axes @ (np.sign(part) * np.sqrt(weights(float(power)))))  # pyright: ignore[reportArgumentType]
    return np.array(made)


def follow(own: Readouts, other: Readouts, documents: np.ndarray, seed: int = 0) -> Fates:
    """Evidence on directions of one model in another, read on the same tokens.

    own, other: with the same directions, each in its own basis. documents: int [tokens]. Linear readouts are fitted on
    the tokens for fitting, and everything is measured on the others.
    """
    group = document_groups(documents, _GROUPS, seed)
    groups = int(group.max()) + 1
    s, there = own.x @ own.directions.T, other.x @ other.directions.T
    weight, bias = Predictor(other.fitting).to(own.fitting @ own.directions.T)
    error = s - (other.x @ weight + bias)
    rest = _unexplained(own)
    # about means, against cancellation
    s, there = s - s.mean(0), there - there.mean(0)
    columns = np.stack([np.ones_like(s), s, there, s * s, there * there, s * there, error**2, rest**2])
    sums = np.stack([columns[:, group == g].sum(1) for g in range(groups)])  # [groups, column, direction]
    whole = sums.sum(0)
    estimates = _figures(whole)
    spread = np.full_like(estimates, np.nan)
    if groups > 1:
        without = np.stack([_figures(whole - part) for part in sums])
        spread = np.sqrt((groups - 1) / groups * np.square(without - without.mean(0)).sum(0))
    pairs = [column for pair in zip(estimates[:-1], spread[:-1], strict=True) for column in pair]
    return Fates(*pairs, rest=estimates[-1], groups=groups)


def scale_of(fates: Fates) -> float:
    """Median transmission of random directions that both models have; 1 where there are fewer than 20."""
    same = fates.r > _SAME_R
    scale = float(np.median(fates.transmission[same])) if same.sum() >= _LEAST_SAME else 1.0
    return scale if scale > 0 else 1.0


def words_of(fates: Fates, scale: float = 1.0) -> list[str]:
    """Kept, changed, lost or undecided, of each direction."""
    t = stats.t(max(fates.groups - 1, 1))
    margin = float(t.ppf(LEVEL))
    transmission, error = fates.transmission / scale, fates.transmission_error / scale
    low, high = transmission - margin * error, transmission + margin * error
    with np.errstate(invalid="ignore"):
        lost = (high < LOST_TRANSMISSION) & (fates.own + margin * fates.own_error < UNREAD)
        kept = (low > KEPT_TRANSMISSION) & (high < 1 / KEPT_TRANSMISSION)
        kept &= fates.r - margin * fates.r_error > KEPT_R
        changed = (high < CHANGED_TRANSMISSION) | (low > 1 / CHANGED_TRANSMISSION)
        changed |= fates.r + margin * fates.r_error < CHANGED_R
    return np.select([lost, kept, changed], ["lost", "kept", "changed"], "undecided").tolist()


def held_kl(
    model: nn.Module,
    hook_point: str,
    blocks: np.ndarray,
    directions: np.ndarray,
    levels: np.ndarray,
    precision: Precision,
) -> np.ndarray:
    """Mean KL(model || model whose readout x · v is held at a level), nats per token, float64 [m].

    blocks: int64 [n, context]. directions: [m, d] of length 1; levels [m]. Costs 1 + m forward passes.
    """
    device, sums, tokens = next(model.parameters()).device, np.zeros(len(directions)), 0
    v, at = (torch.from_numpy(np.asarray(one, np.float32)).to(device) for one in (directions, levels))

    def log_probs(ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        with replaced(model, hook_point, change), evaluating(model), torch.no_grad(), arithmetic(device, precision):
            return model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)

    for ids in id_batches(model, blocks):
        whole = log_probs(ids, lambda x: x)
        for number in range(len(v)):
            held = log_probs(ids, lambda x, i=number: x.float() - (x.float() @ v[i] - at[i])[..., None] * v[i])
            sums[number] += float((whole.exp() * (whole - held)).sum(dtype=torch.float64))
        tokens += ids.numel()
    return np.maximum(sums, 0) / tokens  # rounding leaves a little below 0


def _figures(sums: np.ndarray) -> np.ndarray:
    """Estimates in the order of `Fates`, [7, m], from sums [8, m]."""
    n, a, b, aa, bb, ab, error, rest = sums
    aa, bb, ab = aa - a * a / n, bb - b * b / n, ab - a * b / n
    aa, rest = np.where(aa > 0, aa, np.nan), np.where(rest > 0, rest, np.nan)
    # A readout that is constant in the other model is carried by nothing.
    r = np.where(bb > 1e-12 * aa, ab / np.sqrt(aa * np.maximum(bb, 1e-30)), 0.0)
    own = np.maximum(1 - error / rest, 0.0)
    strength, agreement = np.sqrt(np.maximum(bb, 0) / aa), (2 * ab - bb) / aa
    return np.stack([ab / aa, r, strength, 1 - error / aa, own, agreement, 1 - rest / aa])


def _unexplained(own: Readouts) -> np.ndarray:
    """What the other directions of its own model leave of each readout, [tokens, m]: the residual of the regression of
    v · x on all of x but its part along v is x Q v / (v Q v), with Q the inverse of the covariance."""
    mean = own.fitting.mean(0, dtype=np.float64)
    centered = own.fitting - mean
    covariance = centered.T @ centered / len(centered)
    ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    along = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), own.directions.T)
    return (own.x - mean) @ along / (own.directions.T * along).sum(0)
