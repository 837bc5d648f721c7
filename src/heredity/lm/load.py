"""Language models on disk and in memory: create, load, save, hash. Weights are safetensors, nothing else."""

from __future__ import annotations

import hashlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from heredity.study import ArchitectureConfig
from heredity.study.places import fault_of

if TYPE_CHECKING:
    from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LIBRARIES = ("transformers", "accelerate", "peft", "huggingface_hub", "mergekit")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class ModelError(ValueError):
    """A model that cannot be loaded; one line with its name, the reason and the way out."""


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
) -> PreTrainedModel:
    """A decoder from a local folder or from the hub, in evaluation mode, on the CPU.

    Raises ModelError when there is no such folder or hub repository, when it has no config.json, no safetensors (a
    pickle is never read), damaged or incomplete weights, or is no decoder with a language-model head.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(path_or_id)
    local = is_folder(name)
    if fault := next((fault for file in sorted(Path(name).glob("*")) if local and (fault := fault_of(file))), None):
        raise ModelError(f"{name}: {fault}")

    def reason(error: Exception) -> str:
        if local or not isinstance(error, OSError):
            return _line(error)
        at = f" at revision {revision}" if revision else ""
        if "safetensors" in str(error):
            return f"the hub repository{at} has no safetensors; only that format is read"
        return (
            f"neither a local folder nor a hub repository that can be reached{at} ({_line(error)}); "
            "check the name and the network, or download it and give the folder"
        )

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(name, **options)
        except Exception as error:
            raise ModelError(f"{name}: cannot read its config: {reason(error)}") from error
        kinds = getattr(config, "architectures", None) or []
        remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        known = type(config) in AutoModelForCausalLM._model_mapping
        headless = bool(kinds) and not any(kind.endswith(_HEADS) for kind in kinds)
        if getattr(config, "is_encoder_decoder", False) or not (remote or (known and not headless)):
            kind = [*kinds, type(config).__name__][0]
            raise ModelError(f"{name}: {kind} is not a decoder with a language-model head; give a causal one")
        options |= {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
            model, info = loaded
        except SafetensorError as error:
            raise ModelError(f"{name}: its safetensors are damaged ({_line(error)}); copy the model again") from error
        except Exception as error:
            raise ModelError(f"{name}: cannot load its weights: {reason(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: {len(missing)} tensors are missing from its weights, {missing[0]} first; "
            "config.json and weights belong to different models"
        )
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write config, safetensors and tokenizer into `folder`, so that transformers and `load_model` read it."""
    with quiet():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


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


def is_folder(name: str) -> bool:
    """Whether `name` is a local folder; ModelError for the path of a missing folder and a folder without a model."""
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
            raise ModelError(f"{name}: no such folder; give a folder with config.json and *.safetensors, or a hub id")
        return False
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json there; give the folder that model.save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        reason = "no *.safetensors there; save the model in that format"
        if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")):
            reason = f"its weights are pickled ({pickles[0]}), which can run code; save the model as safetensors"
        raise ModelError(f"{name}: {reason}")
    return True


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
