"""Commands that look into a study that has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError

from heredity.cli.app import AsJson, Debug, Runs, Sets, StudyArg, app, emit, errors, setting, study_of, text
from heredity.study import CaseConfig
from heredity.study.graph import first_fault


@app.command()
def find(
    study: StudyArg,
    tokens: Annotated[list[str] | None, typer.Option(help="Text of a token, such as ' ='. Repeatable.")] = None,
    regex: Annotated[str | None, typer.Option(help=setting(CaseConfig, "regex"))] = None,
    script: Annotated[str | None, typer.Option(help=setting(CaseConfig, "script"))] = None,
    predicate: Annotated[str | None, typer.Option(help=setting(CaseConfig, "predicate"))] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only features of this model. Repeatable.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Features shown for each model.")] = 10,
    by: Annotated[str, typer.Option(help="Rank by sensitivity, llr or counted.")] = "sensitivity",
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the features of a study that has been run which mean some tokens, and what became of them."""
    with errors(debug):
        from heredity.analyses import query
        from heredity.features.hypothesis import Ranking
        from heredity.results import Run

        ranking: Ranking | None = next((known for known in get_args(Ranking) if known == by), None)
        if ranking is None:
            raise ValueError(f"--by {by}: must be one of {', '.join(get_args(Ranking))}")
        options = {"tokens": tokens or None, "regex": regex, "script": script, "predicate": predicate}
        given = {name: value for name, value in options.items() if value is not None}
        if len(given) != 1:
            count = " and ".join(f"--{name}" for name in given) or "nothing to look for"
            raise ValueError(f"{count} is given; give exactly one of {', '.join(f'--{name}' for name in options)}")
        loaded = study_of(study, set_)
        try:
            case = CaseConfig.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"--{first_fault(error)}") from None
        result = query.find(Run(loaded, runs / loaded.name), case, model or (), ranking, top)
        emit(as_json, result, lambda: text().print_found(result))


@app.command()
def show(
    study: StudyArg,
    feature: Annotated[str, typer.Argument(metavar="FEATURE", help="A model, a slash and a number: `base/158`.")],
    top: Annotated[
        int, typer.Option(min=1, help="Examples of each sort; at least one of each interval of activation.")
    ] = 5,
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show all that is known of one feature of a study that has been run, with the text it fires on."""
    with errors(debug):
        from heredity.analyses import query
        from heredity.analyses.explain_on_demand import named
        from heredity.results import Run
        from heredity.show.feature import print_shown

        chosen = [(model, index) for model, indices in named(feature).items() for index in indices]
        if len(chosen) != 1:
            raise ValueError(f"{feature}: one feature is shown at a time; give one of these {len(chosen)}")
        loaded = study_of(study, set_)
        result = query.show(Run(loaded, runs / loaded.name), *chosen[0])
        emit(as_json, result, lambda: print_shown(result, top))
