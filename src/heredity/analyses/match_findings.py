"""What the matches of an edge say, in sentences: inherited, lost, new, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from heredity import format
from heredity.analyses.analysis import Statement, Tables, rows_of

KEY = ("instrument", "site", "edge")
_LEAST_THRESHOLD = 0.35
_MOST_RARE = 0.25  # share of live features that are too rare to be judged


def own_rows(tables: Tables) -> list[Mapping[str, Any]]:
    """Edges at their own thresholds."""
    return [row for row in rows_of(tables, "edges") if row["rule"] != "paper"]


def twins(tables: Tables) -> set[str]:
    """Edges from a model to one that repeats its recipe: neither is the other's parent."""
    parents = {row["model"]: row["parents"].split(", ") for row in rows_of(tables, "models")}
    ends = {row["edge"]: row["edge"].split("->") for name in ("edges", "verdicts") for row in rows_of(tables, name)}
    return {edge for edge, (one, other) in ends.items() if other in parents and one not in parents[other]}


def findings(tables: Tables) -> Iterable[Statement]:
    """What matches count. Where an edge has verdicts, these come first, and this is what stands beside them."""
    merges, siblings = {row["model"] for row in rows_of(tables, "merges")}, twins(tables)
    for row in own_rows(tables):
        key = {name: row[name] for name in KEY}
        paper = next(iter(rows_of(tables, "edges", rule="paper", **key)), None)
        chance = next(iter(rows_of(tables, "chance", **key)), None)
        rare = next(iter(rows_of(tables, "strata", end="parent", stratum="rare", **key)), None)
        merged = row["child"] in merges
        statements = [_inherited(row, paper), _lost(row, rare), _new(row), _sure(row, chance)]
        if row["edge"] in siblings:
            statements = [_found_again(row, paper), _sure(row, chance)]
        counted = f"By matches alone (r > {row['threshold']:.2f}, all live features, unstable ones included): "
        for one in statements:
            if merged and one.question in ("inherited", "new"):  # the flow into a merge answers these
                continue
            yield beside_verdicts(one._replace(text=counted + one.text), tables)
    yield from _notes(tables)


def beside_verdicts(statement: Statement, tables: Tables) -> Statement:
    """A statement by matches about a child: it answers no question of its own where verdicts on the child do."""
    verdicts = rows_of(tables, "verdicts", instrument=statement.instrument, text="common")
    judged = any(row["stable"] and row["edge"].endswith(f"->{statement.about}") for row in verdicts)
    return statement._replace(question="matches") if judged else statement


def _inherited(row: Mapping[str, Any], paper: Mapping[str, Any] | None) -> Statement:
    evidence = [
        _both(row, "persist", "parent"),
        f"{row['one_to_one']:,} pairs are each other's best match",
        f"{threshold_words(row)}, over {row['tokens']:,} tokens",
        *_paper(row, paper),
    ]
    text = f"{_of(row, 'persist', 'parent')} live features of {row['parent']} persist in {row['child']}."
    return Statement(row["child"], "inherited", text, tuple(evidence), row["instrument"])


def _found_again(row: Mapping[str, Any], paper: Mapping[str, Any] | None) -> Statement:
    parent, child = row["parent"], row["child"]
    text = (
        f"{_of(row, 'persist', 'parent')} live features of {parent} have a match in {child}, trained by the same "
        f"recipe with another seed; {_of(row, 'emerge', 'child')} of {child} have none in {parent}."
    )
    return Statement(child, "sure", text, (threshold_words(row), *_paper(row, paper)), row["instrument"])


def _lost(row: Mapping[str, Any], rare: Mapping[str, Any] | None) -> Statement:
    noise = ""
    if row["ceiling"] is not None and row["disappear"]:
        expected = round((1 - row["ceiling"]) * row["parent_live"])
        if row["one_dictionary"]:
            noise = "; none would in an unchanged model"
        elif expected >= row["disappear"]:
            noise = ", no more than between two SAEs of the same model"
        else:
            noise = f"; {expected:,} would between two SAEs of the same model"
    evidence = [_both(row, "disappear", "parent")]
    if rare and rare["features"] > rare["matched"]:
        evidence.append(
            f"{rare['features'] - rare['matched']:,} of these fire on fewer than 30 tokens, too few to be sure"
        )
    text = f"{_of(row, 'disappear', 'parent')} live features of {row['parent']} disappear in {row['child']}{noise}."
    return Statement(row["child"], "lost", text, tuple(evidence), row["instrument"])


def _new(row: Mapping[str, Any]) -> Statement:
    text = f"{_of(row, 'emerge', 'child')} live features of {row['child']} emerge, without a match in {row['parent']}."
    return Statement(row["child"], "new", text, (_both(row, "emerge", "child"),), row["instrument"])


