"""Merges beside what they were made from, and beside other ways of merging the same parents.

Accuracy of every merge on each corpus, less that of the specialist (the parent that predicts the corpus best) and less
that of the base (the parents' nearest common ancestor), in points and relative to theirs: the first paper says "20 %
below" and "20 % above" without saying of what (Horn & Elliott 2024, section 3.3). Where a study asks for it
(`evaluation.merge_methods`), the two parents of every merge are also merged by the methods that the study does not take
(the paper's footnote 6): slerp and linear at the t of the merge, or 0.5, all others with weights of 1 and a density of
0.5; DARE where mergekit is installed. Intervals: 95 % bootstrap over validation blocks, the same for both models where
their contexts are of one length. Beside the accuracy of a merge along t stands that of its base, on the same blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Needs, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.model import code_trusted, evaluation_cost, is_swept, models_needs, specialty, training_of
from heredity.analyses.quality import read_hits
from heredity.analyses.reading import folder_of, load, on_device, packs, validation_blocks
from heredity.analyses.text import tokens_for, tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Precision, Study
from heredity.tables import Column, Table

_REPLICATES = 1000  # of the bootstrap
_DENSITY = 0.5

MERGE_ACCURACY = Table(
    "merge_accuracy",
    "Merges beside their best parent and their base on every corpus. Intervals: 95 % bootstrap over validation blocks.",
    ("model", "corpus", "beside"),
    (
        Column("beside", "text", "specialist (the parent that predicts the corpus best) or base (the nearest common "
               "ancestor of the parents)."),
        Column("reference", "text", "Which model that is."),
        Column("own", "flag", "Whether a parent other than the base was trained on the corpus."),
        Column("accuracy", "share", "Share of next tokens that the merge predicts correctly.", ci=True),
        Column("reference_accuracy", "share", "Share that the other model does."),
        Column("points", "number", "The first less the second, in percentage points.", ci=True),
        Column("relative", "share", "The first over the second, less 1.", ci=True),
    ),
    brief=("model", "corpus", "beside", "reference", "accuracy", "reference_accuracy", "points", "relative"),
)  # fmt: skip
MERGE_BASES = Table(
    "merge_bases",
    "The base of every merge on the corpora of each parent, measured as the merge is along t. Intervals: 95 % "
    "bootstrap over validation blocks.",
    ("model", "parent"),
    (
        Column("parent", "text", "Parent whose corpora are predicted."),
        Column("base", "text", "The nearest common ancestor of the parents."),
        Column("accuracy", "share", "Share of next tokens that the base predicts correctly.", ci=True),
    ),
)
MERGE_METHODS = Table(
    "merge_methods",
    "The parents of every merge, merged by each method. Intervals: 95 % bootstrap over validation blocks.",
    ("model", "method", "corpus"),
    (
        Column("method", "text", "How the weights are combined."),
        Column("taken", "flag", "Whether this is the merge that the study takes."),
        Column("t", "number", "Position between the parents; null for methods that take weights."),
        Column("accuracy", "share", "Share of next tokens predicted correctly.", ci=True),
        Column("ce_loss", "nats", "Cross-entropy per token."),
        Column(
            "points", "number", "Accuracy less that of the merge that the study takes, in percentage points.", ci=True
        ),
    ),
    brief=("model", "method", "corpus", "taken", "accuracy", "ce_loss", "points"),
)


class AccuracySettings(NamedTuple):
    merge: str
    parents: tuple[str, ...]
    base: str | None
    own: tuple[str, ...]
    """Corpora of the parents, those that are the base left out."""
    context_sizes: dict[str, int]
    """Of the blocks that each model was evaluated on: those of one size are the same blocks."""
    swept: dict[str, tuple[str, ...]]
    """Corpora of each parent along t; none where the base was not measured as the merge is there."""
    seed: int


def _merges(study: Study) -> Iterable[Item]:
    return ({"model": name} for name in study.order if study.config.model[name].merge)


def _accuracy_settings(study: Study, item: Item) -> AccuracySettings:
    name = item["model"]
    parents, base = study.parents[name], study.merge_base(name)
    own = dict.fromkeys(corpus for parent in parents if parent != base for corpus in specialty(study, parent))
    sizes = {one: training_of(study, one).context_size for one in _compared(study, name)}
    seed = seed_of(study, "merge_accuracy", name)
    return AccuracySettings(name, parents, base, tuple(own), sizes, _swept(study, name), seed)


def _swept(study: Study, name: str) -> dict[str, tuple[str, ...]]:
    """Corpora by parent of a merge that is measured along t, where its base was evaluated on the same blocks in the
    same arithmetic."""
    merge, base = study.config.model[name].merge, study.merge_base(name)
    if merge is None or base is None or base in merge.parents or not is_swept(merge):
        return {}
    corpora = {parent: specialty(study, parent) for parent in merge.parents}
    every = tuple(dict.fromkeys(corpus for own in corpora.values() for corpus in own))
    along, own = training_of(study, merge.parents[0]), training_of(study, base)
    same = (along.context_size, along.precision) == (own.context_size, own.precision)
    return corpora if same and tokens_for(study, base, every) == tokens_needs(every) else {}


def _compared(study: Study, name: str) -> tuple[str, ...]:
    base = study.merge_base(name)
    return tuple(dict.fromkeys((name, *study.parents[name], *([base] if base else []))))


def _accuracy_needs(study: Study, item: Item) -> Needs:
    return {"quality": {name: ("quality", {"model": name}) for name in _compared(study, item["model"])}}


def _accuracy(work: Work, settings: AccuracySettings) -> Results:
    hits: dict[str, dict[str, np.ndarray]] = {name: read_hits(one) for name, one in work.inputs["quality"].items()}
    sizes, rows = settings.context_sizes, []
    for corpus, merged in hits[settings.merge].items():
        specialist = max(settings.parents, key=lambda parent: hits[parent][corpus].mean())
        for beside, reference in (("specialist", specialist), ("base", settings.base)):
            if reference is None:
                continue
            paired = sizes[reference] == sizes[settings.merge]
            figures = compared(merged, hits[reference][corpus], paired, np.random.default_rng(settings.seed))
            row = {"corpus": corpus, "beside": beside, "reference": reference, "own": corpus in settings.own}
            rows.append({**row, **figures})
    bases = []
    for parent, corpora in settings.swept.items():
        share = np.concatenate([hits[str(settings.base)][corpus] for corpus in corpora])
        drawn = _draws(len(share), np.random.default_rng(settings.seed)) @ share
        low, high = np.quantile(drawn, [0.025, 0.975])
        figures = {"accuracy": float(share.mean()), "accuracy_low": float(low), "accuracy_high": float(high)}
        bases.append({"parent": parent, "base": settings.base, **figures})
    return {"merge_accuracy": rows, "merge_bases": bases}


def compared(accuracy: np.ndarray, reference: np.ndarray, paired: bool, rng: np.random.Generator) -> dict[str, float]:
    """A mean accuracy, its difference from another and its ratio to it, with bootstrap intervals over blocks.

    accuracy, reference: share of tokens of each block that a model predicts, float64 [blocks]; all blocks are of one
    size. paired: whether both models read the same blocks, which are then drawn together.
    """
    drawn = _draws(len(accuracy), rng)
    a, b = drawn @ accuracy, (drawn if paired else _draws(len(reference), rng)) @ reference
    figures, whole = {"reference_accuracy": float(reference.mean())}, (accuracy.mean(), reference.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, of in (
            ("accuracy", lambda first, second: first),
            ("points", lambda first, second: 100 * (first - second)),
            ("relative", lambda first, second: first / second - 1),
        ):
            low, high = np.quantile(of(a, b), [0.025, 0.975])
            figures |= {name: float(of(*whole)), f"{name}_low": float(low), f"{name}_high": float(high)}
    return figures


def _draws(blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of the blocks in every replicate, float64 [replicates, blocks]."""
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=_REPLICATES) / blocks


