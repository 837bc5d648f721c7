"""How far other data and other weights move the features of an edge.

A child's SAE differs from its parent's because the child read other corpora and because it has other weights. An SAE
that is continued keeps what its features mean by index, so each cause can be taken as a step by itself, and the angle
by which a feature's decoder row turns says how far the step moved it. What one step moves depends on what the other has
moved before, so both orders are measured: data first (the parent's model on the child's corpora, then the child's model
on them) and model first. `noise` is what continued training alone turns; `weights` compares two SAEs trained on the
same tokens in the same order, on the parent's weights and on the child's. Features are those of the SAE that the
child's would be continued from, as far as they fire on the edge's tokens. A merge has no such edges: its SAE continues
that of its parents' common ancestor, and it has read nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import (
    Analysis,
    Cost,
    Item,
    Need,
    Needs,
    Results,
    Statement,
    Tables,
    rows_of,
    seed_of,
)
from heredity.analyses.match import text_seed, threshold_of
from heredity.analyses.reading import device, reader_of, sampler_of
from heredity.analyses.sae import (
    TRAINED,
    SAESettings,
    control_needs,
    encode_flops,
    expected_l0,
    read_passes,
    sae_need,
    train_on_models,
    without_effect,
)
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.study import Edge, Precision, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.engine.workers import Progress

_PAPER = 0.8
_STEPS = ("data", "data-then-model", "model", "model-then-data")

ANGLES = Table(
    "shift",
    "Angles by which decoder rows turn, quartiles over live features.",
    ("site", "edge", "order", "step"),
    (
        Column("order", "text", "data_first, model_first, or reference."),
        Column("step", "text", "data, model or total; noise or weights for the references."),
        Column("lower", "degrees", "A quarter of the features turn less."),
        Column("median", "degrees", "Half of the features turn less."),
        Column("upper", "degrees", "Three quarters of the features turn less."),
    ),
    brief=("edge", "order", "step", "lower", "median", "upper"),
)
CAUSES = Table(
    "shift_causes",
    "Live features by what turns them further, mean over both orders.",
    ("site", "edge"),
    (
        Column("features", "count", "Live features."),
        Column("by_model", "count", "The other weights turn them further than the other data.", of="features"),
        Column("by_data", "count", "The other data turn them further.", of="features"),
        Column("by_neither", "count", "Neither beyond the 95th percentile of noise, or both equally.", of="features"),
        Column("vectors", "count", "Activation vectors of every step."),
    ),
    sums=(("features", "by_model", "by_data", "by_neither"),),
    brief=("edge", "features", "by_model", "by_data", "by_neither"),
)
PERSIST = Table(
    "shift_persist",
    "Share of the live features of the parent's SAE that persist into the SAE after each step.",
    ("site", "edge", "step"),
    (
        Column("step", "text", "noise, data, model, or both."),
        Column("share", "share", "With r above the edge's threshold."),
        Column("paper", "share", "With r above 0.8."),
        Column("threshold", "r", "The edge's threshold."),
    ),
    plot=Plot("bars", x="edge", y="share", by="step"),
)
FEATURES = Table(
    "shift_features",
    "Angles and best r of every feature of the SAE that the steps start from.",
    ("site", "edge", "feature"),
    (
        Column("live", "flag", "Fires on the edge's tokens."),
        *(
            Column(f"{order}_{step}", "degrees", f"Angle of the step {step}, {order.replace('_', ' ')}.")
            for order in ("data_first", "model_first")
            for step in ("data", "model", "total")
        ),
        Column("noise", "degrees", "Angle by continued training alone."),
        Column("weights", "degrees", "Angle between SAEs on the same tokens and other weights."),
        *(Column(f"{step}_r", "r", f"Best r in the SAE after {step}.") for step in ("noise", "data", "model", "both")),
    ),
    large=True,
)


def _edges(study: Study) -> list[Edge]:
    if not study.instruments or not study.config.controls.shifts:
        return []
    return [edge for edge in study.descent if study.config.model[edge.child].merge is None]


def _step_items(study: Study) -> Iterable[Item]:
    return (
        {"site": site, "edge": edge.name, "sae": step}
        for site in study.sites
        for edge in _edges(study)
        for step in _STEPS
    )


def _control(study: Study, edge: Edge, site: str) -> Need | None:
    """A further SAE of the parent, continued from the parent's: the reference for noise."""
    return control_needs(study, edge.parent, "parent", edge.parent, site).get("1")


