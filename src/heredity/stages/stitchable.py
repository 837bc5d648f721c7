"""What can be told to be wrong with a stitch before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from heredity.study import RANKED, Study, StudyError


def check_stitch(study: Study, name: str, shapes: Mapping[str, SimpleNamespace | Any | None]) -> None:
    """That the maps of a stitch can be fitted and its SAEs trained; as far as can be told.

    shapes: of its `source` and `target`, as far as they are known. Raises `StudyError`.
    """
    from heredity.lm.hooks import HookPointError, width

    config = study.config.stitch[name]
    points = {"source": config.source_hook_point or study.config.hook_point, "target": config.target_hook_point}
    for end, point in points.items():
        key = "hook_point" if end == "source" and not config.source_hook_point else f"stitch.{name}.{end}_hook_point"
        shape = shapes[end]
        try:
            _ = width(shape, point) if shape and point else None
        except HookPointError as error:
            raise StudyError(f"{study.name}: {key}: {error} (model {getattr(config, end)})") from None
        if point and not is_residual(point):
            raise StudyError(
                f"{study.name}: {key}: {point} is a part of a layer, and the rest of the model passes by it; a stitch "
                f"joins residual streams: give a place such as blocks.1.hook_resid_pre (stitch {name})"
            )
    d_a, d_b = (
        getattr(shapes[end], "hidden_size", None) or getattr(shapes[end], "n_embd", 0) for end in ("source", "target")
    )
    if d_a and d_b:
        check_method(study, name, d_a, d_b)
    for key, least in (("tokens", config.context_size), ("held_out", 2 * config.context_size)):
        if getattr(config, key) < least:
            raise StudyError(
                f"{study.name}: stitch.{name}.{key}: {getattr(config, key)} tokens do not fill the blocks of "
                f"{config.context_size} that it takes; give at least {least}"
            )
    _check_k(study, name)


def check_method(study: Study, name: str, d_a: int, d_b: int) -> None:
    """That maps from width d_a to d_b can be fitted by the method of a stitch. Raises `StudyError`."""
    config = study.config.stitch[name]
    if config.method == "procrustes" and d_a > d_b:
        raise StudyError(
            f"{study.name}: stitch.{name}.method: procrustes maps into a space at least as wide, and {config.target} "
            f"({d_b}) is narrower than {config.source} ({d_a}); choose joint or ridge, or swap source and target"
        )


def is_residual(hook_point: str) -> bool:
    """Whether all of the residual stream passes a hook point, as far as its name tells."""
    if hook_point.startswith("blocks."):
        return re.fullmatch(r"blocks\.\d+\.hook_resid_(pre|mid|post)", hook_point) is not None
    path, _, side = hook_point.partition(":")
    inner = re.search(r"\.\d+\.(.+)$", path)
    # What a layer's norms read is the stream; those further inside, such as of queries, read a part of it.
    return inner is None or (side == "input" and re.fullmatch(r"\w*(norm|ln_)\w*", inner[1]) is not None)


def _check_k(study: Study, name: str) -> None:
    config, sae = study.config.stitch[name], study.config.sae
    most = sae.k if sae.activation in RANKED else sae.l0[1]
    if most > min(config.widths):
        key = "sae.k" if sae.activation in RANKED else "sae.l0"
        raise StudyError(
            f"{study.name}: {key}: {most:g} is more than the {min(config.widths)} features of stitch.{name}.widths; "
            "lower it"
        )
