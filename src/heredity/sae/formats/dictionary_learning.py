"""dictionary_learning of Marks et al.: config.json and ae.pt; every kind of its autoencoders.

Facts of dictionary-learning 0.1.0. Activations are scaled in training, and the saved biases are those of raw ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from heredity.sae.formats import folds
from heredity.sae.formats.contents import FormatError, Settings, Tensors, keys
from heredity.sae.formats.places import place_of
from heredity.sae.model import SAE, Activation

OURS = "heredity"  # key of our own table


class Kind(NamedTuple):
    """A class of the library: what it computes and the names of its tensors."""

    activation: Activation
    transposed: bool = True  # encoder.weight [d_sae, d_in] and decoder.weight, instead of W_enc and W_dec
    b_dec: str = "b_dec"
    subtracts: bool = True  # b_dec from x before encoding
    silent: tuple[str, ...] = ()  # tensors without a use here


CLASSES = {
    "AutoEncoder": Kind("relu", b_dec="bias"),
    "AutoEncoderNew": Kind("relu", b_dec="decoder.bias", subtracts=False),
    "AutoEncoderTopK": Kind("topk", silent=("threshold",)),
    "BatchTopKSAE": Kind("batchtopk"),
    "MatryoshkaBatchTopKSAE": Kind("batchtopk", transposed=False, silent=("group_sizes",)),
    "JumpReluAutoEncoder": Kind("jumprelu", transposed=False, subtracts=False),
    "GatedAutoEncoder": Kind("jumprelu", b_dec="decoder_bias"),
}
WRITTEN = {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE"}
WRITTEN |= {"jumprelu": "JumpReluAutoEncoder"}
# Say how an SAE was trained, of `trainer` and of `buffer`.
TRAINER = keys(
    "trainer_class activation_dim dict_size layer wandb_name device seed lr steps warmup_steps decay_start auxk_alpha "
    "threshold_beta threshold_start_step top_k_aux group_fractions group_weights group_sizes target_l0 bandwidth "
    "sparsity_penalty sparsity_warmup_steps l1_penalty initial_sparsity_penalty resample_steps sparsity_function "
    "p_start p_end anneal_start anneal_end n_sparsity_updates sparsity_queue_length"
)
BUFFER = keys("d_submodule n_ctxs refresh_batch_size out_batch_size device layer scan validate hf_dataset_name dtype")


def write(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings."""
    if sae.activation == "jumprelu":
        tensors: dict[str, Tensor] = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        # Its encoder does not subtract b_dec: (x − b_dec) W + b = x W + (b − b_dec W)
        tensors["b_enc"] = (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()
    else:
        tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "decoder.weight": sae.W_dec.T}
        tensors["bias" if sae.activation == "relu" else "b_dec"] = sae.b_dec
    name = WRITTEN[sae.activation]
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.d_sae}
    if sae.k is not None:
        tensors |= {"k": torch.tensor(sae.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        trainer["k"] = sae.k
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    trainer |= {"lm_name": metadata.get("model_name"), "submodule_name": metadata.get("hook_name")}
    return tensors, {"trainer": trainer, OURS: metadata}


def read(tensors: Tensors, settings: Settings) -> tuple[SAE, dict[str, Any]]:
    """The SAE and its metadata. Raises FormatError for a class that is not known and a threshold never learned."""
    trainer, buffer = settings.table("trainer"), settings.table("buffer")
    kind, name = trainer.choice("dict_class", CLASSES), trainer.get("dict_class")
    names = ("encoder.weight", "decoder.weight") if kind.transposed else ("W_enc", "W_dec")
    w_enc, w_dec = (one.T if kind.transposed else one for one in tensors.matrices(*names))
    trainer.check_sizes(tensors.path, {"activation_dim": w_enc.shape[0], "dict_size": w_enc.shape[1]})
    gated, threshold, k = name == "GatedAutoEncoder", None, trainer.get("k")
    if kind.activation == "batchtopk":
        threshold = tensors.take("threshold")
        if threshold < 0:
            raise FormatError(
                f"{tensors.path}: threshold {float(threshold):g} was never learned, so how many features fire is not "
                f"known; give a later checkpoint (after threshold_start_step)"
            )
    elif kind.activation == "jumprelu" and not gated:
        threshold = tensors.take("threshold", len(w_dec))
    if "k" in tensors and kind.activation != "jumprelu":
        k = int(tensors.take("k"))
    b_enc = None if gated else "encoder.bias" if kind.transposed else "b_enc"
    sae = folds.new(tensors, kind.activation, k, w_enc, w_dec, b_enc, kind.b_dec, threshold)
    if gated:
        folds.gates(sae, *(tensors.take(one, sae.d_sae) for one in ("r_mag", "mag_bias", "gate_bias")))
    if not kind.subtracts:
        folds.b_dec_not_subtracted(sae)
    made_for = _made_for(trainer, buffer)
    metadata = dict(settings.table(OURS).values) or made_for
    trainer.refuse_rest(TRAINER)
    buffer.refuse_rest(BUFFER)
    settings.refuse_rest(())
    tensors.refuse_rest(name, kind.silent)
    return sae, metadata


def _made_for(trainer: Settings, buffer: Settings) -> dict[str, Any]:
    side = buffer.get("io", default="out")
    if side not in ("in", "out"):
        buffer.refuse("io", "reads one place and predicts another; give an autoencoder")
    name = trainer.get("submodule_name")
    place = place_of(name, side=f"{side}put") if isinstance(name, str) else None
    found = {"hook_name": place, "model_name": trainer.get("lm_name"), "context_size": buffer.get("ctx_len")}
    return {key: value for key, value in found.items() if value is not None}
