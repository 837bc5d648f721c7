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
from heredity.engine.store import alone, digest, whole, write_json
from heredity.engine.workers import Progress
from heredity.errors import reading
from heredity.explain.endpoint import OPENAI, Endpoint, Local
from heredity.explain.language import LanguageJudge, Mode
from heredity.explain.ledger import Budget, Ledger, Prices
from heredity.explain.propagate import Asking, counts_of, failures_of, hand_down, label_rows
from heredity.explain.scores import SORTS
from heredity.features.correlate import Matches

if TYPE_CHECKING:
    from heredity.results import Run

FOLDER, TABLE, LEDGER = "explanations", "explanations.parquet", "ledger.sqlite"  # beside a run
Which = Literal["study", "persisting", "all"] | Mapping[str, Sequence[int]]
"""The study's own choice, all that persist along an edge, all that fire often enough, or features by model."""


class Ask(NamedTuple):
    """Who is asked, and at what limits."""

    model: str | None = None  # of an endpoint
    base_url: str | None = None  # the endpoint; None for OpenAI's
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds its key
    local: str | None = None  # a transformers model instead: folder or hub id
    mode: str = "sparse"  # how activations are simulated
    prices: tuple[float, float] = (0.0, 0.0)  # USD per million tokens in and out
    max_cost: float | None = None  # USD, of all runs with the same ledger
    max_requests: int | None = None  # likewise
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # seconds
    scores: tuple[str, ...] = SORTS  # questions put about each description
    spare_tokens: int = 0  # further tokens that every answer may have


def explain(run: Run, which: Which, ask: Ask, out: Path | None, progress: Progress | None = None) -> dict[str, Any]:
    """Explain and score features; writes `explanations.parquet`, `explained.json` and a language model's
    `ledger.sqlite` into `out`, and returns what `explained.json` holds.

    Interrupted or out of budget, what was answered is in the ledger, and the same call goes on from there.
    Raises ValueError for a study that is not run so far, unknown features, and judges that cannot be used.
    """
    asking, selected, matches = _prepared(run, which, ask)
    out, study = out or _folder(run, ask), run.study
    over, paid, dialect, costs, cost, scoring = map, None, [], {}, 0.0, 0.0
    with _judge(ask, out) as judge:
        if judge is not None:
            asking.judge, over = judge, judge.over
        drop, edges = study.config.explain.drop, list(study.descent)
        labels = hand_down(selected, edges, matches, asking.explain, asking.score, drop, progress, over)
        if judge is not None:
            paid, dialect = judge.ledger.summary(), judge.ledger.dialect(judge.completer.identity)
    if paid is not None:
        costs, explaining = paid.cost_by_feature, paid.cost_by_question.get("explain", 0.0)
        scored = sum(1 + (label.re_explained and not label.carried) for label in labels if label.scores is not None)
        cost = explaining / max(paid.by_question.get("explain", 0), 1)
        scoring = (paid.cost - explaining) / max(scored, 1)
    rows = label_rows(labels, asking.judge.name, costs)
    table = EXPLANATIONS.check(rows, instrument=study.instrument, site=study.site)
    simulation = table["simulation"].drop_null().to_numpy()
    counts = counts_of(labels, cost, scoring)
    failed = 0 < counts["explained"] <= counts["failed"]
    result: dict[str, Any] = {
        "study": study.name,
        "judge": asking.judge.name,
        "out": str(out),
        **counts,
        "failures": failures_of(labels),
        "median_simulation": float(np.median(simulation)) if len(simulation) else None,
        "ledger": None if paid is None else paid._asdict(),
        "dialect": [dict(zip(("parameter", "instead", "requests"), one, strict=True)) for one in dialect],
        "complete": paid is None or not (paid.reasons or failed),
    }
    out.mkdir(parents=True, exist_ok=True)
    _add(table, out / TABLE)
    write_json(out / "explained.json", result)
    examples = []
    for row in table.slice(0, 10).to_pylist():
        origin = f"{row['origin_model']}/{row['origin_feature']}"
        shown = {name: row[name] for name in ("description", "carried", "simulation", "failure")}
        examples.append({"feature": f"{row['model']}/{row['feature']}", "origin": origin} | shown)
    return result | {"examples": examples}


def _add(made: pa.Table, path: Path) -> None:
    """Write explanations, whole or not at all; features that were asked about before and not now stay."""
    key = ("site", "model", "feature")
    with alone(path.parent):
        if path.exists():
            with reading(path, "move it away, or choose another folder with -o"):
                before = pq.read_table(path)
                new, old = (zip(*(t[name].to_pylist() for name in key), strict=True) for t in (made, before))
                now = set(new)
                made = pa.concat_tables([before.filter(pa.array([one not in now for one in old], pa.bool_())), made])
        with whole(path) as partial:
            pq.write_table(made, partial)


