"""A merge of model folders into a folder, with the report of every tensor."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from heredity.engine.store import write_json


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
    check_empty(out)
    if recipe is not None:
        if models or t is not None or weights is not None:
            raise ValueError("--config holds the models and numbers itself; leave the arguments and --t, --weights out")
        return _from_recipe(recipe, out, seed)
    if len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    if method == "slerp" and t is None:
        raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
    from heredity.lm.load import load_model
    from heredity.lm.merge import merge_states

    states = [load_model(model).state_dict() for model in models]
    first = load_model(base).state_dict() if base else None
    merged, report = merge_states(states, method, t, weights, density, first, seed)  # pyright: ignore[reportArgumentType]
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    return _write_merge(models[0], merged, report, out, result)


def _from_recipe(path: Path, out: Path, seed: int) -> dict[str, Any]:
    from heredity.lm.load import load_model
    from heredity.lm.recipe import merge_recipe, read_recipe

    recipe = read_recipe(path)
    needed = [*recipe.models, *([recipe.base] if recipe.base and recipe.base not in recipe.models else [])]
    states = {model: load_model(model).state_dict() for model in needed}
    merged, report = merge_recipe(recipe, states, seed)
    result = {"method": recipe.method, "models": list(recipe.models), "t": None, "weights": None}
    return _write_merge(recipe.models[0], merged, report, out, result)


def _write_merge(first: str, merged: dict, report: Sequence[Any], out: Path, result: dict[str, Any]) -> dict[str, Any]:
    from heredity.lm.load import load_model, save_model
    from heredity.text.tokens import load_tokenizer

    model = load_model(first, dtype=next(tensor.dtype for tensor in merged.values() if tensor.is_floating_point()))
    model.load_state_dict(merged)
    result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
    with whole_folder(out) as partial:
        save_model(model, load_tokenizer(first), partial)
        write_json(partial / "merge.json", result)
    return result


def check_empty(out: Path) -> None:
    """Raises ValueError for a folder that holds anything, and for a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"-o {out}: is a file, or a folder that is not empty; choose another, nothing is overwritten")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error."""
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)
