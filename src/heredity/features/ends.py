"""Evidence and verdicts on the features of one end of an edge, from activations of both models and SAEs of two seeds.

What the evidence means and how it is judged: `features.verdicts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.criteria import one_to_one
from heredity.features.readout import readable
from heredity.features.transmission import effects, least_squares, orthogonal
from heredity.features.verdicts import ALONE, SHARED_R, STABLE, VERDICTS, Judged, judge, same_r
from heredity.kernels.torch_forms import moved
from heredity.sae.model import SAE

_COUNTED = VERDICTS[:4]  # verdicts on stable features
_ENCODED = 8192  # tokens at a time


class End(NamedTuple):
    """One model on the aligned tokens, with its SAEs."""

    saes: Sequence[SAE]
    acts: Sequence[FeatureActs]  # of each SAE
    x: np.ndarray  # float32 [tokens, d]
    fitting: np.ndarray  # float32 [tokens, d], on other tokens


def end_of(saes: Sequence[SAE], x: np.ndarray, fitting: np.ndarray) -> End:
    """An end with its activations encoded by each of its SAEs."""
    return End(saes, [encode(sae, x) for sae in saes], x, fitting)


def encode(sae: SAE, x: np.ndarray) -> FeatureActs:
    """Feature activations of x, float32 [tokens, d], a part of the tokens at a time."""
    parts = (moved(torch.from_numpy(part), sae.W_enc.device) for part in np.array_split(x, max(1, len(x) // _ENCODED)))
    return FeatureActs.concatenate([FeatureActs(*sae.encode_sparse(part), sae.d_sae) for part in parts])


def judge_end(
    own: End, other: End, seed: int, documents: np.ndarray, groups: int, mine: np.ndarray | None = None
) -> tuple[Judged, dict[str, np.ndarray]]:
    """Verdicts on the features of one SAE of an end, and the evidence they rest on, by column.

    seed: 0 or 1, the SAE that is judged; the other one tells which of its features are stable. documents: int [tokens].
    groups: seed of the groups of documents. mine: bool [d_sae], features to judge; None: all that are stable.
    """
    acts, sae = own.acts[seed], own.saes[seed]
    stability = correlate(acts, own.acts[1 - seed], 1).parent_r[:, 0]
    forth, back = least_squares(own.fitting, other.fitting), least_squares(other.fitting, own.fitting)
    read = encode(sae, (other.x @ back[0] + back[1]).astype(np.float32))
    map_r = same_r(acts, read)
    rows, turn = sae.W_dec.detach().cpu().numpy(), orthogonal(own.fitting, other.fitting)
    image, alone = (own.x @ forth[0] + forth[1]).astype(np.float32), _alone(own, other)
    there = [same_r(each, encode(one, image)) for each, one in zip(other.acts, other.saes, strict=True)]
    match_r, elsewhere = _matched(acts, other.acts, there)
    shared = _shared(other.saes, there, back[0])
    effect = effects(acts, own.x, image, other.x, documents, groups, alone, (rows, rows @ turn), shared)
    mine = np.ones(acts.d_sae, bool) if mine is None else mine
    evidence = {"firings": acts.firings(), "stability": stability, "owned": mine, "match_r": match_r, "map_r": map_r}
    evidence["density_ratio"] = read.firings() / np.where(acts.firings() > 0, acts.firings(), np.nan)
    evidence |= {name: value for name, value in effect._asdict().items() if name != "groups"}
    read_out = readable(acts, own.x, other.x, documents, groups)
    evidence |= {"readable": read_out[0], "readable_error": read_out[1]}
    return judge(effect, (stability > STABLE) & mine, match_r, map_r, elsewhere, read_out), evidence


def _alone(own: End, other: End) -> np.ndarray | None:
    """What stable features of the other end that nothing at this end follows add to its activations, float32 [tokens,
    d]; None without a second SAE there, or without such features."""
    if len(other.acts) < 2:
        return None
    acts, sae = other.acts[0], other.saes[0]
    follows = np.fmax.reduce([correlate(acts, each, 1).parent_r[:, 0] for each in own.acts])
    chosen = (correlate(acts, other.acts[1], 1).parent_r[:, 0] > STABLE) & ~(follows > ALONE)
    if not chosen.any():
        return None
    values = np.where(chosen[acts.indices], acts.values, 0)
    rows = csr_array((values, acts.indices, acts.indptr), shape=(acts.tokens, acts.d_sae))
    return np.asarray(rows @ sae.W_dec.detach().cpu().float().numpy())


def _matched(
    acts: FeatureActs, others: Sequence[FeatureActs], there: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Best r of each feature in SAEs of the other model, float64 [d_sae], and how well this model has the matched one.

    there: r of each feature of these SAEs with itself, read in this model, float64 [d_sae] each.
    """
    r, elsewhere = np.full((2, acts.d_sae), np.nan)
    for each, own in zip(others, there, strict=True):
        found = correlate(acts, each, 1)
        better = found.parent_r[:, 0] > np.nan_to_num(r, nan=-1)
        r = np.where(better, found.parent_r[:, 0], r)
        elsewhere = np.where(better, own[found.parent_match[:, 0]], elsewhere)
    return r, elsewhere


def _shared(saes: Sequence[SAE], there: Sequence[np.ndarray], back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the other model's features that this model has too, here [n, d_own] and there [n, d_other].

    there: as for `_matched`; back [d_other, d_own]: the weight of the affine map from the other model's activations.
    """
    rows = [
        sae.W_dec.detach().cpu().numpy()[np.nan_to_num(own) > SHARED_R] for sae, own in zip(saes, there, strict=True)
    ]
    joined = np.concatenate(rows)
    return joined @ back, joined


def tally(judged: Judged) -> dict[str, int]:
    """Stable features, and how many of them have each verdict."""
    each = {name: int((judged.verdict == VERDICTS.index(name)).sum()) for name in _COUNTED}
    return {"stable": sum(each.values()), **each}


def agreement(end: End, judged: Sequence[Judged]) -> dict[str, Any]:
    """Whether the same features have the same verdict under both SAE seeds: pairs of each other's best match that are
    judged under both, the share of them with one verdict, and Cohen's kappa; None where it does not exist."""
    pairs, _ = one_to_one(*correlate(end.acts[0], end.acts[1], 1)[:4])
    a, b = judged[0].verdict[pairs[:, 0]], judged[1].verdict[pairs[:, 1]]
    both = (a != VERDICTS.index("unstable")) & (b != VERDICTS.index("unstable"))
    a, b = a[both], b[both]
    if not len(a):
        return {"pairs": 0, "agreement": None, "kappa": None}
    same = float((a == b).mean())
    chance = sum(float((a == v).mean() * (b == v).mean()) for v in range(len(VERDICTS)))
    return {"pairs": len(a), "agreement": same, "kappa": (same - chance) / (1 - chance) if chance < 1 else None}
