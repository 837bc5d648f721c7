"""One merge or one edge of existing models, without a study file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from heredity.analyses import match, write_tables
from heredity.engine.store import write_json
from heredity.engine.workers import Here, Progress
from heredity.study import ControlsConfig, CorpusConfig, Edge, LineageConfig


def merge_folders(
    models: Sequence[str],
    out: Path,
    method: str = "slerp",
    t: float | None = None,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    base: str | None = None,
    recipe: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Merge models into `out` (weights, config, the first model's tokenizer, `merge.json` with every tensor's report).

    Raises ValueError when options exclude each other, a position or weights are missing, or the models do not fit.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    if recipe is not None:
        if models or t is not None or weights is not None:
            raise ValueError("--config holds the models and numbers itself; leave the arguments and --t, --weights out")
        return _from_recipe(recipe, out, seed)
    if len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    if method == "slerp" and t is None:
        raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
    from heredity.lm.load import load_model
    from heredity.lm.merge import merge_states

    states = [load_model(model).state_dict() for model in models]
    first = load_model(base).state_dict() if base else None
    merged, report = merge_states(states, method, t, weights, density, first, seed)  # pyright: ignore[reportArgumentType]
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    return _write_merge(models[0], merged, report, out, result)


def _from_recipe(path: Path, out: Path, seed: int) -> dict[str, Any]:
    from heredity.lm.load import load_model
    from heredity.lm.recipe import merge_recipe, read_recipe

    recipe = read_recipe(path)
    needed = [*recipe.models, *([recipe.base] if recipe.base and recipe.base not in recipe.models else [])]
    states = {model: load_model(model).state_dict() for model in needed}
    merged, report = merge_recipe(recipe, states, seed)
    result = {"method": recipe.method, "models": list(recipe.models), "t": None, "weights": None}
    return _write_merge(recipe.models[0], merged, report, out, result)


def _write_merge(first: str, merged: dict, report: Sequence[Any], out: Path, result: dict[str, Any]) -> dict[str, Any]:
    from heredity.lm.load import load_model, save_model
    from heredity.text.tokens import load_tokenizer

    model = load_model(first, dtype=next(tensor.dtype for tensor in merged.values() if tensor.is_floating_point()))
    model.load_state_dict(merged)
    result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
    with _whole(out) as partial:
        save_model(model, load_tokenizer(first), partial)
        write_json(partial / "merge.json", result)
    return result


def track_edge(
    models: tuple[str, str],
    saes: Sequence[Path],
    corpus: CorpusConfig,
    out: Path,
    hook_point: str | None,
    tokens: int,
    threshold: float | None,
    context_size: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Match the features of one edge and write its tables (those of the analysis `match`) as Parquet into `out`.

    models: parent and child. threshold: on r, None to choose it by evidence. saes: of the parent, of the child, and
    further ones of the parent for the ceiling. Returns the small tables' rows.
    Raises ValueError when the models do not share a tokenizer, are identical, or an SAE belongs to other weights.
    """
    import pyarrow.parquet as pq

    from heredity.analyses.reading import on_device
    from heredity.analyses.sae import trained_on
    from heredity.features.collect import Reader
    from heredity.lm.load import load_model, state_hash
    from heredity.sae.formats import read_sae
    from heredity.text.corpora import documents
    from heredity.text.tokens import BlockSampler, fingerprint_tokenizer, load_tokenizer, pack

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    read = [read_sae(folder) for folder in saes]
    place = hook_point or read[0][1].get("hook_name")
    if place is None:
        raise ValueError(f"{saes[0]} does not say where it reads; give --hook-point, such as blocks.0.mlp.hook_post")
    tokenizers = [load_tokenizer(model) for model in models]
    if len({fingerprint_tokenizer(tokenizer) for tokenizer in tokenizers}) > 1:
        raise ValueError(f"{models[0]} and {models[1]} have different tokenizers; their positions cannot be aligned")
    ends = [on_device(load_model(model)) for model in models]
    states = [state_hash(model.state_dict()) for model in ends]
    if states[0] == states[1]:
        raise ValueError(f"{models[0]} and {models[1]} have identical weights; check the paths or revisions")
    owners = [states[0], states[1], *[states[0]] * (len(read) - 2)]
    for folder, (_, metadata), owner in zip(saes, read, owners, strict=True):
        if owner not in (trained_on(metadata) or [owner]):
            raise ValueError(f"{folder} was trained on other weights than the model it is given for; check the pairing")
    edge, controls = Edge(*models), ControlsConfig()
    settings = match.MatchSettings(
        edge=edge,
        hook_point=place,
        precision="float32",
        lineage=LineageConfig(threshold="evidence" if threshold is None else threshold, tokens=tokens),
        passes=controls.passes,
        rate=controls.rate,
        resamples=controls.resamples,
        level=controls.level,
        context_size=context_size,
        mix="tokens",
        seed=seed,
        place="",
    )
    item = {"instrument": "loaded", "site": place, "edge": edge.name}
    with _whole(out) as partial:
        texts = (document.text for document in documents(corpus, seed, Path.cwd()))
        sampler = BlockSampler(
            {corpus.source: pack(texts, tokenizers[0], partial / "tokens")}, context_size, seed, None
        )
        own = [sae.to(next(ends[0].parameters()).device) for sae, _ in read]
        parent, child = Reader(ends[0], place, [own[0], *own[2:]]), Reader(ends[1], place, [own[1]])
        jobs = Here().job(lambda: parent), Here().job(lambda: child)
        rows = match.match_edge(jobs, match.directions_of(own[0], own[1]), sampler, settings, progress)
        write_tables(match.TABLES, rows, partial, item)
        shutil.rmtree(partial / "tokens")
        small = [table.name for table in match.TABLES if not table.large]
        tables = {name: pq.read_table(partial / f"{name}.parquet").to_pylist() for name in small}
    return {"parent": models[0], "child": models[1], "hook_point": place, "tables": tables, "out": str(out)}


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error."""
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)
