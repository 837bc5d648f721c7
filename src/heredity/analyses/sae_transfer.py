"""The source's SAEs in the target of a stitch, without any training there.

up(SAE(down(x))) is again an SAE (Chen et al. 2025, equation 6): W_enc' = P_down W_enc, W_dec' = W_dec P_up,
b_dec' = up(b_dec), b_enc' = b_enc + (down(b_dec') - b_dec) W_enc, since b_dec is subtracted before encoding; thresholds
stay. Folding is exact but for rounding, which every run checks. Decoder rows then differ in length; bringing them to
unit norm changes the selection of a topk SAE, and the figures include by how much.

Variants, besides the SAE in its own model (`source`): `transferred`, folded; `normalized`, with decoder rows of unit
norm; refitted on activations of the target in closed form: `bias` (mean residual), `decoder` (ridge around the folded
decoder) and `density` (thresholds at which each feature fires as often as in the source; not for topk); where the
models are of one width also `unchanged`, the SAE as it is, and `aligned`, folded through maps that only turn and scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import (
    Analysis,
    Aside,
    Cost,
    Item,
    Need,
    Needs,
    Passes,
    Results,
    Statement,
    Tables,
    rows_of,
    seed_of,
)
from heredity.analyses.reading import load, state_of
from heredity.analyses.sae import TRAINED, SAESettings, train_on_models, trained_on, without_effect
from heredity.analyses.stitch_maps import (
    FITTED,
    Sides,
    StitchSettings,
    by_stitch,
    passes_of,
    percent,
    sizes,
    stitch_needs,
)
from heredity.analyses.text import tokens_for
from heredity.engine.stage import Work
from heredity.papers import stitching_settings
from heredity.study import SAEConfig, StitchConfig, Study, StudyError
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.analyses.plan import Shapes
    from heredity.sae.model import SAE
    from heredity.stitch.affine import Stitch

CALIBRATING = 50_000
"""Training vectors of the target on which SAEs are refitted."""
_FOLDED = 4096  # vectors on which folding is checked
PUBLISHED = {
    one.setting.removeprefix("sae."): one.values[0]
    for one in stitching_settings.SETTINGS
    if one.setting.startswith("sae.") and one.setting not in ("sae.k", "sae.tokens")
}
"""Settings that `arms_recipe = "published"` puts in place of the study's [sae]."""
_REFITTED = {"bias": "its bias refitted", "decoder": "its decoder refitted", "density": "its thresholds refitted"}

SAE_TRANSFER = Table(
    "sae_transfer",
    "The source's SAE on held-out text of its own model and, without training, of the target.",
    ("stitch", "d_sae", "variant"),
    (
        Column("variant", "text", "source, transferred, normalized, bias, decoder, density, unchanged or aligned."),
        Column("left_out", "text", "Reason why there is no such variant; null where there is one."),
        Column("l0", "number", "Mean number of active features per token."),
        Column("fvu", "share", "Fraction of variance unexplained."),
        Column("explained_variance", "r", "1 - FVU."),
        Column("ce_clean", "nats", "Cross-entropy of the model, nats per token."),
        Column("ce_spliced", "nats", "Cross-entropy with the reconstruction spliced in."),
        Column("delta_loss", "nats", "Increase of the cross-entropy by the splice."),
        Column("ce_loss_recovered", "r", "(CE zero - CE SAE) / (CE zero - CE clean), by zero ablation."),
        Column("dead_share", "share", "Share of features that never fired on this text."),
    ),
    brief=("stitch", "d_sae", "variant", "l0", "fvu", "delta_loss", "ce_loss_recovered", "dead_share"),
)
SAE_FOLDING = Table(
    "sae_folding",
    "Check of every folded SAE against up, SAE and down one after the other.",
    ("stitch", "d_sae"),
    (
        Column("tokens", "count", "Held-out tokens behind the figures of sae_transfer."),
        Column("calibrated_on", "count", "Training vectors on which variants were refitted."),
        Column("folding_error", "number", "Largest difference of any element, in root mean squares of activations."),
        Column("other_features", "share", "Share of vectors left out because rounding made another feature active."),
        Column("same_selection", "share", "Share of the active features of transferred that normalized selects too."),
    ),
)


def source_sae_need(name: str, d_sae: int) -> Need:
    """The SAE of a stitch's source with so many features."""
    return ("source_sae", {"stitch": name, "d_sae": d_sae})


