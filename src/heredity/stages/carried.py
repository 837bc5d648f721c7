"""Stages that train the source's SAEs and carry them through the maps of a stitch, without training in the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.lm.activations import activations
from heredity.report.carried import CarriedFigures, CarriedSummary
from heredity.sae.formats import read_sae, write_sae
from heredity.stages.beginnings import beginning_stage, source_label
from heredity.stages.models import RECORD, seed_of
from heredity.stages.saes import Stream, activation_store, trace_sampler, train_sae, without_effect
from heredity.stages.stitch import Sides, sides_of, source_hook_point, stitch_blocks, stitch_inputs
from heredity.study import RANKED, Study, StudyError

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.sae.model import SAE

CARRIED = "carried.json"
CALIBRATING = 50_000
"""Training vectors of the target that repairs are fitted to."""
_FOLDED = 4096  # vectors that folding is checked on


def carried_stages(
    study: Study, name: str, models: Mapping[str, Stage], maps: Stage, tokens: Mapping[str, Stage], tokenizer: Stage
) -> dict[str, Stage]:
    """All stages of a stitch's SAEs by their labels, inputs before what is made from them.

    Of every width: the source's SAE (`source_label`), what it is worth in the target (`carried/...`), and one training
    in the target for each arm (`beginnings.beginning_label`). Raises StudyError when a width is less than k.
    """
    config, sae = study.config.stitch[name], study.config.sae
    stages: list[Stage] = []
    for width in config.widths:
        if sae.activation in RANKED and sae.k > width:
            raise StudyError(
                f"{study.name}: stitch.{name}.widths: {width} features are fewer than sae.k = {sae.k}; lower k or "
                "raise the width"
            )
        source = source_stage(study, name, width, models, tokens)
        stages += [source, carried_stage(study, name, width, models, maps, source, tokens, tokenizer)]
        stages += [beginning_stage(study, name, width, arm, models, maps, source, tokens) for arm in config.arms]
    return {stage.label: stage for stage in stages}


def source_stage(
    study: Study, name: str, width: int, models: Mapping[str, Stage], tokens: Mapping[str, Stage]
) -> Stage:
    """An SAE of a stitch's source, from scratch, on the corpora both models have read."""
    stitch, config = study.config.stitch[name], study.config.sae
    kind, label = source_label(name, width).split("/", 1)
    seed, hook_point = seed_of(study, kind, label), source_hook_point(study, name)
    settings = {
        "hook_point": hook_point,
        "precision": study.config.precision,
        "sae": config.model_dump(exclude=without_effect(config, continued=False) | {"expansion"}),
        "d_sae": width,
        "seed": seed,
        "model": stitch.source,
    }
    inputs = {"model": models[stitch.source]}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in study.stitch_corpora(name)}

    def make(work: Work) -> None:
        sampler = trace_sampler(work, "train", config, seed)
        store = activation_store(study, work.inputs["model"], hook_point, sampler, config.batch_blocks, seed)
        stream = Stream(store.batch, store.batch_size, -(-config.tokens // store.batch_size))
        metadata = {"model_name": stitch.source, "model_state": work.inputs["model"].json(RECORD)["state"]}
        train_sae(work, config, hook_point, stream, None, None, seed, metadata, d_sae=width)

    return Stage(kind, label, settings, inputs, make)


def carried_stage(
    study: Study,
    name: str,
    width: int,
    models: Mapping[str, Stage],
    maps: Stage,
    source: Stage,
    tokens: Mapping[str, Stage],
    tokenizer: Stage,
) -> Stage:
    """What the source's SAE is worth in the target: folded, repaired without training, and as it is."""
    config = study.config.stitch[name]
    seed = seed_of(study, "carried", name)
    settings = {
        **config.model_dump(include={"evaluation", "context_size"}),
        "precision": study.config.precision,
        "seed": seed,
    }
    inputs = stitch_inputs(study, name, models, maps, tokens, tokenizer) | {"sae": source}

    def make(work: Work) -> None:
        _make_carried(study, name, work, seed)

    return Stage("carried", f"{name}-{width}", settings, inputs, make)


def carried_of(artifacts: Mapping[str, Artifact], name: str, width: int) -> CarriedSummary:
    """What the source's SAE of a width is worth in the target, among artifacts by label."""
    return CarriedSummary.model_validate(artifacts[f"carried/{name}-{width}"].json(CARRIED))


class _Given(NamedTuple):
    """What repairs are made from."""

    source: SAE
    folded: SAE
    x: Tensor
    """Training vectors of the target, [n, d_b]."""
    density: np.ndarray
    """Of the source's features on the same text."""


def _make_carried(study: Study, name: str, work: Work, seed: int) -> None:
    import torch

    from heredity.sae.evaluate import quality
    from heredity.stitch.transfer import folding, same_selection, transfer_sae

    config, precision = study.config.stitch[name], study.config.precision
    sides, source = sides_of(work), read_sae(work.inputs["sae"] / "sae")[0]
    source = source.to(next(sides.source.parameters()).device)

    def read(side: Any, hook_point: str, blocks: np.ndarray):
        return activations(side, hook_point, blocks, precision)

    blocks = stitch_blocks(work, "train", CALIBRATING, config.context_size, seed)
    x = torch.cat(list(read(sides.target, sides.target_hook_point, blocks)))
    density = quality(source, read(sides.source, sides.source_hook_point, blocks)).density
    given = _Given(source, transfer_sae(source, *sides.stitch), x, density)
    made, left_out = _variants(given, sides, work)
    held = stitch_blocks(work, "validation", config.evaluation, config.context_size, seed + 1)
    judge = {"source": (sides.source, sides.source_hook_point, source)}
    judge |= {variant: (sides.target, sides.target_hook_point, sae) for variant, sae in made.items()}
    figures: dict[str, CarriedFigures] = {}
    for done, (variant, (side, hook_point, sae)) in enumerate(judge.items(), 1):
        figures[variant] = _figures(side, hook_point, sae, held, precision)
        work.progress(done, len(judge))
    metadata = {
        "model_name": config.target,
        "hook_name": sides.target_hook_point,
        "context_size": config.context_size,
        "transferred_from": config.source,
        "transferred_hook_name": sides.source_hook_point,
    }
    for variant in made.keys() - {"unchanged"}:
        write_sae(made[variant], work.folder / variant, metadata | {"variant": variant})
    some = torch.cat(list(read(sides.target, sides.target_hook_point, held[: -(-_FOLDED // config.context_size)])))
    exact = folding(source, given.folded, sides.stitch, some)
    told = CarriedSummary(
        d_sae=source.d_sae,
        tokens=held.size,
        calibrated_on=len(x),
        figures=figures,
        left_out=left_out,
        folding_error=exact.error,
        other_features=exact.other_features,
        same_selection=same_selection(given.folded, made["normalized"], [some]),
    )
    write_json(work.folder / CARRIED, told.model_dump(mode="json"))


def _variants(given: _Given, sides: Sides, work: Work) -> tuple[dict[str, SAE], dict[str, str]]:
    """SAEs of the target by name, and why others are missing."""
    from heredity.stitch.affine import Stitch
    from heredity.stitch.transfer import LARGEST_REFIT, calibrate, match_density, transfer_sae

    source, folded, x, density = given
    recipes: dict[str, Callable[[], SAE] | str] = {
        "transferred": lambda: folded,
        "normalized": lambda: transfer_sae(source, *sides.stitch, normalize=True),
        "bias": lambda: calibrate(folded, [x], "bias"),
        "decoder": lambda: calibrate(folded, [x], "decoder"),
        "density": lambda: match_density(folded, x, density),
        "unchanged": lambda: source,
        "aligned": lambda: transfer_sae(source, *Stitch.load(work.inputs["stitch"] / "procrustes")),
    }
    if source.d_sae > LARGEST_REFIT:
        recipes["decoder"] = f"{source.d_sae} features are more than the {LARGEST_REFIT} that are refitted"
    elif len(x) < 2 * source.d_sae:
        recipes["decoder"] = f"{len(x)} vectors are fewer than two a feature"
    if source.activation == "topk":
        recipes["density"] = "topk has no thresholds to match densities by"
    if source.d_in != folded.d_in:
        recipes |= dict.fromkeys(("unchanged", "aligned"), f"the models are {source.d_in} and {folded.d_in} wide")
    made = {variant: recipe() for variant, recipe in recipes.items() if not isinstance(recipe, str)}
    return made, {variant: recipe for variant, recipe in recipes.items() if isinstance(recipe, str)}


def _figures(side: Any, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Any) -> CarriedFigures:
    from heredity.stitch.transfer import zero_shot

    found = zero_shot(side, hook_point, sae, blocks, precision)
    return CarriedFigures(
        l0=found.quality.l0,
        fvu=1 - found.quality.explained_variance,
        explained_variance=found.quality.explained_variance,
        ce_clean=found.ce_clean,
        ce_spliced=found.ce_spliced,
        delta_loss=found.delta_loss,
        ce_loss_recovered=found.ce_loss_recovered,
        dead_share=found.quality.dead_share,
    )
