"""What several analyses read: tokens, tokenizers, models and SAEs out of artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.engine.store import CONFIG, Artifact
from heredity.study import Precision, StudyError

if TYPE_CHECKING:
    from heredity.features.collect import Reader
    from heredity.text.tokens import BlockSampler, PackedTokens

RECORD = "record.json"


def tokenizer_of(artifact: Artifact) -> Any:
    """The tokenizer of a tokenizer artifact."""
    from heredity.text.tokens import load_tokenizer

    trusted = artifact.json(CONFIG).get("trust_remote_code", False)
    return load_tokenizer(str(artifact / "tokenizer"), trust_remote_code=trusted)


def packs(artifacts: Mapping[str, Artifact], split: str) -> dict[str, PackedTokens]:
    """Packed tokens of one split, by corpus."""
    from heredity.text.tokens import PackedTokens

    return {name: PackedTokens.open(artifact / split) for name, artifact in artifacts.items()}


def sampler_of(
    tokens: Mapping[str, Artifact], split: str, context_size: int, seed: int, mix: str = "equal"
) -> BlockSampler:
    """Blocks in random order: uniform over the union of the corpora (`tokens`), or in `equal` parts."""
    from heredity.text.tokens import BlockSampler

    packed = packs(tokens, split)
    return BlockSampler(packed, context_size, seed, dict.fromkeys(packed, 1 / len(packed)) if mix == "equal" else None)


def validation_blocks(pack: PackedTokens, context_size: int, tokens: int) -> np.ndarray:
    """The first blocks of a validation split, int64 [blocks, context]."""
    count = min(pack.n_blocks(context_size), max(1, tokens // context_size))
    if count < 1:
        raise StudyError(f"a validation set holds fewer than {context_size} tokens; add text or lower context_size")
    return np.stack([pack.block(number, context_size) for number in range(count)]).astype(np.int64)


def weights_digest(folder: Path) -> str | None:
    """Digest of the weights and the configuration in a local model folder; None for anything else."""
    from heredity.text.corpora import file_digest

    files = [*folder.glob("*.safetensors"), *folder.glob("config.json")]
    return file_digest(sorted(files)) if folder.is_dir() else None


def load(artifact: Artifact) -> Any:
    """The model of a model artifact.

    Raises StudyError when the folder of a loaded model has changed since the artifact was made.
    """
    from heredity.lm.load import load_model
    from heredity.lm.reading import Reading, read_as

    record = artifact.json(RECORD)
    reference, name = record.get("reference"), str(artifact / "model")
    if reference:
        name = reference["load"]
        if Path(name).is_dir() and weights_digest(Path(name)) != reference["content"]:
            raise StudyError(
                f"{name}: its weights have changed since the run read them; run the study again to read the new ones, "
                "or copy the folder that a training still writes to"
            )
    how = (reference["revision"], reference["trust_remote_code"]) if reference else ()
    model = load_model(name, *how)
    read_as(model, Reading(**record.get("reading", {})))
    return model


def folder_of(artifact: Artifact) -> str:
    """Folder or hub id of the model of a model artifact."""
    reference = artifact.json(RECORD).get("reference")
    return reference["load"] if reference else str(artifact / "model")


def state_of(artifact: Artifact) -> str:
    """Hash of the weights of a model artifact."""
    return artifact.json(RECORD)["state"]


def device() -> str:
    """Where the work is done: `cuda` if there is one, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(model: Any) -> Any:
    """The model where the work is done, ready to be read; on a CPU this process keeps the memory of large buffers."""
    from heredity.kernels.processors import keep_large_buffers

    if device() == "cpu":
        keep_large_buffers()
    return model.to(device()).eval()


def reader_of(model: Artifact, saes: Sequence[Artifact], hook_point: str, precision: Precision) -> Callable[[], Reader]:
    """Opens a model with SAEs of it, in whichever process the reading is done."""
    return partial(_opened, model, [sae / "sae" for sae in saes], hook_point, precision)


def _opened(model: Artifact, saes: Sequence[Path], hook_point: str, precision: Precision) -> Reader:
    from heredity.features.collect import Reader
    from heredity.sae.formats import read_sae

    reader = on_device(load(model))
    target = next(reader.parameters()).device
    return Reader(reader, hook_point, [read_sae(folder)[0].to(target) for folder in saes], precision)
