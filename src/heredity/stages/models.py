"""Stages that make, merge and judge language models."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, digest, write_json
from heredity.stages.text import packs, tokenizer_of
from heredity.study import ModelConfig, Precision, ScratchConfig, Study, StudyError, TrainingConfig
from heredity.text.tokens import BlockSampler, PackedTokens

if TYPE_CHECKING:
    from heredity.lm.merge import Method
    from heredity.lm.sweep import Bench

RECORD = "record.json"
_SCRATCH_LR, _FINETUNE_LR = 6e-4, 2e-5  # the paper's model cards


def seed_of(study: Study, *names: object) -> int:
    """A seed of its own for each part of a study, all following from the study's."""
    return int(digest([study.config.seed, *names])[:8], 16)


def model_stage(
    study: Study, name: str, models: dict[str, Stage], tokens: dict[str, Stage], tokenizer: Stage, sweep: Stage | None
) -> Stage:
    """The weights of one node of the graph."""
    config = study.config.model[name]
    if config.load is not None:
        return _load_stage(study, name, config, tokenizer)
    if config.merge is not None:
        return _merge_stage(study, name, models, tokenizer, sweep)
    return _train_stage(study, name, config, models, tokens, tokenizer)


def _train_stage(
    study: Study,
    name: str,
    config: ModelConfig,
    models: dict[str, Stage],
    tokens: dict[str, Stage],
    tokenizer: Stage,
) -> Stage:
    training = TrainingConfig.model_validate(
        (config.train or config).model_dump(include=set(TrainingConfig.model_fields))
    )
    scratch = config.train
    shares = study.shares(name)
    seed = seed_of(study, "model", name)
    settings = {"training": training.model_dump(), "shares": shares, "seed": seed}
    settings["lora"] = config.lora.model_dump() if config.lora else None
    settings["architecture"] = scratch.model_dump(exclude=set(TrainingConfig.model_fields)) if scratch else None
    inputs = {"tokenizer": tokenizer, **{f"tokens:{corpus}": tokens[corpus] for corpus in shares}}
    if config.parent:
        inputs["parent"] = models[config.parent]

    def make(work: Work) -> None:
        from heredity.lm.train import train_model

        sampler = BlockSampler(packs(work.group("tokens"), "train"), training.context_size, seed, shares)
        total = training.tokens or round(training.epochs * sampler.blocks_per_pass * training.context_size)
        loaded = tokenizer_of(work.inputs["tokenizer"])
        model = _fresh(scratch, loaded, training, seed) if scratch else load(work.inputs["parent"])
        lr = training.lr or (_SCRATCH_LR if scratch else _FINETUNE_LR)
        model = on_device(model)
        checkpoints = work.folder / "checkpoints"
        record = train_model(model, sampler, training, total, lr, seed, checkpoints, config.lora, work.progress)
        _finish(work, model, loaded, {"tokens": record.tokens, "steps": record.steps, "losses": record.losses})

    return Stage("model", name, settings, inputs, make)


def _fresh(scratch: ScratchConfig, tokenizer, training: TrainingConfig, seed: int):
    from heredity.lm.load import mistral_config, new_model

    context = max(2048, training.context_size)
    return new_model(mistral_config(scratch, len(tokenizer), context, tokenizer.eos_token_id), seed)


def _load_stage(study: Study, name: str, config: ModelConfig, tokenizer: Stage) -> Stage:
    path = study.root / str(config.load)
    source = str(path) if path.exists() else str(config.load)
    settings = {"load": source, "revision": config.revision, "trust_remote_code": config.trust_remote_code}

    def make(work: Work) -> None:
        from heredity.lm.load import load_model, state_hash
        from heredity.text.tokenizer import fingerprint_tokenizer, load_tokenizer

        model = load_model(source, config.revision, config.trust_remote_code)
        own = load_tokenizer(source, config.revision, config.trust_remote_code)
        shared = tokenizer_of(work.inputs["tokenizer"])
        if fingerprint_tokenizer(own) != fingerprint_tokenizer(shared):
            raise StudyError(
                f"{study.name}: model.{name}: the tokenizer of {source} differs from that of model "
                f"{study.starts[0]}; models of one study must read the same tokens "
                "(maps across tokenizers: heredity.stitch.aligned.aligned_texts)"
            )
        record = {"parameters": model.num_parameters(), "tokens": 0, "state": state_hash(model.state_dict())}
        write_json(work.folder / RECORD, {**record, "reference": settings})

    return Stage("model", name, {**settings, "content": _weights_digest(path)}, {"tokenizer": tokenizer}, make)


def _weights_digest(path: Path) -> str | None:
    from heredity.text.corpora import file_digest

    return file_digest(sorted([*path.glob("*.safetensors"), *path.glob("config.json")])) if path.is_dir() else None


