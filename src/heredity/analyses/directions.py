"""Is my direction still there? A probe, steering vector or difference of means, followed through its descendants.

Text: held-out documents of the corpora that the direction's model has read, which all of its descendants have too, and
of those that it is to tell apart. Training documents of the same corpora make directions from text and fit maps and
readouts. Along each edge of descent a direction is read in both models on the same tokens, and is kept, changed, lost
or undecided by the margins of the verdicts on features: `features.direction_fates` says by which, and what is left out.
The word is about the direction, not about what it told: a child that lost it may tell the same by others, which
`readable` and AUC of other probes show. Nor does kept say that the direction is of any use; AUC and effect do.

A direction that a model lost is not followed to its children.

Beside every edge, on the same tokens: random directions of equal variance, and how many of them get which word; and
the same for the parent with a random change of the edge's size in every tensor (edit), and trained on with its own text
(sham), where there is one. Where these keep or lose as much, the word says little of the direction. Intervals: 95 %,
jackknife over groups of documents.

Effect: KL(model || model whose readout is held at its mean), in nats per token, and the mean of the same for random
directions of equal variance.

Through a stitch, a direction w of its source reads the target as w · down(b), down the stitch's map. R² is of the
source's own readout of the same tokens, beside that of random directions of equal variance carried likewise, and of the
best linear readout from the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Cost, Item, Needs, Passes, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.direction_vectors import (
    Followed,
    Text,
    activations,
    averages,
    followed_of,
    text_of,
    vector_in,
    vector_need,
)
from heredity.analyses.model import models_needs
from heredity.analyses.reading import load, on_device
from heredity.analyses.reference_models import reference_need
from heredity.analyses.stitch_maps import Sides, passes_of, stitch_needs
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Precision, Study, StudyError
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.direction_files import Direction

RANDOM = 40
"""Random directions beside each."""
_ABLATED, _EVERY = 3, 20  # random directions whose effect is measured; one block of so many shows effects
_KIND, VECTORS = "directions", "directions.safetensors"
_ROUNDING = 1e-5  # of the activations' length, below which the spread of a readout is rounding
_KEY = ("site", "direction")
_DIRECTION = Column("direction", "text", "Direction of the study file.")
_AUC = Column("auc", "r", "Area under the ROC curve of its mean readout per held-out document.", ci=True)

DIRECTIONS = Table(
    "directions",
    "Directions in every model that has them: how much of the activations lies along them, and what they tell.",
    (*_KEY, "model"),
    (
        _DIRECTION,
        Column("source", "text", "File it was read from, or how it was made."),
        Column("tokens", "count", "Held-out tokens it was read on."),
        Column("mean", "number", "Mean of the readout v · x, v of length 1."),
        Column("spread", "number", "Standard deviation of the readout."),
        Column("norm_share", "share", "Share of the activations' mean squared length that lies along it."),
        Column("variance_share", "share", "Share of their variance; of d equal ones it would be 1 / d."),
        Column("separates", "text", "Corpora that it is to tell apart; empty for none."),
        Column("documents", "count", "Held-out documents of these corpora."),
        _AUC,
        Column("accuracy", "share", "Balanced accuracy at the threshold of the model it was made on.", ci=True),
        Column("effect", "nats", "KL(model || model whose readout is held at its mean), per token."),
        Column("effect_random", "nats", "Mean of the same for random directions of equal variance."),
    ),
    brief=("direction", "model", "spread", "variance_share", "auc", "accuracy", "effect", "effect_random"),
)
DIRECTION_EDGES = Table(
    "direction_edges",
    "What became of each direction along every edge, and what references say on the same tokens.",
    (*_KEY, "edge", "line"),
    (
        _DIRECTION,
        Column("line", "text", "The edge itself, or in the child's place edit or sham, references made of the parent."),
        Column("verdict", "text", "kept, changed, lost or undecided."),
        Column("transmission", "number", "Slope of the child's readout on the parent's; 1 is unchanged.", ci=True),
        Column("r", "r", "Pearson r of both readouts over the same tokens.", ci=True),
        Column(
            "strength", "number", "Standard deviation of the readout in the child over that in the parent.", ci=True
        ),
        Column("readable", "r", "R² of the best linear readout of the parent's readout from the child.", ci=True),
        Column("rest", "r", "The same from the parent's own activations without the direction."),
        Column("own", "r", "Share of what these leave that the child says.", ci=True),
        Column("scale", "number", "Median transmission of random directions, which verdicts are relative to."),
        Column("random", "count", "Random directions of equal variance."),
        Column("random_kept", "count", "Of them kept.", of="random"),
        Column("random_lost", "count", "Of them lost.", of="random"),
        Column("random_above", "share", "Share of them whose transmission is at least that of the direction."),
        Column("groups", "count", "Groups of documents behind the intervals."),
    ),
    brief=("direction", "edge", "line", "verdict", "transmission", "r", "own", "random", "random_kept", "random_lost"),
    plot=Plot("bars", x="edge", y="transmission", by="line"),
)
CARRIED_DIRECTIONS = Table(
    "carried_directions",
    "Directions of a stitch's source, read in its target through the map.",
    ("stitch", "direction"),
    (
        _DIRECTION,
        Column("model", "text", "Target."),
        Column("tokens", "count", "Held-out tokens."),
        Column("r2", "r", "R² of the source's readout by the carried one.", ci=True),
        Column("r2_random", "r", "Median of the same over random directions of equal variance."),
        Column("r2_best", "r", "R² of the best linear readout from the target."),
        Column("above_random", "share", "Share of the random directions whose R² is below that of the direction."),
        Column("source_auc", "r", "AUC in the source.", ci=True),
        _AUC,
        Column("random", "count", "Random directions."),
    ),
    brief=("stitch", "direction", "r2", "r2_random", "r2_best", "source_auc", "auc"),
)


class End(NamedTuple):
    """A model at a hook point: activations float32 [tokens, d] on held-out text and on text for fitting, and which
    positions are samples."""

    x: np.ndarray
    fitting: np.ndarray
    kept: np.ndarray
    kept_fitting: np.ndarray


class DirectionSettings(NamedTuple):
    followed: dict[str, Followed]
    parents: dict[str, tuple[str, ...]]
    """Of every model that has one of the directions, in the order of work."""
    tokens: int
    context_size: int
    precision: Precision
    edit: bool
    seed: int


def _settings(study: Study, item: Item) -> DirectionSettings:
    followed = followed_of(study)
    models = {name for one in followed.values() for name in study.line_of(one.model)}
    return DirectionSettings(
        followed,
        {name: study.parents[name] for name in study.order if name in models},
        study.config.verdicts.direction_tokens,
        study.config.sae.context_size,
        study.config.precision,
        study.config.references.edit,
        seed_of(study, "directions"),
    )


def _texts(tokens: Mapping[str, Artifact], count: int, context: int, seed: int) -> tuple[Text, Text]:
    """Held-out text, and text for fitting."""
    held, fitting = (text_of(tokens, split, count, context, seed) for split in ("validation", "train"))
    return held, fitting


def _end(model: Any, hook_point: str, texts: tuple[Text, Text], precision: Precision) -> End:
    (x, kept), (fitting, kept_fitting) = (activations(model, hook_point, text, precision) for text in texts)
    return End(x, fitting, kept, kept_fitting)


def _corpora(followed: Iterable[Followed]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in followed for name in (*one.corpora, *(one.config.classes or ()))))


def _needs(study: Study, item: Item) -> Needs:
    followed = followed_of(study).values()
    models = {name for one in followed for name in study.line_of(one.model)}
    needs: Needs = {"model": models_needs(models), "tokens": tokens_needs(_corpora(followed))}
    needs["vector"] = {name: vector_need(name) for name in study.config.direction}
    shams = {edge.name: reference_need(study, edge, "sham") for edge in study.descent if models.issuperset(edge)}
    if study.config.verdicts.tokens and (known := {name: need for name, need in shams.items() if need}):
        needs["sham"] = known
    return needs


class Placed(NamedTuple):
    """A direction in one model: first the direction itself, then random ones of equal variance."""

    vectors: np.ndarray  # float64 [1 + random, d], of length 1
    threshold: float | None


def _place(one: Followed, made: Direction, end: End, texts: tuple[Text, Text], seed: int) -> Placed:
    """A direction in the model that it was made on. Raises StudyError where its width is not that of the hook point."""
    from heredity.features.direction_fates import alike

    x = end.fitting[end.kept_fitting & np.isin(texts[1].corpora, one.corpora)]
    if len(made.vector) != x.shape[1]:
        raise StudyError(
            f"direction {one.config.file} has {len(made.vector)} numbers, but {one.hook_point} of {one.model} is "
            f"{x.shape[1]} wide; correct hook_point, model or tensor"
        )
    length = float(np.linalg.norm(made.vector))
    v = made.vector / length
    threshold = None if made.bias is None else -made.bias / length
    if threshold is None and one.config.classes:
        scores, y = _scores(end.fitting @ v, end.kept_fitting, texts[1], one.config.classes)
        threshold = float((scores[y].mean() + scores[~y].mean()) / 2)
    return Placed(np.vstack([v, alike(np.cov(x.T, dtype=np.float64), v, RANDOM, seed)]), threshold)


def _scores(readout: np.ndarray, kept: np.ndarray, text: Text, classes: tuple[str, str]) -> tuple[np.ndarray, Any]:
    """Mean readout of every document of two corpora, and which are of the first."""
    chosen = kept & np.isin(text.corpora, classes)
    first = np.unique(text.documents[chosen & (text.corpora == classes[0])])
    return averages(readout, text.documents, chosen), np.isin(np.unique(text.documents[chosen]), first)


def _classified(
    readout: np.ndarray, kept: np.ndarray, text: Text, classes: tuple[str, str] | None, threshold: float | None
) -> dict[str, Any]:
    """Columns of how well a readout tells its corpora apart; none without corpora, or documents of both."""
    from heredity.stitch.probe import balanced_accuracy, roc_auc

    if classes is None:
        return {}
    scores, y = _scores(readout, kept, text, classes)
    row: dict[str, Any] = {"separates": ", ".join(classes), "documents": len(y)}
    if 0 < y.sum() < len(y):
        row |= roc_auc(scores, y).columns("auc")
        row |= balanced_accuracy(scores > threshold, y).columns("accuracy") if threshold is not None else {}
    return row


def _run(work: Work, settings: DirectionSettings) -> Results:
    from safetensors.numpy import save_file

    texts = _texts(work.inputs["tokens"], settings.tokens, settings.context_size, settings.seed)
    points = dict.fromkeys(one.hook_point for one in settings.followed.values())
    rows: dict[str, list[dict[str, Any]]] = {"directions": [], "direction_edges": []}
    vectors: dict[str, np.ndarray] = {}
    for point in points:
        for name, row in _at_site(work, settings, point, texts, vectors):
            rows[name].append({"site": point, **row})
    save_file(vectors, work.folder / VECTORS)
    return rows


def _at_site(
    work: Work, settings: DirectionSettings, point: str, texts: tuple[Text, Text], vectors: dict[str, np.ndarray]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of both tables, each with its table, for all directions of one hook point. Their vectors, and those of the
    random ones, are put into `vectors`."""
    from heredity.features.transmission import centered_products, orthogonal

    followed = {key: one for key, one in settings.followed.items() if one.hook_point == point}
    ends, placed, lost = dict[str, End](), dict[str, dict[str, Placed]](), set[tuple[str, str]]()

    def followable(parent: str) -> dict[str, Placed]:
        """What a model has to hand on: a readout that it lost is rounding."""
        return {key: one for key, one in placed.get(parent, {}).items() if (parent, key) not in lost}

    for done, (name, parents) in enumerate(settings.parents.items()):
        work.progress(done, len(settings.parents))
        model = on_device(load(work.inputs["model"][name]))
        end = ends[name] = _end(model, point, texts, settings.precision)
        own = [key for key, one in followed.items() if one.model == name]
        made = {key: vector_in(work.inputs["vector"][key]) for key in own}
        placed[name] = {key: _place(followed[key], made[key], end, texts, settings.seed) for key in own}
        vectors |= {key: here.vectors for key, here in placed[name].items()}
        for parent in (parent for parent in parents if followable(parent)):
            lines = {"edge": end}
            for line, reference in _references(work, settings, parent, name, model):
                lines[line] = _end(reference, point, texts, settings.precision)
            for line, there in lines.items():
                both = ends[parent].kept_fitting & there.kept_fitting
                turn = orthogonal(centered_products(ends[parent].fitting[both], there.fitting[both]))
                for key, here in followable(parent).items():
                    turned = here._replace(vectors=here.vectors @ turn)
                    if line == "edge":
                        placed[name].setdefault(key, turned)
                    row = _edge_row(followed[key], (ends[parent], here), (there, turned), texts, settings.seed)
                    lost |= {(name, key)} if line == "edge" and row["verdict"] == "lost" else set()
                    yield "direction_edges", {"direction": key, "edge": f"{parent}->{name}", "line": line, **row}
        for key, here in placed[name].items():
            row = _row(followed[key], end, here, texts[0])
            row |= _effects(model, point, here, end, texts[0], settings.precision)
            yield "directions", {"direction": key, "model": name, **row}


