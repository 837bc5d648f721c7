"""Commands about a study."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text
from typer import Option

from heredity.cli.app import (
    RUNS,
    Engine,
    Progress,
    Result,
    Runs,
    Sets,
    Site,
    StudyArg,
    Workers,
    command,
    complete,
    err,
    run_of,
    study_of,
    text,
    watcher,
)
from heredity.engine.shared import shown
from heredity.errors import install

if TYPE_CHECKING:
    from heredity.analyses import Pipeline
    from heredity.engine.stage import Stage, Watcher
    from heredity.engine.store import Artifact, Store


@command()
def demo(runs: Runs = RUNS, workers: Workers = 1, progress: Progress = "auto") -> Result:
    """Run the built-in study, offline: four small models, their SAEs, and what was inherited."""
    return run("demo", runs, None, None, workers, progress)


@command()
def check(
    study: StudyArg,
    stages: Annotated[bool, Option("--stages", help="List every stage, in place of a row per kind.")] = False,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Validate a study and all that it reads; print models, edges, traces, and an estimate of the work."""
    from heredity.analyses import Pipeline
    from heredity.analyses.plan import plan
    from heredity.engine.store import Store

    loaded = study_of(study, set_)
    result = plan(Pipeline(loaded), Store(runs / loaded.name))
    return Result(result, lambda: text().print_plan(result, stages))


@command()
def run(
    study: StudyArg,
    runs: Runs = RUNS,
    set_: Sets = None,
    until: Annotated[str | None, Option(help="End after these stages: `model`, `sae`, `sae/base@scratch` ...")] = None,
    workers: Workers = 1,
    progress: Progress = "auto",
    engine: Engine = "local",
    address: Annotated[
        str | None,
        Option(help="Of --engine ray: a cluster that runs, auto or ray://HOST:10001. Default: this machine alone."),
    ] = None,
    train_workers: Annotated[
        int, Option("--train-workers", min=1, help="Of --engine ray: tasks that divide each training of an SAE.")
    ] = 1,
) -> Result:
    """Run what is missing of a study. An interrupted run resumes where it was."""
    from heredity.analyses import Pipeline
    from heredity.analyses.plan import check_inputs, check_shapes
    from heredity.engine.store import Store
    from heredity.results import Run
    from heredity.show import page, summary

    if engine not in ("local", "ray"):
        raise ValueError(f"--engine {engine}: must be local or ray")
    if address is not None and engine != "ray":
        raise ValueError(f"--address {address}: is of --engine ray; add that, or leave --address out")
    if train_workers > 1 and engine != "ray":
        raise ValueError(
            f"--train-workers {train_workers}: is of --engine ray; add that, or leave it out and start the command "
            f"with `torchrun --standalone --nproc-per-node {train_workers}`"
        )
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(f"--engine ray needs ray; {install('ray')}")
    loaded = study_of(study, set_)
    pipeline, store = Pipeline(loaded), Store(runs / loaded.name)
    check_shapes(loaded, check_inputs(loaded))
    on = On(address, train_workers) if engine == "ray" else None
    done, spent = _worked(pipeline, store, list(pipeline.stages), workers, progress, until, on)
    if until is not None:

        def show() -> None:
            text().print_worked(spent)
            typer.echo(f"done up to {until}")

        return Result({"study": loaded.name, "done": list(done), "worked": spent}, show)
    result, report_ = Run(loaded, store.root, pipeline), store.root / "report.html"
    values = summary.write(result)
    page.write(result, report_)
    store.share(summary.SUMMARY, report_.name)
    return Result(values | {"worked": spent}, lambda: text().print_run(result, report_, spent))


@command()
def status(study: StudyArg, runs: Runs = RUNS, set_: Sets = None) -> Result:
    """Show which stages of a study are done."""
    from heredity.analyses import stages_of
    from heredity.engine.store import Store
    from heredity.results import as_recorded

    loaded = study_of(study, set_)
    store = Store(runs / loaded.name)
    loaded = as_recorded(loaded, store.root)
    rows = [_state(stage, store) for stage in stages_of(loaded)]
    return Result({"study": loaded.name, "stages": rows}, lambda: text().print_table(text().STATUS, rows))


