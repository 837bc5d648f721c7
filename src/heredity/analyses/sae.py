"""Sparse autoencoders: trained at every site of the study, and judged on held-out text.

Instruments: `joint` trains one SAE on the activations of all models, `parent` continues the parent's SAE on the child,
`independent` starts anew for every model, `frozen` reads every model with the SAE of its first ancestor. An SAE that a
model's table names (`sae`, `second_sae`) stands in the place of one that is trained from scratch; a second one of
another seed is trained in its shape where none is named. Further SAEs of a parent (controls) start where its children's
start; what persists into one of them is the ceiling of an edge. A joint or frozen SAE needs none: its ceiling is 1 by
construction. SAEs of several sites, and those of other seeds that start from scratch, are trained side by side, so that
one forward pass of a model feeds all of them. Each is the same as in a study of its site alone; one of another seed
begins from other weights and reads the vectors in the order of the first.

Explained variance is 1 - ||x - x_hat||^2 / ||x - mean x||^2, pooled over tokens. A few massive vectors can own both
sums, so that it is given without them, and as the median over single vectors, too. Cross-entropy recovered compares
with zero ablation at the hook point. Where verdicts need a second SAE of every model, of another seed, two figures
compare them: the share of live features that are stable (best r in the second SAE above 0.7 on held-out text), and
PW-MCC, the mean cosine of the decoder rows of both, each row paired with one other so that the sum is largest.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from heredity.analyses.one_sae import shape_beside
from heredity.analyses.pretrained import PretrainedSAE, named, pretrained, take_over, trained_on
from heredity.analyses.reading import load, on_device, reader_of, sampler_of, state_of
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.engine.ranks import ALONE, RankError, Ranks
from heredity.engine.stage import Work
from heredity.engine.store import Artifact, write_json
from heredity.study import RANKED, Edge, Precision, SAEConfig, Study, StudyError
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from pathlib import Path

    from heredity.analyses.plan import Shapes
    from heredity.features.collect import Reader
    from heredity.lm.activations import ActivationStore
    from heredity.sae import model as sae_model
    from heredity.sae.evaluate import SAEQuality
    from heredity.sae.train import TrainingState

LEAST_EXPLAINED = 0.8  # planted worlds: SAEs that explain less call kept features lost
_OWNED = 0.2  # share of the variance that a smaller share of the vectors must not own without a word
_KEPT_GIB = 0.5  # what the allocator comes to keep between the passes of a training, as measured
_BUFFERED = 2 * 16  # batches of activations that a stream holds: one group, and the group as it is put together
_LOG = "training.json"  # written last
TRAINED = 0.6  # share of the measured rate that the encoder products of a training would have to themselves
_L0 = 32  # active features assumed for a relu SAE, the middle of the paper's range

SAES = Table(
    "saes",
    "Sparse autoencoders on held-out text.",
    ("instrument", "seed", "site", "model"),
    (
        Column("seed", "count", "0 is the SAE that all results rest on."),
        Column("d_in", "count", "Width of the hook point."),
        Column("d_sae", "count", "Features."),
        Column("activation", "text", "Activation function."),
        Column("tokens", "count", "Activation vectors it was trained on."),
        Column("l0", "number", "Mean number of active features per token."),
        Column("mse", "number", "Mean squared error per element."),
        Column("explained_variance", "r", "1 - FVU, pooled over tokens."),
        Column("explained_variance_ordinary", "r", "The same without massive vectors: those above ten median norms."),
        Column(
            "explained_variance_token",
            "r",
            "Median over ordinary vectors of 1 - |x - x_hat|^2 / |x - mean x|^2, one vector at a time.",
        ),
        Column("massive_share", "share", "Held-out vectors that are massive."),
        Column("massive_variance", "share", "Their share of the variance, which they own where it is large."),
        Column("massive_at", "text", "Where most of them are: a position of the blocks, or a token."),
        Column("left_out", "share", "Held-out positions that are no samples, by the rules of `[reading]`."),
        Column("ce_loss_recovered", "r", "(CE zero - CE SAE) / (CE zero - CE clean), by zero ablation."),
        Column("dead_share", "share", "Share of features that never fired on the held-out text."),
        Column("live", "count", "Features that fired on it; null without a second SAE, as are the next three."),
        Column("unstable", "count", "Live features whose best r in the second SAE is 0.7 or less.", of="live"),
        Column(
            "stable_share",
            "share",
            "Live features that the second SAE has too. Interval: Wilson's, widened to the second SAE's share.",
            ci=True,
        ),
        Column(
            "pw_mcc",
            "r",
            "Mean cosine of the decoder rows of both SAEs under the best one-to-one pairing (Song et al. 2025); 1: the "
            "same dictionary. Null beyond 16,384 features, where the pairing takes minutes and gigabytes.",
        ),
        Column("l1_coefficient", "number", "Coefficient of the penalty at the end of the training (relu, jumprelu)."),
        Column("random_seed", "text", "Seed of its initialization, and of the data order of all that read one stream."),
        Column("notes", "text", "How a named SAE's use differs from what its folder says; null for nothing."),
    ),
    brief=(
        *("instrument", "model", "l0", "explained_variance", "ce_loss_recovered", "dead_share"),
        *("stable_share", "pw_mcc"),
    ),
)
DENSITY = Table(
    "density",
    "Live features by the share of held-out tokens on which they fire.",
    ("instrument", "site", "model", "log10_density"),
    (
        Column("log10_density", "number", "Lower edge of the bin, log10 of the share of tokens."),
        Column("features", "count", "Features in the bin."),
    ),
    plot=Plot("histogram", x="log10_density", y="features"),
)
BIN = 0.25  # width of the bins of densities, in powers of ten


class SAESettings(NamedTuple):
    sae: SAEConfig  # settings without effect on this training stand at their defaults
    hook_point: str
    precision: Precision
    seed: int
    corpora: dict[str, tuple[str, ...]]  # read, by model
    d_sae: int | None = None  # features of a new SAE; by default `sae.expansion` times the width

    @property
    def name(self) -> str:
        """What it is called among those that one stream feeds, and its folder there."""
        return f"{self.hook_point}/{self.seed}"


def sae_need(study: Study, model: str, instrument: str, site: str) -> Need:
    """The measured SAE of a model at a site: one for all, continued from its SAE parent's, or from scratch."""
    if instrument == "joint":
        return ("sae", {"sae": "joint", "site": site})
    continued = instrument == "parent" and study.sae_parent(model)
    model = study.frozen_from(model) if instrument == "frozen" else model
    return ("sae", {"model": model, "sae": "parent" if continued else "scratch", "site": site})


