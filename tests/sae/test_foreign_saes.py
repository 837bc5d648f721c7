"""SAEs as other people keep them: each kind gives what its library computes, or is refused by name.

`benchmarks/matrix_saes.py` compares all of it with SAELens itself; here the truth is written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from heredity.lm.hooks import HookPointError, capture, replaced, width
from heredity.lm.load import load_model
from heredity.sae.evaluate import quality
from heredity.sae.formats import FormatError, read_sae, write_sae
from heredity.sae.formats.places import place_of
from heredity.sae.made_for import differences

D, S = 8, 20
G = torch.Generator().manual_seed(1)
W = {"W_enc": torch.randn(D, S, generator=G), "W_dec": torch.randn(S, D, generator=G)}
W |= {"b_enc": torch.randn(S, generator=G), "b_dec": torch.randn(D, generator=G)}
GATES = {name: 0.5 * torch.randn(S, generator=G) for name in ("r_mag", "b_mag", "b_gate")}
EACH = torch.rand(S, generator=G)
X = 2 * torch.randn(300, D, generator=G) + 1
V6 = {"metadata": {"sae_lens_version": "6.1.0"}}


def saelens(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    """A folder in SAELens' layout; tensors replace and add to the usual ones, None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: one.contiguous() for name, one in (W | (tensors or {})).items() if one is not None}
    save_file(named, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": S} | settings))
    return folder


def pre(x: Tensor) -> Tensor:
    return (x - W["b_dec"]) @ W["W_enc"]


def gated(x: Tensor) -> Tensor:
    opened = pre(x) + GATES["b_gate"] > 0
    return opened * (GATES["r_mag"].exp() * pre(x) + GATES["b_mag"]).relu()


def above(before: Tensor, threshold: Any = 0) -> Tensor:
    return before.relu() * (before > threshold)


NORMS = W["W_dec"].norm(dim=1)
GATED: Any = GATES | {"b_enc": None}
BATCH: Any = {"topk_threshold": torch.tensor(0.9, dtype=torch.float64)}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Tensor], Tensor], Tensor]] = {
    "gated": ({"architecture": "gated"} | V6, GATED, gated, W["W_dec"]),
    "jumprelu of a checkpoint before 6": (
        {"architecture": "jumprelu"}, {"log_threshold": EACH.log()},
        lambda x: above(pre(x) + W["b_enc"], EACH), W["W_dec"],
    ),
    "matryoshka_batchtopk": (
        {"architecture": "matryoshka_batchtopk", "k": 4.0, "rescale_acts_by_decoder_norm": True} | V6, BATCH,
        lambda x: above((pre(x) + W["b_enc"]) * NORMS, 0.9), W["W_dec"] / NORMS[:, None]
    ),
    "batchtopk of no whole k": (
        {"architecture": "batchtopk", "k": 4.5} | V6, BATCH, lambda x: above(pre(x) + W["b_enc"], 0.9), W["W_dec"]
    ),
    "a known factor of the input": (
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.5}, {},
        lambda x: above(pre(0.5 * x) + W["b_enc"]), 2 * W["W_dec"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_saelens_computes_what_it_did(tmp_path: Path, kind):
    settings, tensors, acts, w_dec = KINDS[kind]
    sae, _ = read_sae(saelens(tmp_path, tensors, **settings))
    scale = 2 if kind.startswith("a known") else 1
    torch.testing.assert_close(sae.encode(X), acts(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(X), acts(X) @ w_dec + scale * W["b_dec"], rtol=1e-4, atol=1e-4)
    assert 0.05 < float((acts(X) > 0).float().mean()) < 0.9, "the truth planted here says something"


def test_an_sae_of_a_centered_stream_centers_it_and_its_quality_counts_the_mean(tmp_path: Path):
    metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    read, facts = read_sae(saelens(tmp_path / "a", metadata=metadata))
    shifted, none = X + torch.linspace(-9, 9, len(X))[:, None], torch.zeros(())
    mean = shifted.mean(1, keepdim=True)
    acts = above(pre(shifted - mean) + W["b_enc"])
    for to in ("saelens", "dictionary_learning"):  # centering is kept, and done once whatever is read again
        write_sae(read, tmp_path / to, facts, to)
        again, _ = read_sae(tmp_path / to)
        torch.testing.assert_close(again.encode(shifted), acts, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(shifted), acts @ W["W_dec"] + W["b_dec"] + mean, rtol=1e-4, atol=1e-4)
    x_hat = again.reconstruct(shifted)
    unexplained = float((shifted - x_hat).pow(2).sum() / (shifted - shifted.mean(0)).pow(2).sum())
    assert quality(again, [shifted]).explained_variance == pytest.approx(1 - unexplained, abs=1e-5)
    inner, _ = read_sae(saelens(tmp_path / "b", metadata=metadata | {"hook_name": "blocks.1.mlp.hook_post"}))
    assert not inner.centered and torch.equal(inner.bypass(X), none.expand(len(X), 1)), "nothing is written there"
    model = torch.nn.Linear(1, 1)
    assert "center_writing_weights" in next(iter(differences("a", metadata, model, "llama")))
    (said,) = differences("a", {"context_size": 1024}, model, "llama", 128)
    assert said.startswith("SAE a was trained on blocks of 1,024 tokens, and is read on blocks of 128")


def test_one_head_is_read_and_replaced_alone(tmp_path: Path):
    model = load_model(str(tiny.save_tiny_model(tmp_path / "model")))
    place, ids = "blocks.0.attn.hook_z", torch.arange(12)[None]
    d_head = width(model.config, f"{place}[1]")
    metadata = {"hook_name": place, "hook_head_index": 1}
    _, facts = read_sae(saelens(tmp_path / "sae", metadata=metadata))
    assert facts["hook_name"] == f"{place}[1]"
    whole = capture(model, place, ids)
    assert torch.equal(capture(model, facts["hook_name"], ids), whole[..., d_head : 2 * d_head])
    with replaced(model, f"{place}[1]", torch.zeros_like):
        after = capture(model, place, ids)
    # the hook that was put in first runs first
    whole[..., d_head : 2 * d_head] = 0
    assert torch.equal(after, whole)
    with pytest.raises(HookPointError, match="heads, from 0"):
        width(model.config, f"{place}[99]")
    with pytest.raises(FormatError, match="hook_head_index=1 is a head of blocks.0.hook_resid_pre"):
        read_sae(saelens(tmp_path / "b", metadata=metadata | {"hook_name": "blocks.0.hook_resid_pre"}))


REFUSED = [
    ({"activation_fn": "tanh-relu"}, {}, "activation_fn='tanh-relu'"),
    ({"architecture": "jumprelu", "activation_fn_str": "topk"}, {"threshold": EACH}, "activation_fn_str='topk'"),
    ({"architecture": ["standard"]}, {}, r"architecture=\['standard'\]"),
    ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 4, "signed": True}}, {}, "kwargs.signed=True"),
    ({"architecture": "topk", "k": 3, "activation_fn_kwargs": {"k": 4}}, {}, "k=3 contradicts"),
    ({"architecture": "transcoder"}, {}, "'transcoder'.*reads one place and predicts another"),
    ({"architecture": "temporal"}, {}, "looks at the tokens before"),
    ({"hook_name": "a", "hook_name_out": "b"}, {}, "hook_name_out='b'"),
    (V6 | {"some_rotation": "hadamard"}, {}, "some_rotation='hadamard' is not known"),
    (V6, {"threshold": EACH}, "holds threshold"),
    (V6, {"W_skip": torch.eye(D)}, "holds W_skip"),
    ({}, {"scaling_factor": EACH}, "holds scaling_factor"),
    ({"architecture": "batchtopk", "k": 4}, {"topk_threshold": torch.tensor(0.0)}, "topk_threshold 0 was never"),
    ({"normalize_activations": "constant_norm_rescale"}, {}, "divided by its own norm"),
    ({"reshape_activations": "fold"}, {}, "reshape_activations='fold'"),
    (
        {"hook_name": "blocks.0.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}}, {},
        "model_from_pretrained_kwargs.fold_value_biases=True",
    ),
    ({"model_from_pretrained_kwargs": {"hf_model": "other"}}, {}, "model_from_pretrained_kwargs.hf_model='other'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "tensors", "named"), REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, settings, tensors, named):
    with pytest.raises(FormatError, match=named):
        read_sae(saelens(tmp_path, tensors, **settings))


def test_what_changes_nothing_is_read_whatever_its_key(tmp_path: Path):
    neutral = {"some_rotation": None, "new_factor": 1, "new_switch": False, "new_list": [], "new_name": "none"}
    training = {"l1_coefficient": 5, "lr": 4e-4, "use_ghost_grads": True, "wandb_project": "x", "noise_scale": 0.1}
    older = {"hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 2, "model_name": "gpt2-small"}
    older |= {"context_size": 128, "dtype": "torch.bfloat16", "model_from_pretrained_kwargs": {"fold_ln": True}}
    sae, metadata = read_sae(saelens(tmp_path, {"scaling_factor": torch.ones(S)}, **neutral, **training, **older))
    assert sae.activation == "relu"
    expected = {"hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2-small", "context_size": 128}
    assert metadata == expected | {
        "prepend_bos": True, "dtype": "bfloat16", "model_from_pretrained_kwargs": {"fold_ln": True}
    }  # fmt: skip


PLACES = {
    "blocks.0.mlp.hook_post": "blocks.0.mlp.hook_post",
    "model.layers.3": "blocks.3.hook_resid_post",
    "model.layers.3.input": "blocks.3.hook_resid_pre",
    "transformer.h.2.mlp": "transformer.h.2.mlp:output",
    "layers.5.mlp": "layers.5.mlp:output",
    "model.layers.4.self_attn.o_proj.input": "model.layers.4.self_attn.o_proj:input",
    "resid_post_layer_8": "blocks.8.hook_resid_post",
    "embed_tokens": "hook_embed",
    "model.layers.1.mlp:input": "model.layers.1.mlp:input",
    "sae number 3": "sae number 3",
}


@pytest.mark.parametrize("name", PLACES)
def test_places_have_one_name(name):
    assert place_of(name) == PLACES[name]


def pickled(folder: Path, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    """A folder in dictionary_learning's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    told = {"trainer": trainer | {"lm_name": "tiny", "submodule_name": "model.layers.3"}}
    (folder / "config.json").write_text(json.dumps(told | {"buffer": {"io": "in", "ctx_len": 128}}))
    return folder


def test_gated_and_matryoshka_saes_of_dictionary_learning(tmp_path: Path):
    gates = {"r_mag": GATES["r_mag"], "mag_bias": GATES["b_mag"], "gate_bias": GATES["b_gate"]}
    linear = {"encoder.weight": W["W_enc"].T, "decoder.weight": W["W_dec"].T, "decoder_bias": W["b_dec"]}
    sae, metadata = read_sae(pickled(tmp_path / "gated", linear | gates, dict_class="GatedAutoEncoder"))
    torch.testing.assert_close(sae.encode(X), gated(X), rtol=1e-5, atol=1e-5)
    assert metadata == {"hook_name": "blocks.3.hook_resid_pre", "model_name": "tiny", "context_size": 128}
    groups = {"group_sizes": torch.tensor([5, 15]), "k": torch.tensor(4), "threshold": torch.tensor(0.9)}
    name = "MatryoshkaBatchTopKSAE"
    sae, _ = read_sae(pickled(tmp_path / "nested", W | groups, dict_class=name))
    torch.testing.assert_close(sae.encode(X), above(pre(X) + W["b_enc"], 0.9), rtol=1e-5, atol=1e-5)
    for change, named in (({"threshold": torch.tensor(-1.0)}, "threshold -1 was never"), ({"E": EACH}, "holds E, and")):
        with pytest.raises(FormatError, match=named):
            read_sae(pickled(tmp_path / "nested", W | groups | change, dict_class=name))
    with pytest.raises(FormatError, match=r"trainer.rotation='hadamard'"):
        read_sae(pickled(tmp_path / "nested", W | groups, dict_class=name, rotation="hadamard"))


def test_a_folder_of_sparsify_says_its_place_by_its_name(tmp_path: Path):
    write_sae(tiny_topk(), tmp_path / "run/layers.3.mlp", {}, "sparsify")
    (tmp_path / "run/config.json").write_text(json.dumps({"model": "org/tiny", "ctx_len": 64, "hook_mode": "input"}))
    _, metadata = read_sae(tmp_path / "run/layers.3.mlp")
    assert metadata == {"hook_name": "layers.3.mlp:input", "model_name": "org/tiny", "context_size": 64}
    (tmp_path / "run/config.json").write_text(json.dumps({"hook_mode": "transcode"}))
    with pytest.raises(FormatError, match="hook_mode='transcode'"):
        read_sae(tmp_path / "run/layers.3.mlp")


def tiny_topk():
    from tiny import random_sae

    return random_sae("topk", D, S, 4)


def raw(x: Tensor) -> Tensor:
    return x @ W["W_enc"] + W["b_enc"]


def test_published_families_are_read_in_their_own_layouts(tmp_path: Path):
    small = {name[:2].lower() + name[2:]: one for name, one in W.items()}
    gemma = tmp_path / "gemma-scope-9b-it-att/layer_9/width_16k/average_l0_14"
    gemma_2, llama = tmp_path / "gemma-scope-2-1b-pt/layer_5", tmp_path / "L5R-8x"
    qwen = tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_4"
    for folder in (gemma, gemma_2, llama / "checkpoints", qwen):
        folder.mkdir(parents=True)
    np.savez(gemma / "params.npz", **{name: one.numpy() for name, one in (W | {"threshold": EACH}).items()})
    save_file(small | {"threshold": EACH}, gemma_2 / "params.safetensors")
    hook = "model.layers.5.self_attn.o_proj.input"
    told = {"architecture": "jump_relu", "hf_hook_point_in": hook, "hf_hook_point_out": hook, "l0": 10, "type": "sae"}
    (gemma_2 / "config.json").write_text(json.dumps(told | {"model_name": "gemma-v3-1b-pt", "width": S}))
    linear = {"encoder.weight": W["W_enc"].T, "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T}
    linear = {name: one.contiguous() for name, one in (linear | {"decoder.bias": W["b_dec"]}).items()}
    save_file(linear, llama / "checkpoints/final.safetensors")
    told = {"act_fn": "jumprelu", "jump_relu_threshold": 0.4, "dataset_average_activation_norm": {"in": 4 * D**0.5}}
    (llama / "hyperparams.json").write_text(json.dumps(told | {"hook_point_in": "blocks.5.hook_resid_post"}))
    torch.save(W | {"W_enc": W["W_enc"].T, "W_dec": W["W_dec"].T}, qwen / "layer3.sae.pt")
    top = raw(X).topk(4)
    families = {
        gemma: (above(raw(X), EACH), "blocks.9.attn.hook_z", "google/gemma-2-9b-it"),
        gemma_2: (above(raw(X), EACH), "model.layers.5.self_attn.o_proj:input", "google/gemma-3-1b-pt"),
        llama: (above(raw(X / 4), 0.4 / 4), "blocks.5.hook_resid_post", "meta-llama/Llama-3.1-8B"),
        qwen / "layer3.sae.pt": (
            torch.zeros(len(X), S).scatter(1, top.indices, top.values.relu()), "blocks.3.hook_resid_post",
            "Qwen/Qwen3-8B-Base",
        ),
    }  # fmt: skip
    for path, (acts, place, model) in families.items():
        sae, metadata = read_sae(path)
        torch.testing.assert_close(sae.encode(X), acts, rtol=1e-5, atol=1e-5)
        reading = {"hook_name": place, "model_name": model, "prepend_bos": True, "context_size": 1024}
        assert metadata == reading
    with pytest.raises(FormatError, match="layer3.sae.pt"):
        read_sae(qwen)
    (gemma_2 / "config.json").write_text(json.dumps({"architecture": "jump_relu", "affine_connection": True}))
    with pytest.raises(FormatError, match="affine_connection=True"):
        read_sae(gemma_2)
    (tmp_path / "skip-transcoder").mkdir()
    (gemma / "params.npz").rename(tmp_path / "skip-transcoder/params.npz")
    with pytest.raises(FormatError, match="is a transcoder"):
        read_sae(tmp_path / "skip-transcoder")


def test_a_folder_of_many_saes_names_those_below(tmp_path: Path):
    for name in ("layer_0", "layer_1"):
        saelens(tmp_path / "hub" / name)
    with pytest.raises(FormatError, match=f"give one of those below: .*{re.escape(str(tmp_path / 'hub/layer_1'))}"):
        read_sae(tmp_path)
    sae, _ = read_sae(tmp_path / "hub/layer_0/sae_weights.safetensors")
    assert sae.d_sae == S


def test_a_release_needs_saelens_and_an_id(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    for name, message in (("saelens:gpt2-small-res-jb", "names no SAE"), ("saelens:a/b/c", r"'.\[saes\]'")):
        with pytest.raises(FormatError, match=message):
            read_sae(name)


def test_an_sae_is_converted_and_read_again(tmp_path: Path):
    saelens(tmp_path / "gated", GATED, architecture="gated", metadata={"hook_name": "blocks.3.hook_resid_pre"})
    words = ("convert", tmp_path / "gated", "-o", tmp_path / "out", "--to", "dictionary_learning")
    result = json.loads(tiny.command(*words, "--json").stdout)
    assert result["activation"] == "jumprelu" and result["largest_difference"] < 1e-5 and not result["other_features"]
    again, metadata = read_sae(tmp_path / "out")
    torch.testing.assert_close(again.encode(X), gated(X), rtol=1e-4, atol=1e-4)
    assert metadata["hook_name"] == "blocks.3.hook_resid_pre"
    assert "is a file or a folder with content" in tiny.command(*words, code=2).stderr
    assert not (tmp_path / "no").exists() and "sparsify holds topk SAEs only" in (
        tiny.command("convert", tmp_path / "gated", "-o", tmp_path / "no", "--to", "sparsify", code=2).stderr
    )
