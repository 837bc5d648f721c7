"""What is asked of a study that has been run, and answered from its artifacts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heredity.artifacts import Artifact, Store
from heredity.config import CaseConfig
from heredity.engine import Work
from heredity.features.hypothesis import MINIMUM_FIRINGS, Ranking, llr, ranked
from heredity.features.predicates import hits
from heredity.shards import Here
from heredity.stages import stages_of
from heredity.stages.cases import described, hypothesis_of, kind_of, measured, top_tokens
from heredity.stages.models import seed_of
from heredity.stages.sample import Sample
from heredity.study import Study


def find(
    study: Study, store: Store, case: CaseConfig, models: Sequence[str], by: Ranking = "sensitivity", top: int = 10
) -> dict[str, Any]:
    """The features of each model that fit a hypothesis, best first, and what became of them along every edge.

    models: names; none for all. Only tokens, tokenizer and the activations of these models must be there; an edge that
    is not matched yet is left out. Raises ValueError for a stage that is missing, an unknown model, and a hypothesis
    that holds nowhere in the sample or everywhere.
    """
    models = models or study.order
    if unknown := [name for name in models if name not in study.order]:
        raise ValueError(f"--model {unknown[0]}: no model of study {study.name}; models are {', '.join(study.order)}")
    sample = Sample(study, done_work(study, store, models), seed_of(study, "sample"))
    ids, vocabulary = sample.ids, sample.vocabulary
    held = hits(hypothesis_of(case, study.root), ids, vocabulary)
    asked = described(case, held, ids, vocabulary)
    if not 0 < asked["hits"] < asked["positions"]:
        absent = f"; not in the vocabulary: {asked['not_in_vocabulary']}" if asked["not_in_vocabulary"] else ""
        what = kind_of(asked["hypothesis"])
        raise ValueError(
            f"{asked['hits']} of the sample's {asked['positions']:,} tokens fit {what}{absent}; "
            "ask for tokens that stand in some places, as they are written in this vocabulary"
        )
    rows: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        acts = sample.acts[model]
        found = llr(acts, held.mask)
        rows[model] = [
            measured(found, feature)
            | {
                "density": int(found.firings[feature]) / acts.tokens,
                "matches": _became(model, feature, sample),
                "top_tokens": top_tokens(acts, feature, ids, vocabulary),
            }
            for feature in ranked(found, by, top).tolist()
        ]
    head = {"study": study.name, "init": study.instrument, "by": by, "minimum_firings": MINIMUM_FIRINGS}
    return head | asked | {"models": rows}


def done_work(study: Study, store: Store, models: Sequence[str], matched: bool = False) -> Work:
    """What the classes stage reads, as far as it is done: tokens, tokenizer, activations of these models, matches.

    Raises ValueError for what is missing; matches may be, unless `matched`.
    """
    (stage,) = [stage for stage in stages_of(study) if stage.label == f"classes/{study.instrument}"]
    inputs: dict[str, Artifact] = {}
    for role, source in stage.inputs.items():
        kind, _, name = role.partition(":")
        if kind == "acts" and name not in models:
            continue
        found = store.find(source.kind, source.name, source.key)
        if found is not None:
            inputs[role] = found
        elif matched or kind != "match":
            raise ValueError(
                f"{source.label} of study {study.name} is not done in {store.root}; `heredity run` the study first, "
                f"until {source.kind} at least"
            )
    return Work(store.root, inputs, {}, lambda done, total: None, Here())  # noqa: ARG005 - nobody watches


def _became(model: str, feature: int, sample: Sample) -> list[dict[str, Any]]:
    """Best match of a feature along each edge of its model: child features first, then parent features."""
    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in sample.edges:
            if getattr(edge, end) != model:
                continue
            matches, threshold = sample.matches[edge], sample.threshold[edge]
            match, r = getattr(matches, f"{end}_match")[feature, 0], getattr(matches, f"{end}_r")[feature, 0]
            rows.append(
                {
                    "edge": edge.name,
                    "model": getattr(edge, other),
                    "feature": int(match) if match >= 0 else None,
                    "r": float(r) if match >= 0 else None,
                    "threshold": threshold,
                    "persists": bool(r > threshold),
                }
            )
    return rows
