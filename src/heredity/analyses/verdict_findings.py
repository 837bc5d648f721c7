"""What verdicts on the features of an edge say, in sentences: inherited, lost, new, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from heredity import format
from heredity.analyses.analysis import Statement, Tables, rows_of
from heredity.analyses.match_findings import KEY, twins
from heredity.study import DERIVED

FEW_STABLE = 0.3
"""Share of live features below which too few are stable for a verdict on the model."""

_KEY = (*KEY, "text")
_REFERENCES = {
    "unchanged": "{parent} itself",
    "edit": "{parent} with random weight changes of the same size",
    "random": "{parent} changed in the same way at random",
    "sham": "{parent} trained on with its own text",
    "twin": "{child} trained again with another seed",
    "frozen": "{child} read by the same SAEs of {parent} as these",
    "removal": "{parent} with some features' directions taken out",
    "codebook": "an untrained dictionary on this edge",
    "random decoder": "random directions on this edge",
    "neurons": "single neurons on this edge",
    "token identity": "token identity on this edge",
}
_UNTRAINED = {
    "codebook": "random tokens' activations",
    "random decoder": "random directions",
    "neurons": "single neurons",
    "token identity": "frequent tokens",
}
_NOTHING_BEFORE = "Nothing before this hook point changed, so that all of them persist."
_LEAST_UNTRAINED = 30  # stable features of an untrained dictionary whose kept share says something


def findings(tables: Tables) -> Iterable[Statement]:
    siblings = twins(tables)
    yield from _few_stable(tables)
    for row in rows_of(tables, "verdicts"):
        if row["text"] != "common":
            yield from _elsewhere(row)
            continue
        parent, child = row["edge"].split("->")
        own = parent if row["end"] == "parent" else child
        stable = row["stable"]
        undecided = f"{row['undecided'] or 'none'} {'is' if row['undecided'] == 1 else 'are'} undecided"
        if row["identical"] and row["end"] == "parent":
            text = f"{parent} and {child} have identical weights, so that all is kept; check {child}'s path or revision"
            yield Statement(child, "note", text, (), row["instrument"])
        elif row["same_activations"] and row["end"] == "parent":
            text = same_activations(parent, child, row["site"])
            yield Statement(child, "note", text, (), row["instrument"])
        if not stable:
            continue
        lost = f"({_share(row, 'lost')})"
        changed = f"changed {row['changed']:,} ({format.percent(row['changed'] / stable)})"
        same = f" {_NOTHING_BEFORE}" if row["same_activations"] else ""
        if row["edge"] in siblings:
            other = child if row["end"] == "parent" else parent
            texts = {
                "sure": f"Of {stable:,} stable features of {own}, {other}, trained by the same recipe with another "
                f"seed, has {row['kept']:,} ({_share(row, 'kept')}), {row['changed']:,} in another form, and "
                f"{row['lost']:,} not at all {lost}; {undecided}."
            }
        elif row["end"] == "parent":
            texts = {
                "inherited": f"{child} kept {row['kept']:,} of {stable:,} stable features of {parent} "
                f"({_share(row, 'kept')}) and {changed}.{same}",
                "lost": f"{child} lost {row['lost']:,} of {stable:,} stable features of {parent} {lost}; {undecided}.",
            }
        else:
            texts = {
                "new": f"{row['lost']:,} of {stable:,} stable features of {child} are new compared with {parent} {lost}"
                f"; {row['kept']:,} are inherited, {row['changed']:,} changed, {undecided}."
            }
        removed = rows_of(tables, "references", reference="removal", **{name: row[name] for name in _KEY})
        power = tuple(_power(parent, one) for one in removed if one["removed"])
        unstable = (
            f"{row['live'] - stable:,} of {row['live']:,} live features of {own} are unstable (not found again by an "
            "SAE of another seed) and not judged"
        )
        for question, text in texts.items():
            yield Statement(child, question, text, (unstable,) if question != "lost" else power, row["instrument"])
        if row["instrument"] == "frozen":
            text = f"What is new in {child} is not asked: it is read by an ancestor's SAE, which has none of it."
            yield Statement(child, "new", text, (), row["instrument"])
        if row["end"] == "parent":
            untrained = [
                f"no sham and no twin: {one['model']} was made without training"
                for one in rows_of(tables, "models", model=child)
                if one["kind"] in DERIVED
            ]
            yield from _sure(row, rows_of(tables, "references", **{name: row[name] for name in _KEY}), untrained)


def _few_stable(tables: Tables) -> Iterable[Statement]:
    """One note per instrument on the models of which few features can be judged."""
    few: dict[str, dict[str, str]] = {}
    for row in rows_of(tables, "verdicts", text="common"):
        stable, live = row["stable"], row["live"]
        if stable < FEW_STABLE * max(1, live):
            own = row["edge"].split("->")[row["end"] == "child"]
            count = f"{stable:,} of {live:,} ({format.below(stable / live, FEW_STABLE)})" if live else "none of none"
            few.setdefault(row["instrument"], {}).setdefault(own, count)
    for instrument, models in few.items():
        text = (
            f"SAEs of {format.listed([*models])} (instrument {instrument}): {format.listed([*models.values()])} live "
            f"features are stable (found again by an SAE of another seed), less than {format.percent(FEW_STABLE)}: too "
            "few to speak for the model; train them longer, or with smaller batches"
        )
        yield Statement("SAEs", "note", text, instrument=instrument)


def same_activations(parent: str, child: str, site: str) -> str:
    """What counts of an edge mean whose ends compute the same at a hook point."""
    return (
        f"activations of {parent} and {child} at {site} are identical, bit for bit: all persists because nothing "
        f"before this hook point changed. All that {child} changed lies behind it; choose a later hook point to see it"
    )


def _power(parent: str, row: Mapping[str, Any]) -> str:
    """How many planted losses are found."""
    from scipy.stats import beta

    found, of = row["removed_lost"], row["removed"]
    least = float(beta.ppf(0.05, found, of - found + 1)) if found else 0.0  # Clopper and Pearson 1934
    text = f"of {of} random features whose directions were taken out of {parent}'s activations, {found} are called lost"
    return (
        f"{text}: at 95 % confidence at least {format.percent(least)} of such clean losses are found, and of what is "
        "new, which is judged in the same way with the ends exchanged"
    )


def _elsewhere(row: Mapping[str, Any]) -> Iterable[Statement]:
    """What is lost or new on a text other than the common one, the headline's."""
    parent, child = row["edge"].split("->")
    if not row["stable"]:
        return
    text = f"On {row['corpora']}{', the text it was fine-tuned on' if row['text'] == 'own' else ''}, "
    found, share = f"{row['lost']:,} of {row['stable']:,} stable features of", f"({_share(row, 'lost')})"
    if row["end"] == "parent":
        question, text = "lost", f"{text}{child} lost {found} {parent} {share}, kept {row['kept']:,}"
    else:
        question, text = (
            "new",
            f"{text}{found} {child} are new compared with {parent} {share}, {row['kept']:,} inherited",
        )
    text += f" and changed {row['changed']:,}; {row['undecided'] or 'none'} are undecided."
    yield Statement(child, question, text, (), row["instrument"])


