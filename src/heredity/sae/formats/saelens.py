"""SAELens folders: cfg.json and sae_weights.safetensors, of every version; the format that is native here.

Facts of sae-lens 6.54.12. From version 6 on `metadata` says what an SAE was made for; before, everything stood in one
table. Training checkpoints hold the settings of the run too, and a factor of activations in activation_scaler.json.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from heredity.lm.hooks import of_head
from heredity.sae.formats import folds
from heredity.sae.formats.contents import FormatError, Settings, Tensors, is_factor, keys
from heredity.sae.formats.places import place_of
from heredity.sae.model import SAE, Activation

VERSION = "6.54.12"  # of the layout written; SAELens would convert anything below 6 on loading
OURS = "heredity"  # key of our own table, within `metadata`


class Kind(NamedTuple):
    """An architecture: what it computes, and the tensors that it has besides both matrices and b_dec."""

    activation: Activation
    tensors: tuple[str, ...] = ("b_enc",)


ARCHITECTURES = {
    "standard": Kind("relu"),
    "topk": Kind("topk"),
    "jumprelu": Kind("jumprelu", ("b_enc", "threshold")),
    "gated": Kind("jumprelu", ("r_mag", "b_mag", "b_gate")),
    "batchtopk": Kind("batchtopk", ("b_enc", "topk_threshold")),
    "matryoshka_batchtopk": Kind("batchtopk", ("b_enc", "topk_threshold")),
}
_TRANSCODER = "reads one place and predicts another"
OTHERS = {
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER,
    "jumprelu_transcoder": _TRANSCODER,
    "jumprelu_skip_transcoder": _TRANSCODER,
    "crosscoder": "reads several places at once",
    "temporal": "looks at the tokens before",
    "matching_pursuit": "chooses features one after the other",
    "abstopk": "has negative activations",
}
MADE_FOR = ("model_name", "prepend_bos", "context_size", "exclude_special_tokens", "seqpos_slice", "dataset_path")
MADE_FOR += ("model_class_name", "model_from_pretrained_kwargs", "neuronpedia_id", "hf_hook_name")
# How an SAE was trained, logged and stored: no figure of it depends on these once it is trained. By version 6's runner
# and architectures, then by those before.
SILENT = keys(
    "d_in d_sae device dtype metadata sae logger sae_lens_version sae_lens_training_version act_store_device "
    "llm_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm cached_activations_path "
    "checkpoint_path compile_llm compile_sae dataset_trust_remote_code dead_feature_threshold dead_feature_window "
    "hook_eval disable_concat_sequences eval_batch_size_prompts feature_sampling_window from_pretrained_path lr "
    "lr_decay_steps is_dataset_tokenized llm_compilation_mode lr_end lr_scheduler_name lr_warm_up_steps model_kwargs "
    "n_eval_batches n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_restart_cycles output_path "
    "prefetch_llm_batches resume_from_checkpoint sae_compilation_mode save_final_checkpoint seed "
    "sequence_separator_token streaming verbose store_batch_size_prompts train_batch_size_tokens training_tokens "
    "use_cached_activations use_chat_formatting eval_every_n_wandb_logs log_activations_store_to_wandb "
    "log_optimizer_state_to_wandb log_to_wandb run_name log_weights_to_wandb wandb_entity wandb_id "
    "wandb_log_frequency wandb_project tokens_per_buffer aux_loss_coefficient decoder_init_norm jumprelu_bandwidth "
    "jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient "
    "l0_warm_up_steps l1_coefficient l1_warm_up_steps lp_norm matryoshka_widths pre_act_loss_coefficient target_l0 "
    "topk_threshold_lr use_matryoshka_aux_loss use_sparse_activations b_dec_init_method "
    "dead_feature_estimation_method decoder_heuristic_init decoder_heuristic_init_norm decoder_orthogonal_init "
    "expansion_factor feature_reinit_scale feature_resampling_method feature_sampling_method finetuning_method "
    "finetuning_tokens hook_layer hook_point_eval hook_point_layer init_encoder_as_decoder_transpose "
    "mse_loss_normalization noise_scale normalize_sae_decoder resample_batches resume "
    "scale_sparsity_penalty_by_decoder_norm store_batch_size total_training_steps total_training_tokens "
    "train_batch_size use_ghost_grads log_feature_sparsity_path checkpoint_every"
)
# Of TransformerLens' loading: layer-norm weights and unembeddings are folded without a change of any place that SAEs
# read; others choose files and types. `center_writing_weights` is honored.
LOADING = keys(
    "center_writing_weights fold_ln center_unembed n_ctx dtype torch_dtype device n_devices move_to_device revision "
    "checkpoint_index checkpoint_value default_padding_side default_prepend_bos first_n_layers trust_remote_code "
    "cache_dir low_cpu_mem_usage attn_implementation"
)


def write(sae: SAE, metadata: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings."""
    tensors: dict[str, Tensor] = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    architecture = {"relu": "standard", "topk": "topk"}.get(sae.activation, "jumprelu")
    all_heads, head = of_head(str(metadata.get("hook_name")))
    if head is not None:
        metadata = metadata | {"hook_name": all_heads, "hook_head_index": head}
    ours = {"sae_lens_version": VERSION, OURS: {"activation": sae.activation, "k": sae.k}}
    settings: dict[str, Any] = {"architecture": architecture, "d_in": sae.d_in, "d_sae": sae.d_sae}
    settings |= {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    settings |= {"normalize_activations": "none", "reshape_activations": "none", "metadata": metadata | ours}
    if architecture == "topk":
        settings |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.expand(sae.d_sae)
    return tensors, settings


def read(tensors: Tensors, settings: Settings) -> tuple[SAE, dict[str, Any]]:
    """The SAE and its metadata. Raises FormatError for what `SAE` has no equal of, and for keys and tensors unknown."""
    metadata = _made_for(settings)
    ours = metadata.pop(OURS, None)
    ours = ours if isinstance(ours, dict) else {}
    architecture, k = _architecture(settings)
    kind = ARCHITECTURES[architecture]
    activation: Activation = kind.activation
    w_enc, w_dec = tensors.matrices("W_enc", "W_dec")
    d_in, d_sae = w_enc.shape
    settings.check_sizes(tensors.path, {"d_in": d_in, "d_sae": d_sae})
    threshold = _threshold(tensors, architecture, d_sae)
    of_one = threshold is not None and ours.get("activation") == "batchtopk" and bool((threshold == threshold[0]).all())
    if architecture == "jumprelu" and threshold is not None and of_one:
        activation, k, threshold = "batchtopk", ours.get("k"), threshold[0]
    if activation == "batchtopk" and isinstance(k, float):
        # Only the threshold selects; a mean number of features that is not whole is no k.
        activation, k = ("batchtopk", int(k)) if k.is_integer() else ("jumprelu", None)
    b_enc = "b_enc" if "b_enc" in kind.tensors else None
    sae = folds.new(tensors, activation, k, w_enc, w_dec, b_enc, "b_dec", threshold)
    if architecture == "gated":
        folds.gates(sae, *(tensors.take(name, d_sae) for name in kind.tensors))
    rescaled = kind.activation in ("topk", "batchtopk") and bool(settings.get("rescale_acts_by_decoder_norm"))
    if settings.get("finetuning_scaling_factor") and "scaling_factor" in tensors:
        sae.W_dec *= tensors.take("scaling_factor", d_sae)[:, None]
    elif "scaling_factor" in tensors and bool((tensors.named["scaling_factor"] == 1).all()):
        tensors.taken.add("scaling_factor")
    if (factor := _input_factor(settings)) is not None:
        folds.input_scale(sae, factor)
        if rescaled and sae.threshold is not None:  # in units of pre_acts times the norms of decoder rows
            sae.threshold /= factor
    if rescaled:
        folds.decoder_norms(sae)
    if not settings.get("apply_b_dec_to_input", default=True):
        folds.b_dec_not_subtracted(sae)
    settings.refuse_rest(SILENT)
    tensors.refuse_rest(f"architecture {architecture!r}")
    return sae, metadata


def _architecture(settings: Settings) -> tuple[str, Any]:
    """Architecture and k, by the keys of all versions. Raises FormatError for an activation that is not known."""
    if not {"architecture", "d_in", "d_sae"} & set(settings.values):
        settings.refuse("architecture", "is not given, nor is any size: these are no settings of an SAE; copy it anew")
    name = settings.get("architecture", default="standard")
    if isinstance(name, str) and name in OTHERS:
        settings.refuse("architecture", f"is not supported: such a coder {OTHERS[name]}; give an autoencoder")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        settings.refuse("architecture", f"is not supported; give one of {', '.join(ARCHITECTURES)}")
    kwargs, k = settings.table("activation_fn_kwargs"), settings.get("k")
    for key in ("activation_fn", "activation_fn_str", "activation"):
        function = settings.get(key, default="relu")
        if function == "topk" and name in ("standard", "topk"):  # before SAELens 6, an activation of `standard`
            name = "topk"
        elif function != "relu":
            settings.refuse(key, f"is not supported for architecture {name!r}; give an SAE of relu or topk")
    if (own := kwargs.get("k")) is not None:
        if k not in (None, own):
            settings.refuse("k", f"contradicts activation_fn_kwargs.k={own!r}; correct one of them")
        k = own
    kwargs.refuse_rest(())
    return name, k


def _threshold(tensors: Tensors, architecture: str, d_sae: int) -> Tensor | None:
    if architecture == "jumprelu":
        if "log_threshold" in tensors:  # of training checkpoints before version 6
            return tensors.take("log_threshold", d_sae).exp()
        return tensors.take("threshold", d_sae)
    if "topk_threshold" not in ARCHITECTURES[architecture].tensors:
        return None
    threshold = tensors.take("topk_threshold")
    if threshold <= 0:
        raise FormatError(
            f"{tensors.path}: topk_threshold {float(threshold):g} was never learned, so how many features fire is not "
            "known; give a later checkpoint"
        )
    return threshold


def _input_factor(settings: Settings) -> float | None:
    """What activations are multiplied by before the SAE reads them; None for nothing."""
    reshaped = settings.get("reshape_activations", default="none")
    if reshaped not in ("none", "hook_z"):  # hook_z joins the heads, as they are here anyway
        settings.refuse("reshape_activations", "is not supported; give an SAE of activations as they are")
    value = settings.get("normalize_activations", default="none")
    if value in ("none", False):
        return None
    if value not in ("expected_average_only_in", True):
        if value == "covariance_whitening":
            why = "is a map that SAELens folds into the weights when training ends; give that SAE"
        else:
            why = (
                "is not supported: each input is divided by its own norm, which no weights can hold; give an SAE of raw"
            )
            why += " activations"
        settings.refuse("normalize_activations", why)
    factor = settings.get("norm_scaling_factor", "scaling_factor")
    beside = settings.path.parent / "activation_scaler.json"  # of a training checkpoint
    if factor is None and beside.is_file():
        factor = Settings.read(beside).get("scaling_factor")
    if not is_factor(factor):
        settings.refuse(
            "normalize_activations", "needs the factor that activations are multiplied by, which nothing here says; "
            "add norm_scaling_factor = √d_in / mean norm of activations to the file, or read the SAE as "
            "saelens:RELEASE/ID, which fold it into the weights"
        )  # fmt: skip
    return float(factor)


def _made_for(settings: Settings) -> dict[str, Any]:
    """Metadata under one set of names. Raises FormatError for what only a transcoder or one attention head has."""
    table = settings.table("metadata")
    before_6 = "metadata" not in settings.values
    given = {key: value for key in MADE_FOR if (value := settings.get(key)) is not None}
    metadata = given | dict(table.values)
    metadata.pop("sae_lens_version", None)
    for place in (settings, table):
        out = place.get("hook_name_out", "hf_hook_name_out")
        if out is not None and out != place.get("hook_name", "hf_hook_name"):
            place.refuse("hook_name_out", "is where a transcoder predicts; give an autoencoder", out)
    named = metadata.get("hook_name") or settings.get("hook_name", "hook_point") or metadata.get("hf_hook_name")
    if isinstance(named, str):
        metadata["hook_name"] = place_of(named, settings.get("hook_layer", "hook_point_layer"))
        if before_6:
            metadata.setdefault("prepend_bos", True)  # what a configuration that does not say it means
    for place in (settings, table):
        if (head := place.get("hook_head_index", "hook_point_head_index")) is not None:
            all_heads = str(metadata.get("hook_name"))
            if not all_heads.endswith("attn.hook_z") or not isinstance(head, int):
                place.refuse("hook_head_index", f"is a head of {all_heads}; heads are read at attn.hook_z alone", head)
            metadata["hook_name"] = f"{all_heads}[{head}]"
            metadata.pop("hook_head_index", None)
    dtype = str(settings.get("dtype", default="float32")).removeprefix("torch.")
    if dtype != "float32":
        metadata["dtype"] = dtype
    _loading(settings, table, metadata)
    return metadata


def _loading(settings: Settings, table: Settings, metadata: dict[str, Any]) -> None:
    """Check how the model was loaded by TransformerLens."""
    for place in (settings, table):
        kwargs = place.table("model_from_pretrained_kwargs")
        if place.get("center_writing_weights"):
            metadata["model_from_pretrained_kwargs"] = dict(kwargs.values) | {"center_writing_weights": True}
        for key in ("fold_value_biases", "refactor_factored_attn_matrices"):
            if kwargs.get(key) and "attn.hook_" in str(metadata.get("hook_name")):
                kwargs.refuse(key, "changes the values that heads give; give an SAE of the model as it is")
        kwargs.refuse_rest(LOADING)
