"""Every format gives back the SAE it was given, refuses damage by name, and SAELens reads what we write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heredity.sae.formats import FormatError, format_of, read_sae, write_sae
from heredity.sae.model import SAE, new_sae

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
METADATA = {"hook_name": "blocks.0.mlp.hook_post", "model_name": "lua", "seed": 3, "l1_coefficient": 3e-4}


def some_sae(activation) -> SAE:
    generator = torch.Generator().manual_seed(0)
    sae = new_sae(6, 18, activation, 4, generator)
    sae.W_enc += 0.1 * torch.randn(6, 18, generator=generator)
    sae.b_enc.copy_(0.1 * torch.randn(18, generator=generator))
    sae.b_dec.copy_(torch.randn(6, generator=generator))
    assert (sae.threshold is None) == (activation in ("relu", "topk"))
    if sae.threshold is not None and activation == "batchtopk":
        sae.threshold.fill_(0.3)
    elif sae.threshold is not None:
        sae.threshold.copy_(0.2 * torch.rand(18, generator=generator))
    return sae


def some_x() -> torch.Tensor:
    return 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(5)) + 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["saelens", "dictionary_learning", "sparsify"])
def test_an_sae_comes_back_as_it_went(tmp_path: Path, activation, kind):
    if kind == "sparsify" and activation != "topk":
        pytest.skip("sparsify holds topk only")
    sae = some_sae(activation)
    write_sae(sae, tmp_path / "a", METADATA, kind)
    assert format_of(tmp_path / "a") == kind
    again, metadata = read_sae(tmp_path / "a")
    assert metadata == METADATA
    assert (again.activation, again.k) == (activation, sae.k)
    exact = (kind, activation) != ("dictionary_learning", "jumprelu")  # b_dec is folded into b_enc and back
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conversion_there_and_back_keeps_activations(tmp_path: Path, activation):
    sae, x = some_sae(activation), some_x()
    write_sae(sae, tmp_path / "lens", METADATA)
    for source, target, to in (("lens", "dl", "dictionary_learning"), ("dl", "back", "saelens")):
        read, metadata = read_sae(tmp_path / source)
        write_sae(read, tmp_path / target, metadata, to)
    again, metadata = read_sae(tmp_path / "back")
    assert metadata == METADATA
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)


def test_the_saelens_layout_is_what_saelens_writes(tmp_path: Path):
    write_sae(some_sae("batchtopk"), tmp_path, METADATA)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    assert settings["architecture"] == "jumprelu" and settings["apply_b_dec_to_input"] is True
    assert settings["metadata"]["sae_lens_version"] >= "6" and settings["metadata"]["seed"] == 3
    shapes = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": [6, 18], "b_enc": [18], "W_dec": [18, 6], "b_dec": [6], "threshold": [18]}


def test_dictionary_learning_keeps_the_encoder_by_feature_and_sparsify_both_matrices(tmp_path: Path):
    write_sae(some_sae("topk"), tmp_path, {}, "dictionary_learning")
    shapes = {name: list(tensor.shape) for name, tensor in torch.load(tmp_path / "ae.pt", weights_only=True).items()}
    shared = {"encoder.weight": [18, 6], "encoder.bias": [18], "b_dec": [6]}
    assert shapes == shared | {"decoder.weight": [6, 18], "k": [], "threshold": []}
    write_sae(some_sae("topk"), tmp_path, {}, "sparsify")
    shapes = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "sae.safetensors").items()}
    assert shapes == shared | {"W_dec": [18, 6]}
    assert json.loads((tmp_path / "cfg.json").read_text())["num_latents"] == 18


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


def test_a_topk_sae_from_before_saelens_6_is_topk(tmp_path: Path):
    write_sae(some_sae("relu"), tmp_path, {})
    again, _ = read_sae(edited(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 7}))
    assert (again.activation, again.k) == ("topk", 7)


def test_half_precision_weights_are_read_as_float32(tmp_path: Path):
    write_sae(some_sae("relu"), tmp_path, {})
    path = tmp_path / "sae_weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert read_sae(tmp_path)[0].W_enc.dtype == torch.float32


def changed_weights(folder: Path, **changes) -> Path:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path)
    return folder


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), r"cfg\.json is missing beside sae_weights"),
        (lambda f: (f / "cfg.json").write_text("{"), r"cfg\.json is not readable JSON"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"no"), r"sae_weights\.safetensors is damaged"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "holds no SAE"),
        (lambda f: changed_weights(f, W_dec=lambda w: w.T), r"W_dec is \[6, 18\] instead of \[18, 6\]"),
        (lambda f: changed_weights(f, b_enc=lambda b: b[:-1]), r"b_enc is \[17\] instead of \[18\]"),
        (lambda f: changed_weights(f, W_enc=with_nan), "W_enc holds NaN"),
        (lambda f: edited(f, architecture="gated"), "'gated' is not supported; give one of standard"),
        (lambda f: edited(f, normalize_activations="layer_norm"), "fold it into the weights"),
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
    with pytest.raises(FormatError, match="sparsify holds topk SAEs only"):
        write_sae(some_sae("relu"), tmp_path / "a", {}, "sparsify")
    with pytest.raises(FormatError, match="choose one of saelens"):
        write_sae(some_sae("relu"), tmp_path / "a", {}, "onnx")  # type: ignore[arg-type]
    write_sae(some_sae("topk"), tmp_path / "b", {}, "sparsify")
    with pytest.raises(FormatError, match="transcoder"):
        read_sae(edited(tmp_path / "b", transcode=True))
    write_sae(some_sae("topk"), tmp_path / "c", {}, "dictionary_learning")
    (tmp_path / "c" / "config.json").write_text(json.dumps({"trainer": {"dict_class": "GatedAutoEncoder"}}))
    with pytest.raises(FormatError, match="'GatedAutoEncoder' is not supported"):
        read_sae(tmp_path / "c")


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
    assert (again.activation, again.k) == (activation, sae.k)
    assert metadata["seed"] == 3
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=0, atol=0)
