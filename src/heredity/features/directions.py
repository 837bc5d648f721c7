"""Matching features by the directions of their weights, for SAEs that read vectors of one width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from heredity.features.criteria import one_to_one
from heredity.kernels.pairs import ranked
from heredity.kernels.torch_forms import linear

Matrix = np.ndarray | Tensor
_ASSIGNED = 16_384  # rows that are paired one to one at most
_ROWS, _PAIRS = 1024, 1 << 9  # rows whose cosines with all others exist at a time; pairs of rows


class Cosines(NamedTuple):
    """Best partners of each feature by cosine, best first, ties to the lower index. A feature of norm zero has none."""

    parent_match: np.ndarray  # int32 [d_parent, top]: child features; -1 where there is none
    parent_cosine: np.ndarray  # float64 [d_parent, top]: their cosines, falling; nan where there is none
    child_match: np.ndarray  # int32 [d_child, top]: parent features; -1 where there is none
    child_cosine: np.ndarray  # float64 [d_child, top]


class Shared(NamedTuple):
    """Pairs common to the assignment by encoder and the one by decoder."""

    pairs: np.ndarray  # int32 [n, 2]: (parent, child) features, each in one pair at most, by rising parent feature
    cosine: np.ndarray  # float64 [n]: the smaller of the cosines of encoders and decoders
    shared: np.ndarray  # bool [n]: it is at least the threshold given
    decoders: Cosines  # all that the assignment by decoder chose from


def cosine_matches(a: Matrix, b: Matrix, top: int = 5) -> Cosines:
    """The `top` best partners of each row of a [d_parent, d] among the rows of b [d_child, d], and the reverse.

    Rows are directions: `W_dec` as it is, `W_enc` transposed. Partners are searched in float32, in chunks of rows; the
    cosines of those kept are float64, and order them.
    Raises `ValueError` for widths that differ, values that are not finite, and a `top` below 1.
    """
    parent, child = _unit(a, "a"), _unit(b, "b")
    if parent.shape[1] != child.shape[1]:
        widths = f"directions are {parent.shape[1]} and {child.shape[1]} wide"
        raise ValueError(f"{widths}; cosines need SAEs that read vectors of one width: match by activations instead")

    def blocks() -> Iterator[np.ndarray]:
        weight = child.float()
        zero = (~child.any(1)).nonzero().ravel()
        for rows in parent.split(_ROWS):
            block = linear(rows.float(), weight)
            # By number: there are few or none, and a mask would be gone through for every cosine.
            block.index_fill_(1, zero, -torch.inf)
            block.index_fill_(0, (~rows.any(1)).nonzero().ravel(), -torch.inf)
            yield block.numpy()

    best = ranked(blocks(), (len(parent), len(child)), top)
    return Cosines(*_exact(best.parent_match, parent, child), *_exact(best.child_match, child, parent))


def pw_mcc(a: Matrix, b: Matrix) -> float | None:
    """PW-MCC of two dictionaries (Song et al. 2025): the mean cosine of the rows of a [m, d] and b [n, d], paired one
    to one so that the sum is largest, over min(m, n) pairs. Signs count, and dead features do, as in the authors' code.

    One core takes 2 s for 4,096 features, 9 s for 8,192 and a minute for 16,384, with 12 bytes per pair of rows; None
    beyond, as time grows faster than the square. Raises ValueError as `cosine_matches` does.
    """
    if max(len(a), len(b)) > _ASSIGNED:
        return None
    first, second = _unit(a, "a"), _unit(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"dictionaries are {first.shape[1]} and {second.shape[1]} wide; give two of one width")
    cosines = linear(first.float(), second.float()).numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean(dtype=np.float64))


def _unit(directions: Matrix, name: str) -> Tensor:
    """float64 [m, d] on the CPU: rows of length 1; a row of zeros stays one."""
    rows = torch.as_tensor(directions).detach().cpu().double().contiguous()
    if not torch.isfinite(rows).all():
        at = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        raise ValueError(f"row {at} of {name} holds NaN or infinity; read or train the SAE again")
    # The largest entry first: squares of tiny or huge entries would leave the range of numbers.
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1.0)


def _exact(match: np.ndarray, own: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The lists (match, cosine) with float64 cosines and in the order of these."""
    feature, place = np.nonzero(match >= 0)
    cosine = np.full(match.shape, np.nan)
    for start in range(0, len(feature), _PAIRS):
        here = feature[start : start + _PAIRS], place[start : start + _PAIRS]
        rows, partners = own.numpy()[here[0]], other.numpy()[match[here]]
        cosine[here] = np.einsum("nd,nd->n", rows, partners).clip(-1.0, 1.0)
    order = np.lexsort((match, np.where(np.isnan(cosine), np.inf, -cosine)), axis=1)
    return np.take_along_axis(match, order, 1), np.take_along_axis(cosine, order, 1)


