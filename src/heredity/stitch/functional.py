"""Features with a job of their own, and whether they keep it in another model (Chen et al. 2025, section 5.2).

Entropy features write where the unembedding does not read; attention deactivation features make heads look at the
first token, which is to say at nothing. Measures of Stolfo et al. 2024 ("Confidence Regulation Neurons in Language
Models") and Gurnee et al. 2024 ("Universal Neurons in GPT2 Language Models").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.activations import blocks_at_once
from heredity.lm.hooks import capture, replaced, resolve
from heredity.lm.logit_attribution import linear_part, norm_and_head, through_norm, to_stream, unembedding
from heredity.sae.model import SAE

_BEFORE_ATTENTION = ("hook_embed", "hook_resid_pre")
_ROWS = 8192  # of the unembedding, in float64 at a time


class NullSpace(NamedTuple):
    """How much of each direction the unembedding nearly does not read."""

    share: np.ndarray
    """float64 [n]: ‖V₀ᵀ d‖ / ‖d‖, V₀ the last right singular vectors of the unembedding; nan for a direction of 0."""
    norm: np.ndarray
    """float64 [n]: ‖d‖ in the residual stream; times its largest activation, how far the feature pushes."""
    dimensions: int
    """Singular vectors in V₀."""
    by_chance: float
    """Root mean square of the share over random directions, √(dimensions / d_model)."""


def null_share(model: nn.Module, hook_point: str, directions: Tensor, bottom: float = 0.02) -> NullSpace:
    """Share of directions [n, d_in] in the effective null space of the unembedding (section 5.2).

    That is the `bottom` share of its singular values, at least one, after the final norm's gain is folded in and logits
    are centered. Raises ValueError unless 0 < bottom <= 1, and as `lm.logits.logit_weights` does.
    """
    if not 0 < bottom <= 1:
        raise ValueError(f"bottom={bottom} is no share of the singular values; give more than 0, at most 1")
    norm, _ = norm_and_head(model)
    with torch.no_grad():
        stream = to_stream(model, hook_point, directions).double()
        rows = unembedding(model)
        gram = sum((part.double().T @ part.double() for part in rows.split(_ROWS)), torch.zeros((), dtype=torch.double))
        through = through_norm(norm, torch.eye(rows.shape[1], device=rows.device, dtype=next(norm.parameters()).dtype))
        folded = through.double() @ gram @ through.double().T
        dimensions = max(1, round(bottom * len(folded)))
        last = torch.linalg.eigh(folded).eigenvectors[:, :dimensions]
        lengths = stream.norm(dim=1)
        share = (stream @ last).norm(dim=1) / torch.where(lengths > 0, lengths, torch.nan)
    chance = float(np.sqrt(dimensions / len(folded)))
    return NullSpace(share.cpu().numpy(), lengths.cpu().numpy(), dimensions, chance)


class HeadScores(NamedTuple):
    """How strongly directions turn the queries of later heads to the first token."""

    scores: np.ndarray
    """float64 [n, layers, heads]: attention logit for an activation of 1, before the norm divides by its scale."""
    layers: tuple[int, ...]
    """The layers meant, all whose attention reads what was written at the hook point."""


def head_scores(model: nn.Module, hook_point: str, directions: Tensor, bos: int, context: int = 64) -> HeadScores:
    """d_i · W_Q^h · k_BOS / √d_head for the directions [n, d_in] at a hook point and every later head.

    k_BOS is the head's key at the first of positions, where the model reads token `bos`. The gain of the norm before
    the attention is folded in, its scale is not. Rotary embeddings turn queries by their position: the score is then
    the mean over the first `context` positions. A heuristic that finds candidates; see `path_ablation` for the test.

    Knows decoders with q_proj, k_proj, v_proj after an input_layernorm (Llama, Mistral, Qwen, Gemma) and GPT-2. Raises
    ValueError for others, and when no attention follows the hook point.
    """
    layers, found = _later(model, hook_point), []
    ids = torch.full((1, context), bos, device=next(model.parameters()).device)
    with torch.no_grad():
        stream = to_stream(model, hook_point, directions)
        for layer in layers:
            at = _attention(model, layer)
            query = at.heads_of(linear_part(at.projection, through_norm(at.norm, stream))[:, : at.width])
            if at.query_norm is not None:
                query = through_norm(at.query_norm, query.flatten(0, 1)).view(query.shape)
            key = _first_key(model, at, ids[:, :1] if at.fused else ids).repeat_interleave(
                query.shape[1] // at.key_heads, 0
            )
            found.append((query.double() * key.double()).sum(-1) * at.scaling)
    return HeadScores(torch.stack(found, 1).cpu().numpy(), layers)


class PathAblation(NamedTuple):
    """One head with and without one feature in its queries, at the tokens where the feature fires."""

    activation: np.ndarray
    """float64 [n]: of the feature."""
    attention: np.ndarray
    """float64 [n]: the head's attention to the first token."""
    attention_ablated: np.ndarray
    """float64 [n]: without the feature. Less than before, and the feature deactivates the head."""
    norm: np.ndarray
    """float64 [n]: length of the head's output before the output projection."""
    norm_ablated: np.ndarray
    """float64 [n]: without the feature."""