def _step_settings(study: Study, item: Item) -> SAESettings:
    edge, step = study.edge(item["edge"]), item["sae"]
    control = _control(study, edge, item["site"])
    label = f"{edge.parent}-to-{edge.child}-shift-{step}"
    if step == "model" and control:  # the token order of the reference
        label = f"{edge.parent}-{control[1]['sae']}"
    return SAESettings(
        without_effect(study.config.sae, continued=True),
        item["site"],
        study.config.precision,
        seed_of(study, "sae", label),
        {_model(edge, step): study.trace(edge.parent if step == "model" else edge.child)},
    )


def _model(edge: Edge, step: str) -> str:
    return edge.parent if step == "data" else edge.child


def _step_needs(study: Study, item: Item) -> Needs:
    edge, step = study.edge(item["edge"]), item["sae"]
    before = step.partition("-then-")[0] if "-then-" in step else None
    source = ("shift_sae", {**item, "sae": before}) if before else sae_need(study, edge.parent, "parent", item["site"])
    model = _model(edge, step)
    corpora = study.trace(edge.parent if step == "model" else edge.child)
    return {"model": {model: ("model", {"model": model})}, "tokens": tokens_needs(corpora), "source": source}


def _train(work: Work, settings: SAESettings) -> Results:
    train_on_models(work, settings)
    return {}


def _step_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    name, site, config = _model(study.edge(item["edge"]), item["sae"]), item["site"], study.config.sae
    tokens = config.continue_tokens or config.tokens
    flops, passes = tokens * encode_flops(study, name, shapes, site), read_passes(study, name, shapes, tokens, site)
    return Cost(tokens, flops, shapes.sae_gib(name, site, 0), TRAINED, passes=passes)


class ShiftSettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    mix: str
    seed: int


def _settings(study: Study, item: Item) -> ShiftSettings:
    config = study.config
    return ShiftSettings(
        item["site"],
        config.precision,
        config.lineage.tokens,
        config.sae.context_size,
        config.sae.mix,
        text_seed(study, study.edge(item["edge"])),  # the edge's own tokens
    )


def _needs(study: Study, item: Item) -> Needs:
    edge, site = study.edge(item["edge"]), item["site"]
    saes: dict[str, Need] = {"source": sae_need(study, edge.parent, "parent", site)}
    roles = ("data", "data_model", "model", "model_data")
    saes |= {role: ("shift_sae", {**item, "sae": step}) for role, step in zip(roles, _STEPS, strict=True)}
    if control := _control(study, edge, site):
        saes["control"] = control
    return {
        "parent": ("model", {"model": edge.parent}),
        "child": ("model", {"model": edge.child}),
        "match": ("match", {"instrument": study.instrument, **item}),
        "sae": saes,
        "tokens": tokens_needs(study.common_trace(edge)),
    }


