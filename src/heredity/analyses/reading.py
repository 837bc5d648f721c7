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


def load(artifact: Artifact) -> Any:
    """The model of a model artifact.

    Raises StudyError when the folder of a loaded model is gone, or has changed since the artifact was made.
    """
    from heredity.lm.load import load_model
    from heredity.lm.reading import Reading, read_as

    record = artifact.json(RECORD)
    trusted = bool(record.get("reference") and record["reference"]["trust_remote_code"])
    model = load_model(folder_of(artifact), None, trusted)
    read_as(model, Reading(**record.get("reading", {})))
    return model


def folder_of(artifact: Artifact) -> str:
    """Folder, or hub id with the commit that was read, of the model of a model artifact.

    A folder is looked for where it lay beside the run, which finds it in a project that was moved, and then where it
    lay. Raises StudyError when it is gone, or holds other weights than the artifact was made from.
    """
    from heredity.analyses.loaded import content_digest

    reference = artifact.json(RECORD).get("reference")
    if not reference:
        return str(artifact / "model")
    if reference["load"]:
        return f"{reference['load']}@{reference['revision']}" if reference["revision"] else reference["load"]
    places = [(artifact.folder.parent / reference["beside"]).resolve(), Path(reference["folder"])]
    there = [place for place in places if place.exists()]
    if not there:
        raise StudyError(f"{places[1]}: the model that the run read is no longer there; put it back, or run again")
    for place in there:
        if content_digest(place) == reference["content"]:
            return str(place)
    raise StudyError(
        f"{there[0]}: its weights have changed since the run read them; run the study again to read the new ones, or "
        "copy the folder that a training still writes to"
    )


def state_of(artifact: Artifact) -> str:
    """Hash of the weights of a model artifact."""
    return artifact.json(RECORD)["state"]


def device() -> str:
    """Where the work is done: `cuda` if there is one, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> Precision:
    """Of the models' matrix products where no study says it: bf16 on a GPU, an order of magnitude faster there."""
    return "float32" if device() == "cpu" else "bf16"


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
