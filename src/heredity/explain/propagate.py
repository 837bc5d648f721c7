"""Explanations handed down: a feature is explained where it first occurs, and the label follows its matches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from heredity.explain.ask import SORTS, Scores, Sort, question_sets, scored
from heredity.explain.completer import Request
from heredity.explain.excerpts import Drawn, Recipe, draw, split
from heredity.explain.language import LanguageJudge
from heredity.explain.phrasing import Names
from heredity.explain.protocol import Failure, Judge
from heredity.explain.statistical import Explanation, Offline
from heredity.explain.token_statistics import Statistics
from heredity.features.acts import FeatureActs
from heredity.features.classes import CATEGORIES, token_categories
from heredity.features.correlate import Matches
from heredity.features.examples import Columns

_SENTENCE = "x" * 120

TOO_RARE = "too_rare"
"""Why a feature has no label: it hardly fires on the sample."""

Over = Callable[[Callable[[int], "Label"], Sequence[int]], Iterable["Label"]]

Feature = tuple[str, int]
"""A model and the index of a feature there."""


class Label(NamedTuple):
    """What is said of one feature."""

    model: str
    """Its model."""
    feature: int
    """Its index."""
    description: str | None
    """In words; None where explaining failed."""
    origin: Feature
    """The feature that the description was made for."""
    carried: bool
    """Whether it is that of a matched feature, kept here."""
    re_explained: bool
    """Whether it was explained anew because a matched feature's description predicts it worse than where that is from;
    the new one is taken unless it predicts no better."""
    scores: Scores | None
    """On this model's own activations; None where explaining failed or the feature was too rare to be asked about."""
    failure: str
    """Why there is no description; empty otherwise."""
    tried: float | None = None
    """Simulation score of the matched feature's description here; None where there was none."""


class Counts(NamedTuple):
    """What handing labels down was worth."""

    features: int
    """Features asked about, too rare ones left out."""
    explained: int
    """Explanations asked for."""
    carried: int
    """Features that a label was handed down to."""
    kept: int
    """Those of them that keep it."""
    re_explained: int
    """Those that were explained anew, because the score fell; a few keep the label all the same."""
    failed: int
    """Explanations that failed."""
    too_rare: int
    """Features without enough firings to be asked about."""
    saved: int
    """Explanations that need not be asked for."""
    saved_cost: float
    """What these would have cost, less what it cost to score labels that were given up; below 0 if that was more."""


def origin_of(
    model: str,
    feature: int,
    edges: Sequence[tuple[str, str]],
    matches: Mapping[tuple[str, str], Matches],
    known: Mapping[Feature, Label],
) -> Label | None:
    """The label that a feature inherits: of its best match, or of that one's, up to the start of the graph.

    matches: only those that count (`Matches.above`). Of several parents the one with the highest r comes first.
    """
    ways = []
    for parent, child in edges:
        if child == model:
            found = matches[parent, child]
            if found.child_match[feature, 0] >= 0:
                ways.append((-float(found.child_r[feature, 0]), parent, int(found.child_match[feature, 0])))
    for _, parent, partner in sorted(ways):
        own = known.get((parent, partner))
        label = own if own and own.description else origin_of(parent, partner, edges, matches, known)
        if label:
            return label
    return None


def hand_down(
    selected: Mapping[str, Sequence[int]],
    edges: Sequence[tuple[str, str]],
    matches: Mapping[tuple[str, str], Matches],
    explain: Callable[[str, int], str | Failure | None],
    score: Callable[[str, int, str], Scores | None],
    drop: float,
    done: Callable[[int, int], None] | None = None,
    over: Over = map,
) -> list[Label]:
    """Label the selected features of every model, each explained as seldom as possible.

    selected: features by model, parents before children. edges: parent -> child. matches: only those that count.
    explain: asks for a description; None for a feature too rare to be asked about. score: of a description on a
    model's own activations, None likewise. Where the simulation score of a label that was handed down is more than
    `drop` below the one it has at its origin, the feature is explained anew, and keeps what scores better; where either
    is undefined the label is kept. over: gives the labels of
    the features of one model in order, and may ask for several at a time; they do not depend on each other.
    """
    known: dict[Feature, Label] = {}
    total = sum(map(len, selected.values()))
    for model, features in selected.items():

        def labeled(feature: int, model: str = model) -> Label:
            above = origin_of(model, feature, edges, matches, known)
            return _label(model, int(feature), above, known, explain, score, drop)

        for label in over(labeled, features):
            known[model, label.feature] = label
            if done:
                done(len(known), total)
    return list(known.values())


