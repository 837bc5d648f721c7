"""Merges of models in folders or on a hub; by mergekit for its YAML recipes and methods beyond `heredity.lm.merge`."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from heredity.engine.store import whole, write_json
from heredity.errors import reading, short
from heredity.lm.checkpoint import located, tokenizer_place
from heredity.lm.load import load_model, quiet, random_state_kept, save_model
from heredity.lm.merge import Method, TensorReport, compare_states, merge_states
from heredity.text.tokens import load_tokenizer
from heredity.text.vocabularies import difference


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the place, the reason and the way out."""


def merge_folders(
    models: Sequence[str],
    out: Path,
    method: str = "slerp",
    t: float | None = None,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    base: str | None = None,
    recipe: Path | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Merge models into `out` (weights, config, the first model's tokenizer, `merge.json` with every tensor's report).

    Raises ValueError when options exclude each other, a position or weights are missing, or the models do not fit.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    ours, configuration = recipe is None and method in get_args(Method), None
    if recipe is not None:
        if models or t is not None or weights is not None:
            raise ValueError("--config holds the models and numbers itself; leave the arguments and --t, --weights out")
        configuration = read_recipe(recipe)
        result |= {"method": configuration.get("merge_method"), "models": parents_of(configuration)}
    elif len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    elif method == "slerp" and t is None:
        raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
    elif not ours and trust_remote_code:
        raise ValueError(f"--trust-remote-code: has no effect on {method}, which mergekit does; leave it out")
    elif not ours and t is not None:
        raise ValueError(f"--t has no effect on {method}, it belongs to slerp and linear; leave it out")
    with whole(out) as partial:
        if ours:
            _check_vocabularies(models, trust_remote_code)
            states = [load_model(model, None, trust_remote_code).state_dict() for model in models]
            first = load_model(base, None, trust_remote_code).state_dict() if base else None
            merged, report = merge_states(states, method, t, weights, density, first)  # pyright: ignore[reportArgumentType]
            dtype = next(tensor.dtype for tensor in merged.values() if tensor.is_floating_point())
            model = load_model(models[0], None, trust_remote_code, dtype)
            model.load_state_dict(merged)
            save_model(model, load_tokenizer(models[0], None, trust_remote_code), partial)
        else:
            configuration = configuration or recipe_of(method, models, weights, density, base)
            report = merge_recipe(configuration, partial, seed, str(recipe or f"--method {method}"))
        result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
        write_json(partial / "merge.json", result)
    return result


def _check_vocabularies(models: Sequence[str], trust_remote_code: bool) -> None:
    """That rows of embeddings mean the same tokens in all models that have a tokenizer. Raises ValueError."""
    tokenizers: dict[str, Any] = {}
    for model in models:
        source = located(model, code=trust_remote_code)
        place = Path(tokenizer_place(source.folder / (source.gguf or "")))
        if place.is_file() or any(place.glob("tokenizer*")):
            tokenizers[model] = load_tokenizer(str(place), None, trust_remote_code)
    for name, tokenizer in list(tokenizers.items())[1:]:
        first, shared = next(iter(tokenizers.items()))
        if apart := difference(shared, tokenizer):
            raise ValueError(f"{first} and {name} have different tokenizers: {apart.rpartition('; ')[0]}; merge others")
        if alone := sorted(set(tokenizer.get_vocab()) ^ set(shared.get_vocab())):
            shown = ", ".join(map(repr, alone[:4]))
            raise ValueError(
                f"{first} and {name} have different tokenizers: {len(alone):,} tokens are in one of them alone ({shown}"
                "); give both the same tokens, with rows in their embeddings (resize_token_embeddings)"
            )


def require_mergekit(place: str) -> None:
    """Raise `RecipeError` unless mergekit is installed; `place` is the setting or file that needs it."""
    if find_spec("mergekit") is None:
        raise RecipeError(
            f"{place}: recipes and methods other than slerp, linear, task_arithmetic and ties need mergekit, which is "
            "not installed; pip install 'heredity[merge]'"
        )


def read_recipe(path: Path) -> dict[str, Any]:
    """The mergekit configuration in a YAML file. `RecipeError` names the file, and the line where it is not YAML."""
    with reading(path, "give the path of a YAML file", RecipeError):
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except yaml.YAMLError as error:
            raise RecipeError(f"{path}: not YAML ({short(str(error))}); correct it") from None
        json.dumps(recipe, default=str)  # what nests too deeply, or in itself
        for number in _numbers(recipe):
            if not math.isfinite(number):
                raise RecipeError(f"{path}: {number} is no finite number; correct it")
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path}: is a {type(recipe).__name__}, not a mapping; write merge_method: ..., models: ...")
    return recipe


