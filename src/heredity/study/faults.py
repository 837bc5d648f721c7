"""What pydantic finds wrong in a study file, in the words of the file."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from heredity.study.settings import StudyConfig


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong in a study's settings, with its place and what was given."""
    fault = error.errors(include_url=False)[0]
    # pydantic adds the tried type of a union to the place; nobody wrote that in the file
    where = ".".join(
        str(part) for part in fault["loc"] if not str(part).startswith(("constrained-", "literal[", "tuple["))
    )
    if fault["type"] == "extra_forbidden":
        known = _fields_at(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}" if known else "remove it"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: is missing; add it"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    shown = f"{given!r}: " if not isinstance(given, dict | list | tuple) else ""
    return f"{where or 'study'}: {shown}{message[0].lower() + message[1:]}"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = StudyConfig
    for part in loc:
        if isinstance(model, type) and issubclass(model, StudyConfig) and part in ("corpus", "model", "case", "stitch"):
            model = {"dict": model.model_fields[str(part)].annotation}
        elif isinstance(model, dict):
            model = model["dict"].__args__[1]
        else:
            annotation = model.model_fields[str(part)].annotation if hasattr(model, "model_fields") else None
            options = getattr(annotation, "__args__", (annotation,))
            model = next((option for option in options if hasattr(option, "model_fields")), None)
        if model is None:
            return []
    return sorted(model.model_fields) if hasattr(model, "model_fields") else []
