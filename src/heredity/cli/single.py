"""Commands without a study: one merge, one edge, validation on planted worlds."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args

from rich.text import Text
from typer import Argument, Context, Option

from heredity.cli.app import Result, command, err, setting, text, watcher
from heredity.errors import install
from heredity.study import CorpusConfig, Init, LineageConfig, MergeConfig

_Trusted = Annotated[bool, Option("--trust-remote-code", help="Run code that the models' repositories ship.")]


@command()
def merge(
    models: Annotated[
        list[str] | None, Argument(help="Folders or hub ids (ID@REVISION); t runs from the first to the second.")
    ] = None,
    out: Annotated[Path, Option("-o", "--out", help="Folder to write the merged model into.")] = ...,  # pyright: ignore[reportArgumentType]
    method: Annotated[
        str | None,
        Option(
            help="slerp (the default), linear, task_arithmetic, ties, or any method of mergekit, such as dare_ties."
        ),
    ] = None,
    t: Annotated[float | None, Option(help="Position from the first model (0) to the second (1).")] = None,
    weights: Annotated[str | None, Option(help="Comma-separated weights, one per model.")] = None,
    density: Annotated[float | None, Option(help=setting(MergeConfig, "density"))] = None,
    base: Annotated[str | None, Option(help="Model that task vectors are taken from.")] = None,
    config: Annotated[Path | None, Option(help="A YAML recipe for mergekit, instead of the options.")] = None,
    seed: Annotated[int | None, Option(help="Seed of the methods that draw at random, such as dare_ties; 0.")] = None,
    trust_remote_code: _Trusted = False,
) -> Result:
    """Merge models into one folder, with a report for every tensor."""
    from heredity.lm.folders import merge_folders

    try:
        numbers = [float(part) for part in weights.split(",")] if weights else None
    except ValueError:
        raise ValueError(f"--weights {weights}: must be numbers with commas between them, such as 0.5,0.5") from None
    arguments = (models or [], out, method, t, numbers, density, base, config, seed, trust_remote_code)
    result = merge_folders(*arguments, say=lambda note: err.print(Text(f"note: {note}")))
    return Result(result, lambda: text().print_merge(result))


@command(keeps=False)
def track(
    parent: Annotated[str, Argument(help="Parent model: folder or hub id (ID@REVISION).")],
    child: Annotated[str, Argument(help="Child model: folder or hub id (ID@REVISION).")],
    sae_parent: Annotated[Path, Option(help="SAE of the parent: a folder in any format read, or saelens:RELEASE/ID.")],
    corpus: Annotated[str, Option(help="Text to compare on: local:PATH, hub:NAME, installed:NAME ...")],
    out: Annotated[Path, Option("-o", "--out", help="Folder to write tables into.")],
    sae_child: Annotated[Path | None, Option(help="SAE of the child; default: the parent's reads both.")] = None,
    hook_point: Annotated[str | None, Option(help="Default: the one the parent's SAE names.")] = None,
    prefix: Annotated[
        str | None,
        Option(
            help="Token before every block: auto, bos, eos or none. Default: as the parent's SAE says, or else auto: "
            "the token that the tokenizer itself puts before a text, otherwise the end-of-text token."
        ),
    ] = None,
    sae_control: Annotated[
        list[Path] | None,
        Option(help="Another SAE of the parent, of another seed: tells which features are stable. Repeatable."),
    ] = None,
    sae_child_control: Annotated[
        Path | None, Option(help="Another SAE of the child, of another seed: its features are judged then too.")
    ] = None,
    second_sae: Annotated[
        str,
        Option(
            help="Whose second SAE to train where none is given: parent, both, or none (evidence without verdicts). "
            "What it costs is said first."
        ),
    ] = "parent",
    second_sae_tokens: Annotated[int, Option(min=1, help="Activations that a second SAE is trained on.")] = 1_000_000,
    save_second_sae: Annotated[
        Path | None, Option(help="Folder to keep it in, as `parent` and `child`: then it is paid for once.")
    ] = None,
    column: Annotated[str, Option(help=setting(CorpusConfig, "column"))] = "text",
    format_: Annotated[
        str | None, Option("--format", help="What it holds: text, chat or ids; default: as its first row.")
    ] = None,
    roles: Annotated[str, Option(help=setting(CorpusConfig, "roles"))] = "all",
    skip_damaged: Annotated[float, Option(min=0, max=0.99, help=setting(CorpusConfig, "skip_damaged"))] = 0.0,
    tokens: Annotated[int, Option(min=1, help=setting(LineageConfig, "tokens"))] = 1_000_000,
    threshold: Annotated[
        float | None,
        Option(min=0.01, max=0.99, help=setting(LineageConfig, "threshold", "; default: chosen by evidence")),
    ] = None,
    context_size: Annotated[int, Option(min=2, help="Tokens per block.")] = 128,
    seed: Annotated[int, Option(help="Seed of the token sample.")] = 0,
    effects: Annotated[
        bool | None,
        Option(
            "--effects/--no-effects",
            help="Effects of features among the evidence where there are no verdicts, which need them. Default: unless "
            "so many features fire that they take longer than all else.",
        ),
    ] = None,
    trust_remote_code: _Trusted = False,
) -> Result:
    """Judge and match the features of one edge between existing models and SAEs."""
    from heredity.analyses import TABLES
    from heredity.engine.store import whole, write_json
    from heredity.results import TRACKED
    from heredity.text.corpora import documents, form_of
    from heredity.text.forms import Form
    from heredity.text.sources import Account
    from heredity.text.spoken import Spoken
    from heredity.text.tokens import load_tokenizer
    from heredity.two_models import compare

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"-o {out}: is a file or a folder with content; choose another, nothing is overwritten")
    if prefix not in (None, "auto", "bos", "eos", "none"):
        raise ValueError(f"--prefix {prefix}: must be auto, bos, eos or none")
    if second_sae not in ("parent", "both", "none"):
        raise ValueError(f"--second-sae {second_sae}: must be parent, both or none")
    if second_sae == "both" and sae_child is None:
        raise ValueError("--second-sae both: the child has no SAE of its own; give --sae-child, or leave this out")
    if format_ not in (None, *get_args(Form)):
        raise ValueError(f"--format {format_}: must be text, chat or ids")
    if roles not in ("all", "assistant"):
        raise ValueError(f"--roles {roles}: must be all or assistant")
    # 12 bytes per token is more than any text needs
    read: Any = {"column": column, "format": format_, "skip_damaged": skip_damaged}
    source, account = CorpusConfig(source=corpus, max_bytes=max(1_000_000, 12 * tokens), **read), Account()
    tokenizer = cache(partial(load_tokenizer, parent))
    found = documents(source, seed, Path.cwd(), tokenizer, account)
    texts = (one.text if roles == "all" else Spoken(one.text, one.spans) for one in found)
    controls: Any = sae_control or (() if second_sae == "none" else "train")
    child_control: Any = sae_child_control or ("train" if second_sae == "both" else None)
    ends: dict[str, Any] = {"sae_child": sae_child, "controls": controls, "child_control": child_control}
    ends |= {"hook_point": hook_point, "names": (parent, child), "prefix": prefix}
    options: dict[str, Any] = {"tokens": tokens, "threshold": threshold, "context_size": context_size, "seed": seed}
    options |= {"second_tokens": second_sae_tokens, "save_second": save_second_sae}
    options |= {"dialogues": form_of(source, Path.cwd()) == "chat", "roles": roles}
    options |= {"effects": effects, "trust_remote_code": trust_remote_code}
    trained = [name for name, one in (("parent", controls), ("child", child_control)) if one == "train"]
    kept = {name: str(save_second_sae / name) for name in trained if save_second_sae}
    with watcher() as bars, whole(out) as unfinished:
        unfinished.mkdir(parents=True)  # before the hours of work that its content may take
        options |= {"progress": bars.plain("track"), "say": lambda line: err.print(Text(line))}
        edge = compare(parent, child, sae_parent, texts, **ends, **options)
        tables = {name: rows.to_pylist() for name, rows in edge.tables.items() if not TABLES[name].large}
        notes = [f"{corpus}: {note}" for note in account.notes()]
        notes += [statement.text for statement in edge.statements if statement.question == "note"]
        result = {"parent": parent, "child": child, "tables": tables, "notes": notes}
        result |= {"second_saes": kept, "out": str(out)}
        edge.write(unfinished)
        write_json(unfinished / TRACKED, result)
    return Result(result, lambda: text().print_edge(result, edge.tables["evidence"].to_pylist()))


@command()
def convert(
    sae: Annotated[str, Argument(help="Folder of an SAE in any format that is read, or saelens:RELEASE/ID.")],
    out: Annotated[Path, Option("-o", "--out", help="Folder to write the SAE into.")],
    to: Annotated[str, Option(help="saelens, dictionary_learning or sparsify.")] = "saelens",
) -> Result:
    """Write an SAE in another library's format, and check that what was written is the same SAE."""
    import torch

    from heredity.engine.store import whole
    from heredity.sae.formats import read_sae, write_sae

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"-o {out}: is a file or a folder with content; choose another, nothing is overwritten")
    given, metadata = read_sae(sae)
    with whole(out) as partial:
        write_sae(given, partial, metadata, to)  # pyright: ignore[reportArgumentType]
        written, _ = read_sae(partial)
        spread = given.W_dec.norm(dim=1).mean()  # vectors of about the length that the SAE gives back
        x = given.b_dec + spread * torch.randn(256, given.d_in, generator=torch.Generator().manual_seed(0))
        before, after = given.encode(x), written.encode(x)
        difference, other = float((before - after).abs().max()), int(((before > 0) != (after > 0)).sum())
        if difference > 1e-3 * max(1.0, float(before.max())):
            raise ValueError(
                f"{sae}: comes back from {to} with activations that differ by {difference:.2g}; report this"
            )
    result = {"sae": sae, "out": str(out), "format": to, "d_in": given.d_in, "d_sae": given.d_sae}
    result |= {"activation": written.activation, "largest_difference": difference, "other_features": other}
    result |= {"hook_name": metadata.get("hook_name"), "model_name": metadata.get("model_name")}
    return Result(result, lambda: text().print_converted(result))