def _label(
    model: str,
    feature: int,
    above: Label | None,
    known: Mapping[Feature, Label],
    explain: Callable[[str, int], str | Failure | None],
    score: Callable[[str, int, str], Scores | None],
    drop: float,
) -> Label:
    inherited = None
    if above and above.description:
        scores = score(model, feature, above.description)
        if scores is None:
            return _too_rare(model, feature)
        tried = scores.simulation.score
        inherited = Label(model, feature, above.description, above.origin, True, False, scores, "", tried)
        first = known[above.origin].scores
        if first is None or not tried < first.simulation.score - drop:
            return inherited
    made = explain(model, feature)
    if made is None:
        return _too_rare(model, feature)
    if isinstance(made, Failure):
        tried = inherited.tried if inherited else None
        return Label(model, feature, None, (model, feature), False, bool(inherited), None, made.kind, tried)
    own = Label(model, feature, made, (model, feature), False, False, score(model, feature, made), "")
    if inherited is None or inherited.scores is None:
        return own
    better = own.scores is None or not own.scores.simulation.score <= inherited.scores.simulation.score
    return (own if better else inherited)._replace(re_explained=True, tried=inherited.tried)


def _too_rare(model: str, feature: int) -> Label:
    return Label(model, feature, None, (model, feature), False, False, None, TOO_RARE)


def counts_of(labels: Sequence[Label], cost: float = 0.0, scoring: float = 0.0) -> Counts:
    """What handing down was worth. cost, scoring: of one explanation and of its scores, in any currency."""
    asked = [label for label in labels if label.failure != TOO_RARE]
    again = sum(label.re_explained for label in asked)
    saved = sum(label.carried and not label.re_explained for label in asked)
    return Counts(
        features=len(asked),
        explained=len(asked) - saved,
        carried=sum(label.tried is not None for label in asked),
        kept=sum(label.carried for label in asked),
        re_explained=again,
        failed=sum(bool(label.failure) for label in asked),
        too_rare=len(labels) - len(asked),
        saved=saved,
        saved_cost=saved * cost - again * scoring,
    )


def failures_of(labels: Sequence[Label]) -> dict[str, int]:
    """Answers that did not come, by kind, of explanations and scores alike."""
    found: Counter[str] = Counter(label.failure for label in labels if label.failure not in ("", TOO_RARE))
    for label in labels:
        if label.scores is not None:
            found.update(label.scores.failures)
    return dict(sorted(found.items()))


def simulation_scores(labels: Sequence[Label]) -> dict[Feature, float]:
    """Simulation score of every feature; nan where it has none."""
    return {
        (label.model, label.feature): label.scores.simulation.score if label.scores else float(np.nan)
        for label in labels
    }


class Asking:
    """Questions about features of one token sample, put to `judge`: the offline one unless another is set.

    acts: feature activations on the sample, by model. ids: int [blocks, context]. vocabulary: text of each token.
    origin: int [blocks], the corpus of each block; corpora: their names. seed: of the excerpts and the questions.
    """

    def __init__(
        self,
        acts: Mapping[str, FeatureActs],
        ids: np.ndarray,
        vocabulary: Sequence[str],
        origin: np.ndarray,
        corpora: Sequence[str],
        recipe: Recipe,
        seed: int,
    ):
        self.columns = {name: Columns(*own.to_columns()) for name, own in acts.items()}
        self.text = split(ids, vocabulary, seed)
        statistics = Statistics(self.text, token_categories(vocabulary), origin.tolist())
        self.judge: Judge = Offline(statistics, Names(CATEGORIES, corpora), self._firings)
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


def label_rows(labels: Sequence[Label], by: str, cost: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """One row per feature, with the columns of `LABEL_SCHEMA`; undefined scores are nan, missing ones None.

    by: name of the judge. cost: USD by feature (`model/index`).
    """
    costs = cost or {}
    return [_row(label, by) | {"cost": costs.get(f"{label.model}/{label.feature}", 0.0)} for label in labels]


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
LABEL_SCHEMA = pa.schema(
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
