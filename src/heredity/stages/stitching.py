"""All stages of a stitch."""

from __future__ import annotations

from collections.abc import Mapping

from heredity.engine import Stage
from heredity.stages.stitch import maps_stage
from heredity.study import Study


def stitch_stages(
    study: Study, name: str, models: Mapping[str, Stage], tokens: Mapping[str, Stage], tokenizer: Stage
) -> list[Stage]:
    """The maps of a stitch and everything that goes through them."""
    maps = maps_stage(study, name, models, tokens, tokenizer)
    return [maps]
