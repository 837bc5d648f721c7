"""Do people who tag the same features agree? Cohen's kappa of every two of them, tag by tag, and where they differ.

Counted are the features that both have tagged, with whatever tag: only there is a tag that one did not give a judgment.
Notes that name nobody, and those on an SAE of before, are left out.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.analysis import seed_of
from heredity.analyses.notes import read_notes, rows_of_notes
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.results import Run

_DRAWS = 2000  # of the cells' shares, behind every interval
_LEVEL = 0.95

RATERS = Table(
    "raters",
    "How far people agree on tags, over the features that both have tagged. Intervals: 95 %, from Jeffreys' prior on "
    "the four counts.",
    ("instrument", "site", "first", "second", "tag"),
    (
        Column("first", "text", "Who tagged."),
        Column("second", "text", "Who else did."),
        Column("tag", "text", "Tag that one of them gave to one of these features at least."),
        Column("features", "count", "Features that both have tagged, with whatever tag."),
        Column("both", "count", "Those that both gave this tag.", of="features"),
        Column("first_only", "count", "Those that only the first gave it.", of="features"),
        Column("second_only", "count", "Those that only the second gave it.", of="features"),
        Column("agreement", "share", "Share that both gave it, or neither."),
        Column("kappa", "r", "Cohen's kappa; null where both gave it to all of them.", ci=True),
    ),
    brief=(
        "instrument",
        "first",
        "second",
        "tag",
        "features",
        "agreement",
        "kappa",
        "both",
        "first_only",
        "second_only",
    ),
)


class Compared(NamedTuple):
    """People's tags beside each other's."""

    rows: list[dict[str, Any]]  # of the table `raters`
    apart: list[dict[str, Any]]
    """Features on which two differ: their `instrument`, `site`, `model` and `feature`, the `tag`, who gave it (`by`)
    and who did not (`beside`)."""


def compared(run: Run) -> Compared:
    """The tags of every two people who have tagged a feature in common. Raises ValueError for damaged notes."""
    tagged: dict[tuple[str, str], dict[str, dict[tuple[str, int], set[str]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows_of_notes(run, read_notes(run)):
        if row["current"] and row["by"] and row["tags"]:
            place, feature = (row["instrument"], row["site"]), (row["model"], row["feature"])
            tagged[place][row["by"]][feature] = set(row["tags"].split())
    rows, apart, seed = [], [], seed_of(run.study, "raters")
    for (instrument, site), raters in sorted(tagged.items()):
        place = {"instrument": instrument, "site": site}
        for first, second in combinations(sorted(raters), 2):
            shared = sorted(raters[first].keys() & raters[second].keys())
            for tag in sorted(set().union(*(raters[one][feature] for one in (first, second) for feature in shared))):
                given = [[tag in raters[one][feature] for feature in shared] for one in (first, second)]
                counts = np.zeros((2, 2), np.int64)
                np.add.at(counts, tuple(np.array(given, np.int64)), 1)
                row = {**place, "first": first, "second": second, "tag": tag, "features": len(shared)}
                row |= {"both": int(counts[1, 1]), "first_only": int(counts[1, 0]), "second_only": int(counts[0, 1])}
                rows.append(row | {"agreement": float(counts.trace() / len(shared))} | _kappa(counts, seed))
                for (model, feature), one, other in zip(shared, *given, strict=True):
                    if one != other:
                        by, beside = (first, second) if one else (second, first)
                        own = {**place, "model": model, "feature": feature, "tag": tag}
                        apart.append(own | {"by": by, "beside": beside})
    return Compared(RATERS.check(rows).to_pylist(), apart)


def _kappa(counts: np.ndarray, seed: int) -> dict[str, float | None]:
    """Kappa of a table of 2 x 2 counts with its interval: few features that all agree leave it wide."""
    from heredity.features.criteria import kappa

    value = float(kappa(counts))
    if np.isnan(value):
        return {"kappa": None, "kappa_low": None, "kappa_high": None}
    shares = np.random.default_rng(seed).dirichlet(counts.ravel() + 0.5, _DRAWS).reshape(-1, 2, 2)
    low, high = np.quantile(kappa(shares), [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2])
    return {"kappa": value, "kappa_low": min(float(low), value), "kappa_high": max(float(high), value)}
