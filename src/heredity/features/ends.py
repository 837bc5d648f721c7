"""Evidence and verdicts on the features of one end of an edge, from activations of both models and SAEs of two seeds.

What the evidence means and how it is judged: `features.verdicts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups, group_moments, leave_one_out, r_intervals
from heredity.features.correlate import correlate
from heredity.features.criteria import kappa, one_to_one
from heredity.features.readout import Readout
from heredity.features.transmission import Effects, Predictor, Regression, centered_products, mapped, orthogonal
from heredity.features.verdicts import ALONE, SHARED_R, STABLE, VERDICTS, Followed, Judged, judge, same_r
from heredity.kernels.torch_forms import moved
from heredity.sae.model import SAE

_COUNTED = VERDICTS[:4]  # verdicts on stable features
_ENCODED = 8192  # tokens at a time


@dataclass(frozen=True)
class End:
    """One model on the aligned tokens, with its SAEs."""

    saes: Sequence[SAE]
    acts: Sequence[FeatureActs]  # of each SAE
    x: np.ndarray  # float32 [tokens, d]
    fitting: np.ndarray  # float32 [tokens, d], on other tokens

    @cached_property
    def predictor(self) -> Predictor:
        """Maps from its activations to those of other ends, fitted on `fitting`."""
        return Predictor(self.fitting)


def end_of(saes: Sequence[SAE], x: np.ndarray, fitting: np.ndarray) -> End:
    """An end with its activations encoded by each of its SAEs."""
    return End(saes, [encode(sae, x) for sae in saes], x, fitting)


def encode(sae: SAE, x: np.ndarray) -> FeatureActs:
    """Feature activations of x, float32 [tokens, d], a part of the tokens at a time."""
    parts = (moved(torch.from_numpy(part), sae.W_enc.device) for part in np.array_split(x, max(1, len(x) // _ENCODED)))
    return FeatureActs.concatenate([FeatureActs(*sae.encode_sparse(part), sae.d_sae) for part in parts])


@dataclass(frozen=True)
class Between:
    """What lies between the ends of an edge, whichever of the own end's features are judged."""

    forth: tuple[np.ndarray, np.ndarray]  # affine map from the own activations to the other's, weight and bias
    back: tuple[np.ndarray, np.ndarray]
    turn: np.ndarray  # orthogonal map from the own activations to the other's, float64 [d_own, d_other]
    alone: np.ndarray | None  # what features of the other end alone add there, float32 [tokens, d_other]
    there: Sequence[np.ndarray]  # of each SAE of the other end, r of its features with themselves read here
    shared: tuple[np.ndarray, np.ndarray]  # directions of features of both, here [n, d_own] and there [n, d_other]
    reread: np.ndarray  # the other's activations mapped back, float32 [tokens, d_own]

    @classmethod
    def of(cls, own: End, other: End, reverse: Between | None = None, *, effects: bool = True) -> Between:
        """What lies between two ends. reverse: the same from the other's side, where that is made already. effects:
        whether what they alone need is made; it is empty without, and r nan."""
        products = centered_products(own.fitting, other.fitting)
        maps = (reverse.back, reverse.forth) if reverse else ()
        forth, back = maps or (own.predictor.to(other.fitting, products), other.predictor.to(own.fitting, products.T))
        reread = mapped(other.x, *back)
        if not effects:
            nothing = np.empty((0, own.x.shape[1])), np.empty((0, other.x.shape[1]))
            unknown = [np.full(acts.d_sae, np.nan) for acts in other.acts]
            return cls(forth, back, nothing[0], None, unknown, nothing, reread)
        image = mapped(own.x, *forth)
        there = [same_r(acts, encode(sae, image)) for acts, sae in zip(other.acts, other.saes, strict=True)]
        turn, shared = orthogonal(products), _shared(other.saes, there, back[0])
        return cls(forth, back, turn, _alone(own, other), there, shared, reread)


