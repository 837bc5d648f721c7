"""Commands without a study: one merge, one edge, validation on planted worlds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from heredity.cli.app import AsJson, Debug, app, emit, err, errors, setting, text, watcher
from heredity.study import CorpusConfig, LineageConfig, MergeConfig


@app.command()
def merge(
    models: Annotated[
        list[str] | None, typer.Argument(help="Folders or hub ids; t runs from the first to the second.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the merged model into.")] = ...,  # pyright: ignore[reportArgumentType]
    method: Annotated[
        str, typer.Option(help="slerp, linear, task_arithmetic, ties, or any method of mergekit, such as dare_ties.")
    ] = "slerp",
    t: Annotated[float | None, typer.Option(help="Position from the first model (0) to the second (1).")] = None,
    weights: Annotated[str | None, typer.Option(help="Comma-separated weights, one per model.")] = None,
    density: Annotated[float, typer.Option(help=setting(MergeConfig, "density"))] = 0.5,
    base: Annotated[str | None, typer.Option(help="Model that task vectors are taken from.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML recipe for mergekit, instead of the options.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the methods that draw at random, such as dare_ties.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge models into one folder, with a report for every tensor."""
    with errors(debug):
        from heredity.lm.recipe import merge_folders

        numbers = _numbers(weights) if weights else None
        result = merge_folders(models or [], out, method, t, numbers, density, base, config, seed)
        emit(as_json, result, lambda: text().print_merge(result))


@app.command()
def track(
    parent: Annotated[str, typer.Argument(help="Parent model: folder or hub id.")],
    child: Annotated[str, typer.Argument(help="Child model: folder or hub id.")],
    sae_parent: Annotated[
        Path, typer.Option(help="SAE of the parent (SAELens, sparsify or dictionary_learning folder).")
    ],
    sae_child: Annotated[Path, typer.Option(help="SAE of the child.")],
    corpus: Annotated[str, typer.Option(help="Text to compare on: local:PATH, hub:NAME, installed:NAME ...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write matches and counts into.")],
    hook_point: Annotated[str | None, typer.Option(help="Default: the one the parent's SAE names.")] = None,
    sae_control: Annotated[
        list[Path] | None, typer.Option(help="Another SAE of the parent, for the ceiling. Repeatable.")
    ] = None,
    column: Annotated[str, typer.Option(help=setting(CorpusConfig, "column"))] = "text",
    tokens: Annotated[int, typer.Option(min=1, help=setting(LineageConfig, "tokens"))] = 1_000_000,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.99, help=setting(LineageConfig, "threshold", "; default: chosen by evidence")),
    ] = None,
    context_size: Annotated[int, typer.Option(min=2, help="Tokens per block.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the token sample.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Match the features of one edge between existing models and SAEs."""
    with errors(debug):
        from heredity.analyses import TABLES
        from heredity.engine.store import whole
        from heredity.text.corpora import documents
        from heredity.two_models import compare

        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"-o {out}: is a file or a folder with content; choose another, nothing is overwritten")
        # 12 bytes per token is more than any text needs
        source = CorpusConfig(source=corpus, column=column, max_bytes=max(1_000_000, 12 * tokens))
        texts = (document.text for document in documents(source, seed, Path.cwd()))
        with watcher() as bars:
            edge = compare(
                parent,
                child,
                sae_parent,
                texts,
                sae_child=sae_child,
                controls=sae_control or (),
                hook_point=hook_point,
                names=(parent, child),
                tokens=tokens,
                threshold=threshold,
                context_size=context_size,
                seed=seed,
                progress=bars.plain("match"),
            )
        with whole(out) as partial:
            edge.write(partial)
        tables = {name: rows.to_pylist() for name, rows in edge.tables.items() if not TABLES[name].large}
        result = {"parent": parent, "child": child, "tables": tables, "out": str(out)}
        emit(as_json, result, lambda: text().print_edge(result))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights {text}: must be numbers with commas between them, such as 0.5,0.5") from None


@app.command()
@app.command("plant", hidden=True)
def validate(
    context: typer.Context,
    small: Annotated[bool, typer.Option("--small", help="Two worlds and few seeds, whatever --seeds says.")] = False,
    init: Annotated[
        list[str] | None, typer.Option(help="joint, parent or independent; default all three. Repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of every world.")] = 3,
    rate_seeds: Annotated[int, typer.Option(min=1, help="Worlds behind the error rates.")] = 20,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write the result here as JSON.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Validate every rule and test on worlds whose truth is planted: precision, recall, error rates."""
    with errors(debug):
        from heredity.show.terminal import print_table
        from heredity.synthetic.validation import CONDITIONS, TABLES, prove

        if context.info_name == "plant":
            err.print("`heredity plant` is now called `heredity validate`", style="yellow")
        if out is not None and out.is_dir():
            raise ValueError(f"-o {out}: is a folder; give the name of a JSON file")
        inits = _inits(init or ["joint"] if small else init or ["joint", "parent", "independent"])
        worlds = [row for row in CONDITIONS if row.name in ("well trained", "under-trained")] if small else CONDITIONS
        with watcher() as bars:
            counts = (1, 3) if small else (seeds, rate_seeds)
            tables = prove(worlds, inits, *counts, progress=bars.plain("validate"))
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            partial = out.with_name(f".{out.name}.partial")
            partial.write_text(json.dumps(tables, indent=1, allow_nan=False) + "\n")
            partial.replace(out)
        brief = [table for table in TABLES if table.brief]
        emit(as_json, tables, lambda: [print_table(table, tables[table.name]) for table in brief])


def _inits(names: list[str]) -> list[Any]:
    from heredity.study import Init

    known = get_args(Init)
    for name in names:
        if name not in known:
            raise ValueError(f"--init {name}: is not known; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))
