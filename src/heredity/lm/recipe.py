"""A merge written down in a mergekit-style YAML file: the methods and parameters that `merge` knows, nothing silently.

What mergekit would do and this package does not (other methods, layer slices, tokenizers, adapters) is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
import yaml
from torch import Tensor

from heredity.lm.merge import Method, TensorReport, TensorSettings, merge_states

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TOP_KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
_SHARED: dict[str, tuple[str, ...]] = {
    "slerp": ("t",),
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "normalize", "int8_mask"),
    "ties": ("weight", "density", "normalize", "int8_mask"),
    "dare_linear": ("weight", "density", "normalize", "int8_mask"),
    "dare_ties": ("weight", "density", "normalize", "int8_mask"),
}
_PER_MODEL = ("weight", "density")
_FLAGS = ("normalize", "int8_mask")


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the key, the value and the way out."""


class Rule(NamedTuple):
    """One entry of a parameter: its values for the tensors whose name contains `filter`."""

    filter: str | None
    """Substring of the tensor's name; None matches every tensor."""
    values: tuple[float, ...]
    """One number, or a gradient over the layers."""


class Scope(NamedTuple):
    """Parameters given at one place of the file."""

    place: str
    """Where, for messages."""
    rules: dict[str, tuple[Rule, ...]]
    """For each parameter its rules; the first that matches decides."""


@dataclass(frozen=True)
class Recipe:
    """A merge: which models, how, and with which numbers for which tensor."""

    method: Method
    """How the tensors are combined."""
    models: tuple[str, ...]
    """Parents as written (folders or hub ids); for slerp t runs from the first to the second."""
    base: str | None
    """Model the task vectors are taken from; None for slerp and linear."""
    scopes: tuple[tuple[Scope, ...], ...]
    """For each parent, the places that hold its parameters, most specific first."""
    normalize: bool | None = None
    """Divide by the sum of weights; None leaves the method's default."""
    dtype: torch.dtype | None = None
    """Parents are converted to this before they are merged."""
    out_dtype: torch.dtype | None = None
    """The child is converted to this afterwards."""
    layers: int | None = None
    """Layers the slices span; they must be all the models have. None for `models`."""

    def settings(self, name: str, n_layers: int) -> TensorSettings:
        """Numbers for one tensor of models with `n_layers` layers.

        A gradient is read at layer / (n_layers − 1), linearly between its values; tensors outside the layers
        (embeddings, final norm, output) take its first value, as in mergekit. Raises `RecipeError` for a tensor that
        no rule gives a needed number, and for a gradient if there is one layer only.
        """
        position = _layer_of(name) / (n_layers - 1) if n_layers > 1 else None
        if self.method == "slerp":
            return TensorSettings(t=self._value("t", 0, name, position))
        parents = range(len(self.models))
        weights = tuple(self._value("weight", i, name, position) for i in parents)
        kept = tuple(self._value("density", i, name, position, default=1.0) for i in parents)
        return TensorSettings(weights=weights, density=kept, normalize=self.normalize)

    def _value(
        self, parameter: str, parent: int, name: str, position: float | None, default: float | None = None
    ) -> float:
        for scope in self.scopes[parent]:
            for rule in scope.rules.get(parameter, ()):
                if rule.filter is None or rule.filter in name:
                    return _at(rule.values, position, f"{scope.place}.{parameter}")
        if default is not None:
            return default
        whose = "" if self.method == "slerp" else f" of {self.models[parent]}"
        raise RecipeError(f"parameters give no {parameter}{whose} for {name}; add one without a filter")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; `RecipeError` names the file for anything that is wrong in it."""
    try:
        return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give the path of a YAML file") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(document: object) -> Recipe:
    """The recipe in a parsed YAML document.

    Parameters are `t` (slerp), `weight`, `density` (1 if not given, as in mergekit) and `normalize`; `int8_mask` is
    accepted and has no effect. Each is a number, a gradient (list of numbers over the layers), or a list of
    {filter, value} of which the first whose filter is a substring of the tensor's name decides; an entry without a
    filter (or "*") matches always. Where none matches, the next more general place decides: model (slice source),
    slice, top level. Raises `RecipeError` for anything else, by name.
    """
    top = _mapping(document, "recipe")
    for key in top:
        if key not in _TOP_KEYS:
            raise RecipeError(f"{key} is not supported; remove it (known are {', '.join(_TOP_KEYS)})")
    method = top.get("merge_method", "")
    if method not in get_args(Method):
        raise RecipeError(f"merge_method={method!r} is not supported; use one of {', '.join(get_args(Method))}")
    shared = _scope(top.get("parameters"), "parameters", _SHARED[method])
    sources, slice_scope, layers = _sources(top, method)
    base = None if top.get("base_model") is None else _model(top["base_model"], "base_model")
    parents = _parents(method, [name for name, _ in sources], base)
    own = dict(sources)
    _refuse_base_parameters(method, base, own)
    flags = [s for s in (slice_scope, shared) if "normalize" in s.rules]
    return Recipe(
        method,
        tuple(parents),
        None if method in ("slerp", "linear") else base,
        tuple((own.get(name, Scope(name, {})), slice_scope, shared) for name in parents),
        bool(flags[0].rules["normalize"][0].values[0]) if flags else None,
        _dtype(top, "dtype"),
        _dtype(top, "out_dtype"),
        layers,
    )


def merge_recipe(
    recipe: Recipe, states: Mapping[str, Mapping[str, Tensor]], seed: int = 0
) -> tuple[dict[str, Tensor], list[TensorReport]]:
    """Follow a recipe with the state dicts of the models it names (`recipe.models` and `recipe.base`).

    Returns the child's state dict and one report a tensor, as `merge_states` does, which see for its errors. Raises
    `RecipeError` for slices that do not span all layers and gradients that one layer cannot hold.
    """
    names = [*recipe.models, *([recipe.base] if recipe.base else [])]
    for name in names:
        if name not in states:
            raise RecipeError(f"the weights of {name} are missing; load every model of the recipe")
    loaded = {name: _cast(states[name], recipe.dtype) for name in names}
    n_layers = 1 + max((_layer_of(name, -1) for name in states[recipe.models[0]]), default=-1)
    if recipe.layers not in (None, n_layers):
        raise RecipeError(
            f"slices span layers 0 to {recipe.layers} of {n_layers}; only whole models are merged, use models instead"
        )
    _check_gradients(recipe, n_layers)
    merged, reports = merge_states(
        [loaded[name] for name in recipe.models],
        recipe.method,
        base=loaded[recipe.base] if recipe.base else None,
        seed=seed,
        settings=lambda name: recipe.settings(name, n_layers),
    )
    return _cast(merged, recipe.out_dtype), reports


def _sources(top: Mapping[str, Any], method: str) -> tuple[list[tuple[str, Scope]], Scope, int | None]:
    """Models with their own parameters, the slice's parameters, and the layers the slice spans."""
    if ("models" in top) == ("slices" in top):
        raise RecipeError("a recipe has either models or slices; keep one of the two")
    per_model = tuple(name for name in _SHARED[method] if name in _PER_MODEL)
    if "models" in top:
        return _entries(top["models"], "models", ("model", "parameters"), per_model)[0], Scope("models", {}), None
    slices = top["slices"]
    if not isinstance(slices, list) or len(slices) != 1:
        raise RecipeError("slices has several entries or none; only whole models are merged, use models instead")
    one = _mapping(slices[0], "slices[0]", ("sources", "parameters"))
    keys = ("model", "layer_range", "parameters")
    sources, ranges = _entries(one.get("sources"), "slices[0].sources", keys, per_model)
    if len(set(ranges)) != 1 or ranges[0][0] != 0:
        raise RecipeError(f"layer_range={[list(r) for r in ranges]} is not all layers; use models to merge whole ones")
    return sources, _scope(one.get("parameters"), "slices[0].parameters", _SHARED[method]), ranges[0][1]


