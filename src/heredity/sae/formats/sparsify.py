"""EleutherAI's sparsify: cfg.json and sae.safetensors in a folder named after the module; topk.

Facts of eai-sparsify 1.3.3. A run's config.json, one folder up, names the model, the context and the side of modules.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from heredity.sae.formats import folds
from heredity.sae.formats.contents import FormatError, Settings, Tensors, keys
from heredity.sae.formats.places import place_of
from heredity.sae.model import SAE

OURS = "heredity"  # key of our own table
# Say how the SAE was made: sizes (the tensors have them), initialization and losses.
SILENT = keys("expansion_factor normalize_decoder num_latents multi_topk d_in dtype")


def write(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings. Raises FormatError for another activation than topk."""
    if sae.activation != "topk":
        raise FormatError(f"sparsify holds topk SAEs only, this one is {sae.activation}; use saelens")
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    settings = {"activation": "topk", "expansion_factor": max(1, sae.d_sae // sae.d_in), "normalize_decoder": True}
    settings |= {"num_latents": sae.d_sae, "k": sae.k, "multi_topk": False, "skip_connection": False}
    return tensors, settings | {"transcode": False, "d_in": sae.d_in, OURS: metadata}


def read(tensors: Tensors, settings: Settings) -> tuple[SAE, dict[str, Any]]:
    """The SAE and its metadata. Raises FormatError for transcoders, skip connections and other activations."""
    settings.choice("activation", {"topk": "topk"}, "topk")  # `groupmax` takes the largest of k groups
    for key in ("transcode", "skip_connection", "signed"):
        if settings.get(key):
            kind = "of an SAE with negative activations" if key == "signed" else "of a transcoder"
            settings.refuse(key, f"is the setting {kind}; give an autoencoder")
    w_dec = tensors.take("W_dec", None, None)
    w_enc = tensors.take("encoder.weight", *w_dec.shape).T
    settings.check_sizes(tensors.path, {"num_latents": w_dec.shape[0], "d_in": w_dec.shape[1]})
    sae = folds.new(tensors, "topk", settings.get("k"), w_enc, w_dec, "encoder.bias", "b_dec")
    metadata = dict(settings.table(OURS).values)
    settings.refuse_rest(SILENT)
    tensors.refuse_rest("an autoencoder of sparsify")
    return sae, metadata or _made_for(settings)


def _made_for(settings: Settings) -> dict[str, Any]:
    """Place and model by the folder's name and the run's config.json beside it, as far as they say so."""
    folder, metadata = settings.path.parent, dict[str, Any]()
    run = Settings.read(folder.parent / "config.json") if (folder.parent / "config.json").is_file() else None
    side = run.get("hook_mode", default="output") if run else "output"
    if side == "transcode" or (run and run.get("transcode")):
        raise FormatError(f"{folder.parent / 'config.json'}: hook_mode={side!r} makes transcoders; give an autoencoder")
    if (place := place_of(folder.name, side=side)) != folder.name:
        metadata["hook_name"] = place
    if run:
        found = {"model_name": run.get("model"), "context_size": run.get("ctx_len")}
        metadata |= {name: value for name, value in found.items() if value is not None}
    return metadata
