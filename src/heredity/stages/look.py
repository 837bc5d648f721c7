"""What is asked of a study that has been run, and answered from its artifacts at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here
from heredity.explain.propagate import hand_down
from heredity.features.cards import Card, LogitTokens, Places, Sizes, cards, contexts
from heredity.features.families import Member, family
from heredity.features.hypothesis import MINIMUM_FIRINGS, Ranking, hits, llr, ranked
from heredity.stages import stages_of
from heredity.stages.cases import described, hypothesis_of, kind_of, measured, top_tokens
from heredity.stages.classes import CLASSES_TABLE
from heredity.stages.explain import EXPLANATIONS, asking_of, table_of
from heredity.stages.features import block_of, fired_on, logits_of, member_of, predicted
from heredity.stages.models import seed_of
from heredity.stages.sample import Sample
from heredity.study import CaseConfig, Study


def check_followed(study: Study, name: str, place: str) -> None:
    """Raises ValueError, which names the place, for no model of the study and for one whose features it leaves out."""
    if name not in study.order:
        raise ValueError(f"{place}: no model of study {study.name}; models are {', '.join(study.order)}")
    if study.followed and name not in study.followed:
        raise ValueError(
            f"{place}: {name} is on no edge, so that its features are not followed; those of "
            f"{', '.join(study.followed)} are"
        )


def find(
    study: Study, store: Store, case: CaseConfig, models: Sequence[str], by: Ranking = "sensitivity", top: int = 10
) -> dict[str, Any]:
    """The features of each model that fit a hypothesis, best first, and what became of them along every edge.

    models: names; none for all. Only tokens, tokenizer and the activations of these models must be there; an edge that
    is not matched yet is left out. Raises ValueError for a stage that is missing, an unknown model, and a hypothesis
    that holds nowhere in the sample or everywhere.
    """
    models = models or study.followed
    for name in models:
        check_followed(study, name, f"--model {name}")
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


def show(study: Study, store: Store, model: str, feature: int) -> dict[str, Any]:
    """All that is known of one feature, as a JSON object.

    - `study`, `init` (of the SAEs), `model`, `feature`; `positions`, `context_size`: tokens of the sample, and of a
      block of it.
    - `class`: a row of `classes.parquet` (`class`, `single_token`, `domain`, `domain_share`, `top_token`); null where
      that stage is not done.
    - `explanation`: a row of `explanations.parquet` without its rule (`description`, null where `failure` says why,
      `by`, `origin_model`, `origin_feature`, `carried`, `re_explained`, scores and their sizes, `cost`), with
      `on_the_spot`: whether the run did not explain the feature, so that statistics did just now.
    - `firings`, `density`, `max`, `histogram` (firings in equal bins of activation from 0 to `max`).
    - `tokens`: it fires on, the largest share first: `token`, `share` of its activation, `firings`, `mean` activation,
      `fired` (share of the token's occurrences).
    - `promoted`, `suppressed`: `token` and `weight` in the logits; `no_logits`: why these are empty.
    - `matches`: best match along every edge of its model: `edge`, `model`, `feature`, `r`, `threshold`, `persists`.
    - `family`: `model`, `feature`, `r`, `via`, `density`, `max`; itself first.
    - `top`: strongest firings, each with `corpus`, `tokens` of its block, `position` in it, `values` (activations)
      and `family` (those of the other members, by model). `levels`: intervals of activation, the strongest first, with
      `low`, `high` and `examples`; `drawn`: firings at random; `silent`: blocks without a firing. These alike, without
      `family`; silent ones without `position` and `values`.

    Everything up to acts and match must be there. Raises ValueError for a stage that is missing, an unknown model, and
    a number that its SAE does not have.
    """
    check_followed(study, model, f"{model}/{feature}")
    sample = Sample(study, done_work(study, store, study.followed, matched=True), seed_of(study, "sample"))
    acts, own = sample.acts[model], np.array([feature], np.int64)
    if not 0 <= feature < acts.d_sae:
        raise ValueError(f"{model}/{feature}: its SAE has {acts.d_sae:,} features, counted from 0")
    sizes, logits = Sizes(tokens=len(sample.vocabulary)), _logits(study, store, model, own)  # all tokens, for the total
    (card,) = cards(acts, sample.ids, own, sizes, seed_of(study, "sample"), logits)
    members = family(model, feature, sample.edges, sample.matches)
    return {
        "study": study.name,
        "init": study.instrument,
        "model": model,
        "feature": feature,
        "positions": sample.ids.size,
        "context_size": sample.ids.shape[1],
        "class": _class(study, store, model, feature),
        "explanation": _explanation(study, store, sample, model, feature),
        "firings": card.firings,
        "density": card.density,
        "max": card.highest,
        "histogram": card.histogram.tolist(),
        "tokens": fired_on(sample, card)[: Sizes().tokens],
        **predicted(sample, card),
        "matches": _became(model, feature, sample),
        "family": [member_of(sample, member) for member in members],
        **_examples(sample, card, members),
    }


def _examples(sample: Sample, card: Card, members: Sequence[Member]) -> dict[str, Any]:
    """The examples of a card. members: its feature's family, itself first."""
    known = {member.model: (sample.acts[member.model], member.feature) for member in members}
    top, count = [], len(card.levels)
    for found in contexts(card.top.rows.tolist(), known, sample.ids.shape[1]):
        others = dict(found.values)
        values = others.pop(members[0].model)
        top.append(block_of(sample, found.block) | {"position": found.position, "values": values, "family": others})
    levels = [
        {
            "low": card.highest * (count - 1 - place) / count,
            "high": card.highest * (count - place) / count,
            "examples": _blocks(sample, found),
        }
        for place, found in enumerate(card.levels)
    ]
    silent = [block_of(sample, block) for block in card.silent.tolist()]
    return {"top": top, "levels": levels, "drawn": _blocks(sample, card.drawn), "silent": silent}


def _blocks(sample: Sample, found: Places) -> list[dict[str, Any]]:
    rows = []
    for row, values in zip(found.rows.tolist(), found.values.tolist(), strict=True):
        block, position = divmod(row, sample.ids.shape[1])
        rows.append(
            block_of(sample, block) | {"position": position, "values": [round(float(value), 4) for value in values]}
        )
    return rows


def _logits(study: Study, store: Store, model: str, features: np.ndarray) -> LogitTokens | str:
    stage = _stage(study, "features")
    assert stage is not None
    sources = [stage.inputs[f"{kind}:{model}"] for kind in ("model", "sae")]
    found = [store.find(source.kind, source.name, source.key) for source in sources]
    for source, artifact in zip(sources, found, strict=True):
        if artifact is None:
            return f"{source.label} is not in {store.root}"
    weights, sae = (artifact for artifact in found if artifact is not None)
    return logits_of(study, weights, sae, features)


def _class(study: Study, store: Store, model: str, feature: int) -> dict[str, Any] | None:
    rows = _rows(study, store, "classes", CLASSES_TABLE, model, feature)
    silent = {"class": "silent", "single_token": False, "domain": None, "domain_share": None, "top_token": None}
    if rows is None:
        return None
    return {name: rows[0][name] for name in silent} if rows else silent


def _explanation(study: Study, store: Store, sample: Sample, model: str, feature: int) -> dict[str, Any]:
    known = _rows(study, store, "explain", EXPLANATIONS, model, feature)
    rows = known
    if not rows:
        asking = asking_of(study, sample)
        labels = hand_down({model: [feature]}, (), {}, asking.explain, asking.score, study.config.explain.drop)
        rows = table_of(labels, asking.judge.name).to_pylist()
    said = {name: _defined(value) for name, value in rows[0].items() if name not in ("model", "feature", "rule")}
    return said | {"on_the_spot": not known}


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(study: Study, store: Store, kind: str, table: str, model: str, feature: int) -> list[dict[str, Any]] | None:
    """What the table of a stage says of a feature; None where the stage is not done."""
    stage = _stage(study, kind)
    found = store.find(stage.kind, stage.name, stage.key) if stage else None
    if found is None:
        return None
    return pq.read_table(found / table, filters=[("model", "=", model), ("feature", "=", feature)]).to_pylist()


def _stage(study: Study, kind: str) -> Stage | None:
    """A stage that reads the sample with the study's instrument; None where the study has none of this kind."""
    label = f"{kind}/{study.instrument}"
    return next((stage for stage in stages_of(study) if stage.label == label), None)


def done_work(study: Study, store: Store, models: Sequence[str], matched: bool = False) -> Work:
    """What the classes stage reads, as far as it is done: tokens, tokenizer, activations of these models, matches.

    Raises ValueError for what is missing; matches may be, unless `matched`.
    """
    stage = _stage(study, "classes")
    if stage is None:
        raise ValueError(f"study {study.name} has stitches alone, no SAE of its models; see `heredity stitch`")
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
