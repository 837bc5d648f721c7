"""Merges by mergekit: its YAML recipes, and its methods beyond those of `heredity.lm.merge`."""

from __future__ import annotations

import difflib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from heredity.errors import install, reading, short
from heredity.lm.load import quiet, random_state_kept
from heredity.lm.merge import TensorReport, compare_states
from heredity.lm.parents import (
    Parent,
    config_differences,
    copy_tokenizer,
    mend,
    missing_tokenizers,
    opened,
    token_differences,
)
from heredity.lm.weights import tensors_in

Say = Callable[[str], object]


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the place, the reason and the way out."""


def require_mergekit(place: str) -> None:
    """Raise `RecipeError` unless mergekit is installed; `place` is the setting or file that needs it."""
    if find_spec("mergekit") is None:
        raise RecipeError(
            f"{place}: recipes and methods other than slerp, linear, task_arithmetic and ties need mergekit, which is "
            f"not installed; {install('merge')}"
        )


def read_recipes(path: Path) -> list[dict[str, Any]]:
    """The mergekit configurations in a YAML file, those first whose `name` others use; the last is the child's.

    `RecipeError` names the file, and the line where it is not YAML.
    """
    with reading(path, "give the path of a YAML file", RecipeError):
        try:
            found = list(yaml.safe_load_all(path.read_text(encoding="utf-8-sig")))
        except yaml.YAMLError as error:
            raise RecipeError(f"{path}: not YAML ({short(str(error))}); correct it") from None
        json.dumps(found, default=str)  # what nests too deeply, or in itself
        for number in _numbers(found):
            if not math.isfinite(number):
                raise RecipeError(f"{path}: {number} is no finite number; correct it")
    documents = [document for document in found if document is not None] or found[:1] or [None]
    for recipe in documents:
        if not isinstance(recipe, dict):
            kind = type(recipe).__name__
            raise RecipeError(f"{path}: is a {kind}, not a mapping; write merge_method: ..., models: ...")
    return _in_order(path, documents)


def _in_order(path: Path, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents behind those that they use; what no other uses is the child."""
    names = [str(document["name"]) if document.get("name") else None for document in documents]
    if len(documents) > 1 and len(set(names)) < len(names):
        raise RecipeError(f"{path}: two documents have the same name, or none; only the child's may lack a name")
    uses = [{name.partition("+")[0] for name in _references(document)} & {*names} for document in documents]
    placed: list[int] = []
    while len(placed) < len(documents):
        made = {names[i] for i in placed}
        ready = [i for i in range(len(documents)) if i not in placed and uses[i] - {names[i]} <= made]
        if not ready:
            raise RecipeError(f"{path}: its documents use each other in a circle; let one of them stand alone")
        placed += ready
    used = set().union(*(one - {name} for one, name in zip(uses, names, strict=True)))
    last = [i for i in placed if names[i] is None] or [i for i in placed if names[i] not in used]
    if len(last) > 1:
        unused = ", ".join(str(names[i]) for i in last)
        raise RecipeError(f"{path}: {unused} are used by no other document, so which is the child? leave its name out")
    return [documents[i] for i in placed if i not in last] + [documents[i] for i in last]


def _references(recipe: object) -> Iterator[str]:
    """Every name of a model in a recipe, as it is written, adapters included."""
    if isinstance(recipe, Mapping):
        for key, value in recipe.items():
            if isinstance(value, str) and _names_model(key, value):
                yield value
            yield from _references(value)
    elif isinstance(recipe, list):
        for child in recipe:
            yield from _references(child)


def _names_model(key: object, value: str) -> bool:
    return key in ("model", "base_model", "path") or (
        key in ("tokenizer_source", "source") and value not in ("union", "base")
    )