def _references(
    work: Work, settings: DirectionSettings, parent: str, child: str, model: Any
) -> Iterator[tuple[str, Any]]:
    """Reference models of an edge that stand in the place of its child, by name. model: the child."""
    from heredity.synthetic.surgery import shaken

    if settings.edit:
        yield "edit", on_device(shaken(load(work.inputs["model"][parent]), model.cpu(), settings.seed))
        on_device(model)
    if (sham := work.inputs.get("sham", {}).get(f"{parent}->{child}")) is not None:
        yield "sham", on_device(load(sham))


def _edge_row(
    one: Followed, own: tuple[End, Placed], other: tuple[End, Placed], texts: tuple[Text, Text], seed: int
) -> dict[str, Any]:
    """What became of a direction between two models that were read on the same text."""
    from heredity.features.direction_fates import Readouts, follow, scale_of, words_of

    held, fitting = (np.isin(text.corpora, one.corpora) for text in texts)
    held, fitting = (held & own[0].kept & other[0].kept), (fitting & own[0].kept_fitting & other[0].kept_fitting)
    sides = [Readouts(end.x[held], end.fitting[fitting], placed.vectors) for end, placed in (own, other)]
    fates = follow(sides[0], sides[1], texts[0].documents[held], seed)
    scale = scale_of(fates.at(slice(1, None)))
    words = words_of(fates, scale)
    row: dict[str, Any] = {"verdict": words[0], "scale": scale, "rest": fates.rest[0], "groups": fates.groups}
    for name in ("transmission", "r", "strength", "readable", "own"):
        row |= fates.columns(name)
    row |= {"random": RANDOM, "random_kept": words[1:].count("kept"), "random_lost": words[1:].count("lost")}
    return row | {"random_above": float((fates.transmission[1:] >= fates.transmission[0]).mean())}


