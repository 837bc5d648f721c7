"""The features worth looking at, each with the text it fires on, its tokens and logits, and its matches in every model.

Lists: most persistent and most changed features of the first parent, features that emerged in each child, up to thirty
of each edge that are lost or new by verdicts, the surest first, and those of the case studies. Cases: a hypothesis
(tokens, strings, regular expression, script, or a function of the user's) is put to every model. LLR = log(
P_act(token in set) / P_data(token in set) ), activation-weighted; P_data is the share of the sample's tokens, and
beside it, for strings, the product of their tokens' shares (Horn & Elliott 2024, appendix D). Sensitivity is the
Pearson r of a feature's activation and the indicator of the set. The best feature of the start model is followed along
its best matches; the verdict says where the concept persists, disappears or emerges, at each edge's threshold and at
the paper's 0.8. Every two members of a family are correlated on the sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Aside, Item, Need, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.hypotheses import case_of, kind_of, recipe_of
from heredity.analyses.reading import reader_of
from heredity.analyses.sae import sae_need
from heredity.analyses.sample import (
    MIN_FIRINGS,
    Sample,
    SampleSettings,
    case_corpora,
    case_settings,
    instrument_items,
    sample_needs,
    sample_settings,
)
from heredity.engine.stage import Work
from heredity.engine.store import Artifact, write_json
from heredity.study import CaseConfig, Edge, Precision, ReportConfig, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.features.cards import Card, LogitTokens, Places
    from heredity.features.collect import Reader
    from heredity.features.families import Member

FEATURES, CASES_JSON = "features.json", "cases.json"
_TOKENS, _LEVELS, _EACH, _BINS = 10, 5, 2, 30  # of a card
_LISTED, _TOLD = 30, 4  # features of an edge that are lost or new, and tokens of each in the table
_REACH = 9  # tokens on either side of a weaker firing: one more than are shown, which tells that the text goes on
KEY = ("instrument", "site")

_FIT = (
    Column("llr", "number", "log( P_act(token in set) / P_data(token in set) ), activation-weighted."),
    Column("llr_counted", "number", "The same with every firing counted once."),
    Column("llr_unigram", "number", "llr with case_verdicts.unigram as P_data, as the first paper has it."),
    Column("sensitivity", "r", "Pearson r of its activation and the indicator of the set."),
    Column("elsewhere", "number", "Total activation on all other tokens over that on the set."),
    Column("elsewhere_mean", "number", "Mean activation of a firing on other tokens over that of one on the set."),
    Column("firings", "count", "Firings on the sample."),
    Column("hits", "count", "Firings on the set.", of="firings"),
)
CASES = Table(
    "cases",
    "Case studies in every model: the feature of the family, and the feature that fits best by itself.",
    (*KEY, "case", "model"),
    (
        Column("feature", "feature", "Feature of the family; null where the family does not reach."),
        *_FIT,
        Column("r", "r", "Pearson r with the feature of the model it descends from."),
        Column("via", "text", "Model that it was reached from."),
        Column("paper", "text", "persists where r is above the first paper's 0.8, else disappears."),
        Column("status", "text", "start, kept, lost (a child's nearest miss), absent (a parent's), or beyond a miss."),
        Column("best_feature", "feature", "Feature of this model that fits best, whatever it matches."),
        Column("best_llr", "number", "Its LLR."),
        Column("best_sensitivity", "r", "Its sensitivity."),
        Column("best_r", "r", "Its Pearson r with the feature of the family."),
        Column("base_rate", "share", "Share of the sample's tokens in the set."),
        Column("verdict", "text", "What became of the concept, as in case_verdicts."),
    ),
    brief=("instrument", "case", "model", "feature", "llr", "r", "status"),
)
VERDICTS = Table(
    "case_verdicts",
    "What became of the concept of every case study.",
    (*KEY, "case"),
    (
        Column("kind", "text", "tokens, strings, regex, script or predicate."),
        Column("hypothesis", "text", "The hypothesis in words."),
        Column("tokens", "text", "Tokens of the set, or strings; for a pattern or a script the most frequent ones."),
        Column("not_in_vocabulary", "text", "Tokens that are no single token of this vocabulary."),
        Column("set_size", "count", "Tokens of the vocabulary in the set; null for strings and a predicate."),
        Column("hits", "count", "Tokens of the sample in the set.", of="positions"),
        Column("positions", "count", "Tokens of the sample."),
        Column(
            "unigram",
            "share",
            "Of strings the product of their tokens' shares of the sample, summed over the ways in which they are "
            "written; of sets of tokens the share of the set.",
        ),
        Column("mean_r", "r", "Mean Pearson r of the members along the edges of the graph."),
        Column("pairs_r", "r", "Mean Pearson r of every two members, nearest misses included, on the sample."),
        Column("verdict", "text", "persists, disappears on EDGE, or emerges in MODEL."),
        Column("paper_verdict", "text", "The same at the first paper's threshold of 0.8 on every edge."),
    ),
    brief=("instrument", "case", "hypothesis", "hits", "pairs_r", "verdict", "paper_verdict"),
)
PAIRS = Table(
    "case_pairs",
    "Pearson r of every two members of a case's family, nearest misses included, on the sample.",
    (*KEY, "case", "model_a", "model_b"),
    (
        Column("model_a", "text", "Model."),
        Column("model_b", "text", "A later model."),
        Column("feature_a", "feature", "Member of the family in the first."),
        Column("feature_b", "feature", "Member in the second."),
        Column("r", "r", "Pearson r of their activations, zeros included."),
    ),
    plot=Plot("heat", x="model_b", y="r", by="model_a"),
)
MISSES = Table(
    "case_misses",
    "What came nearest to a family that ends.",
    (*KEY, "case", "edge"),
    (
        Column("model", "text", "Model in which the family ends."),
        Column("feature", "feature", "Nearest feature there."),
        *_FIT,
        Column("r", "r", "Its Pearson r."),
        Column("threshold", "r", "The edge's threshold."),
    ),
)

LOST_AND_NEW = Table(
    "lost_and_new",
    "Features that are lost or new by verdicts, with their text: up to thirty of each edge, the surest first.",
    (*KEY, "edge", "verdict", "feature"),
    (
        Column("verdict", "text", "lost (a feature of the parent) or new (one of the child)."),
        Column("tokens", "text", "Tokens that carry most of its activation, with the share of it on each."),
        Column("example", "text", "Text around its strongest firing on the sample, which stands in « »."),
        Column("firings", "count", "Aligned tokens on which it fires."),
        Column("stability", "r", "Best r in the second SAE of its model."),
        Column("match_r", "r", "Best r in the SAEs of the other model."),
        Column("strength", "number", "Size of its effect in the other model over that in its own, in any direction."),
        Column("retained", "number", "Effect along its own direction in the other model over that in its own."),
        Column("readable", "number", "R² of a linear readout from the other model over that from its own."),
        Column("p", "number", "p-value of the hypothesis that it is not lost (new)."),
    ),
    brief=("instrument", "edge", "verdict", "feature", "tokens", "match_r", "retained", "readable", "p"),
)

Chosen = tuple[str, int]
"""A model and the index of a feature there."""


class FeaturesSettings(NamedTuple):
    sample: SampleSettings
    case_sample: SampleSettings | None
    """Where the cases have one of their own."""
    case_corpora: tuple[str, ...]
    report: ReportConfig
    cases: dict[str, Any]
    """Recipes; of a predicate the content of its file as well."""
    configs: Aside
    root: Aside
    hook_point: str
    precision: Precision


def _settings(study: Study, item: Item) -> FeaturesSettings:
    config = study.config
    recipes = {name: recipe_of(case, study.root) for name, case in config.case.items()}
    return FeaturesSettings(
        sample_settings(study),
        case_settings(study) if config.case else None,
        case_corpora(study),
        config.report,
        recipes,
        Aside(config.case),
        Aside(study.root),
        item["site"],
        config.precision,
    )


def _needs(study: Study, item: Item) -> Needs:
    models = {name: ("model", {"model": name}) for name in study.followed}
    saes = {name: sae_need(study, name, item["instrument"], item["site"]) for name in study.followed}
    judged = study.descent if study.config.verdicts.tokens else ()
    common = item | {"text": "common"}
    verdicts: dict[str, Need] = {edge.name: ("verdicts", common | {"edge": edge.name}) for edge in judged}
    needs = {**sample_needs(study, item), "model": models, "sae": saes, "verdicts": verdicts}
    if study.config.case and case_settings(study):
        needs["case_acts"] = {name: ("acts", {**item, "model": name, "use": "cases"}) for name in study.followed}
    return needs


def _run(work: Work, settings: FeaturesSettings) -> Results:
    sample = Sample(work.inputs, settings.sample)
    lists, cases = _lists(sample, settings.report.features), {}
    judged = [row for edge in sample.edges for row in _lost_and_new(edge, work.inputs["verdicts"].get(edge.name))]
    for row in judged:
        lists.setdefault(row["list"], []).append((row["model"], row["feature"]))
    configs: Mapping[str, CaseConfig] = settings.configs.value
    asked = _case_sample(work, settings) or sample
    for name, case in configs.items():
        work.progress(len(cases), len(configs))
        cases[name], lists[f"case:{name}"] = case_of(settings.root.value, asked, case)
    chosen = {one for members in lists.values() for one in members}
    drawn = _cards(work, settings, sample, chosen)
    rows = [_row(sample, name, one, drawn[one]) for name, members in lists.items() for one in members]
    write_json(work.folder / FEATURES, rows)
    write_json(work.folder / CASES_JSON, cases)
    return {
        "cases": [row for name, case in cases.items() for row in _case_rows(name, case)],
        "case_verdicts": [_verdict_row(name, case) for name, case in cases.items()],
        "case_pairs": [{"case": name, **pair} for name, case in cases.items() for pair in case["pairs"]],
        "case_misses": [
            {"case": name, **{key: miss[key] for key in MISSES.schema.names if key in miss}}
            for name, case in cases.items()
            for miss in case["misses"]
        ],
        "lost_and_new": [_told(sample, row, drawn[row["model"], row["feature"]]) for row in judged],
    }


def _case_sample(work: Work, settings: FeaturesSettings) -> Sample | None:
    """The sample that cases are put to where it is not the one that features are shown on."""
    if settings.case_sample is None:
        return None
    tokens = {name: work.inputs["tokens"][name] for name in settings.case_corpora}
    return Sample({**work.inputs, "acts": work.inputs["case_acts"], "tokens": tokens}, settings.case_sample)


def _case_rows(name: str, case: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The family's feature and the best one, for every model that has either; none where no model has."""
    from heredity.features.null import PAPER

    for model, best in case["best"].items() if case["start"] else ():
        row, best = case["models"].get(model, {}), best or {}
        kept = {key: row[key] for key in CASES.schema.names if key in row}
        if row.get("r") is not None:
            kept["paper"] = "persists" if row["r"] > PAPER else "disappears"
        further = {f"best_{key}": best.get(key) for key in ("feature", "llr", "sensitivity", "r")}
        yield {"case": name, "model": model, "verdict": case["verdict"], **kept, **further}