def second_need(study: Study, model: str, instrument: str, site: str, number: int = 1) -> Need:
    """An SAE of a model at a site of another seed: what tells stable features from those that follow nothing.

    number: 1 is the one that studies train; proofs train more.
    """
    if instrument == "joint":
        return ("sae", {"sae": f"joint-{number}", "site": site})
    model = study.frozen_from(model) if instrument == "frozen" else model
    return ("sae", {"model": model, "sae": f"control{number}-independent", "site": site})


def has_seconds(study: Study) -> bool:
    """Whether the study trains a second SAE of every model."""
    return bool(study.config.verdicts.tokens and study.edges)


def control_needs(study: Study, model: str, instrument: str, start: str | None, site: str) -> dict[str, Need]:
    """Further SAEs of a model at a site by number, continued from the SAE of `start` where there is one; none for an
    SAE that reads both ends of an edge."""
    count = 1 if instrument in ("joint", "frozen") else study.controls(model)
    suffix = f"from-{start}" if start else instrument
    return {
        str(number): ("sae", {"model": model, "sae": f"control{number}-{suffix}", "site": site})
        for number in range(1, count)
    }


def control_start(study: Study, edge: Edge, instrument: str) -> str | None:
    """Model whose SAE the controls of an edge's parent continue: the one that the child's SAE continues."""
    return study.sae_parent(edge.child) if instrument == "parent" else None


def _items(study: Study) -> list[Item]:
    return [item for site in study.sites for item in _items_at(study, site)]


