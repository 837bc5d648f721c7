"""What single features do in two models: what they fire on and push, and whether they keep a function.

Feature i of both models is one feature: an SAE and its transfer, or one SAE that reads two models. Compared are, by
Pearson's r over tokens, activations, and attributions (Chen et al. 2025, eq. 10): activation times the feature's logit
weight for the token that follows.

Functional features (section 5.2): entropy features write where the unembedding does not read; attention deactivation
features make heads attend to the first token, that is, to nothing. Measures of Stolfo et al. 2024 ("Confidence
Regulation Neurons in Language Models") and Gurnee et al. 2024 ("Universal Neurons in GPT2 Language Models").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.special import stdtrit
from torch import Tensor, nn

from heredity.lm.activations import aligned, blocks_at_once, marked
from heredity.lm.hooks import capture, replaced, resolve
from heredity.lm.logit_attribution import linear_part, norm_and_head, through_norm, to_stream, unembedding
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.transfer import sparse_codes, transfer_sae
from heredity.study import Precision

_CHUNK = 1 << 22  # numbers computed at a time
_ROWS = 8192  # of the unembedding, in float64 at a time
_CHOOSES = 5  # of so many blocks one chooses the heads that the others measure


class Side(NamedTuple):
    """A model in evaluation mode and the SAE that reads it, on one device."""

    model: nn.Module
    hook_point: str
    sae: SAE
    precision: Precision = "float32"  # of the model's matrix products


class Paired(NamedTuple):
    """Activations, or attributions, of each feature in two models, on the same tokens; arrays [d_sae]."""

    r: np.ndarray  # float64: Pearson over tokens, zeros included; nan where either is constant
    source_firings: np.ndarray  # int64: tokens on which the feature fires
    target_firings: np.ndarray
    source_peak: np.ndarray  # float64: largest value, 0 at least
    target_peak: np.ndarray
    tokens: int


def paired_pearson(parts: Iterable[tuple[csr_array, csr_array]], d_sae: int) -> Paired:
    """Pearson's r of column i of one sparse matrix with column i of another, streamed; sums are float64.

    parts: rows of both matrices for the same tokens, [n, d_sae], with a value stored wherever a feature fires. Raises
    ValueError when shapes differ.
    """
    tokens, sums, firings, peaks = 0, np.zeros((5, d_sae)), np.zeros((2, d_sae), np.int64), np.zeros((2, d_sae))
    for pair in parts:
        sides: list[Any] = [part.astype(np.float64) for part in pair]
        x, y = sides
        if x.shape != y.shape or x.shape[1] != d_sae:
            sizes = f"{list(x.shape)} and {list(y.shape)} for {d_sae} features"
            raise ValueError(f"activations are {sizes}; give the same tokens and SAEs of the same size")
        tokens += x.shape[0]
        sums += [m.sum(0) for m in (x, y, x.multiply(x), y.multiply(y), x.multiply(y))]
        firings += [np.bincount(m.indices, minlength=d_sae) for m in sides]
        for peak, m in zip(peaks, sides, strict=True):
            np.maximum.at(peak, m.indices, m.data)
    a, b, aa, bb, ab = sums
    spread = [square - np.square(total) / tokens for square, total in ((aa, a), (bb, b))]
    varies = (spread[0] > 1e-12 * aa) & (spread[1] > 1e-12 * bb)  # rounding leaves a constant some spread
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((ab - a * b / tokens) / np.sqrt(spread[0] * spread[1]), -1, 1)
    return Paired(np.where(varies, r, np.nan), firings[0], firings[1], peaks[0], peaks[1], tokens)


def activation_correlation(source: Side, target: Side, blocks: np.ndarray) -> Paired:
    """r between the activations of feature i of the source's SAE on the source and of the target's on the target.

    blocks: tokens [n, context] of a tokenizer both models use; what is a sample in both counts. Raises ValueError when
    the SAEs differ in size.
    """

    sides: list[tuple[nn.Module, str, Precision]] = [
        (one.model, one.hook_point, one.precision) for one in (source, target)
    ]
    read = (vectors for vectors, _ in aligned(sides, blocks))
    pairs = ((sparse_codes(source.sae, x), sparse_codes(target.sae, y)) for x, y in read)
    return paired_pearson(pairs, source.sae.d_sae)


def attribution_correlation(source: Side, target: Side, blocks: np.ndarray) -> Paired:
    """Pearson r over tokens t of f_i(t) v_{i, next(t)} in the source and in the target, for every feature i (eq. 10).

    v: see `lm.logit_attribution.logit_weights`. blocks: tokens [n, context] of a tokenizer both models use; the last of
    each block has no next token and is left out. Raises ValueError when the SAEs differ in size, and as that does.
    """
    pairs = zip(_attributions(source, blocks), _attributions(target, blocks), strict=True)
    return paired_pearson(pairs, source.sae.d_sae)


def random_baseline(
    source: Side, target: tuple[nn.Module, str], up: Affine, down: Affine, blocks: np.ndarray, k: int, seed: int
) -> Paired:
    """`attribution_correlation` of a topk SAE of random directions and its transfer: the effect of the maps alone.

    k: the L0 of the source's SAE, so that both are equally sparse. The center is that of the source's SAE.
    """
    sae = new_sae(source.sae.d_in, source.sae.d_sae, "topk", k, torch.Generator().manual_seed(seed))
    sae.b_dec.copy_(source.sae.b_dec)
    sae.to(source.sae.W_dec.device)
    moved = transfer_sae(sae, up, down).to(next(target[0].parameters()).device)
    return attribution_correlation(source._replace(sae=sae), Side(*target, moved, source.precision), blocks)


def _attributions(side: Side, blocks: np.ndarray) -> Iterator[csr_array]:
    """f_i(t) v_{i, next(t)}, float64 [tokens, d_sae] in chunks; logit weights are computed for firing features only."""
    norm, _ = norm_and_head(side.model)
    with torch.no_grad():
        # Rows [d_sae, d_model] and [vocab, d_model], whose products are logit weights.
        pushed = through_norm(norm, to_stream(side.model, side.hook_point, side.sae.W_dec.detach())).float()
        rows = unembedding(side.model)
    done, step = 0, max(1, _CHUNK // pushed.shape[1])
    for x, kept in marked(side.model, side.hook_point, blocks, side.precision):
        some = blocks[done : done + len(x) // blocks.shape[1]]
        done += len(some)
        x = x.view(*some.shape, -1)[:, :-1].flatten(0, 1)
        indptr, indices, values = side.sae.encode_sparse(x)
        if kept is not None:  # no effect where nothing is sampled
            values = values * np.repeat(kept.cpu().numpy().reshape(some.shape)[:, :-1].ravel(), np.diff(indptr))
        after = np.repeat(some[:, 1:].ravel(), np.diff(indptr)).astype(np.int64)
        feature, token = (torch.from_numpy(ids).to(pushed.device) for ids in (indices.astype(np.int64), after))
        effect = np.empty(len(values))
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            products = pushed[feature[part]] * rows[token[part]]
            effect[part] = products.sum(1, dtype=torch.float64).cpu().numpy()
        yield csr_array((effect * values, indices, indptr), shape=(len(x), side.sae.d_sae))


class NullSpace(NamedTuple):
    """Share of each direction d in the effective null space V₀ of the unembedding; arrays float64 [n]."""

    share: np.ndarray  # ‖V₀ᵀ d‖ / ‖d‖; nan for a direction of 0
    norm: np.ndarray  # ‖d‖ in the residual stream; times the largest activation, the feature's push
    dimensions: int  # singular vectors in V₀
    by_chance: float  # root mean square of the share over random directions, √(dimensions / d_model)


def null_share(model: nn.Module, hook_point: str, directions: Tensor, bottom: float = 0.02) -> NullSpace:
    """Share of directions [n, d_in] in the effective null space of the unembedding (section 5.2).

    That is the `bottom` share of its right singular vectors, at least one, after the final norm's gain is folded in and
    logits are centered. Raises ValueError as `lm.logit_attribution.logit_weights` does.
    """
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


HeadScores = tuple[np.ndarray, tuple[int, ...]]
"""How strongly directions turn the queries of later heads to the first token: attention logit for an activation of 1,
before the norm's scale, float64 [n, layers, heads]; and the layers, all whose attention reads the hook point."""


