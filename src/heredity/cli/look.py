"""Commands that look into a study that has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from pydantic import ValidationError
from typer import Argument, Option

from heredity.cli.app import RUNS, Result, Runs, Sets, Site, StudyArg, command, run_of, setting, text, watcher
from heredity.study import CaseConfig
from heredity.study.graph import first_fault

Instrument = Annotated[
    str | None, Option(help="Origin of the SAEs: joint, parent or independent. Default: the study's first.")
]


def _by(instrument: str | None, overrides: list[str] | None) -> list[str]:
    """Overrides under which a study has this instrument alone."""
    return [*(overrides or []), *([f'sae.instruments="{instrument}"'] if instrument else [])]


@command()
def find(
    study: StudyArg,
    tokens: Annotated[list[str] | None, Option(help="Text of a token, such as ' ='. Repeatable.")] = None,
    strings: Annotated[list[str] | None, Option(help="Text of several tokens, such as 'else if'. Repeatable.")] = None,
    regex: Annotated[str | None, Option(help=setting(CaseConfig, "regex"))] = None,
    script: Annotated[str | None, Option(help=setting(CaseConfig, "script"))] = None,
    predicate: Annotated[str | None, Option(help=setting(CaseConfig, "predicate"))] = None,
    model: Annotated[list[str] | None, Option(help="Only features of this model. Repeatable.")] = None,
    top: Annotated[int, Option(min=1, help="Features shown for each model.")] = 10,
    by: Annotated[str, Option(help="Rank by sensitivity, llr or counted.")] = "sensitivity",
    instrument: Instrument = None,
    site: Site = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Find the features of a study that has been run which mean some tokens, and what became of them."""
    from heredity.analyses import query
    from heredity.features.hypothesis import Ranking

    ranking: Ranking | None = next((known for known in get_args(Ranking) if known == by), None)
    if ranking is None:
        raise ValueError(f"--by {by}: must be one of {', '.join(get_args(Ranking))}")
    options = {
        "tokens": tokens or None,
        "strings": strings or None,
        "regex": regex,
        "script": script,
        "predicate": predicate,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) != 1:
        count = " and ".join(f"--{name}" for name in given) or "nothing to look for"
        raise ValueError(f"{count} is given; give exactly one of {', '.join(f'--{name}' for name in options)}")
    run = run_of(study, runs, _by(instrument, set_), site)
    try:
        case = CaseConfig.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"--{first_fault(error)}") from None
    result = query.find(run, case, model or (), ranking, top)
    return Result(result, lambda: text().print_found(result))


