"""Effects of features on the prediction: directly on the logits, by attribution, and when moved into the other model.

Two features can fire alike and act differently. Similarities of logit weights and of attributions are those of Bricken
et al. 2023 (universality); moving features is the causal test of Minder et al. 2025 (arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor, nn

from heredity.features.collect import Reader, encoded, together
from heredity.features.correlate import median
from heredity.lm.evaluate import arithmetic, chunk_rows, dtype_of
from heredity.lm.hooks import replaced
from heredity.lm.logit_attribution import logit_weights
from heredity.sae.model import SAE

_CHUNK = 1 << 22  # numbers in a temporary array
_JITTER = 0.1  # of the logs of size and density, by which controls are drawn


def logit_similarity(parent: Reader, child: Reader, pairs: np.ndarray) -> np.ndarray:
    """Pearson r over the vocabulary of the logit weights of pairs of features; float64 [n], nan for a constant one.

    parent, child: a model and one SAE each. pairs: int [n, 2] of (parent feature, child feature). Raises as
    `logit_weights` does, and ValueError for vocabularies of different size.
    """
    check_vocab(parent.model, child.model)
    r, step = np.empty(len(pairs)), max(1, _CHUNK // _vocab(child.model))
    for start in range(0, len(pairs), step):
        some = torch.from_numpy(pairs[start : start + step])
        weights = (
            logit_weights(reader.model, reader.hook_point, reader.sae.W_dec[side.to(reader.sae.W_dec.device)])
            for reader, side in ((parent, some[:, 0]), (child, some[:, 1]))
        )
        a, b = (side.double().cpu() for side in weights)
        norms = a.norm(dim=1) * b.norm(dim=1)
        r[start : start + step] = ((a * b).sum(1) / torch.where(norms > 0, norms, torch.nan)).clamp(-1, 1).numpy()
    return r


def attributions(reader: Reader, blocks: np.ndarray, features: np.ndarray) -> Iterator[csc_array]:
    """First-order effect of features on the loss: a_i(t) = f_i(t) d_i · ∂L/∂x(t), in nats.

    x is what the SAE reads and L the summed next-token cross-entropy of the block, so what a feature does to later
    tokens counts too; to first order L falls by a_i(t) when the feature is taken away. Yields float64 [tokens,
    features] for some blocks at a time, in order, without the last position of each block, which predicts nothing.
    reader: a model and one SAE. features: int [n], repeats allowed.
    """
    sae = reader.sae
    chosen = np.zeros(sae.d_sae, bool)
    chosen[features] = True
    for ids in id_batches(reader.model, blocks):
        x, gradient = (part[:, :-1].flatten(0, 1).float() for part in _gradient(reader, ids))
        indptr, indices, values = sae.encode_sparse(x)
        kept = chosen[indices]
        tokens = np.repeat(np.arange(len(x)), np.diff(indptr))[kept]
        effect, step = np.empty(len(tokens)), max(1, _CHUNK // sae.d_in)
        entries = torch.from_numpy(np.stack([tokens, indices[kept].astype(np.int64)])).to(x.device)
        for start in range(0, len(tokens), step):
            token, feature = entries[:, start : start + step]
            products = sae.W_dec[feature] * gradient[token]
            effect[start : start + step] = products.sum(1, dtype=torch.float64).cpu().numpy()
        effects = csc_array((effect * values[kept], (tokens, indices[kept])), shape=(len(x), sae.d_sae))
        yield csc_array(effects[:, features])


def attribution_similarity(parent: Reader, child: Reader, pairs: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Pearson r over aligned tokens of the attributions of pairs of features, zeros included; float64 [n], nan where a
    feature's attribution is constant, such as one that never fires.

    parent, child, pairs: as in `logit_similarity`. blocks: tokens [blocks, context], of a tokenizer both models use.
    Raises ValueError for vocabularies of different size and unknown tokens.
    """
    check_vocab(parent.model, child.model)
    sums, tokens = np.zeros((5, len(pairs))), len(blocks) * (blocks.shape[-1] - 1)
    streams = attributions(parent, blocks, pairs[:, 0]), attributions(child, blocks, pairs[:, 1])
    for a, b in zip(*streams, strict=True):
        sums += [m.sum(0) for m in (a, b, a.multiply(a), b.multiply(b), a.multiply(b))]
    a, b, aa, bb, ab = sums
    spread = [square - np.square(total) / tokens for square, total in ((aa, a), (bb, b))]
    varies = (spread[0] > 1e-12 * aa) & (spread[1] > 1e-12 * bb)  # rounding leaves a constant some spread
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (ab - a * b / tokens) / np.sqrt(spread[0] * spread[1])
    return np.where(varies, np.clip(r, -1, 1), np.nan)