def _row(one: Followed, end: End, placed: Placed, text: Text) -> dict[str, Any]:
    """How much of a model's activations lies along a direction, and what it tells."""
    chosen, v = end.kept & np.isin(text.corpora, one.corpora), placed.vectors[0]
    x = end.x[chosen].astype(np.float64)
    readout = x @ v
    how = {"means": "difference of means", "probe": "probe"}[one.config.how]
    row = {"source": one.config.file or f"{how}, {one.config.classes[0]} against {one.config.classes[1]}"}  # type: ignore[index]
    row |= {"tokens": len(x), "mean": readout.mean(), "spread": readout.std()}
    row |= {"norm_share": (readout**2).mean() / (x**2).sum(1).mean(), "variance_share": readout.var() / x.var(0).sum()}
    # Of a direction that was projected out rounding is left, which must not tell corpora apart.
    rounding = readout.std() < _ROUNDING * float(np.sqrt((x**2).sum(1).mean()))
    whole = np.zeros(len(end.x)) if rounding else end.x @ v
    return row | _classified(whole, end.kept, text, one.config.classes, placed.threshold)


def _effects(model: Any, point: str, placed: Placed, end: End, text: Text, precision: Precision) -> dict[str, float]:
    """Effect of holding the readout of a direction, and of random ones, at its mean."""
    from heredity.features.direction_fates import held_kl

    vectors = placed.vectors[: 1 + _ABLATED]
    kl = held_kl(model, point, text.blocks[::_EVERY], vectors, vectors @ end.x[end.kept].mean(0), precision)
    return {"effect": kl[0], "effect_random": kl[1:].mean()}