def shared(enc_a: Matrix, dec_a: Matrix, enc_b: Matrix, dec_b: Matrix, least: float = 0.7, top: int = 10) -> Shared:
    """Features that two SAEs share (Paulo & Belrose 2025): a one-to-one assignment by cosines of the encoders and one
    by cosines of the decoders pick the same partner, and both cosines are `least` or more.

    enc [d_in, d_sae] is `W_enc`, dec [d_sae, d_in] is `W_dec`. The paper solves the dense assignment of all features to
    all; here each assignment knows the `top` best partners of every feature of both ends, which changes a shared
    feature only where it has more than `top` rivals. Raises as `cosine_matches` does.
    """
    sides = (torch.as_tensor(enc_a).T, torch.as_tensor(enc_b).T), (dec_a, dec_b)
    encoders, decoders = (cosine_matches(a, b, top) for a, b in sides)
    (pairs, encoder), (others, decoder) = one_to_one(*encoders), one_to_one(*decoders)
    keys = [assigned.astype(np.int64) @ [len(dec_b), 1] for assigned in (pairs, others)]
    _, at_encoder, at_decoder = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    cosine = np.minimum(encoder[at_encoder], decoder[at_decoder])
    return Shared(pairs[at_encoder], cosine, cosine >= least, decoders)


def rotation(dec_a: Matrix, dec_b: Matrix) -> np.ndarray:
    """Angle between rows of the same index, float64 [m] in degrees, 0 to 180; nan where a row is zero.

    dec [m, d]. Computed from sum and difference of the unit rows, which keeps small angles exact (Kahan 2006).
    Raises `ValueError` for different shapes and values that are not finite.
    """
    a, b = _unit(dec_a, "dec_a"), _unit(dec_b, "dec_b")
    if a.shape != b.shape:
        raise ValueError(f"directions are {list(a.shape)} and {list(b.shape)}; rows of one index need equal shapes")
    angle = 2 * torch.rad2deg(torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))
    return torch.where(a.any(1) & b.any(1), angle, torch.nan).numpy()


class Turns(NamedTuple):
    """How far each feature's decoder row turned, float64 [d_sae] in degrees."""

    data_first_data: np.ndarray  # from the source SAE to the one on the child's corpora
    data_first_model: np.ndarray  # from there to the one on the child's weights too
    data_first_total: np.ndarray  # both
    model_first_model: np.ndarray  # from the source SAE to the one on the child's weights
    model_first_data: np.ndarray  # from there to the one on the child's corpora too
    model_first_total: np.ndarray  # both
    noise: np.ndarray | None  # from the source SAE to one continued on the same model and corpora
    weights: np.ndarray | None  # from that one to the one on the child's weights; same tokens in the same order

    @property
    def data(self) -> np.ndarray:
        """By the other data, mean over both orders."""
        return (self.data_first_data + self.model_first_data) / 2

    @property
    def model(self) -> np.ndarray:
        """By the other weights, mean over both orders."""
        return (self.data_first_model + self.model_first_model) / 2


def turns(decoders: Mapping[str, Tensor]) -> Turns:
    """The turns between decoders [d_sae, d_in] of the SAEs `source`, `data`, `data_model`, `model`, `model_data` and,
    where there is one, `control`; `ValueError` for different shapes: one is then not continued from the other."""
    source, data, model = decoders["source"], decoders["data"], decoders["model"]
    control = decoders.get("control")
    return Turns(
        data_first_data=rotation(source, data),
        data_first_model=rotation(data, decoders["data_model"]),
        data_first_total=rotation(source, decoders["data_model"]),
        model_first_model=rotation(source, model),
        model_first_data=rotation(model, decoders["model_data"]),
        model_first_total=rotation(source, decoders["model_data"]),
        noise=None if control is None else rotation(source, control),
        weights=None if control is None else rotation(control, model),
    )


def quartiles(angles: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Lower quartile, median and upper quartile; None each without angles."""
    lower, middle, upper = np.quantile(angles, [0.25, 0.5, 0.75]).tolist() if len(angles) else [None] * 3
    return lower, middle, upper


def causes(turns: Turns, live: np.ndarray) -> tuple[int, int, int]:
    """(by_model, by_data, by_neither): live features by what turned them further, in the mean over both orders.

    live: bool [d_sae]. By neither: both turn a feature equally far, or neither turns it further than 95 % of features
    turn by continued training alone (where that was measured). The three add up to the live features.
    """
    data, model = turns.data[live], turns.model[live]
    noise = 0.0 if turns.noise is None or not live.any() else float(np.quantile(turns.noise[live], 0.95))
    beyond = np.maximum(data, model) > noise
    by_model, by_data = beyond & (model > data), beyond & (model < data)
    return int(by_model.sum()), int(by_data.sum()), int((~beyond | (model == data)).sum())