def head_scores(model: nn.Module, hook_point: str, directions: Tensor, bos: int, context: int = 64) -> HeadScores:
    """d_i · W_Q^h · k_BOS / √d_head for the directions [n, d_in] at a hook point and every later head.

    k_BOS is the head's key at the first position, where the model reads token `bos`. The gain of the norm before the
    attention is folded in, its scale is not. With rotary embeddings the score is the mean over the first `context`
    positions of the query. Finds candidates for `path_ablation`. Raises ValueError for a decoder of another kind than
    Llama, Mistral, Qwen, Gemma and GPT-2, and when no attention follows the hook point.
    """
    resolve(model, hook_point)
    layer, _, name = hook_point.removeprefix("blocks.").partition(".")
    first = 0 if hook_point == "hook_embed" else int(layer) + (name != "hook_resid_pre")
    config: Any = getattr(model.config, "text_config", None) or model.config
    layers, scores = tuple(range(first, int(config.num_hidden_layers))), []
    if not layers:
        raise ValueError(f"no attention follows {hook_point}; choose features of an earlier layer")
    ids = torch.full((1, context), bos, device=next(model.parameters()).device)
    with torch.no_grad():
        stream = to_stream(model, hook_point, directions)
        for layer in layers:
            at = _attention(model, layer)
            query = at.heads_of(linear_part(at.projection, through_norm(at.norm, stream))[:, : at.width])
            if at.query_norm is not None:
                query = through_norm(at.query_norm, query.flatten(0, 1)).view(query.shape)
            key = _first_key(model, at, ids[:, :1] if at.fused else ids)
            key = key.repeat_interleave(query.shape[1] // len(key), 0)
            scores.append((query.double() * key.double()).sum(-1) * at.scaling)
    return torch.stack(scores, 1).cpu().numpy(), layers


class Ablation(NamedTuple):
    """Effect of one feature on heads by the direct path into their queries, at the n tokens where it fires."""

    acts: np.ndarray  # float64 [n]: its activation
    blocks: np.ndarray  # int64 [n]: the token block of each
    attention: np.ndarray  # float64 [2, n, heads]: to the first token, with the feature and without it
    norm: np.ndarray  # float64 [2, n, heads]: length of a head's output before the output projection, likewise


def path_ablation(
    model: nn.Module, hook_point: str, sae: SAE, feature: int, layer: int, blocks: np.ndarray, skip: int = 1
) -> Ablation:
    """Effect of a feature on all heads of a layer by the direct path into their queries (figure 5b).

    f_i(t) d_i is taken from the residual stream before the layer, for queries only; keys and values stay. blocks:
    tokens [n, context]. skip: first positions left out, since the first attends to itself alone. Attention to the first
    token is less without the feature where the feature deactivates the head.
    """
    at = _attention(model, layer)
    direction = to_stream(model, hook_point, sae.W_dec[feature : feature + 1].detach())
    step, empty = blocks_at_once(blocks.shape[1]), torch.zeros(0, dtype=torch.double)
    acts, places, effects = [empty], [empty.long()], [empty.new_zeros(4, 0, at.width // at.d_head)]
    for start in range(0, len(blocks), step):
        ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64)).to(direction.device)
        codes = sparse_codes(sae, capture(model, hook_point, ids).flatten(0, 1))[:, [feature]].toarray()
        active = torch.from_numpy(codes).float().to(ids.device).view(ids.shape)
        fires = active > 0
        fires[:, :skip] = False
        if not bool(fires.any()):
            continue
        with torch.no_grad():
            x = capture(model, f"blocks.{layer}.hook_resid_pre", ids) - active[..., None] * direction
            query = at.projection(at.norm(x.to(direction.dtype)))[..., : at.width]
        found = []
        for first_only in (True, False):
            for changed in (None, query):
                with _attending(model, at, changed, first_only):
                    output = at.heads_of(capture(model, f"blocks.{layer}.attn.hook_z", ids))[fires]
                found.append(output[..., 0] if first_only else output.norm(dim=-1))
        acts.append(active[fires].double().cpu())
        places.append(fires.nonzero()[:, 0].cpu() + start)
        effects.append(torch.stack(found).double().cpu())
    attention, norm = torch.cat(effects, 1).numpy().reshape(2, 2, -1, effects[0].shape[2])
    return Ablation(torch.cat(acts).numpy(), torch.cat(places).numpy(), attention, norm)


def firing_blocks(side: Side, features: Sequence[int], blocks: np.ndarray, skip: int = 1) -> np.ndarray:
    """Whether each feature fires in each block [n, context] after its first `skip` tokens, bool [n, features]."""
    parts = []
    for x, kept in marked(side.model, side.hook_point, blocks, side.precision):
        fires = sparse_codes(side.sae, x)[:, list(features)].toarray() > 0
        fires &= True if kept is None else kept.cpu().numpy()[:, None]
        parts.append(fires.reshape(-1, blocks.shape[1], len(features))[:, skip:].any(1))
    return np.concatenate(parts)


class MovedHead(NamedTuple):
    """A head, and the effect of a feature on it at the n tokens where the feature fires."""

    layer: int
    head: int
    effect: Ablation  # of this head alone: attention and norm are [2, n]


def moved_heads(
    side: Side, feature: int, layers: Sequence[int], blocks: np.ndarray, skip: int = 1
) -> dict[str, MovedHead]:
    """Of all heads of some layers the one that a feature turns `off` most, and the one that it turns `on` most.

    That is by the mean of how much attention to the first token drops without the feature: most, and least. Of the
    blocks [n, context] every fifth chooses the heads and the others measure, so that the luck of the choice is not
    measured with it. Empty for a feature that fires in none of either.
    """
    chooses = np.arange(len(blocks)) % _CHOOSES == 0

    def ablated(layer: int, some: np.ndarray) -> Ablation:
        return path_ablation(side.model, side.hook_point, side.sae, feature, layer, some, skip)

    first = [ablated(layer, blocks[chooses]) for layer in layers]
    if not len(first[0].acts) or chooses.all():
        return {}
    drops = np.stack([(one.attention[0] - one.attention[1]).mean(0) for one in first])
    found = {}
    for effect, best in (("off", drops.argmax()), ("on", drops.argmin())):
        place, head = (int(i) for i in np.unravel_index(best, drops.shape))
        own = ablated(layers[place], blocks[~chooses])
        if not len(own.acts):
            return {}
        own = own._replace(attention=own.attention[..., head], norm=own.norm[..., head])
        found[effect] = MovedHead(layers[place], head, own)
    return found


def mean_over_blocks(values: np.ndarray, blocks: np.ndarray) -> tuple[float, float, float]:
    """Mean of the values [n] of tokens, with its 95 % interval over the blocks [n] that they stand in.

    Tokens of a block depend on each other, so blocks are what varies: t interval of a ratio of sums over blocks
    (Cochran, Sampling Techniques, 1977, section 6.3). The ends are nan for a single block.
    """
    mean, (_, of) = float(values.mean()), np.unique(blocks, return_inverse=True)
    rest = np.bincount(of, values - mean)
    if len(rest) < 2:
        return mean, float("nan"), float("nan")
    deviation = np.sqrt(len(rest) / (len(rest) - 1) * np.square(rest).sum()) / len(values)
    wide = float(stdtrit(len(rest) - 1, 0.975) * deviation)
    return mean, mean - wide, mean + wide


class _Attention(NamedTuple):
    path: str
    module: Any
    norm: nn.Module
    projection: nn.Module  # gives queries first, and in GPT-2 (`fused`) keys and values after them
    fused: bool
    width: int  # of all queries together
    d_head: int
    scaling: float
    query_norm: nn.Module | None = None

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))


