"""Hook points: names for places inside a Hugging Face decoder, and capture or replacement of the values there.

Names are those of the interpretability literature (`blocks.0.mlp.hook_post`); one head of attention is
`blocks.0.attn.hook_z[3]`; any other place is reached as `module.path:input` or `module.path:output`, the path from the
model or from what holds its layers. Models are recognized by the names of their submodules, never by their
class, so a new family works as soon as it is laid out like a known one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from weakref import WeakKeyDictionary

if TYPE_CHECKING:  # hook points are checked against shapes before anything heavy is loaded
    from torch import Tensor, nn

Side = Literal["input", "output"]

# What may follow `blocks.L.`; `hook_embed` stands alone.
BLOCK_NAMES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
BLOCK_NAMES += ("mlp.hook_pre", "mlp.hook_post", "attn.hook_z")
# What holds the layers of Llama, Mistral, Qwen and Gemma; of GPT-2; of GPT-NeoX and Pythia; of OPT; of Mamba; of models
# with a vision tower; then of the same models without a language-model head.
_TRUNKS = ("model", "transformer", "gpt_neox", "model.decoder", "backbone", "rwkv", "model.language_model")
_TRUNKS += ("language_model.model", "model.text_model", "", "decoder", "language_model")
_STACKS = ("layers", "h", "blocks")
# Share of a layer that has run at a place in it; all of it at others.
_WITHIN = {
    "hook_resid_pre": 0.0,
    "attn.hook_z": 0.25,
    "hook_attn_out": 0.33,
    "hook_resid_mid": 0.33,
    "mlp.hook_pre": 0.6,
}
_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_HEAD = re.compile(r"(blocks\.\d+\.attn\.hook_z)\[(\d+)\]")


class HookPointError(ValueError):
    """A hook point that the model does not have; the message lists the valid ones."""


# Of every model, what was found of the sums at its hook points: None, or why a place is refused.
_CHECKED: WeakKeyDictionary[Any, dict[str, str | None]] = WeakKeyDictionary()
_REPLACING: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # replacements that are open in a model
_SUMMED = ("hook_attn_out", "hook_mlp_out", "hook_resid_mid")
_PROBE_TOKENS = 8


class _Stop(Exception):
    """Leaves a forward pass once the wanted value is known."""


def resolve(model: nn.Module, hook_point: str) -> tuple[nn.Module, Side]:
    """The module a hook point belongs to, and whether its input or its output is meant.

    `hook_post` of a gated MLP is act(gate) * up, the input of the down projection; `hook_pre` is the gate before the
    activation function. `attn.hook_z` is the input of the output projection, heads concatenated. Where a family
    normalizes the output of attention and MLP before adding it to the residual stream (Gemma 2 and 3, GLM-4, OLMo 2),
    `hook_attn_out` and `hook_mlp_out` are what is added. A family that adds the stream inside these modules (BLOOM,
    MPT) has no such place. One head has the module of all.
    Raises HookPointError for an unknown name, a layer out of range or a module that does not exist.
    """

    kind = type(model).__name__
    if ":" in hook_point:
        path, side = _split(hook_point)
        if (module := _find(model, path, *(f"{trunk}.{path}" for trunk in _TRUNKS if trunk))) is not None:
            return module, side
        near = difflib.get_close_matches(path, [name for name, _ in model.named_modules()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see model.named_modules() for the valid names"
        raise HookPointError(f"hook_point {hook_point!r}: {kind} has no module {path!r}; {hint}")
    hook_point, _ = of_head(hook_point)
    stack = _stack(model)
    if stack is None:
        raise HookPointError(
            f"hook_point {hook_point!r}: no decoder layers found in {kind}; name the module itself, as in "
            "'module.path:output'"
        )
    layer, name = _parse(hook_point, len(stack))
    if layer is None:
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        if embedding is None:
            raise HookPointError(f"hook_point 'hook_embed': {kind} has no input embedding; name the module itself")
        return embedding, "output"
    places = _places(stack[layer])
    if name not in places:
        valid = ", ".join(f"blocks.{layer}.{other}" for other in BLOCK_NAMES if other in places)
        block = type(stack[layer]).__name__
        raise HookPointError(f"hook_point {hook_point!r}: {block} has no such place; valid names: {valid}")
    return places[name]


def _stack(model: nn.Module) -> nn.ModuleList | None:
    """The decoder's layers."""
    from torch import nn

    trunks = [trunk for path in _TRUNKS if (trunk := _find(model, path)) is not None]
    trunks.append(getattr(model, "base_model", model))
    stacks = [_find(trunk, *_STACKS) for trunk in trunks]
    return next((stack for stack in stacks if isinstance(stack, nn.ModuleList) and len(stack)), None)


