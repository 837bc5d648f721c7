"""Settings given beside a study file."""

from __future__ import annotations

import tomllib
from typing import Any


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one key of parsed TOML by `dotted.key=value`, the value in TOML syntax; a bare word is taken as a string.

    Tables that are missing are made. Raises ValueError for another form and for a key below a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError("must look like sae.tokens=1000000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ValueError(f"{table} is a value, not a table; name one of its keys' tables")
    values[last] = value