def _attention(model: nn.Module, layer: int) -> _Attention:
    block: Any = resolve(model, f"blocks.{layer}.hook_resid_pre")[0]
    place = next(name for name, module in model.named_modules() if module is block)
    if all(hasattr(getattr(block, "self_attn", None), f"{part}_proj") for part in "qkv"):
        own, norm, path = block.self_attn, getattr(block, "input_layernorm", None), f"{place}.self_attn"
        width, d_head, query_norm = own.q_proj.out_features, int(own.head_dim), getattr(own, "q_norm", None)
        if isinstance(norm, nn.Module) and (query_norm is None or next(query_norm.parameters()).numel() == d_head):
            scaling = float(getattr(own, "scaling", d_head**-0.5))
            return _Attention(path, own, norm, own.q_proj, False, width, d_head, scaling, query_norm)
    elif hasattr(getattr(block, "attn", None), "c_attn") and hasattr(block, "ln_1"):
        own, width, d_head = block.attn, int(block.attn.embed_dim), int(block.attn.head_dim)
        return _Attention(f"{place}.attn", own, block.ln_1, own.c_attn, True, width, d_head, float(own.scaling))
    raise ValueError(
        f"the attention of {type(block).__name__} is not of a known kind; heads are found in decoders with q_proj, "
        "k_proj and v_proj after an input_layernorm (Llama, Mistral, Qwen, Gemma) and in GPT-2"
    )