def _items_at(study: Study, site: str, only: str | None = None) -> list[Item]:
    """SAEs at a site; only: those of this model."""
    needs: list[Need] = []
    for instrument in study.instruments:
        # A frozen one may belong to an ancestor.
        followed = [name for name in study.followed if only in (None, name) or instrument == "frozen"]
        needs += [sae_need(study, name, instrument, site) for name in followed]
        if has_seconds(study):
            needs += [second_need(study, name, instrument, site) for name in followed]
        for edge in (edge for edge in study.edges if only in (None, edge.parent)):
            start = control_start(study, edge, instrument)
            needs += control_needs(study, edge.parent, instrument, start, site).values()
    if study.instruments and study.config.controls.shifts:  # which continue SAEs whatever the instruments are
        for edge in (edge for edge in study.descent if study.config.model[edge.child].merge is None):
            for name in reversed((edge.parent, *study.ancestors(edge.parent))):
                needs.append(sae_need(study, name, "parent", site))
            needs += control_needs(study, edge.parent, "parent", edge.parent, site).values()
    if only is not None:
        needs = [(kind, item) for kind, item in needs if item.get("model") == only]
    return list({repr(item): item for _, item in needs}.values())


def _source(study: Study, item: Item, site: str) -> Need | None:
    """The SAE at a site that a training continues."""
    label = item["sae"]
    start = study.sae_parent(item["model"]) if label == "parent" else label.partition("-from-")[2]
    return sae_need(study, start, "parent", site) if start else None


def _first(study: Study, item: Item) -> Need | None:
    """The SAE that the study names, of which this is one of another seed."""
    another = item["sae"].startswith("control") and "-from-" not in item["sae"]
    site = item.get("site", study.site)
    return ("sae", item | {"sae": "scratch"}) if another and study.given_sae(item["model"], "sae", site) else None


def _models(study: Study, item: Item) -> tuple[str, ...]:
    return (item["model"],) if "model" in item else study.followed


def _settings(study: Study, item: Item) -> SAESettings | PretrainedSAE:
    return pretrained(study, item) or _training_settings(study, item)


def _training_settings(study: Study, item: Item) -> SAESettings:
    config, label = study.config, f"{item['model']}-{item['sae']}" if "model" in item else item["sae"]
    site = item.get("site", study.site)
    sae, seed = without_effect(config.sae, _source(study, item, site) is not None), seed_of(study, "sae", label)
    corpora = {name: study.trace(name) for name in _models(study, item)}
    return SAESettings(sae, site, config.precision, seed, corpora)


class StreamSettings(NamedTuple):
    """Of the trainings that one stream of vectors feeds, by their names."""

    trainings: dict[str, SAESettings]


def _in_stream(item: Item) -> Item:
    """The stream that feeds a training: that of all sites, and of the SAEs that start anew on the same models."""
    label = item["sae"]
    anew = label.startswith("control") and label.endswith("-independent")
    first = "joint" if label.startswith("joint") else "scratch" if anew else label
    return {name: value for name, value in item.items() if name != "site"} | {"sae": first}


def _fed(study: Study, stream: Item) -> dict[str, Item]:
    """The trainings that a stream feeds, by name; in an order that another main site does not change."""
    found = _items_at(study, study.site, stream.get("model"))
    labels = [item["sae"] for item in found if not named(study, item) and _in_stream(item) == stream]
    labels.sort(key=lambda label: (label != stream["sae"], label))
    items = [stream | {"sae": label, "site": site} for label in labels for site in sorted(study.sites)]
    return {_training_settings(study, item).name: item for item in items}


def _stream_of(study: Study, item: Item) -> tuple[Item, str] | None:
    """The stream that feeds an SAE beside others, and the training's name in it."""
    stream = _in_stream(item)
    fed = _fed(study, stream)
    name = next((name for name, other in fed.items() if other == item), None)
    return (stream, name) if name and len(fed) > 1 else None


def _stream_items(study: Study) -> list[Item]:
    streams = [found[0] for item in _items(study) if not named(study, item) and (found := _stream_of(study, item))]
    return list({repr(stream): stream for stream in streams}.values())


def _stream_settings(study: Study, stream: Item) -> StreamSettings:
    return StreamSettings({name: _training_settings(study, item) for name, item in _fed(study, stream).items()})


def _stream_needs(study: Study, stream: Item) -> Needs:
    fed = _fed(study, stream)
    sources = {name: source for name, item in fed.items() if (source := _source(study, item, item["site"]))}
    firsts = {name: first for name, item in fed.items() if (first := _first(study, item))}
    more = {role: needs for role, needs in (("source", sources), ("first", firsts)) if needs}
    return _training_needs(study, stream) | more