def _merge_stage(study: Study, name: str, models: dict[str, Stage], tokenizer: Stage, sweep: Stage | None) -> Stage:
    merge = study.config.model[name].merge
    assert merge is not None
    settings = merge.model_dump(exclude={"sweep_points", "tolerance"})
    seed = seed_of(study, "merge", name)
    inputs = {"tokenizer": tokenizer, **{f"parent:{parent}": models[parent] for parent in merge.parents}}
    base = study.merge_base(name)
    if merge.method not in ("slerp", "linear") and base:
        inputs["base"] = models[base]
    if merge.t == "equilibrium" and sweep is not None:
        inputs["sweep"] = sweep

    def make(work: Work) -> None:
        from heredity.lm.load import load_model
        from heredity.lm.merge import merge_states
        from heredity.lm.recipe import merge_recipe, recipe_of

        t = equilibrium_of(study.name, name, work.inputs["sweep"]) if "sweep" in work.inputs else merge.t
        parents = work.group("parent")
        position = float(t) if sweep is not None else None
        if merge.method == "dare_linear" or merge.method == "dare_ties":
            folder, start = work.folder / "mergekit", work.inputs.get("base")
            names = [_reference(parents[parent]) for parent in merge.parents]
            recipe = recipe_of(merge.method, names, merge.weights, merge.density, _reference(start) if start else None)
            report = merge_recipe(recipe, folder, seed, f"{study.name}: model.{name}.merge")
            model = load_model(folder)
            shutil.rmtree(folder)
        else:
            states = [load(parents[parent]).state_dict() for parent in merge.parents]
            first = load(work.inputs["base"]).state_dict() if "base" in work.inputs else None
            merged, report = merge_states(states, merge.method, position, merge.weights, merge.density, first)
            model = load(parents[merge.parents[0]])
            model.load_state_dict(merged)
        write_json(work.folder / "merge.json", {"t": position, "tensors": [row._asdict() for row in report]})
        _finish(work, model, tokenizer_of(work.inputs["tokenizer"]), {"tokens": 0})

    return Stage("model", name, {**settings, "seed": seed}, inputs, make)


def equilibrium_of(study: str, name: str, sweep: Artifact) -> float:
    """The t that a sweep found. Raises `StudyError` where it is an end, since the merge would be a parent again."""
    found = sweep.json("sweep.json")
    t, parents = found["t"], (found["first"], found["second"])
    if t not in (0, 1):
        return t
    ends = [[found["points"][end]["accuracy"][parent] for end in (0, -1)] for parent in parents]
    told = " and ".join(
        f"{parent}'s goes from {own[0]:.1%} to {own[1]:.1%}" for parent, own in zip(parents, ends, strict=True)
    )
    raise StudyError(
        f'{study}: model.{name}.merge.t: "equilibrium" is where the parents\' accuracies cross, and these do not '
        f"between the two: {told}; nearest is t = {t:g}, which is {parents[int(t)]} itself. Give t, such as t = 0.5"
    )


def sweep_stage(study: Study, name: str, models: dict[str, Stage], tokens: dict[str, Stage]) -> Stage | None:
    """Accuracy of the merge on both parents' validation sets for every t; None for merges that have no t."""
    merge = study.config.model[name].merge
    if merge is None or len(merge.parents) != 2 or merge.weights is not None:
        return None
    corpora = {parent: _specialty(study, parent) for parent in merge.parents}
    used = {corpus for names in corpora.values() for corpus in names}
    training = _training(study, merge.parents[0])
    seed = seed_of(study, "sweep", name)
    settings = {
        **merge.model_dump(include={"method", "parents", "sweep_points", "tolerance"}),
        "corpora": corpora,
        "tokens": study.config.evaluation.tokens,
        "context_size": training.context_size,
        "precision": training.precision,
        "seed": seed,
    }
    inputs = {f"parent:{parent}": models[parent] for parent in merge.parents}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in sorted(used)}

    def make(work: Work) -> None:
        from heredity.lm.sweep import Bench, follow

        parents = [work.group("parent")[parent] for parent in merge.parents]
        size = (training.context_size, study.config.evaluation.tokens)
        opened = partial(_bench, parents, work.group("tokens"), corpora, merge.method, training.precision, *size)
        benches = work.shards.job(opened)
        result = follow(
            lambda places: benches.map(Bench.measure, places),
            merge.sweep_points,
            merge.tolerance,
            seed,
            corpora,
            work.progress,
        )
        points = [point._asdict() for point in result.points]
        write_json(work.folder / "sweep.json", {**result._asdict(), "points": points})

    return Stage("sweep", name, settings, inputs, make)


