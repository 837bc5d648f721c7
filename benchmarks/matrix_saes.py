"""SAE formats × kinds: each written by its own library (or by hand, in its layout), read by us, and compared.

Every cell is `right` (activations and reconstruction as the library computes them), `refused` by the name of what we
have no equal of, or WRONG; the exit code counts the wrong ones. SAELens is needed (`pip install 'heredity[saes]'`);
what dictionary_learning and sparsify compute is written out here.

    python benchmarks/matrix_saes.py            # a table;  --json for one object
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from paired import peer
from safetensors.torch import save_file
from torch import Tensor

from heredity.sae.formats import FormatError, read_sae, write_sae
from heredity.sae.model import new_sae

D, S, K = 24, 64, 5
Computes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x [n, d_in] -> activations [n, d_sae] and reconstruction [n, d_in], as the library computes them."""


class Cell(NamedTuple):
    """One kind of SAE in one format."""

    format: str
    kind: str
    make: Callable[[Path], Computes | str | None]
    """Writes the SAE into a folder; what its library computes with it, or the word that a refusal has to name."""


def weights(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    w_dec = torch.randn(S, D, generator=g) * torch.linspace(0.5, 1.5, S)[:, None] / D**0.5
    biases = {"b_enc": 0.2 * torch.randn(S, generator=g), "b_dec": 0.3 * torch.randn(D, generator=g)}
    return {"W_enc": torch.randn(D, S, generator=g) / D**0.5, "W_dec": w_dec, **biases}


def inputs() -> Tensor:
    return 2 * torch.randn(400, D, generator=torch.Generator().manual_seed(9)) + 0.5


# SAELens ------------------------------------------------------------------------------------------------------------


def computes(sae: Any, factor: float = 1.0) -> Computes:
    return lambda x: (sae.encode(factor * x), sae(factor * x) / factor)


def filled(name: str, **settings: Any) -> Any:
    """An SAE of a class of SAELens, with weights; thresholds and gates that matter."""
    lens = peer("sae_lens")
    config = getattr(lens, f"{name}Config")(d_in=D, d_sae=S, **settings)
    sae, own = getattr(lens, name)(config), weights()
    g = torch.Generator().manual_seed(3)
    own |= {"threshold": torch.rand(S, generator=g), "r_mag": 0.3 * torch.randn(S, generator=g)}
    own |= {"b_mag": 0.2 * torch.randn(S, generator=g), "b_gate": 0.2 * torch.randn(S, generator=g)}
    own |= {"topk_threshold": torch.tensor(0.7)}
    with torch.no_grad():
        for key, tensor in sae.state_dict().items():
            if key in own and tensor.shape == own[key].shape:
                tensor.copy_(own[key])
    return sae


def inference(name: str, folder: Path, **settings: Any) -> Computes:
    sae = filled(name, **settings)
    sae.save_model(folder)
    return computes(sae)


def training(name: str, folder: Path, **settings: Any) -> Computes:
    """A training checkpoint; its reference is the SAE that SAELens makes of it for inference."""
    sae = filled(name, **settings)
    with tempfile.TemporaryDirectory() as finished:
        sae.save_inference_model(finished)
        reference = peer("sae_lens").SAE.load_from_disk(finished)
    filled(name, **settings).save_model(folder)
    return computes(reference)


def refused(word: str, name: str, folder: Path, **settings: Any) -> str:
    filled(name, **settings).save_model(folder)
    return word


def edited(folder: Path, name: str, changes: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Any:
    """An SAE saved by SAELens whose cfg.json is changed; what SAELens reads of it, None where it reads nothing."""
    filled(name).save_model(folder)
    path = folder / "cfg.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("metadata", *changes)}
    path.write_text(json.dumps(settings | {key: value for key, value in changes.items() if value is not None}))
    if tensors:
        save_file(weights() | tensors, folder / "sae_weights.safetensors")


def older(folder: Path, **changes: Any) -> Computes:
    """Settings as before version 6."""
    edited(folder, "StandardSAE", {"architecture": None, "hook_point": "blocks.3.hook_resid_pre"} | changes)
    return computes(peer("sae_lens").SAE.load_from_disk(folder))


def known_factor(folder: Path) -> Computes:
    edited(folder, "JumpReLUSAE", {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.4})
    return computes(filled("JumpReLUSAE"), 0.4)


def checkpoint_factor(folder: Path) -> Computes:
    settings = {"k": 4.0, "normalize_activations": "expected_average_only_in", "rescale_acts_by_decoder_norm": True}
    sae = filled("BatchTopKTrainingSAE", **settings)
    sae.save_model(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4}))
    sae.fold_activation_norm_scaling_factor(0.4)
    with tempfile.TemporaryDirectory() as finished:
        sae.save_inference_model(finished)
        return computes(peer("sae_lens").SAE.load_from_disk(finished))


