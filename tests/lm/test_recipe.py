"""Recipes: what is read, what is refused by name, and whether mergekit makes the same weights of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from heredity.lm.merge import merge_states, slerp
from heredity.lm.recipe import RecipeError, merge_recipe, parse_recipe, read_recipe

SLERP = """
models:
  - model: lua
  - model: stories
merge_method: slerp
base_model: lua
dtype: float32
parameters:
  t: 0.58
"""


def parsed(text: str):
    return parse_recipe(yaml.safe_load(text))


def state(seed: int, layers: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in ("self_attn.q_proj", "mlp.up_proj")]
    names += ["model.embed_tokens.weight", "lm_head.weight"]
    return {name: torch.randn(6, 4, generator=generator) for name in names}


STATES = {"lua": state(1), "stories": state(2), "base": state(3)}


def test_the_papers_recipe_is_a_slerp_of_every_tensor(tmp_path: Path):
    path = tmp_path / "slerp.yaml"
    path.write_text(SLERP)
    recipe = read_recipe(path)
    assert (recipe.method, recipe.models, recipe.base, recipe.dtype) == (
        "slerp",
        ("lua", "stories"),
        None,
        torch.float32,
    )
    merged, reports = merge_recipe(recipe, STATES)
    expected, _ = merge_states([STATES["lua"], STATES["stories"]], "slerp", 0.58)
    assert list(merged) == list(expected) and len(reports) == len(merged)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_base_model_is_the_parent_at_t0_wherever_it_is_listed():
    assert parsed(SLERP.replace("base_model: lua", "base_model: stories")).models == ("stories", "lua")
    assert parsed(SLERP.replace("  - model: lua\n", "")).models == ("lua", "stories")


def test_filters_are_substrings_and_the_first_match_wins():
    recipe = parsed(
        SLERP.replace(
            "t: 0.58",
            "t: [{filter: self_attn, value: 0.1}, {filter: layers.1., value: 0.2}, "
            "{filter: mlp, value: 0.3}, {value: 0.9}]",
        )
    )
    found = {name: recipe.settings(name, 5).t for name in STATES["lua"]}
    assert found["model.layers.1.self_attn.q_proj.weight"] == 0.1
    assert found["model.layers.1.mlp.up_proj.weight"] == 0.2
    assert found["model.layers.2.mlp.up_proj.weight"] == 0.3
    assert found["lm_head.weight"] == 0.9


def test_a_gradient_runs_over_the_layers_and_other_tensors_take_its_first_value():
    recipe = parsed(SLERP.replace("0.58", "[0, 0.5, 0.3]"))
    found = [recipe.settings(f"model.layers.{i}.mlp.up_proj.weight", 5).t for i in range(5)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.4, 0.3])
    assert recipe.settings("lm_head.weight", 5).t == 0
    merged, _ = merge_recipe(recipe, STATES)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(merged[name], slerp(STATES["lua"][name], STATES["stories"][name], 0.25))


def test_a_gradient_for_one_layer_is_refused_wherever_it_stands():
    one = {name: state(seed, layers=1) for seed, name in enumerate(("lua", "stories"))}
    for setting in ("[0, 1]", "[{filter: nothing, value: [0, 1]}, {value: 0.5}]"):
        with pytest.raises(
            RecipeError, match=r"parameters.t=\[0.0, 1.0\] is a gradient .* one layer; write one number"
        ):
            merge_recipe(parsed(SLERP.replace("0.58", setting)), one)
    merge_recipe(parsed(SLERP.replace("0.58", "[0.5]")), one)


def test_weights_and_densities_belong_to_models_and_fall_back_to_the_top():
    recipe = parsed(
        """
        models:
          - model: base
          - model: lua
            parameters: {weight: 0.3, density: [{filter: mlp, value: 0.5}]}
          - model: stories
        merge_method: ties
        base_model: base
        parameters: {weight: 1e-1, density: 0.7, normalize: false, int8_mask: true}
        """
    )
    assert (recipe.models, recipe.base) == (("lua", "stories"), "base")
    assert recipe.settings("model.layers.0.mlp.up_proj.weight", 5)[1:] == ((0.3, 0.1), (0.5, 0.7), False)
    assert recipe.settings("lm_head.weight", 5).density == (0.7, 0.7)
    merged, _ = merge_recipe(recipe, STATES)
    assert set(merged) == set(STATES["base"])


def test_density_is_1_and_normalize_is_the_methods_own_if_not_given():
    recipe = parsed("{merge_method: ties, base_model: base, models: [{model: lua, parameters: {weight: 1}}]}")
    assert recipe.settings("lm_head.weight", 5)[1:] == ((1.0,), (1.0,), None)
    merged, _ = merge_recipe(recipe, STATES)
    assert_close(merged, STATES["lua"])


def test_slices_over_all_layers_are_the_whole_model():
    text = """
    slices:
      - sources:
          - {model: lua, layer_range: [0, 5]}
          - {model: stories, layer_range: [0, 5]}
        parameters: {t: 0.2}
    merge_method: slerp
    base_model: lua
    parameters: {t: 0.9}
    """
    merged, _ = merge_recipe(parsed(text), STATES)
    expected, _ = merge_states([STATES["lua"], STATES["stories"]], "slerp", 0.2)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    with pytest.raises(RecipeError, match="slices span layers 0 to 4 of 5"):
        merge_recipe(parsed(text.replace("[0, 5]", "[0, 4]")), STATES)


def test_dtype_converts_the_parents_and_out_dtype_the_child():
    merged, _ = merge_recipe(parsed(SLERP.replace("dtype: float32", "dtype: float32\nout_dtype: bfloat16")), STATES)
    expected, _ = merge_states([STATES["lua"], STATES["stories"]], "slerp", 0.58)
    assert all(torch.equal(merged[name], expected[name].bfloat16()) for name in expected)
    merged, _ = merge_recipe(parsed(SLERP.replace("dtype: float32", "dtype: float16")), STATES)
    name = "lm_head.weight"
    assert torch.equal(merged[name], slerp(STATES["lua"][name].half(), STATES["stories"][name].half(), 0.58))


def test_tied_embeddings_stay_tied_through_conversions():
    states = {name: dict(each) for name, each in STATES.items()}
    for each in states.values():
        each["lm_head.weight"] = each["model.embed_tokens.weight"]
    merged, _ = merge_recipe(parsed(SLERP.replace("float32", "bfloat16") + "out_dtype: float32\n"), states)
    assert merged["lm_head.weight"].data_ptr() == merged["model.embed_tokens.weight"].data_ptr()


LINEAR = "{merge_method: linear, models: [{model: lua, parameters: {weight: 1}}, {model: stories}]}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("merge_method: slerp", "merge_method: della", "merge_method='della' is not supported; use one of slerp"),
        ("dtype: float32", "tokenizer_source: union", "tokenizer_source is not supported"),
        ("dtype: float32", "dtype: int8", "dtype='int8' is not supported; use one of float64"),
        ("t: 0.58", "t: 0.58\n  lambda: 2", "parameters.lambda is not supported"),
        ("t: 0.58", "weight: 0.58", "parameters.weight is not supported; remove it"),
        ("t: 0.58", "t: much", "parameters.t='much' is not a number"),
        ("t: 0.58", "t: true", "parameters.t=True is not a number"),
        ("t: 0.58", "t: .nan", "is not finite"),
        ("t: 0.58", "t: []", "parameters.t=.. is not a number"),
        ("t: 0.58", "t: [0.1, {value: 1}]", r"parameters.t\[0\] is float, not a table"),
        ("t: 0.58", "t: [{filter: mlp, values: 1}]", r"parameters.t\[0\].values is not supported"),
        ("base_model: lua", "", "slerp needs base_model"),
        ("base_model: lua", "base_model: third", "slerp merges base_model and one other model, not 3"),
        ("model: lua", "model: lua+adapter", "names an adapter on top of a model"),
        ("model: lua", "model: org/lua@main", "names a revision"),
        ("model: lua", "model: stories", "stories is named twice"),
        ("model: lua", "modle: lua", r"models\[0\].modle is not supported"),
        ("model: lua", "model: lua\n    parameters: {t: 1}", "use the top-level parameters"),
        ("models:", "modules:", "modules is not supported"),
        ("dtype: float32", "slices: []", "either models or slices"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "bad.yaml"
    assert old in SLERP
    path.write_text(SLERP.replace(old, new, 1))
    with pytest.raises(RecipeError, match=f"bad.yaml: .*{message}"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "recipe is list, not a table"),
        ("{merge_method: linear, models: []}", "models is not a list of models"),
        ("{merge_method: linear, models: [{model: lua}]}", "linear has too few models"),
        ("{merge_method: linear, base_model: base, models: [{model: lua}, {model: stories}]}", "no part in linear"),
        ("{merge_method: ties, models: [{model: lua}]}", "ties needs base_model"),
        ("{merge_method: ties, base_model: lua, models: [{model: lua}]}", "ties has too few models"),
        (
            "{merge_method: ties, base_model: b, models: [{model: a}, {model: b, parameters: {weight: 1}}]}",
            r"models\[1\].parameters.weight has no effect",
        ),
        (
            "{merge_method: dare_ties, base_model: b, models: [{model: a}], parameters: {rescale: false}}",
            "rescale is not",
        ),
        ("{merge_method: linear, slices: [{sources: []}, {sources: []}]}", "slices has several entries"),
        (
            "{merge_method: linear, slices: [{sources: "
            "[{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]}]}",
            "is not all layers",
        ),
        ("{merge_method: linear, slices: [{sources: [{model: a}]}]}", "layer_range=None is not a pair"),
        (
            "{merge_method: linear, models: [{model: a}], parameters: {normalize: 1}}",
            "normalize=1 is not supported; write",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(text: str, message: str):
    with pytest.raises(RecipeError, match=message):
        parsed(text)


def test_a_weight_that_is_missing_is_named_with_its_model_and_tensor():
    with pytest.raises(RecipeError, match="parameters give no weight of stories for lm_head.weight; add one"):
        merge_recipe(parsed(LINEAR), STATES)
    with pytest.raises(RecipeError, match="the weights of stories are missing"):
        merge_recipe(parsed(LINEAR), {"lua": STATES["lua"]})


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="nothing.yaml: cannot be read"):
        read_recipe(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("models: [")
    with pytest.raises(RecipeError, match="broken.yaml: not YAML"):
        read_recipe(tmp_path / "broken.yaml")


PARITY = {
    "slerp": """
        merge_method: slerp
        base_model: {a}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{t: 0.58}}
        """,
    "slerp far apart": """
        merge_method: slerp
        base_model: {a}
        models: [{{model: {a}}}, {{model: {far}}}]
        parameters: {{t: 0.3}}
        """,
    "slerp in half precision": """
        merge_method: slerp
        base_model: {a}
        models: [{{model: {a}}}, {{model: {far}}}]
        parameters: {{t: 0.3}}
        dtype: float16
        """,
    "slerp by layer and filter": """
        merge_method: slerp
        base_model: {b}
        slices:
          - sources: [{{model: {a}, layer_range: [0, 3]}}, {{model: {b}, layer_range: [0, 3]}}]
        parameters:
          t: [{{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}, {{filter: mlp, value: [1, 0.3]}}, {{value: 0.5}}]
        """,
    "gradient outside the layers": """
        merge_method: slerp
        base_model: {a}
        models: [{{model: {a}}}, {{model: {far}}}]
        parameters: {{t: [0.2, 0.9]}}
        """,
    "linear": """
        merge_method: linear
        models:
          - {{model: {a}, parameters: {{weight: 0.2}}}}
          - {{model: {b}, parameters: {{weight: 1.1}}}}
          - {{model: {far}, parameters: {{weight: [{{filter: mlp, value: 0.5}}, {{value: 0.1}}]}}}}
        """,
    "linear without normalization": """
        merge_method: linear
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 0.4, normalize: false}}
        """,
    "task arithmetic": """
        merge_method: task_arithmetic
        base_model: {base}
        models:
          - {{model: {a}, parameters: {{weight: 0.6}}}}
          - {{model: {b}, parameters: {{weight: [0.1, 0.9]}}}}
        """,
    "task arithmetic normalized": """
        merge_method: task_arithmetic
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 0.7, normalize: true}}
        """,
    "ties": """
        merge_method: ties
        base_model: {base}
        models:
          - {{model: {base}}}
          - {{model: {a}, parameters: {{weight: 0.5, density: 0.5}}}}
          - {{model: {b}, parameters: {{weight: 0.3, density: [0.2, 0.8]}}}}
        parameters: {{int8_mask: true}}
        """,
    "ties without normalization": """
        merge_method: ties
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}, {{model: {far}}}]
        parameters: {{weight: 0.5, density: 0.37, normalize: false}}
        """,
    "ties without density": """
        merge_method: ties
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 1}}
        """,
    "dare_linear at density 1": """
        merge_method: dare_linear
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 0.4, density: 1}}
        """,
    "dare_ties at density 1": """
        merge_method: dare_ties
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 0.4, density: 1}}
        """,
}


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny random Mistral, two fine-tunes near it (one tensor unchanged), and an unrelated one; float32, on disk."""
    pytest.importorskip("mergekit")
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("mistral")
    paths = {}
    for seed, name in enumerate(("base", "a", "b", "far")):
        torch.manual_seed(0 if name in ("base", "a", "b") else 99)
        model = MistralForCausalLM(config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if name != "base" and "layers.1.mlp.up_proj" not in key:
                    weight.add_(0.01 * torch.randn_like(weight))
        paths[name] = str(folder / name)
        model.save_pretrained(paths[name])
    return paths


def both(
    lineage: dict[str, str], text: str, folder: Path, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our child and mergekit's of one recipe."""
    from mergekit.config import MergeConfiguration  # pyright: ignore[reportMissingImports]
    from mergekit.merge import run_merge  # pyright: ignore[reportMissingImports]
    from mergekit.options import MergeOptions  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file

    written = yaml.safe_load(text.format(**lineage))
    states = {path: load_file(f"{path}/model.safetensors") for path in lineage.values()}
    ours, _ = merge_recipe(parse_recipe(written), states, seed=seed)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed)
    run_merge(MergeConfiguration.model_validate(written), str(folder), options)
    theirs: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        theirs |= load_file(path)
    assert set(ours) == set(theirs)
    return ours, theirs


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARITY)
def test_mergekit_makes_the_same_weights_of_the_recipe(lineage: dict[str, str], name: str, tmp_path: Path):
    ours, theirs = both(lineage, PARITY[name], tmp_path)
    half = ours["lm_head.weight"].dtype == torch.float16
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype
        error = float((tensor.float() - theirs[key].float()).abs().max() / theirs[key].float().abs().max())
        assert error <= (2**-11 if half else 2**-22), f"{key} differs by {error:.1e} of its largest weight"


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_dare_agrees_with_mergekit_in_expectation(lineage: dict[str, str], tmp_path: Path):
    text = """
        merge_method: dare_linear
        base_model: {base}
        models: [{{model: {a}}}, {{model: {b}}}]
        parameters: {{weight: 0.4, density: 0.5}}
        """
    runs = [both(lineage, text, tmp_path / str(seed), seed) for seed in range(30)]
    exact, _ = both(lineage, text.replace("0.5", "1"), tmp_path / "exact")
    key = "model.embed_tokens.weight"
    spread = torch.stack([ours[key] for ours, _ in runs]).std(0).mean()
    for i in (0, 1):
        mean = torch.stack([run[i][key] for run in runs]).mean(0)
        error = (mean - exact[key]).abs().mean() / spread
        assert 0.1 < float(error) < 0.2  # 0.8 / sqrt(30) for an unbiased mean