def _placed(recipe: Any, places: Mapping[str, str]) -> Any:
    """A recipe with models by their places."""
    if isinstance(recipe, list):
        return [_placed(child, places) for child in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    result = {}
    for key, value in recipe.items():
        if isinstance(value, str) and _names_model(key, value):
            model, plus, adapter = value.partition("+")
            result[key] = f"{places.get(model, model)}{plus}{adapter}"
        else:
            result[key] = _placed(value, places)
    return result


def _numbers(node: object) -> Iterator[float]:
    if isinstance(node, Mapping | list):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _numbers(child)
    elif isinstance(node, int | float):
        yield float(node)


def check_options(method: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a method of mergekit takes, density 0.5 where it is None and taken.

    Raises `RecipeError` without mergekit, for an unknown method, and for a number without effect.
    """
    require_mergekit(f"--method {method}")
    takes = _parameters_of(method)
    if takes is None:
        from mergekit.merge_methods.registry import registered_methods  # pyright: ignore[reportMissingImports]

        known = ", ".join(sorted(one.spec.name for one in registered_methods()))
        raise RecipeError(f"--method {method}: is unknown; mergekit has {known}")
    for name, value in numbers.items():
        if value is not None and name not in takes:
            option = "weights" if name == "weight" else name
            raise RecipeError(f"--{option} has no effect on {method}; leave it out")
    density = numbers.get("density")
    return {**numbers, "density": 0.5 if density is None and "density" in takes else density}


def _parameters_of(method: object) -> set[str] | None:
    """Names of the parameters that a method of mergekit takes; None for an unknown method."""
    from mergekit import merge_methods  # pyright: ignore[reportMissingImports]

    try:
        spec = merge_methods.get(str(method)).spec
    except RuntimeError:
        return None
    return {parameter.name for parameter in (*spec.shared_parameters, *spec.input_parameters)}


def recipe_of(
    method: str,
    parents: Sequence[str],
    weights: Sequence[float] | None,
    density: float | None,
    base: str | None,
    t: float | None = None,
) -> dict[str, Any]:
    """The mergekit configuration of one method over whole models, by folder or hub id; merged in float32."""
    own = {} if density is None else {"density": density}
    entries: list[dict[str, Any]] = [{"model": parent, "parameters": dict(own)} for parent in parents]
    for entry, weight in zip(entries, weights or (), strict=weights is not None):
        entry["parameters"]["weight"] = weight
    recipe = {"merge_method": method, "base_model": base, "models": entries, "dtype": "float32"}
    return recipe if t is None else {**recipe, "parameters": {"t": t}}


def parents_of(recipe: Mapping[str, Any]) -> list[str]:
    """Models that a recipe merges, in order and each once; for slerp the base model (t = 0) comes first.

    The base of other methods counts as a parent only under linear, where it has no role of its own.
    """
    base, method = recipe.get("base_model"), recipe.get("merge_method")
    names = [base] if method == "slerp" and isinstance(base, str) else []

    def walk(node: object) -> None:
        if isinstance(node, Mapping) and isinstance(node.get("model"), str):
            names.append(node["model"])
        for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
            walk(child)

    walk([recipe.get(key) for key in ("models", "slices", "modules")])
    return list(dict.fromkeys(name for name in names if name != base or method in ("slerp", "linear")))


def merge_recipes(
    documents: Sequence[Mapping[str, Any]],
    folder: Path,
    seed: int = 0,
    place: str = "recipe",
    trust_remote_code: bool = False,
    say: Say = lambda _: None,
) -> list[TensorReport]:
    """Follow recipes in their order, as `merge_recipe` does; the last one's child is written into `folder`."""
    made: dict[str, str] = {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as between:
        for number, document in enumerate(documents[:-1]):
            made[str(document["name"])] = str(Path(between) / str(number))
            recipe = _placed(document, made)
            merge_recipe(recipe, Path(made[str(document["name"])]), seed, place, trust_remote_code, say)
        return merge_recipe(_placed(documents[-1], made), folder, seed, place, trust_remote_code, say)


def merge_recipe(
    recipe: Mapping[str, Any],
    folder: Path,
    seed: int = 0,
    place: str = "recipe",
    trust_remote_code: bool = False,
    say: Say = lambda _: None,
    *,
    own_type: bool = False,
) -> list[TensorReport]:
    """Let mergekit write the child of `recipe` into `folder` (config, safetensors, tokenizer); one report per tensor.

    Relative paths of models start at the working folder, as in mergekit. `seed` is mergekit's random seed; the global
    random state is left alone. The tokenizer is the recipe's, by default that of the base model or else of the first
    model; so is the configuration. own_type: the child has the first model's type, whatever is computed in. What a
    failed merge has written stays in `folder`: give a temporary one. `say` is told, before the work, which keys of the
    recipe have no effect and how the models differ.

    Raises `RecipeError`, after `place`, without mergekit, for anything that mergekit refuses, and where rows of other
    tokens would be merged; `ModelError` for models that cannot be loaded (weights other than safetensors are never
    read); `MergeError` for weights that are quantized or not finite.
    """
    require_mergekit(place)
    _refuse_misspelt(recipe, place, say)
    parents, base = parents_of(recipe), recipe.get("base_model")
    # What follows a + is an adapter, which mergekit merges first: such a parent has no weights to report on.
    plain = dict.fromkeys(
        name.partition("+")[0] for name in (base, *parents, *_references(recipe)) if isinstance(name, str)
    )
    with tempfile.TemporaryDirectory() as scratch:
        known = {name: opened(name, Path(scratch), trust_remote_code) for name in plain}
        _say_without_effect(recipe, known.values(), say)
        recipe = _compared(recipe, list(known.values()), place, say)
        recipe = _placed(recipe, {name: str(parent.folder) for name, parent in known.items()})
        if own_type:
            kinds = (one.dtype for one in known[parents[0].partition("+")[0]].tensors.values())
            kind = next(dtype for dtype in kinds if dtype.is_floating_point)
            recipe = {**recipe, "out_dtype": str(kind).removeprefix("torch.")}
        _run(recipe, folder, [str(parent.folder) for parent in known.values()], seed, place, trust_remote_code)
        if known and not (folder / "tokenizer_config.json").exists():
            copy_tokenizer(next(iter(known.values())).folder, folder)
        mend(folder, trust_remote_code)
        states = {name: known[name].tensors for name in (*parents, base) if isinstance(name, str) and name in known}
        compared, start = [states[name] for name in parents if name in states], states.get(str(base))
        return compare_states(
            tensors_in(folder, str(folder)), compared, recipe["merge_method"], None if base in parents else start
        )


def _refuse_misspelt(recipe: Mapping[str, Any], place: str, say: Say) -> None:
    """Raise `RecipeError` for a key that is nearly one of mergekit's; tell of others that mergekit passes over."""
    with quiet():
        from mergekit import config  # pyright: ignore[reportMissingImports]

    places = {"": config.MergeConfiguration, "models": config.InputModelDefinition}
    places |= {"slices": config.OutputSliceDefinition, "sources": config.InputSliceDefinition}

    def walk(node: Mapping[str, Any], at: str) -> None:
        known = [*places[at].model_fields, *(["name"] if not at else [])]
        for key, value in node.items():
            if key not in known and (near := difflib.get_close_matches(str(key), known, 1)):
                raise RecipeError(f"{place}: {key}: unknown key; did you mean {near[0]}?")
            if key not in known:
                say(f"{key} is no key of mergekit, and has no effect")
            for child in value if key in places and isinstance(value, list) else ():
                if isinstance(child, Mapping):
                    walk(child, key)

    walk(recipe, "")


def _run(
    recipe: Mapping[str, Any], folder: Path, order: Sequence[str], seed: int, place: str, trust_remote_code: bool
) -> None:
    """Run mergekit; `order` says whose configuration comes first."""
    with quiet(), random_state_kept(), tempfile.TemporaryDirectory() as adapters:
        from mergekit.config import MergeConfiguration  # pyright: ignore[reportMissingImports]
        from mergekit.io.tasks import LoaderCache  # pyright: ignore[reportMissingImports]
        from mergekit.merge import run_merge  # pyright: ignore[reportMissingImports]
        from mergekit.options import MergeOptions  # pyright: ignore[reportMissingImports]

        class InOrder(MergeConfiguration):
            def referenced_models(self) -> list[Any]:  # mergekit's are in an order that varies by process
                return sorted(
                    super().referenced_models(), key=lambda one: [*order, one.model.path].index(one.model.path)
                )

        options = MergeOptions(
            copy_tokenizer=bool(recipe.get("chat_template")),
            lora_merge_cache=adapters,
            random_seed=seed % 2**32,
            quiet=True,
            write_model_card=False,
            trust_remote_code=trust_remote_code,
        )
        try:
            run_merge(InOrder.model_validate(recipe), str(folder), options)
        except ValidationError as error:
            reasons = (f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors())
            raise RecipeError(f"{place}: mergekit cannot read it: {'; '.join(reasons)}") from error
        except Exception as error:
            why = f"{type(error).__name__}: {short(str(error))}"
            raise RecipeError(f"{place}: mergekit cannot follow it: {why}") from error
        finally:
            LoaderCache().loaders.clear()  # it keeps the files open, and would read changed ones from memory


def _say_without_effect(recipe: Mapping[str, Any], known: Iterable[Parent], say: Say) -> None:
    """Tell of filters that match no tensor and of parameters that the method does not take."""
    names = {name for parent in known for name in parent.tensors}
    method = recipe.get("merge_method")
    takes, filters, given = _parameters_of(method), [], []

    def walk(node: object) -> None:
        if isinstance(node, Mapping):
            filters.extend(value for key, value in node.items() if key == "filter" and isinstance(value, str))
            own = node.get("parameters")
            given.extend(key for key, value in own.items() if value is not None) if isinstance(own, Mapping) else None
        for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
            walk(child)

    walk(recipe)
    for value in dict.fromkeys(filters):
        if value != "*" and not any(value in name for name in names):
            tied = " (where head and embedding are one matrix, it has the embedding's name)" if "head" in value else ""
            say(f"filter {value} matches no tensor of the models{tied}, so its rule has no effect")
    for name in dict.fromkeys(given):
        if takes is not None and name not in takes and name != "int8_mask":
            say(f"{name} has no effect on {method}")


def _compared(recipe: Mapping[str, Any], known: Sequence[Parent], place: str, say: Say) -> Mapping[str, Any]:
    """Tell how the models differ; the recipe, with a union of the tokenizers where vocabularies have other sizes.

    Raises `RecipeError` where ids mean other tokens and the recipe does not say how they are to be matched.
    """
    if not known:
        return recipe
    first, *others = known
    sliced = bool(recipe.get("slices") or recipe.get("modules"))
    for other in others:
        apart = config_differences(first, other)
        if sliced:
            apart = [one for one in apart if not one.startswith(("num_hidden_layers", "n_layer", "layer_types"))]
        if apart:
            say(f"{first.name} and {other.name} compute differently: {'; '.join(apart)}; the child's is {first.name}'s")
    for text in missing_tokenizers(known):
        say(text)
    if recipe.get("tokenizer") or recipe.get("tokenizer_source"):
        return recipe
    for other in others:
        if apart := next(filter(None, (token_differences(one, other) for one in known)), None):
            if recipe.get("merge_method") != "passthrough":
                raise RecipeError(
                    f"{place}: {apart}: other tokenizers; add `tokenizer: {{source: union}}` to the recipe"
                )
            say(f"{apart}: other tokenizers; the child has that of {first.name}")
    sizes = {parent.name: parent.config.get_text_config().vocab_size for parent in known}
    if len(set(sizes.values())) > 1 and all(parent.tokenizer is not None for parent in known):
        rows = ", ".join(f"{size:,} in {name}" for name, size in sizes.items())
        say(f"the embeddings have {rows} rows; every token's rows are merged (tokenizer: {{source: union}})")
        return {**recipe, "tokenizer": {"source": "union"}}
    return recipe