def centered(folder: Path) -> Computes:
    metadata = peer("sae_lens.saes.sae").SAEMetadata
    place = {"hook_name": "blocks.0.hook_resid_pre", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    sae = filled("TopKSAE", k=K, metadata=metadata(**place))
    sae.save_model(folder)

    def of_centered(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(1, keepdim=True)
        return sae.encode(x - mean), sae(x - mean) + mean

    return of_centered


def tensor_factor(folder: Path) -> Computes:
    """`scaling_factor` of fine-tuned SAEs before version 6: activations are multiplied by it before decoding."""
    factor = torch.linspace(0.5, 2, S)
    edited(folder, "StandardSAE", {"finetuning_scaling_factor": True}, {"scaling_factor": factor})
    sae = filled("StandardSAE")
    return lambda x: (sae.encode(x), sae.decode(sae.encode(x) * factor))


def of_saelens() -> Iterator[Cell]:
    cell, lens = partial(Cell, "saelens"), peer("sae_lens.saes.sae").SAEMetadata
    for name, settings in (("StandardSAE", {}), ("TopKSAE", {"k": K}), ("JumpReLUSAE", {}), ("GatedSAE", {})):
        yield cell(name, partial(inference, name, **settings))
        yield cell(f"{name}, b_dec not subtracted", partial(inference, name, apply_b_dec_to_input=False, **settings))
    yield cell("TopKSAE, by decoder norms", partial(inference, "TopKSAE", k=K, rescale_acts_by_decoder_norm=True))
    head = lens(hook_name="blocks.0.attn.hook_z", hook_head_index=1)
    yield cell("StandardSAE of one head", partial(inference, "StandardSAE", metadata=head))
    for name, settings in (
        ("StandardTrainingSAE", {}), ("TopKTrainingSAE", {"k": K}), ("JumpReLUTrainingSAE", {}),
        ("GatedTrainingSAE", {}), ("BatchTopKTrainingSAE", {"k": 4.0}), ("BatchTopKTrainingSAE", {"k": 4.5}),
        ("MatryoshkaBatchTopKTrainingSAE", {"k": 4.0, "matryoshka_widths": [16, S]}),
        ("BatchTopKTrainingSAE", {"k": 4.0, "rescale_acts_by_decoder_norm": False}),
    ):  # fmt: skip
        told = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "matryoshka_widths")
        yield cell(f"{name} {told}".strip(), partial(training, name, **settings))
    yield cell("expected_average_only_in, factor in cfg.json", known_factor)
    yield cell("expected_average_only_in, factor of a checkpoint", checkpoint_factor)
    yield cell("center_writing_weights", centered)
    yield cell("older: finetuning scaling_factor", tensor_factor)
    for key in ("activation_fn", "activation_fn_str"):
        yield cell(f"older: {key} topk", partial(older, **{key: "topk", "activation_fn_kwargs": {"k": K}}))
        yield cell(f"older: {key} relu", partial(older, **{key: "relu"}))
    topk = {"architecture": "topk", "activation_fn_kwargs": {"k": K}}
    yield cell("older: architecture topk, k in kwargs", partial(older, **topk))
    normed, batch = partial(refused, "normalize_activations"), "BatchTopKTrainingSAE"
    for value in ("layer_norm", "constant_norm_rescale", "covariance_whitening", "expected_average_only_in"):
        yield cell(f"normalize_activations {value}", partial(normed, "StandardSAE", normalize_activations=value))
    others = {"Transcoder": {}, "SkipTranscoder": {}, "JumpReLUTranscoder": {}, "JumpReLUSkipTranscoder": {}}
    others = {name: {"d_out": D, "apply_b_dec_to_input": False} for name in others} | {
        "AbsTopKSAE": {"k": K},
        "MatchingPursuitSAE": {},
    }
    others |= {"TemporalSAE": {"n_heads": 2, "bottleneck_factor": 2, "kval_topk": K}}
    for name, settings in others.items():
        yield cell(name, partial(refused, "architecture", name, **settings))

    def unlearned(folder: Path) -> str:
        peer("sae_lens").BatchTopKTrainingSAE(
            peer("sae_lens").BatchTopKTrainingSAEConfig(d_in=D, d_sae=S, k=4.0)
        ).save_model(folder)
        return "topk_threshold"

    def changed(word: str, folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> str:
        edited(folder, "StandardSAE", changes, tensors)
        return word

    yield cell(f"{batch}, never trained", unlearned)
    for key in ("activation_fn", "activation_fn_str", "activation", "architecture"):
        yield cell(f"{key} tanh-relu", partial(changed, "tanh-relu", **{key: "tanh-relu"}))
    yield cell("a key nobody knows", partial(changed, "input_rotation", input_rotation="hadamard"))
    yield cell("standard with W_skip", partial(changed, "W_skip", tensors={"W_skip": torch.eye(D)}))
    yield cell("standard with threshold", partial(changed, "threshold", tensors={"threshold": torch.ones(S)}))
    places = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
    yield cell("standard with hook_name_out", partial(changed, "hook_name_out", **places))


# dictionary_learning and sparsify -----------------------------------------------------------------------------------


def dictionary(name: str, folder: Path, **more: Any) -> Computes | str:
    """A folder in the layout of dictionary-learning 0.1.0, with what its class computes."""
    w, g = weights(), torch.Generator().manual_seed(3)
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    raw = {"W_enc": w["W_enc"], "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    threshold = more.pop("threshold", 0.7)
    batch = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    each, gate = torch.rand(S, generator=g), [0.3 * torch.randn(S, generator=g) for _ in range(3)]
    subtracted = lambda x: (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]  # noqa: E731
    plain = lambda x: x @ w["W_enc"] + w["b_enc"]  # noqa: E731

    def gated(x: Tensor) -> Tensor:
        pre = (x - w["b_dec"]) @ w["W_enc"]
        return (pre + gate[1] > 0) * (gate[0].exp() * pre + gate[2]).relu()

    def topk(x: Tensor) -> Tensor:
        top = subtracted(x).relu().topk(K)
        return torch.zeros(len(x), S).scatter(1, top.indices, top.values)

    def above(pre: Callable[[Tensor], Tensor], cut: Any, x: Tensor) -> Tensor:
        return pre(x).relu() * (pre(x) > cut)

    gates = {"r_mag": gate[0], "gate_bias": gate[1], "mag_bias": gate[2], "decoder_bias": w["b_dec"]}
    without = {key: linear[key] for key in ("encoder.weight", "decoder.weight")}
    kinds: dict[str, tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]] = {
        "AutoEncoder": (linear | {"bias": w["b_dec"]}, partial(above, subtracted, 0)),
        "AutoEncoderNew": (linear | {"decoder.bias": w["b_dec"]}, partial(above, plain, 0)),
        "AutoEncoderTopK": (linear | {"b_dec": w["b_dec"]} | batch, topk),
        "BatchTopKSAE": (linear | {"b_dec": w["b_dec"]} | batch, partial(above, subtracted, threshold)),
        "MatryoshkaBatchTopKSAE": (
            raw | batch | {"group_sizes": torch.tensor([16, S - 16])}, partial(above, subtracted, threshold)
        ),
        "JumpReluAutoEncoder": (raw | {"threshold": each}, partial(above, plain, each)),
        "GatedAutoEncoder": (without | gates, gated),
    }  # fmt: skip
    tensors, acts = kinds.get(name, kinds["AutoEncoder"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": S, "submodule_name": "resid_post_layer_3"}
    trainer |= {"lm_name": "tiny", "layer": 3, "lr": 1e-3, "steps": 10, "k": K, "trainer_class": "Trainer"} | more
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}}))
    return lambda x: (acts(x), acts(x) @ w["W_dec"] + w["b_dec"])


