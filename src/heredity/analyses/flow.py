"""Where the features of a merge come from.

Every live feature of a merge is counted exactly once: from the base (matched by a parent's feature that itself matches
the base), emerged in one parent, in several parents but not in the base, or novel. What a merge inherits from a parent
that is the base itself is from the base (Horn & Elliott 2024, figure 2). Matches count by two rules: above each edge's
own threshold, which findings are read by, and above the paper's 0.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Results, Statement, Tables, rows_of
from heredity.analyses.match import read_matches, thresholds_of
from heredity.analyses.match_findings import beside_verdicts
from heredity.analyses.sample import instrument_items, match_needs
from heredity.engine.stage import Work
from heredity.study import Edge, Study
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.features.correlate import Matches

KEY = ("instrument", "site")
_RULE = Column("rule", "text", "What counts as a match: evidence or study (each edge's own threshold), or paper (0.8).")

FLOW = Table(
    "flow",
    "Origins of the live features of every merge; each feature is counted once.",
    (*KEY, "rule", "model", "origin"),
    (
        _RULE,
        Column("origin", "text", "from_base, emerged_in_PARENT, emerged_in_both or novel."),
        Column("features", "count", "Live features of the merge.", of="live"),
        Column("live", "count", "All live features of the merge."),
    ),
    brief=("instrument", "rule", "model", "origin", "features"),
)
FLOW_LINKS = Table(
    "flow_links",
    "Features of a merge by the parent they come through.",
    (*KEY, "rule", "source", "model", "origin"),
    (
        _RULE,
        Column("source", "text", "Parent."),
        Column("origin", "text", "base, the parent in which they emerged, or both."),
        Column("features", "count", "Features of the merge."),
        Column("shared", "count", "Those that come through several parents.", of="features"),
    ),
)
REACH = Table(
    "reach",
    "Features of each parent that persist into at least one of its children.",
    (*KEY, "rule", "model"),
    (
        _RULE,
        Column("features", "count", "Parent features that persist into a child.", of="live"),
        Column("live", "count", "Parent features that fired on the aligned tokens of at least one edge."),
        Column("total", "count", "All features of the parent's SAE."),
        Column("children", "text", "Into which children, with the number of features of each."),
    ),
)


class FlowSettings(NamedTuple):
    merges: dict[str, tuple[tuple[str, ...], tuple[Edge, ...]]]
    """By merge: parents that the other parents descend from, and all edges into the merge and its parents."""


def _settings(study: Study, item: Item) -> FlowSettings:
    merges = {}
    for name in study.order:
        if study.config.model[name].merge:
            parents = study.parents[name]
            bases = tuple(p for p in parents if any(p in study.ancestors(other) for other in parents if other != p))
            edges = tuple(edge for edge in study.descent if edge.child == name or edge.child in parents)
            merges[name] = bases, edges
    return FlowSettings(merges)


def _run(work: Work, settings: FlowSettings) -> Results:
    found = {Edge(*name.split("->")): one for name, one in work.inputs["match"].items()}
    matches = {edge: read_matches(one) for edge, one in found.items()}
    cuts = {edge: thresholds_of(one) for edge, one in found.items()}
    results: dict[str, list[dict[str, Any]]] = {"flow": [], "flow_links": [], "reach": []}
    for rule in next(iter(cuts.values())):
        counted = _counts({edge: lines.above(cuts[edge][rule]) for edge, lines in matches.items()}, settings)
        for name, rows in counted.items():
            results[name] += [{"rule": rule, **row} for row in rows]
    return results


def _counts(matches: Mapping[Edge, Matches], settings: FlowSettings) -> dict[str, list[dict[str, Any]]]:
    """Rows of all tables from the matches that count."""
    from heredity.features.fates import flow

    rows, links = [], []
    for merge, (bases, edges) in settings.merges.items():
        into = {edge.parent: matches[edge] for edge in edges if edge.child == merge}
        before: dict[str, list[Matches]] = {}
        for edge in edges:
            if edge.child in into:
                before.setdefault(edge.child, []).append(matches[edge])
        result = flow(before, into, 0.0, bases)
        emerged = {f"emerged_in_{parent}": count for parent, count in result.emerged.items()}
        last = {"emerged_in_both": result.emerged_in_both, "novel": result.novel}
        for origin, count in ({"from_base": result.from_base} | emerged | last).items():
            rows.append({"model": merge, "origin": origin, "features": count, "live": result.live})
        links += _links(merge, result.inherited_through, result.from_base_through)
    children: dict[str, dict[str, Matches]] = {}
    for edge, lines in matches.items():
        children.setdefault(edge.parent, {})[edge.child] = lines
    return {"flow": rows, "flow_links": links, "reach": [_reach(*item) for item in children.items()]}


def _reach(parent: str, children: Mapping[str, Matches]) -> dict[str, Any]:
    kept = {child: lines.parent_match[:, 0] >= 0 for child, lines in children.items()}
    live = np.any([lines.parent_density > 0 for lines in children.values()], axis=0)
    return {
        "model": parent,
        "features": int(np.any(list(kept.values()), axis=0).sum()),
        "live": int(live.sum()),
        "total": len(live),
        "children": ", ".join(f"{child} {own.sum():,}" for child, own in kept.items()),
    }


def _links(
    merge: str, inherited: Mapping[str, np.ndarray], from_base: Mapping[str, np.ndarray]
) -> Iterable[dict[str, Any]]:
    """One row per parent and origin. A feature is from the base when it is through any parent; otherwise it emerged in
    the parent it is inherited through, or in `both` of several."""
    through = np.sum(list(inherited.values()), axis=0, dtype=np.int64)
    based = np.any(list(from_base.values()), axis=0)
    for parent, own in inherited.items():
        new = own & ~based
        for origin, member in (("base", own & based), (parent, new & (through == 1)), ("both", new & (through > 1))):
            if member.any():
                shared = int((member & (through > 1)).sum())
                row = {"source": parent, "model": merge, "origin": origin, "features": int(member.sum())}
                yield row | {"shared": shared}


def _say(tables: Tables) -> Iterable[Statement]:
    parents_of = {row["model"]: [p for p in row["parents"].split(", ") if p] for row in rows_of(tables, "models")}
    by_merge: dict[tuple[str, str, bool], dict[str, int]] = {}
    for row in rows_of(tables, "flow"):
        key = row["instrument"], row["model"], row["rule"] == "paper"
        by_merge.setdefault(key, {})[row["origin"]] = row["features"]
    for (instrument, name, of_paper), counts in by_merge.items():
        if of_paper:
            continue
        live, novel, paper = sum(counts.values()), counts["novel"], by_merge.get((instrument, name, True))
        start = _start(parents_of, name)
        words = {"from_base": f"go back to {start}"}
        for parent in parents_of[name]:
            words[f"emerged_in_{parent}"] = (
                f"emerged in {parent}" if parents_of[parent] else f"come from {parent} alone"
            )
        words["emerged_in_both"] = f"are in both parents, but not in {start}"
        sources = [f"{counts[key]:,} {text}" for key, text in words.items() if counts.get(key)]
        colon = ": " if sources else ""
        inherited = Statement(
            name,
            "inherited",
            f"By matches alone, {name} inherited {format.of(live - novel, live)} of its live features{colon}"
            f"{format.listed(sources)}.",
            (_sum(counts), *([f"at the paper's r > 0.8: {_sum(paper)}"] if paper else [])),
            instrument,
        )
        text = f"By matches alone, {format.of(novel, live)} live features of {name} match nothing in its parents."
        novelty = Statement(name, "new", text, (f"novel {novel:,} of {live:,} live",), instrument)
        yield from (beside_verdicts(one, tables) for one in (inherited, novelty))


def _sum(counts: Mapping[str, int]) -> str:
    """What is inherited as the sum of its origins."""
    parts = {origin: count for origin, count in counts.items() if origin != "novel"}
    return f"{sum(parts.values()):,} = " + " + ".join(f"{count:,} {origin}" for origin, count in parts.items())


def _start(parents: Mapping[str, list[str]], name: str) -> str:
    """The start model that a merge descends from, or a general word for several."""
    starts, layer = dict[str, None](), [name]
    while layer:
        starts |= dict.fromkeys(model for model in layer if not parents[model])
        layer = [parent for model in layer for parent in parents[model]]
    return next(iter(starts)) if len(starts) == 1 else "their common ancestors"


ANALYSIS = Analysis(
    kind="flow",
    version=2,
    title="Where features go",
    items=lambda study: instrument_items(study) if study.descent else (),
    settings=_settings,
    needs=lambda study, item: {"match": match_needs(study, item)},
    run=_run,
    tables=(FLOW, FLOW_LINKS, REACH),
    say=_say,
)