def width_items(study: Study) -> Iterable[Item]:
    """One item per stitch and number of SAE features."""
    return ({"stitch": name, "d_sae": d_sae} for name, stitch in study.config.stitch.items() for d_sae in stitch.widths)


def new_sae_config(study: Study, name: str, arm: str = "random") -> SAEConfig:
    """Settings of the SAEs of a stitch, which gives their widths itself, from one start."""
    config = study.config.sae
    if study.config.stitch[name].arms_recipe == "published":
        config = config.model_copy(update=PUBLISHED)
    given = {"expansion": SAEConfig.model_fields["expansion"].default}
    given |= {} if arm == "random" else {"warm_up": config.warm_up}
    return without_effect(config, continued=False).model_copy(update=given)


class LoadedSAE(NamedTuple):
    """A source SAE that the study names."""

    folder: Aside
    content: str
    """Hash of its files."""
    d_sae: int
    hook_point: str
    config: Aside
    place: Aside


def _source_settings(study: Study, item: Item) -> SAESettings | LoadedSAE:
    from heredity.text.corpora import file_digest

    name, d_sae = item["stitch"], item["d_sae"]
    stitch, corpora = study.config.stitch[name], study.stitch_corpora(name)
    point, seed = stitch.source_hook_point or study.site, seed_of(study, "sae", f"{name}-source-{d_sae}")
    if stitch.sae:
        folder = sae_folder(study, name)
        content = file_digest(sorted(path for path in (folder, *folder.rglob("*")) if path.is_file()))
        return LoadedSAE(Aside(folder), content, d_sae, point, Aside(stitch), Aside(f"{study.name}: stitch.{name}"))
    return SAESettings(
        new_sae_config(study, name), point, study.config.precision, seed, {stitch.source: corpora}, d_sae
    )


def _source_needs(study: Study, item: Item) -> Needs:
    stitch = study.config.stitch[item["stitch"]]
    needs: Needs = {"model": {stitch.source: ("model", {"model": stitch.source})}}
    return (
        needs
        if stitch.sae
        else needs | {"tokens": tokens_for(study, stitch.source, study.stitch_corpora(item["stitch"]))}
    )


def _source_sae(work: Work, settings: SAESettings | LoadedSAE) -> Results:
    """Train the SAE, or take over the one that is named."""
    if isinstance(settings, SAESettings):
        train_on_models(work, settings)
        return {}
    from heredity.sae.formats import write_sae
    from heredity.sae.made_for import refuse_other_place

    (artifact,) = work.inputs["model"].values()
    model, place, folder = load(artifact), settings.place.value, settings.folder.value
    sae, metadata = loaded_sae(place, folder, settings.config.value, model.config.get_text_config().hidden_size)
    try:
        way_out = f"set source_hook_point = {metadata.get('hook_name')!r}"
        refuse_other_place(str(folder), metadata, model, settings.hook_point, way_out)
    except ValueError as error:
        raise StudyError(f"{place}.sae: {error}") from None
    if state_of(artifact) not in (trained_on(metadata) or [state_of(artifact)]):
        raise StudyError(
            f"{place}.sae: {folder} was trained on other weights than those of {settings.config.value.source}"
        )
    write_sae(sae, work.folder / "sae", metadata)
    return {}


def sae_folder(study: Study, name: str) -> Path:
    """Folder of the source's SAE that a stitch names. Raises StudyError where there is nothing."""
    reference = study.config.stitch[name].sae or ""
    folder = study.folder(f"stitch.{name}.sae", reference)
    if folder is None:
        raise StudyError(f"{study.name}: stitch.{name}.sae: {reference}: no such folder; correct the path")
    return folder


def loaded_sae(place: str, folder: Path, config: StitchConfig, d_in: int) -> tuple[SAE, dict[str, Any]]:
    """The source's SAE that a stitch names, and its metadata; d_in: width of the source, 0 where it is not known.

    Raises StudyError for a folder without one that can be read, that normalizes its input, or that has other widths.
    """
    from heredity.sae.formats import FormatError, read_sae

    try:
        sae, metadata = read_sae(folder)
    except FormatError as error:
        raise StudyError(f"{place}.sae: {error}") from None
    if d_in and sae.d_in != d_in:
        raise StudyError(
            f"{place}.sae: {folder} reads {sae.d_in} dimensions, and {config.source} is {d_in} wide; give an SAE of "
            f"{config.source}"
        )
    if sae.centered:
        raise StudyError(
            f"{place}.sae: {folder} is of a stream without its mean (center_writing_weights), which its reconstruction "
            "does not give back; affine maps carry SAEs of a stream as it is alone"
        )
    if config.widths != (sae.d_sae,):
        raise StudyError(
            f"{place}.widths: {list(config.widths)} is not the width of {folder}, an SAE of {sae.d_sae} features; set "
            f"widths = [{sae.d_sae}]"
        )
    return sae, metadata


