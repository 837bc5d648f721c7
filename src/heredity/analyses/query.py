"""Questions that a run answers at once: which features mean some tokens, and what became of a feature."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from heredity.analyses.analysis import Item
from heredity.analyses.hypotheses import described, hypothesis_of, kind_of, measured, top_tokens
from heredity.analyses.sample import Sample, sample_needs, sample_settings, shared_text
from heredity.engine.store import Artifact, ArtifactError
from heredity.study import CaseConfig, Study

if TYPE_CHECKING:
    from heredity.features.hypothesis import Ranking
    from heredity.results import Run


def named(features: str) -> dict[str, list[int]]:
    """Features by model, from `base/12,lua/345`. Raises ValueError for anything else."""
    chosen: dict[str, list[int]] = {}
    for part in features.split(","):
        model, _, index = part.strip().rpartition("/")
        if not model or not index.isdecimal():
            raise ValueError(f"feature {part.strip()!r}: must be a model, a slash and a number, such as base/12")
        if int(index) not in chosen.setdefault(model, []):
            chosen[model].append(int(index))
    return chosen


def one_named(feature: str) -> tuple[str, int]:
    """Model and number of `base/12`. Raises ValueError for anything else, several features included."""
    chosen = [(model, index) for model, indices in named(feature).items() for index in indices]
    if len(chosen) != 1:
        raise ValueError(f"{feature}: names {len(chosen)} features; give one of them")
    return chosen[0]


def check_followed(study: Study, name: str, place: str) -> None:
    """Raises ValueError, which names the place, for no model of the study and for one whose features it leaves out."""
    if name not in study.order:
        raise ValueError(f"{place}: no model of study {study.name}; models are {', '.join(study.order)}")
    if study.followed and name not in study.followed:
        own = ", ".join(study.followed)
        raise ValueError(f"{place}: {name} is on no edge, so its features are not followed; those of {own} are")


def sample_of(run: Run, models: Sequence[str], matched: bool = False, place: Item | None = None) -> Sample:
    """The sample of a run, with the activations of these models, and the matches that are done.

    place: instrument and site; the study's first ones by default. Raises ArtifactError for what is missing (all matches
    must be there if `matched`), ValueError for a study of stitches alone.
    """
    study = run.study
    if not study.instruments:
        raise ValueError(f"study {study.name} has stitches alone, no SAE of its models; see `heredity stitch`")
    needs: Any = sample_needs(study, place or run.item())
    inputs: dict[str, Any] = {"tokenizer": run.artifact(needs["tokenizer"]), "match": {}}
    inputs["tokens"] = {name: run.artifact(need) for name, need in needs["tokens"].items()}
    inputs["acts"] = {name: run.artifact(needs["acts"][name]) for name in models}
    for name, need in needs["match"].items():
        with nullcontext() if matched else suppress(ArtifactError):
            inputs["match"][name] = run.artifact(need)
    return Sample(inputs, sample_settings(study), shared_text)


def find(
    run: Run, case: CaseConfig, models: Sequence[str] = (), by: Ranking = "sensitivity", top: int = 10
) -> dict[str, Any]:
    """The features of each model that fit a hypothesis, best first, and what became of them along every edge.

    models: names; all by default. Only tokens, tokenizer and the activations of these models must be done; an edge that
    is not matched yet is left out. Raises ValueError for a stage that is missing, an unknown model, and a hypothesis
    that holds nowhere in the sample or everywhere.
    """
    from heredity.features.hypothesis import MINIMUM_FIRINGS, hits, llr, ranked

    study = run.study
    models = models or study.followed
    for name in models:
        check_followed(study, name, f"--model {name}")
    sample = sample_of(run, models)
    sampled, kept = sample.common
    ids = sample.ids if kept is None else sample.ids.ravel()[kept]
    held = hits(hypothesis_of(case, study.root), sample.ids, sample.vocabulary).at(kept)
    asked = described(case, held, ids, sample.vocabulary)
    if not 0 < asked["hits"] < asked["positions"]:
        absent = f"; not in the vocabulary: {asked['not_in_vocabulary']}" if asked["not_in_vocabulary"] else ""
        raise ValueError(
            f"{asked['hits']} of the sample's {asked['positions']:,} tokens fit {kind_of(asked['hypothesis'])}{absent}"
            "; give tokens that occur in some places, as they are written in this vocabulary"
        )
    rows: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for model in models:
        acts = sampled[model]
        ratios = llr(acts, held.mask, held.unigram)
        for feature in ranked(ratios, by, top).tolist():
            row = measured(ratios, feature) | {"density": int(ratios.firings[feature]) / acts.counted}
            tokens = top_tokens(acts, feature, ids, sample.vocabulary)
            row |= {
                "matches": matches_of(sample, model, feature),
                "verdicts": verdicts_of(run, run.item(), model, feature),
            }
            rows[model].append(row | {"top_tokens": tokens})
    head = {
        "study": study.name,
        "instrument": study.instrument,
        "site": study.site,
        "by": by,
        "minimum_firings": MINIMUM_FIRINGS,
    }
    return head | asked | {"models": rows}


_kept = lru_cache(maxsize=256)
"""For what is read of an artifact, which is never written again: many features are asked for one after another."""


@_kept
def _by_feature(artifact: Artifact, name: str) -> tuple[np.ndarray, pa.Table]:
    """A table with its rows by feature, otherwise in their order, and the feature of each."""
    table = artifact.table(name)
    features = table["feature"].to_numpy()
    order = np.argsort(features, kind="stable")
    return features[order], table.take(order)


@_kept
def _scales(artifact: Artifact) -> dict[str, float]:
    """By end of an edge, the scale of its verdicts."""
    return {row["end"]: row["scale"] for row in artifact.table("verdicts").to_pylist()}


def rows_of_stage(
    run: Run, kind: str, item: Item, table: str, feature: int | None = None, **where: str
) -> list[dict[str, Any]] | None:
    """Rows of a stage's table with these values, of one feature or of all; None where the stage is not done."""
    artifact = run.find((kind, item))
    if artifact is None:
        return None
    if feature is not None:  # a few rows, which Arrow would take longer to compare
        features, rows = _by_feature(artifact, table)
        first, last = np.searchsorted(features, (feature, feature + 1))
        own = rows.slice(first, last - first).to_pylist()
        return [row for row in own if all(row[name] == value for name, value in where.items())]
    rows = artifact.table(table)
    for name, value in where.items():
        rows = rows.filter(pc.equal(rows[name], value))  # pyright: ignore[reportAttributeAccessIssue]
    return rows.to_pylist()


