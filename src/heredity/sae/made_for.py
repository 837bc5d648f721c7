"""What an SAE says that it was made for, compared with where it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from heredity.lm.hooks import HookPointError, of_head, resolve
from heredity.lm.reading import Prefix, prefix_of


def refuse_other_place(sae: str, metadata: Mapping[str, Any], model: nn.Module, place: str, way_out: str) -> None:
    """Raise ValueError, naming both places, where an SAE was made for another place of the model than it is read at.

    Raises HookPointError where the model has no such place. way_out: what to do about it.
    """
    own = metadata.get("hook_name")
    try:
        if own is None or own == place:
            return
        if (resolve(model, own), of_head(own)[1]) == (resolve(model, place), of_head(place)[1]):
            return
    except HookPointError as error:
        raise HookPointError(f"SAE {sae}: {error}") from None
    raise ValueError(f"SAE {sae} was made for {own}, and is read at {place}; {way_out}")


def first_token(tokenizer: Any, prefix: Prefix | None, metadata: Mapping[str, Any]) -> int | None:
    """Token before every block: as asked for, as the SAE's folder says it was trained, or by the tokenizer."""
    if prefix is None and "prefix_token" in metadata:
        return metadata["prefix_token"]
    begins = metadata.get("prepend_bos")
    own = "none" if begins is False else "bos" if begins and tokenizer.bos_token_id is not None else "auto"
    return prefix_of(tokenizer, prefix or own)


def refuse_other_prefix(sae: str, metadata: Mapping[str, Any], tokenizer: Any, prefix: int | None) -> None:
    """Raise ValueError where an SAE says that it was trained behind another first token than the one that is read."""
    if "prefix_token" not in metadata and not isinstance(metadata.get("prepend_bos"), bool):
        return
    own = first_token(tokenizer, None, metadata)
    if own == prefix:
        return
    rules: tuple[Prefix, ...] = ("none", "eos", *(("bos",) if tokenizer.bos_token_id is not None else ()))
    way_out = next((f'set [reading] prefix = "{rule}"' for rule in rules if prefix_of(tokenizer, rule) == own), None)
    names = ["nothing" if one is None else repr(tokenizer.convert_ids_to_tokens(one)) for one in (own, prefix)]
    raise ValueError(
        f"SAE {sae} was trained on blocks behind {names[0]}, and is read behind {names[1]}; "
        f"{way_out or 'set [reading] prefix to what it shall be'}"
    )


def differences(
    sae: str, metadata: Mapping[str, Any], model: nn.Module, name: str, context_size: int | None = None
) -> Iterator[str]:
    """What to say of an SAE whose weights of the model are not recorded: another model's name, another normalization,
    blocks of another length.

    name: folder or hub id of the model. context_size: tokens of a block that it is read on. An SAE may well be read in
    a model it was not made for, when both are near.
    """
    own = metadata.get("model_name")
    if isinstance(own, str) and "model_state" not in metadata and _bare(own) not in (_bare(name), "") and name:
        yield f"SAE {sae} was made for the model {own}, and is read in {name}"
    own_size = metadata.get("context_size")
    if isinstance(own_size, int) and context_size is not None and own_size != context_size:
        yield (
            f"SAE {sae} was trained on blocks of {own_size:,} tokens, and is read on blocks of {context_size:,}; "
            "give its context_size to read it as it was trained"
        )
    loading = metadata.get("model_from_pretrained_kwargs") or {}
    if loading.get("center_writing_weights") and not any(isinstance(one, nn.LayerNorm) for one in model.modules()):
        yield (
            f"SAE {sae} says center_writing_weights, and is read without the mean of each vector; TransformerLens takes"
            f" it off in models with LayerNorm alone, and {name} has none: set the key to false if it was not taken off"
        )


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower())
