"""The stage that picks the features worth looking at and follows the case studies through every model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.features.cards import Card, LogitTokens, Places, Sizes, cards, contexts, logit_tokens
from heredity.features.families import Member, family, persistence
from heredity.stages.cases import CASES, case_of, recipe_of
from heredity.stages.models import seed_of
from heredity.stages.readers import reader_of
from heredity.stages.sample import MIN_FIRINGS, Sample
from heredity.study import Init, Study

FEATURES = "features.json"
_TOKENS, _LEVELS, _EACH, _BINS = 10, 5, 2, 30  # of a card
_REACH = 9  # tokens on either side of a weaker firing: one more than are shown, which tells that the text goes on

Chosen = tuple[str, int]
"""A model and the index of a feature there."""


def features_stage(
    study: Study,
    init: Init,
    read: Mapping[str, Stage],
    models: Mapping[str, Stage],
    saes: Mapping[str, Stage],
) -> Stage:
    """Lists of features with contexts and cards (`features.json`) and the case studies (`cases.json`).

    models, saes: by model; of those with a feature in a list they say what it predicts.
    """
    config = study.config
    seed = seed_of(study, "sample")
    settings = {
        "report": config.report.model_dump(),
        "cases": {name: recipe_of(case, study.root) for name, case in config.case.items()},
        "context_size": config.sae.context_size,
        "hook_point": config.hook_point,
        "seed": seed,
    }
    inputs = dict(read)
    inputs |= {f"model:{name}": stage for name, stage in models.items()}
    inputs |= {f"sae:{name}": stage for name, stage in saes.items()}

    def make(work: Work) -> None:
        sample = Sample(study, work, seed)
        lists, cases = _lists(study, sample), {}
        for name, case in config.case.items():
            work.progress(len(cases), len(config.case))
            cases[name], lists[f"case:{name}"] = case_of(study.followed, study.root, sample, case)
        drawn = _cards(study, work, sample, {one for chosen in lists.values() for one in chosen}, seed)
        shown = [_row(study, sample, name, one, drawn[one]) for name, chosen in lists.items() for one in chosen]
        write_json(work.folder / FEATURES, shown)
        write_json(work.folder / CASES, cases)

    return Stage("features", init, settings, inputs, make)


def _lists(study: Study, sample: Sample) -> dict[str, list[Chosen]]:
    """Names of lists -> (model, feature) in them."""
    count = study.config.report.features
    if not study.edges:
        return {}
    start = study.edges[0].parent
    common = sample.firings[start] >= MIN_FIRINGS
    score = np.where(common, persistence(start, sample.edges, sample.matches, len(common)), -1.0)
    kept = _best(score, count)
    children = [sample.matches[edge] for edge in study.edges if edge.parent == start]
    best = np.max([np.nan_to_num(found.parent_r[:, 0], nan=-1.0) for found in children], axis=0)
    changed = _best(np.where(common & (best > -1), -best, -2.0), count)
    lists = {"most persistent": [(start, i) for i in kept], "most changed": [(start, i) for i in changed]}
    for child in study.followed:
        incoming = [edge for edge in study.edges if edge.child == child]
        if not incoming:
            continue
        best = {edge: np.nan_to_num(sample.matches[edge].child_r[:, 0], nan=-1.0) for edge in incoming}
        r = np.max(list(best.values()), axis=0)
        unmatched = np.all([found <= sample.threshold[edge] for edge, found in best.items()], axis=0)
        fresh = unmatched & (sample.firings[child] >= MIN_FIRINGS)
        new = _best(np.where(fresh, -r, -2.0), count)
        lists[f"emerged in {child}"] = [(child, i) for i in new]
    return lists


def _best(score: np.ndarray, count: int) -> list[int]:
    order = np.argsort(-score, kind="stable")[:count]
    return [int(index) for index in order if score[index] > -1]


def _cards(study: Study, work: Work, sample: Sample, chosen: set[Chosen], seed: int) -> dict[Chosen, Card]:
    """A card for each feature; of one model after the other, so that one is in memory at a time."""
    vocabulary = len(sample.vocabulary)  # all that a feature fires on, for its total
    sizes = Sizes(study.config.report.contexts, _LEVELS, _EACH, drawn=0, silent=0, tokens=vocabulary, bins=_BINS)
    found = {}
    for model in study.followed:
        own = np.array(sorted(feature for owner, feature in chosen if owner == model), np.int64)
        if len(own):
            logits = logits_of(study, work.inputs[f"model:{model}"], work.inputs[f"sae:{model}"], own)
            made = cards(sample.acts[model], sample.ids, own, sizes, seed, logits)
            found |= {(model, card.feature): card for card in made}
    return found


def logits_of(study: Study, model: Artifact, sae: Artifact, features: np.ndarray) -> LogitTokens | str:
    """What features of a model's SAE predict, int [n], or why that is not known."""
    reader = reader_of(study, model, [sae])()
    directions = reader.saes[0].W_dec
    try:
        own = directions[torch.from_numpy(features).to(directions.device)]
        return logit_tokens(reader.model, reader.hook_point, own, _TOKENS)
    except ValueError as error:  # a model without a head
        return str(error)


