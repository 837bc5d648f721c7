"""Language models: trained, fine-tuned, loaded, merged or made from a parent without training (quantized, pruned, an
adapter merged, weights edited); how well each predicts; where a merge serves both parents.

Accuracy and cross-entropy are measured on the validation split of each corpus, beside always predicting the corpus's
most frequent token (unigram). A merge of two parents is swept over t, from the first parent (t = 0) to the second
(t = 1); its equilibrium is the t where the accuracies on both parents' own corpora cross.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.analyses.analysis import (
    Analysis,
    Aside,
    Cost,
    Item,
    Needs,
    Passes,
    Results,
    Statement,
    Tables,
    rows_of,
    seed_of,
)
from heredity.analyses.direction_vectors import VECTOR, vector_need
from heredity.analyses.loaded import (
    adapter_note,
    content_digest,
    derived_file,
    model_folder,
    reader,
    tokenizers_differ,
    weights_digest,
)
from heredity.analyses.reading import (
    RECORD,
    folder_of,
    load,
    on_device,
    packs,
    tokenizer_of,
    validation_blocks,
)
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact, write_json
from heredity.study import (
    DERIVED,
    EditConfig,
    MergeConfig,
    Precision,
    PruneConfig,
    QuantizeConfig,
    ReadingConfig,
    ScratchConfig,
    Study,
    StudyError,
    TrainingConfig,
)
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.lm.sweep import Bench

_SCRATCH_LR, _FINETUNE_LR = 6e-4, 2e-5  # the paper's model cards
# Measured on two cores, from the parent's files to the child's.
_SECONDS_A_WEIGHT = {"load": 1e-8, "merge": 6e-8, "quantize": 4e-8, "prune": 4e-8, "adapter": 4e-8, "edit": 4e-8}
_SWEPT, _MEASURED = 11, 8  # points of t in a sweep that finds the crossing, and how many of them it usually measures
_DEFAULT_TOKENS = 10_000_000  # assumed for a model trained by epochs, whose corpora are not yet counted

MODELS = Table(
    "models",
    "Language models of the study.",
    ("model",),
    (
        Column("kind", "text", "How it came to be: train, finetune, load, merge, quantize, prune, adapter or edit."),
        Column("parents", "text", "Models it was made from."),
        Column("parameters", "count", "Parameters, tied ones counted once."),
        Column("tokens", "count", "Tokens it was trained on in this study; 0 if it was not trained here."),
        Column("tokenizer", "text", "How its own tokenizer differs from the study's; null where it does not."),
        Column("base", "text", "Where its adapter says that it was trained on another model than its parent."),
    ),
    brief=("model", "kind", "parents", "parameters", "tokens"),
)
MERGES = Table(
    "merges",
    "Models made from the weights of their parents.",
    ("model",),
    (
        Column("method", "text", "slerp, linear, task_arithmetic, ties, dare_linear or dare_ties."),
        Column("first", "text", "Parent at t = 0; all parents where there are not two."),
        Column("second", "text", "Parent at t = 1."),
        Column("t", "number", "Position between the two parents; null for methods that take weights.", ci=True),
        Column("crossed", "flag", "Whether the parents' accuracies cross; if not, t is where they come nearest."),
        Column("linear_fallback", "count", "Tensors interpolated linearly because their directions almost agree."),
        Column("weights", "text", "Weights of the parents, for methods that take them."),
    ),
    brief=("model", "method", "first", "second", "t", "crossed", "linear_fallback"),
)
MERGE_TENSORS = Table(
    "merge_tensors",
    "Each tensor of a merge: the angle between the parents and how it was combined.",
    ("model", "name"),
    (
        Column("name", "text", "Tensor."),
        Column("method", "text", "How it was combined."),
        Column("angle_degrees", "degrees", "Angle between the parents' tensors."),
        Column("cosine", "r", "Cosine of that angle."),
        Column("norm_ratio", "number", "Norm of the merged tensor over the mean of the parents'."),
        Column("norm_a", "number", "Norm in the first parent."),
        Column("norm_b", "number", "Norm in the second parent."),
    ),
)
SWEEPS = Table(
    "sweeps",
    "Merges along t: next-token prediction on the corpora of each parent.",
    ("model", "t", "parent"),
    (
        Column("t", "number", "0 is the first parent, 1 the second."),
        Column("parent", "text", "Parent whose corpora are predicted."),
        Column("accuracy", "share", "Share of next tokens predicted correctly.", ci=True),
        Column("ce_loss", "nats", "Cross-entropy per token."),
    ),
    plot=Plot("lines", x="t", y="accuracy", by="parent"),
)


class Training(NamedTuple):
    training: TrainingConfig
    shares: dict[str, float]
    seed: int
    lora: Any
    architecture: ScratchConfig | None
    """None for a fine-tune."""
    parents: tuple[str, ...]


class Loading(NamedTuple):
    load: str | None
    """Hub id; None for a folder, which its content identifies wherever it lies."""
    revision: str | None
    trust_remote_code: bool
    content: str | None
    folder: Aside
    place: Aside
    start: str
    parents: tuple[str, ...]
    reading: ReadingConfig


class Merging(NamedTuple):
    merge: MergeConfig
    place: Aside
    has_t: bool
    seed: int
    parents: tuple[str, ...]


class Deriving(NamedTuple):
    """How a model is made from its parent without training."""

    kind: str
    how: QuantizeConfig | PruneConfig | EditConfig | None
    """None for an adapter."""
    load: str | None
    """Hub id of an adapter; None for what lies here, which its content identifies."""
    content: str | None
    file: Aside
    base: Aside
    """What is to be said of the model that an adapter was trained on."""
    place: Aside
    seed: int
    parents: tuple[str, ...]


def model_items(study: Study) -> Iterable[Item]:
    return ({"model": name} for name in study.order)


def _settings(study: Study, item: Item) -> Training | Loading | Merging | Deriving:
    name = item["model"]
    config, parents, place = study.config.model[name], study.parents[name], f"{study.name}: model.{name}"
    if config.load is not None:
        folder, start, reading = model_folder(study, name), reader(study, name), study.config.reading
        content = study.identity(f"model.{name}.load", lambda: content_digest(folder) if folder else None)
        repository = None if content else config.load
        which = repository, config.revision, config.trust_remote_code, content
        return Loading(*which, Aside(folder), Aside(f"{place}.load"), start, parents, reading)
    if config.merge is not None:
        if config.merge.method.startswith("dare"):
            from heredity.lm.recipe import require_mergekit

            require_mergekit(f"{place}.merge.method")
        merge = config.merge.model_copy(update={"sweep_points": 2, "tolerance": 1.0})  # those of the sweep alone
        seed = seed_of(study, "merge", name)
        return Merging(merge, Aside(f"{place}.merge"), has_t(merge), seed, parents)
    if config.kind in DERIVED:
        return deriving(study, name)
    seed = seed_of(study, "model", name)
    return Training(training_settings(study, name), study.shares(name), seed, config.lora, config.train, parents)


def deriving(study: Study, name: str) -> Deriving:
    """How a model of one of the kinds `DERIVED` is made."""
    config, file = study.config.model[name], derived_file(study, name)
    key = f"{config.kind}.project_out" if config.edit and config.edit.project_out else config.kind
    how, repository, content, base, seed = getattr(config, config.kind), None, None, None, 0
    if config.adapter is not None:
        how, repository = None, None if file else config.adapter
        content, base = weights_digest(file) if file else None, adapter_note(study, name)
    elif config.edit is not None and config.edit.permute is not None:
        seed = seed_of(study, "permute", name)
    elif config.edit is not None:
        how, content = config.edit.model_copy(update={"project_out": "file"}), weights_digest(file) if file else None
    which = repository, content, Aside(file), Aside(base), Aside(f"{study.name}: model.{name}.{key}")
    return Deriving(config.kind, how, *which, seed, study.parents[name])


def training_settings(study: Study, name: str) -> TrainingConfig:
    """How a model is trained, without what else its table says."""
    config = study.config.model[name]
    return TrainingConfig.model_validate((config.train or config).model_dump(include=set(TrainingConfig.model_fields)))


def has_t(merge: MergeConfig) -> bool:
    """Whether a merge has a position between two parents."""
    return len(merge.parents) == 2 and merge.weights is None


def is_swept(merge: MergeConfig) -> bool:
    """Whether a merge is measured along t: to find it, or where the study asks for so many points."""
    return has_t(merge) and (merge.t == "equilibrium" or merge.sweep_points is not None)


def _needs(study: Study, item: Item) -> Needs:
    name = item["model"]
    config = study.config.model[name]
    needs: Needs = {"tokenizer": tokenizer_need(study, name)}
    if config.merge is not None:
        merge, base = config.merge, study.merge_base(name)
        needs["parent"] = models_needs(merge.parents)
        if merge.method not in ("slerp", "linear") and base:
            needs["base"] = ("model", {"model": base})
        if merge.t == "equilibrium" and has_t(merge):
            needs["sweep"] = ("sweep", item)
    elif config.load is None:
        if config.kind not in DERIVED:
            needs["tokens"] = tokens_needs(study.shares(name))
        if config.parent:
            needs["parent"] = ("model", {"model": config.parent})
        if config.edit and config.edit.direction is not None:
            needs["direction"] = vector_need(config.edit.direction)
    return needs


def models_needs(names: Iterable[str]) -> dict[str, Any]:
    """Models by name."""
    return {name: ("model", {"model": name}) for name in names}


def _run(work: Work, settings: Training | Loading | Merging | Deriving) -> Results:
    rows: dict[str, Any] = {"merges": [], "merge_tensors": []}
    match settings:
        case Loading():
            kind, record = "load", _load(work, settings)
        case Merging():
            kind, (record, rows["merges"], rows["merge_tensors"]) = "merge", _merge(work, settings)
        case Deriving():
            kind, record = settings.kind, _derive(work, settings)
        case Training():
            kind, record = "train" if settings.architecture else "finetune", train(work, settings)
    write_json(work.folder / RECORD, record)
    row = {"kind": kind, "parents": ", ".join(settings.parents)}
    return rows | {"models": [row | {key: record.get(key) for key in ("parameters", "tokens", "tokenizer", "base")}]}


def train(work: Work, settings: Training) -> dict[str, Any]:
    """Train a model, from scratch or from its parent, and save it; returns its record."""
    from heredity.lm.load import mistral_config, new_model
    from heredity.lm.train import train_model
    from heredity.text.tokens import BlockSampler

    training, scratch, seed = settings.training, settings.architecture, settings.seed
    sampler = BlockSampler(packs(work.inputs["tokens"], "train"), training.context_size, seed, settings.shares)
    total = training.tokens or round(training.epochs * sampler.blocks_per_pass * training.context_size)
    tokenizer = tokenizer_of(work.inputs["tokenizer"])
    if scratch:
        context = max(2048, training.context_size)
        model = new_model(mistral_config(scratch, len(tokenizer), context, tokenizer.eos_token_id), seed)
    else:
        model = load(work.inputs["parent"])
    lr = training.lr or (_SCRATCH_LR if scratch else _FINETUNE_LR)
    model, checkpoints = on_device(model), work.folder / "checkpoints"
    record = train_model(model, sampler, training, total, lr, seed, checkpoints, settings.lora, work.progress)
    saved = save(work, model, tokenizer, record.tokens)
    return saved | {"steps": record.steps, "losses": record.losses}


def _load(work: Work, settings: Loading) -> dict[str, Any]:
    from heredity.lm.checkpoint import located, tokenizer_place
    from heredity.lm.load import load_model, state_hash
    from heredity.lm.reading import Reading, prefix_of
    from heredity.text.tokens import load_tokenizer
    from heredity.text.vocabularies import check_rows, difference, notes

    name, trusted = str(settings.folder.value or settings.load), settings.trust_remote_code
    source = located(name, settings.revision, trusted)
    here = source.folder / (source.gguf or "")
    model, shared = load_model(here, None, trusted), tokenizer_of(work.inputs["tokenizer"])
    tokenizer, rules = load_tokenizer(tokenizer_place(here), None, trusted), settings.reading
    if apart := difference(shared, tokenizer):
        raise StudyError(f"{settings.place}: {tokenizers_differ(name, settings.start, apart)}")
    check_rows(shared, model.get_input_embeddings().num_embeddings, name)  # pyright: ignore[reportArgumentType]
    try:  # by the tokenizer of the start, whose ids all models of the study read
        reading = Reading(prefix_of(shared, rules.prefix), rules.skip_positions, rules.outliers)
    except ValueError as error:
        raise StudyError(f"{settings.place}: {error}") from None
    reference = {"load": settings.load, "revision": source.commit, "trust_remote_code": trusted}
    if settings.folder.value:
        beside = os.path.relpath(settings.folder.value, work.folder.parent)
        reference |= {"content": settings.content, "folder": name, "beside": beside}
    record = {"parameters": model.num_parameters(), "tokens": 0, "state": state_hash(model.state_dict())}
    record |= {"reference": reference, "tokenizer": "; ".join(notes(shared, tokenizer)) or None}
    return record | {"reading": reading._asdict()}


def _derive(work: Work, settings: Deriving) -> dict[str, Any]:
    try:
        if "direction" in work.inputs:
            settings = settings._replace(file=Aside(work.inputs["direction"] / VECTOR))
        model = _derived(load(work.inputs["parent"]), settings)
    except ValueError as error:
        raise StudyError(f"{settings.place}: {error}") from None
    return save(work, model, tokenizer_of(work.inputs["tokenizer"]), 0) | {"base": settings.base.value}


def _derived(model: Any, settings: Deriving) -> Any:
    """What is made of a parent, which is changed or copied. Raises ValueError for what does not fit it."""
    from heredity.features.direction_files import read_direction
    from heredity.lm.checkpoint import located
    from heredity.lm.load import merge_adapter
    from heredity.lm.prune import prune
    from heredity.lm.quantize import quantize
    from heredity.synthetic.surgery import permuted, projected

    match settings.how:
        case QuantizeConfig() as how:
            quantize(model, how)
        case PruneConfig() as how:
            prune(model, how)
        case EditConfig(permute=str(which)):
            layer = which.split(".")[1]
            return permuted(model, settings.seed, None if layer == "*" else [int(layer)])
        case EditConfig() as how:
            d = model.get_input_embeddings().embedding_dim
            direction = read_direction(settings.file.value, d, how.tensor).vector
            return projected(model, direction[None], how.scale, how.layers)
        case None:
            return merge_adapter(model, located(str(settings.file.value or settings.load)), settings.parents[0])
    return model


def _merge(work: Work, settings: Merging) -> tuple[dict[str, Any], list[Any], list[Any]]:
    from heredity.lm.folders import merge_weights
    from heredity.lm.merge import Mixing
    from heredity.lm.recipe import merge_recipe, recipe_of

    merge, parents, base = settings.merge, work.inputs["parent"], work.inputs.get("base")
    sweep = work.inputs["sweep"].json("sweep.json") if "sweep" in work.inputs else None
    t = _equilibrium(f"{settings.place}.t", sweep) if sweep else float(merge.t) if settings.has_t else None
    names, folder = [folder_of(parents[parent]) for parent in merge.parents], work.folder / "model"
    start, trusted = folder_of(base) if base else None, any(map(code_trusted, parents.values()))
    if merge.method == "dare_linear" or merge.method == "dare_ties":
        recipe = recipe_of(merge.method, names, merge.weights, merge.density, start)
        report = merge_recipe(recipe, folder, settings.seed, settings.place.value, trusted, own_type=True)
    else:
        mixing = Mixing(merge.method, len(names), t, merge.weights, merge.density)
        report = merge_weights(names, folder, mixing, start, trust_remote_code=trusted)
    tensors = [row._asdict() for row in report]
    low, high = sweep["interval"] if sweep else (None, None)
    row = {
        "method": merge.method,
        "first": merge.parents[0] if len(merge.parents) == 2 else ", ".join(merge.parents),
        "second": merge.parents[1] if len(merge.parents) == 2 else None,
        "t": t,
        "t_low": low,
        "t_high": high,
        "crossed": sweep["crossed"] if sweep else None,
        "linear_fallback": sum(tensor["method"] == "linear" for tensor in tensors) if merge.method == "slerp" else 0,
        "weights": ", ".join(map(str, merge.weights)) if merge.weights else None,
    }
    reading = parents[merge.parents[0]].json(RECORD).get("reading", {})
    return _kept(work, folder, reading, trusted), [row], tensors


def code_trusted(artifact: Artifact) -> bool:
    """Whether the study says that the code of a loaded model may be run."""
    return bool((artifact.json(RECORD).get("reference") or {}).get("trust_remote_code"))


def _kept(work: Work, folder: Path, reading: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    """The record of a model that lies in its place already; its tokenizer becomes the study's."""
    from heredity.lm.load import for_older_releases, load_model, state_hash

    tokenizer_of(work.inputs["tokenizer"]).save_pretrained(folder)
    for_older_releases(folder)
    model = load_model(folder, None, trust_remote_code)
    record = {"parameters": model.num_parameters(), "tokens": 0, "state": state_hash(model.state_dict())}
    return record | {"reading": reading}