def _numbers(node: object) -> Iterator[float]:
    if isinstance(node, Mapping | list):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _numbers(child)
    elif isinstance(node, int | float):
        yield float(node)


def recipe_of(
    method: str, parents: Sequence[str], weights: Sequence[float] | None, density: float, base: str | None
) -> dict[str, Any]:
    """The mergekit configuration of one method over whole models, by folder or hub id; merged in float32."""
    entries: list[dict[str, Any]] = [{"model": parent, "parameters": {"density": density}} for parent in parents]
    for entry, weight in zip(entries, weights or (), strict=weights is not None):
        entry["parameters"]["weight"] = weight
    return {"merge_method": method, "base_model": base, "models": entries, "dtype": "float32"}


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


def merge_recipe(recipe: Mapping[str, Any], folder: Path, seed: int = 0, place: str = "recipe") -> list[TensorReport]:
    """Let mergekit write the child of `recipe` into `folder` (config, safetensors, tokenizer); one report per tensor.

    Relative paths of models start at the working folder, as in mergekit. `seed` is mergekit's random seed; the global
    random state is left alone. The tokenizer is the recipe's, by default that of the base model or else of the first
    model. What a failed merge has written stays in `folder`: give a temporary one.

    Raises `RecipeError`, after `place`, without mergekit and for anything that mergekit refuses; `ModelError` for
    models that cannot be loaded (weights other than safetensors are never read); `MergeError` for weights that are not
    finite.
    """
    require_mergekit(place)
    parents, base = parents_of(recipe), recipe.get("base_model")
    # What follows a + is an adapter, which mergekit merges first: such a parent has no weights to report on.
    plain = dict.fromkeys(name for name in (*parents, base) if isinstance(name, str) and "+" not in name)
    states = {name: load_model(*_path_and_revision(name)).state_dict() for name in plain}
    with quiet(), random_state_kept(), tempfile.TemporaryDirectory() as adapters:
        from mergekit.config import MergeConfiguration  # pyright: ignore[reportMissingImports]
        from mergekit.io.tasks import LoaderCache  # pyright: ignore[reportMissingImports]
        from mergekit.merge import run_merge  # pyright: ignore[reportMissingImports]
        from mergekit.options import MergeOptions  # pyright: ignore[reportMissingImports]

        options = MergeOptions(
            copy_tokenizer=bool(recipe.get("chat_template")),
            lora_merge_cache=adapters,
            random_seed=seed % 2**32,
            quiet=True,
            write_model_card=False,
        )
        try:
            run_merge(MergeConfiguration.model_validate(recipe), str(folder), options)
        except ValidationError as error:
            reasons = (f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors())
            raise RecipeError(f"{place}: mergekit cannot read it: {'; '.join(reasons)}") from error
        except Exception as error:
            why = f"{type(error).__name__}: {short(str(error))}"
            raise RecipeError(f"{place}: mergekit cannot follow it: {why}") from error
        finally:
            LoaderCache().loaders.clear()  # it keeps the files open, and would read changed ones from memory
        donor = base if isinstance(base, str) else next(iter(parents), None)
        if donor and not (folder / "tokenizer_config.json").exists():
            load_tokenizer(*_path_and_revision(donor.partition("+")[0])).save_pretrained(folder)
    merged = load_model(folder).state_dict()
    compared = [states[name] for name in parents if name in states]
    return compare_states(merged, compared, recipe["merge_method"], None if base in parents else states.get(str(base)))


def _path_and_revision(name: str) -> tuple[str, str | None]:
    path, _, revision = name.partition("@")
    return path, revision or None
