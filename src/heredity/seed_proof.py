"""Whether the intervals of verdicts hold what SAEs of other seeds say, and fine-tunes that are trained again.

Further SAEs are trained as the study trains its own, on the same tokens with other seeds, and every edge is judged with
pairs of them: a pair is two counts, since each of its SAEs is judged and the other one tells what is stable. Fine-tunes
are trained again as training repeats of a study are, with SAEs of their own. All of it is kept in the run's folder, so
that a proof that was interrupted goes on, and one with more seeds makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from heredity.analyses import Pipeline
from heredity.analyses.sae import has_seconds, second_need
from heredity.engine.stage import Stage
from heredity.engine.store import Artifact
from heredity.study import ReferencesConfig, Study
from heredity.tables import Column, Table

SHARES = ("kept", "lost")
LEAST_COUNTS, INSIDE, WIDTH, AGREEMENT, KAPPA, LEAST_LOST = 40, 0.93, 0.10, 0.97, 0.8, 0.05
"""What is asked: counts compared, the share of them inside, the median width, agreement and kappa between two SAEs, and
the share lost from which on kappa is a target."""

INTERVALS = Table(
    "proof_of_seeds",
    "Intervals of verdicts, and what other training seeds give.",
    ("instrument", "edge", "end", "share", "others", "interval"),
    (
        Column("instrument", "text", "Origin of the SAEs."),
        Column("edge", "text", "Parent and child."),
        Column("end", "text", "Whose features: parent or child."),
        Column("share", "text", "kept (inherited) or lost (new), over stable features."),
        Column("others", "text", "SAE seeds: other SAEs of the same models; retrained: other fine-tunes, other SAEs."),
        Column("interval", "text", "SAE seeds: the headline's; retrained: the one over training seeds of fine-tunes."),
        Column("said", "share", "Share in the study.", ci=True),
        Column("width", "share", "Width of the interval."),
        Column("counts", "count", "Shares under other seeds."),
        Column("inside", "count", "Of them inside the interval.", of="counts"),
        Column("lowest", "share", "Lowest of them."),
        Column("highest", "share", "Highest of them."),
    ),
    brief=("edge", "end", "share", "others", "interval", "said", "width", "counts", "inside", "lowest", "highest"),
)
TARGETS = Table(
    "proof_of_seeds_targets",
    "Targets over all edges, ends and shares.",
    ("target",),
    (
        Column("target", "text", "What is asked."),
        Column("asked", "text", "Asked value; empty where none is."),
        Column("value", "number", "Measured value."),
        Column("counts", "count", "Figures it rests on."),
        Column("met", "flag", "Whether it is met; null where nothing is asked."),
    ),
    brief=("target", "asked", "value", "counts", "met"),
)
TABLES = (TARGETS, INTERVALS)
_NAMED = {
    ("SAE seeds", "SAE seeds"): ("under other SAE seeds", "the headline's interval"),
    ("retrained", "SAE seeds"): ("of retrained fine-tunes", "the headline's interval"),
    ("retrained", "retrained"): ("of retrained fine-tunes", "the interval over fine-tunes"),
}
"""How targets name whose shares are compared, and with which interval."""


class Judged(NamedTuple):
    """Labels of the stages that judge one edge."""

    instrument: str
    edge: str
    headline: str  # with the study's own SAEs
    others: dict[str, list[str]]  # with SAEs of other seeds; with fine-tunes that are trained again


class Plan(NamedTuple):
    """The work of a proof: stages in the order of work, and which of them judge an edge."""

    stages: list[Stage]
    edges: list[Judged]


def plan(study: Study, sae_seeds: int, model_seeds: int) -> Plan:
    """Stages of a proof with so many further SAEs of every model, and so many fine-tunes of every trained child.

    Raises ValueError for a study without verdicts, an odd number of SAEs, and numbers below zero or both zero.
    """
    if not has_seconds(study) or not study.instruments:
        raise ValueError(f"study {study.name} judges no edge (verdicts.tokens = 0, or no edge); give one with verdicts")
    if sae_seeds < 0 or sae_seeds % 2:
        raise ValueError(f"--sae-seeds {sae_seeds}: must be even: features are judged with pairs of SAEs")
    if model_seeds < 0 or not sae_seeds + model_seeds:
        raise ValueError(f"--model-seeds {model_seeds}: give one or more, or two or more --sae-seeds")
    switches = [name for name, field in ReferencesConfig.model_fields.items() if field.annotation is bool]
    off = study.config.references.model_copy(update=dict.fromkeys(switches, False))
    bare = replace(study, config=study.config.model_copy(update={"references": off}))
    more = [
        second_need(study, model, instrument, study.site, number)
        for instrument in study.instruments
        for model in study.followed
        for number in range(2, 2 + sae_seeds)
    ]
    first, second = Pipeline(study), Pipeline(bare, more)  # references move no verdict: other seeds do without
    edges, needed = [], {}
    for instrument in study.instruments:
        for edge in study.edges:
            item = {"instrument": instrument, "site": study.site, "edge": edge.name, "text": "common"}
            need = "verdicts", item
            headline, same = first.stage(need), second.stage(need)
            pairs = []
            for number in range(2, 2 + sae_seeds, 2):
                saes = {
                    f"{end}_saes": {
                        str(n): second.stage(second_need(study, model, instrument, study.site, number + n))
                        for n in (0, 1)
                    }
                    for end, model in (("parent", edge.parent), ("child", edge.child))
                }
                pairs.append(replace(same, name=f"{same.name}@{number}", inputs={**same.inputs, **saes}))
            trained = study.config.model[edge.child].kind == "finetune"
            again = [second.stage(need, repeat) for repeat in range(1, 1 + model_seeds) if trained]
            second.stages |= {stage.label: stage for stage in pairs}
            others = {"SAE seeds": pairs, "retrained": again}
            edges.append(
                Judged(instrument, edge.name, headline.label, {k: [s.label for s in v] for k, v in others.items()})
            )
            needed[headline.label] = [stage.label for stage in (*pairs, *again)]
    stages = [*first.closure(needed), *second.closure(label for labels in needed.values() for label in labels)]
    return Plan(list({stage.label: stage for stage in stages}.values()), edges)


def compared(planned: Plan, artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Rows of both tables, from the artifacts of the stages by label."""
    rows: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []

    def ends_of(label: str) -> dict[str, dict[str, Any]]:
        table = pq.read_table(artifacts[label] / "verdicts.parquet").to_pylist()
        ends = {row["end"]: row for row in table if row["stable"]}  # without stable features there is no share
        judged.extend(ends.values())
        return ends

    for one in planned.edges:
        headline = ends_of(one.headline)
        for others, labels in one.others.items():
            found = [ends_of(label) for label in labels]
            for end, said in headline.items():
                each = [ends[end] for ends in found if end in ends]
                for share in SHARES:
                    values = [row[name] for row in each for name in (f"{share}_share", f"other_seed_{share}")]
                    key = {"instrument": one.instrument, "edge": one.edge, "end": end, "share": share, "others": others}
                    rows += [key | row for row in _intervals(said, share, values, others)]
    return {"proof_of_seeds_targets": _targets(rows, judged), "proof_of_seeds": rows}


