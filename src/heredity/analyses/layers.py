"""Where in the model features are kept, changed and lost: the verdicts on every edge at all sites, side by side.

Shares are of the stable features at a site, on the text that both ends have read. Each site has an SAE of its own, so
that a feature of one has no counterpart at another: what is compared is how large a share each verdict has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.verdicts import ANALYSIS as VERDICTS
from heredity.analyses.verdicts import COUNTS, WORDS
from heredity.engine.stage import Work
from heredity.study import Study
from heredity.tables import Column, Plot, Table

LAYERS = Table(
    "layers",
    "Verdicts at every site, of studies of several: shares of the stable features there.",
    ("instrument", "edge", "end", "site", "verdict"),
    (
        Column("end", "text", "Whose features: parent or child."),
        Column(
            "verdict", "text", "kept, changed, lost or undecided; of the child: inherited, changed, new, undecided."
        ),
        Column("features", "count", "Stable features with this verdict.", of="stable"),
        Column("stable", "count", "Stable features at the site."),
        Column("share", "share", "Their share of the stable features; null where there are none."),
        Column(
            "same_activations",
            "flag",
            "Whether both ends compute the same up to the site, so that all is kept because nothing before it changed.",
        ),
    ),
    brief=("instrument", "edge", "end", "site", "verdict", "features", "share"),
    plot=Plot("heat", x="verdict", y="share", by="site"),
)


class LayersSettings(NamedTuple):
    sites: tuple[str, ...]  # those that a forward pass reaches first come first


def _settings(study: Study, item: Item) -> LayersSettings:
    from heredity.lm.hooks import depth

    return LayersSettings(tuple(sorted(study.sites, key=lambda site: (depth(site), site))))


def _needs(study: Study, item: Item) -> Needs:
    judged = (one for one in VERDICTS.items(study) if one["text"] == "common")
    return {
        "verdicts": {
            "|".join(one[name] for name in ("instrument", "edge", "site")): ("verdicts", one) for one in judged
        }
    }


def _run(work: Work, settings: LayersSettings) -> Results:
    rows = []
    for role, artifact in work.inputs["verdicts"].items():
        instrument, edge, site = role.split("|")
        for judged in artifact.table("verdicts").to_pylist():
            key = {"instrument": instrument, "edge": edge, "site": site}
            key |= {name: judged[name] for name in ("end", "stable", "same_activations")}
            for name in COUNTS:
                share = judged[name] / judged["stable"] if judged["stable"] else None
                word = WORDS[judged["end"]].get(name, name)
                rows.append(key | {"verdict": word, "features": judged[name], "share": share})
    return {"layers": sorted(rows, key=lambda row: settings.sites.index(row["site"]))}


def _say(tables: Tables) -> Iterable[Statement]:
    for instrument, edge in dict.fromkeys((row["instrument"], row["edge"]) for row in rows_of(tables, "layers")):
        parent, child = edge.split("->")
        told: dict[str, str] = {}
        for row in rows_of(tables, "layers", instrument=instrument, edge=edge, end="parent"):
            if row["same_activations"]:
                told[row["site"]] = f"all persist at {row['site']}, because nothing before it changed"
            elif row["stable"]:
                said = told.get(row["site"], f"at {row['site']}")
                told[row["site"]] = f"{said}, {format.percent(row['share'])} are {row['verdict']}"
        if len(told) > 1:
            text = f"Of the stable features of {parent} in {child}: {'; '.join(told.values())}."
            yield Statement(child, "sites", text, (), instrument)


ANALYSIS = Analysis(
    kind="layers",
    version=1,
    title="Verdicts by site",
    items=lambda study: [{}] if len(study.sites) > 1 and study.config.verdicts.tokens and study.edges else [],
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(LAYERS,),
    say=_say,
    across_sites=True,
)
