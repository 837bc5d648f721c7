"""Whether two tokenizers mean the same by an id, so that models can be compared position by position.

Text is encoded once, by the parent's tokenizer. The child can read those ids where the vocabularies agree on all ids
that both have and text is cut in the same way. Roles (end, beginning, padding, unknown) and tokens that only one of
them has change no id of the other: they are told, and allowed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROLES = {"eos_token": "end", "bos_token": "beginning", "pad_token": "padding", "unk_token": "unknown"}
# Of the model: what says which token stands for unknown text is a role, and what a training draws at random is no
# reading. Offsets are not ids.
_NO_MEANING = ("vocab", "merges", "unk_token", "unk_id", "dropout", "trim_offsets")
_STITCH = "to compare across tokenizers, fit a stitch (heredity.stitch.aligned.aligned_texts)"


def meaning(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """All that decides which ids plain text has: normalizer, pre-tokenizer, model with its merges or scores, and the
    token of every id; `own` are the tokens that text is cut into, without those that were added."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    parts = {name: _bare(state[name]) for name in ("normalizer", "pre_tokenizer")}
    # transformers itself cleans no ids, and post-processors only add roles at the ends
    parts |= {"model type": model.get("type"), "model settings": _bare(model)}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else []  # Unigram: pairs of piece and score
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["content"] for token in state["added_tokens"]}
    own = sorted(set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)) - added)
    return parts | {"merges": merges, "scores": scores, "tokens": tokens, "own": own}


def difference(parent: PreTrainedTokenizerFast, child: PreTrainedTokenizerFast) -> str | None:
    """The first thing by which the child reads text otherwise than the parent, and the way out; None if there is none:
    the ids that both have mean the same."""
    a, b = meaning(parent), meaning(child)
    one, other = a["tokens"], b["tokens"]
    shared = sorted(set(one) & set(other))
    if apart := [index for index in shared if one[index] != other[index]]:
        first = apart[0]
        return (
            f"id {first} is {one[first]!r} in the one and {other[first]!r} in the other ({len(apart):,} of "
            f"{len(shared):,} shared ids differ); {_STITCH}"
        )
    for name in ("model type", "normalizer", "pre_tokenizer", "model settings"):
        if a[name] != b[name]:
            return f"the {name} is {_shown(a[name])} in the one and {_shown(b[name])} in the other; {_STITCH}"
    if alone := sorted(set(a["own"]) ^ set(b["own"])):
        owner = "one" if alone[0] in a["own"] else "other"
        such = f"{len(alone):,} such, not as added tokens"
        return f"{alone[0]!r} is in the vocabulary of the {owner} alone ({such}); {_STITCH}"
    for name in ("merges", "scores"):
        if a[name] != b[name]:
            pairs = enumerate(zip(a[name], b[name], strict=False))
            place = next((i for i, (x, y) in pairs if x != y), min(len(a[name]), len(b[name])))
            ends = [repr(one[place]) if place < len(one) else "none" for one in (a[name], b[name])]
            return (
                f"number {place} of its {name} is {ends[0]} in the one and {ends[1]} in the other ({len(a[name]):,} "
                f"and {len(b[name]):,} {name}); {_STITCH}"
            )
    return None


def notes(parent: PreTrainedTokenizerFast, child: PreTrainedTokenizerFast) -> list[str]:
    """What differs between two tokenizers that mean the same by an id: roles, and tokens that one of them lacks."""
    told = []
    for role, word in _ROLES.items():
        one, other = getattr(parent, role, None), getattr(child, role, None)
        if one != other:
            told.append(f"its {word} token is {other!r}, the parent's {one!r}")
    if told:
        told[-1] += "; the parent's end token closes documents in both"
    one, other = parent.get_vocab(), child.get_vocab()
    for more, less, whose in ((other, one, "it has"), (one, other, "the parent has")):
        if alone := sorted(set(more.values()) - set(less.values())):
            names = {index: token for token, index in more.items()}
            shown = ", ".join(repr(names[index]) for index in alone[:4]) + (" ..." if len(alone) > 4 else "")
            told.append(f"{whose} {len(alone):,} tokens that the other lacks ({shown}); the shared ids are compared")
    return told


def check_rows(tokenizer: PreTrainedTokenizerFast, rows: int, name: str) -> None:
    """That a model of so many embedding rows knows every id that text can have. Raises ValueError.

    Added tokens beyond the rows are let pass, since text holds none of them: Gemma 3 without its vision tower has one.
    """
    ids = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    ends = {} if tokenizer.eos_token_id is None else {str(tokenizer.eos_token): tokenizer.eos_token_id}
    token, last = max({**ids, **ends}.items(), key=lambda item: item[1], default=("", -1))
    if last >= rows:
        raise ValueError(
            f"{name}: its embedding has {rows:,} rows, and the tokenizer gives id {last:,} ({token!r}); tokenizer and "
            "weights belong to different models"
        )


def _bare(part: Any) -> Any:
    """A part of a tokenizer's state without what gives no ids; an empty sequence is none."""
    if isinstance(part, dict):
        kept = {name: _bare(value) for name, value in part.items() if name not in _NO_MEANING}
        steps = [value for value in kept.values() if isinstance(value, list)]
        return None if kept.get("type") == "Sequence" and steps == [[]] else kept
    return [_bare(one) for one in part] if isinstance(part, list) else part


def _shown(part: Any) -> str:
    text = json.dumps(part, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