def save(work: Work, model: Any, tokenizer: Any, tokens: int) -> dict[str, Any]:
    """Save a model in place of its checkpoints; returns its record."""
    from heredity.lm.load import save_model, state_hash
    from heredity.lm.reading import reading_of

    model = model.to("cpu")
    save_model(model, tokenizer, work.folder / "model")
    shutil.rmtree(work.folder / "checkpoints", ignore_errors=True)
    record = {"parameters": model.num_parameters(), "tokens": tokens, "state": state_hash(model.state_dict())}
    return record | {"reading": reading_of(model)._asdict()}


def _equilibrium(place: str, sweep: Mapping[str, Any]) -> float:
    """The t that a sweep found. Raises StudyError where it is an end, since the merge would be a parent again."""
    t, parents = sweep["t"], (sweep["first"], sweep["second"])
    if t not in (0, 1):
        return t
    ends = [[sweep["points"][end]["accuracy"][parent] for end in (0, -1)] for parent in parents]
    curves = " and ".join(
        f"{parent}'s goes from {first:.1%} to {last:.1%}" for parent, (first, last) in zip(parents, ends, strict=True)
    )
    raise StudyError(
        f'{place}: "equilibrium" is where the parents\' accuracies cross, and these do not between the two: {curves}; '
        f"nearest is t = {t:g}, which is {parents[int(t)]} itself. Give t, such as t = 0.5"
    )


