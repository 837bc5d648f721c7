"""Stages that train SAEs of a stitch's target from several starts on the same data, and what each start saves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, get_args

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.lm.activations import activations
from heredity.report.carried import BeginningSummary, CurveRow, SavingRow
from heredity.sae.formats import read_sae
from heredity.stages.models import RECORD, seed_of
from heredity.stages.saes import Stream, activation_store, trace_sampler, train_sae, without_effect
from heredity.stages.stitch import maps_of
from heredity.stitch.savings import Curve, dense_flops, fold_flops, saving_row
from heredity.study import StitchConfig, Study
from heredity.study.stitch import Arm
from heredity.text.tokens import distinct_blocks

if TYPE_CHECKING:
    from heredity.sae.model import SAE

BEGINNING = "beginning.json"
HELD_OUT = 8192
"""Validation vectors behind a curve."""


def source_label(name: str, width: int) -> str:
    """Label of the stage with the source's SAE of a stitch."""
    return f"sae/{name}-source-{width}"


def beginning_label(name: str, width: int, arm: Arm) -> str:
    """Label of the stage with the target's SAE from one start; from `random` it is the native one."""
    return f"beginning/{name}-{width}-{arm}"


def beginning_stage(
    study: Study,
    name: str,
    width: int,
    arm: Arm,
    models: Mapping[str, Stage],
    maps: Stage,
    source: Stage,
    tokens: Mapping[str, Stage],
) -> Stage:
    """An SAE of a stitch's target, trained from one start, with its curve; all arms of a width read the same data."""
    stitch, config = study.config.stitch[name], study.config.sae
    kind, label = beginning_label(name, width, arm).split("/", 1)
    seed = seed_of(study, "beginning", name, width)
    settings = {
        "precision": study.config.precision,
        "sae": config.model_dump(exclude=without_effect(config, continued=False) | {"expansion"}),
        "d_sae": width,
        "seed": seed,
        "held_out_seed": seed_of(study, "beginning", name),
        "model": stitch.target,
        "arm": arm,
    }
    inputs = {"model": models[stitch.target], "stitch": maps}
    inputs |= {} if arm == "random" else {"source": source}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in study.stitch_corpora(name)}

    def make(work: Work) -> None:
        _make_beginning(study, width, arm, work)

    return Stage(kind, label, settings, inputs, make)


def beginnings_of(artifacts: Mapping[str, Artifact], name: str, width: int) -> dict[str, BeginningSummary]:
    """The trainings of one width by arm, among artifacts by label."""
    labels = {arm: beginning_label(name, width, arm) for arm in get_args(Arm)}
    return {
        arm: BeginningSummary.model_validate(artifacts[label].json(BEGINNING))
        for arm, label in labels.items()
        if label in artifacts
    }


def savings_of(artifacts: Mapping[str, Artifact], name: str, config: StitchConfig) -> tuple[SavingRow, ...]:
    """What every arm but `random` saves at every threshold and width."""
    maps = maps_of(artifacts[f"stitch/{name}"])
    fit = maps.fits[maps.method]
    rows = []
    for width in config.widths:
        arms = beginnings_of(artifacts, name, width)
        other = arms.pop("random", None)
        if other is None:
            continue
        trained = artifacts[source_label(name, width)]
        read = trained.json("sae/cfg.json")["metadata"]["training_tokens"]
        source = dense_flops(maps.widths[0], width, read), trained.manifest["seconds"]
        for arm, found in arms.items():
            own = found.start_flops or 0.0, found.start_seconds or 0.0
            # A start that is only turned needs the source's SAE and no maps.
            paid = (0.0, 0.0) if arm == "geometry" else (fit.flops or 0.0, fit.seconds or 0.0)
            extra = own[0] + paid[0], own[1] + paid[1]
            rows += [_saving_row(found, other, level, extra, source) for level in config.thresholds]
    return tuple(rows)


def _saving_row(
    arm: BeginningSummary,
    other: BeginningSummary,
    level: float,
    extra: tuple[float, float],
    source: tuple[float, float],
) -> SavingRow:
    ours, theirs = ([row.model_dump() for row in run.curve] for run in (arm, other))
    costs = saving_row(ours, theirs, level, extra, source)
    of_random, _ = costs.pop("random_flops"), costs.pop("random_seconds")
    never = tuple(run.arm for run, cost in ((arm, costs["flops"]), (other, of_random)) if cost is None)
    return SavingRow(d_sae=arm.d_sae, arm=arm.arm, threshold=level, never=never, **costs)


class _Start(NamedTuple):
    """What a training begins with."""

    sae: SAE | None
    """None for a new one."""
    flops: float = 0.0
    seconds: float = 0.0
    revived: int = 0


def _make_beginning(study: Study, width: int, arm: Arm, work: Work) -> None:
    import torch

    from heredity.sae.model import SAE

    config, found, seed = study.config.sae, maps_of(work.inputs["stitch"]), work.config["seed"]
    hook_point, model = found.target_hook_point, work.inputs["model"]
    sampler = trace_sampler(work, "train", config, seed)
    store = activation_store(study, model, hook_point, sampler, config.batch_blocks, seed)
    stream = Stream(store.batch, store.batch_size, -(-config.tokens // store.batch_size))
    validation = trace_sampler(work, "validation", config, work.config["held_out_seed"])
    blocks = distinct_blocks(validation, HELD_OUT)
    held = torch.cat(list(activations(store.model, hook_point, blocks, study.config.precision)))
    start = _start(study, arm, work, stream, seed)
    spare = SAE(held.shape[1], width, config.activation, config.k).to(held.device)
    curve = Curve(work.folder, stream.batch_size, stream.steps, spare, held)
    metadata = {"model_name": found.target, "model_state": model.json(RECORD)["state"], "beginning": arm}
    train_sae(work, config, hook_point, stream, start.sae, None, seed, metadata, d_sae=width, watch=curve)
    last = curve.rows[-1]
    told = BeginningSummary(
        arm=arm,
        d_in=held.shape[1],
        d_sae=width,
        steps=stream.steps,
        vectors=last["vectors"],
        held_out=len(held),
        curve=tuple(map(CurveRow.model_validate, curve.rows)),
        start_flops=start.flops,
        start_seconds=start.seconds,
        revived=start.revived,
        **{key: value for key, value in last.items() if key not in ("step", "vectors")},
    )
    write_json(work.folder / BEGINNING, told.model_dump(mode="json"))
    curve.forget()


def _start(study: Study, arm: Arm, work: Work, stream: Stream, seed: int) -> _Start:
    """The SAE that an arm begins with. It is made again after a kill, which costs less than keeping it."""
    if arm == "random":
        return _Start(None)
    from heredity.stitch.affine import Stitch
    from heredity.stitch.moments import Moments
    from heredity.stitch.transfer import repaired, trainable, transfer_sae, turned

    first = stream.batch(0)
    begun = time.monotonic()
    found = maps_of(work.inputs["stitch"])
    source = read_sae(work.inputs["source"] / "sae")[0].to(first.device)
    flops, revived = fold_flops(*found.widths, source.d_sae), 0
    if arm == "geometry":
        sae = turned(source, Moments.load(work.inputs["stitch"] / "moments.safetensors"), seed)
    else:
        stitch = Stitch.load(work.inputs["stitch"] / found.method).to(first.device)
        sae = transfer_sae(source, *stitch, normalize=True)
    if arm == "repaired":
        sae, revived, more = repaired(sae, stream.batch, stream.batch_size, stream.steps, seed)
        flops += more
    sae = trainable(sae, study.config.sae, first)
    return _Start(sae, flops, round(time.monotonic() - begun, 3), revived)