def sparsify(folder: Path, **more: Any) -> Computes:
    """A folder in the layout of eai-sparsify 1.3.3, with what its SparseCoder computes."""
    w = weights()
    place = folder / "layers.3.mlp"
    place.mkdir(parents=True)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, place / "sae.safetensors")
    settings = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": S, "k": K}
    settings |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}
    (place / "cfg.json").write_text(json.dumps(settings | more))

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        top = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().topk(K)
        acts = torch.zeros(len(x), S).scatter(1, top.indices, top.values)
        return acts, acts @ w["W_dec"] + w["b_dec"]

    return both


def of_others() -> Iterator[Cell]:
    cell = partial(Cell, "dictionary_learning")
    names = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    for name in (*names, "JumpReluAutoEncoder", "GatedAutoEncoder"):
        yield cell(name, partial(dictionary, name))

    def told(word: str, make: Callable[[Path], Any], folder: Path) -> str:
        make(folder)
        return word

    yield cell(
        "BatchTopKSAE, threshold -1", partial(told, "threshold", partial(dictionary, "BatchTopKSAE", threshold=-1.0))
    )
    yield cell("CrossCoder", partial(told, "CrossCoder", partial(dictionary, "CrossCoder")))
    yield cell("a key nobody knows", partial(told, "rotation", partial(dictionary, "AutoEncoder", rotation="hadamard")))
    yield Cell("sparsify", "topk", sparsify)
    for key, value in (("activation", "groupmax"), ("transcode", True), ("skip_connection", True), ("signed", True)):
        yield Cell("sparsify", f"{key} {value}", partial(told, key, partial(sparsify, **{key: value})))


