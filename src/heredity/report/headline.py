"""The findings of a study in plain sentences, each with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from heredity.report.record import Interval
from heredity.report.stitch_findings import Topic, stitch_findings
from heredity.report.summary import EdgeSummary, Flow, Frozen, MergeSummary, Summary
from heredity.study import Init


class Statement(Frozen):
    """One finding."""

    about: str
    """The model it is about, or `stitch NAME`."""
    question: Literal["inherited", "lost", "new", "sure", "merge"] | Topic
    """What it answers, or tells of."""
    instrument: Init | None
    """How the SAEs it rests on were initialized; null for a stitch, which has SAEs of its own."""
    text: str
    """A sentence."""
    evidence: tuple[str, ...]
    """The figures behind it, each with its denominators."""


def headline(summary: Summary) -> tuple[Statement, ...]:
    """What stitches carry; what each child inherited, lost and has anew, and how sure that is, for every init; merges.

    Written from `summary` alone, so that every number in a sentence also stands in the tables.
    """
    statements = [
        Statement(about=f"stitch {name}", question=topic, instrument=None, text=text, evidence=evidence)
        for name, stitch in summary.stitches.items()
        for topic, text, evidence in stitch_findings(stitch)
    ]
    measured: dict[Init, tuple[dict[str, EdgeSummary], dict[str, Flow]]] = {
        summary.instrument: (summary.edges, summary.flow)
    }
    measured |= {init: (also.edges, also.flow) for init, also in summary.also.items()}
    for init, (edges, flow) in measured.items():
        for name, model in summary.models.items():
            for parent in model.parents:
                edge = edges.get(f"{parent}->{name}")
                if edge and name not in flow:
                    statements += _edge(init, parent, name, edge)
        for name, counts in flow.items():
            statements += _merge(summary, init, name, counts, edges)
    return tuple(statements)


def _edge(init: Init, parent: str, child: str, edge: EdgeSummary) -> list[Statement]:
    evidence = [
        _both("persist", edge.persist, edge.parent_live, edge.parent_features),
        f"{edge.one_to_one:,} pairs are each other's best match",
        f"{threshold_words(edge)}, over {edge.tokens:,} tokens",
        *_paper(edge),
    ]
    inherited = Statement(
        about=child,
        question="inherited",
        instrument=init,
        text=f"{child} inherited {_of(edge.persist, edge.parent_live, edge, 'persist')} of the live features of "
        f"{parent}.",
        evidence=tuple(evidence),
    )
    new = Statement(
        about=child,
        question="new",
        instrument=init,
        text=f"{_of(edge.emerge, edge.child_live, edge, 'emerge')} of the live features of {child} match nothing in "
        f"{parent}.",
        evidence=(_both("emerge", edge.emerge, edge.child_live, edge.child_features), *_newness(parent, edge)),
    )
    return [inherited, _lost(init, child, edge, "It lost"), new, _sure(init, parent, child, edge)]


def _lost(init: Init, child: str, edge: EdgeSummary, opening: str) -> Statement:
    return Statement(
        about=child,
        question="lost",
        instrument=init,
        text=f"{opening} {_of(edge.disappear, edge.parent_live, edge, 'disappear')}{_noise(edge)}.",
        evidence=(_both("disappear", edge.disappear, edge.parent_live, edge.parent_features), *_rare(edge)),
    )


def threshold_words(edge: EdgeSummary) -> str:
    """The threshold of an edge and how it came about."""
    if edge.threshold_by == "study":
        return f"r > {edge.threshold:g} as the study sets it"
    if edge.ceiling is None:
        ends = "what chance reaches and what the best matches of the edge reach"
    elif edge.one_dictionary:
        ends = "what chance reaches and 1, which an unchanged feature reaches"
    else:
        ends = "what chance reaches and what two SAEs of one model reach"
    return f"r > {edge.threshold:.2f}, between {ends}"


def _paper(edge: EdgeSummary) -> list[str]:
    """The count at the paper's threshold, where that is not the edge's own."""
    found = edge.paper
    if found is None or found.threshold == edge.threshold:
        return []
    interval = _interval(found.intervals.get("persist"), edge.parent_live, edge.level)
    of_ceiling = ""
    if found.relative is not None and found.ceiling is not None and not edge.one_dictionary:
        of_ceiling = f", {_percent(found.relative)} of a ceiling of {_percent(found.ceiling)}"
    count = f"{found.persist:,} of {edge.parent_live:,} ({_percent(_ratio(found.persist, edge.parent_live))}{interval})"
    return [f"at the paper's r > {found.threshold:g}: {count}{of_ceiling}"]


def _rare(edge: EdgeSummary) -> list[str]:
    """Lost features that fire too rarely for their r to be relied on."""
    rare = edge.strata.get("parent", {}).get("rare")
    lost = rare.features - rare.matched if rare else 0
    return [f"{lost:,} of these fire on fewer than 30 of the tokens, too few to be sure"] if lost else []


def _newness(parent: str, edge: EdgeSummary) -> list[str]:
    """How many of the emerged features the parent's activations do not hold either."""
    if edge.newness is None or not edge.newness.emerged.judged:
        return []
    found, same = edge.newness.emerged, edge.newness.inherited
    mistaken = f"; of inherited features the test calls {_percent(same.new / same.judged)} new" if same.judged else ""
    return [
        f"of the {found.judged:,} that fire often enough to judge, {found.new - found.turned:,} are in no direction of "
        f"{parent}'s activations, {found.turned:,} in other directions only, {found.missed:,} are there as they are "
        f"and were missed by its SAE{mistaken}"
    ]


