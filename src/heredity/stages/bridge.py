"""The stage that sets a lineage matched through the maps of a stitch beside one matched by correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.features.correlate import Matches
from heredity.features.criteria import agreement
from heredity.report.bridge import AgreementSummary, BridgeSummary, ComparedSummary
from heredity.sae.formats import read_sae
from heredity.stages.lineage import COUNTS, read_matches
from heredity.stages.models import seed_of
from heredity.stages.stitch import maps_of, sides_of, stitch_blocks
from heredity.study import Edge, Study

if TYPE_CHECKING:
    from heredity.stitch.attribution import Side

BRIDGE = "bridge.json"
BRIDGE_TABLE = "bridge.parquet"


def bridge_edge(study: Study, name: str) -> Edge | None:
    """The edge of the study that a stitch goes along, from parent to child; None if it is none."""
    config = study.config.stitch[name]
    edge = Edge(config.source, config.target)
    return edge if edge in study.edges else None


def bridge_stage(study: Study, name: str, inputs: Mapping[str, Stage], match: Stage, parent_sae: Stage) -> Stage:
    """Each feature of the parent by its r with itself carried to the child, beside its best match there.

    inputs: what `stitch_inputs` gives, of a stitch with a `bridge_edge`. match: that edge's, by the study's instrument.
    parent_sae: the parent's, by the same.
    """
    config, seed = study.config.stitch[name], seed_of(study, "bridge", name)
    settings = {
        **config.model_dump(include={"evaluation", "context_size"}),
        "hook_point": study.config.hook_point,
        "precision": study.config.precision,
        "one_sae": study.instrument == "joint",
        "seed": seed,
    }

    def make(work: Work) -> None:
        edge, found = Edge(config.source, config.target).name, maps_of(work.inputs["stitch"])
        points, wanted = (found.source_hook_point, found.target_hook_point), study.config.hook_point
        if points == (wanted, wanted):
            told = BridgeSummary(edge=edge, compared=_compared(study, work, name, seed))
        else:
            reason = (
                f"the maps go from {points[0]} to {points[1]}, but features are followed at {wanted}; give the stitch "
                f'source_hook_point = target_hook_point = "{wanted}"'
            )
            told = BridgeSummary(edge=edge, compared=None, reason=reason)
        write_json(work.folder / BRIDGE, told.model_dump(mode="json"))

    return Stage("bridge", name, settings, {**inputs, "match": match, "parent_sae": parent_sae}, make)


def bridge_of(artifact: Artifact) -> BridgeSummary:
    """The figures of a `bridge` artifact."""
    return BridgeSummary.model_validate(artifact.json(BRIDGE))


def _compared(study: Study, work: Work, name: str, seed: int) -> ComparedSummary:
    from heredity.lm.activations import activations
    from heredity.sae.evaluate import quality
    from heredity.stitch.attribution import Side, activation_correlation
    from heredity.stitch.transfer import transfer_sae

    config, precision, sides = study.config.stitch[name], study.config.precision, sides_of(work)
    blocks = stitch_blocks(work, "validation", config.evaluation, config.context_size, seed)
    sae = read_sae(work.inputs["parent_sae"] / "sae")[0].to(sides.stitch.up.weight.device)
    parent = Side(sides.source, sides.source_hook_point, sae, precision)
    carried = transfer_sae(sae, *sides.stitch)
    readers = {"carried": Side(sides.target, sides.target_hook_point, carried, precision)}
    if carried.d_in == sae.d_in:
        readers["unchanged"] = readers["carried"]._replace(sae=sae)

    def explained(side: Side) -> float:
        return quality(side.sae, activations(side.model, side.hook_point, blocks, side.precision)).explained_variance

    variances, r = {"parent": explained(parent)}, dict[str, np.ndarray]()
    for done, (arm, reader) in enumerate(readers.items(), 1):
        work.progress(done, len(readers) + 1)
        r[arm] = activation_correlation(parent, reader, blocks).r
        variances[arm] = explained(reader)
    matches, threshold = read_matches(work.inputs["match"].folder), work.inputs["match"].json(COUNTS)["threshold"]
    _write(work, matches, r, threshold)
    best = matches.parent_r[:, 0]
    live = np.isfinite(best)
    agreed = {arm: AgreementSummary(**agreement(best[live], own[live], threshold)._asdict()) for arm, own in r.items()}
    return ComparedSummary(
        hook_point=sides.source_hook_point,
        threshold=threshold,
        tokens=blocks.size,
        live=int(live.sum()),
        matched=int((best > threshold).sum()),
        one_sae=work.config["one_sae"],
        carried=agreed["carried"],
        unchanged=agreed.get("unchanged"),
        parent_explained_variance=variances["parent"],
        carried_explained_variance=variances["carried"],
        unchanged_explained_variance=variances.get("unchanged"),
    )


def _write(work: Work, matches: Matches, r: Mapping[str, np.ndarray], threshold: float) -> None:
    best = matches.parent_r[:, 0]
    columns: dict[str, Any] = {
        "feature": np.arange(len(best), dtype=np.int32),
        "match": matches.parent_match[:, 0],
        "matched_r": best,
        "density": matches.parent_density,
        **{f"{arm}_r": own for arm, own in r.items()},
        "matched": best > threshold,
        **{arm: own > threshold for arm, own in r.items()},
    }
    pq.write_table(pa.table(columns), work.folder / BRIDGE_TABLE, compression="zstd")
