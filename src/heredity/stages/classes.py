"""The stage that tells the classes of all features by rule, and how they are spread over fates and paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.features.classes import (
    CATEGORIES,
    CLASSES,
    FeatureClasses,
    Language,
    Rules,
    Text,
    class_gaps,
    class_shares,
    classify,
    language_of,
    memberships,
    spellings,
    token_categories,
)
from heredity.features.correlate import Matches
from heredity.features.fates import fates, flow
from heredity.report.classes import ClassesSummary, ClassGroup, EdgeClasses, GapSummary, ShareSummary
from heredity.stages.models import seed_of
from heredity.stages.sample import Sample
from heredity.study import Init, Study

CLASSES_JSON, CLASSES_TABLE = "classes.json", "classes.parquet"
_READ = 50_000  # tokens of a corpus that its language is told from


def classes_stage(
    study: Study,
    init: Init,
    read: Mapping[str, Stage],
) -> Stage:
    """The class of every feature that fires (`classes.parquet`), and the shares of classes (`classes.json`)."""
    config = study.config
    seed, rules = seed_of(study, "sample"), Rules()
    settings = {
        "tokens": config.report.tokens,
        "context_size": config.sae.context_size,
        "seed": seed,
        "rules": rules._asdict(),
        "resamples": config.controls.resamples,
        "level": config.controls.level,
    }

    def make(work: Work) -> None:
        sample = Sample(study, work, seed)
        reading, found = _Reading(sample), {}
        for name, acts in sample.acts.items():
            work.progress(len(found), len(study.followed))
            found[name] = classify(acts, reading.text, rules)
        pq.write_table(_table(reading, found), work.folder / CLASSES_TABLE)
        summary = _summary(study, work, sample, reading, found, rules)
        write_json(work.folder / CLASSES_JSON, summary.model_dump(mode="json"))

    return Stage("classes", init, settings, dict(read), make)


class _Reading:
    """What the tokens of a sample are."""

    def __init__(self, sample: Sample):
        self.vocabulary = sample.vocabulary
        self.languages: dict[str, Language] = {}
        for number, name in enumerate(sample.names):
            some = sample.ids[sample.origin == number].ravel()[:_READ].tolist()
            self.languages[name] = language_of(str(sample.tokenizer.decode(some)))
        special = sample.tokenizer.all_special_ids
        by_language = {
            language: token_categories(self.vocabulary, language, special) for language in set(self.languages.values())
        }
        categories = np.stack([by_language[language] for language in self.languages.values()])
        self.text = Text(sample.ids, sample.origin, categories, spellings(self.vocabulary))

    @property
    def base_rates(self) -> dict[str, float]:
        """Share of tokens in each category."""
        found = self.text.categories[self.text.corpus[:, None], self.text.ids].ravel()
        return dict(zip(CATEGORIES, (np.bincount(found, minlength=len(CATEGORIES)) / found.size).tolist(), strict=True))


def _table(reading: _Reading, found: Mapping[str, FeatureClasses]) -> pa.Table:
    """One row a feature that fires on the sample."""
    corpora, parts = np.array([*reading.languages, None], object), []
    texts = [text.removeprefix(" ") or text for text in reading.vocabulary]
    for model, own in found.items():
        live = np.flatnonzero(own.firings)
        columns = {
            "model": pa.array([model] * len(live)).cast(pa.string()),
            "feature": pa.array(live),
            "class": pa.array([CLASSES[number] for number in own.primary[live]], pa.string()),
            "single_token": pa.array(own.single_token[live]),
            "domain": pa.array(corpora[own.domain[live]].tolist(), pa.string()),
            "domain_share": pa.array(own.corpus.share[live]),
            "firings": pa.array(own.firings[live]),
            "top_token": pa.array([texts[number] for number in own.token.key[live]], pa.string()),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


class _Tally:
    """Counts the classes of features of one model."""

    def __init__(self, found: FeatureClasses, languages: Mapping[str, Language], level: float):
        self.found, self._level = found, level
        self.classes, self.groups, self.domains = memberships(found, languages)

    def of(self, chosen: np.ndarray) -> ClassGroup:
        """Of the chosen features. chosen: bool [d_sae]."""
        judged = chosen & self.found.judged

        def shares(members: Mapping[str, np.ndarray]) -> dict[str, ShareSummary]:
            return {
                name: ShareSummary(count=count, share=share, interval=(low, high))
                for name, count, share, low, high in class_shares(members, judged, self._level)
            }

        counted = {name: int((chosen & (self.found.primary == CLASSES.index(name))).sum()) for name in CLASSES[-2:]}
        return ClassGroup(
            features=int(chosen.sum()),
            judged=int(judged.sum()),
            **counted,
            classes=shares(self.classes),
            groups=shares(self.groups),
            domains=shares(self.domains),
        )

    def gaps(
        self, kind: Mapping[str, np.ndarray], first: np.ndarray, second: np.ndarray, resamples: int, seed: int
    ) -> dict[str, GapSummary]:
        """Shares among the first features minus shares among the second. first, second: bool [d_sae]."""
        judged = self.found.judged
        rows = class_gaps(kind, first & judged, second & judged, resamples, seed, self._level)
        return {name: GapSummary(value=value, interval=(low, high)) for name, value, low, high in rows}


def _summary(
    study: Study, work: Work, sample: Sample, reading: _Reading, found: Mapping[str, FeatureClasses], rules: Rules
) -> ClassesSummary:
    tallies = {name: _Tally(own, reading.languages, work.config["level"]) for name, own in found.items()}
    edges = {
        edge.name: _edge(tallies[edge.parent], tallies[edge.child], sample.matches[edge], sample.threshold[edge], work)
        for edge in study.edges
    }
    counting = sample.counting
    return ClassesSummary(
        tokens=sample.ids.size,
        level=work.config["level"],
        rules={name: float(value) for name, value in rules._asdict().items()},
        languages=dict(reading.languages),
        base_rates=dict(reading.base_rates),
        models={name: tally.of(tally.found.firings > 0) for name, tally in tallies.items()},
        edges=edges,
        paths={path: tallies[model].of(chosen) for path, model, chosen in _paths(study, counting)},
    )


def _edge(parent: _Tally, child: _Tally, matches: Matches, threshold: float, work: Work) -> EdgeClasses:
    fate, resamples, seed = fates(matches, threshold), work.config["resamples"], work.config["seed"]
    ends = fate.persist, fate.disappear
    return EdgeClasses(
        threshold=threshold,
        live=parent.of(fate.persist | fate.disappear),
        persist=parent.of(fate.persist),
        disappear=parent.of(fate.disappear),
        child_live=child.of(fate.inherited | fate.emerge),
        inherited=child.of(fate.inherited),
        emerge=child.of(fate.emerge),
        class_gaps=parent.gaps(parent.classes, *ends, resamples, seed),
        group_gaps=parent.gaps(parent.groups, *ends, resamples, seed),
    )


def _paths(study: Study, matches: Mapping[tuple[str, str], Matches]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Every path of two edges: its name, its last model, and the features of that model that flow the whole way.

    matches: those that count. What flows is what the accounting of a merge calls from the base; a model with one parent
    is accounted for in the same way.
    """
    for middle in study.edges:
        before = [edge for edge in study.edges if edge.child == middle.parent]
        if not before:
            continue
        flowing = flow({middle.parent: [matches[edge] for edge in before]}, {middle.parent: matches[middle]}, 0.0)
        starts = "|".join(edge.parent for edge in before)
        yield f"{starts}->{middle.parent}->{middle.child}", middle.child, flowing.from_base_through[middle.parent]
