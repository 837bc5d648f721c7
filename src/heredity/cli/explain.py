"""The command that explains what features mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heredity.cli.app import AsJson, Debug, Runs, Sets, StudyArg, app, emit, errors, study_of, text, watcher


@app.command()
def explain(
    study: StudyArg,
    features: Annotated[str | None, typer.Option(help="Only these, separated by commas: `base/12,lua/345`.")] = None,
    persisting: Annotated[bool, typer.Option("--persisting", help="All that persist along an edge.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="All that fire often enough on the sample.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model of an OpenAI-compatible endpoint; default: no language model.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="The endpoint, such as http://127.0.0.1:8000/v1.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the key; '' for none.")] = (
        "OPENAI_API_KEY"
    ),
    local: Annotated[str | None, typer.Option(help="Transformers model to ask instead, a folder or a hub id.")] = None,
    mode: Annotated[str, typer.Option(help="How activations are simulated: sparse, or echo (log-probabilities).")] = (
        "sparse"
    ),
    scores: Annotated[str, typer.Option(help="Of these, separated by commas.")] = (
        "simulation,detection,fuzzing,intruder"
    ),
    price_in: Annotated[float, typer.Option(help="USD per million tokens of prompts.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="USD per million tokens of answers.")] = 0.0,
    max_cost: Annotated[
        float | None, typer.Option(help="Limit in USD, earlier runs with the same folder included.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(help="Limit of answered requests, likewise.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 120.0,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only estimate requests, tokens and cost.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; default explanations/JUDGE in the run.")] = (
        None
    ),
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Explain features of a study that has been run, and score the explanations. Nothing is paid for twice. Exit code 1
    when answers are missing that the same command would fetch."""
    with errors(debug):
        from heredity.analyses import explain_on_demand
        from heredity.results import Run

        if sum((features is not None, persisting, all_)) > 1:
            raise ValueError("--features, --persisting and --all exclude each other; give one of them, or none")
        loaded = study_of(study, set_)
        named = None if features is None else explain_on_demand.named(features)
        which = named or ("persisting" if persisting else "all" if all_ else "study")
        judge = explain_on_demand.Ask(
            model, base_url, key_variable, local, mode, (price_in, price_out), max_cost, max_requests, concurrency,
            timeout, tuple(scores.split(",")),
        )  # fmt: skip
        work = explain_on_demand.estimate if estimate else explain_on_demand.explain
        with watcher() as bars:
            progress = bars.plain("estimate" if estimate else "explain")
            result = work(Run(loaded, runs / loaded.name), which, judge, out, progress)
        emit(as_json, result, lambda: text().print_explained(result))
        if not result.get("complete", True):
            raise typer.Exit(1)