def _reseeded(study: Study, item: Item) -> bool:
    model = study.config.model[item["model"]]
    # Of the merges only dare draws at random; the others differ as their parents do.
    return model.kind == "finetune" or (model.merge is not None and model.merge.method.startswith("dare"))


def training_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    """Cost of making a model: of training it, or of reading, changing and writing its weights."""
    model = study.config.model[item["model"]]
    weights = shapes.parameters(item["model"])
    if model.kind not in ("train", "finetune"):
        copies = {"merge": 4, "edit": 2}.get(model.kind, 1)
        return Cost(gib=4 * copies * weights / 2**30, seconds=_SECONDS_A_WEIGHT.get(model.kind, 0.0) * weights)
    training: TrainingConfig = model.train or model
    tokens = training.tokens or round(_DEFAULT_TOKENS * training.epochs)
    logits = training.batch_size * training.context_size * study.config.tokenizer.vocab_size * 12
    kept = training.batch_size * training.context_size * shapes.kept_in_training(item["model"])
    gib = (16 * weights + 4 * kept + logits) / 2**30
    return Cost(tokens, gib=gib, passes=Passes(6 * weights * tokens, training.precision, True))


def _say(tables: Tables) -> Iterable[Statement]:
    how = {
        True: ", where it predicts the text of both parents equally well",
        False: "; the parents' accuracies never cross, so this is where they come nearest",
        None: "",
    }
    for row in rows_of(tables, "models"):
        if row["tokenizer"]:
            text = f"the tokenizer of {row['model']} gives the ids of the study's to all text, with these differences: "
            yield Statement(row["model"], "note", f"{text}{row['tokenizer']}.")
        if row["base"]:
            yield Statement(row["model"], "note", f"the adapter of {row['model']} {row['base']}.")
    for row in rows_of(tables, "merges"):
        model, first, second, t = (row[name] for name in ("model", "first", "second", "t"))
        of, evidence = "", []
        if t is not None:
            of = f" of {1 - t:.0%} {first} / {t:.0%} {second}".replace("%", " %") + how[row["crossed"]]
            evidence.append(f"t = {t:.3f} from {first} (0) to {second} (1)")
            if row["t_low"] is not None:
                evidence.append(f"95 % CI {row['t_low']:.3f}–{row['t_high']:.3f}, bootstrap over validation blocks")
            if row["linear_fallback"]:
                evidence.append(f"{row['linear_fallback']:,} tensors interpolated linearly")
        yield Statement(model, "merge", f"{model} is a {row['method']} merge{of}.", tuple(evidence))