def _say_accuracy(tables: Tables) -> Iterable[Statement]:
    by_merge: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows_of(tables, "merge_accuracy", own=True):
        by_merge.setdefault(row["model"], {}).setdefault(row["corpus"], []).append(row)
    for merge, corpora in by_merge.items():
        parts = [f"on {corpus} {format.listed([_apart(row) for row in rows])}" for corpus, rows in corpora.items()]
        evidence = tuple(
            f"{corpus}: {format.percent(row['accuracy'])} against {format.percent(row['reference_accuracy'])}, "
            f"{row['points']:+.1f} points (95 % CI {row['points_low']:.1f} to {row['points_high']:.1f})"
            for corpus, rows in corpora.items()
            for row in rows
        )
        yield Statement(merge, "merge", f"Next-token accuracy of {merge} is {'; '.join(parts)}.", evidence)
        worse = [row for rows in corpora.values() for row in rows if row["beside"] == "base" and row["points_high"] < 0]
        if worse:
            yield Statement(
                merge,
                "note",
                f"{merge} predicts {format.listed([row['corpus'] for row in worse])}, which its parents were trained "
                f"on, worse than {worse[0]['reference']}, which they descend from: a sign that the merge has failed; "
                "look at its method, t or weights",
            )


def _apart(row: Mapping[str, Any]) -> str:
    """`20 % below lua`."""
    relative, reference = row["relative"], row["reference"]
    if relative is None:
        return f"above {reference}, which predicts no token"
    return f"{format.percent(abs(relative))} {'below' if relative < 0 else 'above'} {reference}"


