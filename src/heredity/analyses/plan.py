"""What a study will do before it does it: shapes of its models, what cannot work, and an estimate of the work.

The estimate counts the matrix products that cannot be avoided and divides by this machine's measured rate.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.analyses.held import BUDGET
from heredity.analyses.loaded import (
    adapter_note,
    base_source,
    check_loaded,
    derived_file,
    model_folder,
    refuse_missing,
)
from heredity.analyses.pretrained import KEYS, check_pretrained
from heredity.study import RANKED, Precision, ScratchConfig, StitchConfig, Study, StudyError
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.analyses import Pipeline
    from heredity.analyses.analysis import Cost
    from heredity.engine.store import Store

_REACHED = {("float32", False): 1.0, ("float32", True): 0.72, ("bf16", False): 0.7, ("bf16", True): 0.53}
"""Share of the measured rate that passes of language models reach, by precision and whether they train."""
# SAEs of the recorded runs had 12 to 23 % of their features in common with another seed's after 130 vectors per feature
# (SmolLM2-135M), 33 to 44 % after 440 and more (the tracking study), and 58 to 66 % after 537 (the demo). Below 30 %
# every run notes that they are too few to speak for the model.
_FEW_VECTORS = 130
PROCESS_GIB = 0.7  # Python, torch and transformers, loaded

PLAN_MODELS = Table(
    "plan_models",
    "Models of the study.",
    ("model",),
    (
        Column("kind", "text", "How it comes to be: train, finetune, load, merge, quantize, prune, adapter or edit."),
        Column("parents", "text", "Its parents."),
        Column("trace", "text", "Corpora it and its ancestors read."),
        Column("parameters", "count", "Number of weights; unknown for a model that is not on this disk."),
    ),
    brief=("model", "kind", "parents", "trace", "parameters"),
)
PLAN_EDGES = Table(
    "plan_edges",
    "Edges of the study.",
    ("edge",),
    (Column("common_trace", "text", "Corpora that features are compared on."),),
    brief=("edge", "common_trace"),
)
PLAN_STAGES = Table(
    "plan_stages",
    "Work, in order.",
    ("stage",),
    (
        Column("stage", "text", "kind/name."),
        Column("cached", "flag", "Done already."),
        Column("tokens", "count", "Tokens it reads."),
        Column("flops", "flops", "Floating-point operations of its matrix products."),
        Column("memory_gib", "number", "Estimate of GiB of memory at most."),
        Column("seconds", "seconds", "Estimate on this machine."),
        Column("took_gib", "number", "GiB that it took at most, where it is done."),
        Column("took", "seconds", "Seconds that it took, where it is done."),
    ),
    brief=("stage", "tokens", "flops", "memory_gib", "took_gib", "seconds", "took"),
)


class Shapes:
    """Sizes of a study's models, as far as the study and local folders say."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._shapes: dict[str, SimpleNamespace | None] = {}

    def shape(self, model: str) -> SimpleNamespace | None:
        """A model's shape under Hugging Face's names; None where only its weights say it."""
        if model not in self._shapes:
            self._shapes[model] = self._read(model)
        return self._shapes[model]

    def _read(self, name: str) -> SimpleNamespace | None:
        model = self.study.config.model[name]
        if model.train:
            return _mistral_shape(model.train, self.study.config.tokenizer.vocab_size)
        if model.load:
            path = model_folder(self.study, name)
            return _local_shape(self.study, name, path) if path else None
        return self.shape(self.study.parents[name][0])

    def parameters(self, model: str) -> int:
        """Weights of a gated decoder of this shape, an approximation for other families; 0 where it is unknown."""
        shape = self.shape(model)
        return _parameters(shape) if shape else 0

    def d_model(self, model: str) -> int:
        """Width of the residual stream; 1024 is assumed where it is unknown."""
        return _d_model(self.shape(model)) or 1024

    def width(self, model: str, site: str) -> int:
        """Width of a site; 1024 is assumed where it is unknown."""
        return self.widths.get((model, site)) or 1024

    def passed(self, model: str, *sites: str) -> float:
        """Weights that a pass multiplies that ends at the last of some sites; an embedding multiplies nothing."""
        from heredity.lm.hooks import depth

        shape = self.shape(model)
        if shape is None:
            return 0.0
        layers, run = self.layers(model), max(map(depth, sites))
        return _in_layers(shape) * min(run, layers) / layers

    def kept_in_training(self, model: str) -> float:
        """Numbers that a training keeps for the gradients of one token, with their copies in the type of products; as
        measured on Llama-like models."""
        shape = self.shape(model)
        if shape is None:
            return 0.0
        return self.layers(model) * (10 * _d_model(shape) + 5 * _d_mlp(shape))

    def read_gib(self, *models: str) -> float:
        """Memory of models that are open beside each other: their files, mapped while they are read, and their weights
        in float32."""
        return sum(4 * self.parameters(model) + self._file_bytes(model) for model in models) / 2**30

    def _file_bytes(self, model: str) -> int:
        """Bytes of a model's weights on disk: as they lie there, or in float32, as ours are written."""
        config = self.study.config.model[model]
        folder = model_folder(self.study, model) if config.load else None
        files = list(folder.glob("*.safetensors")) if folder and folder.is_dir() else []
        return sum(file.stat().st_size for file in files) or 4 * self.parameters(model)

    def logits_gib(self, *models: str) -> float:
        """Memory of the logits that are held at once while one of these models predicts."""
        import torch

        from heredity.lm.evaluate import chunk_rows

        cpu = torch.device("cpu")
        words = [shape.vocab_size for one in models if (shape := self.shape(one))]
        return max((14 * chunk_rows(size, cpu) * size for size in words), default=0.0) / 2**30

    def sae_gib(self, model: str, site: str, tokens: int) -> float:
        """Memory of a stage that reads so many tokens in a model and encodes them with the study's SAE."""
        d_in = self.width(model, site)
        k = self.study.config.sae.k if self.study.config.sae.activation in RANKED else 32
        encoded = tokens * k * 24 + 16 * d_in * d_in * self.study.config.sae.expansion
        return encoded / 2**30 + self.read_gib(model)

    def held_gib(self, model: str, tokens: int, readings: int) -> float:
        """Memory of so many readings of the same tokens, at all sites, that are held for the edges to come."""
        each = 4 * tokens * sum(self.width(model, site) for site in self.study.sites)
        return min(BUDGET, readings * each) / 2**30

    def whole(self, model: str) -> float:
        """Weights that a pass through the model multiplies, its head included."""
        shape = self.shape(model)
        tied = getattr(shape, "tie_word_embeddings", False)
        return _parameters(shape) - (0.0 if tied else self._head(model)) if shape else 0.0

    def _head(self, model: str) -> float:
        return float(self.shape(model).vocab_size * self.d_model(model)) if self.shape(model) else 0.0  # type: ignore[union-attr]

    def layers(self, model: str) -> int:
        """Number of blocks; 1 where it is unknown."""
        shape = self.shape(model)
        return getattr(shape, "num_hidden_layers", None) or getattr(shape, "n_layer", 1)

    @cached_property
    def widths(self) -> dict[tuple[str, str], int | None]:
        """Width of every site in every model, by model and site; None where only the weights say it.

        Raises StudyError when a model does not have a site.
        """
        from heredity.lm.hooks import HookPointError, width

        study, widths = self.study, dict[tuple[str, str], int | None]()
        for name, site in itertools.product(study.order, study.sites):
            shape = self.shape(name) if study.instruments and name in study.followed else None
            try:
                widths[name, site] = width(shape, site) if shape else None
            except HookPointError as error:
                raise StudyError(f"{study.name}: hook_point: {error} (model {name})") from None
        return widths


