"""One published setting of a paper."""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """One published setting."""

    setting: str
    """Key of a study file, from the root of a part: `base` (models trained from scratch), `finetune`, `merge`, `stitch`
    (the first one), or a table of the study such as `sae`."""
    values: tuple[Any, ...]
    """The published value; where several are published or mean the same, all of them."""
    place: str
    """Where it is published."""
    said: str = ""
    """The value in words; by default the first of `values`."""
