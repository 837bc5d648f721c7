"""SAEs, directions and probes of one model, rewritten for another by affine maps (Chen et al. 2025, arXiv 2506.06609).

A transferred SAE is the source's, seen through the maps: up ∘ SAE ∘ down, folded into one set of weights. Beyond the
paper, its decoder or thresholds can be fitted to the target's activations in closed form, its dead features revived,
and a dictionary turned at random instead, to measure the worth of its shape without any map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.linalg import solve
from scipy.sparse import csr_array
from torch import Tensor

from heredity.errors import one_of
from heredity.sae.evaluate import quality
from heredity.sae.model import SAE, Activation
from heredity.sae.step import Rule
from heredity.sae.train import POOL_BATCHES, Step, resample, start, write_back
from heredity.stitch.affine import Affine, Moments, Stitch
from heredity.stitch.savings import refit_flops
from heredity.study import RANKED, SAEConfig

SILENT = 50_000  # training vectors on which a feature must have been silent to be revived
LARGEST_REFIT = 8192  # features of the widest SAE whose decoder is refitted: a float64 matrix [d_sae, d_sae] is held
_ROWS = 4096  # vectors encoded at a time
_CHUNK = 1 << 24  # pre-activations computed at a time
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
_CUT_ROWS = 1024  # vectors that a batchtopk threshold is set on; before it is, half of all features are active


def transfer_sae(sae: SAE, up: Affine, down: Affine, normalize: bool = False) -> SAE:
    """The SAE of the target that gives up(SAE(down(x))) for every x, exactly but for rounding (eq. 6 and 12).

        W_enc' = P_down W_enc        b_enc' = b_enc + (down(b_dec') − b_dec) W_enc
        W_dec' = W_dec P_up          b_dec' = up(b_dec)

    Ours subtracts b_dec before encoding, which the paper's does not: b_enc' takes up the round trip's remainder of the
    center. Codes stay, thus k and thresholds too. normalize: give decoder rows unit norm, as training needs them, and
    multiply encoder columns, biases and thresholds by the old norms. x̂ stays for relu, jumprelu and batchtopk, which
    becomes a jumprelu; for topk other features may be the k largest. Raises ValueError when the widths do not fit.
    """
    d_in, shapes = sae.d_in, (list(up.weight.shape), list(down.weight.shape))
    if shapes[0][0] != d_in or shapes[0] != shapes[1][::-1]:
        given = f"the SAE reads width {d_in}, up is {shapes[0]} and down {shapes[1]}"
        raise ValueError(f"{given}; give up [{d_in}, d_target] and down [d_target, {d_in}]")
    w_up, b_up, w_down, b_down = (part.to(sae.W_dec.device).double() for part in (*up, *down))
    w_enc, b_dec = sae.W_enc.double(), sae.b_dec.double()
    center = b_dec @ w_up + b_up
    b_enc = sae.b_enc.double() + (center @ w_down + b_down - b_dec) @ w_enc
    moved = _made(sae, w_down @ w_enc, b_enc, sae.W_dec.double() @ w_up, center)
    return _unit_norm(moved) if normalize else moved


def cut_to_unit(sae: SAE) -> SAE:
    """A copy with decoder rows of norm 1 and all else as it is, so that x̂ changes.

    What the first step makes of a transferred SAE in a trainer that renormalizes its rows at every step and knows of no
    norms to move into the encoder, as in Chen et al. 2025 (appendix D). A row of zeros stays one.
    """
    norms = sae.W_dec.norm(dim=1, keepdim=True)
    return _made(sae, sae.W_enc, sae.b_enc, sae.W_dec / torch.where(norms > 0, norms, 1), sae.b_dec)


def transfer_direction(v: Tensor, through: Affine) -> Tensor:
    """Directions [..., d_in] in the other model, unit norm [..., d_out]: v P, without the bias (section 4.2)."""
    image = v @ through.weight.to(v.device, v.dtype)
    norm = image.norm(dim=-1, keepdim=True)
    if not bool((norm > 0).all()):
        raise ValueError("the map sends a direction to 0, which leaves nothing to steer by; use another map or layer")
    return image / norm


def transfer_probe(w: Tensor, c: Tensor | float, through: Affine) -> tuple[Tensor, Tensor]:
    """The probe x' -> w · through(x') + c as weights of its own: (w P^T, c + w · b) (appendix B.2).

    w: [..., d_out], c: [...] or one number. through: from the new model to the old one; `down` for one of the source.
    """
    weight, bias = (part.to(w.device, w.dtype) for part in through)
    return w @ weight.T, c + w @ bias


def same_selection(sae: SAE, other: SAE, batches: Iterable[Tensor]) -> float:
    """Share of the active features of one SAE that are active in another too, pooled over x [n, d_in]; nan for none."""
    both = active = 0
    for x in _parts(sae, batches):
        ours, theirs = sparse_codes(sae, x), sparse_codes(other, x)
        both += ours.astype(bool).multiply(theirs.astype(bool)).nnz
        active += ours.nnz
    return both / active if active else float("nan")


def folding(sae: SAE, folded: SAE, stitch: Stitch, x: Tensor) -> tuple[float, float]:
    """Compare the two sides of eq. 6 on vectors x [n, d_b] of the target; all on one device.

    Gives the largest element of folded(x) − up(SAE(down(x))) over the root mean square of x, nan without vectors; and
    the share of vectors left out of it, where rounding made another feature active.
    """
    codes, given = folded.encode_sparse(x), sae.encode_sparse(stitch.down(x))
    chosen = [np.split(of[1], of[0][1:-1]) for of in (codes, given)]
    same = np.array([np.array_equal(*pair) for pair in zip(*chosen, strict=True)])
    kept = torch.from_numpy(same).to(x.device)
    off = (folded.decode_sparse(*codes) - stitch.up(sae.decode_sparse(*given)))[kept]
    rms = float(x.double().square().mean().sqrt())
    return float(off.abs().max()) / rms if same.any() else float("nan"), float(1 - same.mean())


def calibrate(
    sae: SAE, batches: Iterable[Tensor], refit: Literal["bias", "decoder"] = "bias", ridge: float = 1e-3
) -> SAE:
    """An SAE with the same codes on every x, whose decoder fits x [n, d_in] of one pass best in the mean square.

    refit: bias, the mean of x − acts W_dec; or decoder, b_dec and W_dec at the minimum of ‖x − acts W_dec − b_dec‖² +
    λ ‖W_dec − old W_dec‖², where features that hardly fire keep their direction. Refitted rows have any norm, and reach
    all dimensions, a transferred decoder only as many as the source has. ridge: λ relative to the mean over live
    features of Σ acts². Not in the paper. Raises ValueError when there are no vectors, and for another refit.
    """
    one_of("refit", refit, ("bias", "decoder"))
    tokens, x_sum, acts_sum = 0, np.zeros(sae.d_in), np.zeros(sae.d_sae)
    size = sae.d_sae if refit == "decoder" else 0
    gram, cross = np.zeros((size, size)), np.zeros((size, sae.d_in))
    for x in _parts(sae, batches):
        acts, values = sparse_codes(sae, x), x.double().cpu().numpy()
        tokens += len(values)
        x_sum += values.sum(0)
        acts_sum += acts.sum(0)
        if size:
            pairs = (acts.T @ acts).tocoo()
            gram[pairs.row, pairs.col] += pairs.data
            cross += acts.T @ values
    if not tokens:
        raise ValueError("no vectors were given; calibrate on at least one batch of activations")
    w_dec, mean = sae.W_dec.double().cpu().numpy(), x_sum / tokens
    if size:
        squares = np.diag(gram)
        penalty = ridge * squares[squares > 0].mean() if squares.any() else 1.0
        gram -= np.outer(acts_sum, acts_sum) / tokens
        cross -= np.outer(acts_sum, mean)
        gram[np.diag_indices(size)] += penalty
        w_dec = solve(gram, cross + penalty * w_dec, overwrite_a=True, overwrite_b=True, assume_a="pos")
    b_dec = torch.from_numpy(mean - acts_sum / tokens @ w_dec).to(sae.b_dec)
    b_enc = sae.b_enc.double() + (b_dec.double() - sae.b_dec.double()) @ sae.W_enc.double()
    return _made(sae, sae.W_enc, b_enc, torch.from_numpy(w_dec), b_dec)


def match_density(sae: SAE, x: Tensor, density: np.ndarray) -> SAE:
    """An SAE whose every feature fires on a wanted share of the vectors x [n, d_in].

    density: float [d_sae]. relu: by the encoder's bias; jumprelu and batchtopk, which becomes a jumprelu: by the
    threshold, at least 0. A feature wanted on less than one of the vectors stays. Not in the paper. Raises ValueError
    for topk, which has no threshold.
    """
    if sae.activation == "topk":
        raise ValueError("a topk SAE has no thresholds to match densities by; calibrate its decoder, or train it on")
    matched = _made(sae, activation="relu" if sae.activation == "relu" else "jumprelu")
    x = x.to(sae.W_enc.device, torch.float32)
    wanted = torch.from_numpy(np.rint(density * len(x)).astype(np.int64)).to(x.device)
    for features in torch.arange(sae.d_sae, device=x.device).split(max(1, _CHUNK // len(x))):
        columns = (x - sae.b_dec) @ sae.W_enc[:, features] + sae.b_enc[features]
        ordered, count = columns.sort(dim=0, descending=True).values, wanted[features]
        # Halfway to the first vector that shall not fire, so that rounding decides nothing.
        last = ordered.gather(0, (count - 1).clamp(min=0)[None])[0]
        beyond = ordered.gather(0, count.clamp(max=len(x) - 1)[None])[0]
        cut = torch.where(count < len(x), (last + beyond) / 2, last - last.abs())[count > 0]
        chosen = features[count > 0]
        if matched.threshold is None:
            matched.b_enc[chosen] -= cut
        else:
            matched.threshold[chosen] = cut.clamp(min=0)
    return matched


def repaired(
    sae: SAE, batch: Callable[[int], Tensor], batch_size: int, steps: int, seed: int
) -> tuple[SAE, int, float]:
    """A folded SAE with its decoder refitted and its dead features revived on the first vectors of a training.

    batch: number of a step -> vectors [batch_size, d_in]. Returns the SAE, the number of revived features and the FLOPs
    spent. Only b_dec is refitted where the SAE has more than `LARGEST_REFIT` features or fewer than two vectors per
    feature were read. Nothing is revived on fewer than `SILENT` vectors.
    """
    batches = [batch(step) for step in range(min(steps, -(-max(SILENT, 2 * sae.d_sae) // batch_size)))]
    vectors = sum(map(len, batches))
    decoder = sae.d_sae <= min(LARGEST_REFIT, vectors // 2)
    sae = _unit_norm(calibrate(sae, batches, "decoder" if decoder else "bias"))
    figures, given = quality(sae, batches), 0
    flops = sum(refit_flops(sae.d_in, sae.d_sae, figures.l0, vectors, refitted) for refitted in (decoder, False))
    if vectors >= SILENT:  # on fewer vectors a rare feature looks dead
        alive, count = revived(sae, figures.density == 0, batches, seed)
        # A direction taken from one vector may fire everywhere: of a topk SAE it then displaces what was good.
        if count and quality(alive, batches).explained_variance > figures.explained_variance:
            sae, given = alive, count
    return sae, given, flops


def revived(sae: SAE, dead: np.ndarray, batches: Sequence[Tensor], seed: int) -> tuple[SAE, int]:
    """A copy with its dead features pointed at badly reconstructed vectors, as the training does; and their number.

    dead: bool [d_sae]. batches: x [n, d_in] each; vectors are picked from the last `POOL_BATCHES` of them (see
    `sae.train.resample`). Raises ValueError unless decoder rows are of unit norm.
    """
    state = start(sae, batches.__getitem__, {"steps": len(batches)}, continued=True)
    # To the resampling, the batches are steps of a training that has changed nothing so far.
    nan = float("nan")
    state.rows = [Step(number + 1, nan, nan, nan, nan, 0, None, None, 0) for number in range(len(batches))]
    mask, rule = torch.from_numpy(dead).to(sae.W_dec.device), Rule(sae.activation, sae.k or 0)
    count = resample(state, mask, batches.__getitem__, rule, 20 * POOL_BATCHES, seed)
    alive = _made(sae)
    write_back(state, alive)
    return alive, count


def turned(sae: SAE, moments: Moments, seed: int) -> SAE:
    """The SAE seen through a random map R [d_a, d_b] with orthonormal rows, or columns where d_a > d_b.

        W_dec' = W_dec R, rows of unit norm        W_enc' = c Rᵀ W_enc        b_dec' = mean_b
        b_enc' = s (b_enc + (mean_a − b_dec) W_enc)        thresholds' = s thresholds

    s² = tr bb / tr aa takes pre-activations from the scale of a to that of b, and c makes their variance, summed over
    features, s² times that in the source. Nothing else is known of the target.
    """
    d_a, d_b = moments.ab.shape
    normal = torch.randn(max(d_a, d_b), min(d_a, d_b), generator=torch.Generator().manual_seed(seed)).double()
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # uniform among such maps, whatever sign the factorization prefers
    turn = (q if d_a > d_b else q.T).numpy()
    w_enc, b_enc, w_dec, b_dec = (getattr(sae, name).double().cpu().numpy() for name in _WEIGHTS)
    scale = float(np.sqrt(np.trace(moments.bb) / np.trace(moments.aa)))
    moved, rows = turn.T @ w_enc, w_dec @ turn
    spread = np.sum(w_enc * (moments.aa @ w_enc)), np.sum(moved * (moments.bb @ moved))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    encoder = moved * scale * np.sqrt(spread[0] / spread[1]), scale * (b_enc + (moments.mean_a - b_dec) @ w_enc)
    decoder = rows / np.where(norms > 0, norms, 1), moments.mean_b
    return _made(sae, *map(torch.from_numpy, (*encoder, *decoder)), scale=scale)


def trainable(sae: SAE, config: SAEConfig, x: Tensor) -> SAE:
    """The SAE with the activation function that the settings train.

    A batchtopk, which normalizing made a jumprelu, gets one threshold that keeps k features per vector on some of x.
    """
    k = config.k if config.activation in RANKED else None
    if (sae.activation, sae.k) == (config.activation, k):
        return sae
    ready = _made(_made(sae, activation="relu"), activation=config.activation, k=k)  # in between, no thresholds
    if config.activation == "batchtopk" and ready.threshold is not None:
        some = x[:_CUT_ROWS].to(ready.W_dec.device)
        values = ready.encode_sparse(some)[2]
        if config.k * len(some) < len(values):
            ready.threshold.fill_(float(np.sort(values)[-config.k * len(some) - 1]))
    return ready


def sparse_codes(sae: SAE, x: Tensor) -> csr_array:
    """Feature activations of vectors x [n, d_in], float64 [n, d_sae]; zeros are not stored."""
    indptr, indices, values = sae.encode_sparse(x)
    return csr_array((values.astype(np.float64), indices, indptr), shape=(len(x), sae.d_sae))


def _parts(sae: SAE, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    return (x for batch in batches for x in batch.to(sae.W_enc.device, torch.float32).split(_ROWS))


def _unit_norm(sae: SAE) -> SAE:
    """A copy with decoder rows of unit norm; a batchtopk becomes a jumprelu, and topk keeps its k."""
    if sae.activation == "topk":
        return _made(_made(sae, activation="relu").unit_norm(), activation="topk", k=sae.k)
    return _made(sae, activation="relu" if sae.activation == "relu" else "jumprelu").unit_norm()


def _made(
    like: SAE, *weights: Tensor, scale: float = 1.0, activation: Activation | None = None, k: int | None = None
) -> SAE:
    """A copy with other weights (W_enc, b_enc, W_dec and b_dec, if given), `scale` times the threshold if it has one,
    and another activation function."""
    weights = weights or tuple(getattr(like, name) for name in _WEIGHTS)
    made = SAE(len(weights[0]), like.d_sae, activation or like.activation, k or like.k).to(like.W_dec.device)
    for name, part in zip(_WEIGHTS, weights, strict=True):
        getattr(made, name).copy_(part)
    if made.threshold is not None and like.threshold is not None:
        made.threshold.copy_((scale * like.threshold).expand_as(made.threshold))
    return made
