"""What a study will do before it does it: models, edges, traces, stages, and an estimate of tokens, FLOPs, memory and
time. The estimate counts the matrix products that cannot be avoided and divides by this machine's measured rate."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

from heredity.engine.store import Store
from heredity.study import RANKED, Config, ScratchConfig, Study, StudyError, TrainingConfig

# Share of the measured matrix rate that each kind of stage reaches on two cores, from runs of the built-in study.
_EFFICIENCY = {"model": 0.8, "sweep": 0.9, "quality": 0.8, "sae": 0.6, "match": 0.5, "shift": 0.5}
_EFFICIENCY |= {"newness": 0.6, "other": 0.35}
_PROCESS_GIB = 0.7  # Python, torch and transformers, loaded
_BUFFERED = 2 * 16  # batches of activations that a stream holds: one group, and the group as it is put together
_L0 = 32  # active features assumed for a relu SAE, the middle of the paper's range
_DEFAULT_TOKENS = 10_000_000  # assumed for a model trained by epochs, whose corpora are not yet counted


class PlannedModel(Config):
    """One node of the graph."""

    name: str
    """Its name."""
    kind: str
    """train, finetune, load or merge."""
    parents: tuple[str, ...]
    """Its parents."""
    trace: tuple[str, ...]
    """Corpora it and its ancestors read."""
    parameters: int | None
    """Number of weights; None for a model that is not on this disk."""


class PlannedEdge(Config):
    """One parent -> child step."""

    parent: str
    """Parent."""
    child: str
    """Child."""
    common_trace: tuple[str, ...]
    """Corpora their features are compared on."""


class PlannedStage(Config):
    """One stage and what it costs."""

    stage: str
    """`kind/name`."""
    cached: bool
    """Done already."""
    tokens: int
    """Tokens it reads."""
    flops: float
    """Floating-point operations of its matrix products."""
    memory_gib: float
    """Memory of its largest buffers."""
    seconds: float
    """Estimate on this machine; 0 when done already."""


class Plan(Config):
    """All of it."""

    study: str
    """Name of the study."""
    hook_point: str
    """Where activations are read."""
    d_in: int | None
    """Width there; None when only the weights can tell."""
    models: tuple[PlannedModel, ...]
    """Nodes."""
    edges: tuple[PlannedEdge, ...]
    """Edges."""
    stages: tuple[PlannedStage, ...]
    """Work, in order."""
    tokens: int
    """Tokens of what is not done."""
    flops: float
    """FLOPs of what is not done."""
    memory_gib: float
    """Largest stage."""
    seconds: float
    """Estimate for what is not done."""
    rate: float
    """Measured float32 matrix rate of this machine, FLOP/s."""


def check_hook_point(study: Study) -> dict[str, int | None]:
    """Width of the hook point in every model, as far as the study and local folders tell.

    Raises StudyError when a model does not have the hook point, or when the widths along an edge differ.
    """
    from heredity.lm.hooks import HookPointError, width

    widths: dict[str, int | None] = {}
    for name in study.order:
        shape = _shape(study, name) if study.inits and name in study.followed else None
        try:
            widths[name] = width(shape, study.config.hook_point) if shape else None
        except HookPointError as error:
            raise StudyError(f"{study.name}: hook_point: {error} (model {name})") from None
    for name, d_in in widths.items():
        if d_in is not None:
            _check_sae(study, name, d_in)
    for edge in study.edges:
        parent, child = widths[edge.parent], widths[edge.child]
        if parent is not None and child is not None and parent != child:
            raise StudyError(
                f"{study.name}: edge {edge.name}: {study.config.hook_point} is {parent} wide in the parent and {child} "
                "in the child; features are matched at one width, use a stitch between models of different size"
            )
    return widths


def _check_sae(study: Study, name: str, d_in: int) -> None:
    sae = study.config.sae
    d_sae = sae.expansion * d_in
    if sae.activation in RANKED and sae.k > d_sae:
        raise StudyError(f"{study.name}: sae.k: {sae.k} is more than the {d_sae} features of {name}'s SAE; lower it")
    if sae.activation not in RANKED and sae.l0[1] > d_sae:
        raise StudyError(
            f"{study.name}: sae.l0: {sae.l0[1]:g} is more than the {d_sae} features of {name}'s SAE; lower it"
        )


def plan(study: Study, store: Store) -> Plan:
    """Everything `heredity check` shows."""
    from heredity.stages import stages_of

    stages = stages_of(study)
    widths = check_hook_point(study)
    rate = _measured_rate()
    rows = []
    for stage in stages:
        tokens, flops, memory = _cost(study, stage.kind, stage.name, widths)
        cached = (store.path(stage.kind, stage.name, stage.key) / "manifest.json").exists()
        seconds = 0.0 if cached else 1.0 + flops / (rate * _EFFICIENCY.get(stage.kind, _EFFICIENCY["other"]))
        rows.append(
            PlannedStage(
                stage=stage.label,
                cached=cached,
                tokens=tokens,
                flops=flops,
                memory_gib=memory,
                seconds=round(seconds, 1),
            )
        )
    left = [row for row in rows if not row.cached]
    return Plan(
        study=study.name,
        hook_point=study.config.hook_point,
        d_in=widths[(study.followed or study.order)[0]],
        models=tuple(_planned(study, name) for name in study.order),
        edges=tuple(
            PlannedEdge(parent=edge.parent, child=edge.child, common_trace=study.common_trace(edge))
            for edge in study.edges
        ),
        stages=tuple(rows),
        tokens=sum(row.tokens for row in left),
        flops=sum(row.flops for row in left),
        memory_gib=max((row.memory_gib for row in left), default=0.0),
        seconds=round(sum(row.seconds for row in left), 1),
        rate=rate,
    )


def _planned(study: Study, name: str) -> PlannedModel:
    shape = _shape(study, name)
    return PlannedModel(
        name=name,
        kind=study.config.model[name].kind,
        parents=study.parents[name],
        trace=study.trace(name),
        parameters=_parameters(shape) if shape else None,
    )


def _shape(study: Study, name: str) -> SimpleNamespace | None:
    """The model's shape under Hugging Face's names, from the study or a local config.json."""
    model = study.config.model[name]
    if model.train:
        return _mistral_shape(model.train, study.config.tokenizer.vocab_size)
    if model.load:
        path = study.root / model.load / "config.json"
        return SimpleNamespace(**json.loads(path.read_text())) if path.is_file() else None
    return _shape(study, study.parents[name][0])


def _mistral_shape(config: ScratchConfig, vocab_size: int) -> SimpleNamespace:
    return SimpleNamespace(
        model_type="mistral",
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.d_model // config.n_heads,
        vocab_size=vocab_size,
        tie_word_embeddings=config.tie_embeddings,
    )


def _parameters(shape: SimpleNamespace) -> int:
    """Weights of a gated decoder of this shape; an approximation for other families."""
    d = getattr(shape, "hidden_size", None) or getattr(shape, "n_embd", 0)
    layers = getattr(shape, "num_hidden_layers", None) or getattr(shape, "n_layer", 0)
    d_mlp = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * d
    heads = getattr(shape, "num_attention_heads", None) or getattr(shape, "n_head", 1)
    head = getattr(shape, "head_dim", None) or d // heads
    kv = getattr(shape, "num_key_value_heads", None) or heads
    attention = 2 * d * heads * head + 2 * d * kv * head
    embeddings = shape.vocab_size * d * (1 if getattr(shape, "tie_word_embeddings", False) else 2)
    return layers * (attention + 3 * d * d_mlp + 2 * d) + embeddings + d


def _cost(study: Study, kind: str, name: str, widths: dict[str, int | None]) -> tuple[int, float, float]:
    """Tokens, FLOPs and GiB of a stage."""
    config = study.config
    if (kind, name) == ("sae", "joint"):
        rows = [_cost(study, kind, f"{model}-scratch", widths) for model in study.followed]
        return sum(row[0] for row in rows), sum(row[1] for row in rows), max(row[2] for row in rows)
    model = max((m for m in study.order if name == m or name.startswith((f"{m}-", f"{m}->"))), key=len, default=None)
    if model is None:
        return 0, 0.0, _PROCESS_GIB
    shape = _shape(study, model)
    weights = float(_parameters(shape)) if shape else 0.0
    if kind == "model" and config.model[model].kind in ("train", "finetune"):
        training: TrainingConfig = config.model[model].train or config.model[model]
        tokens = training.tokens or round(_DEFAULT_TOKENS * training.epochs)
        logits = training.batch_size * training.context_size * config.tokenizer.vocab_size * 12
        return tokens, 6 * weights * tokens, _PROCESS_GIB + (16 * weights + logits) / 2**30
    if kind in ("sweep", "quality"):
        merge = config.model[model].merge
        passes = len(config.corpus) if kind == "quality" else 2 * (merge.sweep_points + 8) if merge else 1
        tokens = passes * config.evaluation.tokens
        return tokens, 2 * weights * tokens, _PROCESS_GIB + 8 * weights / 2**30
    d_in = widths[model] or 1024
    d_sae = config.sae.expansion * d_in
    if kind == "sae":
        scratch = name.endswith(("-scratch", "-independent"))
        tokens = config.sae.tokens if scratch else config.sae.continue_tokens or config.sae.tokens
        stream = _BUFFERED * config.sae.batch_blocks * config.sae.context_size * 4 * d_in
        memory = _PROCESS_GIB + (32 * d_in * d_sae + 8 * weights + stream) / 2**30
        return tokens, tokens * (2 * d_in * d_sae + 2 * weights), memory
    encode = 2 * d_in * d_sae + 2 * weights
    l0 = config.sae.k if config.sae.activation in RANKED else _L0
    if kind == "newness":
        count = 2 * config.controls.newness
        memory = _PROCESS_GIB + (24 * d_in * d_sae + 8 * weights) / 2**30
        return count, count * (encode + 8 * l0 * d_in) + _effects(count // 2, weights), memory
    tokens = {
        "match": 2 * config.lineage.tokens,
        "shift": 2 * config.lineage.tokens,
        "acts": config.report.tokens,
        "sae_quality": config.sae.evaluation_tokens,
    }
    count = tokens.get(kind, 0)
    # A shift matches the features of one SAE with those of four.
    pairs = {"match": 2, "shift": 8}.get(kind, 0) * config.lineage.tokens * l0**2
    return count, count * encode + pairs, _PROCESS_GIB + (count * l0 * 24 + 16 * d_in * d_sae) / 2**30


def _effects(tokens: int, weights: float) -> float:
    """FLOPs of attributions, forward and back in both models, and of ten passes that move features."""
    from heredity.stages.newness import ATTRIBUTED, SPLICED

    return weights * (12 * min(tokens, ATTRIBUTED) + 20 * min(tokens, SPLICED))


def _measured_rate() -> float:
    """Float32 matrix products, FLOP/s: the best of three of the kind an SAE does."""
    import torch

    x, w = torch.randn(2048, 512), torch.randn(512, 2048)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(x, w)
        best = max(best, 2 * 2048 * 512 * 2048 / (time.perf_counter() - start))
    return best
