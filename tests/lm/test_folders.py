"""Merges of folders: what models must share, what they need not, and what is said before the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from heredity.lm.folders import merge_folders, merge_weights
from heredity.lm.load import load_model
from heredity.lm.merge import MergeError, Mixing, linear, slerp
from heredity.lm.recipe import RecipeError
from heredity.text.tokens import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = [chr(code) for code in range(32, 127)]


def written(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, tokenizer: Any = None, **config: Any
) -> str:
    """A random Llama with a tokenizer, as a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    tokenizer = tokenizer or train_tokenizer(WORDS, 300)
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(**{"vocab_size": len(tokenizer), **shape, **config}))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def weights(folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def config(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "config.json").read_text())


def test_the_child_has_its_parents_type_and_is_read_by_older_releases(tmp_path: Path):
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    a, b = (written(tmp_path / str(i), i, torch.bfloat16, rope_parameters=rope) for i in range(2))
    result = merge_folders([a, b], tmp_path / "out", t=0.3)
    found, first, second = weights(tmp_path / "out"), weights(a), weights(b)
    assert set(found) == set(first)
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, slerp(first[name], second[name], 0.3)), name
    assert config(tmp_path / "out")["rope_theta"] == config(tmp_path / "out")["rope_parameters"]["rope_theta"] == 5e5
    assert config(tmp_path / "out")["torch_dtype"] == "bfloat16"
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert load_model(tmp_path / "out").config.rope_parameters["rope_theta"] == 5e5 and result["notes"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "model_type is 'llama' in .* 'mistral'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, r"rope_parameters.rope_theta is 10000.0 in"),
        ({"num_attention_heads": 4, "head_dim": 4, "num_key_value_heads": 4}, "num_attention_heads is 2 in .* and 4"),
        ({"hidden_act": "gelu"}, "hidden_act is 'silu' in .* and 'gelu'"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps is 1e-06 in .* and 0.1"),
    ],
)
def test_models_that_compute_differently_are_refused_by_the_key(tmp_path: Path, change: dict[str, Any], words: str):
    a, b = written(tmp_path / "a", 1), written(tmp_path / "b", 2)
    (tmp_path / "b" / "config.json").write_text(json.dumps(config(b) | change))
    with pytest.raises(MergeError, match=f"compute differently: .*{words}"):
        merge_folders([a, b], tmp_path / "out", t=0.5)


def test_what_changes_no_number_is_no_difference(tmp_path: Path):
    a, b = written(tmp_path / "a", 1), written(tmp_path / "b", 2)
    other = {"attention_dropout": 0.1, "use_cache": False, "made_by": "x", "pad_token_id": 3, "torch_dtype": "float16"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(config(b) | other))
    assert merge_folders([a, b], tmp_path / "out", t=0.5)["notes"] == []


def test_ids_that_mean_other_tokens_are_refused_and_union_is_the_way(tmp_path: Path):
    first, second = (train_tokenizer([text] * 20 + WORDS, 300) for text in ("the cat sat", "der Hund lief weit"))
    rows = max(len(first), len(second))
    a, b = (
        written(tmp_path / name, i, tokenizer=one, vocab_size=rows)
        for i, (name, one) in enumerate([("a", first), ("b", second)])
    )
    with pytest.raises(MergeError, match=r"different tokenizers: id \d+ is .* shared ids differ\).*source: union"):
        merge_folders([a, b], tmp_path / "out", t=0.5)
    pytest.importorskip("mergekit")
    recipe = {"merge_method": "linear", "models": [{"model": one, "parameters": {"weight": 1}} for one in (a, b)]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"r.yaml: id \d+ is .*add `tokenizer: \{source: union\}`"):
        merge_folders([], tmp_path / "out", recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | {"tokenizer": {"source": "union"}}))
    merge_folders([], tmp_path / "out", recipe=tmp_path / "r.yaml")
    assert config(tmp_path / "out")["vocab_size"] == len(weights(tmp_path / "out")[EMBED])


@pytest.mark.parametrize("added_first", [False, True])
def test_rows_that_one_model_alone_has_are_its_own(tmp_path: Path, added_first: bool):
    """Added tokens of one model, in a matrix that is padded in the other: padding is never mixed in."""
    more = train_tokenizer(WORDS, 300)
    known = len(more)
    more.add_tokens(["<x>", "<y>"], special_tokens=True)
    plain, wide = written(tmp_path / "a", 1, vocab_size=known + 8), written(tmp_path / "b", 2, tokenizer=more)
    pair = [wide, plain] if added_first else [plain, wide]
    merge_folders(pair, tmp_path / "out", "linear", weights=[1, 3])
    found, one, other = (weights(folder) for folder in (tmp_path / "out", *pair))
    for name in (EMBED, HEAD):
        torch.testing.assert_close(found[name][:known], linear([one[name][:known], other[name][:known]], [1, 3]))
        assert torch.equal(found[name][known : known + 2], weights(wide)[name][known:])
        assert len(found[name]) == config(tmp_path / "out")["vocab_size"] == len(one[name])
        assert torch.equal(found[name][known + 2 :], one[name][known + 2 :])
    assert "<y>" in (tmp_path / "out" / "tokenizer.json").read_text()
    load_model(tmp_path / "out")