def without_effect(config: SAEConfig, continued: bool) -> SAEConfig:
    """The settings with those that a training does not read at their defaults: changing these makes no SAE anew."""
    unused = {"instruments", "evaluation_tokens"}
    unused |= {"l0", "l1_coefficient", "calibration"} if config.activation in RANKED else {"k"}
    if not continued:
        unused |= {"continue_tokens", "warm_up"}
    else:
        unused |= {"encoder_start"} | ({"tokens"} if config.continue_tokens else set())
    return config.model_copy(update={name: SAEConfig.model_fields[name].default for name in unused})


def _training_needs(study: Study, item: Item) -> Needs:
    names = _models(study, item)
    read = [corpus for corpus in study.config.corpus if any(corpus in study.trace(name) for name in names)]
    return {"model": {name: ("model", {"model": name}) for name in names}, "tokens": tokens_needs(read)}


def _needs(study: Study, item: Item) -> Needs:
    site, first = item["site"], _first(study, item)
    beside: Needs = {"first": first} if first else {}
    if named(study, item):
        own = item["model"]
        return {"model": {own: ("model", {"model": own})}, "tokenizer": tokenizer_need(study)} | beside
    if stream := _stream_of(study, item):
        return {"stream": ("sae_stream", stream[0])}
    source = _source(study, item, site)
    return _training_needs(study, item) | ({"source": source} if source else {}) | beside


def _run(work: Work, settings: SAESettings | PretrainedSAE) -> Results:
    if isinstance(settings, PretrainedSAE):
        take_over(work, settings)
        return {}
    if "stream" not in work.inputs:
        return train_on_models(work, settings)
    made = work.inputs["stream"] / settings.name
    shutil.copytree(made, work.folder, copy_function=_same_file, dirs_exist_ok=True)
    return {}


