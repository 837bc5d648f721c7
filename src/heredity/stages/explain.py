"""The stage that says what features mean, and whether those that persist are explained better than others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.explain.ask import SORTS, Scores, Sort, question_sets, scored
from heredity.explain.compare import Comparison, Distribution, compare
from heredity.explain.completer import Request
from heredity.explain.excerpts import Drawn, Recipe, draw, split
from heredity.explain.language import LanguageJudge
from heredity.explain.phrasing import Names
from heredity.explain.propagate import TOO_RARE, Label, counts_of, failures_of, hand_down, simulation_scores
from heredity.explain.protocol import Failure, Judge
from heredity.explain.sample import Chosen, choose, priorities
from heredity.explain.statistical import Explanation, Offline
from heredity.explain.token_statistics import Statistics
from heredity.features.cards import Columns
from heredity.features.classes import CATEGORIES, token_categories
from heredity.report.explained import ComparisonSummary, DistributionSummary, ExplainedSummary
from heredity.stages.features import FEATURES
from heredity.stages.models import seed_of
from heredity.stages.sample import Sample
from heredity.study import Edge, Init, Study

_SENTENCE = "x" * 120
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
        chosen = _Choice(study, sample)
        asking = asking_of(study, sample)
        labels = hand_down(
            _with_shown(chosen.selected, work.inputs["shown"].json(FEATURES)),
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


class Asking:
    """Asks a judge about features of a sample; the offline one unless told otherwise."""

    def __init__(self, sample: Sample, recipe: Recipe, seed: int):
        self.columns = {name: Columns(*acts.to_columns()) for name, acts in sample.acts.items()}
        self.text = split(sample.ids, sample.vocabulary, seed)
        statistics = Statistics(self.text, token_categories(sample.vocabulary), sample.origin.tolist())
        self.judge: Judge = Offline(statistics, Names(CATEGORIES, sample.names), self._firings)
        self.recipe, self.seed = recipe, seed
        self.sorts: Collection[Sort] = SORTS
        # A feature is explained and then scored, and several are under way at a time: their excerpts are drawn once.
        self.drawn = lru_cache(maxsize=64)(self._drawn)

    def _firings(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        model, _, index = feature.rpartition("/")
        rows, values = self.columns[model].of(int(index))
        return rows.astype(np.int64), values.astype(np.float64)

    def _drawn(self, model: str, feature: int) -> Drawn | None:
        return draw(self.text, *self._firings(f"{model}/{feature}"), self.recipe, (self.seed, feature))

    def explain(self, model: str, feature: int) -> str | Failure | None:
        """A description; None for a feature that fires too seldom to be asked about."""
        drawn = self.drawn(model, feature)
        return self.judge.explain(f"{model}/{feature}", drawn.explaining) if drawn else None

    def score(self, model: str, feature: int, description: str) -> Scores | None:
        """Scores of a description; None likewise."""
        drawn = self.drawn(model, feature)
        return scored(self.judge, f"{model}/{feature}", description, drawn, self.seed, self.sorts) if drawn else None

    def requests(self, judge: LanguageJudge, model: str, feature: int) -> list[Request]:
        """What a language model would be asked about a feature, a sentence of usual length standing for its answer."""
        drawn = self.drawn(model, feature)
        if drawn is None:
            return []
        name, (detection, fuzzing, odd) = f"{model}/{feature}", question_sets(drawn, self.seed, self.sorts)
        return [
            judge.to_explain(name, drawn.explaining),
            *(judge.to_simulate(name, _SENTENCE, drawn.scoring) if "simulation" in self.sorts else ()),
            *judge.to_detect(name, _SENTENCE, detection.excerpts),
            *judge.to_fuzz(name, _SENTENCE, fuzzing.excerpts, fuzzing.marked),
            *judge.to_intruder(name, odd.groups),
        ]


def asking_of(study: Study, sample: Sample) -> Asking:
    """As the study has set it."""
    return Asking(sample, Recipe(radius=study.config.explain.radius), seed_of(study, "explain"))


def selected_of(study: Study, sample: Sample) -> dict[str, list[int]]:
    """Features that the study explains: along every edge those that persist, and as many others."""
    return _Choice(study, sample).selected


class _Choice:
    """What is explained: by edge, features of the parent (of models without children: of the child)."""

    def __init__(self, study: Study, sample: Sample):
        sizes = {name: sample.acts[name].d_sae for name in study.followed}
        counting = sample.counting
        ranks = priorities(sample.edges, counting, sizes, seed_of(study, "explain"))

        def chosen(edge: Edge, end: str) -> Chosen:
            model = getattr(edge, end)
            shared = sum(getattr(other, end) == model for other in study.edges)
            return choose(
                getattr(counting[edge], f"{end}_match")[:, 0],
                getattr(counting[edge], f"{end}_density"),
                sample.firings[model],
                ranks[model],
                study.config.explain.features // shared,
            )

        self.edges = {edge: chosen(edge, "parent") for edge in study.edges}
        found: dict[str, set[int]] = {name: set() for name in study.followed}
        for edge, own in self.edges.items():
            found[edge.parent].update(own.persisting.tolist(), own.others.tolist())
        for edge in study.edges:
            if _is_last(study, edge):
                own = chosen(edge, "child")
                found[edge.child].update(own.persisting.tolist(), own.others.tolist())
        self.selected = {name: sorted(features) for name, features in found.items()}


def _is_last(study: Study, edge: Edge) -> bool:
    return all(other.parent != edge.child for other in study.edges)


def table_of(labels: Sequence[Label], by: str, cost: Mapping[str, float] | None = None) -> pa.Table:
    """One row a feature; scores that are undefined are nan, those that were not asked for null. cost: USD, by feature
    (`model/index`)."""
    costs = cost or {}
    rows = [_row(label, by) | {"cost": costs.get(f"{label.model}/{label.feature}", 0.0)} for label in labels]
    return pa.Table.from_pylist(rows, _SCHEMA)


_SCORES = {
    "simulation": lambda scores: scores.simulation.score,
    "simulation_levels": lambda scores: scores.simulation.levels,
    "simulation_top_random": lambda scores: scores.simulation.top_random,
    "simulation_random": lambda scores: scores.simulation.random,
    "spearman": lambda scores: scores.simulation.spearman,
    "detection": lambda scores: scores.detection.score,
    "detection_auc": lambda scores: scores.detection.auc,
    "fuzzing": lambda scores: scores.fuzzing.score,
    "fuzzing_auc": lambda scores: scores.fuzzing.auc,
    "intruder": lambda scores: scores.intruder.score,
}
_SIZES = {
    "simulation_n": lambda scores: scores.simulation.excerpts,
    "detection_n": lambda scores: scores.detection.n,
    "fuzzing_n": lambda scores: scores.fuzzing.n,
    "intruder_n": lambda scores: scores.intruder.n,
}
_SCHEMA = pa.schema(
    [("model", pa.string()), ("feature", pa.int32()), ("description", pa.string()), ("by", pa.string())]
    + [("origin_model", pa.string()), ("origin_feature", pa.int32())]
    + [("carried", pa.bool_()), ("re_explained", pa.bool_()), ("inherited_simulation", pa.float64())]
    + [(name, pa.float64()) for name in _SCORES]
    + [(name, pa.int32()) for name in _SIZES]
    + [("failure", pa.string()), ("rule", pa.string()), ("cost", pa.float64())]
)


def _row(label: Label, by: str) -> dict[str, Any]:
    said, scores = label.description, label.scores
    rule = said.rule.to_json() if isinstance(said, Explanation) and not label.carried else ""
    return {
        "model": label.model,
        "feature": label.feature,
        "description": None if said is None else str(said),
        "by": by,
        "origin_model": label.origin[0],
        "origin_feature": label.origin[1],
        "carried": label.carried,
        "re_explained": label.re_explained,
        "inherited_simulation": label.tried,
        **{name: None if scores is None else score(scores) for name, score in _SCORES.items()},
        **{name: 0 if scores is None else size(scores) for name, size in _SIZES.items()},
        "failure": label.failure,
        "rule": rule,
    }


def _summary(
    study: Study, labels: Sequence[Label], chosen: Mapping[Edge, Chosen], judge: str, seed: int
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
