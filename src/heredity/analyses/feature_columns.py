"""Every feature of a place in short columns: what the page filters, sorts and counts without asking for one of them.

Numbers are as short as the page shows them, so that 4 models of 16,384 features stay within a few megabytes. r is held
in ten-thousandths, rounded up: a threshold of as many digits divides features as it divides the r themselves.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.analyses.features import FEATURES
from heredity.analyses.query import rows_of_stage
from heredity.engine.store import ArtifactError

if TYPE_CHECKING:
    from heredity.analyses.inspector import Inspector
    from heredity.features.correlate import Matches
    from heredity.results import Run
    from heredity.study import Edge

TOKENS = 3  # of a feature: those that carry most of its activation
UNIT = 10_000  # steps of r from 0 to 1
NONE = -UNIT  # no r: the feature is silent, or its best match is worse than opposite
_SCALED = ("transmission", "strength", "retained")  # figures that are relative to the scale of their edge
_FIGURES = ("stability", "direction", "match_r", "map_r", "readable", *_SCALED)  # of the evidence, in hundredths
_EXAMINED = ("fate", "readable_apart", "first", "second", "pair_r", "absorber", "absorbed")


def columns_of_run(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """Columns of every place whose matches are done: by instrument, then by site.

    Beside those of `feature_columns` there are, of the features that have cards, `audits`, `said` and `families`: what
    `Inspector.explained`, `Inspector.said` and `Inspector.family` say of each.
    """
    from heredity.analyses.inspector import Inspector  # loads torch, which a server's page does not wait for

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for instrument in run.study.instruments:
        for site in run.study.sites:
            inspector = Inspector(run, instrument, site)
            try:
                _ = inspector.sample
            except ArtifactError:  # not done yet
                continue
            columns = feature_columns(inspector)
            cards = run.find(("features", inspector.place))
            chosen = {(card["model"], card["feature"]) for card in cards.json(FEATURES)} if cards else set()
            answers = {
                "audits": lambda model, feature, inspector=inspector: inspector.explained(model, feature)["audit"],
                "said": inspector.said,
                "families": inspector.family,
            }
            for name, asked in answers.items():
                columns[name] = {f"{model}/{feature}": asked(model, feature) for model, feature in sorted(chosen)}
            found.setdefault(instrument, {})[site] = columns
    return found


def packed(value: object) -> bytes:
    """A value as compressed JSON, the same bytes for the same value. Raises ValueError for nan or infinity."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), 9, mtime=0)


def feature_columns(inspector: Inspector) -> dict[str, Any]:
    """Columns of all features at a place.

    - `tokens`, `classes`, `domains`, `verdicts`, `reasons`: texts that columns point into; 0 in the last two is none.
    - `models`: by name, `counted` positions, and by feature `firings`, `max`, `class`, `domain` (-1: not known),
      `top` and `share` (tokens and percent of the activation on each, TOKENS of a feature, -1 where there are fewer),
      `text` (explanation or null) and `score` (of its simulation, in hundredths, or null).
    - `edges`: with `parent`, `child`, `threshold`, and for `ends` parent and child, by feature, `r` (best, in units of
      1 / UNIT, rounded up, NONE where there is none), `match` (-1: none), `verdict`, `reason` (a form, as of
      `verdicts.reason_form`), figures of the evidence in hundredths or null, and `examined`, by number of an examined
      feature what became of it.
    - `chains`: by merge and parent, by feature of the merge: `r`, the highest threshold at which it is still from the
      parent's parents, through that parent; `own`, whether it is at each edge's own threshold.

    Raises ArtifactError for what is not done.
    """
    sample, run = inspector.sample, inspector.run
    texts = {name: _Texts() for name in ("tokens", "classes", "domains")}
    texts |= {name: _Texts([""]) for name in ("verdicts", "reasons")}
    models = {name: _model(inspector, name, texts) for name in sample.models}
    edges = []
    for edge in sample.edges:
        found = sample.matches[edge]
        sizes = {"parent": len(found.parent_r), "child": len(found.child_r)}
        evidence = _evidence(inspector, edge, sizes, texts)
        ends = {end: _matched(found, end) | evidence[end] for end in sizes}
        named = {"edge": edge.name, "parent": edge.parent, "child": edge.child}
        edges.append({**named, "threshold": sample.threshold[edge], "ends": ends})
    chains = {}
    for name in (name for name in sample.models if run.study.config.model[name].merge):
        into = {edge.parent: edge for edge in sample.edges if edge.child == name}
        bases = {one for one in into if any(one in run.study.ancestors(other) for other in into if other != one)}
        chains[name] = {}
        for parent, edge in into.items():
            own = np.nan_to_num(_chain(inspector, edge, parent in bases, above_own=True), nan=-1.0) > 0
            r = _chain(inspector, edge, parent in bases)
            chains[name][parent] = {"r": _held(r), "own": own.astype(int).tolist()}
    return {
        **{name: list(one.places) for name, one in texts.items()},
        "unit": UNIT,
        "models": models,
        "edges": edges,
        "chains": chains,
    }


class _Texts:
    """Texts by number, in the order in which they were first met."""

    def __init__(self, first: Sequence[str] = ()) -> None:
        self.places = {text: place for place, text in enumerate(first)}

    def of(self, text: str | None) -> int:
        return -1 if text is None else self.places.setdefault(text, len(self.places))