@command()
@command("plant", hidden=True)
def validate(
    context: Context,
    small: Annotated[
        bool, Option("--small", help="Few and small worlds and one seed, whatever --seeds says: about a minute.")
    ] = False,
    only: Annotated[
        str | None, Option(help="rules (matching rules and error rates) or verdicts; default both.")
    ] = None,
    init: Annotated[
        list[str] | None, Option(help="Of rules: joint, parent or independent; default all three. Repeatable.")
    ] = None,
    edits: Annotated[
        str | None, Option(help="A run: verdicts on edits of its first model's weights instead of planted worlds.")
    ] = None,
    retrain: Annotated[
        str | None,
        Option(help="A run: whether its intervals hold the verdicts of other training seeds, kept in its folder."),
    ] = None,
    sae_seeds: Annotated[int, Option(min=0, help="Of --retrain: further SAEs of every model, an even number.")] = 4,
    model_seeds: Annotated[int, Option(min=0, help="Of --retrain: further fine-tunes of every child.")] = 2,
    seeds: Annotated[int, Option(min=1, help="Repetitions of every world.")] = 3,
    rate_seeds: Annotated[int, Option(min=1, help="Worlds behind the error rates.")] = 20,
    workers: Annotated[
        int, Option(min=1, help="Processes that share the edges of verdicts, and the stages of --retrain.")
    ] = 1,
    out: Annotated[
        Path | None,
        Option("-o", "--out", help="Also write the result here as JSON; an interrupted proof of verdicts goes on."),
    ] = None,
) -> Result:
    """Validate every rule, test and verdict on worlds whose truth is planted: precision, recall, error rates."""
    from heredity import seed_proof
    from heredity.engine.store import write_json
    from heredity.engine.workers import shards
    from heredity.show.terminal import print_table
    from heredity.synthetic import edit_proof, validation, verdict_proof

    if context.info_name == "plant":
        err.print("`heredity plant` is now called `heredity validate`", style="yellow")
    if out is not None and out.is_dir():
        raise ValueError(f"-o {out}: is a folder; give the name of a JSON file")
    inits: list[Any] = list(dict.fromkeys(init or (["joint"] if small else ["joint", "parent", "independent"])))
    if unknown := [name for name in inits if name not in get_args(Init)]:
        raise ValueError(f"--init {unknown[0]}: is not known; choose from {', '.join(get_args(Init))}")
    if only not in (None, "rules", "verdicts"):
        raise ValueError(f"--only {only}: is not known; choose rules or verdicts")
    if edits is not None and retrain is not None:
        raise ValueError("--edits and --retrain are proofs of their own; give one of them")
    tables, shown = {}, []
    with watcher() as bars, shards(workers) as shared:
        if edits is not None:
            tables, shown, only = _edits(edits, bars.plain("edits")), [edit_proof.EDITS], "a run"
        if retrain is not None:
            tables, only = _retrained(retrain, sae_seeds, model_seeds, bars, shared), "a run"
            shown += seed_proof.TABLES
        if only not in ("verdicts", "a run"):
            names = ("well trained", "under-trained")
            worlds = [row for row in validation.CONDITIONS if not small or row.name in names]
            counts = (1, 3) if small else (seeds, rate_seeds)
            tables |= validation.prove(worlds, inits, *counts, progress=bars.plain("rules"))
            shown += validation.TABLES
        if only not in ("rules", "a run"):
            every = verdict_proof.SMALL_CONDITIONS if small else verdict_proof.EDGE_CONDITIONS
            edges, repeats = verdict_proof.installed(every), 1 if small else seeds
            if len(edges) < len(every):
                err.print(f"SynthSAEBench is left out; it needs SAELens; {install('interop')}", style="yellow")
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
            kept = out.with_name(f"{out.name}.partial") if out is not None else None
            tables |= verdict_proof.prove_verdicts(edges, repeats, 60_000, bars.plain("verdicts"), shared, kept)
            shown += verdict_proof.TABLES
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, tables)
    brief = [table for table in shown if table.brief]
    return Result(tables, lambda: [print_table(table, tables[table.name]) for table in brief])


