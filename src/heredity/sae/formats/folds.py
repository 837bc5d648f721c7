"""Exact changes of an SAE's weights, in place, that bring what others compute into the form of `SAE`."""

from __future__ import annotations

import torch
from torch import Tensor

from heredity.sae.formats.contents import FormatError, Tensors
from heredity.sae.model import SAE, Activation
from heredity.study import RANKED


def new(
    tensors: Tensors, activation: Activation, k: object, w_enc: Tensor, w_dec: Tensor, b_enc: str | None, b_dec: str,
    threshold: Tensor | None = None
) -> SAE:  # fmt: skip
    """An SAE of these weights; b_enc and b_dec are names of tensors."""
    d_in, d_sae = w_enc.shape
    if activation in RANKED and (not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= d_sae):
        raise FormatError(f"{tensors.path.parent}: k={k!r} must be between 1 and {d_sae}; repair its settings file")
    sae = SAE(d_in, d_sae, activation, k if isinstance(k, int) else None)
    sae.W_enc.copy_(w_enc)
    sae.W_dec.copy_(w_dec)
    sae.b_dec.copy_(tensors.take(b_dec, d_in))
    if b_enc is not None:
        sae.b_enc.copy_(tensors.take(b_enc, d_sae))
    if threshold is not None and sae.threshold is not None:
        sae.threshold.copy_(threshold.clamp(min=0))  # activations are above 0 anyway, so a lower one means the same
    return sae


def gates(sae: SAE, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor) -> None:
    """Gated SAEs (Rajamanoharan et al. 2024): relu(exp(r_mag) pre + b_mag) where pre + b_gate > 0.

    That is a JumpReLU of exp(r_mag) pre + b_mag with the threshold b_mag - exp(r_mag) b_gate.
    """
    grown = r_mag.double().exp()
    sae.W_enc *= grown.float()
    sae.b_enc.copy_(b_mag)
    assert sae.threshold is not None
    sae.threshold.copy_((b_mag - grown * b_gate).clamp(min=0))


def input_scale(sae: SAE, factor: float) -> None:
    """An SAE that reads x · factor, and whose reconstruction is divided by it."""
    sae.W_enc *= factor
    sae.W_dec /= factor
    sae.b_dec.div_(factor)


def decoder_norms(sae: SAE) -> None:
    """An SAE that multiplies pre_acts by the norms of W_dec's rows before it selects, and divides acts by them."""
    norms = sae.W_dec.norm(dim=1)
    sae.W_enc *= norms
    sae.b_enc *= norms
    sae.W_dec /= norms[:, None].clamp_min(1e-30)


def b_dec_not_subtracted(sae: SAE) -> None:
    """An encoder that reads x itself: x W + b = (x − b_dec) W + (b + b_dec W)."""
    sae.b_enc += (sae.b_dec.double() @ sae.W_enc.double()).float()


def centered(sae: SAE) -> None:
    """An SAE of x − mean x, the mean over d_in; done a second time, it changes nothing.

    With C = I − 11ᵀ/d_in: (x C − b_dec) W + b = (x − b_dec) C W + (b − mean(b_dec) 1ᵀ W). `SAE.bypass` adds mean x.
    """
    sums = sae.W_enc.sum(dim=0, dtype=torch.float64)
    sae.b_enc -= (sae.b_dec.double().mean() * sums).float()
    sae.W_enc -= (sums / sae.d_in).float()
    sae.centered = True