class Splice(NamedTuple):
    """KL(child ‖ parent), nats per token, with features of the child moved into the parent; by block of tokens."""

    before: np.ndarray  # float64 [blocks]: nothing moved
    spliced: np.ndarray  # float64 [blocks]: the chosen features moved
    controls: np.ndarray  # float64 [controls, blocks]: as many other live features moved, like the chosen ones in size
    all: np.ndarray  # float64 [blocks]: all features moved; the most that the SAE can carry
    patched: np.ndarray  # float64 [blocks]: the child's activations instead; including what the SAE does not see
    moved: float  # mean squared length of what the chosen features add, as a share of what all add
    controls_moved: np.ndarray  # float64 [controls]: the same of the controls; what adds more can recover more
    live: int  # features that differ between the models somewhere in the sample; controls are drawn from them
    tokens: int  # positions compared

    @property
    def reach(self) -> float:
        """(KL_before − KL_all) / (KL_before − KL_patched): how much of what the hook point carries the SAE carries."""
        possible = self.before.mean() - self.patched.mean()
        return float((self.before.mean() - self.all.mean()) / possible) if possible > 0 else float("nan")


def splice(
    parent: nn.Module, child: Reader, features: np.ndarray, blocks: np.ndarray, controls: int = 3, seed: int = 0
) -> Splice:
    """Move features of the child into the parent: x_parent + Σ_{j ∈ S} (f_j(x_child) − f_j(x_parent)) d_j.

    f and d are of the child's SAE, run on both models' activations at the child's hook point on the same tokens, so
    that only the difference is added (causal test of Minder et al. 2025, for one SAE in place of a crosscoder).
    features: int [n], the set S. blocks: tokens [blocks, context] of a tokenizer both models use. controls: sets of as
    many other live features, which move as far and as often as those of S do as nearly as there are any; their ties are
    broken with `seed`. Costs 7 + controls forward passes.
    Raises ValueError when fewer other features are live than S has, and when the SAE or the vocabularies do not fit.
    """
    sae = child.sae
    check_vocab(parent, child.model)
    chosen = np.zeros(sae.d_sae, bool)
    chosen[features] = True
    changes = [_change(parent, child, ids.cpu().numpy()) for ids in id_batches(child.model, blocks)]
    differ = _nonzero(changes, sae.d_sae)
    others, size, rng = np.flatnonzero(differ & ~chosen), int(chosen.sum()), np.random.default_rng(seed)
    if controls and len(others) < size:
        raise ValueError(f"features: {size} are chosen but only {len(others)} others are live; choose fewer")
    drawn = [_alike(sae, changes, chosen & differ, others, rng) for _ in range(controls)]
    sets = [chosen, *drawn, np.ones(sae.d_sae, bool)]
    kls, lengths = [], np.zeros(len(sets))
    for ids, change in zip(id_batches(child.model, blocks), changes, strict=True):
        parts = [_part(sae, change, some) for some in sets]
        lengths += [float(part.double().square().sum()) for part in parts]
        kls.append(_kls(parent, child, ids, parts))
    kl = np.concatenate(kls, axis=1)
    moved = lengths / lengths[-1] if lengths[-1] else np.full(len(sets), np.nan)
    figures = float(moved[0]), moved[1:-1], int(differ.sum()), blocks.size
    return Splice(kl[0], kl[2], kl[3:-1], kl[-1], kl[1], *figures)