def _entries(
    value: object, place: str, keys: Sequence[str], parameters: Sequence[str]
) -> tuple[list[tuple[str, Scope]], list[tuple[int, int]]]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{place} is not a list of models; write one '- model: FOLDER' a line")
    found: list[tuple[str, Scope]] = []
    ranges = []
    for i, item in enumerate(value):
        here = f"{place}[{i}]"
        entry = _mapping(item, here, keys)
        name = _model(entry.get("model"), f"{here}.model")
        if name in dict(found):
            raise RecipeError(f"{here}: {name} is named twice; merge different models")
        found.append((name, _scope(entry.get("parameters"), f"{here}.parameters", parameters)))
        if "layer_range" in keys:
            span = entry.get("layer_range")
            if not isinstance(span, list) or len(span) != 2 or not all(type(x) is int for x in span):
                raise RecipeError(f"{here}.layer_range={span!r} is not a pair of layers; write [0, N]")
            ranges.append((span[0], span[1]))
    return found, ranges


def _parents(method: str, names: list[str], base: str | None) -> list[str]:
    if method == "linear":
        if base is not None and base not in names:
            raise RecipeError(f"base_model={base} has no part in linear; remove it or list it under models")
        parents = names
    elif base is None:
        raise RecipeError(f"{method} needs base_model; add it" + (" (the model at t = 0)" if method == "slerp" else ""))
    else:
        others = [name for name in names if name != base]
        parents = [base, *others] if method == "slerp" else others
    if method == "slerp" and len(parents) != 2:
        raise RecipeError(f"slerp merges base_model and one other model, not {len(parents)} models; leave two")
    if len(parents) < (1 if method not in ("slerp", "linear") else 2):
        raise RecipeError(f"{method} has too few models; list at least one besides the base (two for linear)")
    return parents


