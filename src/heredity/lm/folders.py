"""Merges of models in folders or on a hub: ours tensor by tensor from the files, all others mergekit's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from heredity.engine.store import whole, write_json
from heredity.lm.load import for_older_releases, load_model, save_model
from heredity.lm.merge import Method, Mixing, TensorReport, check_arguments, merge_states, merge_tensor
from heredity.lm.parents import Family, copy_tokenizer, family
from heredity.lm.recipe import check_options, merge_recipe, merge_recipes, parents_of, read_recipes, recipe_of
from heredity.lm.weights import written

_DENSITY = 0.5  # as in studies
Say = Callable[[str], object]


def merge_folders(
    models: Sequence[str],
    out: Path,
    method: str | None = None,
    t: float | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    base: str | None = None,
    recipe: Path | None = None,
    seed: int | None = None,
    trust_remote_code: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Merge models into `out` (weights, config, tokenizer, `merge.json` with every tensor's report).

    method None is slerp. The child has the type of the first model. `say` is told, before the work, what a person
    should know of the models or the recipe; `notes` of the result are the same.

    Raises ValueError for options that exclude each other or have no effect, for a position or weights that are
    missing, and for models that cannot be merged.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    notes: list[str] = []

    def tell(text: str) -> None:
        if text not in notes:
            notes.append(text)
            (say or (lambda _: None))(text)

    if recipe is not None:
        own = {"--method": method, "--t": t, "--weights": weights, "--density": density, "--base": base}
        if given := [name for name, value in own.items() if value is not None] + (["the models"] if models else []):
            raise ValueError(f"--config: holds method, models and numbers itself; leave {', '.join(given)} out")
        documents = read_recipes(recipe)
        with whole(out) as partial:
            report = merge_recipes(documents, partial, seed or 0, str(recipe), trust_remote_code, tell)
            last = documents[-1]
            result = {"method": last.get("merge_method"), "models": parents_of(last), "t": None, "weights": None}
            return _recorded(partial, out, result, report, notes)
    method = method or "slerp"
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    if len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    if method in get_args(Method):
        for option, value, of in (("--density", density, ("ties",)), ("--seed", seed, ())):
            if value is not None and method not in of:
                raise ValueError(f"{option} has no effect on {method}; leave it out")
        if method == "slerp" and t is None:
            raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
        mixing = Mixing(method, len(models), t, weights, _DENSITY if density is None else density)  # pyright: ignore[reportArgumentType]
        check_arguments(mixing, base is not None)
        with whole(out) as partial:
            return _recorded(
                partial, out, result, merge_weights(models, partial, mixing, base, tell, trust_remote_code), notes
            )
    numbers = check_options(method, {"t": t, "weight": weights, "density": density})
    with whole(out) as partial:
        document = recipe_of(method, models, weights, numbers.get("density"), base, t)
        report = merge_recipe(
            document, partial, seed or 0, f"--method {method}", trust_remote_code, tell, own_type=True
        )
        return _recorded(partial, out, result, report, notes)


def _recorded(
    partial: Path, out: Path, result: dict[str, Any], report: Sequence[TensorReport], notes: Sequence[str]
) -> dict[str, Any]:
    result |= {"out": str(out), "notes": list(notes), "tensors": [row._asdict() for row in report]}
    write_json(partial / "merge.json", result)
    return result


def merge_weights(
    models: Sequence[str],
    out: Path,
    mixing: Mixing,
    base: str | None = None,
    say: Say = lambda _: None,
    trust_remote_code: bool = False,
) -> list[TensorReport]:
    """Merge models by a method of ours into the folder `out`: weights, config and tokenizer; a report per tensor.

    Of the weights a stretch of one tensor is held at a time. The child has the first model's configuration and type,
    the vocabulary of all, and a head of its own if one of them has. Raises `MergeError` and `ModelError` as
    `heredity.lm.parents.family` and `merge_tensor`.
    """
    check_arguments(mixing, base is not None)
    with tempfile.TemporaryDirectory() as scratch:
        kin = family(models, base, Path(scratch), say, trust_remote_code)
        first, labels = kin.tensors[0], [f"parent {i}" for i in range(1, len(models) + 1)] + ["base"]
        if kin.stacked:
            report = _merged_in_memory(models, out, mixing, base, trust_remote_code)
            _add_rest(kin, out)
            return report
        # Wider types first, so that every tensor begins at a multiple of its type's size.
        names = sorted(first, key=lambda name: (-first[name].dtype.itemsize, name))
        out.mkdir(parents=True, exist_ok=True)
        with written(out / "model.safetensors", {name: (first[name].dtype, kin.shapes[name]) for name in names}) as put:
            report = [
                merge_tensor(
                    name,
                    {label: state[name] for label, state in zip(labels, kin.tensors, strict=False)},
                    mixing,
                    put,
                    kin.rows.get(name),
                )
                for name in names
            ]
        write_json(out / "config.json", kin.config)
        _add_rest(kin, out)
    return sorted(report)


def _merged_in_memory(
    models: Sequence[str], out: Path, mixing: Mixing, base: str | None, trust_remote_code: bool
) -> list[TensorReport]:
    """Merge the tensors that the models hold, and not those of their files: an angle is that of all experts."""
    loaded: list[Any] = [load_model(name, None, trust_remote_code) for name in (*models, *([base] if base else []))]
    states, first = [model.state_dict() for model in loaded], loaded[0]
    start = states.pop() if base else None
    merged, report = merge_states(
        states, mixing.method, mixing.t, mixing.weights, mixing.density, start, normalize=mixing.normalize
    )
    first.load_state_dict(merged)
    save_model(first.to(first.config.dtype or torch.float32), None, out)
    return report


def _add_rest(kin: Family, out: Path) -> None:
    """What a folder holds beside the config and the weights."""
    if kin.donor.tokenizer is not None:
        copy_tokenizer(kin.donor.folder, out)
    for file in (kin.folder / "generation_config.json", *kin.folder.glob("*.py")):
        if file.exists():
            shutil.copyfile(file, out / file.name)
    for_older_releases(out)
