"""Made-up meanings: classes, explanations, cards and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heredity.explain.scores import compare
from heredity.features.classes import CATEGORIES, CLASSES, GROUPS, Rules, wilson
from heredity.report.classes import ClassesSummary, ClassGroup, EdgeClasses, GapSummary, ShareSummary
from heredity.report.edge import EdgeSummary
from heredity.report.explained import ComparisonSummary, DistributionSummary, ExplainedSummary
from heredity.report.shown import CardView, Context, FiredToken, LabelView, Level, PushedToken

_JUDGED = CLASSES[: CLASSES.index("rare")]
PERSISTING = {"punctuation": 0.21, "line break": 0.04, "operator": 0.1, "keyword": 0.08, "single-token": 0.2}
"""Shares of classes among what persists; among what is lost others are planted."""
LOST = {"punctuation": 0.08, "line break": 0.05, "operator": 0.04, "keyword": 0.03, "single-token": 0.28}


def classes(edges: Mapping[str, EdgeSummary], corpora: Sequence[str], seed: int) -> ClassesSummary:
    """Classes of the features of these edges."""
    rng = np.random.default_rng(seed)
    models = dict.fromkeys(end for edge in edges for end in edge.split("->"))
    rates = rng.dirichlet(np.full(len(CATEGORIES), 0.7))
    return ClassesSummary(
        tokens=200_000,
        level=0.95,
        rules={name: float(value) for name, value in Rules()._asdict().items()},
        languages={corpus: corpus if corpus in ("python", "cpp") else "prose" for corpus in corpora},
        base_rates=dict(zip(CATEGORIES, rates.tolist(), strict=True)),
        models={name: _group(rng, 3_900, PERSISTING, corpora) for name in models},
        edges={name: _edge(rng, edge, corpora) for name, edge in edges.items()},
        paths={
            f"{first}->{last.partition('->')[2]}": _group(rng, 1_480, PERSISTING, corpora)
            for first in edges
            for last in edges
            if first.partition("->")[2] == last.partition("->")[0]
        },
    )


def _edge(rng: np.random.Generator, edge: EdgeSummary, corpora: Sequence[str]) -> EdgeClasses:
    persist = _group(rng, edge.persist, PERSISTING, corpora)
    disappear = _group(rng, edge.disappear, LOST, corpora)
    return EdgeClasses(
        threshold=edge.threshold,
        live=_group(rng, edge.parent_live, PERSISTING, corpora),
        persist=persist,
        disappear=disappear,
        child_live=_group(rng, edge.child_live, PERSISTING, corpora),
        inherited=_group(rng, edge.child_live - edge.emerge, PERSISTING, corpora),
        emerge=_group(rng, edge.emerge, LOST, corpora),
        class_gaps=_gaps(persist.classes, disappear.classes),
        group_gaps=_gaps(persist.groups, disappear.groups),
    )


def _group(rng: np.random.Generator, features: int, planted: Mapping[str, float], corpora: Sequence[str]) -> ClassGroup:
    rare, silent = features // 6, features // 40
    judged = features - rare - silent
    left = (1 - sum(planted.values())) / (len(_JUDGED) - len(planted))
    counts = rng.multinomial(judged, [planted.get(name, left) for name in _JUDGED])
    counted: dict[str, int] = dict(zip(_JUDGED, counts.tolist(), strict=True))
    groups = {name: sum(counted[part] for part in parts) for name, parts in GROUPS.items()}
    groups["single-token"] = counted["single-token"] + judged // 10
    domains = dict(zip(corpora, rng.binomial(judged, 0.06, len(corpora)).tolist(), strict=True))
    return ClassGroup(
        features=features,
        judged=judged,
        rare=rare,
        silent=silent,
        classes=_shares(counted, judged),
        groups=_shares(groups, judged),
        domains=_shares(domains, judged),
    )


def _shares(counts: Mapping[str, int], whole: int) -> dict[str, ShareSummary]:
    low, high = wilson(np.array(list(counts.values())), whole)
    return {
        name: ShareSummary(count=size, share=size / whole if whole else None, interval=(low[at], high[at]))
        for at, (name, size) in enumerate(counts.items())
    }


def _gaps(first: Mapping[str, ShareSummary], second: Mapping[str, ShareSummary]) -> dict[str, GapSummary]:
    found = {}
    for name, own in first.items():
        value = None if own.share is None or (other := second[name].share) is None else own.share - other
        ends = (None, None) if value is None else (value - 0.02, value + 0.02)
        found[name] = GapSummary(value=value, interval=ends)
    return found


def explained(edges: Mapping[str, EdgeSummary], merges: Sequence[str], judge: str, seed: int) -> ExplainedSummary:
    """Explanations: features that persist are explained better, except along the last edge."""
    rng = np.random.default_rng(seed)
    last = list(edges)[-1]
    return ExplainedSummary(
        judge=judge,
        features=1_800,
        explained=1_090,
        carried=800,
        kept=710,
        re_explained=90,
        failed=12,
        too_rare=143,
        saved=710,
        saved_cost=0.0 if judge == "offline" else 1.42,
        failures={} if judge == "offline" else {"refused": 3, "no_json": 9},
        edges={name: comparison(rng, 0.42 if name != last else 0.31, 0.3) for name in edges},
        merges={name: comparison(rng, 0.4, 0.3) for name in merges},
    )


def comparison(rng: np.random.Generator, persisting: float, others: float, size: int = 180) -> ComparisonSummary:
    """Scores of two groups around these means."""
    groups = [np.clip(rng.normal(mean, 0.22, size), -0.4, 0.99) for mean in (persisting, others)]
    groups[1][:5] = np.nan
    found = compare(groups[0], groups[1], (12, 20), resamples=60)
    told = [
        DistributionSummary(
            n=own.n,
            unscored=own.unscored,
            rare=own.rare,
            median=own.median,
            interval=(own.low, own.high),
            histogram=tuple(own.histogram.tolist()),
        )
        for own in (found.persisting, found.others)
    ]
    return ComparisonSummary(
        persisting=told[0], others=told[1], p=found.p, effect=found.effect, interval=(found.low, found.high)
    )


def card(context: Context, highest: float, number: int) -> CardView:
    """A card of a feature that fires on the focus of a context, and more weakly elsewhere."""
    rng = np.random.default_rng(number)
    kinds = list(dict.fromkeys((context.tokens[context.focus], *context.tokens)))[:10]
    totals = 0.6 ** np.arange(len(kinds), dtype=float)
    values = np.zeros(len(context.tokens))
    weaker = []
    for place in range(1, 5):
        if place == 3 and number % 2:
            continue
        low, high = highest * (4 - place) / 5, highest * (5 - place) / 5
        values[context.focus] = (low + high) / 2
        weaker.append(Level(low=low, high=high, contexts=(context.model_copy(update=_bare(values)),) * 2))
    no_logits = "hook point blocks.0.mlp.hook_pre: no linear map leads from there to the residual stream"
    weights = np.sort(rng.gamma(2, 0.4, len(kinds)))[::-1].tolist()
    pushed = list(zip(kinds, weights, strict=True))
    known = number % 5 != 3
    return CardView(
        firings=820 + number,
        tokens=tuple(
            FiredToken(token=token, share=share, firings=int(400 * share) + 1, mean=4.1 - at / 3, fired=0.93 / (1 + at))
            for at, (token, share) in enumerate(zip(kinds, (totals / totals.sum() * 0.97).tolist(), strict=True))
        ),
        histogram=tuple((300 * np.exp(-np.arange(30) / 4) + (rng.random(30) < 0.5)).astype(int).tolist()),
        weaker=tuple(weaker),
        promoted=tuple(PushedToken(token=token, weight=weight) for token, weight in pushed) if known else (),
        suppressed=tuple(PushedToken(token=token, weight=-weight) for token, weight in pushed) if known else (),
        no_logits="" if known else no_logits,
    )


def _bare(values: np.ndarray) -> dict:
    return {"values": tuple(values.round(4).tolist()), "others": {}}


def label(model: str, index: int, number: int) -> LabelView | None:
    """What is said of a feature: its own, handed down, given up, failed, or nothing."""
    said = {
        0: "the token '=' (keyword `</script>` & \"quotes\")",
        1: "tokens after a line break in cpp, mostly punctuation; also the first token of a block",
        2: "the word ' said' in stories",
    }.get(number % 5)
    if number % 5 == 4:
        return None
    carried = number % 5 == 1 and model != "base"
    return LabelView(
        description=said,
        by="offline",
        origin="base/123" if carried else f"{model}/{index}",
        carried=carried,
        re_explained=number % 5 == 2,
        simulation=None if said is None else 0.62 - 0.04 * number,
        detection=0.5,
        fuzzing=float("nan"),
        failure="" if said else "too_rare",
    )
