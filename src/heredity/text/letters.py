"""Characters that are several tokens: texts of tokens put together to letters."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte that is only a part of a character, in the text of a token."""
_ERRORS = "heredity.bytes by name"


def letters(texts: Sequence[str]) -> list[str]:
    """Texts of tokens in a row, where characters that are several tokens stand whole at their last one and those before
    are empty; a byte that is part of none keeps its value. Joined, they are the text."""
    if "<0x" not in "".join(texts):
        return list(texts)
    decoder = codecs.getincrementaldecoder("utf-8")(_ERRORS)
    found = []
    for text in texts:
        parts = BYTE.split(text)  # text and bytes in turn
        data = b"".join(bytes.fromhex(one) if at % 2 else one.encode() for at, one in enumerate(parts))
        found.append(decoder.decode(data))
    found[-1:] = [one + decoder.decode(b"", final=True) for one in found[-1:]]
    return found


def spelled(raw: bytes) -> str:
    """Bytes as text, those that are no character by their value."""
    return raw.decode("utf-8", _ERRORS)


def _named_bytes(error: UnicodeError) -> tuple[str, int]:
    """What is no UTF-8, byte by byte."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _named_bytes)