class MethodsSettings(NamedTuple):
    taken: str
    others: tuple[str, ...]
    parents: tuple[str, ...]
    corpora: tuple[str, ...]
    tokens: int
    context_size: int
    precision: Precision
    seed: int


def _methods_items(study: Study) -> Iterable[Item]:
    wanted = study.config.evaluation.merge_methods
    return (item for item in _merges(study) if wanted and len(study.parents[item["model"]]) == 2)


def _methods_settings(study: Study, item: Item) -> MethodsSettings:
    from heredity.lm.merge import Method

    name = item["model"]
    merge: Any = study.config.model[name].merge
    dare = ("dare_linear", "dare_ties") if find_spec("mergekit") else ()
    methods = (*get_args(Method), *dare) if study.merge_base(name) else ("slerp", "linear")
    training = training_of(study, merge.parents[0])
    return MethodsSettings(
        merge.method,
        tuple(method for method in methods if method != merge.method),
        merge.parents,
        tuple(dict.fromkeys(corpus for parent in merge.parents for corpus in specialty(study, parent))),
        study.config.evaluation.tokens,
        training.context_size,
        training.precision,
        seed_of(study, "merge_methods", name),
    )


def _methods_needs(study: Study, item: Item) -> Needs:
    settings, base = _methods_settings(study, item), study.merge_base(item["model"])
    needs: Needs = {"merge": ("model", item), "parent": models_needs(settings.parents)}
    needs |= {"base": ("model", {"model": base})} if base else {}
    return {**needs, "tokens": tokens_needs(settings.corpora)}