@command()
def verify(study: StudyArg, runs: Runs = RUNS) -> Result:
    """Compute the checksum of every file of a study's artifacts again. Exit code 1 when something differs."""
    from heredity.engine.store import Store

    loaded = study_of(study)
    store = Store(runs / loaded.name)
    folders = store.folders()
    if not folders:
        raise ValueError(f"{shown(runs)}/{loaded.name} holds no artifacts; run the study first")
    damage = {store.place(folder): lines for folder in folders if (lines := store.faults(folder))}
    result = {"study": loaded.name, "artifacts": len(folders), "damaged": damage}
    return Result(result, lambda: text().print_verified(len(folders), damage), int(bool(damage)))


@command()
def clean(
    study: StudyArg,
    yes: Annotated[bool, Option("--yes", help="Delete what is listed.")] = False,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """List what a study's folder holds that the study as it is now has no use for: artifacts of other settings or other
    inputs, and what is left of stages of such that were begun, such as checkpoints. --yes deletes that, and nothing
    else. Give --set as to `run`."""
    from heredity.analyses import Pipeline
    from heredity.analyses.plan import check_inputs
    from heredity.engine.store import Store

    loaded = study_of(study, set_)
    check_inputs(loaded)  # with a model or a text missing, every key would be another
    store = Store(runs / loaded.name)
    wanted = [(stage.kind, stage.name, stage.key) for stage in Pipeline(loaded).stages.values()]
    found = store.left_over(wanted)
    rows = [{"folder": str(path.relative_to(store.root)), "mib": store.size_of(path) / 2**20} for path in found]
    if yes and found:
        with store.lock():
            for path in found:
                store.delete(path)
    total = sum(row["mib"] for row in rows)
    result = {"study": loaded.name, "left_over": rows, "mib": total, "deleted": yes}

    def show() -> None:
        if rows:
            text().print_table(text().LEFT_OVER, rows)
        done = "deleted" if yes else "to delete; --yes deletes that" if rows else "to delete"
        typer.echo(f"{len(rows):,} folder{'s' * (len(rows) != 1)}, {total:,.1f} MiB {done}")

    return Result(result, show)


@command()
def report(
    study: StudyArg,
    out: Annotated[Path | None, Option("-o", "--out", help="File to write; default of Markdown: stdout.")] = None,
    format_: Annotated[
        str, Option("--format", help="html, or md: findings, evidence and limits as one text to read whole.")
    ] = "html",
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Write the report of a study that has been run, as one HTML page or one Markdown text."""
    from heredity.show import markdown, page

    if format_ not in ("html", "md"):
        raise ValueError(f"--format {format_}: must be html or md")
    if out is not None and (out.suffix in (".md", ".markdown")) != (format_ == "md") and out.suffix in (".md", ".html"):
        raise ValueError(
            f"-o {out}: --format {format_} writes {format_}; give a file that ends so, or the other format"
        )
    if out is None and format_ == "html":
        raise ValueError("-o: give the HTML file to write, or --format md, which goes to stdout")
    done = complete(study, runs, set_)
    if out is None:
        content = markdown.render(done)
        return Result({"report": None, "text": content}, lambda: typer.echo(content, nl=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    (page if format_ == "html" else markdown).write(done, out)
    return Result({"report": str(out)}, lambda: typer.echo(out))


@command()
def reproduce(
    study: StudyArg,
    paper: Annotated[
        str | None,
        Option("--paper", help="tracking (arXiv 2410.12391) or stitching (2506.06609); default: by the study."),
    ] = None,
    out: Annotated[
        Path | None,
        Option("-o", "--out", help="Also write a Markdown file, .md, with pictures beside it (extra `pictures`)."),
    ] = None,
    format_: Annotated[str, Option("--format", help="What is printed: text, or md, the tables as Markdown.")] = "text",
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Set a study's run beside the paper it follows: every figure and table, what agrees, and what stands."""
    from heredity.papers.reproduction import NAMES, reproduction
    from heredity.show import reproduce as beside

    if format_ not in ("text", "md"):
        raise ValueError(f"--format {format_}: must be text or md")
    run = run_of(study, runs, set_)
    if not run.artifacts:
        raise ValueError(f"nothing of study {run.name} is done in {shown(runs)}; run `{run.again}` first")
    rows = {name: table.to_pylist() for name, table in run.tables.items()}
    found = reproduction(run.study, rows, paper)
    missing = ""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        missing = beside.write(run, found, out)

    def show() -> None:
        if format_ == "md":
            typer.echo(beside.render(run, found, rows, {}), nl=False)
        else:
            text().say(NAMES[found.paper])
            for table, own in beside.parts(found, rows.get("deviations", ())):
                if own:
                    text().print_table(table, own)
        if run.missing:
            err.print(Text(f"Note: {len(run.missing)} stages are not done: what they give is not measured"))
        if missing:
            err.print(Text(f"Note: {missing}"))
        if out is not None:
            typer.echo(out)

    value = found._asdict() | {"study": run.name, "deviations": rows.get("deviations", []), "written": out and str(out)}
    return Result(value, show)


@command()
def gate(
    study: StudyArg,
    max_lost: Annotated[str, Option("--max-lost", help="Most that an edge may lose: `5%` or `0.05`.")],
    edge: Annotated[list[str] | None, Option(help="Only this edge: 'base->lua'. Repeatable.")] = None,
    undecided: Annotated[
        str | None,
        Option("--undecided", help="pass or fail: what an edge without a verdict does; default: exit code 3."),
    ] = None,
    by: Annotated[
        str, Option("--by", help="verdicts, or matches: all live features without a match, unstable ones included.")
    ] = "verdicts",
    text_: Annotated[str, Option("--text", help="By verdicts: one of the study's `verdicts.texts`.")] = "common",
    relative_to_ceiling: Annotated[
        bool, Option("--relative-to-ceiling", help="By matches: count only what is lost beyond the ceiling.")
    ] = False,
    sure: Annotated[
        bool, Option("--sure", help="By matches: fail only when the whole interval is over the limit.")
    ] = False,
    site: Site = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Hold the share of stable parent features that edges lose to a limit, in a study that has been run. Exit code 0:
    every edge is within the limit; 1: an edge is over it; 3: the evidence cannot tell."""
    from heredity.show.gate import doubts_of, judge, judge_matches, limit_of, removals_of

    limit = limit_of(max_lost)
    if by not in ("verdicts", "matches"):
        raise ValueError(f"--by {by}: must be verdicts or matches")
    if undecided not in (None, "pass", "fail"):
        raise ValueError(f"--undecided {undecided}: must be pass or fail")
    if by == "verdicts" and relative_to_ceiling:
        raise ValueError(
            "--relative-to-ceiling: verdicts judge stable features only, so that nothing is divided by a ceiling; "
            "leave it out, or add --by matches"
        )
    if by == "verdicts" and sure:
        raise ValueError(
            "--sure: by verdicts an edge fails only when the whole interval is over the limit; leave it out "
            "(--undecided pass lets edges pass that the evidence does not decide), or add --by matches"
        )
    if by == "matches" and text_ != "common":
        raise ValueError("--text: matches are counted on the common text; leave it out, or leave out --by matches")
    if by == "matches" and undecided:
        raise ValueError("--undecided: by matches no edge is undecided; use --sure, or leave out --by matches")
    done = complete(study, runs, set_, site)
    first, name = done.study.instrument, "verdicts" if by == "verdicts" else "edges"
    own_key = {"instrument": first, "site": done.study.site}

    def measured(table: str) -> list[dict[str, Any]]:
        rows = done.tables[table].to_pylist() if table in done.tables else []
        return [row for row in rows if row | own_key == row]

    rows, descent = measured(name), {one.name for one in done.study.descent}
    if by == "verdicts":
        if text_ not in (texts := done.study.config.verdicts.texts):
            raise ValueError(f"--text {text_}: is none of {', '.join(texts)}; add it to verdicts.texts, run the study")
        own = [row for row in rows if row["end"] == "parent" and row["text"] == text_]
        named = [one.name for one in done.study.descent if done.study.text_corpora(one, text_)]
        siblings = {e.name for e in done.study.edges} - {e.name for e in done.study.descent}
        if twins := [one for one in edge or () if one in siblings]:
            raise ValueError(
                f"--edge {twins[0]}: two trainings of one recipe inherit nothing from each other; no limit holds"
            )
        if silent := [one for one in edge or () if one in descent and one not in named]:
            raise ValueError(f"--edge {silent[0]}: has no text {text_}; edges that have one are {', '.join(named)}")
        removals = removals_of(measured("references"))
        judged = judge(done.name, own, named, limit, edge or (), removals) | {"text": text_}
    else:
        own = [row for row in rows if row["rule"] != "paper" and row["edge"] in descent]
        doubts = doubts_of(map(measured, ("verdicts", "saes")))
        judged = judge_matches(done.name, own, limit, edge or (), relative_to_ceiling, sure, doubts)
    notes = list(dict.fromkeys(one.text for one in done.statements if one.question == "note"))
    result = {"study": done.name, **own_key, **judged, "undecided": undecided, "notes": notes}
    code = {"pass": 0, "fail": 1, "undecided": {"pass": 0, "fail": 1}.get(undecided or "", 3)}[judged["verdict"]]
    result["passed"] = code == 0

    def show() -> None:
        text().print_gate(result)
        for note in notes:
            err.print(Text(f"Note: {note}"))

    return Result(result, show, code)


@command()
def export(
    study: StudyArg,
    out: Annotated[Path, Option("-o", "--out", help="Folder to write tables into.")],
    format_: Annotated[
        str, Option("--format", help="csv, parquet or json: every table; neuronpedia: features as its bulk tables.")
    ] = "csv",
    creator: Annotated[
        str | None, Option(help="User id of the Neuronpedia instance who is to own the rows. Default: heredity.")
    ] = None,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Write every table of a study that has been run, one file per table, or its features for Neuronpedia."""
    from heredity.neuronpedia import export_neuronpedia
    from heredity.show.export import FORMATS, export

    known = (*FORMATS, "neuronpedia")
    if format_ not in known:
        raise ValueError(f"--format {format_}: must be one of {', '.join(known)}")
    if creator is not None and format_ != "neuronpedia":
        raise ValueError(f"--creator: means nothing to --format {format_}; it goes with neuronpedia")
    done = complete(study, runs, set_)
    with watcher() as bars:
        if format_ == "neuronpedia":
            files = export_neuronpedia(done, out, creator or "heredity", bars.plain("features"))
        else:
            files = export(done, out, format_, bars.plain("export"))
    return Result({"files": [str(file) for file in files]}, lambda: [typer.echo(file) for file in files])


@command()
def stitch(
    study: StudyArg,
    only: Annotated[list[str] | None, Option(help="Only the stitch of this name. Repeatable.")] = None,
    runs: Runs = RUNS,
    set_: Sets = None,
    workers: Workers = 1,
    progress: Progress = "auto",
) -> Result:
    """Run what is missing of the stitches of a study and nothing else of it; show what was carried through the maps."""
    from heredity.analyses import TABLES, Pipeline
    from heredity.engine.store import Store
    from heredity.results import Run
    from heredity.show import summary

    loaded = study_of(study, set_)
    names, known = only or list(loaded.config.stitch), loaded.config.stitch
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{loaded.name}: no stitch {unknown[0]!r}; defined are {', '.join(known) or 'none'}")
    if not known:
        raise ValueError(f"{loaded.name}: has no stitch; add a table [stitch.NAME] with source and target")
    pipeline, store = Pipeline(loaded), Store(runs / loaded.name)
    ends = {end for name in names for end in (known[name].source, known[name].target)}
    wanted = [
        label
        for label, (analysis, item, repeat) in pipeline.items.items()
        if not repeat and (item.get("stitch") in names or (analysis.kind == "quality" and item.get("model") in ends))
    ]
    _, spent = _worked(pipeline, store, wanted, workers, progress)
    made, values = Run(loaded, store.root, pipeline), {}
    summary.write(made)
    store.share(summary.SUMMARY)
    for name, rows in made.tables.items():
        if "stitch" in TABLES[name].key:
            values[name] = summary.record(TABLES[name], [row for row in rows.to_pylist() if row["stitch"] in names])

    def show() -> None:
        for name, part in values.items():
            if part["rows"] and TABLES[name].brief:
                text().print_table(TABLES[name], part["rows"])
        text().print_worked(spent)

    return Result({"study": loaded.name, "tables": values, "worked": spent}, show)


class On(NamedTuple):
    """A Ray cluster to work on."""

    address: str | None  # None for one of this machine
    train_workers: int  # that divide each training of an SAE


def _worked(
    pipeline: Pipeline,
    store: Store,
    labels: list[str],
    workers: int,
    progress: str,
    until: str | None = None,
    on: On | None = None,
) -> tuple[dict[str, Artifact], list[dict[str, Any]]]:
    """Run what is missing of some stages and of all that they are made from, with progress on stderr. Returns artifacts
    by label, and rows of what was done now (`analyses.worked`). Of several ranks only the first comes back.

    on: a Ray cluster; this machine by default.
    """
    from heredity.analyses.ahead import compile_ahead
    from heredity.analyses.worked import worked
    from heredity.engine import stage as engine
    from heredity.engine.ranks import ranks
    from heredity.engine.workers import shards
    from heredity.results import RUN, record

    stages, done, made = pipeline.closure(labels), dict[str, Any](), list[str]()
    with ranks() as every:
        if every.number:
            engine.follow(stages, store, every, until)
        else:
            with watcher(progress) as bars:
                with store.lock():
                    record(pipeline.study, store.root)
                    store.share(RUN)
                bars.stages = len(stages)
                if any(store.find(each.kind, each.name, each.key) is None for each in engine.up_to(stages, until)):
                    compile_ahead()
                if on is None:
                    with shards(workers) as shared:
                        done = engine.run(stages, store, bars, until, shared, every)
                else:
                    done = _on_cluster(pipeline, stages, store, bars, until, on, workers)
                made = bars.worked
    if every.number:
        raise typer.Exit
    return done, worked(pipeline, store, made)


def _on_cluster(
    pipeline: Pipeline,
    stages: list[Stage],
    store: Store,
    bars: Watcher,
    until: str | None,
    on: On,
    workers: int,
) -> dict[str, Artifact]:
    from heredity.analyses.plan import loads
    from heredity.engine import cluster as ray_engine

    asked = {
        label: ray_engine.Asked(
            load.gib, load.products, load.seconds, on.train_workers if pipeline.stages[label].divided else 1
        )
        for label, load in loads(pipeline).items()
    }
    with ray_engine.cluster(on.address, workers) as nodes:
        return ray_engine.run(stages, store, nodes, asked, bars, until)


def _state(stage: Any, store: Store) -> dict[str, Any]:
    from heredity.engine.store import ArtifactError

    seconds, folder = None, store.path(stage.kind, stage.name, stage.key)
    state = "begun" if folder.with_name(f".partial-{folder.name}").exists() else "missing"
    try:
        if artifact := store.find(stage.kind, stage.name, stage.key):
            state, seconds = "done", artifact.manifest["seconds"]
    except ArtifactError:
        state = "damaged"
    return {"stage": stage.label, "state": state, "seconds": seconds, "folder": store.place(folder)}
