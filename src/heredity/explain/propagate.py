"""Labels: each feature is explained where it first occurs, and its description follows its matches.

`Asking` puts the questions to a judge, `hand_down` gives every feature a label, `label_rows` is the table of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from heredity.explain.excerpts import Drawn, Recipe, draw, split
from heredity.explain.language import LanguageJudge
from heredity.explain.protocol import Failure, Judge, Request
from heredity.explain.scores import NAN, SORTS, UNSCORED, Scores, Sort, scored
from heredity.explain.statistical import Explanation, Offline, Statistics
from heredity.features.acts import FeatureActs
from heredity.features.cards import Columns
from heredity.features.classes import CATEGORIES, token_categories
from heredity.features.correlate import Matches

TOO_RARE = "too_rare"  # why a feature has no label: it hardly fires on the sample
_SENTENCE = "x" * 120  # a description of usual length
Over = Callable[[Callable[[int], "Label"], Sequence[int]], Iterable["Label"]]
Feature = tuple[str, int]  # model and index


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
        self.columns = {name: Columns(*sparse.to_columns()) for name, sparse in acts.items()}
        self.text = split(ids, vocabulary, seed)
        statistics = Statistics(self.text, token_categories(vocabulary), origin.tolist())
        self.judge: Judge = Offline(statistics, CATEGORIES, corpora, self._firings)
        self.seed = seed
        self.sorts: Collection[Sort] = SORTS
        # A feature is explained and then scored, several of them at a time: its excerpts are drawn once.
        self.drawn: Callable[[str, int], Drawn | None] = lru_cache(maxsize=64)(
            lambda model, feature: draw(self.text, *self._firings(f"{model}/{feature}"), recipe, (seed, feature))
        )

    def _firings(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        model, _, index = feature.rpartition("/")
        rows, values = self.columns[model].of(int(index))
        return rows.astype(np.int64), values.astype(np.float64)

    def explain(self, model: str, feature: int) -> str | Failure | None:
        """A description; None for a feature too rare to be explained."""
        drawn = self.drawn(model, feature)
        return self.judge.explain(f"{model}/{feature}", drawn.explaining) if drawn else None

    def score(self, model: str, feature: int, description: str) -> Scores | None:
        """Scores of a description; None likewise."""
        drawn = self.drawn(model, feature)
        return scored(self.judge, f"{model}/{feature}", description, drawn, self.seed, self.sorts) if drawn else None

    def requests(self, judge: LanguageJudge, model: str, feature: int) -> list[Request]:
        """All requests a language model would get about a feature, with a description of usual length."""
        drawn, name = self.drawn(model, feature), f"{model}/{feature}"
        if drawn is None:
            return []
        explaining = judge.plan(lambda planner: planner.explain(name, drawn.explaining))
        return explaining + judge.plan(lambda planner: scored(planner, name, _SENTENCE, drawn, self.seed, self.sorts))


class Label(NamedTuple):
    """The description of one feature."""

    model: str
    feature: int
    origin: Feature  # the feature the description was made for
    description: str | None = None  # None where explaining failed
    carried: bool = False  # the description of a matched feature, kept here
    re_explained: bool = False  # explained anew as a matched feature's description scores lower here than at its origin
    scores: Scores | None = None  # on this model's activations; None where explaining failed or the feature is too rare
    failure: str = ""  # why there is no description
    tried: float | None = None  # simulation score of the matched feature's description here


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
    """Label the selected features of every model with as few explanations as possible.

    A feature inherits the label of its best match, or of that one's, up to the start of the graph; of several parents
    the one with the highest r is first. Where the simulation score of a label handed down is more than `drop` below the
    one at its origin, the feature is explained anew and keeps the better description; where either is undefined the
    label is kept.

    selected: features by model, parents before children. matches: only those above the threshold (`Matches.above`).
    explain, score: None for a feature too rare. over: yields the labels of one model's features in order; they do not
    depend on each other.
    """
    known: dict[Feature, Label] = {}

    def inherited_by(model: str, feature: int) -> Label | None:
        ways = []
        for parent, child in edges:
            if child == model and (pair := matches[parent, child]).child_match[feature, 0] >= 0:
                ways.append((-float(pair.child_r[feature, 0]), parent, int(pair.child_match[feature, 0])))
        for _, parent, partner in sorted(ways):
            label = known.get((parent, partner))
            label = label if label and label.description else inherited_by(parent, partner)
            if label:
                return label
        return None

    def labeled(model: str, feature: int) -> Label:
        label = Label(model, feature, (model, feature), failure=TOO_RARE)
        above, inherited, tried = inherited_by(model, feature), None, NAN
        if above and above.description:
            scores = score(model, feature, above.description)
            if scores is None:
                return label
            tried = scores.columns["simulation"]
            inherited = Label(model, feature, above.origin, above.description, True, scores=scores, tried=tried)
            first = known[above.origin].scores
            if first is None or not tried < first.columns["simulation"] - drop:
                return inherited
            label = label._replace(re_explained=True, tried=tried)
        description = explain(model, feature)
        if description is None:
            return label
        if isinstance(description, Failure):
            return label._replace(failure=description.kind)
        scores = score(model, feature, description)
        if inherited and scores and scores.columns["simulation"] <= tried:
            return inherited._replace(re_explained=True)
        return label._replace(description=description, scores=scores, failure="")

    total = sum(map(len, selected.values()))
    for model, features in selected.items():
        for label in over(partial(labeled, model), [int(feature) for feature in features]):
            known[model, label.feature] = label
            if done:
                done(len(known), total)
    return list(known.values())


def counts_of(labels: Sequence[Label], cost: float = 0.0, scoring: float = 0.0) -> dict[str, Any]:
    """Labels by what became of them, as table labels declares it; those too rare are in no other count.

    cost, scoring: of one explanation and of its scores, in any currency. `saved_cost`: of the explanations not needed,
    less that of scoring labels given up; negative if that was more.
    """
    asked = [label for label in labels if label.failure != TOO_RARE]
    again = sum(label.re_explained for label in asked)
    saved = sum(label.carried and not label.re_explained for label in asked)
    return {
        "features": len(asked),
        "explained": len(asked) - saved,
        "carried": sum(label.tried is not None for label in asked),
        "kept": sum(label.carried for label in asked),
        "re_explained": again,
        "failed": sum(bool(label.failure) for label in asked),
        "too_rare": len(labels) - len(asked),
        "saved": saved,
        "saved_cost": saved * cost - again * scoring,
    }


def failures_of(labels: Sequence[Label]) -> dict[str, int]:
    """Failed requests by kind, of explanations and scores alike."""
    failures = Counter(label.failure for label in labels if label.failure not in ("", TOO_RARE))
    for label in labels:
        failures.update(label.scores.failures if label.scores else {})
    return dict(sorted(failures.items()))


def label_rows(labels: Sequence[Label], by: str, cost: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """One row per feature, as table explanations declares them; undefined and missing scores are nan.

    by: name of the judge. cost: USD by feature (`model/index`).
    """
    rows = []
    for label in labels:
        words, scores, (origin_model, origin_feature) = label.description, label.scores, label.origin
        row = {"model": label.model, "feature": label.feature, "description": words and str(words), "by": by}
        row |= {"origin_model": origin_model, "origin_feature": origin_feature, "carried": label.carried}
        row |= {"re_explained": label.re_explained, "inherited_simulation": label.tried}
        row |= scores.columns if scores else UNSCORED
        row |= {"failure": label.failure, "cost": (cost or {}).get(f"{label.model}/{label.feature}", 0.0)}
        row["rule"] = words.rule.to_json() if isinstance(words, Explanation) and not label.carried else ""
        rows.append(row)
    return rows