def path_ablation(
    model: nn.Module, hook_point: str, sae: SAE, feature: int, layer: int, head: int, blocks: np.ndarray, skip: int = 1
) -> PathAblation:
    """What a feature does to a head by the direct path into its queries; keys and values stay (figure 5b).

    f_i(t) d_i is taken from the residual stream before the layer, for queries only. blocks: tokens [n, context]. skip:
    first positions that are left out; the first one looks at nothing but itself. Works for any attention inside the
    families that `head_scores` knows: the model itself computes it. Raises ValueError as that does, and for a feature,
    layer or head that is not there.
    """
    layers, at = _later(model, hook_point), _attention(model, layer)
    if layer not in layers or not 0 <= head < at.heads or not 0 <= feature < sae.d_sae:
        raise ValueError(
            f"feature {feature}, layer {layer}, head {head}: features are 0 to {sae.d_sae - 1}, layers after "
            f"{hook_point} {layers[0]} to {layers[-1]}, heads 0 to {at.heads - 1}"
        )
    direction = to_stream(model, hook_point, sae.W_dec[feature : feature + 1].detach())
    found, step = [], blocks_at_once(blocks.shape[1])
    for start in range(0, len(blocks), step):
        ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64)).to(direction.device)
        acts = _acts(sae, feature, capture(model, hook_point, ids))
        fires = acts > 0
        fires[:, :skip] = False
        if not bool(fires.any()):
            continue
        with torch.no_grad():
            x = capture(model, f"blocks.{layer}.hook_resid_pre", ids) - acts[..., None] * direction
            query = at.projection(at.norm(x.to(direction.dtype)))[..., : at.width]
        columns = [acts]
        for values in (_first_only, None):
            for changed in (None, query):
                with _attending(model, at, changed, values):
                    z = capture(model, f"blocks.{layer}.attn.hook_z", ids)
                own = at.heads_of(z)[..., head, :]
                columns.append(own.norm(dim=-1) if values is None else own[..., 0])
        found.append(torch.stack([column[fires].double() for column in columns]))
    all_found = torch.cat(found, 1) if found else torch.zeros(5, 0)
    return PathAblation(*all_found.double().cpu().numpy())


class HeadEffect(NamedTuple):
    """The effect of one feature on the head it scores highest on, over the tokens where the feature fires."""

    layer: int
    """Layer of the head."""
    head: int
    """Index of the head in its layer."""
    score: float
    """See `HeadScores.scores`."""
    tokens: int
    """Tokens where the feature fires."""
    attention: float | None
    """Mean attention to the first token; this and all below are None where the feature never fires."""
    attention_drop: float | None
    """Mean fall of the attention by the ablation; above 0, the feature turns the head off."""
    norm: float | None
    """Mean norm of the head's output."""
    norm_drop: float | None
    """Mean fall of the norm by the ablation; below 0 where the feature turns the head off."""


def strongest_head(
    model: nn.Module, hook_point: str, sae: SAE, scores: HeadScores, feature: int, blocks: np.ndarray
) -> HeadEffect:
    """`path_ablation` of the head on which a feature scores highest. scores: of the same SAE's decoder rows."""
    own = scores.scores[feature]
    place, head = (int(i) for i in np.unravel_index(own.argmax(), own.shape))
    at = path_ablation(model, hook_point, sae, feature, scores.layers[place], head, blocks)
    means = (
        float(column.mean()) if len(at.activation) else None
        for column in (at.attention, at.attention - at.attention_ablated, at.norm, at.norm - at.norm_ablated)
    )
    return HeadEffect(scores.layers[place], head, float(own[place, head]), len(at.activation), *means)


class _Attention(NamedTuple):
    """Where the parts of one attention layer are."""

    path: str
    module: Any
    norm: nn.Module
    projection: nn.Module
    """Gives queries first, and in GPT-2 keys and values after them."""
    fused: bool
    width: int
    """Of all queries together."""
    d_head: int
    key_heads: int
    scaling: float
    query_norm: nn.Module | None

    @property
    def heads(self) -> int:
        return self.width // self.d_head

    def heads_of(self, x: Tensor) -> Tensor:
        """[..., heads * d_head] -> [..., heads, d_head]."""
        return x.unflatten(-1, (-1, self.d_head))