def _intervals(said: Mapping[str, Any], share: str, values: list[float], others: str) -> list[dict[str, Any]]:
    """Rows of one share of the study: its interval, and where it has one, that over fine-tunes trained again."""
    intervals = {"SAE seeds": f"{share}_share"}
    if others == "retrained":
        intervals["retrained"] = f"{share}_share_retrained"
    rows = []
    for interval, name in intervals.items():
        low, high = said.get(f"{name}_low"), said.get(f"{name}_high")
        if low is None or high is None or not values:
            continue
        row = {"interval": interval, "said": said[f"{share}_share"], "said_low": low, "said_high": high}
        row |= {"width": high - low, "counts": len(values), "inside": sum(low <= value <= high for value in values)}
        rows.append(row | {"lowest": min(values), "highest": max(values)})
    return rows


def _targets(rows: list[dict[str, Any]], judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `TARGETS`; those that nothing was measured for are left out."""
    targets = []

    def add(target: str, asked: str, value: float, counts: int, met: bool | None) -> None:
        targets.append({"target": target, "asked": asked, "value": value, "counts": counts, "met": met})

    for (others, interval), (what, where) in _NAMED.items():
        own = [row for row in rows if (row["others"], row["interval"]) == (others, interval)]
        if not own:
            continue
        counts, inside = sum(row["counts"] for row in own), sum(row["inside"] for row in own)
        target, share = f"shares {what} inside {where}", inside / counts
        if others != interval:  # retrained fine-tunes are no claim of the headline's interval
            add(target, "", share, counts, None)
            continue
        width, asked = float(np.median([row["width"] for row in own])), f">= {INSIDE:g} of {LEAST_COUNTS} or more"
        add(target, asked, share, counts, counts >= LEAST_COUNTS and share >= INSIDE)
        add(f"median width of {where}", f"<= {WIDTH:.2f}", width, len(own), width <= WIDTH)
    for name, asked, least in (("agreement", AGREEMENT, 0.0), ("kappa", KAPPA, LEAST_LOST)):
        known = [row[name] for row in judged if row[name] is not None and row["lost_share"] >= least]
        if known:
            where = f", edges with {LEAST_LOST:.0%} lost or more" if least else ""
            add(f"lowest {name} of two SAEs{where}", f">= {asked:.2f}", min(known), len(known), min(known) >= asked)
    return targets
