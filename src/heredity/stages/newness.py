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
from scipy.sparse import csr_array

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.engine.workers import Progress
from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader, encoded
from heredity.features.correlate import Matches
from heredity.features.effects import Splice, attribution_similarity, logit_similarity, splice
from heredity.features.fates import RARE_FIRINGS
from heredity.features.newness import Newness, newness
from heredity.report.edge import NewnessSummary, OriginSummary, PairsSummary, SpliceSummary
from heredity.report.record import Interval
from heredity.stages.lineage import COUNTS, read_matches, sampler_of
from heredity.stages.models import seed_of
from heredity.stages.readers import reader_of
from heredity.study import Edge, Init, Study
from heredity.text.tokens import BlockSampler

NEWNESS = "newness.json"
HALF = 0.5
"""The parent has a feature from this nu on, and moves on its firings from this strength on."""
ATTRIBUTED, SPLICED = 4_000, 2_000
"""Tokens, at most, that attributions are taken on and that features are moved on."""
_PAIRS = 200  # of inherited and of emerged features, whose effects are compared
_CONTROLS = 3
_RESAMPLES = 1_000


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


def distinct_blocks(sampler: BlockSampler, tokens: int) -> np.ndarray:
    """The first blocks of an order, int64 [blocks, context], without those that come again where a corpus is short."""
    count = min(-(-tokens // sampler.context_size), sampler.blocks_per_pass)
    _, first = np.unique(np.stack(sampler.origin(0, count)), axis=1, return_index=True)
    return sampler.take(0, count)[np.sort(first)]


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
    groups = groups_of(matches, found, inquiry.threshold)
    origins = origins_of(found)
    no_logits, no_effects = "", _unlike(*ends)
    pairs = (
        {} if no_effects else {fate: _pairs(matches, groups[fate] & origins["judged"], inquiry.seed) for fate in FATES}
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


def groups_of(matches: Matches, found: Newness, threshold: float) -> dict[str, np.ndarray]:
    """Child features by fate, each bool [d_child]: `emerged` and `inherited` as the edge counts them; `unseen` never
    fired on the edge's common trace, so that nothing could match them, but fire on the child's own text."""
    live, matched = matches.child_density > 0, matches.child_r[:, 0] > threshold
    return {"emerged": live & ~matched, "inherited": matched, "unseen": ~live & (found.firings > 0)}


def origins_of(found: Newness) -> dict[str, np.ndarray]:
    """What the parent has of each child feature, each bool [d_child].

    `judged`: fired often enough, and has a nu. Of these `new` (`Newness.new`), `surely_new` (by two standard errors),
    `turned` (new, but the parent's activations move on the same tokens), `missed` (not new; the parent has at least
    half of it).
    """
    with np.errstate(invalid="ignore"):
        judged = (found.firings >= RARE_FIRINGS) & np.isfinite(found.nu_eps) & np.isfinite(found.nu_r)
        new = judged & found.new()
        return {
            "judged": judged,
            "new": new,
            "surely_new": new & found.new(errors=2),
            "turned": new & (found.nu < HALF) & (found.strength >= HALF),
            "missed": judged & ~new & (found.nu >= HALF),
        }


def origin_summary(found: Newness, own: np.ndarray, origins: Mapping[str, np.ndarray]) -> OriginSummary:
    """Counts of some features by origin; own: bool [d_child]."""
    counts = {name: int((own & which).sum()) for name, which in origins.items()}
    judged = own & origins["judged"]
    return OriginSummary(
        features=int(own.sum()), **counts, nu=median(found.nu[judged]), strength=median(found.strength[judged])
    )


def median(values: np.ndarray) -> float:
    """Of the finite values; nan without any."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _first(blocks: np.ndarray, tokens: int) -> np.ndarray:
    return blocks[: max(1, tokens // blocks.shape[1])]


def _unlike(parent: Reader, child: Reader) -> str:
    """Why predictions of the two models cannot be compared; empty when they can."""
    sizes = [reader.model.get_input_embeddings().num_embeddings for reader in (parent, child)]  # type: ignore[operator]
    return "" if sizes[0] == sizes[1] else f"the parent knows {sizes[0]} tokens and the child {sizes[1]}"


def _pairs(matches: Matches, own: np.ndarray, seed: int) -> np.ndarray:
    """Some of these child features with their best match, int64 [n, 2] of (parent feature, child feature)."""
    matched = np.flatnonzero(own & (matches.child_match[:, 0] >= 0))
    if len(matched) > _PAIRS:
        matched = np.sort(np.random.default_rng(seed).choice(matched, _PAIRS, replace=False))
    return np.stack([matches.child_match[matched, 0].astype(np.int64), matched], axis=1)


def _spliced(
    ends: tuple[Reader, Reader], emerged: np.ndarray, blocks: np.ndarray, inquiry: Inquiry
) -> SpliceSummary | None:
    """What moving the emerged features does; None when none of them differs between the models on these blocks."""
    parent, child = ends
    differ = _differing(parent, child, blocks)
    chosen = np.flatnonzero(emerged & differ)
    if not len(chosen):
        return None
    others = int(differ.sum()) - len(chosen)
    controls = _CONTROLS if others >= len(chosen) else 0
    found = splice(parent.model, child, chosen, blocks, controls, inquiry.seed)
    return splice_summary(found, len(chosen), others, inquiry)


def _differing(parent: Reader, child: Reader, blocks: np.ndarray) -> np.ndarray:
    """Features of the child's SAE that differ somewhere between the two models' activations, bool [d_child]."""
    (of_child,) = encoded(child, blocks)
    (of_parent,) = encoded(child._replace(model=parent.model), blocks)
    change = csr_array(_matrix(of_child) - _matrix(of_parent))
    differ = np.zeros(of_child.d_sae, bool)
    differ[change.indices[change.data != 0]] = True
    return differ


def _matrix(acts: FeatureActs) -> csr_array:
    return csr_array((acts.values, acts.indices, acts.indptr), (acts.tokens, acts.d_sae))


def splice_summary(found: Splice, features: int, others: int, inquiry: Inquiry) -> SpliceSummary:
    """Figures of a splice with intervals by resampling its blocks.

    features: how many were moved. others: how many more differ between the models; controls are drawn from them.
    """
    controls = found.controls.mean(0) if len(found.controls) else np.full_like(found.before, np.nan)
    kl = np.stack([found.before, found.spliced, controls, found.all])
    blocks = kl.shape[1]
    weights = np.random.default_rng(inquiry.seed).multinomial(blocks, np.full(blocks, 1 / blocks), _RESAMPLES) / blocks
    figures, drawn = _shares(kl.mean(1)[None]), _shares(weights @ kl.T)
    ends = (1 - inquiry.level) / 2, (1 + inquiry.level) / 2
    intervals: dict[str, Interval] = {
        name: (float(np.quantile(values, ends[0])), float(np.quantile(values, ends[1])))
        for name, values in drawn.items()
        if np.isfinite(values).all()
    }
    return SpliceSummary(
        features=features,
        others=others,
        tokens=found.tokens,
        **{name: float(values[0]) for name, values in figures.items()},
        reach=found.reach,
        moved=found.moved,
        control_moved=median(found.controls_moved),
        intervals=intervals,
    )


def _shares(kl: np.ndarray) -> dict[str, np.ndarray]:
    """Each [n], from mean KLs [n, 4]: before, with the chosen, with others and with all moved."""
    before, spliced, control, every = kl.T
    possible = np.where(before > every, before - every, np.nan)
    recovered, by_chance = (before - spliced) / possible, (before - control) / possible
    found = {"before": before, "spliced": spliced, "control": control, "all": every}
    return found | {"recovered": recovered, "control_recovered": by_chance, "excess": recovered - by_chance}


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