def _attention(model: nn.Module, layer: int) -> _Attention:
    block, _ = resolve(model, f"blocks.{layer}.hook_resid_pre")
    place = next(name for name, module in model.named_modules() if module is block)
    made: Any = block
    if all(hasattr(getattr(block, "self_attn", None), f"{part}_proj") for part in "qkv"):
        module, norm, width = (
            made.self_attn,
            getattr(block, "input_layernorm", None),
            made.self_attn.q_proj.out_features,
        )
        d_head, query_norm = int(module.head_dim), getattr(module, "q_norm", None)
        key_heads = module.k_proj.out_features // d_head
        whole = query_norm is None or next(query_norm.parameters()).numel() == d_head
        if isinstance(norm, nn.Module) and whole:
            scaling = float(getattr(module, "scaling", d_head**-0.5))
            path = f"{place}.self_attn"
            return _Attention(path, module, norm, module.q_proj, False, width, d_head, key_heads, scaling, query_norm)
    elif hasattr(getattr(block, "attn", None), "c_attn") and hasattr(block, "ln_1"):
        module = made.attn
        width, d_head = int(module.embed_dim), int(module.head_dim)
        heads = width // d_head
        return _Attention(
            f"{place}.attn", module, made.ln_1, module.c_attn, True, width, d_head, heads, float(module.scaling), None
        )
    raise ValueError(
        f"the attention of {type(block).__name__} is not of a known kind; heads are found in decoders with q_proj, "
        "k_proj and v_proj after an input_layernorm (Llama, Mistral, Qwen, Gemma) and in GPT-2"
    )


def _later(model: nn.Module, hook_point: str) -> tuple[int, ...]:
    """Layers whose attention reads what is written at the hook point."""
    resolve(model, hook_point)
    layer, _, name = hook_point.removeprefix("blocks.").partition(".")
    first = 0 if hook_point == "hook_embed" else int(layer) + (name not in _BEFORE_ATTENTION)
    config: Any = getattr(model.config, "text_config", None) or model.config
    layers = tuple(range(first, int(config.num_hidden_layers)))
    if not layers:
        raise ValueError(f"no attention follows {hook_point}; choose features of an earlier layer")
    return layers


def _first_key(model: nn.Module, at: _Attention, ids: Tensor) -> Tensor:
    """The keys of the first position [key_heads, d_head], turned against the queries' mean rotation."""
    rotations: list[tuple[Tensor, Tensor]] = []
    handle = at.module.register_forward_pre_hook(
        lambda _module, _args, kwargs: rotations.extend([kwargs["position_embeddings"]] if not at.fused else []),
        with_kwargs=True,
    )
    try:
        found = capture(model, f"{at.path}.{'c_attn' if at.fused else 'k_proj'}:output", ids)[0, 0]
    finally:
        handle.remove()
    if at.fused:
        return at.heads_of(found[at.width : 2 * at.width])
    key = at.heads_of(found)
    key = at.module.k_norm(key) if at.query_norm is not None else key
    cos, sin = (part[0].double() for part in rotations[0])
    if cos.shape[1] != at.d_head:
        raise ValueError(f"rotary embeddings turn {cos.shape[1]} of {at.d_head} dimensions; only whole heads are known")
    key = key * cos[0] + _quarter_turn(key) * sin[0]
    return key * cos.mean(0) - _quarter_turn(key) * sin.mean(0)


def _quarter_turn(x: Tensor) -> Tensor:
    """Each pair of coordinates (i, i + d / 2) turned by 90 degrees, as rotary embeddings pair them."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _first_only(values: Tensor) -> Tensor:
    """Values that make what a head gives its attention to the first token."""
    made = torch.zeros_like(values)
    made[:, 0] = 1
    return made


@contextmanager
def _attending(
    model: nn.Module, at: _Attention, query: Tensor | None, values: Callable[[Tensor], Tensor] | None
) -> Iterator[None]:
    """While this is open, a layer's queries are the given ones and its values what `values` makes of them."""
    value: Callable[[Tensor], Tensor] = values or (lambda v: v)
    with ExitStack() as open_:
        if at.fused:

            def swap(x: Tensor) -> Tensor:
                own, keys, v = x.split(at.width, -1)
                return torch.cat([own if query is None else query, keys, value(v)], -1)

            open_.enter_context(replaced(model, f"{at.path}.c_attn:output", swap))
        else:
            if query is not None:
                open_.enter_context(replaced(model, f"{at.path}.q_proj:output", lambda _: query))
            open_.enter_context(replaced(model, f"{at.path}.v_proj:output", value))
        yield


def _acts(sae: SAE, feature: int, x: Tensor) -> Tensor:
    """Activations of one feature, [batch, context]."""
    indptr, indices, values = sae.encode_sparse(x.flatten(0, 1))
    kept = indices == feature
    acts = torch.zeros(len(indptr) - 1, device=x.device)
    tokens = np.repeat(np.arange(len(acts)), np.diff(indptr))[kept]
    acts[torch.from_numpy(tokens).to(x.device)] = torch.from_numpy(values[kept]).to(x.device)
    return acts.view(x.shape[:2])
