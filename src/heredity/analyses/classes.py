"""Kinds of features by fixed rules from where they fire: no language model, nothing by hand.

Each feature has the first class that fits: position, a mark (punctuation, whitespace, line break, operator ...), single
token, previous or next token, a kind of word, domain (a corpus), mixed; rare features fire on fewer than 20 tokens of
the sample, silent ones never. Groups take classes together (punctuation, formatting, code, single-token) and overlap.
Shares are of judged features, with Wilson's score interval; gaps are shares among persisting features less shares among
lost ones, with Newcombe's interval (1998), which holds where a group has none. Paths are features of a grandchild that
flow in from the first model, by matches above the thresholds of both edges, and above 0.8 on both as Horn & Elliott
2024 count them (section 4.1, where groups are made by hand).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Results, Statement, Tables, rows_of
from heredity.analyses.sample import Sample, SampleSettings, instrument_items, sample_needs, sample_settings
from heredity.engine.stage import Work
from heredity.study import Edge, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.features.classes import FeatureClasses, Language
    from heredity.features.correlate import Matches

KEY = ("instrument", "site")
_READ = 50_000  # tokens of a corpus that its language is recognized by

_SUBJECT = Column("subject", "text", "Model, edge, or path such as base->lua->merge.")
_FATE = Column(
    "fate", "text", "live, persist, disappear (parent); child_live, inherited, emerge (child); flow (of a path)."
)
_KIND = Column("kind", "text", "class (each judged feature has one), group (classes taken together), or domain.")

GROUPS = Table(
    "class_groups",
    "Features whose classes are counted.",
    (*KEY, "subject", "fate"),
    (
        _SUBJECT,
        _FATE,
        Column("features", "count", "All of them."),
        Column("judged", "count", "Features that fire often enough on the sample.", of="features"),
        Column("rare", "count", "Features with too few firings on the sample.", of="features"),
        Column("silent", "count", "Features that never fire on the sample.", of="features"),
    ),
    sums=(("features", "judged", "rare", "silent"),),
)
CLASSES = Table(
    "classes",
    "Judged features by class, group and domain. Intervals: Wilson's score interval.",
    (*KEY, "subject", "fate", "kind", "class"),
    (
        _SUBJECT,
        _FATE,
        _KIND,
        Column("class", "text", "Class, group, or corpus (domain)."),
        Column("features", "count", "Judged features that belong to it."),
        Column("share", "share", "Of the judged features.", ci=True),
    ),
)
GAPS = Table(
    "class_gaps",
    "Classes of features by fate: shares of judged features. Intervals: Newcombe's.",
    (*KEY, "edge", "kind", "class"),
    (
        _KIND,
        Column("class", "text", "Class or group."),
        Column("persist", "share", "Share among persisting features."),
        Column("disappear", "share", "Share among lost features."),
        Column("emerge", "share", "Share among emerged features."),
        Column("gap", "number", "persist less disappear.", ci=True),
    ),
    plot=Plot("bars", x="class", y="gap", by="kind"),
)
GROUP_GAPS = GAPS._replace(
    name="group_gaps",
    doc="Kinds of features by fate: shares of judged features. Intervals: Newcombe's.",
    brief=("instrument", "edge", "class", "persist", "disappear", "emerge", "gap"),
    plot=None,
)
PATHS = Table(
    "path_groups",
    "Groups of the features that flow a path of two edges the whole way. Intervals: Wilson's score interval.",
    (*KEY, "path", "rule", "group"),
    (
        Column("path", "text", "Path such as base->lua->merge; features are those of its last model."),
        Column("rule", "text", "Threshold of both edges: own (each its own), or paper (0.8)."),
        Column("group", "text", "punctuation, formatting (indentation and line breaks), code, or single-token."),
        Column("flowing", "count", "Features that flow the whole way."),
        Column("judged", "count", "Those that fire often enough on the sample to have a class.", of="flowing"),
        Column("features", "count", "Those of the group.", of="judged"),
        Column("share", "share", "Of the judged ones.", ci=True),
    ),
    brief=("instrument", "path", "rule", "group", "flowing", "features", "share"),
)
CATEGORIES = Table(
    "token_categories",
    "Tokens of the sample by category: what a class is to be compared with.",
    (*KEY, "category"),
    (Column("category", "text", "Category."), Column("share", "share", "Share of the sample's tokens.")),
)
LANGUAGES = Table(
    "corpus_languages",
    "Language that each corpus is written in, recognized by its words.",
    (*KEY, "corpus"),
    (Column("language", "text", "prose, or a programming language."),),
)
FEATURES = Table(
    "feature_classes",
    "The class of every feature that fires on the sample.",
    (*KEY, "model", "feature"),
    (
        Column("class", "text", "The first class that fits."),
        Column("single_token", "flag", "At least 90 % of its activation on one token text."),
        Column("domain", "text", "Corpus with at least 90 % of its activation."),
        Column("domain_share", "share", "Largest share of its activation in one corpus."),
        Column("firings", "count", "Firings on the sample."),
        Column("top_token", "text", "Token text with the largest share of its activation."),
    ),
    large=True,
)


class ClassesSettings(NamedTuple):
    sample: SampleSettings
    level: float


def _settings(study: Study, item: Item) -> ClassesSettings:
    return ClassesSettings(sample_settings(study), study.config.controls.level)


def _run(work: Work, settings: ClassesSettings) -> Results:
    from heredity.features import classes as rules
    from heredity.features.null import PAPER

    sample = Sample(work.inputs, settings.sample)
    languages: dict[str, Language] = {}
    for number, name in enumerate(sample.corpora):
        some = sample.ids[sample.origin == number].ravel()[:_READ].tolist()
        languages[name] = rules.language_of(str(sample.tokenizer.decode(some)))
    special = sample.tokenizer.all_special_ids
    by_language = {one: rules.token_categories(sample.vocabulary, one, special) for one in set(languages.values())}
    categories = np.stack([by_language[language] for language in languages.values()])
    text = rules.Text(sample.ids, sample.origin, categories, rules.spellings(sample.vocabulary))
    found: dict[str, FeatureClasses] = {}
    for name, acts in sample.acts.items():
        work.progress(len(found), len(sample.acts))
        found[name] = rules.classify(acts, text)
    tally = _Tally(found, languages, settings)
    for name, classes in found.items():
        tally.count(name, "live", name, classes.firings > 0)
    for edge in sample.edges:
        tally.edge(edge, sample.matches[edge], sample.threshold[edge])
    at_paper = {edge: matches.above(PAPER) for edge, matches in sample.matches.items()}
    for rule, above in (("own", sample.above), ("paper", at_paper)):
        for path, model, chosen in _paths(sample.edges, above):
            tally.path(path, rule, model, chosen)
            if rule == "own":
                tally.count(path, "flow", model, chosen)
    every = categories[sample.origin[:, None], sample.ids].ravel()
    shares = (np.bincount(every, minlength=len(rules.CATEGORIES)) / every.size).tolist()
    return {
        "class_groups": tally.groups,
        "classes": tally.shares,
        "class_gaps": [row for row in tally.gaps if row["kind"] == "class"],
        "group_gaps": [row for row in tally.gaps if row["kind"] == "group"],
        "path_groups": tally.paths,
        "token_categories": [
            {"category": name, "share": share} for name, share in zip(rules.CATEGORIES, shares, strict=True)
        ],
        "corpus_languages": [{"corpus": name, "language": language} for name, language in languages.items()],
        "feature_classes": _feature_columns(found, list(languages), sample.vocabulary),
    }


class _Tally:
    """Rows of the tables, from the classes of every model's features."""

    def __init__(
        self, found: Mapping[str, FeatureClasses], languages: Mapping[str, Language], settings: ClassesSettings
    ) -> None:
        from heredity.features.classes import memberships

        self.found, self.settings = found, settings
        kinds = ("class", "group", "domain")
        self.members = {
            model: dict(zip(kinds, memberships(own, languages), strict=True)) for model, own in found.items()
        }
        self.groups: list[dict[str, Any]] = []
        self.shares: list[dict[str, Any]] = []
        self.gaps: list[dict[str, Any]] = []
        self.paths: list[dict[str, Any]] = []

    def count(self, subject: str, fate: str, model: str, chosen: np.ndarray) -> dict[tuple[str, str], float | None]:
        """Add rows for some features of a model, bool [d_sae]; returns their shares by kind and class."""
        from heredity.features.classes import CLASSES as NAMES
        from heredity.features.classes import class_shares

        own, key = self.found[model], {"subject": subject, "fate": fate}
        judged, by_class = chosen & own.judged, dict[tuple[str, str], float | None]()
        counts = {name: int((chosen & (own.primary == NAMES.index(name))).sum()) for name in NAMES[-2:]}
        self.groups.append({**key, "features": int(chosen.sum()), "judged": int(judged.sum()), **counts})
        for kind, members in self.members[model].items():
            for name, count, share, low, high in class_shares(members, judged, self.settings.level):
                ends = {"share": share, "share_low": low, "share_high": high}
                self.shares.append({**key, "kind": kind, "class": name, "features": count, **ends})
                by_class[kind, name] = share
        return by_class

    def path(self, path: str, rule: str, model: str, chosen: np.ndarray) -> None:
        """Add rows for the groups of the features that flow a path, bool [d_sae] of its last model."""
        from heredity.features.classes import class_shares

        judged = chosen & self.found[model].judged
        key = {"path": path, "rule": rule, "flowing": int(chosen.sum()), "judged": int(judged.sum())}
        for name, count, share, low, high in class_shares(self.members[model]["group"], judged, self.settings.level):
            figures = {"features": count, "share": share, "share_low": low, "share_high": high}
            self.paths.append({**key, "group": name, **figures})

    def edge(self, edge: Edge, matches: Matches, threshold: float) -> None:
        """Add rows for the fates of an edge, and the gaps between persisting and lost features."""
        from heredity.features.classes import class_gaps
        from heredity.features.fates import fates

        fate = fates(matches, threshold)
        self.count(edge.name, "live", edge.parent, fate.persist | fate.disappear)
        shares = {
            name: self.count(edge.name, name, model, getattr(fate, name))
            for name, model in (("persist", edge.parent), ("disappear", edge.parent), ("inherited", edge.child))
        }
        self.count(edge.name, "child_live", edge.child, fate.inherited | fate.emerge)
        shares["emerge"] = self.count(edge.name, "emerge", edge.child, fate.emerge)
        judged = self.found[edge.parent].judged
        for kind in ("class", "group"):
            members = self.members[edge.parent][kind]
            ends = fate.persist & judged, fate.disappear & judged
            for name, gap, low, high in class_gaps(members, *ends, self.settings.level):
                row = {one: shares[one].get((kind, name)) for one in ("persist", "disappear", "emerge")}
                row |= {"gap": gap, "gap_low": low, "gap_high": high}
                self.gaps.append({"edge": edge.name, "kind": kind, "class": name, **row})


