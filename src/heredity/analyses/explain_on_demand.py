"""Explanations on demand: of chosen features, by a language model or by statistics, beside a study's run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.analyses.explain import EXPLANATIONS, asking_of, explain_settings, selection_of
from heredity.analyses.query import check_followed, sample_of
from heredity.analyses.sample import MIN_FIRINGS
from heredity.engine.store import digest, whole, write_json
from heredity.engine.workers import Progress
from heredity.explain.language import LanguageJudge, Mode
from heredity.explain.ledger import Budget, Ledger, Prices
from heredity.explain.propagate import Asking, Label, counts_of, failures_of, hand_down, label_rows
from heredity.explain.scores import SORTS
from heredity.features.correlate import Matches

if TYPE_CHECKING:
    from heredity.results import Run

LEDGER = "ledger.sqlite"
Which = Literal["study", "persisting", "all"] | Mapping[str, Sequence[int]]
"""The study's own choice, all that persist along an edge, all that fire often enough, or features by model."""


class Ask(NamedTuple):
    """Who is asked, and at what limits."""

    model: str | None = None
    """Model of an endpoint."""
    base_url: str | None = None
    """The endpoint; None for OpenAI's."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds its key."""
    local: str | None = None
    """A transformers model instead: folder or hub id."""
    mode: str = "sparse"
    """How activations are simulated."""
    prices: tuple[float, float] = (0.0, 0.0)
    """USD per million tokens in and out."""
    max_cost: float | None = None
    """USD, of all runs with the same ledger."""
    max_requests: int | None = None
    """Requests, likewise."""
    concurrency: int = 8
    """Requests at a time."""
    timeout: float = 120.0
    """Seconds."""
    scores: tuple[str, ...] = SORTS
    """Questions put about each description."""


def named(features: str) -> dict[str, list[int]]:
    """Features by model, from `base/12,lua/345`. Raises ValueError for anything else."""
    chosen: dict[str, list[int]] = {}
    for part in features.split(","):
        model, _, index = part.strip().rpartition("/")
        if not model or not index.isdecimal():
            raise ValueError(f"feature {part.strip()!r}: must be a model, a slash and a number, such as base/12")
        if int(index) not in chosen.setdefault(model, []):
            chosen[model].append(int(index))
    return chosen


def explain(run: Run, which: Which, ask: Ask, out: Path | None, progress: Progress | None = None) -> dict[str, Any]:
    """Explain and score features; writes `explanations.parquet`, `explained.json` and a language model's
    `ledger.sqlite` into `out`, and returns what `explained.json` holds.

    Interrupted or out of budget, what was answered is in the ledger, and the same call goes on from there.
    Raises ValueError for a study that is not run so far, unknown features, and judges that cannot be used.
    """
    asking, selected, matches = _prepared(run, which, ask)
    out, study = out or _folder(run, ask), run.study
    with _judge(ask, out) as judge:
        if judge is not None:
            asking.judge = judge
        over = judge.over if judge is not None else map
        drop, edges = study.config.explain.drop, list(study.edges)
        labels = hand_down(selected, edges, matches, asking.explain, asking.score, drop, progress, over)
        paid = judge.ledger.summary() if judge is not None else None
    cost = paid.cost_by_question.get("explain", 0.0) / max(paid.by_question.get("explain", 0), 1) if paid else 0.0
    scored = sum(1 + (label.re_explained and not label.carried) for label in labels if label.scores is not None)
    scoring = (paid.cost - paid.cost_by_question.get("explain", 0.0)) / max(scored, 1) if paid else 0.0
    finite = [score for label in labels if np.isfinite(score := _simulation(label))]
    result: dict[str, Any] = {
        "study": study.name,
        "judge": asking.judge.name,
        "out": str(out),
        **counts_of(labels, cost, scoring)._asdict(),
        "failures": failures_of(labels),
        "median_simulation": float(np.median(finite)) if finite else None,
        "ledger": None if paid is None else paid._asdict(),
        "complete": paid is None or not paid.reasons,
    }
    out.mkdir(parents=True, exist_ok=True)
    item = {"instrument": study.instrument, "site": study.config.hook_point}
    rows = label_rows(labels, asking.judge.name, paid.cost_by_feature if paid else {})
    _write_rows(EXPLANATIONS.check(rows, **item), out / "explanations.parquet")
    write_json(out / "explained.json", result)
    return result | {"examples": [_example(label) for label in labels[:10]]}


def _write_rows(made: pa.Table, path: Path) -> None:
    """Write explanations, whole or not at all; features that were asked about before and not now stay."""
    if path.exists():
        before = pq.read_table(path)
        now = set(zip(made["model"].to_pylist(), made["feature"].to_pylist(), strict=True))
        old = zip(before["model"].to_pylist(), before["feature"].to_pylist(), strict=True)
        made = pa.concat_tables([before.filter(pa.array([one not in now for one in old], pa.bool_())), made])
    with whole(path) as partial:
        pq.write_table(made, partial)


