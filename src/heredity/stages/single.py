"""One merge or one edge of existing models, without a study file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from heredity.engine.store import write_json
from heredity.engine.workers import Here, Progress
from heredity.study import ControlsConfig, CorpusConfig, LineageConfig


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
        from heredity.lm.recipe import parents_of, read_recipe

        read = read_recipe(recipe)
        result = {"method": read.get("merge_method"), "models": parents_of(read), "t": None, "weights": None}
        return _by_mergekit(read, out, seed, str(recipe), result)
    if len(models) < 2 and not (base and models):
        raise ValueError(f"merge takes at least two models, not {len(models)}; name them, or give --config")
    if method == "slerp" and t is None:
        raise ValueError("slerp needs --t, from 0 (first model) to 1 (second model)")
    result = {"method": method, "models": list(models), "t": t, "weights": list(weights) if weights else None}
    from heredity.lm.merge import Method

    if method not in get_args(Method):
        from heredity.lm.recipe import recipe_of

        if t is not None:
            raise ValueError(f"--t has no effect on {method}, it belongs to slerp and linear; leave it out")
        return _by_mergekit(recipe_of(method, models, weights, density, base), out, seed, f"--method {method}", result)
    from heredity.lm.load import load_model, save_model
    from heredity.lm.merge import merge_states
    from heredity.text.tokenizer import load_tokenizer

    states = [load_model(model).state_dict() for model in models]
    first = load_model(base).state_dict() if base else None
    merged, report = merge_states(states, method, t, weights, density, first)  # pyright: ignore[reportArgumentType]
    model = load_model(models[0], dtype=next(tensor.dtype for tensor in merged.values() if tensor.is_floating_point()))
    model.load_state_dict(merged)
    result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
    with _whole(out) as partial:
        save_model(model, load_tokenizer(models[0]), partial)
        write_json(partial / "merge.json", result)
    return result


def _by_mergekit(recipe: dict[str, Any], out: Path, seed: int, place: str, result: dict[str, Any]) -> dict[str, Any]:
    from heredity.lm.recipe import merge_recipe

    with _whole(out) as partial:
        report = merge_recipe(recipe, partial, seed, place)
        result |= {"out": str(out), "tensors": [row._asdict() for row in report]}
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
    """Match the features of one edge and write `parent.parquet`, `child.parquet`, `controls.parquet`, `counts.json`.

    models: parent and child. threshold: on r, None to choose it by evidence. saes: of the parent, of the child, and
    further ones of the parent for the ceiling.
    Raises ValueError when the models do not share a tokenizer, are identical, or an SAE belongs to other weights.
    """
    from heredity.features.collect import Reader
    from heredity.lm.load import load_model, state_hash
    from heredity.sae.formats import read_sae
    from heredity.stages.lineage import directions_of, match_edge
    from heredity.stages.models import on_device
    from heredity.stages.saes import trained_on
    from heredity.text.corpora import documents
    from heredity.text.tokenizer import fingerprint_tokenizer, load_tokenizer
    from heredity.text.tokens import BlockSampler, pack

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"-o {out}: the folder is not empty; choose another, nothing is overwritten")
    lineage = LineageConfig(threshold="evidence" if threshold is None else threshold, tokens=tokens)
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
    with _whole(out) as partial:
        texts = (document.text for document in documents(corpus, seed, Path.cwd()))
        pack_ = pack(texts, tokenizers[0], partial / "tokens")
        sampler = BlockSampler({corpus.source: pack_}, context_size, seed, None)
        own = [sae.to(next(ends[0].parameters()).device) for sae, _ in read]
        parent, child = Reader(ends[0], place, [own[0], *own[2:]]), Reader(ends[1], place, [own[1]])
        jobs = Here().job(lambda: parent), Here().job(lambda: child)
        directions = directions_of(own[0], own[1])
        counts = match_edge(partial, jobs, directions, sampler, (lineage, ControlsConfig()), seed, progress)
        shutil.rmtree(partial / "tokens")
    return {"parent": models[0], "child": models[1], "hook_point": place, **counts, "out": str(out)}


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
