"""The command about stitches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heredity.cli.app import AsJson, Debug, Runs, Sets, StudyArg, Workers, app, emit, errors, text, watcher
from heredity.engine.store import Store
from heredity.study import load_study


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
        from heredity.engine import stage as engine
        from heredity.engine.workers import shards
        from heredity.stages import stitch_part
        from heredity.stages.stitching import stitch_summary

        loaded = load_study(study, set_ or ())
        names = only or list(loaded.config.stitch)
        stages = stitch_part(loaded, only or ())
        with watcher() as bars, shards(workers) as shared:
            bars.expect(len(stages))
            artifacts = engine.run(stages, Store(runs / loaded.name), bars, None, shared)
        found = {name: stitch_summary(loaded, artifacts, name) for name in names}
        as_data = {name: own.model_dump(mode="json") for name, own in found.items()}
        emit(as_json, {"study": loaded.name, "stitches": as_data}, lambda: text().print_stitches(found))
