"""Stages that train sparse autoencoders and judge them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.features.collect import Reader
from heredity.lm.activations import ActivationStore, activations
from heredity.sae.formats import read_sae, write_sae
from heredity.stages.models import RECORD, load, on_device, seed_of
from heredity.stages.readers import reader_of
from heredity.stages.text import packs
from heredity.study import RANKED, Edge, Init, SAEConfig, Study, StudyError
from heredity.text.tokens import BlockSampler

if TYPE_CHECKING:
    from heredity.sae.checkpoint import TrainingState
    from heredity.sae.model import SAE

QUALITY = "quality.json"


def sae_stage(
    study: Study,
    name: str,
    init: Init,
    models: Mapping[str, Stage],
    saes: Mapping[str, Stage],
    tokens: Mapping[str, Stage],
) -> Stage:
    """The measured SAE of a model: one for all, continued from its SAE parent's, or from scratch."""
    if init == "joint":
        return _joint_stage(study, models, tokens)
    source = study.sae_parent(name) if init == "parent" else None
    label = f"{name}-{init}" if source else f"{name}-scratch"
    return training_stage(study, label, name, models[name], saes[source] if source else None, tokens)


def control_start(study: Study, edge: Edge, init: Init) -> str | None:
    """Model whose SAE the control of this edge's parent starts from: the one the child's SAE starts from."""
    return study.sae_parent(edge.child) if init == "parent" else None


def control_stages(
    study: Study,
    name: str,
    init: Init,
    start: str | None,
    models: Mapping[str, Stage],
    saes: Mapping[str, Stage],
    tokens: Mapping[str, Stage],
) -> list[Stage]:
    """Further SAEs of a model, initialized as those of its children are, for the ceiling of its edges.

    None for a joint SAE: it finds every feature of a model in the model itself, so its ceiling is 1 by construction.
    """
    if init == "joint":
        return []
    return [
        training_stage(
            study,
            f"{name}-control{number}-{f'from-{start}' if start else init}",
            name,
            models[name],
            saes[start] if start else None,
            tokens,
        )
        for number in range(1, study.controls(name))
    ]