class SweepSettings(NamedTuple):
    method: str
    parents: tuple[str, ...]
    points: int
    tolerance: float
    corpora: dict[str, tuple[str, ...]]
    """Corpora that each parent is judged on."""
    tokens: int
    context_size: int
    precision: Precision
    adaptive: bool
    seed: int


def training_of(study: Study, name: str) -> TrainingConfig:
    """Training settings of a model, or of the nearest ancestor that has some."""
    config, parents = study.config.model[name], study.parents[name]
    return config.train or (training_of(study, parents[0]) if parents else config)


def specialty(study: Study, name: str) -> tuple[str, ...]:
    """Corpora a parent of a merge is judged on: its own, or for a merged parent those of its parents."""
    corpora = study.own_corpora(name)
    return corpora or tuple(dict.fromkeys(c for parent in study.parents[name] for c in specialty(study, parent)))


def _sweep_settings(study: Study, item: Item) -> SweepSettings:
    merge: Any = study.config.model[item["model"]].merge
    training = training_of(study, merge.parents[0])
    return SweepSettings(
        merge.method,
        merge.parents,
        merge.sweep_points or _SWEPT,
        merge.tolerance,
        {parent: specialty(study, parent) for parent in merge.parents},
        study.config.evaluation.tokens,
        training.context_size,
        training.precision,
        merge.sweep_points is None,
        seed_of(study, "sweep", item["model"]),
    )


