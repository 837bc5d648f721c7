"""Commands about a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heredity.cli.app import (
    AsJson,
    Debug,
    Runs,
    Sets,
    StudyArg,
    Workers,
    app,
    complete,
    emit,
    errors,
    study_of,
    text,
    watcher,
)


@app.command()
def demo(runs: Runs = Path("runs"), workers: Workers = 1, as_json: AsJson = False, debug: Debug = False) -> None:
    """Run the built-in study, offline: four small models, their SAEs, and what was inherited."""
    with errors(debug):
        _run("demo", runs, [], None, as_json, workers)


@app.command()
def check(
    study: StudyArg, runs: Runs = Path("runs"), set_: Sets = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Validate a study; print models, edges, traces, stages and an estimate of the work."""
    with errors(debug):
        from heredity.analyses import Pipeline
        from heredity.analyses.plan import plan
        from heredity.engine.store import Store

        loaded = study_of(study, set_)
        result = plan(Pipeline(loaded), Store(runs / loaded.name))
        emit(as_json, result, lambda: text().print_plan(result))


@app.command()
def run(
    study: StudyArg,
    runs: Runs = Path("runs"),
    set_: Sets = None,
    until: Annotated[str | None, typer.Option(help="End after this stage: `model`, `sae` or `sae/base`.")] = None,
    workers: Workers = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run what is missing of a study. An interrupted run resumes where it was."""
    with errors(debug):
        _run(study, runs, set_ or [], until, as_json, workers)


@app.command()
def status(
    study: StudyArg, runs: Runs = Path("runs"), set_: Sets = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show which stages of a study are done."""
    with errors(debug):
        from heredity.analyses import stages_of
        from heredity.engine.store import Store

        loaded = study_of(study, set_)
        store = Store(runs / loaded.name)
        rows = [_state(stage, store) for stage in stages_of(loaded)]
        emit(as_json, {"study": loaded.name, "stages": rows}, lambda: text().print_status(rows))


@app.command()
def verify(study: StudyArg, runs: Runs = Path("runs"), as_json: AsJson = False, debug: Debug = False) -> None:
    """Compute the checksum of every file of a study's artifacts again. Exit code 1 when something differs."""
    with errors(debug):
        from heredity.engine.store import Store, faults

        loaded = study_of(study)
        folders = Store(runs / loaded.name).folders()
        if not folders:
            raise ValueError(f"{runs / loaded.name} holds no artifacts; run the study first")
        damage = {str(folder): lines for folder in folders if (lines := faults(folder))}
        result = {"study": loaded.name, "artifacts": len(folders), "damaged": damage}
        emit(as_json, result, lambda: text().print_verified(len(folders), damage))
        if damage:
            raise typer.Exit(1)


@app.command()
def report(
    study: StudyArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write.")],
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the one-file HTML report of a study that has been run."""
    with errors(debug):
        from heredity.show import page

        page.write(complete(study, runs, set_), out)
        emit(as_json, {"report": str(out)}, lambda: typer.echo(out))


@app.command()
def gate(
    study: StudyArg,
    max_lost: Annotated[str, typer.Option("--max-lost", help="Most that an edge may lose: `5%` or `0.05`.")],
    relative_to_ceiling: Annotated[
        bool, typer.Option("--relative-to-ceiling", help="Count only what is lost beyond the ceiling.")
    ] = False,
    edge: Annotated[list[str] | None, typer.Option(help="Only this edge: 'base->lua'. Repeatable.")] = None,
    sure: Annotated[bool, typer.Option("--sure", help="Fail only when the whole interval is over the limit.")] = False,
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hold the loss of features along the edges of a study that has been run to a limit. Exit code 1 beyond it."""
    with errors(debug):
        from heredity.show.gate import judge, limit_of

        limit = limit_of(max_lost)
        done = complete(study, runs, set_)
        edges = done.tables["edges"].to_pylist() if "edges" in done.tables else []
        own = [row for row in edges if row["instrument"] == done.study.instrument and row["rule"] != "paper"]
        result = judge(done.name, own, limit, edge or (), relative_to_ceiling, sure)
        notes = list(dict.fromkeys(one.text for one in done.statements if one.question == "note"))
        values = {"study": done.name, "instrument": done.study.instrument, **result.as_json(), "notes": notes}
        emit(as_json, values, lambda: text().print_gate(result, done.study.instrument, notes))
        if not result.passed:
            raise typer.Exit(1)


@app.command()
def export(
    study: StudyArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write tables into.")],
    format_: Annotated[str, typer.Option("--format", help="csv, parquet or json.")] = "csv",
    runs: Runs = Path("runs"),
    set_: Sets = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write every table of a study that has been run, one file per table."""
    with errors(debug):
        from heredity.show.export import FORMATS, Format, export

        kind: Format | None = next((known for known in FORMATS if known == format_), None)
        if kind is None:
            raise ValueError(f"--format {format_}: must be one of {', '.join(FORMATS)}")
        done = complete(study, runs, set_)
        with watcher() as bars:
            files = export(done, out, kind, bars.plain("export"))
        emit(as_json, {"files": [str(file) for file in files]}, lambda: [typer.echo(file) for file in files])


def _run(name: str, runs: Path, overrides: list[str], until: str | None, as_json: bool, workers: int) -> None:
    from heredity.analyses import Pipeline
    from heredity.engine import stage as engine
    from heredity.engine.store import Store
    from heredity.engine.workers import shards
    from heredity.results import Run, record
    from heredity.show import page, summary

    study = study_of(name, overrides)
    pipeline, store = Pipeline(study), Store(runs / study.name)
    with watcher() as bars, shards(workers) as shared:
        with store.lock():
            record(study, store.root)
        bars.expect(len(pipeline.stages))
        done = engine.run(list(pipeline.stages.values()), store, bars, until, shared)
    if until is not None:
        emit(as_json, {"study": study.name, "done": list(done)}, lambda: typer.echo(f"done up to {until}"))
        return
    result = Run(study, store.root, pipeline)
    values, report_ = summary.write(result), store.root / "report.html"
    page.write(result, report_)
    emit(as_json, values, lambda: text().print_run(result, report_))


def _state(stage: Any, store: Any) -> dict[str, Any]:
    from heredity.engine.store import ArtifactError

    artifact, damaged = None, False
    try:
        artifact = store.find(stage.kind, stage.name, stage.key)
    except ArtifactError:
        damaged = True
    folder = store.path(stage.kind, stage.name, stage.key)
    begun = folder.with_name(f".partial-{folder.name}").exists()
    seconds = artifact.manifest["seconds"] if artifact else None
    state = "done" if artifact else "damaged" if damaged else "begun" if begun else "missing"
    return {"stage": stage.label, "state": state, "seconds": seconds, "folder": str(folder)}