def _model(inspector: Inspector, model: str, texts: Mapping[str, _Texts]) -> dict[str, Any]:
    from heredity.features.cards import leading_tokens

    sample, columns, run = inspector.sample, inspector.columns[model], inspector.run
    size = len(columns.indptr) - 1
    firings, highest = np.diff(columns.indptr), np.zeros(size)
    live = firings > 0
    if live.any():
        highest[live] = np.maximum.reduceat(columns.values, columns.indptr[:-1][live])
    top, share = np.full((size, TOKENS), -1), np.zeros((size, TOKENS), np.int64)
    feature, token, part = leading_tokens(columns, sample.ids, TOKENS)
    rank = np.arange(len(feature)) - np.searchsorted(feature, feature)
    numbers = {one: texts["tokens"].of(sample.text(one)) for one in np.unique(token).tolist()}
    top[feature, rank] = [numbers[one] for one in token.tolist()]
    share[feature, rank] = np.rint(100 * part)
    kinds, domains = np.full(size, -1), np.full(size, -1)
    classed = rows_of_stage(run, "classes", inspector.place, "feature_classes", model=model)
    if classed is not None:
        kinds[~live] = texts["classes"].of("silent")
    for row in classed or ():
        kinds[row["feature"]] = texts["classes"].of(row["class"])
        domains[row["feature"]] = texts["domains"].of(row["domain"])
    said: list[str | None] = [None] * size
    score: list[int | None] = [None] * size
    for row in rows_of_stage(run, "explain", inspector.place, "explanations", model=model) or ():
        said[row["feature"]] = row["description"]
        score[row["feature"]] = None if row["simulation"] is None else round(100 * row["simulation"])
    return {
        "counted": sample.acts[model].counted,
        "firings": firings.tolist(),
        "max": [float(f"{value:.3g}") for value in highest.tolist()],
        "class": kinds.tolist(),
        "domain": domains.tolist(),
        "top": top.ravel().tolist(),
        "share": share.ravel().tolist(),
        "text": said,
        "score": score,
    }


def _held(r: np.ndarray) -> list[int]:
    """r as it is held: in steps, rounded up."""
    return np.ceil(np.nan_to_num(r, nan=-1.0) * UNIT - 1e-9).astype(np.int64).clip(NONE, UNIT).tolist()


def _matched(matches: Matches, end: str) -> dict[str, list[int]]:
    return {"r": _held(getattr(matches, f"{end}_r")[:, 0]), "match": getattr(matches, f"{end}_match")[:, 0].tolist()}


def _evidence(
    inspector: Inspector, edge: Edge, sizes: Mapping[str, int], texts: Mapping[str, _Texts]
) -> dict[str, dict[str, Any]]:
    """Verdicts, reasons and figures by end and feature; without the last two where nothing was judged."""
    from heredity.features.verdicts import reason_form

    found: dict[str, dict[str, Any]] = {end: {"verdict": [0] * size} for end, size in sizes.items()}
    named = {**inspector.place, "edge": edge.name}
    item = {**named, "text": "common"}
    rows = rows_of_stage(inspector.run, "verdicts", item, "evidence")
    judged = rows_of_stage(inspector.run, "verdicts", item, "verdicts") or ()
    scales = {row["end"]: row["scale"] for row in judged}
    if rows is None:
        return found
    for end, size in sizes.items():
        found[end] |= {"reason": [0] * size, "examined": {}} | {name: [None] * size for name in _FIGURES}
    for row in rows_of_stage(inspector.run, "lost_features", named, "examined_features") or ():
        told = {name: row[name] for name in _EXAMINED}
        found[row["end"]]["examined"][row["feature"]] = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()
        }
    for row in rows:
        own, at, scale = found[row["end"]], row["feature"], scales.get(row["end"])
        row |= {name: row[name] / scale if row[name] is not None and scale else None for name in _SCALED}
        own["verdict"][at] = texts["verdicts"].of(row["verdict"])
        own["reason"][at] = texts["reasons"].of(reason_form(row))
        for name in _FIGURES:
            if row[name] is not None:
                own[name][at] = round(100 * row[name])
    return found


def _chain(inspector: Inspector, edge: Edge, is_base: bool, above_own: bool = False) -> np.ndarray:
    """The highest r at which a feature of a merge matches one of its parent's that itself matches one of that parent's
    parents, nan where none does; as `features.fates.flow` counts, which searches the lists of both directions.

    is_base: the other parents of the merge descend from this one, so that all it gives is from it. above_own: r less
    the threshold of its edge, so that what is above 0 counts at each edge's own.
    """
    sample = inspector.sample
    less = sample.threshold if above_own else dict.fromkeys(sample.edges, 0.0)
    found = sample.matches[edge]
    known = np.full(len(found.parent_r), 1.0 if is_base else np.nan)
    for other in (one for one in sample.edges if one.child == edge.parent):
        known = np.fmax(known, sample.matches[other].child_r[:, 0] - less[other])
    known = np.nan_to_num(known, nan=-2.0)
    best = np.full(len(found.child_r), -2.0)
    there = found.child_match >= 0
    listed = np.where(there, np.minimum(found.child_r - less[edge], known[found.child_match]), -2.0)
    best = np.maximum(best, np.nan_to_num(listed, nan=-2.0).max(axis=1))
    back = np.nan_to_num(np.minimum(found.parent_r - less[edge], known[:, None]), nan=-2.0)
    there = found.parent_match >= 0
    np.maximum.at(best, found.parent_match[there], back[there])
    return np.where(best > -2, best, np.nan)
