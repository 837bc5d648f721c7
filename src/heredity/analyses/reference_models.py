"""Models trained to hold fine-tunes against: a sham, and a twin.

A sham is the parent trained on with its own corpora by the recipe of the child: as many tokens, the same learning rate
and adapters. What it loses comes with training on, not with the child's text. Children of one parent that have the same
recipe share it. A twin is the child trained again with another seed, of the order of the data and of adapters. Both are
for fine-tunes that the study trains, a sham where the study says what the parent was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, seed_of
from heredity.analyses.model import Training, train, training_cost, training_settings
from heredity.analyses.reading import RECORD
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import write_json
from heredity.study import Edge, Study


def reference_need(study: Study, edge: Edge, reference: str) -> Need | None:
    """The stage that trains the sham or twin of an edge; None where the study wants none or there can be none."""
    wanted = getattr(study.config.references, reference) and edge in study.descent
    if not wanted or study.config.model[edge.child].kind != "finetune":
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
    needs = [reference_need(study, edge, reference) for edge in study.edges for reference in ("sham", "twin")]
    return list({repr(need): need[1] for need in needs if need}.values())


def _shares(study: Study, item: Item) -> dict[str, float]:
    name = item["model"]
    return study.shares(name if item["reference"] == "twin" else study.parents[name][0])


def _settings(study: Study, item: Item) -> Training:
    name = item["model"]
    seed = seed_of(study, item["reference"], name)
    training, parents = training_settings(study, name), study.parents[name]
    return Training(training, _shares(study, item), seed, study.config.model[name].lora, None, parents)


def _needs(study: Study, item: Item) -> Needs:
    name = item["model"]
    needs: Needs = {"tokenizer": tokenizer_need(study), "tokens": tokens_needs(_shares(study, item))}
    needs["parent"] = ("model", {"model": study.parents[name][0]})
    if item["reference"] == "sham" and training_settings(study, name).tokens is None:
        needs["child"] = ("model", {"model": name})
    return needs


def _run(work: Work, settings: Training) -> Results:
    if "child" in work.inputs:  # whose passes over its own corpora say how many tokens these are
        tokens = work.inputs["child"].json(RECORD)["tokens"]
        settings = settings._replace(training=settings.training.model_copy(update={"tokens": tokens}))
    write_json(work.folder / RECORD, train(work, settings))
    return {}


ANALYSIS = Analysis(
    kind="reference_model",
    version=1,
    title="Fine-tunes for reference",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=training_cost,
)
