"""Stages that train SAEs of a stitch's target from several starts on the same data, and what each start saves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.lm.activations import activations
from heredity.report.carried import BeginningSummary, CurveRow, SavingRow
from heredity.sae.formats import read_sae
from heredity.stages.models import RECORD, seed_of
from heredity.stages.saes import Stream, activation_store, trace_sampler, train_sae, without_effect
from heredity.stages.stitch import maps_of
from heredity.stitch.savings import dense_flops, fold_flops, reached, refit_flops, saving, sparse_flops
from heredity.study import StitchConfig, Study
from heredity.study.stitch import Arm
from heredity.text.tokens import distinct_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.sae.checkpoint import TrainingState
    from heredity.sae.model import SAE

BEGINNING = "beginning.json"
HELD_OUT = 8192
"""Validation vectors behind a curve."""
POINTS = 24
"""Of a curve, besides the start."""
SILENT = 50_000
"""Training vectors on which a feature must have been silent to get a new start."""
LARGEST_REFIT = 8192
"""Features of the widest SAE whose decoder is refitted: a matrix of that width is held in float64."""
_CURVE, _CLOCK = "curve.json", "clock"


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
    flops, seconds = ((_cost(arm, of, level), _cost(other, of, level)) for of in ("flops", "seconds"))
    return SavingRow(
        d_sae=arm.d_sae,
        arm=arm.arm,
        threshold=level,
        never=tuple(run.arm for run, cost in zip((arm, other), flops, strict=True) if cost is None),
        flops=flops[0],
        seconds=seconds[0],
        saved_flops=saving(*flops, extra[0]),
        saved_seconds=saving(*seconds, extra[1]),
        saved_flops_with_source=saving(*flops, extra[0] + source[0]),
        saved_seconds_with_source=saving(*seconds, extra[1] + source[1]),
    )


def _cost(run: BeginningSummary, of: str, level: float) -> float | None:
    values = [float("nan") if row.explained_variance is None else row.explained_variance for row in run.curve]
    return reached([getattr(row, of) for row in run.curve], values, level)


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
    curve = Curve(work.folder, stream, spare, held)
    metadata = {"model_name": found.target, "model_state": model.json(RECORD)["state"], "beginning": arm}
    train_sae(work, config, hook_point, stream, start.sae, None, seed, metadata, d_sae=width, watch=curve)
    last = curve.rows[-1]
    told = BeginningSummary(
        arm=arm,
        d_in=held.shape[1],
        d_sae=width,
        steps=stream.steps,
        vectors=last.vectors,
        held_out=len(held),
        curve=tuple(curve.rows),
        start_flops=start.flops,
        start_seconds=start.seconds,
        revived=start.revived,
        **last.model_dump(include={"seconds", "flops", "sparse_flops", "explained_variance", "l0", "dead_share"}),
    )
    write_json(work.folder / BEGINNING, told.model_dump(mode="json"))
    curve.forget()


def _start(study: Study, arm: Arm, work: Work, stream: Stream, seed: int) -> _Start:
    """The SAE that an arm begins with. It is made again after a kill, which costs less than keeping it."""
    if arm == "random":
        return _Start(None)
    from heredity.stitch.affine import Stitch
    from heredity.stitch.geometry import trainable, turned
    from heredity.stitch.moments import Moments
    from heredity.stitch.transfer import transfer_sae

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
        sae, revived, more = _repaired(sae, stream, seed)
        flops += more
    sae = trainable(sae, study.config.sae, first)
    return _Start(sae, flops, round(time.monotonic() - begun, 3), revived)


def _repaired(sae: SAE, stream: Stream, seed: int) -> tuple[SAE, int, float]:
    """A folded SAE refitted, its dead features revived, on the first vectors of the training; how many, and FLOPs."""
    from heredity.sae.evaluate import quality
    from heredity.stitch.geometry import revived, unit_rows
    from heredity.stitch.transfer import calibrate

    steps = min(stream.steps, -(-max(SILENT, 2 * sae.d_sae) // stream.batch_size))
    batches = [stream.batch(step) for step in range(steps)]
    vectors = sum(map(len, batches))
    decoder = sae.d_sae <= min(LARGEST_REFIT, vectors // 2)
    sae = unit_rows(calibrate(sae, batches, "decoder" if decoder else "bias"))
    seen, count = quality(sae, batches), 0
    flops = refit_flops(sae.d_in, sae.d_sae, seen.l0, vectors, decoder) + refit_flops(
        sae.d_in, sae.d_sae, seen.l0, vectors, decoder=False
    )
    # On fewer vectors a rare feature looks dead.
    if vectors >= SILENT:
        sae, count = revived(sae, seen.density == 0, batches, seed)
    return sae, count, flops


class Curve:
    """Measures a training on fixed vectors at some of its steps; `watch` of `train_sae`.

    What it knows lies beside the checkpoint: rows, and the seconds of every step, so that after a kill both go on from
    the checkpoint's step.
    """

    def __init__(self, folder: Path, stream: Stream, spare: SAE, held: Tensor) -> None:
        """spare: an SAE of the training's shape, which is overwritten. held: vectors [n, d_in]."""
        self.rows: list[CurveRow] = []
        """So far, by step."""
        self._folder, self._size, self._spare, self._held = folder, stream.batch_size, spare, held
        self._steps = {0, *np.rint(np.geomspace(1, stream.steps, POINTS)).astype(int).tolist()}
        self._seconds, self._begun = 0.0, False
        self._mark = time.monotonic()

    def __call__(self, state: TrainingState) -> None:
        """Take in the state after a step, or before the first one."""
        self._seconds += time.monotonic() - self._mark
        if not self._begun:
            self._resume(state.step)
        with open(self._folder / _CLOCK, "ab") as file:
            file.write(np.float64(self._seconds).tobytes())
        if state.step in self._steps and (not self.rows or self.rows[-1].step < state.step):
            self.rows.append(self._row(state))
            write_json(self._folder / _CURVE, [row.model_dump(mode="json") for row in self.rows])
        self._mark = time.monotonic()

    def forget(self) -> None:
        """Delete what was kept for a resume."""
        for name in (_CURVE, _CLOCK):
            (self._folder / name).unlink(missing_ok=True)

    def _resume(self, step: int) -> None:
        """Go on from what is known up to a step."""
        self._begun = True
        curve, clock = self._folder / _CURVE, self._folder / _CLOCK
        if step and clock.exists():
            known = np.fromfile(clock, np.float64)[: step + 1]
            known = np.append(known, np.full(step + 1 - len(known), known[-1] if len(known) else 0.0))
            self._seconds = float(known[-1])
            known[:step].tofile(clock)  # the step's own is written again
        else:
            clock.unlink(missing_ok=True)
        if curve.exists():
            rows: list[Any] = [CurveRow.model_validate(row) for row in json.loads(curve.read_text())]
            self.rows = [row for row in rows if row.step <= step] if step else []

    def _row(self, state: TrainingState) -> CurveRow:
        from heredity.sae.evaluate import quality
        from heredity.sae.step import SPARSE_BELOW
        from heredity.sae.train import write_back

        write_back(state, self._spare)
        found = quality(self._spare, [self._held])
        d_in, d_sae, vectors = self._spare.d_in, self._spare.d_sae, state.step * self._size
        dense, done = dense_flops(d_in, d_sae, vectors), 0.0
        for row in state.rows:
            few = row.l0 / d_sae < SPARSE_BELOW
            done += sparse_flops(d_in, d_sae, row.l0, self._size) if few else dense_flops(d_in, d_sae, self._size)
        return CurveRow(
            step=state.step,
            vectors=vectors,
            flops=dense,
            sparse_flops=done,
            seconds=round(self._seconds, 6),
            explained_variance=found.explained_variance,
            l0=found.l0,
            dead_share=found.dead_share,
        )
