"""Questions that a run answers at once: which features mean some tokens, and all that is known of one feature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from heredity.analyses.explain import asking_of, explain_settings
from heredity.analyses.features import fired_on, logits_of, member_of, predicted
from heredity.analyses.hypotheses import described, hypothesis_of, kind_of, measured, top_tokens
from heredity.analyses.sae import sae_need
from heredity.analyses.sample import Sample, sample_needs, sample_settings
from heredity.engine.store import ArtifactError
from heredity.study import CaseConfig, Study, StudyError

if TYPE_CHECKING:
    from heredity.features.cards import Card, LogitTokens, Places
    from heredity.features.families import Member
    from heredity.features.hypothesis import Ranking
    from heredity.results import Run


def check_followed(study: Study, name: str, place: str) -> None:
    """Raises ValueError, which names the place, for no model of the study and for one whose features it leaves out."""
    if name not in study.order:
        raise ValueError(f"{place}: no model of study {study.name}; models are {', '.join(study.order)}")
    if study.followed and name not in study.followed:
        own = ", ".join(study.followed)
        raise ValueError(f"{place}: {name} is on no edge, so its features are not followed; those of {own} are")


def sample_of(run: Run, models: Sequence[str], matched: bool = False) -> Sample:
    """The sample of a run, with the activations of these models, and the matches that are done.

    Raises ArtifactError for what is missing (all matches must be there if `matched`), ValueError for a study of
    stitches alone.
    """
    study = run.study
    if not study.instruments:
        raise ValueError(f"study {study.name} has stitches alone, no SAE of its models; see `heredity stitch`")
    needs: Any = sample_needs(study, {"instrument": study.instrument, "site": study.site})
    inputs: dict[str, Any] = {"tokenizer": run.artifact(needs["tokenizer"]), "match": {}}
    inputs["tokens"] = {name: run.artifact(need) for name, need in needs["tokens"].items()}
    inputs["acts"] = {name: run.artifact(needs["acts"][name]) for name in models}
    for name, need in needs["match"].items():
        with nullcontext() if matched else suppress(ArtifactError):
            inputs["match"][name] = run.artifact(need)
    return Sample(inputs, sample_settings(study))


def find(
    run: Run, case: CaseConfig, models: Sequence[str] = (), by: Ranking = "sensitivity", top: int = 10
) -> dict[str, Any]:
    """The features of each model that fit a hypothesis, best first, and what became of them along every edge.

    models: names; all by default. Only tokens, tokenizer and the activations of these models must be done; an edge that
    is not matched yet is left out. Raises ValueError for a stage that is missing, an unknown model, and a hypothesis
    that holds nowhere in the sample or everywhere.
    """
    from heredity.features.hypothesis import MINIMUM_FIRINGS, hits, llr, ranked

    study = run.study
    models = models or study.followed
    for name in models:
        check_followed(study, name, f"--model {name}")
    sample = sample_of(run, models)
    sampled, kept = sample.common
    ids = sample.ids if kept is None else sample.ids.ravel()[kept]
    held = hits(hypothesis_of(case, study.root), sample.ids, sample.vocabulary).at(kept)
    asked = described(case, held, ids, sample.vocabulary)
    if not 0 < asked["hits"] < asked["positions"]:
        absent = f"; not in the vocabulary: {asked['not_in_vocabulary']}" if asked["not_in_vocabulary"] else ""
        raise ValueError(
            f"{asked['hits']} of the sample's {asked['positions']:,} tokens fit {kind_of(asked['hypothesis'])}{absent}"
            "; give tokens that occur in some places, as they are written in this vocabulary"
        )
    rows: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for model in models:
        acts = sampled[model]
        ratios = llr(acts, held.mask, held.unigram)
        for feature in ranked(ratios, by, top).tolist():
            row = measured(ratios, feature) | {"density": int(ratios.firings[feature]) / acts.counted}
            tokens = top_tokens(acts, feature, ids, sample.vocabulary)
            row |= {"matches": _matches(sample, model, feature), "verdicts": _verdicts(run, model, feature)}
            rows[model].append(row | {"top_tokens": tokens})
    head = {
        "study": study.name,
        "instrument": study.instrument,
        "site": study.site,
        "by": by,
        "minimum_firings": MINIMUM_FIRINGS,
    }
    return head | asked | {"models": rows}


def show(run: Run, model: str, feature: int) -> dict[str, Any]:
    """All that is known of one feature, as a JSON object.

    - `positions`, `context_size`: tokens of the sample, and of a block.
    - `class`: a row of table `feature_classes`; null where that stage is not done.
    - `explanation`: a row of table `explanations` without its rule; `on_the_spot`: made by statistics just now.
    - `histogram`: firings in equal bins of activation from 0 to `max`.
    - `tokens`: those it fires on, the largest `share` of its activation first; `fired`: share of their occurrences.
    - `promoted`, `suppressed`: `token` and `weight` in the logits; `no_logits`: why these are empty.
    - `matches`: best match along every edge of its model. `verdicts`: what became of it along each by evidence, as far
      as that stage is done; `transmission` and `strength` over their scale. `family`: itself first.
    - `top`: strongest firings, each with its block (`corpus`, `tokens`), `position` in it, `values` (activations) and
      `family` (those of the other members, by model). `levels`: examples by interval of activation, the strongest
      first. `drawn`: firings at random. `silent`: blocks without a firing.

    Raises ValueError for a stage up to acts and match that is missing, an unknown model, and a number beyond its SAE.
    """
    from heredity.features.cards import Sizes, cards
    from heredity.features.families import family

    study = run.study
    check_followed(study, model, f"{model}/{feature}")
    sample = sample_of(run, study.followed, matched=True)
    acts, own = sample.acts[model], np.array([feature], np.int64)
    if not 0 <= feature < acts.d_sae:
        raise ValueError(f"{model}/{feature}: its SAE has {acts.d_sae:,} features, counted from 0")
    sizes = Sizes(tokens=len(sample.vocabulary))  # all tokens, for the total
    (card,) = cards(acts, sample.ids, own, sizes, sample_settings(study).seed, _logits(run, model, own))
    members = family(model, feature, sample.edges, sample.matches)
    return {
        "study": study.name,
        "instrument": study.instrument,
        "site": study.site,
        "model": model,
        "feature": feature,
        "positions": sample.ids.size,
        "context_size": sample.ids.shape[1],
        "class": _class(run, model, feature),
        "explanation": _explanation(run, sample, model, feature),
        "firings": card.firings,
        "density": card.density,
        "max": card.highest,
        "histogram": card.histogram.tolist(),
        "tokens": fired_on(sample, card)[: Sizes().tokens],
        **predicted(sample, card),
        "matches": _matches(sample, model, feature),
        "verdicts": _verdicts(run, model, feature),
        "family": [member_of(sample, member) for member in members],
        **_examples(sample, card, members),
    }


def _examples(sample: Sample, card: Card, members: Sequence[Member]) -> dict[str, Any]:
    """The examples of a card. members: its feature's family, itself first."""
    from heredity.features.cards import contexts

    known = {member.model: (sample.acts[member.model], member.feature) for member in members}
    top, levels, count = [], [], len(card.levels)
    for context in contexts(card.top.rows.tolist(), known, sample.ids.shape[1]):
        others = dict(context.values)
        values = others.pop(members[0].model)
        top.append(sample.block(context.block) | {"position": context.position, "values": values, "family": others})

    def blocks(places: Places) -> list[dict[str, Any]]:
        rows = []
        for row, values in zip(places.rows.tolist(), places.values.tolist(), strict=True):
            block, position = divmod(row, sample.ids.shape[1])
            rows.append(sample.block(block) | {"position": position, "values": [round(value, 4) for value in values]})
        return rows

    for place, places in enumerate(card.levels):
        low, high = (card.highest * (count - step - place) / count for step in (1, 0))
        levels.append({"low": low, "high": high, "examples": blocks(places)})
    silent = [sample.block(block) for block in card.silent.tolist()]
    return {"top": top, "levels": levels, "drawn": blocks(card.drawn), "silent": silent}