def estimate(run: Run, which: Which, ask: Ask, out: Path | None, progress: Progress | None = None) -> dict[str, Any]:
    """An upper bound of what `explain` would take: every feature explained anew, and scored twice where a label can be
    tried on it; about so many tokens.

    Raises as `explain` does, and ValueError where nothing would be asked.
    """
    asking, selected, _ = _prepared(run, which, ask)
    with _judge(ask, out or _folder(run, ask), asks=False) as judge:
        if judge is None:
            raise ValueError("--estimate: statistics cost nothing; name a language model with --model or --local")
        total, requests = sum(map(len, selected.values())), []
        children = {edge.child for edge in run.study.descent}
        for model, features in selected.items():
            for feature in features:
                own = asking.requests(judge, model, feature)
                requests += own
                if model in children:
                    # the label that is tried on it differs from its own, so none of these is the same request
                    requests += [one._replace(prompt=f"{one.prompt} ") for one in own if one.question != "explain"]
                if progress:
                    progress(len(requests), max(total, len(requests)))
        bound = judge.ledger.estimate(requests, judge.completer)
    return {"study": run.study.name, "judge": judge.name, "features": total, "at_most": bound._asdict()}


def _prepared(run: Run, which: Which, ask: Ask) -> tuple[Asking, dict[str, list[int]], dict[Any, Matches]]:
    """Questions, features by model, and the matches above each edge's threshold."""
    if unknown := [name for name in ask.scores if name not in SORTS]:
        raise ValueError(f"--scores {unknown[0]}: must be of {', '.join(SORTS)}, with commas between them")
    study, settings = run.study, explain_settings(run.study)
    sample = sample_of(run, study.followed, matched=True)
    matches: dict[Any, Matches] = {**sample.above}
    asking = asking_of(sample, settings)
    asking.sorts = [sort for sort in SORTS if sort in ask.scores]
    if which == "study":
        return asking, selection_of(sample, settings)[0], matches
    if which in ("all", "persisting"):
        chosen = {name: sample.firings[name] >= MIN_FIRINGS for name in study.followed}
        if which == "persisting":
            held = {name: np.zeros(len(often), bool) for name, often in chosen.items()}
            for edge, pair in matches.items():
                held[edge.parent] |= pair.parent_match[:, 0] >= 0
                held[edge.child] |= pair.child_match[:, 0] >= 0
            chosen = {name: often & held[name] for name, often in chosen.items()}
        return asking, {name: np.flatnonzero(own).tolist() for name, own in chosen.items()}, matches
    assert isinstance(which, Mapping)
    for model, features in which.items():
        check_followed(study, model, f"--features {model}/...")
        size = sample.acts[model].d_sae
        if beyond := [feature for feature in features if feature >= size]:
            raise ValueError(f"--features {model}/{beyond[0]}: its SAE has {size:,} features, counted from 0")
    return asking, {name: sorted(which[name]) for name in study.followed if name in which}, matches


def _folder(run: Run, ask: Ask) -> Path:
    name = ask.local or ask.model or "offline"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return run.folder / FOLDER / (plain if plain == name else f"{plain}-{digest(name)[:6]}")


@contextlib.contextmanager
def _judge(ask: Ask, out: Path, asks: bool = True) -> Iterator[LanguageJudge | None]:
    """The language model to ask, or of which only the cost is asked, with its ledger open; None for statistics."""
    if ask.model and ask.local:
        raise ValueError("--model and --local exclude each other; give one of them")
    if not ask.model and not ask.local:
        given = ("base_url", "mode", "prices", "max_cost", "max_requests", "spare_tokens")
        if idle := [name for name in given if getattr(ask, name) != Ask._field_defaults[name]]:
            option = idle[0].replace("_", "-").replace("prices", "price-in")
            raise ValueError(f"--{option}: means nothing without a language model; name one with --model or --local")
        yield None
        return
    mode = next((mode for mode in get_args(Mode) if mode == ask.mode), None)
    if mode is None:
        raise ValueError(f"--mode {ask.mode}: must be one of {', '.join(get_args(Mode))}")
    if ask.model:
        options: Any = {"concurrency": ask.concurrency, "timeout": ask.timeout, "asks": asks}
        completer = Endpoint(ask.model, ask.base_url or OPENAI, ask.key_variable, **options)
    else:
        completer = Local(str(ask.local))
    with Ledger(out / LEDGER, Budget(Prices(*ask.prices), ask.max_cost, ask.max_requests)) as ledger:
        yield LanguageJudge(completer, ledger, mode=mode, spare_tokens=ask.spare_tokens)