def _feature_columns(found: Mapping[str, FeatureClasses], corpora: list[str], vocabulary: list[str]) -> dict[str, Any]:
    from heredity.features.classes import CLASSES as NAMES

    names, texts = np.array([*corpora, None], object), [text.removeprefix(" ") or text for text in vocabulary]
    parts: dict[str, list[np.ndarray]] = {}
    for model, own in found.items():
        live = np.flatnonzero(own.firings)
        columns = {
            "model": np.full(len(live), model, object),
            "feature": live,
            "class": np.array([NAMES[number] for number in own.primary[live]], object),
            "single_token": own.single_token[live],
            "domain": names[own.domain[live]],
            "domain_share": own.corpus.share[live],
            "firings": own.firings[live],
            "top_token": np.array([texts[number] for number in own.token.key[live]], object),
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _paths(edges: list[Edge], matches: Mapping[tuple[str, str], Matches]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Every path of two edges: its name, its last model, and the features of that model that flow the whole way."""
    from heredity.features.fates import flow

    for middle in edges:
        before = [edge for edge in edges if edge.child == middle.parent]
        if before:
            flowing = flow({middle.parent: [matches[edge] for edge in before]}, {middle.parent: matches[middle]}, 0.0)
            starts = "|".join(edge.parent for edge in before)
            yield f"{starts}->{middle.parent}->{middle.child}", middle.child, flowing.from_base_through[middle.parent]


def _say(tables: Tables) -> list[Statement]:
    """Groups whose share among persisting features differs from that among disappearing ones, the interval clear of
    zero: one statement per edge for those that persist more often, one for those that persist less often."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows_of(tables, "group_gaps"):
        if row["gap_low"] is not None and not row["gap_low"] <= 0 <= row["gap_high"]:
            more = "more" if row["gap"] > 0 else "less"
            found.setdefault((row["instrument"], row["edge"], more), []).append(row)
    statements = []
    for (instrument, edge, more), rows in found.items():
        groups = [
            f"{row['class']} ({format.percent(row['persist'])} of persisting, {format.percent(row['disappear'])} of "
            "disappearing)"
            for row in rows
        ]
        gaps = [
            f"{row['class']} {100 * row['gap']:.1f} ({100 * row['gap_low']:.1f} to {100 * row['gap_high']:.1f})"
            for row in rows
        ]
        text = f"Along {edge}, by matches, some groups of features persist {more} often than others: "
        evidence = f"gaps in points, with CIs (Newcombe's): {', '.join(gaps)}"
        statements.append(
            Statement(edge.split("->")[1], "kinds", f"{text}{format.listed(groups)}.", (evidence,), instrument)
        )
    return statements


ANALYSIS = Analysis(
    kind="classes",
    version=4,
    title="Kinds of features",
    items=instrument_items,
    settings=_settings,
    needs=sample_needs,
    run=_run,
    tables=(GROUP_GAPS, PATHS, GAPS, GROUPS, CLASSES, CATEGORIES, LANGUAGES, FEATURES),
    say=_say,
)