def _local_shape(study: Study, name: str, path: Path) -> Any:
    """The configuration of a local model, that of the text where it reads more than text; None where it is not here."""
    from heredity.lm.checkpoint import ModelError, Source
    from heredity.lm.load import config_of

    try:
        source = base_source(Source(str(path), path) if path.is_dir() else Source(str(path), path.parent, path.name))
        return config_of(source, study.config.model[name].trust_remote_code).get_text_config() if source else None
    except ModelError as error:
        raise StudyError(f"{study.name}: model.{name}.load: {error}") from None


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


def _d_model(shape: Any) -> int:
    return getattr(shape, "hidden_size", None) or getattr(shape, "n_embd", 0) or 0


def _parameters(shape: SimpleNamespace) -> int:
    d = _d_model(shape)
    embeddings = shape.vocab_size * d * (1 if getattr(shape, "tie_word_embeddings", False) else 2)
    return _in_layers(shape) + embeddings + d


def _in_layers(shape: SimpleNamespace) -> int:
    """Weights of all layers."""
    d = _d_model(shape)
    layers = getattr(shape, "num_hidden_layers", None) or getattr(shape, "n_layer", 0)
    heads = getattr(shape, "num_attention_heads", None) or getattr(shape, "n_head", 1)
    head = getattr(shape, "head_dim", None) or d // heads
    kv = getattr(shape, "num_key_value_heads", None) or heads
    attention = 2 * d * heads * head + 2 * d * kv * head
    return round(layers * (attention + 3 * d * _d_mlp(shape) + 2 * d))


