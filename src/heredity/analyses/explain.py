"""What features mean, in words, and how well the words predict the activations.

A feature is explained from excerpts of one half of the sample and scored on the other half. By default a judge without
a language model explains by statistics of the text; `heredity explain` puts the same questions to a language model.
Simulation score: Pearson r of predicted and true activations, a constant scores 0; detection and fuzzing: true-positive
rate minus false-positive rate; intruder: odd ones out found, corrected for chance. A label is handed down along matches
above the threshold, and kept where its score falls by no more than `explain.drop`.

Features that persist are compared with as many others (Horn & Elliott 2024, figure 6): the effect is the probability
that a persisting feature scores higher, ties counted half; Mann-Whitney test; intervals: bootstrap over features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.features import FEATURES as SHOWN
from heredity.analyses.sample import Sample, SampleSettings, instrument_items, sample_needs, sample_settings
from heredity.engine.stage import Work
from heredity.study import Edge, ExplainConfig, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.explain.excerpts import Chosen
    from heredity.explain.propagate import Asking

KEY = ("instrument", "site")

COMPARISONS = Table(
    "explained",
    "Simulation scores of features that persist and of others. Intervals: bootstrap over features.",
    (*KEY, "subject"),
    (
        Column("subject", "text", "Edge (features of the parent), or a merge (of all its parents)."),
        Column("persisting", "count", "Persisting features with a score."),
        Column("persisting_median", "r", "Their median score.", ci=True),
        Column("persisting_unscored", "count", "Persisting features that were asked about and have no score."),
        Column("persisting_rare", "count", "Persisting features too rare to be asked about."),
        Column("others", "count", "Other features with a score."),
        Column("others_median", "r", "Their median score.", ci=True),
        Column("others_unscored", "count", "Other features that were asked about and have no score."),
        Column("others_rare", "count", "Other features too rare to be asked about."),
        Column("effect", "share", "Probability that a persisting feature scores higher; 50 %: no difference.", ci=True),
        Column("p", "number", "Mann-Whitney test, two-sided."),
    ),
    brief=("instrument", "subject", "persisting", "persisting_median", "others", "others_median", "effect", "p"),
)
SCORES = Table(
    "explained_scores",
    "Features by simulation score.",
    (*KEY, "subject", "group", "score"),
    (
        Column("subject", "text", "Edge or merge."),
        Column("group", "text", "persisting or others."),
        Column("score", "r", "Lower edge of the bin; the first holds all lower scores."),
        Column("features", "count", "Features in the bin."),
    ),
    plot=Plot("histogram", x="score", y="features", by="group"),
)
LABELS = Table(
    "labels",
    "What handing labels down along matches was worth.",
    KEY,
    (
        Column("judge", "text", "Who explained and predicted; offline is statistics of the text."),
        Column("features", "count", "Features asked about."),
        Column("explained", "count", "Explanations asked for."),
        Column("carried", "count", "Features that a matched feature's label was tried on."),
        Column("kept", "count", "Features that keep it.", of="carried"),
        Column("re_explained", "count", "Features explained anew because the score fell.", of="carried"),
        Column("failed", "count", "Explanations that failed."),
        Column("too_rare", "count", "Features with too few firings in one half of the sample."),
        Column("saved", "count", "Explanations that need not be asked for."),
        Column("saved_cost", "number", "Their cost in USD."),
    ),
    brief=("instrument", "features", "explained", "carried", "kept", "saved", "failed"),
)
FAILURES = Table(
    "label_failures",
    "Answers that did not come, by kind.",
    (*KEY, "failure"),
    (Column("failure", "text", "Kind of failure."), Column("answers", "count", "Answers.")),
)
EXPLANATIONS = Table(
    "explanations",
    "Explanations of features and their scores.",
    (*KEY, "model", "feature"),
    (
        Column("description", "text", "Explanation; null where explaining failed."),
        Column("by", "text", "Judge."),
        Column("origin_model", "text", "Model of the feature it was made for."),
        Column("origin_feature", "feature", "That feature."),
        Column("carried", "flag", "The description of a matched feature, kept here."),
        Column("re_explained", "flag", "Explained anew, because a matched feature's description scores lower here."),
        Column("inherited_simulation", "r", "Simulation score of the matched feature's description here."),
        Column("simulation", "r", "Simulation score over all excerpts."),
        Column("simulation_levels", "r", "Simulation score over excerpts of all strengths."),
        Column("simulation_top_random", "r", "Simulation score over top and random excerpts."),
        Column("simulation_random", "r", "Simulation score over random excerpts."),
        Column("spearman", "r", "Rank correlation of predicted and true activations."),
        Column("detection", "share", "Detection: true-positive rate minus false-positive rate."),
        Column("detection_auc", "share", "Detection: area under the ROC curve."),
        Column("fuzzing", "share", "Fuzzing: true-positive rate minus false-positive rate."),
        Column("fuzzing_auc", "share", "Fuzzing: area under the ROC curve."),
        Column("intruder", "share", "Intruder: odd ones out found, corrected for chance (0 by chance, 1 for all)."),
        Column("simulation_n", "count", "Excerpts simulated."),
        Column("detection_n", "count", "Excerpts in the detection set."),
        Column("fuzzing_n", "count", "Excerpts in the fuzzing set."),
        Column("intruder_n", "count", "Groups in the intruder set."),
        Column("failure", "text", "Why there is no description."),
        Column("rule", "text", "Rule behind an offline description, as JSON."),
        Column("cost", "number", "USD."),
    ),
    large=True,
)


class ExplainSettings(NamedTuple):
    sample: SampleSettings
    explain: ExplainConfig
    seed: int
    resamples: int
    level: float
    merges: tuple[str, ...]


def explain_settings(study: Study, item: Item | None = None) -> ExplainSettings:
    """How a study's features are explained."""
    config, seed = study.config, seed_of(study, "explain")
    merges = tuple(name for name in study.followed if config.model[name].merge)
    controls = config.controls.resamples, config.controls.level
    return ExplainSettings(sample_settings(study), config.explain, seed, *controls, merges)


