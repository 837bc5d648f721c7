"""The findings of a study in plain sentences, each with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from heredity.config import Init
from heredity.report.summary import EdgeSummary, Flow, Frozen, MergeSummary, Summary


class Statement(Frozen):
    """One finding."""

    about: str
    """The model it is about."""
    question: Literal["inherited", "lost", "new", "sure", "merge"]
    """What it answers."""
    instrument: Init
    """How the SAEs it rests on were initialized."""
    text: str
    """A sentence."""
    evidence: tuple[str, ...]
    """The figures behind it, each with its denominators."""


def headline(summary: Summary) -> tuple[Statement, ...]:
    """What each child inherited, lost and has anew, and how sure that is, for every init; merges last.

    Written from `summary` alone, so that every number in a sentence also stands in the tables.
    """
    statements: list[Statement] = []
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
    inherited = Statement(
        about=child,
        question="inherited",
        instrument=init,
        text=f"{child} inherited {_of(edge.persist, edge.parent_live)} of the live features of {parent}.",
        evidence=(
            _both("persist", edge.persist, edge.parent_live, edge.parent_features),
            f"{edge.one_to_one:,} pairs are each other's best match",
            f"r > {edge.threshold:g} over {edge.tokens:,} tokens",
        ),
    )
    lost = Statement(
        about=child,
        question="lost",
        instrument=init,
        text=f"It lost {_of(edge.disappear, edge.parent_live)}{_noise(edge)}.",
        evidence=(_both("disappear", edge.disappear, edge.parent_live, edge.parent_features),),
    )
    new = Statement(
        about=child,
        question="new",
        instrument=init,
        text=f"{_of(edge.emerge, edge.child_live)} of the live features of {child} match nothing in {parent}.",
        evidence=(_both("emerge", edge.emerge, edge.child_live, edge.child_features),),
    )
    return [inherited, lost, new, _sure(init, parent, child, edge)]


def _noise(edge: EdgeSummary) -> str:
    """How much of a loss a second SAE of the same model shows, too."""
    if edge.ceiling is None or not edge.disappear:
        return ""
    expected = round((1 - edge.ceiling) * edge.parent_live)
    if expected >= edge.disappear:
        return ", no more than a second SAE of the same model loses"
    return f"; {expected:,} would look lost between two SAEs of the same model"


def _sure(init: Init, parent: str, child: str, edge: EdgeSummary) -> Statement:
    share = edge.persist / edge.parent_live if edge.parent_live else 0.0
    floor = "" if edge.floor is None else f"; by chance alone it would be {_percent(edge.floor)}"
    if edge.ceiling is None:
        text = f"No second SAE of {parent} was trained: how much of the loss is the instrument's is unknown{floor}."
    elif edge.ceiling <= 0:
        text = f"Two SAEs of {parent} share no feature at this threshold: the instrument cannot tell{floor}."
    else:
        reach = min(share / edge.ceiling, 1.0)
        seen = "all" if reach == 1 else _percent(reach)
        text = (
            f"{_percent(share)} of {parent} persists in {child}, against {_percent(edge.ceiling)} between two SAEs of "
            f"{parent} itself: {seen} of what the instrument can show{floor}."
        )
    ceiling = "ceiling not measured" if edge.ceiling is None else f"ceiling {_percent(edge.ceiling)} of live"
    floor = "floor not measured" if edge.floor is None else f"floor {_percent(edge.floor)} of live"
    evidence = (_both("persist", edge.persist, edge.parent_live, edge.parent_features), ceiling, floor)
    return Statement(about=child, question="sure", instrument=init, text=text, evidence=evidence)


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
            statements.append(
                Statement(
                    about=name,
                    question="lost",
                    instrument=init,
                    text=f"Of the live features of {parent} it lost "
                    f"{_of(edge.disappear, edge.parent_live)}{_noise(edge)}.",
                    evidence=(_both("disappear", edge.disappear, edge.parent_live, edge.parent_features),),
                )
            )
            statements.append(_sure(init, parent, name, edge))
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


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({_percent(count / total)})" if total else f"{count:,} of none"


def _both(what: str, count: int, live: int, features: int | None) -> str:
    shares = [f"{_percent(count / live)} of {live:,} live"] if live else []
    shares += [f"{_percent(count / features)} of all {features:,}"] if features else []
    return f"{what} {count:,}" + (" = " + ", ".join(shares) if shares else "")


def _percent(share: float) -> str:
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{value:.1f} %" if value < 10 and round(value, 1) % 1 else f"{value:.0f} %"


def _list(words: list[str]) -> str:
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
