"""Every format gives back the SAE it was given, refuses damage by name, and SAELens reads what we write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heredity.sae.formats import FormatError, format_of, read_sae, write_sae
from tiny import random_sae

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
METADATA = {"hook_name": "blocks.0.mlp.hook_post", "model_name": "lua", "seed": 3, "l1_coefficient": 3e-4}


def some_sae(activation):
    return random_sae(activation, 6, 18, 4)


def some_x() -> torch.Tensor:
    return 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(5)) + 1


HELD = [(kind, activation) for kind in ("saelens", "dictionary_learning") for activation in ACTIVATIONS]


@pytest.mark.parametrize(("kind", "activation"), [*HELD, ("sparsify", "topk")])
def test_an_sae_comes_back_as_it_went(tmp_path: Path, activation, kind):
    sae = some_sae(activation)
    write_sae(sae, tmp_path / "a", METADATA, kind)
    assert format_of(tmp_path / "a") == kind
    again, metadata = read_sae(tmp_path / "a")
    assert (metadata, again.activation, again.k) == (METADATA, activation, sae.k)
    exact = (kind, activation) != ("dictionary_learning", "jumprelu")  # b_dec is folded into b_enc and back
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0 if exact else 1e-6)


BY_FEATURE = {"encoder.weight": [18, 6], "encoder.bias": [18], "b_dec": [6]}
SAELENS = {"architecture": "jumprelu", "apply_b_dec_to_input": True}


@pytest.mark.parametrize(
    ("kind", "activation", "file", "shapes", "settings"),
    [
        ("saelens", "batchtopk", "sae_weights.safetensors",
         {"W_enc": [6, 18], "b_enc": [18], "W_dec": [18, 6], "b_dec": [6], "threshold": [18]}, SAELENS),
        ("dictionary_learning", "topk", "ae.pt",
         BY_FEATURE | {"decoder.weight": [6, 18], "k": [], "threshold": []}, {"heredity": METADATA}),
        ("sparsify", "topk", "sae.safetensors", BY_FEATURE | {"W_dec": [18, 6]}, {"num_latents": 18}),
    ],
)  # fmt: skip
def test_the_layout_is_what_each_library_writes(tmp_path: Path, kind, activation, file, shapes, settings):
    write_sae(some_sae(activation), tmp_path, METADATA, kind)
    path = tmp_path / file
    tensors = torch.load(path, weights_only=True) if kind == "dictionary_learning" else load_file(path)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == shapes
    (config,) = tmp_path.glob("*.json")
    written = json.loads(config.read_text())
    assert {name: written[name] for name in settings} == settings
    if kind == "saelens":
        assert written["metadata"]["sae_lens_version"] >= "6" and written["metadata"]["seed"] == 3


def edited(folder: Path, **changes) -> Path:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_an_encoder_that_does_not_subtract_b_dec_is_folded(tmp_path: Path):
    sae, x = some_sae("relu"), some_x()
    write_sae(sae, tmp_path, {})
    again, _ = read_sae(edited(tmp_path, apply_b_dec_to_input=False))
    torch.testing.assert_close(again.encode(x), (x @ sae.W_enc + sae.b_enc).relu(), rtol=1e-5, atol=1e-5)


def test_activations_scaled_by_decoder_norms_are_folded(tmp_path: Path):
    sae, x = some_sae("topk"), some_x()
    sae.W_dec *= torch.linspace(0.5, 2, 18)[:, None]
    write_sae(sae, tmp_path, {})
    again, _ = read_sae(edited(tmp_path, rescale_acts_by_decoder_norm=True))
    norms = sae.W_dec.norm(dim=1)
    scaled = sae.pre_acts(x) * norms
    top = scaled.topk(4)
    expected = torch.zeros_like(scaled).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(again.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(x), (expected / norms) @ sae.W_dec + sae.b_dec, rtol=1e-5, atol=1e-5)


def changed_weights(folder: Path, **changes) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous() for name, change in changes.items()}, path)


def test_a_topk_sae_from_before_saelens_6_is_topk_and_half_precision_is_read_as_float32(tmp_path: Path):
    write_sae(some_sae("relu"), tmp_path, {})
    changed_weights(tmp_path, **dict.fromkeys(("W_enc", "b_enc", "W_dec", "b_dec"), torch.Tensor.bfloat16))
    again, _ = read_sae(edited(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 7}))
    assert (again.activation, again.k, again.W_enc.dtype) == ("topk", 7, torch.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), r"cfg\.json is missing beside sae_weights"),
        (lambda f: (f / "cfg.json").write_text("{"), r"cfg\.json is not readable JSON"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"no"), r"sae_weights\.safetensors is damaged"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "holds no SAE"),
        (shutil.rmtree, "no such folder or file"),
        (
            lambda f: changed_weights(f, W_dec=lambda w: w.T),
            r"W_enc is \[6, 18\] and W_dec \[6, 18\].*one of them is turned",
        ),
        (lambda f: changed_weights(f, W_enc=lambda w: w.T), "W_dec .18, 6., and each must be the other's transpose"),
        (
            lambda f: edited(f, d_sae=999),
            r"cfg\.json: d_sae=999 and the weights beside it, sae_weights\.safe.*, have 18;",
        ),
        (lambda f: edited(f, d_in=7), r"d_in=7 and the weights beside it, sae_weights\.safetensors, have 6;"),
        (lambda f: changed_weights(f, b_enc=lambda b: b[:-1]), r"b_enc is \[17\] instead of \[18\]"),
        (lambda f: changed_weights(f, W_enc=lambda w: w * torch.nan), "W_enc holds NaN"),
        (lambda f: edited(f, architecture="gated"), "has no r_mag"),
        (lambda f: edited(f, architecture="onion"), "'onion' is not supported; give one of standard"),
        (lambda f: edited(f, normalize_activations="layer_norm"), "which no weights can hold; give an SAE of raw"),
        (lambda f: edited(f, normalize_activations="expected_average_only_in"), "add norm_scaling_factor = "),
        (lambda f: edited(f, k=99), "k=99 must be between 1 and 18"),
        (lambda f: edited(f, architecture="jumprelu"), "has no threshold"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message):
    write_sae(some_sae("topk"), tmp_path, {})
    damage(tmp_path)
    with pytest.raises(FormatError, match=message):
        read_sae(tmp_path)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"encoder.weight": Trap()}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    with pytest.raises(FormatError, match="damaged or not a file of weights"):
        read_sae(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_kinds_without_an_equal_are_refused(tmp_path: Path):
    for kind, message in (("sparsify", "sparsify holds topk SAEs only"), ("onnx", "choose one of saelens")):
        with pytest.raises(FormatError, match=message):
            write_sae(some_sae("relu"), tmp_path / "a", {}, kind)
    write_sae(some_sae("topk"), tmp_path / "b", {}, "sparsify")
    with pytest.raises(FormatError, match="transcoder"):
        read_sae(edited(tmp_path / "b", transcode=True))
    write_sae(some_sae("topk"), tmp_path / "c", {}, "dictionary_learning")
    (tmp_path / "c" / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(FormatError, match="'CrossCoder' is not supported"):
        read_sae(tmp_path / "c")


@pytest.mark.parametrize(
    ("kind", "table", "key"),
    [("saelens", None, "d_sae"), ("sparsify", None, "num_latents"), ("dictionary_learning", "trainer", "dict_size")],
)
def test_a_size_that_the_settings_leave_out_is_that_of_the_weights_and_another_is_refused(tmp_path, kind, table, key):
    write_sae(some_sae("topk"), tmp_path, {}, kind)
    (path,) = tmp_path.glob("*.json")
    settings = json.loads(path.read_text())
    (settings[table] if table else settings).pop(key)
    path.write_text(json.dumps(settings))
    assert read_sae(tmp_path)[0].d_sae == 18
    (settings[table] if table else settings)[key] = 99
    path.write_text(json.dumps(settings))
    with pytest.raises(FormatError, match=f"{key}=99 and the weights beside it, .* have 18"):
        read_sae(tmp_path)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saelens_loads_and_encodes_the_same(tmp_path: Path, activation):
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = some_sae(activation), some_x()
    write_sae(sae, tmp_path, METADATA)
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loaded(x), sae(x), rtol=1e-5, atol=1e-5)
    assert loaded.cfg.metadata["hook_name"] == METADATA["hook_name"]
    loaded.save_model(tmp_path / "again")
    again, metadata = read_sae(tmp_path / "again")
    assert (again.activation, again.k, metadata["seed"]) == (activation, sae.k, 3)
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=0, atol=0)
