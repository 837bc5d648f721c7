"""Language models on disk and in memory: create, load, save, hash. Weights are safetensors, nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from heredity.errors import short
from heredity.lm.checkpoint import ADAPTER, ModelError, Source, base_of_adapter, base_revision, located, read_json
from heredity.lm.weights import FileTensor, not_finite
from heredity.study import ArchitectureConfig

if TYPE_CHECKING:
    from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LIBRARIES = ("transformers", "accelerate", "peft", "huggingface_hub", "mergekit")
# Buffers that older versions stored and that are computed today.
_BUILT = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers", "decoder_layers")
_SIZES = dict.fromkeys((*_BUILT, "num_experts", "num_local_experts", "n_routed_experts"), 10_000)
_SIZES |= dict.fromkeys(("hidden_size", "n_embd", "n_inner", "vocab_size", "num_attention_heads", "n_head"), 2**31)
NO_WEIGHT = re.compile(r"(^|\.)(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|num_batches_tracked)$")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def mistral_config(
    architecture: ArchitectureConfig, vocab_size: int, context_size: int, eos_token_id: int
) -> MistralConfig:
    """A Mistral-like decoder (Horn & Elliott 2025, section 3.1: RMSNorm, SwiGLU, grouped-query attention, RoPE)."""
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.d_model,
        intermediate_size=architecture.d_mlp,
        num_hidden_layers=architecture.n_layers,
        num_attention_heads=architecture.n_heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.d_model // architecture.n_heads,
        max_position_embeddings=context_size,
        sliding_window=None,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=architecture.tie_embeddings,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=None,  # a padding token's embedding would stay zero and never be trained
    )


def new_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A decoder with random float32 weights determined by `seed`; the global random state is left alone."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_model(
    path_or_id: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    scores: bool = False,
) -> PreTrainedModel:
    """A decoder from a local folder, a GGUF file or the hub (`ID` or `ID@REVISION`), in evaluation mode, on the CPU.

    A folder of a peft adapter gives its base model with the adapter merged into the weights. scores: a reward model,
    which has a score in place of the head, is loaded too; it has hidden states and no next-token logits.
    Raises ModelError when there is no such folder or hub repository, when it has no config.json, no safetensors (a
    pickle is never read), files that can be read in more than one way (`lm.checkpoint`), weights that are damaged or
    disagree with the config, by tensor, or is no decoder with a language-model head.
    """
    source = located(str(path_or_id), revision, trust_remote_code)
    if (source.folder / ADAPTER).exists():
        return _merged_adapter(source, trust_remote_code, dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    options |= {"gguf_file": source.gguf} if source.gguf else {}
    with quiet():
        config = config_of(source, trust_remote_code)
        kind = check_decoder(source, config, scores)
        options |= {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        options["ignore_mismatched_sizes"] = True  # to refuse them by name below
        try:
            loaded: Any = kind.from_pretrained(str(source.folder), **options)
            model, info = loaded
        except Exception as error:
            raise ModelError(f"{source.name}: cannot load its weights: {_line(error)}") from error
    _check_taken(source, model, info)
    return model.eval()


def config_of(source: Source, trust_remote_code: bool = False) -> Any:
    """The configuration of a located model. Raises ModelError, in one line, whatever is wrong with it."""
    from transformers import AutoConfig

    name = source.name
    if not source.gguf:
        raw = read_json(source.folder / "config.json", f"{name}: cannot read its config")
        kinds = raw.get("architectures") or []
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ModelError(f"{name}: config.json: architectures is {short(kinds, 80)}, no list of names; mend it")
    more = {"gguf_file": source.gguf} if source.gguf else {}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(source.folder), trust_remote_code=trust_remote_code, **more)
            _check_sizes(name, config)
            return config
        except ModelError:
            raise
        except Exception as error:
            reason = _line(error)
            if "trust_remote_code" in str(error) and not trust_remote_code:
                reason = "it ships code, which is not run; read that code, then say trust_remote_code = true in the "
                reason += "study, or --trust-remote-code"
            raise ModelError(f"{name}: cannot read its config: {reason}") from error


def _check_sizes(name: str, config: Any, place: str = "") -> None:
    """Raise ModelError, by key, for a size that no model has, nor a part of it such as one that sees: a million empty
    layers would be built for hours."""
    for key, part in vars(config).items():
        if hasattr(part, "model_type"):
            _check_sizes(name, part, f"{place}{key}.")
    for key, most in _SIZES.items():
        size = getattr(config, key, None)
        if isinstance(size, int) and not 0 <= size <= most:
            raise ModelError(
                f"{name}: config.json: {place}{key} is {size:,}, and must be at most {most:,}; copy it anew"
            )


def is_reward_model(config: Any) -> bool:
    """Whether a configuration names a decoder that has a score in place of its language-model head."""
    kinds = getattr(config, "architectures", None) or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def check_decoder(source: Source, config: Any, scores: bool = False) -> Any:
    """The class of transformers that reads a decoder. Raises ModelError for any other model, and for a reward model
    unless `scores`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kinds = getattr(config, "architectures", None) or []
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in AutoModelForCausalLM._model_mapping
    kind = [*kinds, type(config).__name__][0]
    if getattr(config, "is_encoder_decoder", False) or not (remote or known):
        raise ModelError(f"{source.name}: {kind} is not a decoder with a language-model head; give a causal one")
    if is_reward_model(config) and type(config) in AutoModelForSequenceClassification._model_mapping:
        if scores:
            return AutoModelForSequenceClassification
        raise ModelError(
            f"{source.name}: {kind} is not a decoder with a language-model head: it gives scores, and no next-token "
            "logits can be read; compare it by `heredity track` or heredity.compare, which read activations alone"
        )
    if kinds and not remote and not any(one.endswith(_HEADS) for one in kinds):
        raise ModelError(f"{source.name}: {kind} is not a decoder with a language-model head; give a causal one")
    return AutoModelForCausalLM


