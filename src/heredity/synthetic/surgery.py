"""Edits of a real model's weights whose effect on its features is known exactly.

For decoders of the Llama family (Llama, Mistral, Qwen 2): RMS norms before attention and MLP, a gated MLP, bias-free
writers into the residual stream. Every edit is made on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from heredity.lm.quantize import quantize

Model = Any
"""A causal language model of `transformers`."""


def permuted(model: Model, seed: int = 0) -> Model:
    """The same function, to the order of summation: the neurons of every MLP in another order."""
    made, generator = _copied(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in made.model.layers:
            mlp = layer.mlp
            order = torch.randperm(mlp.gate_proj.out_features, generator=generator)
            for reader in (mlp.gate_proj, mlp.up_proj):
                reader.weight.copy_(reader.weight[order])
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    return made


def rotated(model: Model, seed: int = 0) -> Model:
    """The same function, to rounding: the residual stream under a random orthogonal map. The gains of norms, which are
    bound to axes, go into the weights that read the norms."""
    made = _copied(model)
    d = made.config.hidden_size
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]
    with torch.no_grad():
        for norm, readers in _norms(made):
            for reader in readers:
                reader.weight *= norm.weight
                reader.weight.copy_(reader.weight @ turn)
            norm.weight.fill_(1)
        made.model.embed_tokens.weight.copy_(made.model.embed_tokens.weight @ turn)
        for writer in _writers(made):
            writer.weight.copy_(turn.T @ writer.weight)
    return made


def projected(model: Model, directions: np.ndarray, keep: float = 0.0) -> Model:
    """Directions [n, d_model] of the residual stream scaled by `keep` in all that writes to it, at 0 projected out."""
    made = _copied(model)
    basis = torch.linalg.qr(torch.from_numpy(np.asarray(directions, np.float32)).T)[0]
    left = torch.eye(len(basis)) - (1 - keep) * basis @ basis.T
    with torch.no_grad():
        made.model.embed_tokens.weight.copy_(made.model.embed_tokens.weight @ left)
        for writer in _writers(made):
            writer.weight.copy_(left @ writer.weight)
    return made


def quantized(model: Model, bits: int) -> Model:
    """Matrices rounded to `bits` bits, symmetric, with one scale per row."""
    made = _copied(model)
    quantize(made, bits)
    return made


def shaken(model: Model, like: Model, seed: int = 0) -> Model:
    """A random change in every tensor, of the norm of the difference to another model's tensor of that name and shape.
    Tensors, and rows of an embedding, that the other does not have stay as they are."""
    made, other, generator = copy.deepcopy(model), like.state_dict(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            theirs = other.get(name)
            if theirs is None or not tensor.is_floating_point() or theirs.ndim != tensor.ndim:
                continue
            shared = tensor[: len(theirs)] if tensor.ndim else tensor
            theirs = theirs[: len(shared)] if tensor.ndim else theirs
            if shared.shape == theirs.shape:
                noise = torch.randn(shared.shape, generator=generator).to(tensor.device)
                size = (theirs.to(tensor.device).float() - shared.float()).norm() / noise.norm().clamp(min=1e-30)
                shared += (noise * size).to(tensor.dtype)
    return made


def _copied(model: Model) -> Model:
    """A copy whose output head has weights of its own. Raises ValueError for a family that these edits do not know."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not hasattr(layers[0], "post_attention_layernorm") or not hasattr(layers[0].mlp, "gate_proj"):
        raise ValueError(f"{type(model).__name__} is no decoder of the Llama family; only its weights are edited")
    made = copy.deepcopy(model)
    if made.lm_head.weight is made.model.embed_tokens.weight:
        made.lm_head.weight = nn.Parameter(made.lm_head.weight.detach().clone())
    return made


def _writers(model: Model) -> Iterator[nn.Linear]:
    for layer in model.model.layers:
        yield layer.self_attn.o_proj
        yield layer.mlp.down_proj


def _norms(model: Model) -> Iterator[tuple[Any, tuple[nn.Linear, ...]]]:
    """Norms with what reads them."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
        yield layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)
    yield model.model.norm, (model.lm_head,)