# -- through a stitch -----------------------------------------------------------------------------------------------


class CarriedSettings(NamedTuple):
    classes: dict[str, tuple[str, str] | None]
    """By direction, the corpora that it is to tell apart."""
    target: str
    tokens: int
    context_size: int
    precision: Precision
    seed: int


def _carried(study: Study, stitch: str) -> dict[str, Followed]:
    """Directions of a stitch's source at its hook point."""
    config = study.config.stitch[stitch]
    place = config.source, config.source_hook_point or study.site
    return {key: one for key, one in followed_of(study).items() if (one.model, one.hook_point) == place}


def _carried_settings(study: Study, item: Item) -> CarriedSettings:
    config, found = study.config, _carried(study, item["stitch"])
    shape = config.verdicts.direction_tokens, config.sae.context_size, config.precision
    classes = {key: one.config.classes for key, one in found.items()}
    return CarriedSettings(classes, config.stitch[item["stitch"]].target, *shape, seed_of(study, "directions"))


def _carried_needs(study: Study, item: Item) -> Needs:
    classes = [name for one in _carried(study, item["stitch"]).values() for name in one.config.classes or ()]
    corpora = dict.fromkeys((*study.stitch_corpora(item["stitch"]), *classes))
    return stitch_needs(study, item, directions=(_KIND, {})) | {"tokens": tokens_needs(corpora)}