def training_cost(study: Study, item: Item, shapes: Shapes, end: str) -> Cost:
    """Cost of training an SAE of one end of a stitch; nothing for one that is loaded."""
    if end == "source" and study.config.stitch[item["stitch"]].sae:
        return Cost()
    a, b, gib = sizes(study, item["stitch"], shapes)
    d_in, (front, _) = (a if end == "source" else b), passes_of(study, item["stitch"], shapes)[end]
    tokens, features = study.config.sae.tokens, item["d_sae"]
    passes = Passes(tokens * front, study.config.precision)
    flops, efficiency = tokens * 2 * d_in * features, TRAINED if end == "source" else 0.35
    return Cost(tokens, flops, gib + 32 * d_in * features / 2**30, efficiency, passes=passes)


def _run(work: Work, settings: StitchSettings) -> Results:
    import torch

    from heredity.lm.activations import sampled
    from heredity.metrics import ce_loss_recovered
    from heredity.sae.evaluate import bare_losses, quality, spliced_loss
    from heredity.sae.formats import write_sae
    from heredity.stitch.transfer import folding, same_selection

    config, sides = settings.config, Sides.of(work)
    ends, source = {"source": sides.source, "target": sides.target}, sides.read_sae(work.inputs["sae"])

    def read(end: str, blocks: np.ndarray) -> Iterable[Tensor]:
        return sampled(*ends[end], blocks, settings.precision)

    blocks = {end: settings.blocks(work, "train", CALIBRATING, end=end) for end in ends}
    x = torch.cat(list(read("target", blocks["target"])))
    density = quality(source, read("source", blocks["source"])).density
    saes, left_out = variants(source, sides.stitch, x, density, work.inputs["stitch"] / "procrustes")
    held = {end: settings.blocks(work, "validation", config.evaluation, 1, end) for end in ends}
    bare = {end: bare_losses(*ends[end], held[end], settings.precision) for end in ends}
    rows: list[dict[str, Any]] = []
    for done, (variant, sae) in enumerate({"source": source, **saes}.items(), 1):
        end = "source" if variant == "source" else "target"
        own = quality(sae, read(end, held[end]))
        (clean, zero), spliced = bare[end], spliced_loss(*ends[end], sae, held[end], settings.precision)
        row = {"variant": variant, "l0": own.l0, "dead_share": own.dead_share, "ce_clean": clean, "ce_spliced": spliced}
        row |= {"fvu": 1 - own.explained_variance, "explained_variance": own.explained_variance}
        recovered = ce_loss_recovered(clean, spliced, zero)
        rows.append(row | {"delta_loss": spliced - clean, "ce_loss_recovered": recovered})
        work.progress(done, len(saes) + 1)
    metadata = {"model_name": config.target, "hook_name": sides.target[1], "context_size": config.context_size}
    metadata |= {"transferred_from": config.source, "transferred_hook_name": sides.source[1]}
    for variant in saes.keys() - {"unchanged"}:
        write_sae(saes[variant], work.folder / variant, metadata | {"variant": variant})
    some, folded = (
        torch.cat(list(read("target", held["target"][: -(-_FOLDED // config.context_size)]))),
        saes["transferred"],
    )
    error, other = folding(source, folded, sides.stitch, some)
    check = {"tokens": held["target"].size, "calibrated_on": len(x), "folding_error": error, "other_features": other}
    check["same_selection"] = same_selection(folded, saes["normalized"], [some])
    reasons = [{"variant": variant, "left_out": reason} for variant, reason in left_out.items()]
    return {"sae_transfer": rows + reasons, "sae_folding": [check]}


def _transfer_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    """Both models with and without an SAE, the target with five, and what these are refitted on."""
    config, (a, b, gib) = study.config.stitch[item["stitch"]], sizes(study, item["stitch"], shapes)
    source, target = passes_of(study, item["stitch"], shapes).values()
    d_sae, held, refitted = item["d_sae"], config.evaluation, min(CALIBRATING, config.tokens)
    encoded = 4 * d_sae * (refitted * 3 * b + held * (2 * a + 10 * b))  # as float32, most of it in columns
    read = held * (3 * source[1] + source[0] + 7 * target[1] + 5 * target[0]) + refitted * (source[0] + target[0])
    passes, gib = Passes(read, study.config.precision), gib + 4 * refitted * b / 2**30
    return Cost(9 * held + 2 * refitted, encoded + d_sae**3, gib, FITTED, passes=passes)


def variants(
    source: SAE, stitch: Stitch, x: Tensor, density: np.ndarray, aligned: Path
) -> tuple[dict[str, SAE], dict[str, str]]:
    """SAEs of the target by name, and reasons for those left out.

    x: training vectors of the target [n, d_b]. density: share of tokens of the same text on which each source feature
    fires. aligned: folder of maps that only turn and scale, for models of one width.
    """
    from heredity.stitch.affine import Stitch
    from heredity.stitch.transfer import LARGEST_REFIT, calibrate, match_density, transfer_sae

    folded = transfer_sae(source, *stitch)
    recipes: dict[str, Callable[[], SAE] | str] = {
        "transferred": lambda: folded,
        "normalized": lambda: transfer_sae(source, *stitch, normalize=True),
        "bias": lambda: calibrate(folded, [x], "bias"),
        "decoder": lambda: calibrate(folded, [x], "decoder"),
        "density": lambda: match_density(folded, x, density),
        "unchanged": lambda: source,
        "aligned": lambda: transfer_sae(source, *Stitch.load(aligned)),
    }
    if source.d_sae > LARGEST_REFIT:
        recipes["decoder"] = f"{source.d_sae} features are more than the {LARGEST_REFIT} that are refitted"
    elif len(x) < 2 * source.d_sae:
        recipes["decoder"] = f"{len(x)} vectors are fewer than two per feature"
    if source.activation == "topk":
        recipes["density"] = "topk has no thresholds by which to match densities"
    if source.d_in != folded.d_in:
        recipes |= dict.fromkeys(("unchanged", "aligned"), f"the models are {source.d_in} and {folded.d_in} wide")
    made = {variant: recipe() for variant, recipe in recipes.items() if not isinstance(recipe, str)}
    return made, {variant: recipe for variant, recipe in recipes.items() if isinstance(recipe, str)}


def _say(tables: Tables) -> Iterable[Statement]:
    """One finding per stitch, at its first width."""
    for name, (source, target), (check, *_) in by_stitch(tables, "sae_folding"):
        rows = rows_of(tables, "sae_transfer", stitch=name, d_sae=check["d_sae"])
        figures = {row["variant"]: row for row in rows if row["left_out"] is None}
        own, moved = figures["source"], figures["transferred"]
        best = min(((figures[v]["fvu"], words) for v, words in _REFITTED.items() if v in figures), default=None)
        refit = f"; with {best[1]} {percent(best[0])}" if best and best[0] is not None else ""
        text = (
            f"An SAE of {source} with {check['d_sae']:,} features leaves {percent(moved['fvu'])} of the variance "
            f"unexplained in {target} without training there, and {percent(own['fvu'])} in {source} itself{refit}."
        )
        evidence = (
            f"cross-entropy rises by {format.value('nats', moved['delta_loss'])} nats per token with the SAE spliced "
            f"in ({source}: {format.value('nats', own['delta_loss'])})",
            f"L0 {format.value('number', moved['l0'])} ({format.value('number', own['l0'])})",
            f"dead {percent(moved['dead_share'])} ({percent(own['dead_share'])})",
            f"{check['tokens']:,} held-out tokens",
        )
        yield Statement(f"stitch {name}", "SAEs", text, evidence)


SOURCE_SAE = Analysis(
    kind="source_sae",
    version=1,
    title="SAEs of the source of a stitch",
    items=width_items,
    settings=_source_settings,
    needs=_source_needs,
    run=_source_sae,
    cost=lambda study, item, shapes: training_cost(study, item, shapes, "source"),
)
ANALYSIS = Analysis(
    kind="sae_transfer",
    version=2,
    title="SAEs transferred without training",
    items=width_items,
    settings=lambda study, item: StitchSettings.of(study, item["stitch"], "carried", "evaluation"),
    needs=lambda study, item: stitch_needs(study, item, sae=source_sae_need(item["stitch"], item["d_sae"])),
    run=_run,
    tables=(SAE_TRANSFER, SAE_FOLDING),
    cost=_transfer_cost,
    say=_say,
)