def _logits(run: Run, model: str, features: np.ndarray) -> LogitTokens | str:
    study = run.study
    try:
        weights = run.artifact(("model", {"model": model}))
        sae = run.artifact(sae_need(study, model, study.instrument, study.site))
        return logits_of(weights, sae, features, study.site, study.config.precision)
    except (ArtifactError, StudyError) as error:  # not done; or the model has gone since the run
        return str(error)


def _class(run: Run, model: str, feature: int) -> dict[str, Any] | None:
    rows = _rows(run, "classes", "feature_classes", model, feature)
    silent = {"class": "silent", "single_token": False, "domain": None, "domain_share": None, "top_token": None}
    return None if rows is None else {name: rows[0][name] for name in silent} if rows else silent


def _explanation(run: Run, sample: Sample, model: str, feature: int) -> dict[str, Any]:
    from heredity.explain.propagate import hand_down, label_rows

    rows = known = _rows(run, "explain", "explanations", model, feature)
    if not rows:
        settings = explain_settings(run.study)
        asking = asking_of(sample, settings)
        labels = hand_down({model: [feature]}, (), {}, asking.explain, asking.score, settings.explain.drop)
        rows = label_rows(labels, asking.judge.name)
    left_out = ("instrument", "site", "model", "feature", "rule")
    row = {name: value for name, value in rows[0].items() if name not in left_out}
    undefined = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return row | undefined | {"on_the_spot": not known}