def training_stage(
    study: Study,
    label: str,
    name: str,
    model: Stage,
    source: Stage | None,
    tokens: Mapping[str, Stage],
    *,
    corpora: Sequence[str] | None = None,
    order_of: str | None = None,
) -> Stage:
    """An SAE of model `name`, continued from `source` if there is one.

    corpora: that it is trained on, by default the model's trace. order_of: label of the SAE whose seed it takes, which
    on the same corpora is the order of the tokens, by default its own.
    """
    config, hook_point = study.config.sae, study.config.hook_point
    seed = seed_of(study, "sae", order_of or label)
    settings = {
        "hook_point": hook_point,
        "precision": study.config.precision,
        "sae": config.model_dump(exclude=without_effect(config, continued=source is not None)),
        "seed": seed,
        "model": name,
    }
    read = study.trace(name) if corpora is None else corpora
    inputs = {"model": model, **{f"tokens:{corpus}": tokens[corpus] for corpus in read}}
    if source:
        inputs["source"] = source

    def make(work: Work) -> None:
        sampler = trace_sampler(work, "train", config, seed)
        store = activation_store(study, work.inputs["model"], hook_point, sampler, config.batch_blocks, seed)
        wanted = (config.continue_tokens or config.tokens) if source else config.tokens
        sae, inherited = read_sae(work.inputs["source"] / "sae") if source else (None, {})
        stream = Stream(store.batch, store.batch_size, -(-wanted // store.batch_size))
        metadata = {"model_name": name, "model_state": work.inputs["model"].json(RECORD)["state"]}
        train_sae(work, config, hook_point, stream, sae, inherited.get("l1_coefficient"), seed, metadata)

    return Stage("sae", label, settings, inputs, make)


class Stream(NamedTuple):
    """What an SAE is trained on."""

    batch: Callable[[int], Any]
    """Number of a step -> vectors [batch_size, d_in]."""
    batch_size: int
    """Vectors a step."""
    steps: int
    """How many."""


def _joint_stage(study: Study, models: Mapping[str, Stage], tokens: Mapping[str, Stage]) -> Stage:
    """One SAE for all models: every batch holds vectors of each of them, on the corpora of its own trace.

    One dictionary has no noise of its own between two models, so what differs in it differs between them; a crosscoder
    (Lindsey et al. 2024) shares a dictionary too, but reads all models at once and so has no activations of one model.
    """
    config = study.config.sae
    seed = seed_of(study, "sae", "joint")
    settings = {
        "hook_point": study.config.hook_point,
        "precision": study.config.precision,
        "sae": config.model_dump(exclude=without_effect(config, continued=False)),
        "seed": seed,
        "traces": {name: study.trace(name) for name in study.followed},
    }
    inputs = {f"model:{name}": models[name] for name in study.followed}
    inputs |= {f"tokens:{corpus}": stage for corpus, stage in tokens.items()}

    def make(work: Work) -> None:
        import torch

        found, read = work.group("model"), packs(work.group("tokens"), "train")
        each = max(1, config.batch_blocks // len(found))
        stores = []
        for number, (name, artifact) in enumerate(found.items()):
            trace = {corpus: read[corpus] for corpus in study.trace(name)}
            sampler = BlockSampler(trace, config.context_size, seed + number, _shares(config, trace))
            stores.append(activation_store(study, artifact, study.config.hook_point, sampler, each, seed + number))
        size = stores[0].batch_size
        stream = Stream(
            lambda step: torch.cat([store.batch(step) for store in stores]),
            size * len(stores),
            -(-config.tokens // size),
        )
        states = [artifact.json(RECORD)["state"] for artifact in found.values()]
        metadata = {"model_name": "+".join(found), "model_state": states}
        train_sae(work, config, study.config.hook_point, stream, None, None, seed, metadata)

    return Stage("sae", "joint", settings, inputs, make)


def activation_store(
    study: Study, model: Artifact, hook_point: str, sampler: BlockSampler, batch_blocks: int, seed: int
) -> ActivationStore:
    """Shuffled activations of a model artifact, in the study's precision."""
    return ActivationStore(
        on_device(load(model)), hook_point, sampler, batch_blocks, seed, precision=study.config.precision
    )


def train_sae(
    work: Work,
    config: SAEConfig,
    hook_point: str,
    stream: Stream,
    sae: SAE | None,
    l1_coefficient: float | None,
    seed: int,
    metadata: dict[str, Any],
    d_sae: int | None = None,
    watch: Callable[[TrainingState], None] | None = None,
) -> SAE:
    """Train an SAE, anew without one given, from the last checkpoint if there is one; write it with its log.

    d_sae: features of a new one, by default `expansion` times the width. watch: sees the state after every step (see
    `sae.train.train`); what it keeps in the work's folder must survive a kill as the checkpoint does.
    """
    from heredity.sae.model import new_sae
    from heredity.sae.train import TrainingState, train

    continued, first = sae is not None, stream.batch(0)
    if sae is None:
        d_in = first.shape[1]
        sae = new_sae(d_in, d_sae or config.expansion * d_in, config.activation, config.k, _generator(seed))
    sae = sae.to(first.device)
    kept = work.folder / "checkpoint"
    state = TrainingState.load(kept) if kept.exists() else None
    rows = train(
        sae,
        stream.batch,
        config,
        stream.steps,
        seed,
        continued=continued,
        l1_coefficient=l1_coefficient,
        state=state,
        checkpoint=lambda found: _replace(found, kept),
        progress=work.progress,
        watch=watch,
    )
    metadata = metadata | {
        "hook_name": hook_point,
        "context_size": config.context_size,
        "seed": seed,
        "training_tokens": stream.steps * stream.batch_size,
        "l1_coefficient": rows[-1].l1_coefficient,
    }
    write_sae(sae, work.folder / "sae", metadata)
    write_json(work.folder / "training.json", [row._asdict() for row in rows])
    for folder in (kept, *_spares(kept)):
        shutil.rmtree(folder, ignore_errors=True)
    return sae


def _replace(state: Any, folder: Path) -> None:
    """Put a checkpoint in the place of the one before, so that a kill at any moment leaves one that is whole."""
    partial, old = _spares(folder)
    shutil.rmtree(partial, ignore_errors=True)
    state.save(partial)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _spares(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(".checkpoint-new"), folder.with_name(".checkpoint-old")


def _generator(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)


def without_effect(config: SAEConfig, continued: bool) -> set[str]:
    """Settings that the training of this SAE does not read: changing them makes no SAE anew."""
    unused = {"instruments", "evaluation_tokens"}
    unused |= {"l0", "l1_coefficient", "calibration"} if config.activation in RANKED else {"k"}
    if not continued:
        return unused | {"continue_tokens"}
    return unused | ({"tokens"} if config.continue_tokens else set())


def trace_sampler(work: Work, split: str, config, seed: int) -> BlockSampler:
    """Blocks of a model's trace, mixed as the study says."""
    found = packs(work.group("tokens"), split)
    return BlockSampler(found, config.context_size, seed, _shares(config, found))


def _shares(config: SAEConfig, corpora: Mapping[str, Any]) -> dict[str, float] | None:
    return {corpus: 1 / len(corpora) for corpus in corpora} if config.mix == "equal" else None


def trained_on(metadata: Mapping[str, Any]) -> list[str]:
    """Hashes of the weights that an SAE was trained on: one model's, those of all for a joint SAE, or unknown."""
    state = metadata.get("model_state")
    return [] if state is None else [state] if isinstance(state, str) else list(state)


def sae_quality_stage(
    study: Study, name: str, init: Init, model: Stage, sae: Stage, tokens: Mapping[str, Stage]
) -> Stage:
    """Quality of a measured SAE on held-out tokens of its model's trace."""
    config, hook_point = study.config.sae, study.config.hook_point
    seed = seed_of(study, "sae-quality", name)
    settings = {
        "hook_point": hook_point,
        "precision": study.config.precision,
        "tokens": config.evaluation_tokens,
        "context_size": config.context_size,
        "seed": seed,
        "mix": config.mix,
    }

    def make(work: Work) -> None:
        found, metadata = read_sae(work.inputs["sae"] / "sae")
        if work.inputs["model"].json(RECORD)["state"] not in trained_on(metadata):
            raise StudyError(f"{study.name}: the SAE of model {name} was trained on other weights; train it anew")
        sampler = trace_sampler(work, "validation", config, seed)
        count = min(max(1, config.evaluation_tokens // config.context_size), sampler.blocks_per_pass)
        blocks = sampler.take(0, count)
        readers = work.shards.job(reader_of(study, work.inputs["model"], [work.inputs["sae"]]))
        # Two whole measurements are the units: parts of one would have to be summed in another order.
        measured, recovered = readers.map(_measured, [(_quality, blocks), (_recovered, blocks)])
        row = {**measured._asdict(), "ce_loss_recovered": recovered}
        np.save(work.folder / "density.npy", np.asarray(row.pop("density"), dtype=np.float64))
        row |= {"d_in": found.W_enc.shape[0], "d_sae": found.W_enc.shape[1], "activation": found.activation}
        row |= {"l1_coefficient": metadata.get("l1_coefficient")}
        row |= {"seed": metadata["seed"], "trained_tokens": metadata["training_tokens"]}
        write_json(work.folder / QUALITY, json.loads(json.dumps(row)))

    inputs = {"model": model, "sae": sae, **{f"tokens:{corpus}": tokens[corpus] for corpus in study.trace(name)}}
    return Stage("sae_quality", f"{name}-{init}", settings, inputs, make)


def _measured(reader: Reader, unit: tuple[Callable[[Reader, np.ndarray], Any], np.ndarray]) -> Any:
    measure, blocks = unit
    return measure(reader, blocks)


def _quality(reader: Reader, blocks: np.ndarray) -> Any:
    from heredity.sae.evaluate import quality

    return quality(reader.saes[0], activations(reader.model, reader.hook_point, blocks, reader.precision))


def _recovered(reader: Reader, blocks: np.ndarray) -> float:
    from heredity.sae.evaluate import ce_loss_recovered

    return ce_loss_recovered(reader.model, reader.hook_point, reader.saes[0], blocks, reader.precision)