# Published families -------------------------------------------------------------------------------------------------


def by_loader(name: str, root: Path, repo: str, folder: str, factor: float | None = None, **sizes: Any) -> Computes:
    """What SAELens makes of files of a repository that lie below `root`."""
    loaders, lens = peer("sae_lens.loading.pretrained_sae_loaders"), peer("sae_lens.saes.sae").SAE

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        return str(root / repo_id.split("/")[-1] / (subfolder or "") / filename)

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda *_: {"w_enc": [D, S], "w_dec": [S, D]}
    overrides = {"d_in": D, "d_sae": S, "dtype": "float32"} | sizes
    config, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[name](repo, folder, "cpu", False, overrides)
    config = loaders.handle_config_defaulting(config)
    sae = lens.from_dict(config | {"normalize_activations": "none"})
    sae.load_state_dict(state)
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    return computes(sae)


def gemma_scope(folder: Path) -> Computes:
    place = folder / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    place.mkdir(parents=True)
    arrays = weights() | {"threshold": torch.rand(S, generator=torch.Generator().manual_seed(3))}
    np.savez(place / "params.npz", **{key: value.numpy() for key, value in arrays.items()})
    return by_loader("gemma_2", folder, "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")


def gemma_scope_2(folder: Path, **changes: Any) -> Computes:
    place = folder / "gemma-scope-2-1b-pt/resid_post/layer_5_width_16k_l0_small"
    place.mkdir(parents=True)
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    tensors = {names[key]: value for key, value in weights().items()}
    save_file(tensors | {"threshold": torch.rand(S)}, place / "params.safetensors")
    hook = "model.layers.5.output"
    settings = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": S, "model_name": "gemma-v3-1b-pt"}
    settings |= {"architecture": "jump_relu", "l0": 10, "affine_connection": False, "type": "sae"} | changes
    (place / "config.json").write_text(json.dumps(settings))
    at = "resid_post/layer_5_width_16k_l0_small"
    return by_loader("gemma_3", folder, "google/gemma-scope-2-1b-pt", at)


