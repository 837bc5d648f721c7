"""One merge of models in folders or on a hub, without a study file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from heredity.engine.store import whole, write_json


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
) -> dict[str, Any]:
    """Merge models into `out` (weights, config, the first model's tokenizer, `merge.json` with every tensor's report).

    Raises ValueError when options exclude each other, a position or weights are missing, or the models do not fit.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    if recipe is not None:
        if models or t is not None or weights is not None:
            raise ValueError("--config holds the models and numbers itself; leave the arguments and --t, --weights out")
        from heredity.lm.recipe import parents_of, read_recipe

        read = read_recipe(recipe)
        result = {"method": read.get("merge_method"), "models": parents_of(read), "t": None, "weights": None}
        return _by_mergekit(read, out, seed, str(recipe), result)
    if len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    if method == "slerp" and t is None:
        raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    from heredity.lm.merge import Method

    if method not in get_args(Method):
        from heredity.lm.recipe import recipe_of

        if t is not None:
            raise ValueError(f"--t has no effect on {method}, it belongs to slerp and linear; leave it out")
        return _by_mergekit(recipe_of(method, models, weights, density, base), out, seed, f"--method {method}", result)
    from heredity.lm.load import load_model, save_model
    from heredity.lm.merge import merge_states
    from heredity.text.tokenizer import load_tokenizer

    states = [load_model(model).state_dict() for model in models]
    first = load_model(base).state_dict() if base else None
    merged, report = merge_states(states, method, t, weights, density, first)  # pyright: ignore[reportArgumentType]
    model = load_model(models[0], dtype=next(tensor.dtype for tensor in merged.values() if tensor.is_floating_point()))
    model.load_state_dict(merged)
    result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
    with whole(out) as partial:
        save_model(model, load_tokenizer(models[0]), partial)
        write_json(partial / "merge.json", result)
    return result


def _by_mergekit(recipe: dict[str, Any], out: Path, seed: int, place: str, result: dict[str, Any]) -> dict[str, Any]:
    from heredity.lm.recipe import merge_recipe

    with whole(out) as partial:
        report = merge_recipe(recipe, partial, seed, place)
        result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
        write_json(partial / "merge.json", result)
    return result
