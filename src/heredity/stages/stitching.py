"""All stages of a stitch, and all its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from heredity.engine.stage import Stage
from heredity.engine.store import Artifact
from heredity.report.stitch import StitchSummary
from heredity.stages.beginnings import beginning_label, beginnings_of, savings_of, source_label
from heredity.stages.bridge import bridge_edge, bridge_of, bridge_stage
from heredity.stages.carried import carried_of, carried_stages
from heredity.stages.kept import kept_of, kept_stage
from heredity.stages.probes import probe_stages, probes_of
from heredity.stages.steering import steering_of, steering_stage
from heredity.stages.stitch import maps_of, maps_stage, stitch_inputs
from heredity.study import Edge, Study

if TYPE_CHECKING:
    from heredity.stages import Base, Followed


def stitch_stages(study: Study, name: str, base: Base, followed: Mapping[Edge, Followed]) -> list[Stage]:
    """The maps of a stitch and everything that goes through them, inputs first."""
    config = study.config.stitch[name]
    models, tokens, tokenizer = base.models, base.tokens, base.tokenizer
    maps = maps_stage(study, name, models, tokens, tokenizer)
    saes = carried_stages(study, name, models, maps, tokens, tokenizer)
    inputs = stitch_inputs(study, name, models, maps, tokens, tokenizer)
    first = config.widths[0]
    source = saes[source_label(name, first)]
    native = saes[beginning_label(name, first, "random")] if "random" in config.arms else None
    further = [
        *probe_stages(study, name, inputs, base.corpora, source, native),
        steering_stage(study, name, inputs, base.corpora),
        kept_stage(study, name, inputs, base.corpora, source),
    ]
    edge = bridge_edge(study, name)
    if edge is not None:
        further.append(bridge_stage(study, name, inputs, followed[edge].match, followed[edge].parent_sae))
    return [maps, *saes.values(), *(stage for stage in further if stage is not None)]


def stitch_summary(study: Study, artifacts: Mapping[str, Artifact], name: str) -> StitchSummary:
    """All figures of a stitch."""
    config = study.config.stitch[name]
    probes = {label: own for label, own in artifacts.items() if label.startswith(f"probes/{name}-")}
    steering, kept, bridge = (artifacts.get(f"{kind}/{name}") for kind in ("steering", "kept", "bridge"))
    return StitchSummary(
        maps=maps_of(artifacts[f"stitch/{name}"]),
        carried={width: carried_of(artifacts, name, width) for width in config.widths},
        beginnings={width: beginnings_of(artifacts, name, width) for width in config.widths if config.arms},
        savings=savings_of(artifacts, name, config),
        probes={label.removeprefix(f"probes/{name}-"): probes_of(own) for label, own in probes.items()},
        steering=steering_of(steering) if steering else None,
        kept=kept_of(kept) if kept else None,
        bridge=bridge_of(bridge) if bridge else None,
    )