def _noise(edge: EdgeSummary) -> str:
    """How much of a loss an unchanged model shows, too."""
    if edge.ceiling is None or not edge.disappear:
        return ""
    if edge.one_dictionary:
        return ", where an unchanged model loses none"
    expected = round((1 - edge.ceiling) * edge.parent_live)
    if expected >= edge.disappear:
        return ", no more than a second SAE of the same model loses"
    return f"; {expected:,} would look lost between two SAEs of the same model"


def _sure(init: Init, parent: str, child: str, edge: EdgeSummary, further: tuple[str, ...] = ()) -> Statement:
    share = _percent(_ratio(edge.persist, edge.parent_live))
    floor = "" if edge.floor is None else f"; by chance alone it would be {_percent(edge.floor)}"
    if edge.ceiling is None:
        text = f"No second SAE of {parent} was trained: how much of the loss is the instrument's is unknown{floor}."
    elif edge.one_dictionary:
        text = (
            f"{share} of {parent} persists in {child}, where an unchanged model keeps everything: one SAE reads both "
            f"models, so the ceiling is 1 by construction{floor}."
        )
    elif edge.ceiling <= 0:
        text = f"Two SAEs of {parent} share no feature at this threshold: the instrument cannot tell{floor}."
    else:
        reach = min(_ratio(edge.persist, edge.parent_live) / edge.ceiling, 1.0)
        interval = _interval(edge.intervals.get("relative"), 1, edge.level)
        seen = ("all" if reach == 1 else _percent(reach)) + (f" ({interval.removeprefix(', ')})" if interval else "")
        text = (
            f"{share} of {parent} persists in {child}, against {_percent(edge.ceiling)} between two SAEs of "
            f"{parent} itself: {seen} of what the instrument can show{floor}."
        )
    evidence = [_both("persist", edge.persist, edge.parent_live, edge.parent_features), _ceiling(edge)]
    evidence.append("floor not measured" if edge.floor is None else f"floor {_percent(edge.floor)} of live")
    if edge.chance is not None:
        above = _both("", edge.chance.parent_above, edge.parent_live, edge.parent_features)
        evidence.append(f"more than chance (false discovery rate {_percent(edge.chance.rate)}): {above}")
    return Statement(about=child, question="sure", instrument=init, text=text, evidence=(*evidence, *further))


def _ceiling(edge: EdgeSummary) -> str:
    if edge.ceiling is None:
        return "ceiling not measured"
    if edge.one_dictionary:
        return f"ceiling {_percent(edge.ceiling)} by construction"
    interval = _interval(edge.intervals.get("ceiling"), 1, edge.level)
    return f"ceiling {_percent(edge.ceiling)} of live" + (f" ({interval.removeprefix(', ')})" if interval else "")


