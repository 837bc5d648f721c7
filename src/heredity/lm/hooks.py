"""Hook points: names for places inside a Hugging Face decoder, and capture or replacement of the values there.

Names are those of the interpretability literature (`blocks.0.mlp.hook_post`); one head of attention is
`blocks.0.attn.hook_z[3]`; any other place is reached as `module.path:input` or `module.path:output`, the path from the
model or from what holds its layers. Models are recognized by the names of their submodules, never by their
class, so a new family works as soon as it is laid out like a known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:  # hook points are checked against shapes before anything heavy is loaded
    from torch import Tensor, nn

Side = Literal["input", "output"]

# What may follow `blocks.L.`; `hook_embed` stands alone.
BLOCK_NAMES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
BLOCK_NAMES += ("mlp.hook_pre", "mlp.hook_post", "attn.hook_z")
# What holds the layers of Llama, Mistral, Qwen and Gemma; of GPT-2; of GPT-NeoX and Pythia; of Gemma 3 with a vision
# tower; then of the same models without a language-model head.
_TRUNKS = ("model", "transformer", "gpt_neox", "model.language_model", "", "language_model")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_HEAD = re.compile(r"(blocks\.\d+\.attn\.hook_z)\[(\d+)\]")


class HookPointError(ValueError):
    """A hook point that the model does not have; the message lists the valid ones."""


class _Stop(Exception):
    """Leaves a forward pass once the wanted value is known."""


def resolve(model: nn.Module, hook_point: str) -> tuple[nn.Module, Side]:
    """The module a hook point belongs to, and whether its input or its output is meant.

    `hook_post` of a gated MLP is act(gate) * up, the input of the down projection; `hook_pre` is the gate before the
    activation function. `attn.hook_z` is the input of the output projection, heads concatenated. Where a family
    normalizes the output of attention and MLP before adding it to the residual stream (Gemma 2 and 3),
    `hook_attn_out` and `hook_mlp_out` are what is added. One head has the module of all.
    Raises HookPointError for an unknown name, a layer out of range or a module that does not exist.
    """
    from torch import nn

    kind = type(model).__name__
    if ":" in hook_point:
        path, side = _split(hook_point)
        if (module := _find(model, path, *(f"{trunk}.{path}" for trunk in _TRUNKS if trunk))) is not None:
            return module, side
        near = difflib.get_close_matches(path, [name for name, _ in model.named_modules()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see model.named_modules() for the valid names"
        raise HookPointError(f"hook_point {hook_point!r}: {kind} has no module {path!r}; {hint}")
    hook_point, _ = of_head(hook_point)
    trunks = [trunk for path in _TRUNKS if (trunk := _find(model, path)) is not None]
    stacks = [(stack, trunk) for trunk in trunks if isinstance(stack := _find(trunk, "layers", "h"), nn.ModuleList)]
    if not stacks:
        raise HookPointError(
            f"hook_point {hook_point!r}: no decoder layers found in {kind}; name the module itself, as in "
            "'module.path:output'"
        )
    stack, trunk = stacks[0]
    layer, name = _parse(hook_point, len(stack))
    if layer is None:
        if (embedding := _find(trunk, *_EMBEDDINGS)) is None:
            raise HookPointError(f"hook_point 'hook_embed': {kind} has none of {', '.join(_EMBEDDINGS)}")
        return embedding, "output"
    places = _places(stack[layer])
    if name not in places:
        valid = ", ".join(f"blocks.{layer}.{other}" for other in BLOCK_NAMES if other in places)
        block = type(stack[layer]).__name__
        raise HookPointError(f"hook_point {hook_point!r}: {block} has no such place; valid names: {valid}")
    return places[name]


def width(config: Any, hook_point: str) -> int | None:
    """Width of the vectors at a hook point, read from a Hugging Face configuration without any weights.

    None for `module.path:side`, whose width only the model knows. Raises HookPointError for an unknown name, a layer
    out of range, or a place that the family does not have.
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
        return int(inner) if inner else 4 * d_model
    if name == "attn.hook_z":
        heads = _attribute(config, "num_attention_heads", "n_head")
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
    """Evaluation mode (dropout off) while open; the model then returns to the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def capture(model: nn.Module, hook_point: str, input_ids: Tensor) -> Tensor:
    """Activations [batch, context, d_in] at a hook point for token ids [batch, context]; always float32.

    The forward pass ends as soon as the value is known: later layers and the output head never run. The model runs
    in evaluation mode and without gradients.
    Raises HookPointError when the hook point is unknown, or when the forward pass never reaches it.
    """
    import torch

    caught: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        caught.append(x)
        raise _Stop

    # A model that keeps keys and values would fill its cache for nothing.
    options = {"use_cache": False} if hasattr(model, "config") else {}
    with _attached(model, hook_point, keep), evaluating(model), torch.no_grad(), suppress(_Stop):
        model(input_ids, **options)
    if not caught:
        raise HookPointError(f"hook_point {hook_point!r}: the forward pass of {type(model).__name__} never reaches it")
    return caught[0].float()


@contextmanager
def replaced(model: nn.Module, hook_point: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, every forward pass continues with `fn(x)` in place of the x at the hook point.

    `fn` gets the tensor as the model computed it, [batch, context, d_in] in the model's type, and returns one of the
    same shape, which is cast back to that type. Raises HookPointError for an unknown hook point and, during the
    forward pass, ValueError when `fn` changes the shape.
    """

    def swap(x: Tensor) -> Tensor:
        new = fn(x)
        if new.shape != x.shape:
            raise ValueError(f"replacement at {hook_point} has shape {list(new.shape)}; it must be {list(x.shape)}")
        return new.to(x.dtype)

    with _attached(model, hook_point, swap):
        yield


