"""Commands about a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heredity.cli.app import AsJson, Debug, Runs, Sets, StudyArg, Workers, app, emit, errors, text, watcher
from heredity.engine.stage import Stage
from heredity.engine.store import Artifact, ArtifactError, Store, faults
from heredity.study import Study, load_study


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
        from heredity.stages.repeat import plan_all

        loaded = load_study(study, set_ or ())
        found = plan_all(loaded, Store(runs / loaded.name))
        emit(as_json, found.model_dump(), lambda: text().print_plan(found))


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
        from heredity.stages.repeat import all_stages

        loaded = load_study(study, set_ or ())
        store = Store(runs / loaded.name)
        rows = [_stage_row(stage, store) for stage in all_stages(loaded)]
        emit(as_json, {"study": loaded.name, "stages": rows}, lambda: text().print_status(rows))


@app.command()
def verify(study: StudyArg, runs: Runs = Path("runs"), as_json: AsJson = False, debug: Debug = False) -> None:
    """Compute the checksum of every file of a study's artifacts again. Exit code 1 when something differs."""
    with errors(debug):
        loaded = load_study(study)
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
        from heredity.stages.results import write_report

        loaded, artifacts = _complete(study, runs, set_ or [])
        write_report(loaded, artifacts, out)
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
        from heredity.report.gate import judge, limit_of
        from heredity.stages.repeat import read_all

        limit = limit_of(max_lost)
        loaded, artifacts = _complete(study, runs, set_ or [])
        found = judge(read_all(loaded, artifacts, runs / loaded.name), limit, edge or (), relative_to_ceiling, sure)
        emit(as_json, {"study": loaded.name, **found.as_json()}, lambda: text().print_gate(found))
        if not found.passed:
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
    """Write the tables of a study: models, SAEs, edges, matches, flow."""
    with errors(debug):
        from heredity.stages.export import export_tables

        if format_ not in ("csv", "parquet", "json"):
            raise ValueError(f"--format {format_}: must be csv, parquet or json")
        loaded, artifacts = _complete(study, runs, set_ or [])
        files = export_tables(loaded, artifacts, out, format_)
        emit(as_json, {"files": [str(file) for file in files]}, lambda: [typer.echo(file) for file in files])


def _run(name: str, runs: Path, overrides: list[str], until: str | None, as_json: bool, workers: int) -> None:
    from heredity.engine import stage as engine
    from heredity.engine.workers import shards
    from heredity.stages.repeat import all_stages, write_all

    study = load_study(name, overrides)
    store = Store(runs / study.name)
    with watcher() as bars, shards(workers) as shared:
        stages = all_stages(study)
        bars.expect(len(stages))
        artifacts = engine.run(stages, store, bars, until, shared)
    if until is not None:
        emit(as_json, {"study": study.name, "done": list(artifacts)}, lambda: typer.echo(f"done up to {until}"))
        return
    summary, page = write_all(study, artifacts, store.root)
    emit(as_json, summary.model_dump(mode="json"), lambda: text().print_summary(summary, page))


def _complete(name: str, runs: Path, overrides: list[str]) -> tuple[Study, dict[str, Artifact]]:
    from heredity.stages.repeat import all_stages

    study = load_study(name, overrides)
    store = Store(runs / study.name)
    artifacts = {}
    for stage in all_stages(study):
        found = store.find(stage.kind, stage.name, stage.key)
        if found is None:
            raise ValueError(
                f"{stage.label} of study {study.name} is not done in {runs}; run `heredity run {name}` first"
            )
        artifacts[stage.label] = found
    return study, artifacts


def _stage_row(stage: Stage, store: Store) -> dict[str, Any]:
    damaged = False
    try:
        found = store.find(stage.kind, stage.name, stage.key)
    except ArtifactError:
        found, damaged = None, True
    folder = store.path(stage.kind, stage.name, stage.key)
    begun = folder.with_name(f".partial-{folder.name}").exists()
    seconds = found.manifest["seconds"] if found else None
    state = "done" if found else "damaged" if damaged else "begun" if begun else "missing"
    return {"stage": stage.label, "state": state, "seconds": seconds, "folder": str(folder)}
