"""The command about stitches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heredity.cli.app import AsJson, Debug, Runs, Sets, StudyArg, Workers, app, emit, errors, study_of, text, watcher


@app.command()
def stitch(
    study: StudyArg,
    only: Annotated[list[str] | None, typer.Option(help="Only the stitch of this name. Repeatable.")] = None,
    runs: Runs = Path("runs"),
    set_: Sets = None,
    workers: Workers = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run what is missing of the stitches of a study and nothing else of it; show what was carried through the maps."""
    with errors(debug):
        from heredity.analyses import TABLES, Pipeline
        from heredity.engine import stage as engine
        from heredity.engine.store import Store
        from heredity.engine.workers import shards
        from heredity.results import Run, record
        from heredity.show.summary import record as recorded

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
            if not repeat
            and (item.get("stitch") in names or (analysis.kind == "quality" and item.get("model") in ends))
        ]
        stages = pipeline.closure(wanted)
        with watcher() as bars, shards(workers) as shared:
            with store.lock():
                record(loaded, store.root)
            bars.expect(len(stages))
            engine.run(stages, store, bars, None, shared)
        run = Run(loaded, store.root, pipeline)
        tables = {name: rows.to_pylist() for name, rows in run.tables.items() if "stitch" in TABLES[name].key}
        values = {
            name: recorded(TABLES[name], [row for row in rows if row["stitch"] in names])
            for name, rows in tables.items()
        }
        emit(
            as_json,
            {"study": loaded.name, "tables": values},
            lambda: [
                text().print_table(TABLES[name], part["rows"])
                for name, part in values.items()
                if part["rows"] and TABLES[name].brief
            ],
        )