def _run_carried(work: Work, settings: CarriedSettings) -> Results:
    from safetensors.numpy import load_file

    from heredity.features.direction_fates import Readouts, follow

    sides, vectors = Sides.of(work), load_file(work.inputs["directions"] / VECTORS)
    texts = _texts(work.inputs["tokens"], settings.tokens, settings.context_size, settings.seed)
    a, b = (_end(*side, texts, settings.precision) for side in (sides.source, sides.target))
    down = sides.stitch.down.weight.double().cpu().numpy()
    held, fitting, rows = a.kept & b.kept, a.kept_fitting & b.kept_fitting, []
    for key, classes in settings.classes.items():
        here, there = vectors[key], vectors[key] @ down.T
        ends = Readouts(a.x[held], a.fitting[fitting], here), Readouts(b.x[held], b.fitting[fitting], there)
        fates = follow(*ends, texts[0].documents[held], settings.seed)
        r2, row = fates.agreement, {"direction": key, "model": settings.target, "tokens": int(held.sum())}
        row |= {name.replace("agreement", "r2"): value for name, value in fates.columns("agreement").items()}
        row |= {"r2_random": float(np.median(r2[1:])), "r2_best": fates.readable[0], "random": RANDOM}
        row |= {"above_random": float((r2[1:] < r2[0]).mean())}
        for name, readout in (("source_auc", a.x @ here[0]), ("auc", b.x @ there[0])):
            found = _classified(readout, held, texts[0], classes, None)
            row |= {at.replace("auc", name): found[at] for at in ("auc", "auc_low", "auc_high") if at in found}
        rows.append(row)
    return {"carried_directions": rows}


# -- what it costs, and what it says --------------------------------------------------------------------------------


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    settings = _settings(study, item)
    edges = sum(parent in settings.parents for own in settings.parents.values() for parent in own)
    start = next(iter(settings.parents))
    points, weights = {one.hook_point for one in settings.followed.values()}, shapes.parameters(start)
    d, read = max(shapes.width(start, one) for one in points), 2 * sum(shapes.passed(start, one) for one in points)
    tokens = 2 * settings.tokens * (len(settings.parents) + settings.edit * edges)
    effects = settings.tokens / _EVERY * (2 + _ABLATED) * len(settings.followed) * len(settings.parents)
    solved = len(points) * (4 * d**2 * tokens + (edges + 1) * 30 * d**3)
    passes = Passes(read * tokens + 2 * weights * effects, settings.precision)
    gib = shapes.read_gib(*[start] * 3) + shapes.logits_gib(start) + 8 * d * tokens / 2**30
    return Cost(len(points) * tokens, solved, gib, passes=passes)