def _row(study: Study, sample: Sample, name: str, chosen: Chosen, card: Card) -> dict[str, Any]:
    """What the report shows of a feature: its family, its contexts with every member's activations, its card."""
    (model, feature), size = chosen, study.config.sae.context_size
    members = family(model, feature, sample.edges, sample.matches)
    known = {member.model: (sample.acts[member.model], member.feature) for member in members}
    shown = [
        block_of(sample, found.block) | {"position": found.position, "values": found.values}
        for found in contexts(card.top.rows.tolist(), known, size)
    ]
    return {
        "list": name,
        "model": model,
        "feature": feature,
        "density": card.density,
        "max": card.highest,
        "family": [member_of(sample, member) for member in members],
        "contexts": shown,
        "card": _card(sample, card),
    }


def block_of(sample: Sample, block: int) -> dict[str, Any]:
    """A block of the sample as text."""
    return {
        "corpus": sample.names[sample.origin[block]],
        "tokens": [sample.vocabulary[token] for token in sample.ids[block].tolist()],
    }


def _card(sample: Sample, card: Card) -> dict[str, Any]:
    """The tokens a feature fires on, how strongly it does, weaker firings, and what it predicts."""
    return {
        "firings": card.firings,
        "tokens": fired_on(sample, card)[:_TOKENS],
        "histogram": card.histogram.tolist(),
        "weaker": [
            {
                "low": card.highest * (_LEVELS - 1 - place) / _LEVELS,
                "high": card.highest * (_LEVELS - place) / _LEVELS,
                "contexts": _windows(sample, found),
            }
            for place, found in enumerate(card.levels)
            if place and len(found.rows)
        ],
        **predicted(sample, card),
    }


def fired_on(sample: Sample, card: Card) -> list[dict[str, Any]]:
    """The tokens of a card that holds all that its feature fires on, each with its share of the activation."""
    tokens = card.tokens
    shares = tokens.total / tokens.total.sum()
    columns = (part.tolist() for part in (tokens.ids, shares, tokens.firings, tokens.mean, tokens.share))
    return [
        {"token": _text(sample, token), "share": share, "firings": firings, "mean": mean, "fired": fired}
        for token, share, firings, mean, fired in zip(*columns, strict=True)
    ]


def predicted(sample: Sample, card: Card) -> dict[str, Any]:
    """The tokens that the feature of a card promotes and suppresses, or why they are not known."""
    logits = card.logits
    return {
        "promoted": _pushed(sample, logits.top, logits.top_weights) if logits else [],
        "suppressed": _pushed(sample, logits.bottom, logits.bottom_weights) if logits else [],
        "no_logits": card.no_logits,
    }


def _pushed(sample: Sample, tokens: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"token": _text(sample, token), "weight": weight}
        for token, weight in zip(tokens.tolist(), weights.tolist(), strict=True)
    ]


def _text(sample: Sample, token: int) -> str:
    """A token as text; a model may have rows for more than the tokenizer knows."""
    return sample.vocabulary[token] if token < len(sample.vocabulary) else f"#{token}"


def _windows(sample: Sample, found: Places) -> list[dict[str, Any]]:
    """A little text around each place."""
    rows = []
    for row, values in zip(found.rows.tolist(), found.values, strict=True):
        block, position = divmod(row, sample.ids.shape[1])
        start, end = max(0, position - _REACH), position + _REACH + 1
        rows.append(
            {
                "corpus": sample.names[sample.origin[block]],
                "tokens": [sample.vocabulary[token] for token in sample.ids[block, start:end].tolist()],
                "position": position - start,
                "values": [round(float(value), 4) for value in values[start:end]],
            }
        )
    return rows


def member_of(sample: Sample, member: Member) -> dict[str, Any]:
    """A member of a family, the share of the sample's tokens it fires on, and its highest activation there."""
    acts = sample.acts[member.model]
    mine = acts.values[acts.indices == member.feature]
    return {**member._asdict(), "density": len(mine) / acts.tokens, "max": float(mine.max()) if len(mine) else 0.0}