def _rows(run: Run, kind: str, table: str, model: str, feature: int) -> list[dict[str, Any]] | None:
    """What the table of a stage says of a feature; None where the stage is not done."""
    artifact = run.find((kind, {"instrument": run.study.instrument, "site": run.study.site}))
    if artifact is None:
        return None
    path = artifact / f"{table}.parquet"
    return pq.read_table(path, filters=[("model", "=", model), ("feature", "=", feature)]).to_pylist()


def _matches(sample: Sample, model: str, feature: int) -> list[dict[str, Any]]:
    """Best match of a feature along each edge of its model: child features first, then parent features."""
    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in sample.edges:
            if getattr(edge, end) != model:
                continue
            matches, threshold = sample.matches[edge], sample.threshold[edge]
            match, r = getattr(matches, f"{end}_match")[feature, 0], getattr(matches, f"{end}_r")[feature, 0]
            found = {"feature": int(match), "r": float(r)} if match >= 0 else {"feature": None, "r": None}
            row = {"edge": edge.name, "model": getattr(edge, other)} | found
            rows.append(row | {"threshold": threshold, "persists": bool(r > threshold)})
    return rows


def _verdicts(run: Run, model: str, feature: int) -> list[dict[str, Any]]:
    """Verdict on a feature and its evidence along each edge of its model that has them: child features first."""
    rows = []
    for end, other in (("parent", "child"), ("child", "parent")):
        for edge in (edge for edge in run.study.edges if getattr(edge, end) == model):
            item = {"instrument": run.study.instrument, "site": run.study.site, "edge": edge.name, "text": "common"}
            artifact = run.find(("verdicts", item))
            if artifact is None:
                continue
            filters = [("end", "=", end), ("feature", "=", feature)]
            judged = pq.read_table(artifact / "verdicts.parquet", filters=filters[:1]).to_pylist()
            for row in pq.read_table(artifact / "evidence.parquet", filters=filters).to_pylist() if judged else ():
                found = {name: row[name] for name in ("verdict", "stability", "match_r", "map_r", "p_lost")}
                for name in ("transmission", "strength"):
                    found[name] = None if row[name] is None else row[name] / judged[0]["scale"]
                rows.append({"edge": edge.name, "model": getattr(edge, other), "end": end, **found})
    return rows