def _verdict_row(name: str, case: Mapping[str, Any]) -> dict[str, Any]:
    names = ("set_size", "hits", "positions", "unigram", "mean_r", "pairs_r", "verdict", "paper_verdict")
    figures = {key: case[key] for key in names}
    texts = {key: " ".join(map(repr, case[key])) for key in ("tokens", "not_in_vocabulary")}
    hypothesis = case["hypothesis"]
    return {"case": name, "kind": hypothesis["kind"], "hypothesis": kind_of(hypothesis), **texts, **figures}


def _lists(sample: Sample, count: int) -> dict[str, list[Chosen]]:
    """Names of lists -> (model, feature) in them."""
    from heredity.features.families import persistence

    if not sample.edges:
        return {}
    start = sample.edges[0].parent
    common = sample.firings[start] >= MIN_FIRINGS
    score = np.where(common, persistence(start, sample.edges, sample.matches, len(common)), -1.0)
    children = [sample.matches[edge] for edge in sample.edges if edge.parent == start]
    best = np.max([np.nan_to_num(matches.parent_r[:, 0], nan=-1.0) for matches in children], axis=0)
    changed = np.where(common & (best > -1), -best, -2.0)
    lists = {"most persistent": _best(start, score, count), "most changed": _best(start, changed, count)}
    for child in sample.models:
        incoming = [edge for edge in sample.edges if edge.child == child]
        if incoming:
            r = {edge: np.nan_to_num(sample.matches[edge].child_r[:, 0], nan=-1.0) for edge in incoming}
            unmatched = np.all([values <= sample.threshold[edge] for edge, values in r.items()], axis=0)
            fresh = unmatched & (sample.firings[child] >= MIN_FIRINGS)
            new = np.where(fresh, -np.max(list(r.values()), axis=0), -2.0)
            lists[f"emerged in {child}"] = _best(child, new, count)
    return lists