def _check_taken(source: Source, model: Any, info: Any) -> None:
    """That weights and config agree: every tensor of the model is in the files and every tensor of the files in the
    model, in its shape, and finite. Raises ModelError, with the first that is not."""
    name = source.name
    wrong: list[Any] = sorted(info.get("mismatched_keys") or ())
    if wrong:
        tensor, stored, wanted = wrong[0]
        raise ModelError(
            f"{name}: tensor {tensor} is {list(stored)} in its weights and {list(wanted)} by config.json "
            f"({len(wrong)} such); they belong to different models"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: {len(missing)} tensors are missing from its weights, {missing[0]} first; "
            "config.json and weights belong to different models"
        )
    surplus = [tensor for tensor in sorted(info["unexpected_keys"]) if not NO_WEIGHT.search(tensor)]
    if surplus and not source.gguf:
        raise ModelError(
            f"{name}: {len(surplus)} tensors of its weights have no place in {type(model).__name__}, {surplus[0]} "
            "first; config.json and weights belong to different models"
        )
    refuse_not_finite(name, dict(model.named_parameters()))


def refuse_not_finite(name: str, tensors: Mapping[str, torch.Tensor | FileTensor]) -> None:
    """Raise ModelError, by tensor, for weights that hold NaN or infinity: all that is read in such a model is NaN."""
    if tensor := not_finite(tensors):
        wrong = f"tensor {tensor} of its weights is not finite (it holds NaN or infinity)"
        raise ModelError(f"{name}: {wrong}; use a checkpoint from before it diverged, or copy the model anew")


def _merged_adapter(source: Source, trust_remote_code: bool, dtype: torch.dtype) -> PreTrainedModel:
    """The base model of a peft adapter with the adapter merged into its weights. Raises ModelError."""
    base = base_of_adapter(source)
    return merge_adapter(load_model(base, base_revision(source), trust_remote_code, dtype), source, base)


def merge_adapter(model: PreTrainedModel, source: Source, base: str) -> PreTrainedModel:
    """A model with a peft adapter merged into its weights, in place. base: what the model is called in errors.

    Raises ModelError for an adapter that does not fit the model, by tensor.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    name = source.name
    with quiet():
        try:
            # Other shapes are refused by name below.
            adapted = PeftModel.from_pretrained(model, str(source.folder), ignore_mismatched_sizes=True)
            stored, taken = load_file(source.folder / "adapter_model.safetensors"), get_peft_model_state_dict(adapted)
        except Exception as error:
            raise ModelError(f"{name}: cannot attach its adapter to {base}: {_line(error)}") from error
        shapes = [{tensor: tuple(one.shape) for tensor, one in some.items()} for some in (stored, taken)]
        refuse_other_adapter(name, base, *shapes)
        try:
            merged: Any = adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
        except Exception as error:
            raise ModelError(f"{name}: its adapter cannot be merged into {base}: {_line(error)}") from error
    for attribute in ("peft_config", "_hf_peft_config_loaded"):  # peft leaves these on the plain model
        merged.__dict__.pop(attribute, None)
    return merged.requires_grad_(True).eval()


def refuse_other_adapter(
    name: str, base: str, stored: Mapping[str, tuple[int, ...]], taken: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ModelError, by tensor, for an adapter whose tensors are not those that its base takes, in name or shape."""
    for tensor in sorted(stored.keys() | taken.keys()):
        if stored.get(tensor) == taken.get(tensor):
            continue
        wrong = f"is not in {base}" if tensor in stored else "is missing from its weights"
        if tensor in stored and tensor in taken:
            wrong = f"is {list(stored[tensor])}, and {base} takes {list(taken[tensor])}"
        raise ModelError(f"{name}: tensor {tensor} of the adapter {wrong}; adapter and base belong together")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write config, safetensors and tokenizer into `folder`, so that transformers and `load_model` read it."""
    with quiet():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    for_older_releases(folder)


def for_older_releases(folder: Path) -> None:
    """Add to a folder that transformers 5 wrote what transformers 4 reads: the keys of rotary embeddings and type under
    their older names, beside the new ones, and a class of tokenizers that both know."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        rope = part.get("rope_parameters")
        if not isinstance(rope, dict) or not (whole := rope.get("full_attention", rope)).get("rope_theta"):
            continue
        part.setdefault("rope_theta", whole["rope_theta"])
        if local := rope.get("sliding_attention"):
            part.setdefault("rope_local_base_freq", local["rope_theta"])
        if "partial_rotary_factor" in whole:
            part.setdefault("partial_rotary_factor", whole["partial_rotary_factor"])
        if whole.get("rope_type", "default") != "default":
            own = ("rope_theta", "partial_rotary_factor")
            part.setdefault("rope_scaling", {key: value for key, value in whole.items() if key not in own})
    if config.get("dtype"):
        config.setdefault("torch_dtype", config["dtype"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.exists():
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(extra := tokenizer.get("extra_special_tokens"), list):  # a table of names in transformers 4
            del tokenizer["extra_special_tokens"]
            tokenizer.setdefault("additional_special_tokens", extra)
        path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def state_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars of the Hugging Face libraries while open; all restored afterwards."""
    from transformers.utils import logging as hf_logging

    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels, bars = [logger.level for logger in loggers], hf_logging.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        hf_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Global random states of Python, numpy and torch restored afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