def _sweep_needs(study: Study, item: Item) -> Needs:
    parents = study.parents[item["model"]]
    corpora = sorted({corpus for parent in parents for corpus in specialty(study, parent)})
    return {"parent": models_needs(parents), "tokens": tokens_needs(corpora)}


def _sweep(work: Work, settings: SweepSettings) -> Results:
    from heredity.lm.sweep import Bench, follow

    parents = [work.inputs["parent"][parent] for parent in settings.parents]
    benches = work.shards.job(partial(_bench, parents, work.inputs["tokens"], settings))
    figures = settings.points, settings.tolerance, settings.seed, settings.corpora
    result = follow(lambda places: benches.map(Bench.measure, places), *figures, work.progress, settings.adaptive)
    points = [point._asdict() for point in result.points]
    write_json(work.folder / "sweep.json", {**result._asdict(), "points": points})
    rows = [
        {
            "t": point.t,
            "parent": parent,
            "accuracy": accuracy,
            "accuracy_low": point.interval[parent][0],
            "accuracy_high": point.interval[parent][1],
            "ce_loss": point.ce_loss[parent],
        }
        for point in result.points
        for parent, accuracy in point.accuracy.items()
    ]
    return {"sweeps": rows}


def _bench(parents: Sequence[Artifact], tokens: Mapping[str, Artifact], settings: SweepSettings) -> Bench:
    """The merge of two parents with their validation sets, in whichever process it is measured."""
    from heredity.lm.sweep import Bench

    packed, size = packs(tokens, "validation"), (settings.context_size, settings.tokens)
    blocks = {
        parent: {corpus: validation_blocks(packed[corpus], *size) for corpus in names}
        for parent, names in settings.corpora.items()
    }
    first, second = (load(parent).state_dict() for parent in parents)
    method: Any = settings.method
    return Bench(on_device(load(parents[0])), first, second, method, blocks, settings.precision)