def _merge(
    summary: Summary, init: Init, name: str, counts: Mapping[str, int], edges: Mapping[str, EdgeSummary]
) -> list[Statement]:
    live = sum(counts.values())
    kept = live - counts["novel"]
    start = _start(summary, name)
    parents = summary.models[name].parents
    origins = {"from_base": f"from {start}", **{f"emerged_in_{parent}": f"from {parent} alone" for parent in parents}}
    origins = {key: what for key, what in origins.items() if key in counts} | {"emerged_in_both": "in several parents"}
    sources = [f"{counts['from_base']:,} go back to {start}"] if counts["from_base"] else []
    sources += [
        _source(summary, key.removeprefix("emerged_in_"), count)
        for key, count in counts.items()
        if key.startswith("emerged_in_") and key != "emerged_in_both"
    ]
    if counts["emerged_in_both"]:
        sources.append(f"{counts['emerged_in_both']:,} are in both parents, but not in {start}")
    statements = [
        Statement(
            about=name,
            question="inherited",
            instrument=init,
            text=f"{name} inherited {_of(kept, live)} of its live features{': ' if sources else ''}{_list(sources)}.",
            evidence=(f"{kept:,} = " + " + ".join(f"{counts[key]:,} {what}" for key, what in origins.items()),),
        ),
        Statement(
            about=name,
            question="new",
            instrument=init,
            text=f"{_of(counts['novel'], live)} of its live features match nothing in its parents.",
            evidence=(f"novel {counts['novel']:,} of {live:,} live",),
        ),
    ]
    for parent in parents:
        if edge := edges.get(f"{parent}->{name}"):
            statements.append(_lost(init, name, edge, f"Of the live features of {parent} it lost"))
            statements.append(_sure(init, parent, name, edge, (threshold_words(edge), *_paper(edge))))
    if merge := summary.merges.get(name):
        statements.append(_position(init, name, merge))
    return statements


def _position(init: Init, name: str, merge: MergeSummary) -> Statement:
    if merge.t is None or merge.second is None:
        parents = _list(list(merge.parents) or [merge.first])
        return Statement(
            about=name,
            question="merge",
            instrument=init,
            text=f"{name} is a {merge.method} merge of {parents}.",
            evidence=(),
        )
    mix = mixture(merge)
    evidence = [f"t = {merge.t:.3f} from {merge.first} (0) to {merge.second} (1)"]
    if merge.interval and None not in merge.interval:
        evidence.append(f"95 % interval {merge.interval[0]:.3f} to {merge.interval[1]:.3f}")
    if merge.linear_fallback:
        evidence.append(f"{merge.linear_fallback:,} tensors interpolated linearly")
    how = ""
    if merge.crossed:
        how = ", where it predicts the text of both parents equally well"
    elif merge.crossed is False:
        how = "; the parents' accuracies never cross, so this is where they come nearest"
    text = f"{name} is a {merge.method} merge of {mix}{how}."
    return Statement(about=name, question="merge", instrument=init, text=text, evidence=tuple(evidence))


def mixture(merge: MergeSummary) -> str:
    """`42 % lua / 58 % stories`; empty for a merge without t."""
    if merge.t is None or merge.second is None:
        return ""
    second = round(100 * merge.t)
    return f"{100 - second} % {merge.first} / {second} % {merge.second}"


def _source(summary: Summary, parent: str, count: int) -> str:
    """Features that reach the merge through one parent only; nothing emerges in a model that has no parent."""
    return f"{count:,} emerged in {parent}" if summary.models[parent].parents else f"{count:,} come from {parent} alone"


def _start(summary: Summary, name: str) -> str:
    """The start model that a merge descends from, or a general word when there are several."""
    found: dict[str, None] = {}
    layer = [name]
    while layer:
        found |= dict.fromkeys(model for model in layer if not summary.models[model].parents)
        layer = [parent for model in layer for parent in summary.models[model].parents]
    return next(iter(found)) if len(found) == 1 else "their common ancestors"


def _of(count: int, total: int, edge: EdgeSummary | None = None, fate: str = "") -> str:
    """`370 of 2,048 (18 %, 95 % interval 17–20 %)`; the interval is that of a fate of an edge, where there is one."""
    if not total:
        return f"{count:,} of none"
    interval = _interval(edge.intervals.get(fate), total, edge.level) if edge else ""
    return f"{count:,} of {total:,} ({_percent(count / total)}{interval})"


def _interval(ends: Interval | None, total: int, level: float) -> str:
    """`, 95 % interval 80–83 %` of a count of so many; empty without an interval."""
    if ends is None or ends[0] is None or ends[1] is None or not total:
        return ""
    low, high = _percent(ends[0] / total), _percent(ends[1] / total)
    start = "0" if low.startswith("<") else low.removesuffix(" %")
    return f", {_percent(level)} interval {low if low == high else f'{start}–{high}'}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _both(what: str, count: int, live: int, features: int | None) -> str:
    shares = [f"{_percent(count / live)} of {live:,} live"] if live else []
    shares += [f"{_percent(count / features)} of all {features:,}"] if features else []
    return f"{what} {count:,}".strip() + (" = " + ", ".join(shares) if shares else "")


def _percent(share: float) -> str:
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{value:.1f} %" if value < 10 and round(value, 1) % 1 else f"{value:.0f} %"


def _list(words: list[str]) -> str:
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