def _same_file(source: str, target: str) -> None:
    """A second name of a file; a copy where the file system has one name only."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def train_on_models(work: Work, settings: SAESettings) -> Results:
    """Train the SAE of a stage: on one model, or on several at once, each batch with vectors of all of them.

    One dictionary has no noise of its own between two models, so what differs in it differs between them; a crosscoder
    (Lindsey et al. 2024) shares a dictionary too, but reads all models at once and so has no activations of one model.
    """
    _train_from_one(work, {settings.name: settings}, {settings.name: work.folder})
    return {}


def _train_side_by_side(work: Work, settings: StreamSettings) -> Results:
    _train_from_one(work, settings.trainings, {name: work.folder / name for name in settings.trainings})
    return {}


def _train_from_one(work: Work, each: Mapping[str, SAESettings], folders: Mapping[str, Path]) -> None:
    """Train SAEs from one stream, in the order of the first's seed: each step of a training is taken before any other
    is ahead of it."""
    import torch

    from heredity.lm.reading import reading_of
    from heredity.sae.formats import read_sae

    settings = next(iter(each.values()))
    config, models, stores, ranks = settings.sae, work.inputs["model"], [], work.ranks
    torch.set_num_threads(ranks.told(torch.get_num_threads()))  # on which the rounding of dense steps depends
    sites, blocks = tuple({own.hook_point: None for own in each.values()}), max(1, config.batch_blocks // len(models))
    for seed, (name, artifact) in enumerate(models.items(), settings.seed):
        tokens = {corpus: work.inputs["tokens"][corpus] for corpus in settings.corpora[name]}
        sampler = sampler_of(tokens, "train", config.context_size, seed, config.mix)
        stores.append(activation_store(artifact, sites, sampler, blocks, seed, settings.precision, ranks))
    source, first = work.inputs.get("source"), work.inputs.get("first")
    size, steps = stores[0].batch_size, -(-_tokens(config, source) // stores[0].batch_size)
    states = [state_of(artifact) for artifact in models.values()]
    metadata = {"model_name": "+".join(models), "model_state": states[0] if len(states) == 1 else states}
    metadata["prefix_token"] = reading_of(stores[0].model).prefix
    trainings: dict[str, Iterator[TrainingState]] = {}
    for name, own in each.items():
        if (folders[name] / _LOG).exists():  # all was done when the stage was killed
            continue

        def batch(step: int, site: str = own.hook_point) -> Any:
            return torch.cat([store.batch(step, site) for store in stores])

        start = source.get(name) if isinstance(source, Mapping) else source
        sae, inherited = read_sae(start / "sae") if start else (None, {})
        if like := first.get(name) if isinstance(first, Mapping) else first:
            beside = read_sae(like / "sae")[0]
            activation, k = shape_beside(beside, batch(0))
            shape = {"activation": activation, "k": k or config.k}
            own = own._replace(sae=own.sae.model_copy(update=shape), d_sae=beside.d_sae)
        stream = Stream(batch, size * len(stores), steps)
        folders[name].mkdir(parents=True, exist_ok=True)
        given = own, stream, sae, inherited.get("l1_coefficient"), metadata, ranks
        trainings[name] = sae_training(folders[name], *given)[1]
    done: dict[str, int] = {name: 0 if name in trainings else steps for name in each}
    while trainings:
        name = min(trainings, key=lambda name: done[name])  # after a kill, one may have been saved later than others
        try:
            state = next(trainings[name], None)
        except RankError:
            raise
        except ValueError as error:
            raise StudyError(f"SAE of {', '.join(models)} at {each[name].hook_point}: {error}") from error
        if state is None:
            del trainings[name]
        else:
            done[name] = state.step
            work.progress(sum(done.values()), steps * len(each))


def _tokens(config: SAEConfig, source: object) -> int:
    return (config.continue_tokens if source else None) or config.tokens


class Stream(NamedTuple):
    """Training vectors of an SAE."""

    batch: Callable[[int], Any]  # number of a step -> vectors [batch_size, d_in]
    batch_size: int  # vectors per step
    steps: int


def activation_store(
    model: Artifact,
    hook_point: str | Sequence[str],
    sampler: Any,
    batch_blocks: int,
    seed: int,
    precision: Precision,
    ranks: Ranks = ALONE,
) -> ActivationStore:
    """Shuffled activations of a model artifact at one or several hook points."""
    from heredity.lm.activations import ActivationStore

    loaded = on_device(load(model))
    if ranks.count > 1 and next(loaded.parameters()).device.type != "cpu":
        raise StudyError(
            "several processes train an SAE on processors alone; run one on the GPU, without the launcher or "
            "--train-workers, or hide the GPU from all of them with CUDA_VISIBLE_DEVICES="
        )
    return ActivationStore(loaded, hook_point, sampler, batch_blocks, seed, precision=precision, ranks=ranks)


def train_sae(
    work: Work,
    settings: SAESettings,
    stream: Stream,
    sae: sae_model.SAE | None,
    l1_coefficient: float | None,
    metadata: dict[str, Any],
    watch: Callable[[TrainingState], None] | None = None,
) -> sae_model.SAE:
    """Train an SAE, a new one unless one is given, from the last checkpoint if there is one; write it with its log.

    watch: sees the state after every step; what it keeps in the work's folder must survive a kill, as checkpoints do.
    """
    sae, steps = sae_training(work.folder, settings, stream, sae, l1_coefficient, metadata)
    for state in steps:
        if watch is not None:
            watch(state)
        work.progress(state.step, stream.steps)
    return sae


def sae_training(
    folder: Path,
    settings: SAESettings,
    stream: Stream,
    sae: sae_model.SAE | None,
    l1_coefficient: float | None,
    metadata: dict[str, Any],
    ranks: Ranks = ALONE,
) -> tuple[sae_model.SAE, Iterator[TrainingState]]:
    """The SAE of `train_sae`, and its training step by step, at whose end it is written into the folder, of
    several ranks by the first."""
    import torch

    from heredity.sae.formats import write_sae
    from heredity.sae.model import new_sae
    from heredity.sae.train import FILE, TrainingState, training

    config, seed, kept = settings.sae, settings.seed, folder / "checkpoint"
    continued, first = sae is not None, stream.batch(0)
    if sae is None:
        d_in, seeded = first.shape[1], torch.Generator().manual_seed(seed)
        d_sae = settings.d_sae or config.expansion * d_in
        sae = new_sae(d_in, d_sae, config.activation, config.k, seeded, config.encoder_start)
    sae = sae.to(first.device)
    state = TrainingState.load(kept, first.device) if (kept / FILE).exists() else None

    def steps(sae: sae_model.SAE, state: TrainingState | None) -> Iterator[TrainingState]:
        rows = []
        for state in training(
            sae, stream.batch, config, stream.steps, seed, continued=continued, l1_coefficient=l1_coefficient,
            state=state, checkpoint=None if ranks.number else lambda state: state.save(kept), ranks=ranks
        ):  # fmt: skip
            yield state
            rows = state.rows
        if ranks.number:
            return
        told = metadata | {
            "hook_name": settings.hook_point,
            "context_size": config.context_size,
            "seed": seed,
            "training_tokens": stream.steps * stream.batch_size,
            "l1_coefficient": rows[-1].l1_coefficient,
        }
        write_sae(sae, folder / "sae", told)
        shutil.rmtree(kept, ignore_errors=True)
        write_json(folder / _LOG, [row._asdict() for row in rows])

    return sae, steps(sae, state)


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    if named(study, item):
        return Cost()
    config, names, gib = study.config.sae, _models(study, item), []
    if "site" in item and _stream_of(study, item):  # trained there, beside others
        return Cost()
    sites = study.sites if "site" not in item else (item["site"],)
    each = 1 if "site" in item else len(_fed(study, item)) // len(sites)
    tokens = _tokens(config, _source(study, item, study.site))
    for name in names:
        widths = [shapes.width(name, site) for site in sites]
        stream = _BUFFERED * config.batch_blocks * config.context_size * 4 * sum(widths)
        weights = each * 32 * config.expansion * sum(d_in**2 for d_in in widths)
        gib.append(_KEPT_GIB + shapes.read_gib(name) + (weights + stream) / 2**30)
    flops = each * tokens * sum(encode_flops(study, name, shapes, *sites) for name in names)
    passes = read_passes(study, names[0], shapes, tokens * len(names), *sites)
    return Cost(tokens * len(names), flops, max(gib), TRAINED, passes=passes)


class QualitySettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    seed: int
    mix: str
    place: Aside


def sae_items(study: Study) -> Iterable[Item]:
    """One item per instrument, site and model whose features are followed."""
    each = itertools.product(study.instruments, study.sites, study.followed)
    return ({"instrument": instrument, "site": site, "model": name} for instrument, site, name in each)


def _quality_settings(study: Study, item: Item) -> QualitySettings:
    config, seed = study.config.sae, seed_of(study, "sae-quality", item["model"])
    place, tokens = Aside(f"{study.name}: the SAE of model {item['model']}"), config.evaluation_tokens
    read = item["site"], study.config.precision
    return QualitySettings(*read, tokens, config.context_size, seed, config.mix, place)


def _quality_needs(study: Study, item: Item) -> Needs:
    needs: Needs = {
        "model": ("model", {"model": item["model"]}),
        "sae": sae_need(study, item["model"], item["instrument"], item["site"]),
        "tokens": tokens_needs(study.trace(item["model"])),
    }
    if item["instrument"] == "frozen":
        needs["trained_on"] = ("model", {"model": study.frozen_from(item["model"])})
    second = second_need(study, item["model"], item["instrument"], item["site"])
    return needs | ({"second": second} if has_seconds(study) else {})


def _quality(work: Work, settings: QualitySettings) -> Results:
    from heredity.sae.formats import read_sae

    sae, metadata = read_sae(work.inputs["sae"] / "sae")
    if state_of(work.inputs.get("trained_on", work.inputs["model"])) not in trained_on(metadata):
        raise StudyError(f"{settings.place} was trained on other weights; train it anew")
    sampler = sampler_of(work.inputs["tokens"], "validation", settings.context_size, settings.seed, settings.mix)
    count = min(max(1, settings.tokens // settings.context_size), sampler.blocks_per_pass)
    blocks = sampler.take(0, count)
    saes = [work.inputs[role] for role in ("sae", "second") if role in work.inputs]
    opened = reader_of(work.inputs["model"], saes, settings.hook_point, settings.precision)
    # Whole measurements are the units: parts of one would have to be summed in another order.
    units = ("quality", "recovered", *(("stability",) if len(saes) > 1 else ()))
    quality, recovered, *stability = work.shards.job(opened).map(_measure, [(unit, blocks) for unit in units])
    density = quality.density
    np.save(work.folder / "density.npy", density)
    row = {
        "seed": 0,
        "d_in": sae.W_enc.shape[0],
        "d_sae": sae.W_enc.shape[1],
        "activation": sae.activation,
        "tokens": metadata.get("training_tokens"),
        "ce_loss_recovered": recovered,
        "l1_coefficient": metadata.get("l1_coefficient"),
        "random_seed": None if metadata.get("seed") is None else str(metadata["seed"]),
        "notes": "; ".join(metadata.get("notes", ())) or None,
        **robust_figures(quality, blocks),
        **(stability[0] if stability else {}),
    }
    edges, counts = np.unique(np.floor(np.log10(density[density > 0]) / BIN) * BIN, return_counts=True)
    histogram = [{"log10_density": float(edge), "features": int(n)} for edge, n in zip(edges, counts, strict=True)]
    return {"saes": [row], "density": histogram}


def robust_figures(quality: SAEQuality, blocks: np.ndarray) -> dict[str, Any]:
    """Columns of the `saes` table on one SAE's reconstructions of the samples of token blocks [n, context]."""
    names = ("l0", "mse", "explained_variance", "explained_variance_ordinary", "explained_variance_token")
    row: dict[str, Any] = {name: getattr(quality, name) for name in (*names, "dead_share", "massive_variance")}
    row |= {"massive_share": float(quality.massive.mean()), "left_out": 1 - quality.tokens / blocks.size}
    if quality.massive.any() and quality.tokens == blocks.size:
        at = np.flatnonzero(quality.massive)
        positions = np.bincount(at % blocks.shape[1], minlength=1)
        ids = np.bincount(blocks.ravel()[at])
        place, token = int(positions.argmax()), int(ids.argmax())
        of = f"{format.percent(positions[place] / len(at))} at position {place} of blocks"
        named = f"{format.percent(ids[token] / len(at))} the token {token}"
        row["massive_at"] = of if positions[place] >= ids[token] else named
    return row


