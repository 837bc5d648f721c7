"""Stages that ask whether the features that emerged along an edge are really new, and what they do.

Activation similarity says which child features have no partner in the parent's SAE. Here the parent's activations are
asked as well (latent scaling), and the predictions: what partners do to the logits, and how much of the difference
between the two models the emerged features carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.engine.workers import Progress
from heredity.features.collect import Reader
from heredity.features.correlate import Matches, median
from heredity.features.effects import (
    Splice,
    attribution_similarity,
    differing,
    logit_similarity,
    splice,
    splice_figures,
)
from heredity.features.newness import Newness, groups_of, matched_pairs, newness, origins_of
from heredity.report.edge import NewnessSummary, OriginSummary, PairsSummary, SpliceSummary
from heredity.report.record import Interval
from heredity.stages.lineage import COUNTS, read_matches, sampler_of
from heredity.stages.models import seed_of
from heredity.stages.readers import reader_of
from heredity.study import Edge, Init, Study
from heredity.text.tokens import distinct_blocks

NEWNESS = "newness.json"
ATTRIBUTED, SPLICED = 4_000, 2_000
"""Tokens, at most, that attributions are taken on and that features are moved on."""
_PAIRS = 200  # of inherited and of emerged features, whose effects are compared
_CONTROLS = 3


class Inquiry(NamedTuple):
    """How the features of an edge are asked about."""

    threshold: float
    """On r: child features without a match above it emerged."""
    seed: int
    """Of samples, controls and resamples."""
    level: float = 0.95
    """Nominal coverage of the intervals."""


def newness_stage(
    study: Study,
    edge: Edge,
    init: Init,
    models: dict[str, Stage],
    saes: dict[str, Stage],
    match: Stage,
    tokens: dict[str, Stage],
) -> Stage:
    """Whether the features that emerged along an edge are new, on the text of the child's trace.

    The child's trace and not the edge's common one, which matches rest on: an emerged feature often lives on the text
    that only the child was trained on. Its corpora count alike, so that a short one is not lost in a long one.
    """
    controls, context = study.config.controls, study.config.sae.context_size
    corpora = study.trace(edge.child)
    seed = seed_of(study, "newness", edge.name)
    settings = {
        "hook_point": study.config.hook_point,
        "precision": study.config.precision,
        "tokens": controls.newness,
        "level": controls.level,
        "context_size": context,
        "seed": seed,
    }
    inputs = {"parent": models[edge.parent], "child": models[edge.child]}
    inputs |= {"parent_sae": saes[edge.parent], "child_sae": saes[edge.child], "match": match}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in corpora}

    def make(work: Work) -> None:
        blocks = distinct_blocks(sampler_of(work, "train", context, seed, "equal"), controls.newness)
        parent, child = (
            reader_of(study, work.inputs[end], [work.inputs[f"{end}_sae"]])() for end in ("parent", "child")
        )
        threshold = work.inputs["match"].json(COUNTS)["threshold"]
        found = inquire(
            work.folder,
            (parent, child),
            read_matches(work.inputs["match"].folder),
            blocks,
            Inquiry(threshold, seed, controls.level),
            work.progress,
        )
        write_json(work.folder / NEWNESS, found.model_copy(update={"corpora": corpora}).model_dump(mode="json"))

    return Stage("newness", f"{edge.slug}-{init}", settings, inputs, make)


def inquire(
    folder: Path,
    ends: tuple[Reader, Reader],
    matches: Matches,
    blocks: np.ndarray,
    inquiry: Inquiry,
    progress: Progress | None = None,
) -> NewnessSummary:
    """Judge the newness of every child feature of an edge and write it into a folder, as `newness.parquet`.

    ends: parent and child, a model and one SAE each. matches: of the same SAEs. blocks: tokens [blocks, context].
    """

    def done(parts: int) -> None:
        if progress:
            progress(parts, 3)

    found = newness(*ends, blocks)
    done(1)
    groups = groups_of(matches, found.firings, inquiry.threshold)
    origins = origins_of(found)
    no_logits, no_effects = "", _unlike(*ends)
    pairs = (
        {}
        if no_effects
        else {fate: matched_pairs(matches, groups[fate] & origins["judged"], _PAIRS, inquiry.seed) for fate in FATES}
    )
    logits, attributed = np.full((2, len(found.nu)), np.nan)
    if any(map(len, pairs.values())):
        every = np.concatenate(list(pairs.values()))
        attributed[every[:, 1]] = attribution_similarity(*ends, every, _first(blocks, ATTRIBUTED))
        try:
            logits[every[:, 1]] = logit_similarity(*ends, every)
        except ValueError as error:  # a hook point or a model without a linear way to the logits
            no_logits = str(error)
    done(2)
    moved = None if no_effects else _spliced(ends, groups["emerged"], _first(blocks, SPLICED), inquiry)
    done(3)
    _write(folder, matches, found, groups | origins, {"logit_similarity": logits, "attribution_similarity": attributed})
    counted = {name: origin_summary(found, own, origins) for name, own in groups.items()}
    effects = {
        fate: PairsSummary(pairs=len(own), logits=median(logits[own[:, 1]]), attribution=median(attributed[own[:, 1]]))
        for fate, own in pairs.items()
    }
    return NewnessSummary(
        tokens=found.tokens,
        emerged=counted["emerged"],
        inherited=counted["inherited"],
        unseen=counted["unseen"],
        effects=effects,
        no_logits=no_effects or no_logits,
        splice=moved,
    )


FATES = ("inherited", "emerged")
"""Fates of live child features."""


def origin_summary(found: Newness, own: np.ndarray, origins: Mapping[str, np.ndarray]) -> OriginSummary:
    """Counts of some features by origin; own: bool [d_child]."""
    counts = {name: int((own & which).sum()) for name, which in origins.items()}
    judged = own & origins["judged"]
    return OriginSummary(
        features=int(own.sum()), **counts, nu=median(found.nu[judged]), strength=median(found.strength[judged])
    )


def _first(blocks: np.ndarray, tokens: int) -> np.ndarray:
    return blocks[: max(1, tokens // blocks.shape[1])]


def _unlike(parent: Reader, child: Reader) -> str:
    """Why predictions of the two models cannot be compared; empty when they can."""
    sizes = [reader.model.get_input_embeddings().num_embeddings for reader in (parent, child)]  # type: ignore[operator]
    return "" if sizes[0] == sizes[1] else f"the parent knows {sizes[0]} tokens and the child {sizes[1]}"


def _spliced(
    ends: tuple[Reader, Reader], emerged: np.ndarray, blocks: np.ndarray, inquiry: Inquiry
) -> SpliceSummary | None:
    """What moving the emerged features does; None when none of them differs between the models on these blocks."""
    parent, child = ends
    differ = differing(parent, child, blocks)
    chosen = np.flatnonzero(emerged & differ)
    if not len(chosen):
        return None
    others = int(differ.sum()) - len(chosen)
    controls = _CONTROLS if others >= len(chosen) else 0
    found = splice(parent.model, child, chosen, blocks, controls, inquiry.seed)
    return splice_summary(found, len(chosen), others, inquiry)


def splice_summary(found: Splice, features: int, others: int, inquiry: Inquiry) -> SpliceSummary:
    """Figures of a splice with intervals by resampling its blocks.

    features: how many were moved. others: how many more differ between the models; controls are drawn from them.
    """
    figures = splice_figures(found, inquiry.seed, inquiry.level)
    plain = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
    ends = {name: (figures.get(f"{name}_low"), figures.get(f"{name}_high")) for name in plain}
    intervals: dict[str, Interval] = {name: pair for name, pair in ends.items() if None not in pair}
    return SpliceSummary(features=features, others=others, tokens=found.tokens, **plain, intervals=intervals)


def _write(
    folder: Path,
    matches: Matches,
    found: Newness,
    masks: Mapping[str, np.ndarray],
    effects: Mapping[str, np.ndarray],
) -> None:
    columns: dict[str, Any] = {
        "feature": np.arange(len(found.nu), dtype=np.int32),
        "match": matches.child_match[:, 0],
        "best_r": matches.child_r[:, 0],
        **masks,
        **{name: value for name, value in found._asdict().items() if isinstance(value, np.ndarray)},
        **effects,
    }
    table = pa.table(columns).replace_schema_metadata({"tokens": str(found.tokens)})
    pq.write_table(table, folder / "newness.parquet", compression="zstd")