def _lost_and_new(edge: Edge, verdicts: Artifact | None) -> list[dict[str, Any]]:
    """Evidence of the features that are surest to be lost or new along an edge, with their model and list."""
    rows = []
    columns = ["feature", "verdict", "firings", "stability", "match_r", "strength", "retained", "readable", "p_lost"]
    ends = (("lost", edge.parent, f"lost on {edge.name}"), ("new", edge.child, f"new on {edge.name}"))
    if verdicts is None:
        return rows
    for verdict, model, name in ends:
        only = [("verdict", "=", verdict)]
        found = verdicts.table("evidence", columns, only).to_pylist()
        found.sort(key=lambda row: (row["p_lost"], row["feature"]))
        rows += [row | {"edge": edge.name, "model": model, "list": name} for row in found[:_LISTED]]
    return rows


def _told(sample: Sample, row: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """A row of the table `lost_and_new`."""
    names = ("edge", "verdict", "feature", "firings", "stability", "match_r", "strength", "retained", "readable")
    tokens = fired_on(sample, card)[:_TOLD] if card.firings else []
    example = "never fires on the sample"
    for window in _windows(sample, card.top)[:1]:
        at, pieces = window["position"], window["tokens"]
        example = "".join([*pieces[:at], f"«{pieces[at]}»", *pieces[at + 1 :]])
    texts = {"tokens": ", ".join(f"{one['token']!r} {format.percent(one['share'])}" for one in tokens)}
    return {name: row[name] for name in names} | texts | {"example": example, "p": row["p_lost"]}


def _best(model: str, score: np.ndarray, count: int) -> list[Chosen]:
    order = np.argsort(-score, kind="stable")[:count]
    return [(model, int(index)) for index in order if score[index] > -1]


def _cards(work: Work, settings: FeaturesSettings, sample: Sample, chosen: set[Chosen]) -> dict[Chosen, Card]:
    """A card for each feature; of one model after the other, so that one is in memory at a time."""
    from heredity.features.cards import Sizes, cards

    vocabulary = len(sample.vocabulary)  # all that a feature fires on, for its total
    sizes = Sizes(settings.report.contexts, _LEVELS, _EACH, drawn=0, silent=0, tokens=vocabulary, bins=_BINS)
    drawn = {}
    for model in sample.models:
        features = np.array(sorted(feature for owner, feature in chosen if owner == model), np.int64)
        if len(features):
            place = settings.hook_point, settings.precision
            reader = reader_of(work.inputs["model"][model], [work.inputs["sae"][model]], *place)()
            logits = logits_of(reader, features)
            del reader
            made = cards(sample.acts[model], sample.ids, features, sizes, settings.sample.seed, logits)
            drawn |= {(model, card.feature): card for card in made}
    return drawn


def logits_of(reader: Reader, features: np.ndarray) -> LogitTokens | str:
    """What features of the SAE of a model predict, int [n], or why that is not known."""
    import torch

    from heredity.features.cards import logit_tokens

    directions = reader.sae.W_dec
    try:
        own = directions[torch.from_numpy(features).to(directions.device)]
        return logit_tokens(reader.model, reader.hook_point, own, _TOKENS)
    except ValueError as error:  # a model without a head
        return str(error)


def _row(sample: Sample, name: str, chosen: Chosen, card: Card) -> dict[str, Any]:
    """What the report shows of a feature: its family, its contexts with every member's activations, its card."""
    from heredity.features.cards import contexts
    from heredity.features.families import family

    model, feature = chosen
    members = family(model, feature, sample.edges, sample.matches)
    known = {member.model: sample.acts[member.model].of(member.feature) for member in members}
    blocks = contexts(card.top.rows.tolist(), known, sample.ids.shape[1])
    return {
        "list": name,
        "model": model,
        "feature": feature,
        "density": card.density,
        "max": card.highest,
        "family": [member_of(member, known[member.model][1], sample.acts[member.model].counted) for member in members],
        "contexts": [sample.block(c.block) | {"position": c.position, "values": c.values} for c in blocks],
        "card": {
            "firings": card.firings,
            "tokens": fired_on(sample, card)[:_TOKENS],
            "histogram": card.histogram.tolist(),
            "weaker": [
                {
                    "low": card.highest * (_LEVELS - 1 - place) / _LEVELS,
                    "high": card.highest * (_LEVELS - place) / _LEVELS,
                    "contexts": _windows(sample, places),
                }
                for place, places in enumerate(card.levels)
                if place and len(places.rows)
            ],
            **predicted(sample, card.logits or card.no_logits),
        },
    }


def fired_on(sample: Sample, card: Card) -> list[dict[str, Any]]:
    """The tokens of a card that holds all that its feature fires on, each with its share of the activation."""
    tokens = card.tokens
    shares = tokens.total / tokens.total.sum()
    columns = (part.tolist() for part in (tokens.ids, shares, tokens.firings, tokens.mean, tokens.share))
    return [
        {"token": sample.text(token), "share": share, "firings": firings, "mean": mean, "fired": fired}
        for token, share, firings, mean, fired in zip(*columns, strict=True)
    ]


def predicted(sample: Sample, logits: LogitTokens | str) -> dict[str, Any]:
    """The tokens that one feature promotes and suppresses, from arrays [k], or why they are not known."""

    def pushed(tokens: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
        pairs = zip(tokens.tolist(), weights.tolist(), strict=True)
        return [{"token": sample.text(token), "weight": weight} for token, weight in pairs]

    if isinstance(logits, str):
        return {"promoted": [], "suppressed": [], "no_logits": logits}
    promoted = pushed(logits.top, logits.top_weights)
    return {"promoted": promoted, "suppressed": pushed(logits.bottom, logits.bottom_weights), "no_logits": ""}


def _windows(sample: Sample, places: Places) -> list[dict[str, Any]]:
    """A little text around each place."""
    rows = []
    for row, values in zip(places.rows.tolist(), places.values, strict=True):
        block, position = divmod(row, sample.ids.shape[1])
        start, end = max(0, position - _REACH), position + _REACH + 1
        rows.append(
            {
                "corpus": sample.corpora[int(sample.origin[block])],
                "tokens": sample.pieces(block)[start:end],
                "position": position - start,
                "values": [round(float(value), 4) for value in values[start:end]],
            }
        )
    return rows


def member_of(member: Member, values: np.ndarray, samples: int) -> dict[str, Any]:
    """A member of a family, the share of the samples it fires on, and its highest activation. values [n]: of all its
    firings."""
    return {**member._asdict(), "density": len(values) / samples, "max": float(values.max(initial=0))}


def _say(tables: Tables) -> Iterable[Statement]:
    named: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows_of(tables, "lost_and_new"):
        named.setdefault((row["instrument"], row["edge"], row["verdict"]), []).append(row)
    for (instrument, edge, verdict), rows in named.items():
        parent, child = edge.split("->")
        own, other = (parent, child) if verdict == "lost" else (child, parent)
        some = "; ".join(f"{own}/{row['feature']} on {row['tokens'] or 'no token of the sample'}" for row in rows[:3])
        text = f"Surest {verdict} features of {own}, compared with {other}: {some}."
        evidence = tuple(
            f"{own}/{row['feature']}: p {row['p']:.2g}, strength {row['strength']:.2f}"
            + ("" if row["match_r"] is None else f", best match r {row['match_r']:.2f}")
            for row in rows[:3]
        )
        yield Statement(child, verdict, text, evidence, instrument)
    for row in rows_of(tables, "case_verdicts"):
        case, instrument = row["case"], row["instrument"]
        members = rows_of(tables, "cases", case=case, instrument=instrument)
        ratios = ", ".join(f"{one['model']} {one['llr']:.3f}" for one in members if one["llr"] is not None)
        if not row["hits"]:
            missing = row["not_in_vocabulary"]
            text = f"case {case}: nothing in the sample fits {row['hypothesis']}"
            if missing and missing == row["tokens"]:
                text = (
                    f"case {case}: {missing}: no single token of this vocabulary, not searched for; name it in strings"
                )
            yield Statement(case, "note", text, instrument=instrument)
            continue
        evidence = [f"{format.of(row['hits'], row['positions'])} tokens of the sample fit"]
        evidence += [f"LLR {ratios}"] if ratios else []
        if row["pairs_r"] is not None:
            pairs = f"mean r of every two members {row['pairs_r']:.2f}"
            evidence.append(f"{pairs}; at the first paper's threshold: {row['paper_verdict']}")
        yield Statement(case, "case", f"{case} ({row['hypothesis']}) {row['verdict']}.", tuple(evidence), instrument)


ANALYSIS = Analysis(
    kind="features",
    version=7,
    title="Features and cases",
    items=instrument_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(LOST_AND_NEW, VERDICTS, CASES, PAIRS, MISSES),
    say=_say,
)
