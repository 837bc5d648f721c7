"""Edits of a real model's weights whose effect on its features is known exactly.

Every edit is made on a copy. What an edit promises is looked for in the copy by a pass over a few tokens, since names
of modules do not tell all that a family does: a ValueError where it is not so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.hooks import capture, resolve
from heredity.lm.quantize import quantize
from heredity.study import QuantizeConfig

_TOKENS, _ERROR = 8, 1e-3  # read in an edited model, and how far off it may be, relative to norms
Model = Any
"""A causal language model of `transformers`."""


def permuted(model: Model, seed: int = 0, layers: Sequence[int] | None = None) -> Model:
    """The same function, to the order of summation: the neurons of the MLPs of some blocks, by default all, in another
    order. Raises HookPointError for a block without an MLP of two or three linear maps."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in _blocks(made) if layers is None else layers:
            first, last = (resolve(made, f"blocks.{layer}.mlp.{place}")[0] for place in ("hook_pre", "hook_post"))
            mlp = next(module for module in made.modules() if first in module.children())
            weights = [part for reader in {first, getattr(mlp, "up_proj", first)} for part in _parts(reader)]
            order = torch.randperm(len(weights[0]), generator=generator)
            for part in weights:
                part.copy_(part[order])
            columns = _parts(last)[0]
            columns.copy_(columns[:, order])
        ids = _few_tokens(made)
        same, logits = (one.eval()(ids, use_cache=False).logits.float() for one in (model, made))
    if (logits - same).norm() > _ERROR * same.norm():
        raise ValueError(f"{type(model).__name__}: its MLPs do more than their linear maps, and neurons have a place")
    return made


def rotated(model: Model, seed: int = 0) -> Model:
    """The same function, to rounding: the residual stream under a random orthogonal map. The gains of norms, which are
    bound to axes, go into the weights that read the norms. For decoders of the Llama family (Llama, Mistral, Qwen 2).
    Raises ValueError for others."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not hasattr(layers[0], "post_attention_layernorm") or not hasattr(layers[0].mlp, "gate_proj"):
        raise ValueError(f"{type(model).__name__} is no decoder of the Llama family; only its weights are edited")
    made = _untied(model)
    d = made.config.hidden_size
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]
    with torch.no_grad():
        for norm, readers in _norms(made):
            for reader in readers:
                reader.weight *= norm.weight
                reader.weight.copy_(reader.weight @ turn)
            norm.weight.fill_(1)
        for writer in _writers(made, None):
            writer.copy_(turn.T @ writer)
    return made


def projected(model: Model, directions: np.ndarray, keep: float = 0.0, layers: Sequence[int] | None = None) -> Model:
    """Directions [n, d_model] of the residual stream scaled by `keep` in all that writes to it, at 0 projected out: in
    attention and MLP of some blocks, or by default of all, and the embeddings (Arditi et al. 2024). An output head that
    shared the embedding's weights keeps them.

    Raises ValueError where the stream still has the directions, as in families that normalize what they add to it.
    """
    made = _untied(model)
    basis = torch.linalg.qr(torch.from_numpy(np.asarray(directions, np.float32)).T)[0]
    left = torch.eye(len(basis)) - (1 - keep) * basis @ basis.T
    with torch.no_grad():
        for writer in _writers(made, layers):
            writer.copy_(left @ writer)
    if keep:  # whether all writers are found shows where they write nothing
        projected(model, directions, 0.0, layers)
        return made
    places = [f"blocks.{layer}.hook_{part}_out" for layer in layers or () for part in ("attn", "mlp")]
    for place in places or [f"blocks.{len(_blocks(made)) - 1}.hook_resid_post"]:
        x = capture(made, place, _few_tokens(made))
        if (x @ basis).norm() > _ERROR * x.norm():
            kind = type(model).__name__
            raise ValueError(f"{kind}: {place} still has the direction: more than its matrices makes what is added")
    return made


def quantized(model: Model, bits: int) -> Model:
    """Matrices rounded to `bits` bits, symmetric, with one scale per row."""
    made = copy.deepcopy(model)
    quantize(made, QuantizeConfig(bits=bits))
    return made


def shaken(model: Model, like: Model, seed: int = 0) -> Model:
    """A random change in every tensor, of the norm of the difference to another model's tensor of that name and shape.
    Tensors, and rows of an embedding, that the other does not have stay as they are; shared ones are changed once."""
    made, other, generator = copy.deepcopy(model), like.state_dict(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
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


def shuffled(model: Model, child: Model, seed: int = 0) -> Model:
    """The change of every tensor from a model to its child, with its rows and columns in random order: of the same
    size, values and rank, and of nothing in particular."""
    made, other, generator = copy.deepcopy(model), child.state_dict(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            change = other[name].float() - tensor.float()
            for axis, size in enumerate(change.shape):
                change = change.index_select(axis, torch.randperm(size, generator=generator))
            tensor += change.to(tensor.dtype)
    return made


def _untied(model: Model) -> Model:
    """A copy whose output head has weights of its own."""
    made = copy.deepcopy(model)
    head, embedding = made.get_output_embeddings(), made.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        for config in (made.config, made.config.get_text_config()):
            config.tie_word_embeddings = False
    return made


def _blocks(model: Model) -> range:
    return range(model.config.get_text_config().num_hidden_layers)


def _few_tokens(model: Model) -> Tensor:
    """Token ids [1, n]."""
    vocab = model.config.get_text_config().vocab_size
    return torch.arange(1, _TOKENS + 1, device=model.device).remainder(vocab)[None]


def _parts(module: Any) -> list[Tensor]:
    """Weight [outputs, inputs] and bias [outputs, 1] of a linear map, as views."""
    weight, bias = module.weight, getattr(module, "bias", None)
    weight = weight.T if type(module).__name__ == "Conv1D" else weight  # GPT-2's is the other way round
    return [weight, *([] if bias is None else [bias[:, None]])]


def _writers(model: Model, layers: Sequence[int] | None) -> Iterator[Tensor]:
    """Views [d_model, n] of all that writes to the residual stream: embeddings, attention and MLP of all blocks, or
    these two of some."""
    if layers is None:
        d = model.get_input_embeddings().embedding_dim
        tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
        yield from (table.weight.T for table in tables if table.embedding_dim == d)
    for layer in _blocks(model) if layers is None else layers:
        for place in ("attn.hook_z", "mlp.hook_post"):
            yield from _parts(resolve(model, f"blocks.{layer}.{place}")[0])


def _norms(model: Model) -> Iterator[tuple[Any, tuple[nn.Linear, ...]]]:
    """Norms with what reads them."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
        yield layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)
    yield model.model.norm, (model.lm_head,)