def _d_mlp(shape: SimpleNamespace) -> float:
    size = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * _d_model(shape)
    return sum(size) / len(size) if isinstance(size, list | tuple) else size  # one number a layer


def check_shapes(study: Study, traced: Mapping[tuple[str, str], int] | None = None) -> Shapes:
    """Sizes of the models of a study. Raises StudyError for what cannot work at these sizes, before anything runs.

    traced: widths by model and site that the models themselves say, in place of those of their configurations.
    """
    shapes = Shapes(study)
    shapes.widths.update(traced or {})
    for name in study.config.stitch:
        check_stitch(study, name, shapes)
    for name in study.order:
        _check_edit(study, name, shapes)
    sae = study.config.sae
    for (name, site), d_in in shapes.widths.items():
        if d_in is None or study.given_sae(name, "sae", site):
            continue
        d_sae, most, key = sae.expansion * d_in, *_most_active(study)
        if most > d_sae:
            raise StudyError(
                f"{study.name}: {key}: {most:g} is more than the {d_sae} features of {name}'s SAE; lower it"
            )
    for edge, site in itertools.product(study.edges, study.sites):
        parent, child = (shapes.widths[end, site] for end in edge)
        if parent is not None and child is not None and parent != child:
            raise StudyError(
                f"{study.name}: edge {edge.name}: {site} is {parent} wide in the parent and {child} "
                "in the child; features are matched at one width, use a stitch between models of different size"
            )
    return shapes


def _check_edit(study: Study, name: str, shapes: Shapes) -> None:
    """That a model has the blocks that are edited, and a direction the width of its stream. Raises StudyError."""
    edit, place = study.config.model[name].edit, f"{study.name}: model.{name}.edit"
    if edit is None:
        return
    from heredity.features.direction_files import read_direction

    key, layers = ("layers", edit.layers or ()) if edit.permute is None else ("permute", (edit.permute.split(".")[1],))
    last = shapes.layers(name) - 1
    for layer in (int(layer) for layer in layers if layer != "*"):
        if shapes.shape(name) and layer > last:
            raise StudyError(f"{place}.{key}: {layer}: {study.parents[name][0]} has blocks 0 to {last}; correct it")
    if (file := derived_file(study, name)) is not None:
        try:
            read_direction(file, _d_model(shapes.shape(name)) or None, edit.tensor)
        except ValueError as error:
            raise StudyError(f"{place}.project_out: {error}") from None
    if edit.direction is not None:
        one = study.config.direction[edit.direction]
        if not is_residual(point := one.hook_point or study.site):
            reason = f"{point} is a part of a layer, and what is projected out is of the residual stream"
            raise StudyError(f"{place}.project_out: direction {edit.direction}: {reason}; give it such a hook_point")


def check_inputs(study: Study) -> dict[tuple[str, str], int]:
    """That what a study reads is there and can be read, before hours of work end on it: loaded models and their
    tokenizers, corpora, and texts with labels of their own. Nothing is fetched. Raises StudyError.

    Returns the widths by model and site that the models themselves say.
    """
    from heredity.lm.checkpoint import ModelError, is_local
    from heredity.stitch.probe_datasets import LabelError
    from heredity.stitch.probe_sets import labeled_set
    from heredity.text.sources import CorpusError, check_local

    loads = {name: model.load for name, model in study.config.model.items() if model.load}
    for name, load in loads.items():
        folder, place = model_folder(study, name), f"{study.name}: model.{name}.load"
        try:
            local = is_local(str(folder or load))
        except ModelError as error:
            raise StudyError(f"{place}: {error}") from None
        if not local:
            refuse_missing(study, f"model.{name}.load", load)
    if study.config.tokenizer.load:
        refuse_missing(study, "tokenizer.load", study.config.tokenizer.load)
    for name, corpus in study.config.corpus.items():
        scheme, _, spec = corpus.source.partition(":")
        try:
            if scheme == "local":
                check_local(corpus, spec, study.root)
        except CorpusError as error:
            raise StudyError(f"{study.name}: corpus.{name}: {error}") from None
    for name, stitch in study.config.stitch.items():
        for task, texts in stitch.probes.sets.items():
            try:
                if texts.source.startswith("local:"):
                    labeled_set(texts, study.root)
            except LabelError as error:
                raise StudyError(f"{study.name}: stitch.{name}.probes.sets.{task}: {error}") from None
    widths = check_loaded(study)
    check_pretrained(study, widths)
    return widths


