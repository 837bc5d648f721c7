"""Recipes: what is read and refused here, and mergekit's children; our methods in memory give the same weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from heredity.lm.load import ModelError, load_model, mistral_config, new_model, save_model
from heredity.lm.merge import MergeError, Method, merge_states
from heredity.lm.recipe import RecipeError, merge_recipe, parents_of, read_recipes, recipe_of
from heredity.study import ArchitectureConfig
from heredity.text.tokens import load_tokenizer, train_tokenizer

by_mergekit = pytest.mark.interop
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recipe.yaml: cannot be read .*; give the path of a YAML file"),
        ("merge_method: slerp\nmodels: [", "recipe.yaml: not YAML .* line 2, column 10"),
        ("- a\n- b", "recipe.yaml: is a list, not a mapping; write merge_method"),
    ],
)
def test_files_that_cannot_be_followed_are_named_with_the_place(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipes(path)


def test_without_mergekit_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heredity.lm.recipe.find_spec", lambda _: None)
    with pytest.raises(
        RecipeError, match=r"^r.yaml: .* need mergekit, .*; in a clone: pip install -c constraints.txt -e '\.\[merge\]'"
    ):
        merge_recipe({"merge_method": "slerp"}, tmp_path / "out", place="r.yaml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "parents"),
    [
        ("{merge_method: slerp, base_model: a, models: [{model: b}]}", ["a", "b"]),
        ("{merge_method: slerp, base_model: b, models: [{model: a}, {model: b}]}", ["b", "a"]),
        ("{merge_method: ties, base_model: c, models: [{model: c}, {model: a}, {model: b}]}", ["a", "b"]),
        ("{merge_method: linear, base_model: b, models: [{model: a}, {model: b}]}", ["a", "b"]),
        (
            "{merge_method: passthrough, slices: [{sources: [{model: a, layer_range: [0, 2]}]}, "
            "{sources: [{model: b, layer_range: [1, 2]}]}, {sources: [{model: a, layer_range: [0, 1]}]}]}",
            ["a", "b"],
        ),
        ("{merge_method: slerp}", []),
    ],
)
def test_parents_are_the_models_merged_with_that_at_t0_first(text: str, parents: list[str]):
    assert parents_of(yaml.safe_load(text)) == parents


def test_a_method_over_whole_models_is_a_recipe():
    models = [entry("a", density=0.5, weight=0.4), entry("b", density=0.5, weight=0.6)]
    expected = {"merge_method": "dare_ties", "base_model": "base", "models": models, "dtype": "float32"}
    assert recipe_of("dare_ties", ["a", "b"], [0.4, 0.6], 0.5, "base") == expected
    with pytest.raises(ValueError, match="zip"):
        recipe_of("dare_ties", ["a", "b"], [0.4], 0.5, "base")


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny random Mistral, two fine-tunes near it (one tensor unchanged), and an unrelated one; float32, on disk."""
    pytest.importorskip("mergekit")
    tokenizer = train_tokenizer([chr(code) for code in range(32, 127)], 300)
    shape = ArchitectureConfig(d_model=32, d_mlp=64, n_layers=3, n_heads=4)
    folder = tmp_path_factory.mktemp("mistral")
    paths = {}
    for seed, name in enumerate(("base", "a", "b", "far")):
        model = new_model(mistral_config(shape, len(tokenizer), 64, 0), 99 if name == "far" else 0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if name != "base" and "layers.1.mlp.up_proj" not in key:
                    weight.add_(0.01 * torch.randn_like(weight))
        paths[name] = str(folder / name)
        save_model(model, tokenizer, Path(paths[name]))
    return paths


def weights_of(folder: Path | str) -> dict[str, Tensor]:
    return {key: tensor for file in Path(folder).glob("*.safetensors") for key, tensor in load_file(file).items()}


def dare(lineage: dict[str, str], density: float = 0.5, method: str = "dare_ties") -> dict[str, Any]:
    return recipe_of(method, [lineage["a"], lineage["b"]], [0.4, 0.4], density, lineage["base"])


def entry(model: str, **parameters: object) -> dict[str, Any]:
    return {"model": model, "parameters": parameters}


# method, parents, arguments of `merge_states`, and those that mergekit takes per model in place of for all
TRIMMED = {"density": [0.37] * 3}
Case = tuple[Method, list[str], dict[str, Any], tuple[str, ...]]
PARITY: dict[str, Case] = {
    "slerp": ("slerp", ["a", "b"], {"t": 0.58}, ()),
    "slerp far apart": ("slerp", ["a", "far"], {"t": 0.3}, ()),
    "linear": ("linear", ["a", "b", "far"], {"weights": [0.2, 1.1, 0.1]}, ("weight",)),
    "linear, not normalized": ("linear", ["a", "b"], {"weights": [0.4, 0.4], "normalize": False}, ()),
    "task arithmetic": ("task_arithmetic", ["a", "b"], {"weights": [0.6, 0.1]}, ("weight",)),
    "task arithmetic normalized": ("task_arithmetic", ["a", "b"], {"weights": [0.7, 0.7], "normalize": True}, ()),
    "ties": ("ties", ["a", "b"], {"weights": [0.5, 0.3], "density": [0.5, 0.2]}, ("weight", "density")),
    "ties, not normalized": ("ties", ["a", "b", "far"], {"weights": [0.5] * 3, "normalize": False, **TRIMMED}, ()),
    "ties without trimming": ("ties", ["a", "b"], {"weights": [1, 1], "density": [1, 1]}, ()),
}


@by_mergekit
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in PARITY), ("slerp far apart", torch.float16)]
)
def test_mergekit_makes_the_same_weights_tensor_by_tensor(
    lineage: dict[str, str], name: str, dtype: torch.dtype, tmp_path: Path
):
    method, parents, arguments, apart = PARITY[name]
    half = dtype == torch.float16
    base = None if method in ("slerp", "linear") else "base"
    states = {key: {n: x.to(dtype) for n, x in weights_of(path).items()} for key, path in lineage.items()}
    first = states[base] if base else None
    ours, reports = merge_states([states[parent] for parent in parents], method, base=first, **arguments)
    options = {key.replace("weights", "weight"): value for key, value in arguments.items()}
    shared = {key: value[0] if isinstance(value, list) else value for key, value in options.items() if key not in apart}
    each = [{key: options[key][i] for key in apart} for i in range(len(parents))]
    recipe = {
        "merge_method": method,
        "base_model": lineage["a"] if method == "slerp" else lineage.get(base or ""),
        "models": [entry(lineage[parent], **own) for parent, own in zip(parents, each, strict=True)],
        "parameters": shared,
        "dtype": str(dtype).removeprefix("torch."),
    }
    rows = merge_recipe(recipe, tmp_path)
    theirs = weights_of(tmp_path)
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype
        error = float((tensor.float() - theirs[key].float()).abs().max() / theirs[key].float().abs().max())
        assert error <= (2**-11 if half else 2**-22), f"{key} differs by {error:.1e} of its largest weight"
    for row, report in zip(rows, reports, strict=True):
        assert row.name == report.name
        assert row.angle_degrees == pytest.approx(report.angle_degrees, abs=0.1 if half else 1e-4)