def _carried_cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    config = study.config.stitch[item["stitch"]]
    tokens = 2 * study.config.verdicts.direction_tokens
    passed = sum(flops for flops, _ in passes_of(study, item["stitch"], shapes).values())
    width = sum(map(shapes.d_model, (config.source, config.target)))
    passes = Passes(passed * tokens, study.config.precision)
    gib = shapes.read_gib(config.source, config.target) + 8 * tokens * width / 2**30
    return Cost(tokens, tokens * width**2, gib, passes=passes)


_LINES = {
    "edit": "{parent} with random weight changes of the same size",
    "sham": "{parent} trained on with its own text",
}


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "direction_edges", line="edge"):
        key, (parent, child) = {name: row[name] for name in _KEY}, row["edge"].split("->")
        there = {one["model"]: one for one in rows_of(tables, "directions", **key)}
        own = {name: format.value("r", row[name]) for name in ("transmission", "r", "readable", "rest", "own")}
        text = f"Direction {row['direction']} of {parent} is {row['verdict']} in {child}: its readout moves "
        text += f"{_figure(row, 'transmission')} as far there, with r {own['r']}"
        if row["verdict"] in ("lost", "changed"):
            text += (
                f"; {child}'s activations say {own['readable']} of it linearly (R²), where the other directions of "
                f"{parent} say {own['rest']}"
            )
        text += (
            f". Of {row['random']} random directions of equal variance {row['random_kept']} are kept and "
            f"{row['random_lost']} lost"
        )
        if row["verdict"] in ("lost", "kept") and row[f"random_{row['verdict']}"] > row["random"] / 2:
            text += ", so that this is true of the edge and says little of the direction"
        above = format.percent(row["random_above"])
        evidence = [f"{above} of the random directions have as large a transmission or a larger one"]
        evidence += [
            f"reference, {_LINES[one['line']].format(parent=parent, child=child)}: {one['verdict']}, transmission "
            f"{_figure(one, 'transmission')}"
            for one in rows_of(tables, "direction_edges", edge=row["edge"], **key)
            if one["line"] in _LINES
        ]
        auc = {name: there[name]["auc"] for name in (parent, child) if there.get(name, {}).get("auc") is not None}
        if len(auc) == 2:
            told = there[child]["separates"].replace(", ", " from ")
            figures = format.listed([f"{_figure(there[name], 'auc')} in {name}" for name in auc])
            evidence.append(f"AUC of telling {told}: {figures}, {there[child]['documents']:,} held-out documents")
        evidence += [
            f"held at its mean, it moves the predictions of {name} by {there[name]['effect']:.4f} nats per token, "
            f"random ones by {there[name]['effect_random']:.4f}"
            for name in (parent, child)
        ]
        yield Statement(child, "direction", text + ".", tuple(evidence))
    for row in rows_of(tables, "carried_directions"):
        text = (
            f"Direction {row['direction']}, carried to {row['model']} by stitch {row['stitch']}, has R² "
            f"{_figure(row, 'r2')} with its readout at the source; {row['random']} random directions of equal variance "
            f"have a median of {format.value('r', row['r2_random'])}, and the best linear readout "
            f"{format.value('r', row['r2_best'])}."
        )
        auc = f"AUC {_figure(row, 'source_auc')} at the source and {_figure(row, 'auc')} carried"
        yield Statement(row["model"], "direction", text, () if row["auc"] is None else (auc,))


def _figure(row: Mapping[str, Any], name: str) -> str:
    """`0.982 (95 % CI 0.975-0.989)`."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    value, low, high = (None if one is None else round(one, 3) + 0.0 for one in (value, low, high))  # no -0.000
    ends = "" if low is None else f" (95 % CI {format.interval('r', low, high)})"
    return f"{format.value('r', value)}{ends}"


ANALYSIS = Analysis(
    kind=_KIND,
    version=3,
    title="Directions of one's own",
    items=lambda study: [{}] if study.config.direction else [],
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(DIRECTIONS, DIRECTION_EDGES),
    cost=_cost,
    say=_say,
)
CARRIED = Analysis(
    kind="carried_directions",
    version=1,
    title="Directions through a stitch",
    items=lambda study: ({"stitch": name} for name in study.config.stitch if _carried(study, name)),
    settings=_carried_settings,
    needs=_carried_needs,
    run=_run_carried,
    tables=(CARRIED_DIRECTIONS,),
    cost=_carried_cost,
)