def _most_active(study: Study) -> tuple[float, str]:
    sae = study.config.sae
    return (sae.k, "sae.k") if sae.activation in RANKED else (sae.l0[1], "sae.l0")


def check_stitch(study: Study, name: str, shapes: Shapes) -> None:
    """That the maps of a stitch can be fitted and its SAEs trained, as far as can be seen before anything runs.

    Raises StudyError.
    """
    from heredity.lm.hooks import HookPointError, width

    config = study.config.stitch[name]
    points = {"source": config.source_hook_point or study.site, "target": config.target_hook_point}
    for end, point in points.items():
        key = "hook_point" if end == "source" and not config.source_hook_point else f"stitch.{name}.{end}_hook_point"
        shape = shapes.shape(getattr(config, end))
        try:
            _ = width(shape, point) if shape and point else None
        except HookPointError as error:
            raise StudyError(f"{study.name}: {key}: {error} (model {getattr(config, end)})") from None
        if point and not is_residual(point):
            raise StudyError(
                f"{study.name}: {key}: {point} is a part of a layer, and the rest of the model passes by it; a stitch "
                f"joins residual streams: give a place such as blocks.1.hook_resid_pre (stitch {name})"
            )
    d_a, d_b = (_d_model(shapes.shape(end)) for end in (config.source, config.target))
    if d_a and d_b:
        check_method(f"{study.name}: stitch.{name}", config, d_a, d_b)
    for key, least in (("tokens", config.context_size), ("held_out", 2 * config.context_size)):
        if getattr(config, key) < least:
            raise StudyError(
                f"{study.name}: stitch.{name}.{key}: {getattr(config, key)} tokens do not fill the blocks of "
                f"{config.context_size} that it takes; give at least {least}"
            )
    most, key = _most_active(study)
    if most > min(config.widths):
        raise StudyError(
            f"{study.name}: {key}: {most:g} is more than the {min(config.widths)} features of stitch.{name}.widths; "
            "lower it"
        )
    if config.sae:
        from heredity.analyses.sae_transfer import loaded_sae, sae_folder

        loaded_sae(f"{study.name}: stitch.{name}", sae_folder(study, name), config, d_a)


def check_method(place: str, config: StitchConfig, d_a: int, d_b: int) -> None:
    """That maps from width d_a to d_b can be fitted by the method of a stitch. Raises StudyError.

    place: what the message begins with.
    """
    if config.method == "procrustes" and d_a > d_b:
        raise StudyError(
            f"{place}.method: procrustes maps into a space at least as wide, and {config.target} ({d_b}) is narrower "
            f"than {config.source} ({d_a}); choose joint or ridge, or swap source and target"
        )


def is_residual(hook_point: str) -> bool:
    """Whether all of the residual stream passes a hook point, as far as its name says."""
    if hook_point.startswith("blocks."):
        return re.fullmatch(r"blocks\.\d+\.hook_resid_(pre|mid|post)", hook_point) is not None
    path, _, side = hook_point.partition(":")
    inner = re.search(r"\.\d+\.(.+)$", path)
    # What a layer's norms read is the stream; those further inside, such as of queries, read a part of it.
    return inner is None or (side == "input" and re.fullmatch(r"\w*(norm|ln_)\w*", inner[1]) is not None)