def estimate(run: Run, which: Which, ask: Ask, out: Path | None, progress: Progress | None = None) -> dict[str, Any]:
    """An upper bound of what `explain` would take: every feature explained anew, and scored twice where a label can be
    tried on it; about so many tokens.

    Raises as `explain` does, and ValueError where nothing would be asked.
    """
    asking, selected, _ = _prepared(run, which, ask)
    with _judge(ask, out or _folder(run, ask)) as judge:
        if judge is None:
            raise ValueError("--estimate: statistics cost nothing; name a language model with --model or --local")
        total, requests = sum(map(len, selected.values())), []
        for model, features in selected.items():
            for feature in features:
                own = asking.requests(judge, model, feature)
                requests += own
                if any(edge.child == model for edge in run.study.edges):
                    # the label that is tried on it differs from its own, so none of these is the same request
                    requests += [one._replace(prompt=f"{one.prompt} ") for one in own if one.question != "explain"]
                if progress:
                    progress(len(requests), max(total, len(requests)))
        bound = judge.estimate(requests)
    return {"study": run.study.name, "judge": judge.name, "features": total, "at_most": bound._asdict()}


def _prepared(run: Run, which: Which, ask: Ask) -> tuple[Asking, dict[str, list[int]], dict[Any, Matches]]:
    if unknown := [name for name in ask.scores if name not in SORTS]:
        raise ValueError(f"--scores {unknown[0]}: must be of {', '.join(SORTS)}, with commas between them")
    study, settings = run.study, explain_settings(run.study)
    sample = sample_of(run, study.followed, matched=True)
    matches: dict[Any, Matches] = {**sample.above}
    asking = asking_of(sample, settings)
    asking.sorts = [sort for sort in SORTS if sort in ask.scores]
    if which == "study":
        return asking, selection_of(sample, settings).features, matches
    often = {name: np.flatnonzero(sample.firings[name] >= MIN_FIRINGS) for name in study.followed}
    if which == "all":
        return asking, {name: features.tolist() for name, features in often.items()}, matches
    if which == "persisting":
        held = {name: np.zeros(0, np.int64) for name in study.followed}
        for edge in study.edges:
            for end, name in (("parent", edge.parent), ("child", edge.child)):
                matched = np.flatnonzero(getattr(matches[edge], f"{end}_match")[:, 0] >= 0)
                held[name] = np.union1d(held[name], matched)
        return asking, {name: np.intersect1d(own, often[name]).tolist() for name, own in held.items()}, matches
    for model, features in which.items():
        check_followed(study, model, f"--features {model}/...")
        size = sample.acts[model].d_sae
        if beyond := [feature for feature in features if feature >= size]:
            raise ValueError(f"--features {model}/{beyond[0]}: its SAE has {size:,} features, counted from 0")
    return asking, {name: sorted(which[name]) for name in study.followed if name in which}, matches


def _folder(run: Run, ask: Ask) -> Path:
    name = ask.local or ask.model or "offline"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return run.folder / "explanations" / (plain if plain == name else f"{plain}-{digest(name)[:6]}")


@contextlib.contextmanager
def _judge(ask: Ask, out: Path) -> Iterator[LanguageJudge | None]:
    """The language model to ask, with its ledger open; None for statistics."""
    if ask.model and ask.local:
        raise ValueError("--model and --local exclude each other; give one of them")
    if not ask.model and not ask.local:
        given = ("base_url", "mode", "prices", "max_cost", "max_requests")
        if idle := [name for name in given if getattr(ask, name) != Ask._field_defaults[name]]:
            option = idle[0].replace("_", "-").replace("prices", "price-in")
            raise ValueError(f"--{option}: means nothing without a language model; name one with --model or --local")
        yield None
        return
    mode = next((mode for mode in get_args(Mode) if mode == ask.mode), None)
    if mode is None:
        raise ValueError(f"--mode {ask.mode}: must be one of {', '.join(get_args(Mode))}")
    if ask.local:
        from heredity.explain.local import Local

        completer: Any = Local.load(ask.local)
    else:
        from heredity.explain.endpoint import OPENAI, Endpoint

        assert ask.model
        limits = {"concurrency": ask.concurrency, "timeout": ask.timeout}
        completer = Endpoint(ask.model, ask.base_url or OPENAI, ask.key_variable, **limits)  # pyright: ignore[reportArgumentType]
    with Ledger(out / LEDGER, Budget(Prices(*ask.prices), ask.max_cost, ask.max_requests)) as ledger:
        yield LanguageJudge(completer, ledger, mode=mode)


def _simulation(label: Label) -> float:
    return label.scores.simulation.score if label.scores is not None else float("nan")


def _example(label: Label) -> dict[str, Any]:
    score = _simulation(label)
    return {
        "feature": f"{label.model}/{label.feature}",
        "description": None if label.description is None else str(label.description),
        "origin": f"{label.origin[0]}/{label.origin[1]}",
        "carried": label.carried,
        "simulation": float(score) if np.isfinite(score) else None,
        "failure": label.failure,
    }