@by_mergekit
def test_the_child_is_a_whole_model_with_its_tokenizer_and_relative_paths_start_here(
    lineage: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(Path(lineage["a"]).parent)
    before = torch.random.get_rng_state(), random.getstate()
    rows = merge_recipe(dare({name: name for name in lineage}), tmp_path, 3)
    assert torch.equal(torch.random.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert capfd.readouterr() == ("", "")
    model = load_model(tmp_path)
    assert len(load_tokenizer(str(tmp_path))) == model.config.vocab_size
    assert {row.name for row in rows} == set(model.state_dict()) and {row.method for row in rows} == {"dare_ties"}
    ratio = next(row.norm_ratio for row in rows if row.name == "model.norm.weight")
    assert ratio == pytest.approx(1, abs=0.05)


@by_mergekit
def test_the_seed_decides_what_dare_drops(lineage: dict[str, str], tmp_path: Path):
    merged = []
    for run, seed in enumerate((3, 2**32 + 3, 4)):
        merge_recipe(dare(lineage), tmp_path / str(run), seed)
        merged.append(weights_of(tmp_path / str(run))["model.embed_tokens.weight"])
    assert torch.equal(merged[0], merged[1]) and not torch.equal(merged[0], merged[2])


@by_mergekit
def test_dare_at_density_1_drops_nothing(lineage: dict[str, str], tmp_path: Path):
    a, b, base = (weights_of(lineage[name]) for name in ("a", "b", "base"))
    for method, ours, normalize in (("dare_linear", "task_arithmetic", None), ("dare_ties", "ties", False)):
        merge_recipe(dare(lineage, 1.0, method), tmp_path / method)
        theirs = weights_of(tmp_path / method)
        expected, _ = merge_states([a, b], ours, weights=[0.4, 0.4], density=1.0, base=base, normalize=normalize)
        for key, tensor in expected.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-5, atol=1e-6)


@by_mergekit
def test_a_folder_that_changed_between_two_merges_is_read_again(lineage: dict[str, str], tmp_path: Path):
    copy = tmp_path / "copy"
    recipe = {"merge_method": "linear", "models": [entry(str(copy), weight=1), entry(lineage["b"], weight=0)]}
    for name in ("a", "far"):
        load_model(lineage[name]).save_pretrained(copy)
        load_tokenizer(lineage[name]).save_pretrained(copy)
        merge_recipe(recipe, tmp_path / name)
        key = "model.embed_tokens.weight"
        torch.testing.assert_close(weights_of(tmp_path / name)[key], weights_of(lineage[name])[key])


@by_mergekit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe.pop("merge_method"), "r.yaml: mergekit cannot read it: merge_method: Field required"),
        (lambda recipe: recipe.update(paramters={"t": 0.5}), "r.yaml: paramters: unknown key; did you mean parameters"),
        (lambda recipe: recipe["models"][0].update(paramters={}), "r.yaml: paramters: unknown key; did you mean param"),
        (lambda recipe: recipe.pop("models"), "r.yaml: mergekit cannot .*Exactly one of 'models'"),
        (lambda recipe: recipe.update(merge_method="blend"), "r.yaml: mergekit cannot follow it: .*blend"),
        (lambda recipe: recipe["models"].append({"modle": "c"}), "r.yaml: modle: unknown key; did you mean model"),
        (lambda recipe: recipe["models"][0]["parameters"].pop("weight"), "r.yaml: mergekit cannot follow it: .*weight"),
    ],
)
def test_what_mergekit_refuses_is_one_line_with_the_place(
    lineage: dict[str, str], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
):
    recipe = dare(lineage)
    change(recipe)
    with pytest.raises(RecipeError, match=message):
        merge_recipe(recipe, tmp_path, place="r.yaml")


@by_mergekit
def test_models_that_cannot_be_loaded_or_merged_are_refused(lineage: dict[str, str], tmp_path: Path):
    broken = tmp_path / "broken"
    load_model(lineage["a"]).save_pretrained(broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match="model.norm.weight: NaN or infinity in model 1"):
        merge_recipe(dare({**lineage, "a": str(broken)}), tmp_path / "out")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights are pickled"):
        merge_recipe(dare({**lineage, "a": str(broken)}), tmp_path / "again")
    assert not (tmp_path / "again").exists()