def plan(pipeline: Pipeline, store: Store) -> dict[str, Any]:
    """Everything `heredity check` reports: totals, and rows of the tables above by name. Raises StudyError."""
    study, rates = pipeline.study, Rates()
    shapes = check_shapes(study, check_inputs(study))
    stages = []
    for label, stage in pipeline.stages.items():
        analysis, item, _ = pipeline.items[label]
        cost = analysis.cost(study, item, shapes)
        took = store.recorded(stage.kind, stage.name, stage.key)
        row = {"stage": label, "cached": bool(took), "tokens": cost.tokens, "flops": cost.flops + cost.passes.flops}
        row |= {"memory_gib": round(PROCESS_GIB + cost.gib, 2), "seconds": round(rates.seconds(cost), 1)}
        stages.append(row | {"took_gib": took.get("peak_memory_gib"), "took": took.get("seconds")})
    left = [row for row in stages if not row["cached"]]
    models = [
        {
            "model": name,
            "kind": study.config.model[name].kind,
            "parents": ", ".join(study.parents[name]),
            "trace": ", ".join(study.trace(name)),
            "parameters": shapes.parameters(name) or None,
        }
        for name in study.order
    ]
    return {
        "study": study.name,
        "sites": {site: shapes.widths[(study.followed or study.order)[0], site] for site in study.sites},
        "tokens": sum(row["tokens"] for row in left),
        "flops": sum(row["flops"] for row in left),
        "memory_gib": max((row["memory_gib"] for row in left), default=0.0),
        "seconds": round(sum(row["seconds"] for row in left), 1),
        "rate": rates.of("float32"),
        "plan_models": models,
        "plan_edges": [
            {"edge": edge.name, "common_trace": ", ".join(study.common_trace(edge))} for edge in study.edges
        ],
        "plan_stages": stages,
        "notes": _notes(study, shapes),
    }


class Load(NamedTuple):
    """What a stage asks of the machine that it runs on."""

    gib: float
    """Memory at most, as `plan` estimates it."""
    seconds: float
    """Time, as `plan` estimates it on the machine that asks."""
    products: bool
    """Whether matrix products are most of its work, which a GPU does faster."""


def loads(pipeline: Pipeline) -> dict[str, Load]:
    """What every stage asks of a machine, by label. Raises StudyError as `plan` does."""
    study, rates = pipeline.study, Rates()
    shapes, found = check_shapes(study, check_inputs(study)), {}
    for label, (analysis, item, _) in pipeline.items.items():
        cost = analysis.cost(study, item, shapes)
        found[label] = Load(PROCESS_GIB + cost.gib, rates.seconds(cost), cost.flops + cost.passes.flops > 0)
    return found


def _notes(study: Study, shapes: Shapes) -> list[str]:
    """What to know before the work, in sentences."""
    from heredity.analyses.stitch_maps import stitch_notes

    notes = [note for name in study.config.stitch for note in stitch_notes(study, name, shapes)]
    for name in study.order:
        if study.config.model[name].adapter and (note := adapter_note(study, name)):
            notes.append(f"the adapter of {name} {note}")
    return [*notes, *_few_vectors(study, shapes)]


def _few_vectors(study: Study, shapes: Shapes) -> Iterator[str]:
    """What training SAEs on so few vectors will come to, once per number of features."""
    tokens = study.config.sae.tokens
    trained = [
        study.config.sae.expansion * d_in
        for (name, site), d_in in shapes.widths.items()
        if d_in is not None and not all(study.given_sae(name, key, site) for key in KEYS.values())
    ]
    for d_sae in sorted(set(trained)) if study.config.verdicts.tokens else ():
        if tokens <= _FEW_VECTORS * d_sae:
            yield (
                f"SAEs of {d_sae:,} features are trained on {tokens:,} vectors, {tokens / d_sae:.0f} per feature: with "
                f"{_FEW_VECTORS} per feature less than a quarter of the features were stable (docs/real.md), and only "
                "stable ones get verdicts; raise sae.tokens, or lower sae.expansion"
            )


class Rates:
    """What this machine does in a second, as measured."""

    def __init__(self) -> None:
        self._measured: dict[Any, float] = {}

    def of(self, precision: Precision) -> float:
        """Matrix products in the type that this device takes for a precision, FLOP/s: the best of five of the kind an
        SAE does."""
        import torch

        from heredity.lm.evaluate import dtype_of

        dtype = dtype_of(precision, torch.device("cpu"))
        if dtype not in self._measured:
            x, w, best = torch.randn(2048, 512).to(dtype), torch.randn(512, 2048).to(dtype), 0.0
            for _ in range(5):
                start = time.perf_counter()
                torch.mm(x, w)
                best = max(best, 2 * 2048 * 512 * 2048 / (time.perf_counter() - start))
            self._measured[dtype] = best
        return self._measured[dtype]

    def seconds(self, cost: Cost) -> float:
        """Estimate of a stage's time."""
        passes = cost.passes
        # A processor without products in bf16 takes float32 for them, and reaches what it reaches with it.
        native = self.of("bf16") > self.of("float32")
        reached = _REACHED[passes.precision if native else "float32", passes.training]
        read = passes.flops / (self.of(passes.precision) * reached)
        return 1.0 + cost.seconds + cost.flops / (self.of("float32") * cost.efficiency) + read
