"""Models to hold children against: a sham and a twin of a fine-tune, and a random counterpart.

A sham is the parent trained on with its own corpora by the recipe of the child: as many tokens, the same learning rate
and adapters. What it loses comes with training on, not with the child's text. Children of one parent that have the same
recipe share it. A twin is the child trained again with another seed, of the order of the data and of adapters. Both are
for fine-tunes that the study trains, a sham where the study says what the parent was trained on.

A random counterpart is the parent changed in the way of a child that was made without training: as many weights pruned
at random, a random direction projected out or scaled, the change that an adapter makes with rows and columns of every
matrix in random order, which keeps its size and rank. A quantized child is held against the random change of its size
that every edge has, and permuted neurons against the parent itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, seed_of
from heredity.analyses.model import Deriving, Training, deriving, save, train, training_cost, training_settings
from heredity.analyses.reading import RECORD, load, tokenizer_of
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.analyses.verdict_references import MODELS
from heredity.engine.stage import Work
from heredity.engine.store import write_json
from heredity.study import Edge, EditConfig, PruneConfig, Study


def reference_need(study: Study, edge: Edge, reference: str) -> Need | None:
    """The stage that makes the sham, twin or random counterpart of an edge; None where the study wants none or there
    can be none."""
    wanted = getattr(study.config.references, reference) and edge in study.descent
    model = study.config.model[edge.child]
    if reference == "random":
        changed = model.prune or model.adapter or (model.edit and model.edit.project_out)
        return ("reference_model", {"model": edge.child, "reference": "random"}) if wanted and changed else None
    if not wanted or model.kind != "finetune":
        return None
    if reference == "twin":
        return "reference_model", {"model": edge.child, "reference": "twin"}
    alike = (name for name in study.order if _recipe(study, name) == _recipe(study, edge.child))
    known = study.own_corpora(edge.parent)
    return ("reference_model", {"model": next(alike), "reference": "sham"}) if known else None


def _recipe(study: Study, name: str) -> Any:
    """What shams of two children must have in common to be one; passes over corpora are not as long for both."""
    model, training = study.config.model[name], training_settings(study, name)
    return study.parents[name], training, model.lora, model.kind, name if training.tokens is None else ""


def _items(study: Study) -> Iterable[Item]:
    if not study.config.verdicts.tokens:
        return ()
    needs = [reference_need(study, edge, reference) for edge in study.edges for reference in MODELS[1:]]
    return list({repr(need): need[1] for need in needs if need}.values())


def _shares(study: Study, item: Item) -> dict[str, float]:
    name = item["model"]
    return study.shares(name if item["reference"] == "twin" else study.parents[name][0])


def _settings(study: Study, item: Item) -> Training | Deriving:
    name = item["model"]
    seed = seed_of(study, item["reference"], name)
    if item["reference"] == "random":
        return deriving(study, name)._replace(seed=seed)
    training, parents = training_settings(study, name), study.parents[name]
    return Training(training, _shares(study, item), seed, study.config.model[name].lora, None, parents)


def _needs(study: Study, item: Item) -> Needs:
    name = item["model"]
    needs: Needs = {"tokenizer": tokenizer_need(study), "parent": ("model", {"model": study.parents[name][0]})}
    if item["reference"] == "random":
        return needs | {"child": ("model", {"model": name})}
    needs["tokens"] = tokens_needs(_shares(study, item))
    if item["reference"] == "sham" and training_settings(study, name).tokens is None:
        needs["child"] = ("model", {"model": name})
    return needs


def _run(work: Work, settings: Training | Deriving) -> Results:
    if isinstance(settings, Deriving):
        write_json(work.folder / RECORD, _at_random(work, settings))
        return {}
    if "child" in work.inputs:  # whose passes over its own corpora say how many tokens these are
        tokens = work.inputs["child"].json(RECORD)["tokens"]
        settings = settings._replace(training=settings.training.model_copy(update={"tokens": tokens}))
    write_json(work.folder / RECORD, train(work, settings))
    return {}


def _at_random(work: Work, settings: Deriving) -> dict[str, Any]:
    """Make the random counterpart of a child, and save it; returns its record."""
    from heredity.lm.prune import prune
    from heredity.synthetic.surgery import projected, shuffled

    parent, seed = load(work.inputs["parent"]), settings.seed
    match settings.how:
        case PruneConfig() as how:
            prune(parent, how, seed)
        case EditConfig() as how:
            direction = np.random.default_rng(seed).standard_normal((1, parent.get_input_embeddings().embedding_dim))
            parent = projected(parent, direction, how.scale, how.layers)
        case _:
            parent = shuffled(parent, load(work.inputs["child"]), seed)
    return save(work, parent, tokenizer_of(work.inputs["tokenizer"]), 0)


ANALYSIS = Analysis(
    kind="reference_model",
    version=1,
    title="Models for reference",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=training_cost,
)