class Judge:
    """The features of one SAE of an end, to be judged against any other model: what is the end's own is made once."""

    def __init__(
        self,
        own: End,
        seed: int,
        documents: np.ndarray,
        groups: int,
        mine: np.ndarray | None = None,
        effects: bool = True,
    ) -> None:
        """seed: 0 or 1, the SAE that is judged; the other one tells which of its features are stable, and with one
        alone all that fire are. documents: int [tokens]. groups: seed of the groups of documents. mine: bool [d_sae],
        features to judge; None: all that are stable. effects: whether they are regressed on; without, effects are nan,
        and verdicts undecided. Raises TooWideError where more features fire than there is memory to regress on."""
        self._own, self._documents, self._groups = own, documents, groups
        self._acts, self._sae = own.acts[seed], own.saes[seed]
        if len(own.acts) > 1:
            self._stability = correlate(self._acts, own.acts[1 - seed], 1).parent_r[:, 0]
        else:
            self._stability = np.where(self._acts.firings() > 0, 1.0, np.nan)
        self._mine = np.ones(self._acts.d_sae, bool) if mine is None else mine
        self._regression = Regression(self._acts, own.x, documents, groups) if effects else None
        self._readout = Readout(self._acts, own.x, documents, groups)

    def against(
        self,
        other: End,
        between: Between | None = None,
        *,
        whole: bool = False,
        best: Sequence[np.ndarray] | None = None,
    ) -> tuple[Judged, dict[str, np.ndarray]]:
        """Verdicts on the features, and the evidence they rest on, by column.

        between: of this end and the other, made here unless given. whole: whether features that are not judged get
        evidence of effects too, which takes longer. best: of each SAE of the other end, the best partner of every
        feature, int [d_sae, 1]; found here unless known.
        """
        acts, sae = self._acts, self._sae
        stable = (self._stability > STABLE) & self._mine
        between = between or Between.of(self._own, other, effects=self._regression is not None)
        read, rows = encode(sae, between.reread), sae.W_dec.detach().cpu().numpy()
        best = best or [correlate(acts, each, 1).parent_match for each in other.acts]
        match, elsewhere = self._matched(other.acts, best, between.there)
        reread = self._intervals(read, np.arange(acts.d_sae)[:, None])
        effect = Effects.unknown(acts.d_sae)
        if self._regression is not None:
            directions, wanted = (rows, rows @ between.turn), None if whole else stable
            effect = self._regression.effects(
                between.forth[0], other.x, between.alone, directions, between.shared, wanted
            )
        evidence = {"firings": acts.firings(), "stability": self._stability, "owned": self._mine}
        for name, (r, low, high) in (("match_r", match), ("map_r", reread)):
            evidence |= {name: r, f"{name}_low": low, f"{name}_high": high}
        evidence |= _density_ratio(acts, read, document_groups(self._documents, 16, self._groups))
        evidence |= {name: value for name, value in effect._asdict().items() if name != "groups"}
        read_out = self._readout.readable(other.x)
        evidence |= {"readable": read_out[0], "readable_error": read_out[1]}
        return judge(effect, stable, match, reread, elsewhere, read_out), evidence

    def _matched(
        self, others: Sequence[FeatureActs], partners: Sequence[np.ndarray], there: Sequence[np.ndarray]
    ) -> tuple[Followed, np.ndarray]:
        """Best r of each feature in SAEs of the other model, and how well this model has the matched one, float64
        [d_sae].

        partners: int [d_sae, 1] each. there: r of each feature of these SAEs with itself, read in this model, float64
        [d_sae] each.
        """
        best, elsewhere = Followed(*np.full((3, self._acts.d_sae), np.nan)), np.full(self._acts.d_sae, np.nan)
        for each, found, own in zip(others, partners, there, strict=True):
            this = self._intervals(each, found)
            better = this.r > np.nan_to_num(best.r, nan=-1)
            best = Followed(*(np.where(better, new, old) for new, old in zip(this, best, strict=True)))
            elsewhere = np.where(better, own[found[:, 0]], elsewhere)
        return best, elsewhere

    def _intervals(self, other: FeatureActs, candidates: np.ndarray) -> Followed:
        """r of each feature with its candidate [d_sae, 1], with its interval over documents."""
        group = document_groups(self._documents, 16, self._groups)
        found = r_intervals(leave_one_out(group_moments(self._acts, other, candidates, group)))
        return Followed(found.r, found.low, found.high)


def judge_end(
    own: End,
    other: End,
    seed: int,
    documents: np.ndarray,
    groups: int,
    mine: np.ndarray | None = None,
    effects: bool = True,
    best: Sequence[np.ndarray] | None = None,
) -> tuple[Judged, dict[str, np.ndarray]]:
    """Verdicts on the features of one SAE of an end against one other model, and their evidence; as `Judge` says."""
    return Judge(own, seed, documents, groups, mine, effects).against(other, whole=True, best=best)


def _density_ratio(acts: FeatureActs, read: FeatureActs, group: np.ndarray) -> dict[str, np.ndarray]:
    """How often each feature fires as read over how often it does, with the interval of a jackknife over groups of
    tokens, on the scale of the logarithm; nan where it never fires."""
    size, groups = acts.d_sae, int(group.max()) + 1
    fired, fires = (
        np.bincount(np.repeat(group, np.diff(each.indptr)) * size + each.indices, minlength=groups * size)
        for each in (acts, read)
    )
    fired, fires = fired.reshape(groups, size), fires.reshape(groups, size)
    ratio = fires.sum(0) / np.where(fired.sum(0) > 0, fired.sum(0), np.nan)
    # Half a firing more on either side keeps the ratio finite where all firings are in one group.
    without = np.log((fires.sum(0) - fires + 0.5) / (fired.sum(0) - fired + 0.5))
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean(0)).sum(0))
    half = np.exp(stats.t(max(groups - 1, 1)).ppf(0.975) * error)
    return {"density_ratio": ratio, "density_ratio_low": ratio / half, "density_ratio_high": ratio * half}


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
    counts = np.zeros((len(VERDICTS), len(VERDICTS)), np.int64)
    np.add.at(counts, (a, b), 1)
    own = float(kappa(counts))
    return {"pairs": len(a), "agreement": float((a == b).mean()), "kappa": None if np.isnan(own) else own}