def _run(work: Work, settings: ExplainSettings) -> Results:
    from heredity.explain.propagate import counts_of, failures_of, hand_down, label_rows

    sample = Sample(work.inputs, settings.sample)
    asking, (features, chosen) = asking_of(sample, settings), selection_of(sample, settings)
    wanted = {name: set(own) for name, own in features.items()}
    for row in work.inputs["shown"].json(SHOWN):
        for member in (row, *row["family"]):
            wanted[member["model"]].add(member["feature"])
    asked = {name: sorted(own) for name, own in wanted.items()}
    drop = settings.explain.drop
    labels = hand_down(asked, sample.edges, sample.above, asking.explain, asking.score, drop, work.progress)
    explanations = label_rows(labels, asking.judge.name)
    rows, histogram = _compared(explanations, sample.edges, chosen, settings)
    return {
        "explained": rows,
        "explained_scores": histogram,
        "labels": [{"judge": asking.judge.name, **counts_of(labels)}],
        "label_failures": [{"failure": kind, "answers": count} for kind, count in failures_of(labels).items()],
        "explanations": explanations,
    }


def asking_of(sample: Sample, settings: ExplainSettings) -> Asking:
    """Questions about the features of a sample, put to the offline judge."""
    from heredity.explain.excerpts import Recipe
    from heredity.explain.propagate import Asking

    recipe = Recipe(radius=settings.explain.radius)
    return Asking(sample.acts, sample.ids, sample.vocabulary, sample.origin, sample.corpora, recipe, settings.seed)


def selection_of(
    sample: Sample, settings: ExplainSettings
) -> tuple[dict[str, list[int]], dict[tuple[str, str], Chosen]]:
    """Features to explain: along every edge those that persist, and as many others."""
    from heredity.explain.excerpts import selection

    firings = {name: sample.firings[name] for name in sample.models}
    return selection(sample.edges, sample.above, firings, settings.seed, settings.explain.features)


def _compared(
    explanations: Sequence[Mapping[str, Any]],
    edges: Sequence[Edge],
    chosen: Mapping[tuple[str, str], Chosen],
    settings: ExplainSettings,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `explained` and `explained_scores`."""
    from heredity.explain.propagate import TOO_RARE
    from heredity.explain.scores import BINS, compare

    asked = [row for row in explanations if row["failure"] != TOO_RARE]
    known = {(row["model"], row["feature"]): row["simulation"] for row in asked}
    subjects = {edge.name: [edge] for edge in edges}
    subjects |= {name: [edge for edge in edges if edge.child == name] for name in settings.merges}
    rows, histogram = [], []
    for subject, own in subjects.items():
        scores, rare = [], []
        for side in ("persisting", "others"):
            features = [(edge.parent, feature) for edge in own for feature in getattr(chosen[edge], side).tolist()]
            scores.append(np.array([known[feature] for feature in features if feature in known], np.float64))
            few = [chosen[edge].rare[side == "others"] for edge in own]
            rare.append(sum(few, len(features) - len(scores[-1])))
        first, second = scores
        result = compare(first, second, (rare[0], rare[1]), settings.seed, settings.resamples, settings.level)
        row = {"subject": subject, "p": result.p}
        row |= {"effect": result.effect, "effect_low": result.low, "effect_high": result.high}
        for name, group in (("persisting", result.persisting), ("others", result.others)):
            row |= {name: group.n, f"{name}_unscored": group.unscored, f"{name}_rare": group.rare}
            row |= {f"{name}_median": group.median, f"{name}_median_low": group.low, f"{name}_median_high": group.high}
            bins = {float(score): int(count) for score, count in zip(BINS, group.histogram, strict=False) if count}
            histogram += [{"subject": subject, "group": name, "score": x, "features": n} for x, n in bins.items()]
        rows.append(row)
    return rows, histogram


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "explained"):
        if row["effect_low"] is None:
            continue
        sure = row["effect_low"] > 0.5 or row["effect_high"] < 0.5
        more = "better" if row["effect"] > 0.5 else "worse"
        yield Statement(
            row["subject"].split("->")[-1],
            "meaning",
            f"On {row['subject']}, persisting features are explained {more} than others"
            f"{'' if sure else ', within what chance allows'}: one that persists scores higher with probability "
            f"{format.percent(row['effect'])}.",
            (
                f"95 % CI {format.interval('share', row['effect_low'], row['effect_high'])}, bootstrap over features",
                f"median simulation score {row['persisting_median']:.2f} of {row['persisting']:,} persisting features, "
                f"{row['others_median']:.2f} of {row['others']:,} others",
            ),
            row["instrument"],
        )


ANALYSIS = Analysis(
    kind="explain",
    version=2,
    title="What features mean",
    items=lambda study: instrument_items(study) if study.config.explain.features else (),
    settings=explain_settings,
    needs=lambda study, item: {**sample_needs(study, item), "shown": ("features", item)},
    run=_run,
    tables=(COMPARISONS, SCORES, LABELS, FAILURES, EXPLANATIONS),
    say=_say,
)