def _part(sae: SAE, change: csr_array, some: np.ndarray) -> Tensor:
    """Σ change_j d_j over the features in some, bool [d_sae]; [tokens, d_in]."""
    kept = some[change.indices]
    indptr = np.concatenate([[0], np.cumsum(kept)])[change.indptr]
    return sae.decode_sparse(indptr, change.indices[kept], change.data[kept]) - sae.b_dec


def _alike(
    sae: SAE, changes: Sequence[csr_array], chosen: np.ndarray, others: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """As many of the others, bool [d_sae], each the nearest that is left to one of the chosen in the logs of its mean
    squared move and of how often it moves. Moves of several features add up or cancel, so that the whole set can still
    move further or less far: it is then drawn again for larger or smaller moves, and the nearest of four is taken."""
    square = sum(np.bincount(c.indices, np.square(c.data, dtype=np.float64), sae.d_sae) for c in changes)
    often = sum(np.bincount(c.indices[c.data != 0], minlength=sae.d_sae) for c in changes)
    square = square * sae.W_dec.double().square().sum(1).cpu().numpy()
    place = np.log(np.maximum(np.stack([square, often], axis=1), 1e-30))
    jittered = place + _JITTER * rng.standard_normal(place.shape)

    def moved(some: np.ndarray) -> float:
        return sum(float(_part(sae, change, some).double().square().sum()) for change in changes)

    wanted, shift, best, least = moved(chosen), 0.0, np.zeros(sae.d_sae, bool), np.inf
    for _ in range(4):
        free, control = others.copy(), np.zeros(sae.d_sae, bool)
        for j in sorted(np.flatnonzero(chosen), key=lambda j: -place[j, 0]):
            nearest = int(np.abs(jittered[free] - place[j] - (shift, 0)).sum(1).argmin())
            control[free[nearest]] = True
            free = np.delete(free, nearest)
        off = float(np.log(max(moved(control), 1e-30) / max(wanted, 1e-30)))
        if abs(off) < least:
            best, least = control, abs(off)
        shift -= off
    return best


def differing(parent: Reader, child: Reader, blocks: np.ndarray) -> np.ndarray:
    """Features of the child's SAE that differ between the activations of both models somewhere, bool [d_child]."""
    return _nonzero([_change(parent.model, child, blocks)], child.sae.d_sae)


def _change(parent: nn.Module, child: Reader, blocks: np.ndarray) -> csr_array:
    """Activations of the child's SAE on the child's vectors less those on the parent's, [tokens, d_child]."""
    sides = [encoded(child._replace(model=model), blocks)[0] for model in (child.model, parent)]
    both, kept = together(*sides)
    of_child, of_parent = both if kept is None else [own.spread(kept) for own in both]
    matrices = (csr_array((a.values, a.indices, a.indptr), (a.tokens, a.d_sae)) for a in (of_child, of_parent))
    return csr_array(next(matrices) - next(matrices))


def _nonzero(changes: Sequence[csr_array], d_sae: int) -> np.ndarray:
    """Features with an entry other than 0 in some change, bool [d_sae]."""
    differ = (np.bincount(change.indices[change.data != 0], minlength=d_sae) > 0 for change in changes)
    return np.any(list(differ), axis=0)


def _kls(parent: nn.Module, child: Reader, ids: Tensor, parts: list[Tensor]) -> np.ndarray:
    """KL from the child, [2 + parts, batch]: of the parent as it is, with the child's activations, with each part."""

    def log_probs(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Tensor:
        with replaced(model, child.hook_point, change), torch.no_grad(), arithmetic(ids.device, child.precision):
            logits = model(input_ids=ids, use_cache=False).logits
        return logits.float().log_softmax(-1)

    seen: list[Tensor] = []
    # `append` gives None, so activations go on unchanged.
    target = log_probs(child.model, lambda x: seen.append(x) or x)
    additions = [lambda x, part=part: x.float() + part.view(x.shape) for part in parts]
    rows = []
    for change in (lambda x: x, lambda _: seen[0], *additions):
        other = log_probs(parent, change)
        rows.append((target.exp() * (target - other)).sum(-1, dtype=torch.float64).mean(1).cpu().numpy())
    return np.stack(rows)


def _gradient(reader: Reader, ids: Tensor) -> tuple[Tensor, Tensor]:
    """x at the hook point and ∂L/∂x, both [batch, context, d_in]; L is the summed next-token loss."""
    held: list[Tensor] = []
    bf16 = dtype_of(reader.precision, ids.device) is torch.bfloat16
    leaf: Callable[[Tensor], Tensor] = lambda x: held.append(x.detach().requires_grad_()) or held[0]  # noqa: E731
    with torch.enable_grad(), replaced(reader.model, reader.hook_point, leaf):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
            logits = reader.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
        return held[0].detach(), torch.autograd.grad(loss, held[0])[0]


def id_batches(model: nn.Module, blocks: np.ndarray) -> Iterator[Tensor]:
    """Token ids [n, context], so few blocks at a time that their logits fit; on the model's device."""
    known, device = _vocab(model), next(model.parameters()).device
    if int(blocks.max()) >= known or int(blocks.min()) < 0:
        raise ValueError(f"blocks hold token {int(blocks.max())}, the model knows {known}; use the model's tokenizer")
    step = max(1, chunk_rows(known, device) // blocks.shape[1])
    for start in range(0, len(blocks), step):
        yield torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64)).to(device)


def _vocab(model: nn.Module) -> int:
    return model.get_input_embeddings().num_embeddings  # type: ignore[operator]


def check_vocab(parent: nn.Module, child: nn.Module) -> None:
    known = _vocab(parent), _vocab(child)
    if known[0] != known[1]:
        raise ValueError(f"the parent knows {known[0]} tokens and the child {known[1]}; they must share a tokenizer")


def splice_figures(splice: Splice, seed: int, level: float = 0.95, resamples: int = 1000) -> dict[str, float | None]:
    """Figures of a splice, means over blocks, with CIs (`NAME_low`, `NAME_high`) by bootstrap over its blocks.

    before, spliced, control (mean of the controls), all: KL in nats per token. recovered: (before − spliced) /
    (before − all); None where moving all features does not help. control_recovered: the same of the controls. excess:
    their difference. Without a CI: reach; moved, control_moved (median), as in `Splice`. Figures of controls are None
    without controls, a CI where a resample has no such figure.
    """
    controls = splice.controls.mean(0) if len(splice.controls) else np.full_like(splice.before, np.nan)
    kl = np.stack([splice.before, splice.spliced, controls, splice.all])
    blocks = kl.shape[1]
    weights = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), resamples) / blocks
    figures: dict[str, float] = {}
    for name, values in _shares(weights @ kl.T).items():
        ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(values).all() else [np.nan] * 2
        figures |= {f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
    figures |= {name: float(values[0]) for name, values in _shares(kl.mean(1)[None]).items()}
    figures |= {"reach": splice.reach, "moved": splice.moved, "control_moved": median(splice.controls_moved)}
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


def _shares(kl: np.ndarray) -> dict[str, np.ndarray]:
    """Each [n], from mean KLs [n, 4]: before, with the chosen, with others and with all moved."""
    before, spliced, control, every = kl.T
    possible = np.where(before > every, before - every, np.nan)
    recovered, by_chance = (before - spliced) / possible, (before - control) / possible
    kls = {"before": before, "spliced": spliced, "control": control, "all": every}
    return kls | {"recovered": recovered, "control_recovered": by_chance, "excess": recovered - by_chance}