def _measure(reader: Reader, unit: tuple[str, np.ndarray]) -> Any:
    from heredity.lm.activations import sampled
    from heredity.sae.evaluate import ce_loss_recovered, quality

    wanted, blocks = unit
    if wanted == "quality":
        return quality(reader.saes[0], sampled(reader.model, reader.hook_point, blocks, reader.precision))
    if wanted == "stability":
        return _stability(reader.saes, sampled(reader.model, reader.hook_point, blocks, reader.precision))
    return ce_loss_recovered(reader.model, reader.hook_point, reader.saes[0], blocks, reader.precision)


def _stability(saes: Sequence[sae_model.SAE], batches: Iterable[Any]) -> dict[str, Any]:
    """Columns of the `saes` table that compare an SAE with a second one of the same model, on the same vectors."""
    from heredity.features.acts import FeatureActs
    from heredity.features.correlate import correlate
    from heredity.features.directions import pw_mcc
    from heredity.features.verdicts import STABLE, share_interval

    parts = [[FeatureActs(*sae.encode_sparse(x.float()), sae.d_sae) for sae in saes] for x in batches]
    acts = [FeatureActs.concatenate(own) for own in zip(*parts, strict=True)]
    best = correlate(acts[0], acts[1], 1)
    stable = [int((r[:, 0] > STABLE).sum()) for r in (best.parent_r, best.child_r)]
    live, other = (int((own.firings() > 0).sum()) for own in acts)
    row: dict[str, Any] = {"live": live, "unstable": live - stable[0], "pw_mcc": pw_mcc(saes[0].W_dec, saes[1].W_dec)}
    if live:
        low, high = share_interval(stable[0], live, (stable[1] / other,) if other else ())
        row |= {"stable_share": stable[0] / live, "stable_share_low": low, "stable_share_high": high}
    return row