@contextmanager
def _attached(model: nn.Module, hook_point: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, `fn` replaces the tensor that passes the hook point, in a tuple of values the first."""
    import torch

    from heredity.lm.reading import lead

    module, side = resolve(model, hook_point)
    first = lead(model, module)
    if (head := of_head(hook_point)[1]) is not None:
        d_head = cast(int, width(model.config, hook_point))
        fn = partial(_on_part, fn, slice(head * d_head, (head + 1) * d_head))

    def changed(value: Any) -> Any:
        x, *rest = value if isinstance(value, tuple) else (value,)
        if not isinstance(x, torch.Tensor):
            raise HookPointError(f"hook_point {hook_point!r}: a {type(x).__name__} passes there, not a tensor")
        new = torch.cat([x[:, :first], fn(x[:, first:])], 1) if first else fn(x)
        return (new, *rest) if isinstance(value, tuple) else new

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return changed(args), kwargs
        name = next(key for key, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {**kwargs, name: changed(kwargs[name])}

    if side == "output":
        handle = module.register_forward_hook(lambda _module, _args, output: changed(output))
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    with handle:
        yield


def _on_part(fn: Callable[[Tensor], Tensor], part: slice, x: Tensor) -> Tensor:
    """x [..., width] with `fn` of a part of its last dimension in place of that part."""
    import torch

    return torch.cat([x[..., : part.start], fn(x[..., part]), x[..., part.stop :]], dim=-1)


def _places(block: nn.Module) -> dict[str, tuple[nn.Module, Side]]:
    """The places that this block has, by name."""
    if _find(block, "post_feedforward_layernorm") is not None:  # Gemma 2 and 3
        middle, attention = ("pre_feedforward_layernorm", "mlp"), ("post_attention_layernorm",)
    else:
        middle, attention = ("post_attention_layernorm", "ln_2"), ("self_attn", "attn", "attention")
    candidates: dict[str, tuple[Side, tuple[str, ...]]] = {
        "hook_resid_pre": ("input", ("",)),
        "hook_resid_mid": ("input", () if getattr(block, "use_parallel_residual", False) else middle),
        "hook_resid_post": ("output", ("",)),
        "hook_attn_out": ("output", attention),
        "hook_mlp_out": ("output", ("post_feedforward_layernorm", "mlp")),
        "mlp.hook_pre": ("output", ("mlp.gate_proj", "mlp.c_fc", "mlp.dense_h_to_4h")),
        "mlp.hook_post": ("input", ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h")),
        "attn.hook_z": ("input", ("self_attn.o_proj", "attn.c_proj", "attention.dense")),
    }
    places: dict[str, tuple[nn.Module, Side]] = {}
    for name, (side, paths) in candidates.items():
        if (module := _find(block, *paths)) is not None:
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