def _sure(row: Mapping[str, Any], chance: Mapping[str, Any] | None) -> Statement:
    parent, child, live = row["parent"], row["child"], row["parent_live"]
    share = format.percent(row["persist"] / live) if live else "nothing"
    floor = "" if row["floor"] is None else f"; by chance alone it would be {format.percent(row['floor'])}"
    if row["ceiling"] is None:
        text = f"no second SAE of {parent} was trained: how much of the loss is the instrument's is unknown{floor}."
    elif row["one_dictionary"]:
        text = (
            f"{share} of {parent} persists in {child}, where an unchanged model keeps everything: one SAE reads both "
            f"models, so the ceiling is 1 by construction{floor}."
        )
    elif row["ceiling"] <= 0:
        text = f"two SAEs of {parent} share no feature at this threshold: the instrument cannot tell{floor}."
    else:
        reach = min(row["relative"], 1.0)
        low, high = (row[f"relative_{end}"] for end in ("low", "high"))
        ends = ""
        if low is not None and high is not None and low < 1:  # more than all is the ceiling's own chance
            ends = f" ({_ci({**row, 'relative_high': min(high, 1.0)}, 'relative')})"
        seen = ("all" if reach == 1 else format.percent(reach)) + ends
        text = (
            f"{share} of {parent} persists in {child}, against {format.percent(row['ceiling'])} between two SAEs of "
            f"{parent} itself: {seen} of what the instrument can show{floor}."
        )
    evidence = [_both(row, "persist", "parent")]
    if row["ceiling"] is None:
        evidence.append("ceiling not measured")
    elif row["one_dictionary"]:
        evidence.append("ceiling 100 % by construction")
    else:
        ends = f" ({_ci(row, 'ceiling')})" if row["ceiling_low"] is not None else ""
        evidence.append(f"ceiling {format.percent(row['ceiling'])} of live{ends}")
    evidence.append("floor not measured" if row["floor"] is None else f"floor {format.percent(row['floor'])} of live")
    if chance:
        above = format.of(chance["parent_above"], live)
        evidence.append(f"more than chance (false discovery rate {format.percent(chance['rate'])}): {above}")
    return Statement(child, "sure", text, (*evidence, threshold_words(row)), row["instrument"])


def _notes(tables: Tables) -> Iterable[Statement]:
    """One note per instrument on each thing to know, with the edges that it is about."""
    low: dict[str, dict[str, float]] = {}
    rare: dict[str, dict[str, str]] = {}
    for row in own_rows(tables):
        instrument, edge, live = row["instrument"], row["edge"], row["parent_live"]
        if row["rule"] == "evidence" and row["threshold"] < _LEAST_THRESHOLD:
            low.setdefault(instrument, {})[edge] = row["threshold"]
        few = rows_of(tables, "strata", end="parent", stratum="rare", **{name: row[name] for name in KEY})
        for one in few[:1]:
            if live and one["features"] > _MOST_RARE * live:
                rare.setdefault(instrument, {})[edge] = f"{one['features']:,} of {live:,}"
    for instrument, edges in low.items():
        ends = sorted({f"{threshold:g}" for threshold in edges.values()}, key=float)
        text = (
            f"{_place(edges, instrument)}: SAEs of one model agree so little that evidence puts the threshold at "
            f"{' to '.join(dict.fromkeys((ends[0], ends[-1])))}; a feature that persists there may be kept in part "
            "only: train longer, or use another instrument"
        )
        yield Statement("SAEs", "note", text, instrument=instrument)
    for instrument, edges in rare.items():
        text = (
            f"{_place(edges, instrument)}: {format.listed([*edges.values()])} live features fire on fewer than 30 of "
            "the tokens, too few to tell lost from kept; raise lineage.tokens"
        )
        yield Statement("SAEs", "note", text, instrument=instrument)


def _place(edges: Iterable[str], instrument: str) -> str:
    names = list(edges)
    return f"edge{'s' * (len(names) > 1)} {format.listed(names)} (instrument {instrument})"


def threshold_words(row: Mapping[str, Any]) -> str:
    """The threshold of an edge and how it came about."""
    if row["rule"] == "study":
        return f"r > {row['threshold']:g} as the study sets it"
    if row["ceiling"] is None:
        ends = "what chance reaches and what the best matches of the edge reach"
    elif row["one_dictionary"]:
        ends = "what chance reaches and 1, which an unchanged feature reaches"
    else:
        ends = "what chance reaches and what two SAEs of one model reach"
    return f"r > {row['threshold']:.2f}, between {ends}"


def _paper(row: Mapping[str, Any], paper: Mapping[str, Any] | None) -> list[str]:
    """The count at the paper's threshold, where that is not the edge's own."""
    if paper is None or paper["threshold"] == row["threshold"]:
        return []
    of_ceiling = ""
    if paper["relative"] is not None and not row["one_dictionary"]:
        of_ceiling = f", {format.percent(paper['relative'])} of a ceiling of {format.percent(paper['ceiling'])}"
    return [f"at the paper's r > {paper['threshold']:g}: {_of(paper, 'persist', 'parent')}{of_ceiling}"]


def _of(row: Mapping[str, Any], fate: str, end: str) -> str:
    return format.of(row[fate], row[f"{end}_live"], row[f"{fate}_low"], row[f"{fate}_high"], row["level"])


def _ci(row: Mapping[str, Any], name: str) -> str:
    return f"{format.percent(row['level'])} CI {format.interval('share', row[f'{name}_low'], row[f'{name}_high'])}"


def _both(row: Mapping[str, Any], fate: str, end: str) -> str:
    """A count with both of its denominators."""
    count, live, every = row[fate], row[f"{end}_live"], row[f"{end}_features"]
    wholes = {f"{live:,} live": live, f"all {every:,}": every}
    shares = [f"{format.percent(count / whole)} of {words}" for words, whole in wholes.items() if whole]
    return f"{fate} {count:,} = {', '.join(shares)}" if shares else f"{fate} {count:,}"