def encode_flops(study: Study, model: str, shapes: Shapes, *sites: str) -> float:
    """FLOPs of one token in the encoders of the study's SAEs at some sites."""
    return 2.0 * study.config.sae.expansion * sum(shapes.width(model, site) ** 2 for site in sites)


def read_passes(study: Study, model: str, shapes: Shapes, tokens: float, *sites: str) -> Passes:
    """Passes of so many tokens through a model to the last of some sites."""
    return Passes(2 * shapes.passed(model, *sites) * tokens, study.config.precision)


def expected_l0(study: Study) -> int:
    """Active features per token to reckon with."""
    return study.config.sae.k if study.config.sae.activation in RANKED else _L0


def _quality_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    tokens, (model, site) = study.config.sae.evaluation_tokens, (item["model"], item["site"])
    reads = 2 if has_seconds(study) else 1  # and three passes of the whole model: as it is, with the SAE, with zeros
    flops = tokens * reads * encode_flops(study, model, shapes, site)
    passes = read_passes(study, model, shapes, reads * tokens, site)
    passes = passes._replace(flops=passes.flops + 6 * shapes.parameters(model) * tokens)
    # The allocator keeps logits of one evaluation while the next one begins.
    gib = shapes.sae_gib(model, site, tokens) + 2 * shapes.logits_gib(model)
    return Cost(tokens, flops, gib, passes=passes)