def matches_of(sample: Sample, model: str, feature: int) -> list[dict[str, Any]]:
    """Best match of a feature along each edge of its model: child features first, then parent features."""
    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in sample.edges:
            if getattr(edge, end) != model:
                continue
            matches, threshold = sample.matches[edge], sample.threshold[edge]
            match, r = getattr(matches, f"{end}_match")[feature, 0], getattr(matches, f"{end}_r")[feature, 0]
            found = {"feature": int(match), "r": float(r)} if match >= 0 else {"feature": None, "r": None}
            row = {"edge": edge.name, "model": getattr(edge, other)} | found
            rows.append(row | {"threshold": threshold, "persists": bool(r > threshold)})
    return rows


def near_of(sample: Sample, model: str, feature: int) -> list[dict[str, Any]]:
    """All listed matches of a feature along each edge of its model, in the order of `matches_of`; none where it has
    none."""
    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in (edge for edge in sample.edges if getattr(edge, end) == model):
            found = sample.matches[edge]
            pairs = zip(getattr(found, f"{end}_match")[feature], getattr(found, f"{end}_r")[feature], strict=True)
            matches = [{"feature": int(match), "r": float(r)} for match, r in pairs if match >= 0]
            named = {"model": model, "feature": feature, "edge": edge.name, "other": getattr(edge, other)}
            rows.append(named | {"matches": matches})
    return rows


def verdicts_of(run: Run, place: Item, model: str, feature: int) -> list[dict[str, Any]]:
    """Verdict on a feature, its evidence and its reason along each edge of its model that has them: child features
    first. place: instrument and site."""
    from heredity.features.verdicts import reason

    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in (edge for edge in run.study.edges if getattr(edge, end) == model):
            item = {**place, "edge": edge.name, "text": "common"}
            artifact = run.find(("verdicts", item))
            scales = _scales(artifact) if artifact else {}
            if end not in scales:
                continue
            for row in rows_of_stage(run, "verdicts", item, "evidence", feature=feature, end=end) or ():
                found = {name: row[name] for name in ("verdict", "stability", "match_r", "map_r", "p_lost")}
                for name in ("transmission", "strength"):
                    found[name] = None if row[name] is None else row[name] / scales[end]
                found["reason"] = reason(row | found)
                rows.append({"edge": edge.name, "model": getattr(edge, other), "end": end, **found})
    return rows