def _bench(
    parents: Sequence[Artifact],
    tokens: dict[str, Artifact],
    corpora: Mapping[str, Sequence[str]],
    method: Method,
    precision: Precision,
    context_size: int,
    limit: int,
) -> Bench:
    """The merge of two parents with their validation sets, in whichever process it is measured."""
    from heredity.lm.sweep import Bench

    validation = packs(tokens, "validation")
    blocks = {p: {c: _blocks(validation[c], context_size, limit) for c in names} for p, names in corpora.items()}
    first, second = (load(parent).state_dict() for parent in parents)
    return Bench(on_device(load(parents[0])), first, second, method, blocks, precision)


def quality_stage(study: Study, name: str, model: Stage, tokens: dict[str, Stage]) -> Stage:
    """Cross-entropy and next-token accuracy of a model on every corpus's validation set, beside the unigram's."""
    training = _training(study, name)
    size, limit = training.context_size, study.config.evaluation.tokens
    settings = {"context_size": size, "tokens": limit, "precision": training.precision}

    def make(work: Work) -> None:
        from heredity.lm.evaluate import evaluate, unigram_accuracy

        loaded = on_device(load(work.inputs["model"]))
        artifacts = work.group("tokens")
        train, rows = packs(artifacts, "train"), {}
        for done, (corpus, pack) in enumerate(packs(artifacts, "validation").items()):
            work.progress(done, len(artifacts))
            blocks = _blocks(pack, size, limit)
            found = evaluate(loaded, blocks, precision=training.precision)
            if not math.isfinite(found.ce_loss):
                raise StudyError(
                    f"{study.name}: model {name} predicts NaN or infinity on {corpus}; look for values that are not "
                    "finite in its weights"
                )
            unigram = unigram_accuracy(train[corpus].counts(loaded.config.vocab_size), blocks)
            rows[corpus] = {**found._asdict(), "unigram_accuracy": unigram}
            rows[corpus].pop("hits")
        write_json(work.folder / "quality.json", rows)

    inputs = {"model": model, **{f"tokens:{corpus}": stage for corpus, stage in tokens.items()}}
    return Stage("quality", name, settings, inputs, make)


def load(artifact: Artifact):
    """The model of a model artifact."""
    from heredity.lm.load import load_model

    reference = artifact.json(RECORD).get("reference")
    if reference:
        return load_model(reference["load"], reference["revision"], reference["trust_remote_code"])
    return load_model(str(artifact / "model"))


def _reference(artifact: Artifact) -> str:
    """The folder of a model artifact, or what it refers to, as mergekit writes it."""
    reference = artifact.json(RECORD).get("reference")
    if reference is None:
        return str(artifact / "model")
    return f"{reference['load']}@{reference['revision']}" if reference["revision"] else str(reference["load"])


def device() -> str:
    """Where the work is done: `cuda` if there is one, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    """This machine in words: figures of trained models differ in their digits between kinds of processors."""
    import torch

    from heredity.kernels.torch_forms import native_bfloat16

    if device() == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    low = "native bf16" if native_bfloat16() else "no native bf16"
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, {low}, {os.cpu_count()} processors, torch {torch.__version__}"


def on_device(model):
    """The model where the work is done, ready to be read; on a CPU this process keeps the memory of large buffers."""
    from heredity.kernels.processors import keep_large_buffers

    if device() == "cpu":
        keep_large_buffers()
    return model.to(device()).eval()


def _finish(work: Work, model, tokenizer, record: dict) -> None:
    from heredity.lm.load import save_model, state_hash

    model = model.to("cpu")
    save_model(model, tokenizer, work.folder / "model")
    shutil.rmtree(work.folder / "checkpoints", ignore_errors=True)
    write_json(
        work.folder / RECORD,
        {"parameters": model.num_parameters(), "state": state_hash(model.state_dict()), **record},
    )


def _training(study: Study, name: str) -> TrainingConfig:
    config = study.config.model[name]
    parents = study.parents[name]
    return config.train or (_training(study, parents[0]) if parents else config)


def _specialty(study: Study, name: str) -> tuple[str, ...]:
    """Corpora a parent of a merge is judged on: its own, or for a merged parent those of its parents."""
    own = study.own_corpora(name)
    return own or tuple(dict.fromkeys(corpus for parent in study.parents[name] for corpus in _specialty(study, parent)))


def _blocks(pack: PackedTokens, context_size: int, tokens: int) -> np.ndarray:
    count = min(pack.n_blocks(context_size), max(1, tokens // context_size))
    if count < 1:
        raise StudyError(f"a validation set holds fewer than {context_size} tokens; add text or lower context_size")
    return np.stack([pack.block(number, context_size) for number in range(count)]).astype(np.int64)
