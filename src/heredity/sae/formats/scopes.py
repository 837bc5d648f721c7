"""Published families in layouts of their own: Gemma Scope 1 and 2, Llama Scope, Qwen Scope.

| family        | files                                           | place and model by                    |
|---------------|-------------------------------------------------|---------------------------------------|
| Gemma Scope   | params.npz                                      | the repository's and folder's names   |
| Gemma Scope 2 | params.safetensors, config.json                 | config.json                           |
| Llama Scope   | checkpoints/final.safetensors, hyperparams.json | hyperparams.json                      |
| Qwen Scope    | layer5.sae.pt, many in one folder               | the repository's and file's names     |

Layouts as SAELens 6.54.12 reads them. All are read with the beginning-of-text token in front of 1,024 tokens.
"""

from __future__ import annotations

import re
from typing import Any

from heredity.sae.formats import folds
from heredity.sae.formats.contents import FormatError, Settings, Tensors, is_factor, keys
from heredity.sae.formats.places import place_of
from heredity.sae.model import SAE

READING = {"prepend_bos": True, "context_size": 1024}
_GEMMA = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att)\b")
_GEMMA_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_QWEN = re.compile(r"SAE-Res-(Qwen[\w.-]*?)-W\d+K-L0_(\d+)")
GEMMA_2_SILENT = keys("width l0")
LLAMA_SILENT = keys(
    "use_ddp exp_name device seed dtype expansion_factor d_model d_sae bias_init_method norm_activation lp "
    "l1_coefficient l1_coefficient_warmup_steps decoder_exactly_fixed_norm sparsity_include_decoder_norm "
    "decoder_bias_init_method init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose init_search "
    "k_warmup_steps top_k tp_size ddp_size remove_gradient_parallel_to_decoder_directions use_batch_norm_mse "
    "use_ghost_grads use_decoder_bias apply_decoder_bias_to_pre_encoder sae_pretrained_name_or_path strict_loading "
    "use_decoder_norm"
)


def gemma(tensors: Tensors, _: None) -> tuple[SAE, dict[str, Any]]:
    """Gemma Scope: JumpReLU of x itself. Raises FormatError for transcoders and SAEs of embeddings."""
    folder = str(tensors.path.parent.absolute())
    if "transcoder" in folder:
        raise FormatError(f"{folder} is a transcoder, which predicts another place than it reads; give an autoencoder")
    if "embedding" in folder:
        raise FormatError(f"{folder} reads scaled embeddings, which are no place of the model; give an SAE of a layer")
    matrices = tensors.matrices("W_enc", "W_dec")
    sae = folds.new(tensors, "jumprelu", None, *matrices, "b_enc", "b_dec", tensors.take("threshold", len(matrices[1])))
    folds.b_dec_not_subtracted(sae)
    tensors.refuse_rest("an SAE of Gemma Scope")
    metadata: dict[str, Any] = dict(READING)
    if found := _GEMMA.search(folder):
        size, kind, place = found.groups()
        metadata["model_name"] = f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}"
        if layer := re.search(r"layer_(\d+)", folder):
            metadata["hook_name"] = f"blocks.{layer[1]}.{_GEMMA_PLACES[place]}"
    return sae, metadata


def gemma_2(tensors: Tensors, settings: Settings) -> tuple[SAE, dict[str, Any]]:
    """Gemma Scope 2: as before, under lowercase names. Raises FormatError for transcoders."""
    settings.choice("architecture", {"jump_relu": "jumprelu"})
    settings.choice("type", {"sae": "sae"}, "sae")
    hook, out = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if out not in (None, hook):
        settings.refuse("hf_hook_point_out", "is where a transcoder predicts; give an autoencoder")
    matrices = tensors.matrices("w_enc", "w_dec")
    sae = folds.new(tensors, "jumprelu", None, *matrices, "b_enc", "b_dec", tensors.take("threshold", len(matrices[1])))
    folds.b_dec_not_subtracted(sae)
    metadata: dict[str, Any] = dict(READING)
    if isinstance(hook, str):
        metadata["hook_name"] = place_of(hook)
    if isinstance(model := settings.get("model_name"), str):
        named = f"google/{model.removeprefix('google/').replace('-v3', '-3')}"
        metadata["model_name"] = named.replace("-pt", "") if "270m" in named else named
    settings.refuse_rest(GEMMA_2_SILENT)
    tensors.refuse_rest("an SAE of Gemma Scope 2")
    return sae, metadata


def llama(tensors: Tensors, settings: Settings) -> tuple[SAE, dict[str, Any]]:
    """Llama Scope: JumpReLU of x · √d_in / mean norm, one threshold, in units of x, for all features."""
    settings.choice("act_fn", {"jumprelu": "jumprelu"}, "jumprelu")
    hook, out = settings.get("hook_point_in"), settings.get("hook_point_out")
    if out not in (None, hook):
        settings.refuse("hook_point_out", "is where a transcoder predicts; give an autoencoder")
    w_enc, w_dec = (one.T for one in tensors.matrices("encoder.weight", "decoder.weight"))
    settings.check_sizes(tensors.path, {"d_model": w_enc.shape[0], "d_sae": w_enc.shape[1]})
    threshold, norm = settings.get("jump_relu_threshold"), settings.table("dataset_average_activation_norm").get("in")
    for key, value in (("jump_relu_threshold", threshold), ("dataset_average_activation_norm.in", norm)):
        if not is_factor(value):
            settings.refuse(key, "must be a number above 0; copy the file anew", value)
    factor = w_enc.shape[0] ** 0.5 / norm
    thresholds = w_enc.new_full((len(w_dec),), threshold * factor)
    sae = folds.new(tensors, "jumprelu", None, w_enc, w_dec, "encoder.bias", "decoder.bias", thresholds)
    folds.input_scale(sae, factor)
    folds.b_dec_not_subtracted(sae)
    settings.refuse_rest(LLAMA_SILENT)
    tensors.refuse_rest("an SAE of Llama Scope")
    made_for = {"hook_name": place_of(hook)} if isinstance(hook, str) else {}
    return sae, {"model_name": "meta-llama/Llama-3.1-8B"} | made_for | READING


def qwen(tensors: Tensors, _: None) -> tuple[SAE, dict[str, Any]]:
    """Qwen Scope: topk of x itself, both matrices transposed; k stands in the repository's name alone."""
    path = tensors.path.absolute()
    named, layer = _QWEN.search(str(path)), re.fullmatch(r"layer(\d+)\.sae\.pt", path.name)
    if named is None:
        raise FormatError(
            f"{path}: k of a Qwen Scope SAE stands in its repository's name (SAE-Res-MODEL-W32K-L0_50), which no "
            "folder above has; name one so"
        )
    w_enc, w_dec = (one.T for one in tensors.matrices("W_enc", "W_dec"))
    sae = folds.new(tensors, "topk", int(named[2]), w_enc, w_dec, "b_enc", "b_dec")
    folds.b_dec_not_subtracted(sae)
    tensors.refuse_rest("an SAE of Qwen Scope")
    made_for = {"hook_name": f"blocks.{layer[1]}.hook_resid_post"} if layer else {}
    return sae, {"model_name": f"Qwen/{named[1]}"} | made_for | READING
