"""Directions of one's own as vectors: read from a file, or made from text on the model that they are of.

Made from training text of two corpora, in equal parts: the difference of their means over tokens, or a logistic probe
of means over blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.analysis import Analysis, Cost, Item, Need, Needs, Passes, Results, seed_of
from heredity.analyses.reading import load, on_device, packs
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.errors import install
from heredity.study import DirectionConfig, Precision, Study, StudyError

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.direction_files import Direction

VECTOR = "direction.safetensors"


class Followed(NamedTuple):
    """One direction as the study has it."""

    config: DirectionConfig
    hook_point: str
    model: str
    corpora: tuple[str, ...]
    """Text that it is followed on."""
    given: tuple[tuple[float, ...], float | None] | None
    """Vector and bias of its file."""


class Text(NamedTuple):
    """Token blocks of several corpora."""

    blocks: np.ndarray  # int64 [blocks, context]
    documents: np.ndarray  # int64 [tokens]
    corpora: np.ndarray  # of each token, the name


def followed_of(study: Study) -> dict[str, Followed]:
    """Directions by name. Raises StudyError for a file that is missing or holds no such direction, and for a place that
    the model does not have."""
    from heredity.analyses.loaded import local_folder
    from heredity.analyses.plan import Shapes

    if not study.config.direction:
        return {}
    from heredity.features.direction_files import read_direction
    from heredity.lm.hooks import width

    found, shapes = {}, Shapes(study)
    for name, config in study.config.direction.items():
        key, model = f"{study.name}: direction.{name}", config.model or study.starts[0]
        point, shape, given = config.hook_point or study.site, shapes.shape(model), None
        path = local_folder(study, f"direction.{name}.file", config.file) if config.file else None
        if config.file and path is None:
            raise StudyError(f"{key}.file: {config.file}: there is no such file; correct the path")
        if config.how == "probe" and find_spec("sklearn") is None:
            way_out = f"{install('stitch')}; or set how to means"
            raise StudyError(f"{key}.how: a probe needs scikit-learn, which is not installed; {way_out}")
        try:
            d = width(shape, point) if shape else None
            if path is not None:
                read = read_direction(path, d, config.tensor, config.row)
                given = tuple(read.vector.tolist()), read.bias if config.threshold is None else -config.threshold
        except ValueError as error:
            raise StudyError(f"{key}: {error}") from None
        config = config.model_copy(update={"hook_point": None})  # whether it was named is no difference
        found[name] = Followed(config, point, model, study.trace(model), given)
    return found


def text_of(tokens: Mapping[str, Artifact], split: str, count: int, context: int, seed: int) -> Text:
    """So many tokens of one split, in equal parts of each corpus, or what there is; no block twice."""
    from heredity.text.tokens import BlockSampler

    parts: list[Text] = []
    for number, (name, pack) in enumerate(packs(tokens, split).items()):
        sampler = BlockSampler({name: pack}, context, seed)
        blocks = min(max(2, count // len(tokens) // context), sampler.blocks_per_pass)
        documents = np.repeat(sampler.documents(0, blocks), context) + (number << 32)
        parts.append(Text(sampler.take(0, blocks), documents, np.full(len(documents), name)))
    blocks, *others = zip(*parts, strict=True)
    return Text(np.ma.concatenate(blocks), *(np.concatenate(column) for column in others))


def activations(model: Any, hook_point: str, text: Text, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
    """Activations at a hook point, float32 [tokens, d], and which positions are samples, bool [tokens]."""
    from heredity.lm.activations import marked

    parts = []
    for x, kept in marked(model, hook_point, text.blocks, precision):
        parts.append((x.cpu().numpy(), np.ones(len(x), bool) if kept is None else kept.cpu().numpy()))
    x, kept = zip(*parts, strict=True)
    return np.concatenate(x), np.concatenate(kept)


def averages(x: np.ndarray, number: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Means of the chosen rows by number, in the order of the numbers, float64."""
    present, place = np.unique(number[chosen], return_inverse=True)
    sums = np.zeros((len(present), *x.shape[1:]))
    np.add.at(sums, place, x[chosen])
    return sums / np.bincount(place).reshape(-1, *[1] * (x.ndim - 1))


class VectorSettings(NamedTuple):
    followed: Followed
    tokens: int
    context_size: int
    precision: Precision
    seed: int


def vector_need(name: str) -> Need:
    """The vector of a direction of the study."""
    return "direction_vector", {"direction": name}


def vector_in(artifact: Artifact) -> Direction:
    """The vector of an artifact, and its bias where it has one."""
    from heredity.features.direction_files import read_direction

    return read_direction(artifact / VECTOR)


def _settings(study: Study, item: Item) -> VectorSettings:
    config, followed = study.config, followed_of(study)[item["direction"]]
    seed = seed_of(study, "directions")
    # Of what is read from a file, nothing but the file matters.
    tokens = 0 if followed.given else config.verdicts.direction_tokens
    return VectorSettings(followed, tokens, config.sae.context_size, config.precision, seed)


def _needs(study: Study, item: Item) -> Needs:
    followed = followed_of(study)[item["direction"]]
    if followed.given:
        return {}
    return {"model": ("model", {"model": followed.model}), "tokens": tokens_needs(followed.config.classes or ())}


def _run(work: Work, settings: VectorSettings) -> Results:
    from safetensors.numpy import save_file

    one = settings.followed
    vector, bias = one.given or _made(work, settings)
    number = {} if bias is None else {"bias": np.array([bias])}
    save_file({"weight": np.array(vector, np.float64), **number}, work.folder / VECTOR)
    return {}


def _made(work: Work, settings: VectorSettings) -> tuple[np.ndarray, float | None]:
    """Vector and bias of a direction made from text."""
    from heredity.stitch.probe import fit_probe

    one = settings.followed
    text = text_of(work.inputs["tokens"], "train", settings.tokens, settings.context_size, settings.seed)
    x, kept = activations(on_device(load(work.inputs["model"])), one.hook_point, text, settings.precision)
    assert one.config.classes is not None
    first, second = ((text.corpora == name) & kept for name in one.config.classes)
    if one.config.how == "means":
        return x[first].mean(0, dtype=np.float64) - x[second].mean(0, dtype=np.float64), None
    block = np.arange(len(first)) // text.blocks.shape[1]
    numbers = np.unique(block[first | second])
    probe = fit_probe(averages(x, block, first | second), np.isin(numbers, block[first]))
    return probe.weights, probe.bias


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    settings = _settings(study, item)
    one, tokens = settings.followed, settings.tokens
    d = shapes.width(one.model, one.hook_point)
    passes = Passes(2 * shapes.passed(one.model, one.hook_point) * tokens, study.config.precision)
    return Cost(tokens, gib=shapes.read_gib(one.model) + 8 * d * tokens / 2**30, passes=passes)


ANALYSIS = Analysis(
    kind="direction_vector",
    version=1,
    title="Vectors of directions of one's own",
    items=lambda study: ({"direction": name} for name in study.config.direction),
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=_cost,
)
