"""How far the figures vary when fine-tunes and SAEs are trained again with other seeds.

A repeat trains fine-tunes and SAEs with seeds of its own; corpora, tokenizer, tokens, models that are loaded or trained
from scratch, and the seeds of every measurement are those of the plain study, so that figures differ by the training
runs alone. The plain study is the first repeat.

Whether it is the same features that persist: where a model that is not trained again is the parent of a fine-tune, its
features of the first repeat are followed through all of them. SAEs differ between repeats, so a feature is known in
another repeat by its best match there, r above 0.7 over the sample's tokens; features without one in every repeat are
not counted. Beside the counts stands what they would be if repeats were independent: the product of their shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.match import edge_items, edge_row, read_matches, thresholds_of
from heredity.analyses.sae import sae_items
from heredity.analyses.sample import acts_of
from heredity.analyses.verdicts import ANALYSIS as VERDICTS
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Edge, Study
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.features.acts import FeatureActs

_FIGURES = {
    "quality": ("accuracy", ("accuracy",)),
    "sae_quality": ("saes", ("explained_variance", "l0", "ce_loss_recovered")),
    "model": ("merges", ("t",)),
}

REPEATS = Table(
    "repeats",
    "Spread of the headline figures over training seeds.",
    ("instrument", "site", "about", "figure"),
    (
        Column("instrument", "text", "Origin of the SAEs; empty for figures of models."),
        Column("about", "text", "Model, model and corpus, merge, edge, or edge and end."),
        Column("figure", "text", "Figure; persist, emerge and stable_share are of live features, verdicts of stable."),
        Column("mean", "number", "Mean over repeats."),
        Column("standard_deviation", "number", "Standard deviation (n - 1)."),
        Column("minimum", "number", "Lowest."),
        Column("maximum", "number", "Highest."),
        Column("seeds", "count", "Repeats with the figure."),
    ),
    brief=("instrument", "about", "figure", "mean", "standard_deviation", "seeds"),
)


SAME = Table(
    "repeats_same",
    "Whether the same features persist when fine-tunes and SAEs are trained again.",
    ("instrument", "site", "edge", "rule"),
    (
        Column("rule", "text", "What persists: evidence or study (each edge's own threshold), or paper (r > 0.8)."),
        Column("seeds", "count", "Repeats."),
        Column("live", "count", "Features of the parent's first SAE that fire on the sample."),
        Column("followed", "count", "Those that the SAE of every repeat has too (best r > 0.7)."),
        Column("in_all", "count", "Followed features that persist in every repeat.", of="followed"),
        Column("in_some", "count", "Those that persist in some repeats and not in others.", of="followed"),
        Column("in_none", "count", "Those that persist in none.", of="followed"),
        Column("expected_all", "number", "Features in all repeats if these were independent, each with its own share."),
        Column("expected_some", "number", "The same for features in some."),
        Column("expected_none", "number", "The same for features in none."),
    ),
    brief=("instrument", "edge", "rule", "seeds", "followed", "in_all", "expected_all", "in_none", "expected_none"),
    sums=(("followed", "in_all", "in_some", "in_none"),),
)


class RepeatsSettings(NamedTuple):
    seeds: int
    edges: tuple[str, ...] = ()
    """To fine-tunes of models that are the same in all repeats."""
    site: str = ""


def _repeated_children(study: Study) -> list[Edge]:
    """Edges to fine-tunes of models that are the same in all repeats."""
    kinds = {name: model.kind for name, model in study.config.model.items()}
    return [
        edge
        for edge in study.descent
        if kinds[edge.child] == "finetune"
        and all(kinds[name] in ("train", "load") for name in (edge.parent, *study.ancestors(edge.parent)))
    ]


def _needs(study: Study, item: Item) -> Needs:
    followed = {edge.parent for edge in _repeated_children(study)}
    sought = [name for name in study.order if (merge := study.config.model[name].merge) and merge.t == "equilibrium"]
    kinds: list[tuple[str, Iterable[Item]]] = [
        ("quality", ({"model": name} for name in study.order)),
        ("model", ({"model": name} for name in sought)),
        ("sae_quality", sae_items(study)),
        ("match", edge_items(study)),
        ("acts", (one for one in sae_items(study) if one["model"] in followed)),
        ("verdicts", (one for one in VERDICTS.items(study) if one["text"] == "common")),
    ]
    needs: Needs = {}
    for kind, items in kinds:
        for one in (one for one in items if one.get("site", item["site"]) == item["site"]):
            for repeat in range(study.config.repeat.seeds):
                role = "|".join((kind, *(str(one.get(key, "")) for key in ("instrument", "edge", "model"))))
                group: dict[str, Need] = needs.setdefault(role, {})  # pyright: ignore[reportAssignmentType]
                group[str(repeat)] = (kind, {**one, "repeat": repeat})
    return needs


def _run(work: Work, settings: RepeatsSettings) -> Results:
    figures: dict[tuple[str, str, str], list[Any]] = {}
    for role, repeats in work.inputs.items():
        kind, instrument, edge, model = role.split("|")
        if kind == "acts" or len({artifact.key for artifact in repeats.values()}) < len(repeats):
            continue  # not trained again
        for artifact in repeats.values():
            if kind == "match":
                row = edge_row(artifact)
                live = {"persist": row["parent_live"], "emerge": row["child_live"]}
                values = {name: row[name] / whole if whole else None for name, whole in live.items()}
                values |= {name: row[name] for name in ("ceiling", "floor")}
                rows = [(edge, values)]
            elif kind == "verdicts":
                ends = artifact.table("verdicts").to_pylist()
                rows = [(f"{edge}, {row['end']}", _verdict_shares(row)) for row in ends]
            else:
                table, names = _FIGURES[kind]
                rows = [
                    (" on ".join(filter(None, (model, row.get("corpus")))), {name: row[name] for name in names})
                    for row in artifact.table(table).to_pylist()
                ]
            for about, values in rows:
                for name, value in values.items():
                    figures.setdefault((instrument, about, name), []).append(value)
    spread = [
        _spread(key, values) | {"site": settings.site}
        for key, values in figures.items()
        if any(v is not None for v in values)
    ]
    return {
        "repeats": spread,
        "repeats_same": [{"site": settings.site, **row} for row in _same(work.inputs, settings.edges)],
    }


def _same(inputs: Mapping[str, Mapping[str, Artifact]], edges: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Rows of `repeats_same`. inputs: artifacts by role and repeat."""
    for role, repeats in inputs.items():
        kind, instrument, edge, _ = role.split("|")
        if kind != "match" or edge not in edges:
            continue
        acts = [acts_of(one) for one in inputs[f"acts|{instrument}||{edge.partition('->')[0]}"].values()]
        places, followed = counterparts(acts)
        matches, live = [read_matches(one) for one in repeats.values()], acts[0].firings() > 0
        cuts = [thresholds_of(one) for one in repeats.values()]
        for rule in cuts[0]:
            persist = np.stack(
                [lines.parent_r[place, 0] > cut[rule] for lines, place, cut in zip(matches, places, cuts, strict=True)]
            )[:, followed]
            counts = persist.sum(0)
            in_all, in_none = int((counts == len(repeats)).sum()), int((counts == 0).sum())
            shares, of = persist.mean(1) if followed.any() else np.zeros(len(repeats)), int(followed.sum())
            every, none = of * float(shares.prod()), of * float((1 - shares).prod())
            row = {"instrument": instrument, "edge": edge, "rule": rule, "seeds": len(repeats), "live": int(live.sum())}
            row |= {"followed": of, "in_all": in_all, "in_some": of - in_all - in_none, "in_none": in_none}
            yield row | {"expected_all": every, "expected_some": of - every - none, "expected_none": none}