def llama_scope(folder: Path) -> Computes:
    at, w = "Llama3_1-8B-Base-L5R-8x", weights()
    place = folder / "Llama3_1-8B-Base-LXR-8x" / at
    (place / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
    tensors |= {"decoder.weight": w["W_dec"].T}
    save_file({key: value.contiguous() for key, value in tensors.items()}, place / "checkpoints/final.safetensors")
    hook = "blocks.5.hook_resid_post"
    settings = {"d_model": D, "d_sae": S, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "dtype": "torch.bfloat16"}
    settings |= {"hook_point_in": hook, "hook_point_out": hook, "norm_activation": "dataset-wise", "use_ddp": False}
    settings |= {"dataset_average_activation_norm": {"in": 11.0, "out": 11.0}, "expansion_factor": 8}
    (place / "hyperparams.json").write_text(json.dumps(settings))
    return by_loader("llama_scope", folder, "fnlp/Llama3_1-8B-Base-LXR-8x", at, factor=D**0.5 / 11.0)


def qwen_scope(folder: Path) -> Computes:
    name, w = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", weights()
    (folder / name).mkdir(parents=True)
    tensors = w | {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}
    torch.save(tensors, folder / name / "layer3.sae.pt")
    return by_loader("qwen_scope", folder, f"Qwen/{name}", "layer3.sae.pt")


def released(folder: Path) -> Computes:
    """The first published SAEs of GPT-2, whose release says center_writing_weights; the hub is a folder here."""
    place = folder / "GPT2-Small-SAEs-Reformatted/blocks.0.hook_resid_pre"
    edited(place, "StandardSAE", {"architecture": None, "hook_point": "blocks.0.hook_resid_pre"})
    loaders, root = peer("sae_lens.loading.pretrained_sae_loaders"), folder
    missing = peer("huggingface_hub.utils").EntryNotFoundError

    def local(repo_id: str, filename: str, **_: Any) -> str:
        path = root / repo_id.split("/")[-1] / filename
        if not path.is_file():
            raise missing(filename)
        return str(path)

    loaders.hf_hub_download = local
    sae = filled("StandardSAE")

    def of_centered(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(1, keepdim=True)
        return sae.encode(x - mean), sae(x - mean) + mean

    return of_centered


def of_families() -> Iterator[Cell]:
    yield Cell("gemma_scope", "jumprelu", gemma_scope)
    yield Cell("gemma_scope_2", "jumprelu", gemma_scope_2)

    def transcoder(folder: Path) -> str:
        gemma_scope_2(folder, type="transcoder")
        return "type"

    yield Cell("gemma_scope_2", "transcoder", transcoder)
    yield Cell("llama_scope", "jumprelu, scaled", llama_scope)
    yield Cell("qwen_scope", "topk", qwen_scope)

    yield Cell("saelens:RELEASE/ID", "gpt2-small-res-jb", released)

    def several(folder: Path) -> str:
        for name in ("a", "b"):
            filled("StandardSAE").save_model(folder / name)
        return str(folder / "b")

    yield Cell("a folder of several", "", several)


# What we write ------------------------------------------------------------------------------------------------------


def written(activation: Any, folder: Path) -> Computes:
    """Ours, read by SAELens."""
    sae = new_sae(D, S, activation, K, torch.Generator().manual_seed(1))
    if sae.threshold is not None:
        sae.threshold.fill_(0.4)
    write_sae(sae, folder, {"hook_name": "blocks.0.hook_resid_pre"})
    return computes(peer("sae_lens").SAE.load_from_disk(folder))


def of_ours() -> Iterator[Cell]:
    for activation in ("relu", "topk", "batchtopk", "jumprelu"):
        yield Cell("written by us", activation, partial(written, activation))


def judged(cell: Cell) -> dict[str, Any]:
    """The row of a cell: what came of it, with the largest differences and the refusal."""
    row = {"format": cell.format, "kind": cell.kind, "acts": None, "support": None, "x_hat": None, "said": ""}
    with tempfile.TemporaryDirectory() as folder:
        expected = cell.make(Path(folder) / "sae")
        files = [one for one in Path(folder).rglob("*") if one.suffix in (".safetensors", ".pt", ".npz")]
        read: Path | str = Path(folder) / "sae" if len(files) != 1 else files[0]
        if cell.format.startswith("saelens:"):
            read = f"saelens:{cell.kind}/blocks.0.hook_resid_pre"
        try:
            sae, metadata = read_sae(read)
        except FormatError as error:
            named = isinstance(expected, str) and expected in str(error)
            said = str(error).replace(f"{folder}/", "")
            return row | {"outcome": "refused" if named else "WRONG", "said": said}
    if isinstance(expected, str) or expected is None:
        return row | {"outcome": "WRONG", "said": f"read as {sae.activation}; {expected} should be named"}
    x = inputs()
    acts, x_hat = (one.detach() for one in expected(x))
    difference, back = float((sae.encode(x) - acts).abs().max()), float((sae(x) - x_hat).abs().max())
    same = bool(((sae.encode(x) > 0) == (acts > 0)).all())
    right = difference < 1e-4 and back < 1e-4 and same
    said = " ".join(str(metadata.get(key)) for key in ("hook_name", "model_name") if metadata.get(key))
    return row | {
        "outcome": "right" if right else "WRONG",
        "acts": difference,
        "support": same,
        "x_hat": back,
        "said": said,
    }


def main() -> int:
    """Print the matrix; the number of wrong cells."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rows = [judged(cell) for cells in (of_saelens, of_others, of_families, of_ours) for cell in cells()]
    if "--json" in sys.argv:
        print(json.dumps({"cells": rows}))
    else:
        for row in rows:
            figures = "" if row["acts"] is None else f"{row['acts']:8.1e} {row['x_hat']:8.1e} {row['support']!s:5}"
            print(f"{row['outcome']:8} {row['format']:20} {row['kind']:52} {figures:24} {row['said'][:90]}")
    wrong = sum(row["outcome"] == "WRONG" for row in rows)
    right, refusals = (sum(row["outcome"] == what for row in rows) for what in ("right", "refused"))
    print(f"{len(rows)} cells: {right} right, {refusals} refused by name, {wrong} wrong", file=sys.stderr)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
