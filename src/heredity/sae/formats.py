"""SAEs on disk: SAELens folders are native; dictionary_learning and sparsify are read and written.

| format              | files                              | what it holds                                           |
|---------------------|------------------------------------|---------------------------------------------------------|
| saelens             | cfg.json, sae_weights.safetensors  | every activation; batchtopk as a JumpReLU               |
| dictionary_learning | config.json, ae.pt                 | every activation                                        |
| sparsify            | cfg.json, sae.safetensors          | topk                                                    |

Our own facts (model, seed, tokens, λ, ...) travel as `metadata`: inside SAELens' own table of that name, and in a table
`heredity` of the other two. Pickles are read with torch's `weights_only` loader, which runs no code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from heredity.errors import reading
from heredity.sae.model import SAE, Activation
from heredity.study import RANKED

Format = Literal["saelens", "dictionary_learning", "sparsify"]

SAE_LENS_VERSION = "6.54.12"  # of the layout written; SAELens would convert anything below 6 on loading
OURS = "heredity"  # key of our own table in a settings file
ARCHITECTURES: dict[str, Activation] = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}  # SAELens' names
CLASSES: dict[str, Activation] = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk"}
CLASSES |= {"BatchTopKSAE": "batchtopk", "JumpReluAutoEncoder": "jumprelu"}  # dictionary_learning's names
MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")


class FormatError(ValueError):
    """A folder that holds no SAE we can read, or an SAE that a format cannot hold."""


def write_sae(sae: SAE, folder: Path, metadata: Mapping[str, Any], to: Format = "saelens") -> None:
    """Write the SAE with its metadata (JSON values) into folder. Raises FormatError when the format cannot hold it."""
    if to not in KINDS:
        raise FormatError(f"format {to!r} is not known; choose one of {', '.join(KINDS)}")
    weights, config, write, _ = KINDS[to]
    tensors, settings = write(sae, dict(metadata))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if to == "dictionary_learning":
        torch.save(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights)
    (folder / config).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_sae(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read an SAE of any of the formats, float32, on the CPU, with its metadata.

    Raises FormatError, naming the file and the way out, when files are missing or damaged, shapes do not fit together,
    weights are not finite, or `SAE` has no equal of its kind.
    """
    folder = Path(folder)
    weights, config, _, read = KINDS[format_of(folder)]
    path = folder / config
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path} is missing beside {weights}; copy the whole folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not readable JSON ({error}); copy it anew") from None
    if not isinstance(settings, dict):
        raise FormatError(f"{path} holds no table of settings; copy it anew")
    with reading(folder, "copy it anew, or give the folder of one SAE", FormatError):
        return read(_Tensors(folder / weights), path, settings)


def format_of(folder: Path) -> Format:
    """Which format a folder is in, by its file of weights. Raises FormatError when there is none."""
    for kind, (weights, *_) in KINDS.items():
        if (folder / weights).is_file():
            return kind
    names = ", ".join(weights for weights, *_ in KINDS.values())
    raise FormatError(f"{folder} holds no SAE (none of {names}); give the folder of one SAE")


class _Tensors:
    """Weights of one file, taken out one by one with their shape checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            pickled = path.suffix == ".pt"
            self.named = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
        except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise FormatError(f"{path} is damaged or not a file of weights ({reason}); copy it anew") from None
        if not isinstance(self.named, dict):
            raise FormatError(f"{path} holds no named weights; give a file written by the library's own save")

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor as float32; None in the shape stands for any size."""
        tensor = self.named.get(name)
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{self.path} has no {name} (it has {', '.join(sorted(self.named))}); copy it anew")
        if len(shape) != tensor.dim() or any(s not in (None, n) for s, n in zip(shape, tensor.shape, strict=True)):
            wanted = ["any" if s is None else s for s in shape]
            raise FormatError(f"{self.path}: {name} is {list(tensor.shape)} instead of {wanted}; check its format")
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{self.path}: {name} holds NaN or infinity; use a checkpoint from before it diverged")
        return tensor

    def matrices(self, enc: str, dec: str) -> tuple[Tensor, Tensor]:
        """Encoder and decoder, one of the shape of the other's transpose."""
        w_enc = self.take(enc, None, None)
        return w_enc, self.take(dec, *w_enc.T.shape)


