"""Direct logit attribution: the effect of a direction on the logits, through the linear parts of a decoder alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heredity.lm.hooks import HookPointError, resolve

_STREAM = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
# Places with one linear map into the residual stream, each with the name of that map's output.
_WRITERS = {"mlp.hook_post": "hook_mlp_out", "attn.hook_z": "hook_attn_out"}
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def logit_weights(model: nn.Module, hook_point: str, directions: Tensor) -> Tensor:
    """How far each direction at a hook point pushes each logit by the direct path; float32 [n, vocab], mean 0 per row.

    directions: [n, d_in]. d W_out (from `mlp.hook_post` through the down projection, from `attn.hook_z` through the
    output projection; other places are in the residual stream already), times the gain of the final norm, unembedded
    (logit weights of Bricken et al. 2023). After the MLP of the last layer the direct path is the only one; later
    layers read directions at earlier places too, which this leaves out, like the scale of the final norm (it depends
    on the token) and a cap on the logits. Raises as `to_stream` and `norm_and_head` do.
    """
    norm, head = norm_and_head(model)
    with torch.no_grad():
        logits = linear_part(head, through_norm(norm, to_stream(model, hook_point, directions))).float()
        return logits - logits.mean(1, keepdim=True)


def to_stream(model: nn.Module, hook_point: str, directions: Tensor) -> Tensor:
    """Directions [n, d_in] at a hook point as they enter the residual stream, [n, d_model].

    Raises HookPointError for a place without a linear map into the residual stream, such as `mlp.hook_pre`, or one
    given as a module's path; ValueError for directions of another width.
    """
    module, _ = resolve(model, hook_point)
    layer, _, name = hook_point.removeprefix("blocks.").partition(".")
    if hook_point == "hook_embed" or name in _STREAM:
        return directions
    if ":" in hook_point or name not in _WRITERS:
        raise HookPointError(
            f"hook_point {hook_point!r}: no linear map into the residual stream is known from here; logit weights "
            f"exist for hook_embed and, after blocks.L., for {', '.join([*_WRITERS, *_STREAM[1:]])}"
        )
    written = linear_part(module, directions)
    norm, _ = resolve(model, f"blocks.{layer}.{_WRITERS[name]}")
    # Gemma 2 and 3 normalize what a block writes; elsewhere this is the block that holds the map itself.
    return written if any(part is module for part in norm.modules()) else through_norm(norm, written)


def norm_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The final norm and the head, between the residual stream and the logits. ValueError without them."""
    block, _ = resolve(model, "blocks.0.hook_resid_post")
    path = next(name for name, module in model.named_modules() if module is block).split(".")[:-2]
    trunk = model.get_submodule(".".join(path))
    norm = next((part for name in _FINAL_NORMS if isinstance(part := getattr(trunk, name, None), nn.Module)), None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if norm is None or not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} lacks a head, or a final norm called {', '.join(_FINAL_NORMS)}")
    return norm, head


def unembedding(model: nn.Module) -> Tensor:
    """Rows of the head's weight, less their mean (it moves no probability); float32 [vocab, d_model].

    Raises ValueError for a model without a final norm and a linear head.
    """
    _, head = norm_and_head(model)
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the head of {type(model).__name__} is a {type(head).__name__}, no linear map to logits")
    rows = head.weight.detach().float()
    return rows - rows.mean(0, dtype=torch.float64).float()


def linear_part(module: nn.Module, x: Tensor) -> Tensor:
    """x W [n, d_out] of a module x W + b, whichever way it stores W. ValueError for x [n, d] of another width."""
    weight = next(module.parameters())
    if x.shape[1] not in weight.shape:
        raise ValueError(f"directions are {x.shape[1]} wide, but a map is {list(weight.shape)}; check the hook point")
    x = x.to(weight.device, weight.dtype)
    return module(x) - module(torch.zeros_like(x[:1]))


def through_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """x after a norm, up to its scale: times the gain, and centered if the norm centers.

    The gain is read from the norm's effect on ±1, since families store it in different ways.
    """
    signs = torch.ones_like(x[:1])
    signs[:, 1::2] = -1
    gain = (norm(signs) - norm(-signs)) / 2 * signs
    centers = torch.allclose(norm(signs + 1), norm(signs), atol=1e-3)
    return (x - x.mean(1, keepdim=True) if centers else x) * gain