def _share(row: Mapping[str, Any], verdict: str) -> str:
    """`0.5 %, 95 % CI 0.1–1.2 % over SAE seeds and features`."""
    share, low, high = (row[f"{verdict}_share{end}"] for end in ("", "_low", "_high"))
    return f"{format.percent(share)}, 95 % CI {format.interval('share', low, high)} over SAE seeds and features"


def _sure(
    row: Mapping[str, Any], references: Sequence[Mapping[str, Any]], lacking: Sequence[str]
) -> Iterable[Statement]:
    """Agreement between SAE seeds, what intervals cover, and the same verdicts where the answer is known.

    lacking: why there are references that there are not.
    """
    parent, child = row["edge"].split("->")

    def said(text: str, *evidence: str) -> Statement:
        return Statement(child, "sure", text, evidence, row["instrument"])

    text = f"No feature of {parent} was judged under two SAE seeds, so that their agreement is unknown."
    if row["pairs"]:
        same = f"{format.percent(row['agreement'])} of {row['pairs']:,} features of {parent}"
        text = f"Judged with SAEs of another seed, {same} get the same verdict in {child}."
    known = [
        f"reference, {_REFERENCES[one['reference']].format(parent=parent, child=child)}: "
        f"{format.of(one['kept'], one['stable'])} kept, {one['lost']:,} lost"
        for one in references
    ]
    if row["pairs"] or known:
        yield said(text, *known, *lacking)
    if row["lost_share_retrained_low"] is not None:
        shares = {name: [_interval(row, name, again) for again in ("", "_retrained")] for name in ("lost", "kept")}
        yield said(
            f"The lost share of {parent} is {shares['lost'][0]} over SAE seeds and features of these two models, and "
            f"{shares['lost'][1]} where {child} is trained again with another seed as well; the kept share "
            f"{shares['kept'][0]} and {shares['kept'][1]}.",
            "both 95 %; the second takes the difference between two trainings, of features one by one",
        )
    for one in (one for one in references if one["reference"] == "sham"):
        yield said(
            f"Of {one['stable']:,} stable features of {parent}, training on with its own text, by the recipe of "
            f"{child}, loses {one['lost']:,} and changes {one['changed']:,}."
        )
    untrained = [one for one in references if one["reference"] in _UNTRAINED and one["stable"] >= _LEAST_UNTRAINED]
    if any(one["kept_difference_low"] <= 0 for one in untrained):
        said_of: dict[str, list[str]] = {"more": [], "as many, within error,": [], "fewer": []}
        for one in untrained:
            low, high = one["kept_difference_low"], one["kept_difference_high"]
            side = "fewer" if low > 0 else "more" if high < 0 else "as many, within error,"
            share = format.percent(one["kept"] / one["stable"])
            said_of[side].append(f"{_UNTRAINED[one['reference']]} ({share})")
        words = [f"{side} of {format.listed(names)}" for side, names in said_of.items() if names]
        yield said(
            f"Of the features that SAEs learned of {parent}, {child} keeps {format.percent(row['kept_share'])}; of "
            f"dictionaries that nobody trained, {format.listed(words)}. That features are kept here says little about "
            "what SAEs learned."
        )


def _interval(row: Mapping[str, Any], verdict: str, again: str) -> str:
    return format.interval("share", *(row[f"{verdict}_share{again}_{end}"] for end in ("low", "high")))