def test_a_tied_and_an_untied_model_make_one_with_its_own_head(tmp_path: Path):
    a, b = written(tmp_path / "a", 1, tie_word_embeddings=True), written(tmp_path / "b", 2)
    said: list[str] = []
    merge_folders([a, b], tmp_path / "out", t=0.4, say=said.append)
    found, tied, untied = (weights(folder) for folder in (tmp_path / "out", a, b))
    assert HEAD not in tied and torch.equal(found[HEAD], slerp(tied[EMBED], untied[HEAD], 0.4))
    assert torch.equal(found[EMBED], slerp(tied[EMBED], untied[EMBED], 0.4))
    assert config(tmp_path / "out")["tie_word_embeddings"] is False and "one matrix" in said[0]
    child: Any = load_model(tmp_path / "out")
    assert torch.equal(child.get_output_embeddings().weight, found[HEAD])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0.5, "t": 0.5}, "--density has no effect on slerp"),
        ({"seed": 1, "t": 0.5}, "--seed has no effect on slerp"),
        (
            {"method": "task_arithmetic", "density": 0.5, "weights": [1, 1], "base": "a"},
            "--density has no effect on ta",
        ),
        ({"method": "slerp", "t": 0.5, "base": "a"}, "slerp takes .* neither weights nor base"),
        ({"recipe": Path("r.yaml"), "method": "ties", "density": 0.2}, "--config: .*leave --method, --density, the mo"),
        ({"recipe": Path("r.yaml"), "base": "a"}, "--config: .*leave --base"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_read(tmp_path: Path, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        merge_folders(["a", "b"], tmp_path / "out", **options)


def test_models_without_a_tokenizer_are_merged_and_it_is_said_before_the_work(tmp_path: Path):
    a, b = written(tmp_path / "a", 1), written(tmp_path / "b", 2)
    for file in (*Path(a).glob("tokenizer*"), *Path(b).glob("tokenizer*")):
        file.unlink()
    said: list[str] = []

    def say(note: str) -> None:
        assert not (tmp_path / "out").exists()
        said.append(note)

    assert merge_folders([a, b], tmp_path / "out", t=0.5, say=say)["notes"] == said
    assert len(said) == 1 and said[0].startswith("none of the models has a tokenizer")


def test_names_of_older_releases_are_merged_under_todays(tmp_path: Path):
    """GPT-2's first files have no prefix before their names, and hold masks."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        GPT2LMHeadModel(small).save_pretrained(tmp_path / name)
    first = weights(tmp_path / "a")
    old = {name.removeprefix("transformer."): tensor for name, tensor in first.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(old, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    merge_weights([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", Mixing("slerp", 2, 0.0))
    found = weights(tmp_path / "out")
    assert set(found) == set(first) and all(torch.equal(found[name], first[name]) for name in first)


def test_multimodal_models_are_merged_by_the_names_of_their_files(tmp_path: Path):
    """The files of Gemma 3 with a vision tower hold `language_model.model.`, the model `model.language_model.`."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": 50, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}
    vision = size | {"image_size": 28, "patch_size": 14}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        made = Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        )
        made.save_pretrained(tmp_path / name)
    merge_weights([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", Mixing("linear", 2, 0.25))
    a, b, found = (weights(tmp_path / name) for name in ("a", "b", "out"))
    assert set(found) == set(a) and "language_model.model.embed_tokens.weight" in found
    assert all(torch.allclose(found[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-6) for name in a)
    load_model(tmp_path / "out")


@pytest.mark.interop
def test_rules_and_numbers_without_effect_are_said(tmp_path: Path):
    pytest.importorskip("mergekit")
    a, b = (written(tmp_path / name, i, tie_word_embeddings=True) for i, name in enumerate("ab"))
    weight = [{"filter": "lm_head", "value": 0}, {"filter": "self_atn", "value": 0}, {"value": 1}]
    models = [{"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": weight, "density": 1}}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    said = merge_folders([], tmp_path / "out", recipe=tmp_path / "r.yaml")["notes"]
    assert ["filter lm_head" in said[0], "filter self_atn" in said[1], said[2]] == [
        True,
        True,
        "density has no effect on linear",
    ]


@pytest.mark.interop
def test_documents_that_use_each_other_are_followed_in_their_order(tmp_path: Path):
    pytest.importorskip("mergekit")
    a, b, c = (written(tmp_path / name, i) for i, name in enumerate("abc"))
    half = "merge_method: linear\ndtype: float32\nmodels:\n"
    half += 2 * "- {{model: {}, parameters: {{weight: 1}}}}\n"
    (tmp_path / "r.yaml").write_text(half.format("both", c) + "---\nname: both\n" + half.format(a, b))
    merge_folders([], tmp_path / "out", recipe=tmp_path / "r.yaml")
    found, parents = weights(tmp_path / "out")[EMBED], [weights(one)[EMBED] for one in (a, b, c)]
    torch.testing.assert_close(found, linear(parents, [1, 1, 2]))
    (tmp_path / "r.yaml").write_text("name: x\n" + half.format("y", c) + "---\nname: y\n" + half.format("x", b))
    with pytest.raises(RecipeError, match="use each other in a circle"):
        merge_folders([], tmp_path / "again", recipe=tmp_path / "r.yaml")