def _sae(
    tensors: _Tensors, activation: Activation, k: object, w_enc: Tensor, w_dec: Tensor, b_enc: str, b_dec: str,
    centered: bool = True, threshold: Tensor | None = None
) -> SAE:  # fmt: skip
    d_in, d_sae = w_enc.shape
    if activation in RANKED and (not isinstance(k, int) or not 0 < k <= d_sae):
        raise FormatError(f"{tensors.path.parent}: k={k!r} must be between 1 and {d_sae}; repair its settings file")
    sae = SAE(d_in, d_sae, activation, k if isinstance(k, int) else None)
    sae.W_enc.copy_(w_enc)
    sae.W_dec.copy_(w_dec)
    sae.b_enc.copy_(tensors.take(b_enc, d_sae))
    sae.b_dec.copy_(tensors.take(b_dec, d_in))
    if not centered:  # x W + b = (x − b_dec) W + (b + b_dec W)
        sae.b_enc += (sae.b_dec.double() @ sae.W_enc.double()).float()
    if threshold is not None and sae.threshold is not None:
        # Activations are above 0 anyway, so a lower threshold (−1: never trained) means the same as 0.
        sae.threshold.copy_(threshold.clamp(min=0))
    return sae


def _to_saelens(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {name: getattr(sae, name) for name in MATRICES}
    architecture = {"relu": "standard", "topk": "topk"}.get(sae.activation, "jumprelu")
    ours = {"sae_lens_version": SAE_LENS_VERSION, OURS: {"activation": sae.activation, "k": sae.k}}
    settings: dict[str, Any] = {"architecture": architecture, "d_in": sae.d_in, "d_sae": sae.d_sae}
    settings |= {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    settings |= {"normalize_activations": "none", "reshape_activations": "none", "metadata": metadata | ours}
    if architecture == "topk":
        settings |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.expand(sae.d_sae)
    return tensors, settings


def _from_saelens(tensors: _Tensors, path: Path, settings: dict[str, Any]) -> tuple[SAE, dict[str, Any]]:
    metadata = dict(settings.get("metadata") or {})
    ours = metadata.pop(OURS, None) or {}
    metadata.pop("sae_lens_version", None)
    architecture, k = settings.get("architecture", "standard"), settings.get("k")
    if architecture == "standard" and settings.get("activation_fn_str", "relu") == "topk":  # before SAELens 6
        architecture, k = "topk", (settings.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise FormatError(f"{path}: architecture {architecture!r} is not supported; give one of {names}")
    for key in ("normalize_activations", "reshape_activations"):
        if (value := settings.get(key)) not in (None, False, "none"):
            fold = "each input is divided by its own norm, which no weights can hold; give an SAE of raw activations"
            fold = fold if value == "layer_norm" else "fold it into the weights with SAELens"
            raise FormatError(f"{path}: {key}={value!r} is not supported; {fold}")
    activation = ARCHITECTURES[architecture]
    matrices = tensors.matrices("W_enc", "W_dec")
    threshold = tensors.take("threshold", len(matrices[1])) if activation == "jumprelu" else None
    if ours.get("activation") == "batchtopk" and threshold is not None and bool((threshold == threshold[0]).all()):
        activation, k, threshold = "batchtopk", ours.get("k"), threshold[0]
    centered = bool(settings.get("apply_b_dec_to_input", True))
    sae = _sae(tensors, activation, k, *matrices, "b_enc", "b_dec", centered, threshold)
    if activation == "topk" and settings.get("rescale_acts_by_decoder_norm"):
        norms = sae.W_dec.norm(dim=1)
        sae.W_enc *= norms
        sae.b_enc *= norms
        sae.W_dec /= norms[:, None].clamp_min(1e-30)
    return sae, metadata


def _to_dictionary_learning(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if sae.activation == "jumprelu":
        tensors: dict[str, Tensor] = {name: getattr(sae, name) for name in MATRICES}
        # Its encoder does not subtract b_dec: (x − b_dec) W + b = x W + (b − b_dec W)
        tensors["b_enc"] = (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()
    else:
        tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "decoder.weight": sae.W_dec.T}
        tensors["bias" if sae.activation == "relu" else "b_dec"] = sae.b_dec
    name = next(name for name, activation in CLASSES.items() if activation == sae.activation)
    trainer = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.d_sae}
    if sae.k is not None:
        tensors |= {"k": torch.tensor(sae.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        trainer["k"] = sae.k
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    trainer |= {"lm_name": metadata.get("model_name"), "submodule_name": metadata.get("hook_name")}
    return tensors, {"trainer": trainer, OURS: metadata}


def _from_dictionary_learning(tensors: _Tensors, path: Path, settings: dict[str, Any]) -> tuple[SAE, dict[str, Any]]:
    trainer = settings.get("trainer") or {}
    name = trainer.get("dict_class")
    if name not in CLASSES:
        raise FormatError(f"{path}: dict_class {name!r} is not supported; give one of {', '.join(CLASSES)}")
    metadata = dict(settings.get(OURS) or {})
    activation = CLASSES[name]
    if activation == "jumprelu":
        matrices = tensors.matrices("W_enc", "W_dec")
        threshold = tensors.take("threshold", len(matrices[1]))
        return _sae(tensors, activation, None, *matrices, "b_enc", "b_dec", False, threshold), metadata
    w_enc, w_dec = tensors.matrices("encoder.weight", "decoder.weight")
    b_dec = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
    k = int(tensors.take("k")) if "k" in tensors.named else trainer.get("k")
    threshold = tensors.take("threshold") if activation == "batchtopk" else None
    centered = name != "AutoEncoderNew"
    return _sae(tensors, activation, k, w_enc.T, w_dec.T, "encoder.bias", b_dec, centered, threshold), metadata


def _to_sparsify(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if sae.activation != "topk":
        raise FormatError(f"sparsify holds topk SAEs only, this one is {sae.activation}; use saelens")
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    settings = {"activation": "topk", "expansion_factor": max(1, sae.d_sae // sae.d_in), "normalize_decoder": True}
    settings |= {"num_latents": sae.d_sae, "k": sae.k, "multi_topk": False, "skip_connection": False}
    return tensors, settings | {"transcode": False, "d_in": sae.d_in, OURS: metadata}


def _from_sparsify(tensors: _Tensors, path: Path, settings: dict[str, Any]) -> tuple[SAE, dict[str, Any]]:
    if settings.get("activation", "topk") != "topk":
        raise FormatError(f"{path}: activation {settings['activation']!r} is not supported; only topk is")
    if settings.get("transcode") or settings.get("skip_connection") or "W_skip" in tensors.named:
        raise FormatError(f"{path} is a transcoder or has a skip connection; give an autoencoder")
    w_dec = tensors.take("W_dec", None, None)
    w_enc = tensors.take("encoder.weight", *w_dec.shape).T
    sae = _sae(tensors, "topk", settings.get("k"), w_enc, w_dec, "encoder.bias", "b_dec")
    return sae, dict(settings.get(OURS) or {})


# The file of weights, by which a format is recognized, the file of settings beside it, and what writes and reads them.
KINDS: dict[Format, tuple[str, str, Callable[..., Any], Callable[..., Any]]] = {
    "saelens": ("sae_weights.safetensors", "cfg.json", _to_saelens, _from_saelens),
    "dictionary_learning": ("ae.pt", "config.json", _to_dictionary_learning, _from_dictionary_learning),
    "sparsify": ("sae.safetensors", "cfg.json", _to_sparsify, _from_sparsify),
}