def _first_key(model: nn.Module, at: _Attention, ids: Tensor) -> Tensor:
    """The keys of the first position [key_heads, d_head], turned against the queries' mean rotation."""
    if at.fused:
        return at.heads_of(capture(model, f"{at.path}.c_attn:output", ids)[0, 0][at.width : 2 * at.width])
    from transformers.models.llama.modeling_llama import rotate_half

    calls: list[dict[str, Any]] = []
    with at.module.register_forward_pre_hook(lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True):
        key = at.heads_of(capture(model, f"{at.path}.k_proj:output", ids)[0, 0])
    key = at.module.k_norm(key) if at.query_norm is not None else key
    cos, sin = (part[0].double() for part in calls[0]["position_embeddings"])
    if cos.shape[1] != at.d_head:
        raise ValueError(f"rotary embeddings turn {cos.shape[1]} of {at.d_head} dimensions; only whole heads are known")
    key = key * cos[0] + rotate_half(key) * sin[0]
    return key * cos.mean(0) - rotate_half(key) * sin.mean(0)


@contextmanager
def _attending(model: nn.Module, at: _Attention, query: Tensor | None, first_only: bool) -> Iterator[None]:
    """While open, a layer's queries are `query`, if given; `first_only`: its heads give their attention to token 0."""

    def queries(own: Tensor) -> Tensor:
        return own if query is None else query

    def values(own: Tensor) -> Tensor:
        return torch.eye(1, own.shape[1], dtype=own.dtype, device=own.device).T.expand_as(own) if first_only else own

    def all_three(own: Tensor) -> Tensor:
        old, keys, v = own.split(at.width, -1)
        return torch.cat([queries(old), keys, values(v)], -1)

    hooks: dict[str, Callable[[Tensor], Tensor]] = {"q_proj": queries, "v_proj": values}
    with ExitStack() as stack:
        for name, hook in ({"c_attn": all_three} if at.fused else hooks).items():
            stack.enter_context(replaced(model, f"{at.path}.{name}:output", hook))
        yield