@command()
def show(
    study: StudyArg,
    feature: Annotated[str, Argument(metavar="FEATURE", help="A model, a slash and a number: `base/158`.")],
    top: Annotated[int, Option(min=1, help="Examples of each sort; at least one of each interval of activation.")] = 5,
    instrument: Instrument = None,
    site: Site = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Show all that is known of one feature of a study that has been run, with the text it fires on."""
    from heredity.analyses.inspector import Inspector
    from heredity.analyses.query import one_named
    from heredity.show.feature import print_shown

    chosen = one_named(feature)
    result = Inspector(run_of(study, runs, _by(instrument, set_), site)).show(*chosen)
    return Result(result, lambda: print_shown(result, top))


@command()
def note(
    study: StudyArg,
    feature: Annotated[
        str | None, Argument(metavar="FEATURE", help="A model, a slash and a number: `base/158`. Without: all notes.")
    ] = None,
    words: Annotated[str | None, Argument(metavar="TEXT", help="The note; replaces yours of before.")] = None,
    tag: Annotated[list[str] | None, Option(help="A word to find it by, added to those it has. Repeatable.")] = None,
    by: Annotated[str, Option(help="Who writes it: each has a note of their own on a feature.")] = "",
    remove: Annotated[bool, Option("--remove", help="Delete the note of --by on the feature.")] = False,
    out: Annotated[Path | None, Option("-o", "--out", help="CSV file to write all notes into.")] = None,
    take: Annotated[
        Path | None, Option("--from", help="CSV file to take notes from; needs model, feature, and text or tags.")
    ] = None,
    instrument: Instrument = None,
    site: Site = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Write a note or tags on a feature of a study that has been run, list all notes, or exchange them as CSV."""
    from heredity.analyses import notes, raters
    from heredity.analyses.query import one_named

    given = {"--tag": tag, "--by": by, "--remove": remove, "--instrument": instrument, "--site": site}
    if feature is None and (idle := [name for name, value in given.items() if value]):
        raise ValueError(f"{idle[0]}: means nothing without a feature; name one, such as base/158")
    if sum((feature is not None, out is not None, take is not None)) > 1:
        raise ValueError("FEATURE, --out and --from exclude each other; give one of them")
    run = run_of(study, runs, set_)
    place = run.item(instrument, site)
    if take is not None:
        changed = notes.take_notes(run, take)
    elif feature is None:
        changed = notes.read_notes(run)
    else:
        chosen = one_named(feature)
        if remove and (words is not None or tag):
            raise ValueError("--remove deletes the whole note; give neither a text nor --tag with it")
        if remove:
            changed = [notes.remove_note(run, place, *chosen, by)]
        else:
            changed = [notes.write_note(run, place, *chosen, words, tag or (), by)]
    if out is not None:
        notes.write_csv(changed, out)
    rows = notes.rows_of_notes(run, changed)
    values = [one._asdict() | {"tags": list(one.tags)} for one in changed]
    title = f"{'removed ' if remove else ''}{len(rows)} {'note' if len(rows) == 1 else 'notes'}"

    agreement = raters.compared(run).rows if feature is None else []

    def show_notes() -> None:
        if rows:
            text().print_table(notes.NOTES, rows, title=title)
        else:
            text().say("no notes")
        if agreement:
            text().print_table(raters.RATERS, agreement)

    written = None if out is None else str(out)
    return Result({"study": run.name, "notes": values, "raters": agreement, "out": written}, show_notes)


@command()
def explain(
    study: StudyArg,
    features: Annotated[str | None, Option(help="Only these, separated by commas: `base/12,lua/345`.")] = None,
    persisting: Annotated[bool, Option("--persisting", help="All that persist along an edge.")] = False,
    all_: Annotated[bool, Option("--all", help="All that fire often enough on the sample.")] = False,
    model: Annotated[
        str | None, Option(help="Model of an OpenAI-compatible endpoint; default: no language model.")
    ] = None,
    base_url: Annotated[str | None, Option(help="The endpoint, such as http://127.0.0.1:8000/v1.")] = None,
    key_variable: Annotated[str, Option(help="Environment variable with the key; '' for none.")] = "OPENAI_API_KEY",
    local: Annotated[str | None, Option(help="Transformers model to ask instead, a folder or a hub id.")] = None,
    mode: Annotated[str, Option(help="How activations are simulated: sparse, or echo (log-probabilities).")] = "sparse",
    scores: Annotated[str, Option(help="Of these, separated by commas.")] = "simulation,detection,fuzzing,intruder",
    price_in: Annotated[float, Option(help="USD per million tokens of prompts.")] = 0.0,
    price_out: Annotated[float, Option(help="USD per million tokens of answers.")] = 0.0,
    max_cost: Annotated[float | None, Option(help="Limit in USD, earlier runs with the same folder included.")] = None,
    max_requests: Annotated[int | None, Option(help="Limit of answered requests, likewise.")] = None,
    concurrency: Annotated[int, Option(min=1, help="Requests at a time.")] = 8,
    timeout: Annotated[float, Option(help="Seconds to wait for an answer.")] = 120.0,
    spare_tokens: Annotated[
        int,
        Option(min=0, help="Further tokens that every answer may have, for models that think before they answer."),
    ] = 0,
    estimate: Annotated[bool, Option("--estimate", help="Only estimate requests, tokens and cost.")] = False,
    out: Annotated[Path | None, Option("-o", "--out", help="Folder; default explanations/JUDGE in the run.")] = None,
    site: Site = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Explain features of a study that has been run, and score the explanations. Nothing is paid for twice. Exit code 1
    when answers are missing that the same command would ask for again, or when nothing was explained."""
    from heredity.analyses import explain_on_demand, query

    if sum((features is not None, persisting, all_)) > 1:
        raise ValueError("--features, --persisting and --all exclude each other; give one of them, or none")
    named = None if features is None else query.named(features)
    which = named or ("persisting" if persisting else "all" if all_ else "study")
    prices, limits = (price_in, price_out), (max_cost, max_requests, concurrency, timeout)
    asked = tuple(scores.split(","))
    ask = explain_on_demand.Ask(model, base_url, key_variable, local, mode, prices, *limits, asked, spare_tokens)
    work = explain_on_demand.estimate if estimate else explain_on_demand.explain
    with watcher() as bars:
        progress = bars.plain("estimate" if estimate else "explain")
        result = work(run_of(study, runs, set_, site), which, ask, out, progress)
    return Result(result, lambda: text().print_explained(result), int(not result.get("complete", True)))
