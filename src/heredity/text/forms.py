"""Rows that hold no plain text: dialogues as lists of messages, rendered by the tokenizer's chat template, and token
ids, decoded by the tokenizer that they came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from heredity.errors import short

Form = Literal["text", "chat", "ids"]

COLUMNS = ("text", "messages", "conversations", "input_ids")  # read where no column is named, the first that is there
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # as in ShareGPT's lists


TOKENIZED = (
    'set format = "ids" and load the tokenizer they came from (tokenizer.load, or the start model\'s), or decode them '
    "to a column of text"
)


class FormError(ValueError):
    """What a row holds cannot be made text; without the place."""


class Reading(NamedTuple):
    """One text of a row."""

    text: str
    spans: tuple[int, ...] = ()  # of a dialogue: start, end, start, end ... of what the assistant says, characters


def form_of(value: object) -> Form | None:
    """What a column's value is; None for nothing that could be text."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value:
        if all(isinstance(one, Mapping) for one in value) and {"role", "from"} & value[0].keys():
            return "chat"
        if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            return "ids"
    return None


def rendered(value: Sequence[Mapping[str, Any]], tokenizer: Any) -> Reading:
    """A dialogue as the tokenizer's chat template writes it, but for a beginning-of-text token.

    Raises FormError for a tokenizer without a template, and for a template that refuses the dialogue or loses a part
    of it.
    """
    messages = [_message(one) for one in value]
    if not all(messages):
        number = messages.index(None)
        keys = short(", ".join(map(str, value[number])) or "no keys", 80)
        raise FormError(
            f"message {number + 1} has {keys}, and lacks role or content (from or value); repair that record"
        )
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise FormError(
            "holds a list of messages, which needs a tokenizer with a chat template; load one that has it "
            '(tokenizer.load, or the start model\'s folder), or render the dialogues yourself and set format = "text"'
        )
    given = [message for message in messages if message]
    plain = [{**one, "content": _plain(one["content"])} for one in given]
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in plain]
    fault = ""
    for form in (plain, parts):  # some templates want content as a list of parts, and write nothing of a string
        try:
            text = str(tokenizer.apply_chat_template(form, tokenize=False))
        except Exception as error:  # whatever the template's own code raises
            fault = fault or f"the chat template refuses the dialogue ({' '.join(str(error).split())[:200]})"
            continue
        text = text.removeprefix(tokenizer.bos_token or "")
        if (places := _places(text, plain)) is not None:
            return Reading(text, tuple(at for own, span in places if own == "assistant" for at in span))
        fault = "the chat template leaves out what a message says"
    raise FormError(f"{fault}; repair or drop that record, or leave such rows out with skip_damaged = 0.01")


def decoded(ids: Sequence[int], tokenizer: Any) -> tuple[list[Reading], int, int]:
    """Texts of a row of token ids, parted at special tokens; how many ids come out of them again, and of how many.

    Raises FormError for no tokenizer, and for ids beyond its vocabulary.
    """
    if tokenizer is None:
        raise FormError(f"holds token ids, not text; {TOKENIZED}")
    most = max(tokenizer.get_vocab().values())
    if wrong := [number for number in ids if not 0 <= number <= most]:
        beyond = f"{wrong[0]} is beyond this one's {most}; load theirs (tokenizer.load)"
        raise FormError(f"holds token ids of another tokenizer: {beyond}")
    special = set(tokenizer.all_special_ids)
    runs: list[list[int]] = [[]]
    for number in ids:
        if number in special:
            runs.append([])
        else:
            runs[-1].append(number)
    runs = [run for run in runs if run]
    found = [str(tokenizer.decode(run, clean_up_tokenization_spaces=False)) for run in runs]
    again = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in found]
    same = sum((Counter(run) & Counter(other)).total() for run, other in zip(runs, again, strict=True))
    total = sum(max(len(run), len(other)) for run, other in zip(runs, again, strict=True))
    return [Reading(text) for text in found], same, total


def _message(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """Role and content under their usual names; None where there is no role."""
    role = one.get("role", one.get("from"))
    if not isinstance(role, str) or ("content" not in one and "value" not in one):
        return None
    rest = {key: value for key, value in one.items() if key not in ("from", "value") and value is not None}
    return {**rest, "role": _ROLES.get(role, role), "content": one.get("content", one.get("value"))}


def _plain(content: Any) -> str:
    """Content as text: itself, or its parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in content)
    return "" if content is None else str(content)


def _places(text: str, messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[int, int]]] | None:
    """Role of each message and where its content stands in the rendered text; None where one is missing.

    Templates strip contents and may put a system message elsewhere; thoughts before `</think>` may be left out.
    """
    at, found = 0, list[tuple[str, tuple[int, int]]]()
    for message in messages:
        content = message["content"].strip()
        start = text.find(content, 0 if message["role"] == "system" else at)
        if start < 0:
            content = re.split(r"</think>", content)[-1].strip()
            start = text.find(content, at)
        if start < 0:
            return None
        found.append((message["role"], (start, start + len(content))))
        at = at if message["role"] == "system" else start + len(content)
    return found