def _refuse_base_parameters(method: str, base: str | None, own: Mapping[str, Scope]) -> None:
    if base is None or method in ("slerp", "linear"):
        return
    for parameter in own.get(base, Scope("", {})).rules:
        raise RecipeError(f"{own[base].place}.{parameter} has no effect, {base} is the base_model; remove it")


def _scope(value: object, place: str, allowed: Sequence[str]) -> Scope:
    given = {} if value is None else _mapping(value, place)
    for key in given:
        if key not in allowed:
            known = ", ".join(allowed) or "none, use the top-level parameters"
            raise RecipeError(f"{place}.{key} is not supported; remove it (known here: {known})")
    return Scope(place, {key: _rules(key, setting, f"{place}.{key}") for key, setting in given.items()})


def _rules(key: str, setting: object, place: str) -> tuple[Rule, ...]:
    if key in _FLAGS:
        if not isinstance(setting, bool):
            raise RecipeError(f"{place}={setting!r} is not supported; write true or false")
        return (Rule(None, (float(setting),)),)
    if isinstance(setting, Mapping):
        setting = [setting]
    if not (isinstance(setting, list) and any(isinstance(item, Mapping) for item in setting)):
        return (Rule(None, _numbers(setting, place)),)
    rules = []
    for i, item in enumerate(setting):
        entry = _mapping(item, f"{place}[{i}]", ("filter", "value"))
        wanted = entry.get("filter")
        if wanted is not None and not isinstance(wanted, str):
            raise RecipeError(f"{place}[{i}].filter={wanted!r} is not text; write part of a tensor's name")
        rules.append(Rule(None if wanted == "*" else wanted, _numbers(entry.get("value"), f"{place}[{i}].value")))
    return tuple(rules)


def _numbers(setting: object, place: str) -> tuple[float, ...]:
    values = setting if isinstance(setting, list) else [setting]
    try:
        if not values or any(isinstance(value, bool) for value in values):
            raise ValueError
        numbers = tuple(float(cast(Any, value)) for value in values)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        raise RecipeError(f"{place}={setting!r} is not a number or a list of numbers; write one") from None
    if not all(map(math.isfinite, numbers)):
        raise RecipeError(f"{place}={setting!r} is not finite; write plain numbers")
    return numbers


def _at(values: tuple[float, ...], position: float | None, place: str) -> float:
    if len(values) == 1:
        return values[0]
    if position is None:
        raise RecipeError(
            f"{place}={list(values)} is a gradient over the layers but the models have one layer; write one number, "
            "or a list of {filter, value}"
        )
    scaled = position * (len(values) - 1)
    i = min(int(scaled), len(values) - 2)
    return values[i] + (scaled - i) * (values[i + 1] - values[i])


def _check_gradients(recipe: Recipe, n_layers: int) -> None:
    """Refuse gradients that one layer cannot hold, also those that no tensor happens to use."""
    for scope in (scope for scopes in recipe.scopes for scope in scopes):
        for parameter, rules in scope.rules.items():
            for rule in rules:
                _at(rule.values, None if n_layers < 2 else 0.0, f"{scope.place}.{parameter}")


def _layer_of(name: str, otherwise: int = 0) -> int:
    """Index of the layer that a tensor belongs to: the first number between the dots of its name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else otherwise


def _dtype(top: Mapping[str, Any], key: str) -> torch.dtype | None:
    name = top.get(key)
    if name is not None and str(name) not in _DTYPES:
        raise RecipeError(f"{key}={name!r} is not supported; use one of {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[str(name)]


def _model(value: object, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{place}={value!r} is not a folder or hub id; write one")
    for mark, what in (("+", "an adapter on top of a model"), ("@", "a revision")):
        if mark in Path(value).name:
            raise RecipeError(
                f"{place}={value} names {what}, which is not supported; save that model and give its folder"
            )
    return value


def _mapping(value: object, place: str, keys: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place} is {type(value).__name__}, not a table of keys; write key: value")
    for key in value:
        if keys is not None and key not in keys:
            raise RecipeError(f"{place}.{key} is not supported; remove it (known here: {', '.join(keys)})")
    return value


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating-point tensors in another dtype; those that share their memory still do."""
    done: dict[tuple, Tensor] = {}
    for x in state.values():
        done[_memory(x)] = x.to(dtype) if dtype and x.is_floating_point() else x
    return {name: done[_memory(x)] for name, x in state.items()}


def _memory(x: Tensor) -> tuple:
    return x.data_ptr(), x.dtype, x.shape, x.stride()