def _run(work: Work, settings: ShiftSettings) -> Results:
    from heredity.features.directions import causes, quartiles, turns
    from heredity.sae.formats import read_sae

    saes = {role: read_sae(artifact / "sae") for role, artifact in work.inputs["sae"].items()}
    angles = turns({role: sae.W_dec for role, (sae, _) in saes.items()})
    threshold = threshold_of(work.inputs["match"])
    live, best = _best_r(work, settings)
    rows = []
    for name, values in angles._asdict().items():
        if values is not None:
            order, _, step = name.rpartition("_")
            quarters = dict(zip(("lower", "median", "upper"), quartiles(values[live]), strict=True))
            rows.append({"order": order or "reference", "step": step, **quarters})
    by_model, by_data, by_neither = causes(angles, live)
    vectors = saes["data"][1]["training_tokens"]
    counts = {"features": int(live.sum()), "by_model": by_model, "by_data": by_data, "by_neither": by_neither}
    persist = [
        {
            "step": step,
            "share": float((r[live] > threshold).mean()) if live.any() else None,
            "paper": float((r[live] > _PAPER).mean()) if live.any() else None,
            "threshold": threshold,
        }
        for step, r in best.items()
    ]
    nothing = np.full(len(live), np.nan)
    features: dict[str, Any] = {"feature": np.arange(len(live)), "live": live}
    features |= {name: nothing if values is None else values for name, values in angles._asdict().items()}
    features |= {f"{step}_r": best.get(step, nothing) for step in ("noise", "data", "model", "both")}
    return {
        "shift": rows,
        "shift_causes": [counts | {"vectors": vectors}],
        "shift_persist": persist,
        "shift_features": features,
    }


def _best_r(work: Work, settings: ShiftSettings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which features of the source fire on the edge's tokens, bool [d_sae], and their best r in the other SAEs."""
    from heredity.features.collect import collected, together
    from heredity.features.correlate import correlate

    def half(first: int) -> Progress:
        return lambda done, total: work.progress(first * total + done, 2 * total)

    saes = work.inputs["sae"]
    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.seed, settings.mix)
    ends = {"parent": ["source", "data"], "child": ["model", "data_model"]}
    if "control" in saes:
        ends["parent"].append("control")
    acts: dict[str, Any] = {}
    for number, (end, roles) in enumerate(ends.items()):
        opened = reader_of(work.inputs[end], [saes[role] for role in roles], settings.hook_point, settings.precision)
        collection = collected(work.shards.job(opened), sampler, settings.tokens, half(number))
        acts |= dict(zip(roles, collection, strict=True))
    acts = dict(zip(acts, together(*acts.values())[0], strict=True))
    steps = {"noise": "control", "data": "data", "model": "model", "both": "data_model"}
    best = {
        step: correlate(acts["source"], acts[role], 1, device=device()).parent_r[:, 0]
        for step, role in steps.items()
        if role in acts
    }
    return acts["source"].density() > 0, best


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    parent, site, tokens = study.edge(item["edge"]).parent, item["site"], 2 * study.config.lineage.tokens
    pairs = 4 * tokens * expected_l0(study) ** 2  # the features of one SAE are matched with those of four
    flops = tokens * encode_flops(study, parent, shapes, site) + pairs
    passes = read_passes(study, parent, shapes, tokens, site)
    return Cost(tokens, flops, shapes.sae_gib(parent, site, tokens), 0.5, passes=passes)


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "shift_causes"):
        child = row["edge"].split("->")[1]
        by = {name: format.of(row[name], row["features"]) for name in ("by_model", "by_data", "by_neither")}
        yield Statement(
            child,
            "sure",
            f"Along {row['edge']}, other weights turn {by['by_model']} features further than other data do, other data "
            f"turn {by['by_data']} further, and {by['by_neither']} are turned by neither beyond training noise.",
            (f"SAEs continued for {row['vectors']:,} vectors per step",),
        )


SHIFT_SAE = Analysis(
    kind="shift_sae",
    version=1,
    title="SAEs continued step by step",
    items=_step_items,
    settings=_step_settings,
    needs=_step_needs,
    run=_train,
    cost=_step_cost,
    reseeded=lambda study, item: True,
)
SHIFT = Analysis(
    kind="shift",
    version=1,
    title="Other data or other weights",
    items=lambda study: ({"site": site, "edge": edge.name} for site in study.sites for edge in _edges(study)),
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(ANGLES, CAUSES, PERSIST, FEATURES),
    cost=_cost,
    say=_say,
)