def evaluation_cost(passes: int, study: Study, item: Item, shapes: Shapes) -> Cost:
    """Cost of passes over the tokens that a model is evaluated on."""
    weights = shapes.parameters(item["model"])
    tokens, precision = passes * study.config.evaluation.tokens, training_of(study, item["model"]).precision
    gib = shapes.read_gib(item["model"]) + shapes.logits_gib(item["model"])
    return Cost(tokens, gib=gib, passes=Passes(2 * weights * tokens, precision))


def _sweep_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    merge: Any = study.config.model[item["model"]].merge
    cost = evaluation_cost(2 * ((merge.sweep_points or _MEASURED) + 8), study, item, shapes)
    return cost._replace(gib=cost.gib + shapes.read_gib(*merge.parents))


SWEEP = Analysis(
    kind="sweep",
    version=1,
    title="Merges along t",
    items=lambda study: (
        {"model": name} for name in study.order if (merge := study.config.model[name].merge) and is_swept(merge)
    ),
    settings=_sweep_settings,
    needs=_sweep_needs,
    run=_sweep,
    tables=(SWEEPS,),
    cost=_sweep_cost,
)
MODEL = Analysis(
    kind="model",
    version=3,
    title="Models",
    items=model_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(MODELS, MERGES, MERGE_TENSORS),
    cost=training_cost,
    say=_say,
    reseeded=_reseeded,
)