def counterparts(acts: Sequence[FeatureActs]) -> tuple[list[np.ndarray], np.ndarray]:
    """Where the features of the first SAE are in each of several of one model, on the same tokens.

    Returns their indices in each SAE, int [d_sae], and which have a match with r above 0.7 in all, bool [d_sae].
    """
    from heredity.features.correlate import correlate
    from heredity.features.verdicts import STABLE

    found = [correlate(acts[0], other, 1) for other in acts[1:]]
    places = [np.arange(acts[0].d_sae), *(one.parent_match[:, 0] for one in found)]
    followed = np.logical_and.reduce([acts[0].firings() > 0, *(one.parent_r[:, 0] > STABLE for one in found)])
    return places, followed


def _verdict_shares(row: Mapping[str, Any]) -> dict[str, float | None]:
    stable, live = row["stable"], row["live"]
    return {
        "stable_share": stable / live if live else None,
        **{f"{name}_share": row[name] / stable if stable else None for name in ("kept", "changed", "lost")},
    }


def _spread(key: tuple[str, str, str], values: list[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None], np.float64)
    return dict(zip(("instrument", "about", "figure"), key, strict=True)) | {
        "mean": float(known.mean()),
        "standard_deviation": float(known.std(ddof=1)) if len(known) > 1 else None,
        "minimum": float(known.min()),
        "maximum": float(known.max()),
        "seeds": len(known),
    }


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "repeats_same"):
        if row["rule"] != "paper" and row["followed"]:
            parent, child = row["edge"].split("->")
            yield Statement(
                child,
                "sure",
                f"Of {row['followed']:,} features of {parent} that SAEs of all {row['seeds']} training seeds have, "
                f"{format.of(row['in_all'], row['followed'])} persist in every training of {child} and "
                f"{row['in_none']:,} in none; if trainings were independent, these would be "
                f"{row['expected_all']:,.0f} and {row['expected_none']:,.0f}.",
                (f"followed {format.of(row['followed'], row['live'])} live features",),
                row["instrument"],
            )
    for row in rows_of(tables, "repeats"):
        edge, _, end = row["about"].partition(", ")
        parent, _, child = edge.partition("->")
        if row["figure"] == "persist":
            share = f"the share of {edge} that persists"
        elif (row["figure"], end) == ("lost_share", "parent"):
            share = f"the share of stable features of {parent} that {child} lost"
        elif (row["figure"], end) == ("lost_share", "child"):
            share = f"the share of stable features of {child} that are new compared with {parent}"
        else:
            continue
        yield Statement(
            child,
            "sure",
            f"Between {row['seeds']} training seeds, {share} varies by {format.percent(row['standard_deviation'] or 0)}"
            f" (standard deviation; mean {format.percent(row['mean'])}).",
            (f"from {format.percent(row['minimum'])} to {format.percent(row['maximum'])}",),
            row["instrument"],
        )


ANALYSIS = Analysis(
    kind="repeats",
    version=4,
    title="Between training seeds",
    items=lambda study: [{"site": site} for site in study.sites] if study.config.repeat.seeds > 1 else [],
    settings=lambda study, item: RepeatsSettings(
        study.config.repeat.seeds, tuple(edge.name for edge in _repeated_children(study)), item["site"]
    ),
    needs=_needs,
    run=_run,
    tables=(REPEATS, SAME),
    say=_say,
)
