"""The stage that says what features mean, and whether those that persist are explained better than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.explain.excerpts import Chosen, Recipe, Selection, selection
from heredity.explain.propagate import (
    LABEL_SCHEMA,
    TOO_RARE,
    Asking,
    Label,
    counts_of,
    failures_of,
    hand_down,
    label_rows,
    simulation_scores,
)
from heredity.explain.scores import Comparison, Distribution, compare
from heredity.report.explained import ComparisonSummary, DistributionSummary, ExplainedSummary
from heredity.stages.features import FEATURES
from heredity.stages.models import seed_of
from heredity.stages.sample import Sample
from heredity.study import Edge, Init, Study

EXPLANATIONS, EXPLAINED = "explanations.parquet", "explained.json"


def explain_stage(
    study: Study,
    init: Init,
    read: Mapping[str, Stage],
    shown: Stage,
) -> Stage:
    """Explanations and scores of features of every model (`explanations.parquet`), and of what persists beside what
    does not (`explained.json`), by the offline judge. shown: the stage that lists features for the report, which are
    explained as well."""
    config = study.config
    seeds = {"sample": seed_of(study, "sample"), "seed": seed_of(study, "explain")}
    settings = {
        "explain": config.explain.model_dump(),
        "controls": config.controls.model_dump(include={"resamples", "level"}),
        "tokens": config.report.tokens,
        "context_size": config.sae.context_size,
        **seeds,
    }
    inputs = {**read, "shown": shown}

    def make(work: Work) -> None:
        sample = Sample(study, work, seeds["sample"])
        chosen = selection_of(study, sample)
        asking = asking_of(study, sample)
        labels = hand_down(
            _with_shown(chosen.features, work.inputs["shown"].json(FEATURES)),
            sample.edges,
            sample.counting,
            asking.explain,
            asking.score,
            config.explain.drop,
            work.progress,
        )
        pq.write_table(table_of(labels, asking.judge.name), work.folder / EXPLANATIONS)
        summary = _summary(study, labels, chosen.edges, asking.judge.name, seeds["seed"])
        write_json(work.folder / EXPLAINED, summary.model_dump(mode="json"))

    return Stage("explain", init, settings, inputs, make)


def _with_shown(selected: Mapping[str, Sequence[int]], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The selected features, and those that the report lists with their families."""
    found = {name: set(features) for name, features in selected.items()}
    for row in rows:
        for member in (row, *row["family"]):
            found[member["model"]].add(member["feature"])
    return {name: sorted(features) for name, features in found.items()}


def asking_of(study: Study, sample: Sample) -> Asking:
    """As the study has set it."""
    recipe, seed = Recipe(radius=study.config.explain.radius), seed_of(study, "explain")
    return Asking(sample.acts, sample.ids, sample.vocabulary, sample.origin, sample.names, recipe, seed)


def selection_of(study: Study, sample: Sample) -> Selection:
    """Features that the study explains: along every edge those that persist, and as many others."""
    sizes = {name: sample.acts[name].d_sae for name in study.followed}
    seed, limit = seed_of(study, "explain"), study.config.explain.features
    return selection(study.edges, sample.counting, sizes, sample.firings, seed, limit)


def table_of(labels: Sequence[Label], by: str, cost: Mapping[str, float] | None = None) -> pa.Table:
    """One row a feature; see `label_rows`."""
    return pa.Table.from_pylist(label_rows(labels, by, cost), LABEL_SCHEMA)


def _summary(
    study: Study, labels: Sequence[Label], chosen: Mapping[tuple[str, str], Chosen], judge: str, seed: int
) -> ExplainedSummary:
    controls, scores = study.config.controls, simulation_scores(labels)
    rare = {(label.model, label.feature) for label in labels if label.failure == TOO_RARE}
    known = {feature: score for feature, score in scores.items() if feature not in rare}

    def compared(edges: Sequence[Edge]) -> ComparisonSummary:
        groups: list[list[float]] = [[], []]
        few = [0, 0]
        for edge in edges:
            for side, features in enumerate((chosen[edge].persisting, chosen[edge].others)):
                own = [(edge.parent, feature) for feature in features.tolist()]
                groups[side] += [known[feature] for feature in own if feature in known]
                few[side] += chosen[edge].rare[side] + sum(feature not in known for feature in own)
        first, second = (np.array(group) for group in groups)
        return _told(compare(first, second, (few[0], few[1]), seed, controls.resamples, controls.level))

    merges = [name for name in study.followed if study.config.model[name].merge]
    return ExplainedSummary(
        judge=judge,
        **counts_of(labels)._asdict(),
        failures=failures_of(labels),
        edges={edge.name: compared([edge]) for edge in study.edges},
        merges={name: compared([edge for edge in study.edges if edge.child == name]) for name in merges},
    )


def _told(found: Comparison) -> ComparisonSummary:
    def group(own: Distribution) -> DistributionSummary:
        return DistributionSummary(
            n=own.n,
            unscored=own.unscored,
            rare=own.rare,
            median=own.median,
            interval=(own.low, own.high),
            histogram=tuple(own.histogram.tolist()),
        )

    return ComparisonSummary(
        persisting=group(found.persisting),
        others=group(found.others),
        p=found.p,
        effect=found.effect,
        interval=(found.low, found.high),
    )