def width(config: Any, hook_point: str) -> int | None:
    """Width of the vectors at a hook point, read from a Hugging Face configuration without any weights.

    None where only the model knows it: for `module.path:side`, and inside MLPs and attention of families that do not
    say it by a usual name; `lm.trace` finds it. Raises HookPointError for an unknown name or a layer out of range.
    """
    if ":" in hook_point:
        _split(hook_point)
        return None
    config = getattr(config, "text_config", None) or config
    d_model = _attribute(config, "hidden_size", "n_embd", "d_model")
    hook_point, head = of_head(hook_point)
    layer, name = _parse(hook_point, _attribute(config, "num_hidden_layers", "n_layer", "n_layers"))
    if name == "hook_resid_mid" and getattr(config, "use_parallel_residual", False):
        valid = ", ".join(f"blocks.{layer}.{other}" for other in BLOCK_NAMES if other != name)
        raise HookPointError(
            f"hook_point {hook_point!r}: attention and MLP of this model run side by side, so there is no stream "
            f"between them; valid names: {valid}"
        )
    if name in ("mlp.hook_pre", "mlp.hook_post"):
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        if isinstance(inner, list | tuple):  # one number a layer
            inner = inner[layer or 0]
        return int(inner) if inner else 4 * d_model if getattr(config, "model_type", "") == "gpt2" else None
    if name == "attn.hook_z":
        heads = _attribute(config, "num_attention_heads", "n_head", "n_heads")
        if head is not None and head >= heads:
            raise HookPointError(f"hook_point {hook_point}[{head}]: the model has {heads} heads, from 0")
        return (1 if head is not None else heads) * int(getattr(config, "head_dim", None) or d_model // heads)
    return d_model


def of_head(hook_point: str) -> tuple[str, int | None]:
    """The hook point of all heads that one head belongs to, with its number; None where no head is named."""
    found = _HEAD.fullmatch(hook_point)
    return (found[1], int(found[2])) if found else (hook_point, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (dropout off) while open; every part of the model then returns to the mode it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def capture(model: nn.Module, hook_point: str, input_ids: Tensor) -> Tensor:
    """Activations [batch, context, d_in] at a hook point for token ids [batch, context]; always float32.

    The forward pass ends as soon as the value is known: later layers and the output head never run. The model runs
    in evaluation mode and without gradients.
    Raises HookPointError when the hook point is unknown, when the forward pass never reaches it, when something else
    than [batch, context, width] passes there, and when it is not what is added to the stream though its name says so.
    """
    return capture_all(model, (hook_point,), input_ids)[0]


def capture_all(model: nn.Module, hook_points: Sequence[str], input_ids: Tensor) -> list[Tensor]:
    """What `capture` gives at several hook points, each named once: one forward pass that ends at the last of them."""
    for hook_point in hook_points:
        _check_sum(model, hook_point)
    return [x.float() for x in caught_at(model, hook_points, input_ids)]


def caught_at(model: nn.Module, hook_points: Sequence[str], input_ids: Tensor) -> list[Tensor]:
    """What `capture_all` gives, in the model's type, without a look at its sums."""
    import torch

    caught: dict[str, Tensor] = {}

    def keep(hook_point: str, x: Tensor) -> Tensor:
        if len(caught) == len(hook_points) - 1 and hook_point not in caught:
            caught[hook_point] = x
            raise _Stop
        caught[hook_point] = x.clone()  # the pass goes on, and may work in place
        return x

    # A model that keeps keys and values would fill its cache for nothing.
    options = {"use_cache": False} if hasattr(model, "config") else {}
    with ExitStack() as stack:
        for hook_point in hook_points:
            stack.enter_context(_attached(model, hook_point, partial(keep, hook_point)))
        with evaluating(model), torch.no_grad(), suppress(_Stop):
            model(input_ids, **options)
    for hook_point in hook_points:
        if hook_point not in caught:
            kind = type(model).__name__
            raise HookPointError(f"hook_point {hook_point!r}: the forward pass of {kind} never reaches it")
    return [caught[hook_point] for hook_point in hook_points]


def depth(hook_point: str) -> float:
    """How many layers a forward pass that ends at a hook point runs, as far as its name says; infinite where it does
    not."""
    if hook_point == "hook_embed":
        return 0.0
    found = re.search(r"\.(\d+)\.(.+)", hook_point)
    if found is None:
        return math.inf
    name = of_head(hook_point)[0].rpartition(f".{found[1]}.")[2]
    return int(found[1]) + _WITHIN.get(name, 1.0)


@contextmanager
def replaced(model: nn.Module, hook_point: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, every forward pass continues with `fn(x)` in place of the x at the hook point.

    `fn` gets the tensor as the model computed it, [batch, context, d_in] in the model's type, and returns one of the
    same shape, which is cast back to that type. Raises HookPointError as `capture` does and, during the forward pass,
    ValueError when `fn` changes the shape.
    """
    _check_sum(model, hook_point)

    def swap(x: Tensor) -> Tensor:
        new = fn(x)
        if new.shape != x.shape:
            raise ValueError(f"replacement at {hook_point} has shape {list(new.shape)}; it must be {list(x.shape)}")
        return new.to(x.dtype)

    _REPLACING[model] = _REPLACING.get(model, 0) + 1
    try:
        with _attached(model, hook_point, swap):
            yield
    finally:
        _REPLACING[model] -= 1


@contextmanager
def _attached(model: nn.Module, hook_point: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, `fn` replaces the tensor [batch, context, width] that passes the hook point, in a tuple of values the
    first.

    [tokens, width] is given to `fn` as [batch, context, width] where all tokens pass in their order, which inside of
    experts they do not. The position of a prefix (`lm.reading`) is kept from `fn`.
    """
    from heredity.lm.reading import lead, reading_of

    module, side = resolve(model, hook_point)
    if (head := of_head(hook_point)[1]) is not None:
        d_head = cast(int, width(model.config, hook_point))
        fn = partial(_on_part, fn, slice(head * d_head, (head + 1) * d_head))
    if first := lead(model, module):
        fn = partial(_behind, fn, first)
    dropped = int(reading_of(model).prefix is not None and not first)  # positions, on the way to the module
    read: list[int] = []  # batch and context of the pass at hand

    def shaped(x: Any) -> Any:
        import torch

        if not isinstance(x, torch.Tensor):
            raise HookPointError(f"hook_point {hook_point!r}: a {type(x).__name__} passes there, not a tensor")
        if x.ndim == 3 and (not read or list(x.shape[:2]) == read):
            return fn(x)
        if x.ndim == 2 and read and len(x) == read[0] * read[1] and "expert" not in hook_point:
            return fn(x.reshape(*read, -1)).flatten(0, 1)
        tokens = f" for {read[0]} x {read[1]} tokens" if read else ""
        raise HookPointError(
            f"hook_point {hook_point!r}: what passes there has shape {list(x.shape)}{tokens}, and only [batch, "
            f"context, width] can be read: {_KINDS.get(x.ndim, 'tokens are left out or put in')}; choose another "
            "place, such as blocks.0.mlp.hook_post"
        )

    def changed(value: Any) -> Any:
        return type(value)((shaped(value[0]), *value[1:])) if type(value) in (tuple, list) else shaped(value)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return changed(args), kwargs
        name = _first_tensor(kwargs)
        return args, {**kwargs, name: changed(kwargs[name])}

    def note(_module: nn.Module, _args: Any, embedded: Any) -> None:
        read[:] = embedded.shape[0], embedded.shape[1] - dropped

    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    with ExitStack() as handles:
        if embedding is not None and embedding is not module:
            handles.enter_context(embedding.register_forward_hook(note))
        if side == "output":
            hook = module.register_forward_hook(lambda _module, _args, output: changed(output))
        else:
            hook = module.register_forward_pre_hook(before, with_kwargs=True)
        handles.enter_context(hook)
        yield


def _on_part(fn: Callable[[Tensor], Tensor], part: slice, x: Tensor) -> Tensor:
    """x [..., width] with `fn` of a part of its last dimension in place of that part."""
    import torch

    return torch.cat([x[..., : part.start], fn(x[..., part]), x[..., part.stop :]], dim=-1)


def _behind(fn: Callable[[Tensor], Tensor], first: int, x: Tensor) -> Tensor:
    """x [batch, context, width] with `fn` of all but its first positions in their place."""
    import torch

    return torch.cat([x[:, :first], fn(x[:, first:])], 1)


_KINDS = {4: "it may be several streams, or heads", 2: "tokens there are in another order, or not all"}


def _first_tensor(kwargs: dict[str, Any]) -> str:
    import torch

    tensors = [key for key, value in kwargs.items() if isinstance(value, torch.Tensor)]
    return "hidden_states" if "hidden_states" in tensors else tensors[0]


def _check_sum(model: nn.Module, hook_point: str) -> None:
    """That `hook_attn_out` and `hook_mlp_out` are what the block adds to its stream, and `hook_resid_mid` the stream
    between them: once for a model and place, by a pass over a few tokens. Raises HookPointError where they are not.

    Families scale what is added (Granite), add more than these two, or add it elsewhere; their names do not tell.
    """
    layer, _, name = hook_point.removeprefix("blocks.").partition(".")
    if name not in _SUMMED or not hook_point.startswith("blocks."):
        return
    resolve(model, hook_point)
    known = _CHECKED.setdefault(model, {})
    if hook_point not in known:
        if _REPLACING.get(model):
            return  # sums of a changed pass say nothing
        known[hook_point] = _sum_fault(model, cast(Any, _stack(model))[int(layer)], name)
    if (fault := known[hook_point]) is not None:
        raise HookPointError(f"hook_point {hook_point!r}: {fault}")


def _sum_fault(model: nn.Module, block: nn.Module, name: str) -> str | None:
    """Why a place of a block is not what its name says, or None."""
    import torch

    caught: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, *more: Any) -> None:
            value = more[-1] if places[place][1] == "output" else args or more[0][_first_tensor(more[0])]
            caught[place] = value[0] if isinstance(value, tuple | list) else value
            if place == "hook_resid_post":
                raise _Stop

        return hook

    places = {one: place for one, place in _places(block).items() if one in (*_SUMMED, "hook_resid_pre")}
    places["hook_resid_post"] = block, "output"
    device = next(model.parameters()).device
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device).remainder(
        cast(Any, model).config.get_text_config().vocab_size
    )
    with ExitStack() as handles, evaluating(model), torch.no_grad(), suppress(_Stop):
        for one, (module, side) in places.items():
            register = module.register_forward_hook if side == "output" else module.register_forward_pre_hook
            handles.enter_context(register(keep(one), with_kwargs=True))
        model(ids[None], use_cache=False)
    pre, mid, post, attn, mlp = (
        caught.get(one)
        for one in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
    )
    if name not in caught:
        return None  # that the pass never reaches it is said where it is read
    sums = {"hook_attn_out": [(mid, [pre, attn]), (post, [pre, attn, mlp])]}
    sums["hook_mlp_out"] = [(post, [mid, mlp]), (post, [pre, attn, mlp])]
    sums["hook_mlp_out"] += [(post, [pre, mlp])] if attn is None else []
    sums["hook_resid_mid"] = [(mid, [pre, attn]), (post, [mid, mlp])]
    if any(_adds_up(whole, parts, pre) for whole, parts in sums[name]):
        return None
    what = "is not what is added to the stream" if name != "hook_resid_mid" else "is not the stream between the two"
    return (
        f"{type(block).__name__} computes something else than stream + attention + MLP (it scales, normalizes or adds "
        f"more), so that what passes at the usual place {what}; valid are hook_resid_pre, hook_resid_post and "
        "'module.path:side'"
    )


def _adds_up(whole: Tensor | None, parts: list[Tensor | None], pre: Tensor | None) -> bool:
    """Whether a value of the stream is the sum of others, to the rounding of their types."""
    import torch

    if whole is None or any(getattr(part, "numel", int)() != whole.numel() for part in (pre, *parts)):
        return False
    pre, *given = (cast("Tensor", part).reshape(whole.shape) for part in (pre, *parts))  # OPT: [tokens, width] inside
    change = (whole - pre).float().norm()
    error = (whole.float() - sum(part.float() for part in given)).norm()
    coarse = max(torch.finfo(one.dtype).eps for one in (whole, pre, *given))
    return bool(error <= 1e-3 * change + 2 * coarse * whole.float().norm())


def _places(block: nn.Module) -> dict[str, tuple[nn.Module, Side]]:
    """The places that this block has, by name."""
    attention: tuple[str, ...] = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "temporal_block")
    mlp: tuple[str, ...] = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "mlp_block", "fc2")
    middle: tuple[str, ...] = ("post_attention_layernorm", "ln_2", "norm_2", "final_layer_norm", "ffn_norm")
    middle += ("pre_ff_layernorm", "post_attention_norm", "channel_pre_norm", "feedforward_layernorm")
    if _find(block, "pre_feedforward_layernorm") is not None:  # Gemma 2 and 3: norms before and after
        middle, attention, mlp = ("pre_feedforward_layernorm",), ("post_attention_layernorm",), ()
    elif _find(block, "post_feedforward_layernorm") is not None:  # OLMo 2: norms after attention and MLP alone
        middle, attention, mlp = ("mlp",), ("post_attention_layernorm",), ()
    elif _find(block, "post_self_attn_layernorm") is not None:  # GLM-4
        attention, mlp = ("post_self_attn_layernorm",), ("post_mlp_layernorm",)
    parallel = any(getattr(block, name, False) for name in ("use_parallel_residual", "parallel_attn"))
    inner = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "ffn.down_proj", "fc2")
    inner += ("feed_forward.down_proj", "feed_forward.w2", "mlp_block.down_proj")
    outer = ("self_attn.o_proj", "attn.c_proj", "attention.dense", "self_attention.dense", "self_attn.out_proj")
    outer += ("attn.out_proj", "self_attn.dense", "attn.attention.out_proj", "self_attn.wo")
    first = ("mlp.gate_proj", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc1", "mlp.fc_in", "ffn.up_proj", "fc1")
    if _find(block, "mlp.gate_proj") is None and _find(block, "mlp.up_proj") is not None:  # Nemotron: not gated
        first = ("mlp.up_proj",)
    candidates: dict[str, tuple[Side, tuple[str, ...]]] = {
        "hook_resid_pre": ("input", ("",)),
        "hook_resid_mid": ("input", () if parallel else middle),
        "hook_resid_post": ("output", ("",)),
        "hook_attn_out": ("output", attention),
        "hook_mlp_out": ("output", ("post_feedforward_layernorm", *mlp)),
        "mlp.hook_pre": ("output", first),
        "mlp.hook_post": ("input", inner),
        "attn.hook_z": ("input", outer),
    }
    places: dict[str, tuple[nn.Module, Side]] = {}
    for name, (side, paths) in candidates.items():
        module = _find(block, *paths)
        # BLOOM and MPT give the stream to these modules, which add it to what they return
        if module is not None and not (name.endswith("_out") and "residual" in signature(module.forward).parameters):
            places[name] = module, side
    return places


def _parse(hook_point: str, n_layers: int) -> tuple[int | None, str]:
    """Layer and name of a named hook point; layer None for `hook_embed`."""
    if hook_point == "hook_embed":
        return None, hook_point
    parts, valid = _BLOCK_NAME.fullmatch(hook_point), ", ".join(f"blocks.L.{name}" for name in BLOCK_NAMES)
    if parts is None or parts[2] not in BLOCK_NAMES:
        raise HookPointError(
            f"hook_point {hook_point!r} is unknown; valid names: hook_embed, {valid}, "
            "or 'module.path:input' and 'module.path:output'"
        )
    if (layer := int(parts[1])) >= n_layers:
        raise HookPointError(
            f"hook_point {hook_point!r}: layer {layer} is out of range, the model has {n_layers} "
            f"(blocks.0 to blocks.{n_layers - 1}); valid names: {valid}"
        )
    return layer, parts[2]


def _split(hook_point: str) -> tuple[str, Side]:
    path, _, side = hook_point.rpartition(":")
    if side not in get_args(Side):
        raise HookPointError(f"hook_point {hook_point!r} ends with {side!r}; write ':input' or ':output'")
    return path, cast(Side, side)


def _find(module: nn.Module, *paths: str) -> nn.Module | None:
    """The first of these submodules that there is."""
    for path in paths:
        with suppress(AttributeError):
            return module.get_submodule(path)
    return None


def _attribute(config: Any, *names: str) -> int:
    """The first that the configuration has: a file knows a family's own names only."""
    value = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    if value is None:
        kind = type(config).__name__
        raise HookPointError(f"{kind} has none of {', '.join(names)}; name the place 'module.path:side'")
    return int(value)