def _say(tables: Tables) -> Iterable[Statement]:
    frozen = [row for row in rows_of(tables, "saes", instrument="frozen", seed=0) if row["explained_variance"]]
    if frozen:
        each = [f"{row['explained_variance']:.3f} in {row['model']}" for row in frozen]
        losses = [(row["model"], row["ce_loss_recovered"]) for row in frozen if row["ce_loss_recovered"] is not None]
        recovered = tuple(f"cross-entropy recovered {value:.3f} in {model}" for model, value in losses)
        text = f"The explained variance of the SAE that reads all of them is {format.listed(each)}."
        yield Statement("SAEs", "sure", text, recovered, "frozen")
    for row in rows_of(tables, "saes", seed=0):
        if row.get("notes"):
            yield Statement(row["model"], "note", row["notes"], (), row["instrument"])
    poor: dict[str, list[Any]] = {}
    for row in rows_of(tables, "saes"):
        if row["explained_variance"] is not None and row["explained_variance"] < LEAST_EXPLAINED:
            poor.setdefault(row["instrument"], []).append(row)
    for instrument, rows in poor.items():
        models = ", ".join(dict.fromkeys(row["model"] for row in rows))
        least = format.below(min(row["explained_variance"] for row in rows), LEAST_EXPLAINED)
        text = (
            f"SAEs of {models} (instrument {instrument}) explain as little as {least} of the variance: in planted "
            "worlds, SAEs that were trained too little, and explain less than "
            f"{format.percent(LEAST_EXPLAINED)}, call kept features lost; train longer"
        )
        yield Statement("SAEs", "note", text, instrument=instrument)
    for row in rows_of(tables, "saes"):
        if (row["massive_variance"] or 0) > _OWNED and row["massive_share"] < _OWNED:
            few, owned = (format.percent(row[name]) for name in ("massive_share", "massive_variance"))
            text = (
                f"SAE of {row['model']} (instrument {row['instrument']}): {few} of the vectors own {owned} of the "
                f"variance ({row['massive_at']}), so that an explained variance of {row['explained_variance']:.2f} is "
                f"theirs; of the others it is {row['explained_variance_ordinary']:.2f}. [reading] leaves such "
                "positions out"
            )
            yield Statement("SAEs", "note", text, instrument=row["instrument"])


SAE_STREAM = Analysis(
    kind="sae_stream",
    version=1,
    title="Sparse autoencoders that one stream of vectors feeds",
    items=_stream_items,
    settings=_stream_settings,
    needs=_stream_needs,
    run=_train_side_by_side,
    cost=_cost,
    reseeded=lambda study, item: True,
    divided=lambda study, item: True,
)
SAE = Analysis(
    kind="sae",
    version=1,
    title="Sparse autoencoders",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=_cost,
    reseeded=lambda study, item: named(study, item) is None,
    divided=lambda study, item: named(study, item) is None and not _stream_of(study, item),
)
SAE_QUALITY = Analysis(
    kind="sae_quality",
    version=4,
    title="Quality of the SAEs",
    items=sae_items,
    settings=_quality_settings,
    needs=_quality_needs,
    run=_quality,
    tables=(SAES, DENSITY),
    cost=_quality_cost,
    say=_say,
)