def _methods(work: Work, settings: MethodsSettings) -> Results:
    from heredity.lm.evaluate import evaluate

    packed = packs(work.inputs["tokens"], "validation")
    blocks = {
        name: validation_blocks(packed[name], settings.context_size, settings.tokens) for name in settings.corpora
    }
    model = on_device(load(work.inputs["merge"]))
    own = work.inputs["merge"].table("merges").to_pylist()[0]["t"]
    taken: dict[str, np.ndarray] = {}
    rows = []
    for done, method in enumerate((settings.taken, *settings.others)):
        work.progress(done, 1 + len(settings.others))
        t = own if method == settings.taken else 0.5 if own is None else own
        if method not in ("slerp", "linear"):
            t = None
        if method != settings.taken:
            model.load_state_dict(merged_by(method, t, work.inputs, settings))
        for corpus, own_blocks in blocks.items():
            quality = evaluate(model, own_blocks, precision=settings.precision)
            share = quality.hits / (settings.context_size - 1)
            figures = compared(share, taken.setdefault(corpus, share), True, np.random.default_rng(settings.seed))
            row = {"method": method, "corpus": corpus, "taken": method == settings.taken, "t": t}
            known = {name: value for name, value in figures.items() if name in MERGE_METHODS.schema.names}
            rows.append({**row, "ce_loss": quality.ce_loss, **known})
    return {"merge_methods": rows}


def merged_by(method: Any, t: float | None, inputs: Mapping[str, Any], settings: MethodsSettings) -> dict[str, Any]:
    """State of the merge of the parents by a method; weights of 1 where it has no t."""
    from heredity.lm.folders import merge_weights
    from heredity.lm.load import load_model
    from heredity.lm.merge import Mixing
    from heredity.lm.recipe import merge_recipe, recipe_of

    parents: Sequence[Artifact] = [inputs["parent"][name] for name in settings.parents]
    weights = [1.0] * len(parents) if t is None else None
    names, base = [folder_of(one) for one in parents], folder_of(inputs["base"]) if t is None else None
    trusted = any(map(code_trusted, parents))
    with tempfile.TemporaryDirectory() as folder:
        if method.startswith("dare"):
            recipe, place = recipe_of(method, names, weights, _DENSITY, base), f"evaluation.merge_methods: {method}"
            merge_recipe(recipe, Path(folder), settings.seed, place, trusted, own_type=True)
        else:
            merge_weights(
                names, Path(folder), Mixing(method, len(names), t, weights, _DENSITY), base, trust_remote_code=trusted
            )
        return load_model(folder, None, trusted).state_dict()


def _say_methods(tables: Tables) -> Iterable[Statement]:
    by_merge: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows_of(tables, "merge_methods"):
        by_merge.setdefault(row["model"], {}).setdefault(row["method"], []).append(row)
    for merge, methods in by_merge.items():
        (taken,) = (name for name, rows in methods.items() if rows[0]["taken"])
        others = {name: rows for name, rows in methods.items() if name != taken}
        worse = [name for name, rows in others.items() if all(row["points_high"] < 0 for row in rows)]
        better = [name for name, rows in others.items() if all(row["points_low"] > 0 for row in rows)]
        text = (
            f"Beside {taken}, which the study takes for {merge}, of {len(others)} other methods "
            f"{format.listed(worse) or 'none'} would be less accurate on the corpora of both parents, beyond the "
            f"intervals, and {format.listed(better) or 'none'} more accurate."
        )
        evidence = [
            f"{name}: {format.percent(float(np.mean([row['accuracy'] for row in rows])))} on average, "
            + ", ".join(f"{format.percent(row['accuracy'])} on {row['corpus']}" for row in rows)
            for name, rows in methods.items()
        ]
        yield Statement(merge, "merge", text, tuple(evidence))


ACCURACY = Analysis(
    kind="merge_accuracy",
    version=2,
    title="Merges beside their parents and base",
    items=_merges,
    settings=_accuracy_settings,
    needs=_accuracy_needs,
    run=_accuracy,
    tables=(MERGE_ACCURACY, MERGE_BASES),
    say=_say_accuracy,
)
METHODS = Analysis(
    kind="merge_methods",
    version=1,
    title="Other ways to merge",
    items=_methods_items,
    settings=_methods_settings,
    needs=_methods_needs,
    run=_methods,
    tables=(MERGE_METHODS,),
    cost=lambda study, item, shapes: evaluation_cost(2 * 6, study, item, shapes),
    say=_say_methods,
)
