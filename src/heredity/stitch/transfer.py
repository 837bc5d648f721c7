"""SAEs, directions and probes of one model, rewritten for another by affine maps (Chen et al. 2025, arXiv 2506.06609).

A transferred SAE is the source's own, seen through the maps: up ∘ SAE ∘ down, folded into one set of weights. Beyond
the paper, its decoder or its thresholds can be fitted to the target's activations in closed form, without training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg import solve
from scipy.sparse import csr_array
from torch import Tensor, nn

from heredity import metrics
from heredity.lm.activations import activations
from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import replaced
from heredity.sae.evaluate import SAEQuality, quality
from heredity.sae.model import SAE, Activation
from heredity.stitch.affine import Affine
from heredity.study import Precision

_ROWS = 4096  # vectors encoded at a time
_CHUNK = 1 << 24  # pre-activations made at a time


def transfer_sae(sae: SAE, up: Affine, down: Affine, normalize: bool = False) -> SAE:
    """The SAE of the target that gives up(SAE(down(x))) for every x, exactly but for rounding (eq. 6 and 12).

        W_enc' = P_down W_enc        b_enc' = b_enc + (down(b_dec') − b_dec) W_enc
        W_dec' = W_dec P_up          b_dec' = up(b_dec)

    The paper's encoder has no pre-bias; ours subtracts b_dec, so the new one subtracts b_dec', and b_enc' takes up what
    the round trip of the center leaves over. Codes stay the same number for number, thus k and thresholds too.

    sae: of the source, width d_A; up: d_A -> d_B; down: d_B -> d_A. The result is of width d_B, where the SAE is.

    normalize: give decoder rows unit norm, as training wants them, and multiply encoder columns, biases and thresholds
    by the old norms. x̂ stays for relu, jumprelu and batchtopk, whose one threshold becomes one of each feature: it is
    a jumprelu from then on. For topk the norms change which features are the k largest: see `same_selection`.

    Raises ValueError when the widths do not fit.
    """
    d_in, d_out = sae.d_in, up.weight.shape[1]
    if up.weight.shape[0] != d_in or down.weight.shape != (d_out, d_in):
        raise ValueError(
            f"the SAE reads width {d_in}, up is {list(up.weight.shape)} and down {list(down.weight.shape)}; "
            f"give up [{d_in}, d_target] and down [d_target, {d_in}]"
        )
    device = sae.W_dec.device
    w_up, b_up, w_down, b_down = (part.to(device).double() for part in (*up, *down))
    w_enc, b_dec = sae.W_enc.double(), sae.b_dec.double()
    center = b_dec @ w_up + b_up
    made = SAE(d_out, sae.d_sae, sae.activation, sae.k).to(device)
    made.W_enc.copy_(w_down @ w_enc)
    made.b_enc.copy_(sae.b_enc.double() + (center @ w_down + b_down - b_dec) @ w_enc)
    made.W_dec.copy_(sae.W_dec.double() @ w_up)
    made.b_dec.copy_(center)
    if made.threshold is not None and sae.threshold is not None:
        made.threshold.copy_(sae.threshold)
    return _normalized(made) if normalize else made


def transfer_direction(v: Tensor, through: Affine) -> Tensor:
    """A direction [..., d_in] in the other model, unit norm [..., d_out]: v P, without the bias (section 4.2).

    Raises ValueError for a direction that the map sends to 0.
    """
    image = v @ through.weight.to(v.device, v.dtype)
    norm = image.norm(dim=-1, keepdim=True)
    if not bool((norm > 0).all()):
        raise ValueError("the map sends a direction to 0, which leaves nothing to steer by; use another map or layer")
    return image / norm


def transfer_probe(w: Tensor, c: Tensor | float, through: Affine) -> tuple[Tensor, Tensor]:
    """The probe x' -> w · through(x') + c as weights of its own: (w P^T, c + w · b) (appendix B.2).

    w: [..., d_out], c: [...] or one number. through: from the probe's new model to its old one. A probe of the source
    goes to the target by `down`.
    """
    weight, bias = (part.to(w.device, w.dtype) for part in through)
    return w @ weight.T, c + w @ bias


def same_selection(sae: SAE, other: SAE, batches: Iterable[Tensor]) -> float:
    """Share of the active features of one SAE that are active in the other too, pooled over tokens; x [n, d_in] each.

    Measures what normalizing a topk SAE changes. nan if nothing is active.
    """
    both = active = 0
    for x in _parts(sae, batches):
        codes = [_codes(each, x) for each in (sae, other)]
        both += codes[0].astype(bool).multiply(codes[1].astype(bool)).nnz
        active += codes[0].nnz
    return both / active if active else float("nan")


class ZeroShot(NamedTuple):
    """What an SAE is worth at a hook point it was not trained at (table 2 of the paper)."""

    quality: SAEQuality
    """L0, explained variance (1 − FUV), dead share and densities on the target's activations."""
    ce_clean: float
    """The model's cross-entropy as it is, nats a token."""
    ce_spliced: float
    """With the SAE's reconstruction at the hook point."""
    ce_zero: float
    """With zeros at the hook point."""

    @property
    def delta_loss(self) -> float:
        """Increase of the cross-entropy by splicing the SAE in, nats a token."""
        return self.ce_spliced - self.ce_clean

    @property
    def ce_loss_recovered(self) -> float:
        """See `metrics.ce_loss_recovered`."""
        return metrics.ce_loss_recovered(self.ce_clean, self.ce_spliced, self.ce_zero)

    @property
    def dead(self) -> np.ndarray:
        """int64 [dead]: features that never fired on the target; the ones to give a new life first."""
        return np.flatnonzero(self.quality.density == 0)


def zero_shot(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> ZeroShot:
    """Figures of an SAE on token blocks [n, context] of a model it may never have seen.

    Raises ValueError when the SAE does not have the width of the hook point.
    """

    def reconstructed(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).float()
            x_hat = torch.cat([sae.decode_sparse(*sae.encode_sparse(part)) for part in flat.split(_ROWS)])
        return x_hat.view(x.shape)

    found = quality(sae, activations(model, hook_point, blocks, precision))
    clean = evaluate(model, blocks, precision=precision).ce_loss
    with replaced(model, hook_point, reconstructed):
        spliced = evaluate(model, blocks, precision=precision).ce_loss
    with replaced(model, hook_point, torch.zeros_like):
        zero = evaluate(model, blocks, precision=precision).ce_loss
    return ZeroShot(found, clean, spliced, zero)


Refit = Literal["bias", "decoder"]


def calibrate(sae: SAE, batches: Iterable[Tensor], refit: Refit = "bias", ridge: float = 1e-3) -> SAE:
    """An SAE with the same codes on every x, whose decoder fits these activations best in the mean square.

    refit:
        bias       b_dec = mean of x − acts W_dec.
        decoder    b_dec and W_dec: the minimum of ‖x − acts W_dec − b_dec‖² + λ ‖W_dec − old W_dec‖², so that a feature
                   which hardly fires keeps its direction. A transferred decoder reaches only as many dimensions as the
                   source has; this one reaches them all.

    b_enc makes up for the change of b_dec, so that what fires stays. Explained variance on these batches never falls
    with `bias`. batches: x [n, d_in] each, of one pass. ridge: λ relative to the mean over live features of Σ acts².
    `decoder` holds a matrix [d_sae, d_sae] in float64 and needs more tokens than features to be worth anything; rows
    have any norm afterwards. Not in the paper.

    Raises ValueError when there are no vectors, or when refit or ridge is none that there is.
    """
    if refit not in ("bias", "decoder") or not ridge > 0:
        raise ValueError(f"refit={refit!r}, ridge={ridge}: choose bias or decoder, and a ridge above 0")
    tokens, x_sum, acts_sum = 0, np.zeros(sae.d_in), np.zeros(sae.d_sae)
    size = sae.d_sae if refit == "decoder" else 0
    gram, cross = np.zeros((size, size)), np.zeros((size, sae.d_in))
    for x in _parts(sae, batches):
        acts, values = _codes(sae, x), x.double().cpu().numpy()
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
    made = _recast(sae, sae.activation)
    made.W_dec.copy_(torch.from_numpy(w_dec))
    made.b_dec.copy_(torch.from_numpy(mean - acts_sum / tokens @ w_dec))
    made.b_enc.copy_(sae.b_enc.double() + (made.b_dec.double() - sae.b_dec.double()) @ sae.W_enc.double())
    return made


def match_density(sae: SAE, x: Tensor, density: np.ndarray) -> SAE:
    """An SAE whose every feature fires on the share of vectors x [n, d_in] that is wanted of it.

    density: float [d_sae], such as that of the source's SAE on the same text. relu: by the encoder's bias; jumprelu and
    batchtopk, which becomes a jumprelu: by the threshold, which cannot go below 0. A feature that is wanted on less
    than one of the vectors stays as it is. Revives features that a map has weakened until they never fire. Not in the
    paper. Raises ValueError for topk, which has no threshold, for densities that are none, and for vectors that are not
    finite.
    """
    if sae.activation == "topk":
        raise ValueError("a topk SAE has no thresholds to match densities by; calibrate its decoder, or train it on")
    if density.shape != (sae.d_sae,) or not bool(((density >= 0) & (density <= 1)).all()):
        raise ValueError(f"density is {list(density.shape)}; give [{sae.d_sae}] shares from 0 to 1")
    if not len(x) or not bool(torch.isfinite(x).all()):
        raise ValueError(f"x {list(x.shape)} holds no vectors, or NaN or infinity; find what makes them")
    made = _recast(sae, "relu" if sae.activation == "relu" else "jumprelu")
    x = x.to(sae.W_enc.device, torch.float32)
    wanted = torch.from_numpy(np.rint(density * len(x)).astype(np.int64)).to(x.device)
    for features in torch.arange(sae.d_sae, device=x.device).split(max(1, _CHUNK // len(x))):
        columns = (x - sae.b_dec) @ sae.W_enc[:, features] + sae.b_enc[features]
        ordered = columns.sort(dim=0, descending=True).values
        count = wanted[features]
        # Halfway to the first vector that shall not fire, so that rounding decides nothing.
        last = ordered.gather(0, (count - 1).clamp(min=0)[None])[0]
        beyond = ordered.gather(0, count.clamp(max=len(x) - 1)[None])[0]
        cut = torch.where(count < len(x), (last + beyond) / 2, last - last.abs())
        chosen = features[count > 0]
        if made.threshold is None:
            made.b_enc[chosen] -= cut[count > 0]
        else:
            made.threshold[chosen] = cut[count > 0].clamp(min=0)
    return made


def _parts(sae: SAE, batches: Iterable[Tensor]) -> Iterable[Tensor]:
    return (x for batch in batches for x in batch.to(sae.W_enc.device, torch.float32).split(_ROWS))


def _codes(sae: SAE, x: Tensor) -> csr_array:
    """Activations float64 [n, d_sae]."""
    indptr, indices, values = sae.encode_sparse(x)
    return csr_array((values.astype(np.float64), indices, indptr), shape=(len(x), sae.d_sae))


def _normalized(sae: SAE) -> SAE:
    """Decoder rows of unit norm; see `transfer_sae`."""
    if sae.activation == "topk":
        return _recast(_recast(sae, "relu").unit_norm(), "topk", sae.k)
    return _recast(sae, "relu" if sae.activation == "relu" else "jumprelu").unit_norm()


def _recast(sae: SAE, activation: Activation, k: int | None = None) -> SAE:
    """A copy with another activation function, which keeps the threshold if it has one."""
    made = SAE(sae.d_in, sae.d_sae, activation, sae.k if k is None else k).to(sae.W_dec.device)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(made, name).copy_(getattr(sae, name))
    if made.threshold is not None and sae.threshold is not None:
        made.threshold.copy_(sae.threshold.expand_as(made.threshold))
    return made