def _edits(folder: str, progress: Any) -> dict[str, Any]:
    """Verdicts on edits of the first model of a run, read on the text that it has in common with its first child."""
    from heredity.analyses.reading import sampler_of
    from heredity.results import open as opened
    from heredity.synthetic.edit_proof import prove_edits

    run = opened(folder)
    if not run.study.edges:
        raise ValueError(f"--edits {folder}: the study has no edge; give a run of a lineage")
    edge, context = run.study.edges[0], run.study.config.sae.context_size
    tokens = {name: run.artifact(("tokens", {"corpus": name})) for name in run.study.common_trace(edge)}
    sampler = sampler_of(tokens, "train", context, run.study.config.seed, run.study.config.sae.mix)
    count = min(600_000 // context, sampler.blocks_per_pass)
    models = run.model(edge.parent), run.model(edge.child)
    return prove_edits(*models, sampler.take(0, count), sampler.documents(0, count), progress=progress)


def _retrained(folder: str, sae_seeds: int, model_seeds: int, bars: Any, shared: Any) -> dict[str, Any]:
    """Verdicts of a run compared with those under other training seeds; all that is trained is kept in its folder."""
    from heredity import seed_proof
    from heredity.engine import stage as engine
    from heredity.engine.store import Store
    from heredity.results import open as opened

    plan = seed_proof.plan(opened(folder).study, sae_seeds, model_seeds)
    bars.stages = len(plan.stages)
    return seed_proof.compared(plan, engine.run(plan.stages, Store(Path(folder)), bars, None, shared))


@command()
def doctor(
    shape: Annotated[
        list[str] | None, Option(help="Inputs x features of an SAE, such as 1024x16384. Repeatable.")
    ] = None,
) -> Result:
    """Measure this machine: the matrix products that SAEs can be encoded with, and the one that is taken."""
    from heredity.kernels.paths import measured_table

    shapes = [_sizes(one) for one in shape or ("256x2048", "1024x16384")]
    rows = [row for d_in, d_sae in shapes for row in measured_table(d_in, d_sae)]
    return Result({"products": rows}, lambda: text().print_products(rows))


def _sizes(shape: str) -> tuple[int, int]:
    d_in, _, d_sae = shape.partition("x")
    if not (d_in.isdecimal() and d_sae.isdecimal() and int(d_in) and int(d_sae)):
        raise ValueError(f"--shape {shape}: must be two numbers such as 1024x16384, inputs and features")
    return int(d_in), int(d_sae)
