"""Case studies: a hypothesis of the study file, put to every model and followed along the lineage."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from heredity.errors import short
from heredity.study import CaseConfig, StudyError
from heredity.text.corpora import file_digest

if TYPE_CHECKING:
    from heredity.analyses.sample import Sample
    from heredity.features.acts import FeatureActs
    from heredity.features.families import Place
    from heredity.features.hypothesis import LLR, Hits, Hypothesis, Predicate

_SHOWN_TOKENS = 12  # of a set that is given by a pattern or a script


def recipe_of(case: CaseConfig, folder: Path) -> dict[str, Any]:
    """The settings of a case for a stage's recipe; of a predicate the content of its file as well.

    folder: the study file's. Raises StudyError for a predicate that cannot be imported.
    """
    recipe = case.model_dump()
    if case.predicate is not None:
        function = inspect.unwrap(_imported(case.predicate, folder))
        source = inspect.getsourcefile(function) if inspect.isfunction(function) else None
        if source is None or not Path(source).is_file():
            raise StudyError(f"predicate {case.predicate!r}: is no function of a Python file; write one of your own")
        recipe["source"] = file_digest([Path(source)])
    return recipe


def hypothesis_of(case: CaseConfig, folder: Path) -> Hypothesis:
    """The hypothesis of a case; the module of a predicate is looked for in `folder` first."""
    from heredity.features.hypothesis import Hypothesis

    predicate = _imported(case.predicate, folder) if case.predicate is not None else None
    return Hypothesis(case.tokens, case.strings, case.regex, case.script, predicate)


def described(case: CaseConfig, found: Hits, ids: np.ndarray, vocabulary: list[str]) -> dict[str, Any]:
    """What was asked, and where it holds on the sample.

    `tokens` are those of the file or, for a pattern or a script, the most frequent of the set; `set_size` counts
    tokens of the vocabulary and is null for strings and predicates, which choose positions.
    """
    ((kind, value),) = case.model_dump(exclude_none=True).items()
    chosen, shown = found.vocabulary, list(case.tokens or case.strings or ())
    if chosen is not None and case.tokens is None:
        count = np.where(chosen, np.bincount(ids.ravel(), minlength=len(vocabulary)), 0)
        order = np.argsort(-count, kind="stable")[:_SHOWN_TOKENS]
        shown = [vocabulary[token] for token in order if count[token]]
    return {
        "hypothesis": {"kind": kind, "value": list(value) if isinstance(value, tuple) else value},
        "tokens": shown,
        "not_in_vocabulary": [text for text in case.tokens or () if text not in vocabulary],
        "set_size": None if chosen is None else int(chosen.sum()),
        "positions": len(found.mask),
        "hits": int(found.mask.sum()),
        "base_rate": float(found.mask.mean()) if len(found.mask) else None,
        "unigram": found.unigram if found.unigram is not None or not len(found.mask) else float(found.mask.mean()),
    }


def measured(found: LLR, feature: int) -> dict[str, Any]:
    """How well one feature fits; a number that is not finite is null."""
    from heredity.features.hypothesis import fitting

    ratios = {"llr": found.weighted, "llr_counted": found.counted, "llr_unigram": found.unigram}
    ratios |= {"sensitivity": found.sensitivity}
    ratios |= {"elsewhere": found.elsewhere, "elsewhere_mean": found.elsewhere_mean}
    counts = {"firings": int(found.firings[feature]), "hits": int(found.hits[feature])}
    fits = {"fits": bool(fitting(found)[feature]), "base_rate": found.base_rate}
    return {"feature": feature, **{name: _finite(own[feature]) for name, own in ratios.items()}, **counts, **fits}


def top_tokens(acts: FeatureActs, feature: int, ids: np.ndarray, vocabulary: list[str]) -> list[dict[str, Any]]:
    """The tokens that a feature is most active on, each with its share of the activation and its own LLR."""
    from heredity.features.hypothesis import token_shares

    columns = (column.tolist() for column in token_shares(acts, feature, ids.ravel(), 5))
    return [
        {"token": vocabulary[token], "share": share, "llr": _finite(ratio), "firings": firings}
        for token, share, ratio, firings in zip(*columns, strict=True)
    ]


def case_of(folder: Path, sample: Sample, case: CaseConfig) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """One entry of `cases.json`, and the (model, feature) pairs whose contexts are worth showing.

    folder: the study file's.
    """
    from heredity.features.families import follow
    from heredity.features.hypothesis import agreement, hits, llr
    from heredity.features.null import PAPER

    order = sample.models
    acts, kept = sample.common
    ids = sample.ids if kept is None else sample.ids.ravel()[kept]
    held = hits(hypothesis_of(case, folder), sample.ids, sample.vocabulary).at(kept)
    result = described(case, held, ids, sample.vocabulary)
    if not 0 < result["hits"] < result["positions"]:
        empty = {"start": None, "emerges": False, "models": {}, "best": {}, "misses": [], "pairs": [], "top_tokens": []}
        which = "nothing" if not result["hits"] else "every token"
        unknown = dict.fromkeys(("mean_r", "pairs_r", "paper_verdict"))
        return {**result, **empty, **unknown, "lost": [], "verdict": f"{which} in the sample fits"}, []
    found = {model: llr(acts[model], held.mask, held.unigram) for model in order}
    course = follow(order, sample.edges, sample.matches, sample.threshold, found)
    paper = follow(order, sample.edges, sample.matches, dict.fromkeys(sample.edges, PAPER), found)
    places = course.places
    pairs = [_pair(sample, one, other) for one, other in itertools.combinations(places.values(), 2)]
    related = [pair["r"] for pair in pairs if pair["r"] is not None]
    same = [place for place in places.values() if place.status in ("start", "kept")]
    silent = [place.model for place in same if not found[place.model].hits[place.feature]]
    no_hit = f"; its match in {', '.join(silent)} never fires on the set" if silent else ""
    lost = [place for place in places.values() if place.status in ("lost", "absent")]
    best: dict[str, dict[str, Any] | None] = dict.fromkeys(order)  # with its r to the family's feature there
    for model in order:
        if (feature := course.best[model]) is not None:
            place = places.get(model)
            r = None if place is None else _finite(agreement(acts[model], feature, place.feature))
            best[model] = measured(found[model], feature) | {"r": r}
    result |= {
        "start": course.start,
        "emerges": course.emerges,
        "models": {model: measured(found[model], place.feature) | place._asdict() for model, place in places.items()},
        "best": best,
        "misses": [_miss(sample, found[place.model], place) for place in lost],
        "pairs": pairs,
        "top_tokens": [],
        "mean_r": course.mean_r,
        "pairs_r": float(np.mean(related)) if related else None,
        "lost": [place.model for place in lost],
        "verdict": course.verdict + no_hit,
        "paper_verdict": paper.verdict,
    }
    if course.start is None:
        return result, []
    feature = places[course.start].feature
    result["top_tokens"] = top_tokens(acts[course.start], feature, ids, sample.vocabulary)
    followed = {place.model for place in same}
    others = [(model, own) for model, own in course.best.items() if own is not None and model not in followed]
    return result, [(course.start, feature), *others]


def _pair(sample: Sample, one: Place, other: Place) -> dict[str, Any]:
    """A row of `case_pairs`: r of two members of a family on the sample."""
    from heredity.features.hypothesis import agreement

    acts, _ = sample.common
    r = _finite(agreement(acts[one.model], one.feature, other.feature, acts[other.model]))
    ends = {"model_a": one.model, "model_b": other.model, "feature_a": one.feature, "feature_b": other.feature}
    return ends | {"r": r}


def _miss(sample: Sample, found: LLR, place: Place) -> dict[str, Any]:
    """What came nearest to a family that ends, and the threshold it stayed below."""
    down, up = (place.via or "", place.model), (place.model, place.via or "")
    edge = down if down in sample.threshold else up
    missed = {"edge": "->".join(edge), "model": place.model, "r": place.r, "threshold": sample.threshold[edge]}
    return measured(found, place.feature) | missed


def _imported(name: str, folder: Path) -> Predicate:
    """The function `module:function` of the user's own; what goes wrong in it is told by its name."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        function = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:  # a module of the user's may fail in any way
        raise StudyError(
            f"predicate {name!r}: {module} cannot be imported ({type(error).__name__}: {short(str(error))}); "
            f"put {module}.py into {folder}, or install it"
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not callable(function):
        raise StudyError(f"predicate {name!r}: {module} has no function {attribute}; write it, or correct the name")
    found = cast("Predicate", function)

    @functools.wraps(function)
    def asked(ids: np.ndarray, texts: list[str]) -> np.ndarray:
        try:
            return found(ids, texts)
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {short(str(error))}"
            raise StudyError(f"predicate {name!r} failed ({why}); correct it") from error

    return asked


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def kind_of(hypothesis: Mapping[str, Any]) -> str:
    """A hypothesis of `cases.json` in words: `regex '[0-9]+'`, `tokens '=', ' ='`."""
    value = hypothesis["value"]
    return f"{hypothesis['kind']} {', '.join(map(repr, value if isinstance(value, list) else [value]))}"
