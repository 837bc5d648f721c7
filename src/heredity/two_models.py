"""Two models in hand, no study file: what became of an SAE's features from one to the other, and maps between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.analyses import match, verdicts
from heredity.analyses.analysis import Aside, Statement
from heredity.engine.workers import Here, Progress
from heredity.study import ControlsConfig, Edge, LineageConfig, ReferencesConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from heredity.features.correlate import Matches
    from heredity.sae.model import SAE
    from heredity.stitch.affine import Stitch, StitchQuality
    from heredity.text.tokens import BlockSampler

Model = Any
"""A decoder with its weights, or the folder or hub id of one."""


_ONE_SAE = (
    "One SAE of the parent: which of its features are stable is unknown, so there are no verdicts. Features that one "
    "SAE has alone look lost or new by matches, and the threshold is chosen without knowing what an unchanged model "
    "keeps; give a second SAE of another seed (controls, --sae-control)."
)


class EdgeResult(NamedTuple):
    """What became of features from a parent to a child."""

    tables: dict[str, pa.Table]  # of an edge, as in a run: `edges`, `matches`, `fates`, `strata` ...
    matches: Matches  # best matches of every feature, both ways

    @property
    def statements(self) -> list[Statement]:
        """Findings in sentences, each with the figures it rests on."""
        large = ("matches", "fates", "evidence")
        small = {name: rows.to_pylist() for name, rows in self.tables.items() if name not in large}
        if "verdicts" in small:
            return [*verdicts.ANALYSIS.say(small), *match.ANALYSIS.say(small)]
        return [Statement("", "note", _ONE_SAE), *match.ANALYSIS.say(small)]

    def __str__(self) -> str:
        return "\n".join(statement.text for statement in self.statements)

    def __repr__(self) -> str:
        row = self.tables["edges"].to_pylist()[0]
        return f"<EdgeResult {row['edge']}: {', '.join(self.tables)}>"

    def write(self, folder: Path) -> None:
        """Write every table as `NAME.parquet` into a folder."""
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def compare(
    parent: Model,
    child: Model,
    sae: SAE | str | Path,
    texts: Iterable[str],
    *,
    sae_child: SAE | str | Path | None = None,
    controls: Sequence[SAE | str | Path] = (),
    child_control: SAE | str | Path | None = None,
    tokenizer: Any = None,
    hook_point: str | None = None,
    names: tuple[str, str] = ("parent", "child"),
    tokens: int = 100_000,
    threshold: float | None = None,
    context_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> EdgeResult:
    """Judge the features of two models on the same texts: kept, changed, lost or new; and match them.

    parent, child: decoders, or folders or hub ids of them, that read the same tokens. sae: of the parent; it reads the
    child as well unless `sae_child` is given. controls: further SAEs of the parent, of other seeds: the first tells
    which features are stable and can be judged, all give the ceiling of matches. child_control: the same of the child,
    whose features are judged then too. Without controls there are matches and no verdicts. texts: strings,
    such as a list or a column of a `datasets.Dataset`. tokenizer: needed where the parent is not a folder or hub id.
    hook_point: by default the one that the SAE's folder names. threshold: on r; by default chosen by evidence.
    Raises ValueError for tokenizers that differ, identical weights, an SAE of other weights or width, too few texts.
    """
    from heredity.analyses.reading import device, on_device
    from heredity.analyses.sae import trained_on
    from heredity.features.collect import Reader
    from heredity.lm.load import state_hash
    from heredity.sae.formats import read_sae
    from heredity.synthetic import surgery

    if child_control is not None and (sae_child is None or not controls):
        raise ValueError("child_control: is a second SAE of the child; give sae_child and controls with it")
    given = [sae, sae if sae_child is None else sae_child, *controls]
    given += [] if child_control is None else [child_control]
    saes = [read_sae(Path(one)) if isinstance(one, str | Path) else (one, {}) for one in given]
    place = hook_point or saes[0][1].get("hook_name")
    if place is None:
        raise ValueError(f"sae {sae}: does not say where it reads; give hook_point, such as blocks.0.mlp.hook_post")
    models, tokenizer = _opened((parent, child), tokenizer)
    if tokens < 1:
        raise ValueError(f"tokens={tokens} must be 1 or more")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} must lie between 0 and 1; leave it out to choose it by evidence")
    states = [state_hash(model.state_dict()) for model in models]
    if states[0] == states[1]:
        raise ValueError(f"{names[0]} and {names[1]} have identical weights; check the paths or revisions")
    for at, ((_, metadata), one) in enumerate(zip(saes, given, strict=True)):
        owner = states[(at == 1 and sae_child is not None) or (child_control is not None and at == len(given) - 1)]
        if owner not in (trained_on(metadata) or [owner]):
            wrong = f"SAE {one} was trained on other weights than the model it is given for"
            raise ValueError(f"{wrong}; check the pairing")
    own = [one.to(device()) for one, _ in saes]
    spare = own[2 : 2 + len(controls)]
    pairs = [(own[0], control) for control in spare] + ([(own[1], own[-1])] if child_control is not None else [])
    if any(a.W_dec.shape == b.W_dec.shape and bool((a.W_dec == b.W_dec).all()) for a, b in pairs):
        raise ValueError("a control is the SAE itself; give one of another seed, or stability says nothing")
    parent_reader = Reader(on_device(models[0]), place, [own[0], *spare])
    child_reader = Reader(on_device(models[1]), place, [own[1]])
    jobs = Here().job(lambda: parent_reader), Here().job(lambda: child_reader)
    config = ControlsConfig()
    settings = match.MatchSettings(
        edge=Edge(*names),
        hook_point=place,
        precision="float32",
        lineage=LineageConfig(threshold="evidence" if threshold is None else threshold, tokens=tokens),
        passes=config.passes,
        rate=config.rate,
        resamples=config.resamples,
        level=config.level,
        context_size=context_size,
        mix="tokens",
        seed=seed,
        place=Aside("compare"),
    )
    with tempfile.TemporaryDirectory() as folder:
        sampler = sampler_of(texts, tokenizer, Path(folder), context_size, seed)
        rows = match.match_edge(jobs, match.directions_of(own[0], own[1]), sampler, settings, progress)
        declared = [*match.TABLES]
        if controls:
            seconds = [own[-1]] if child_control is not None else spare[:1] if sae_child is None else []
            readers = {
                "parent": parent_reader._replace(saes=[own[0], spare[0]]),
                "child": child_reader._replace(saes=[own[1], *seconds]),
            }
            sample = verdicts.sample_of(sampler, tokens)
            asked = verdicts.VerdictSettings(
                settings.edge, place, "float32", tokens, context_size, "tokens", ReferencesConfig(), not sae_child, seed
            )
            shaken = partial(surgery.shaken, models[0], models[1], seed)
            rows |= verdicts.rows_of_ends(readers, sample, asked, shaken, progress)
            declared += verdicts.ANALYSIS.tables
    item = {"instrument": "loaded", "site": place, "edge": settings.edge.name, "text": "common"}
    keys = {table.name: {name: item[name] for name in item if name in table.key} for table in declared}
    tables = {table.name: table.check(rows[table.name], **keys[table.name]) for table in declared}
    return EdgeResult(tables, match.matches_from(tables))


class StitchResult(NamedTuple):
    """Affine maps between the residual streams of two models."""

    stitch: Stitch  # `up` (source to target) and `down`
    quality: StitchQuality  # loss and R2 of both maps and both round trips, on held-out blocks
    tokens: int  # aligned tokens that the maps are fitted to


def fit_stitch(
    source: Model,
    target: Model,
    texts: Iterable[str],
    *,
    source_hook_point: str,
    target_hook_point: str,
    tokenizer: Any = None,
    method: str = "joint",
    alpha: float = 1.0,
    held_out: float = 0.1,
    context_size: int = 128,
    seed: int = 0,
) -> StitchResult:
    """Fit affine maps between two models of any width on texts that both read with one tokenizer.

    method: `joint` (the loss of Chen et al. 2025, minimized exactly), `ridge` or `procrustes`. alpha: weight of the
    round trips. held_out: share of the blocks that the maps are judged on, half of them to choose the ridge.
    Raises ValueError for tokenizers that differ, and for fewer tokens than dimensions.
    """
    from heredity.analyses.reading import on_device
    from heredity.stitch.affine import MomentStream, stitch_quality
    from heredity.stitch.aligned import Points, aligned
    from heredity.stitch.fit import fit
    from heredity.text.tokens import distinct_blocks

    models, tokenizer = _opened((source, target), tokenizer)
    first, second = map(on_device, models)
    with tempfile.TemporaryDirectory() as folder:
        sampler = sampler_of(texts, tokenizer, Path(folder), context_size, seed)
        blocks = distinct_blocks(sampler, sampler.blocks_per_pass * context_size)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must be a share between 0 and 1")
    count = max(2, round(held_out * len(blocks)))
    points = Points(first, [source_hook_point]), Points(second, [target_hook_point])

    def moments(some: Any) -> Any:
        stream = MomentStream()
        for of_source, of_target in aligned(*points, some, list(tokenizer.all_special_ids), "float32"):
            stream.add(of_source, of_target)
        return stream.pair(0, 0)

    fitted_on, tuning, judged = moments(blocks[count:]), moments(blocks[:count:2]), moments(blocks[1:count:2])
    widths = len(fitted_on.mean_a), len(fitted_on.mean_b)
    if fitted_on.tokens <= sum(widths):
        maps = f"{fitted_on.tokens} tokens, and maps between {widths[0]} and {widths[1]} dimensions"
        raise ValueError(f"{maps} fit any so few; give many times as many texts")
    stitch = fit(fitted_on, method, alpha, held_out=tuning).stitch  # pyright: ignore[reportArgumentType]
    return StitchResult(stitch, stitch_quality(stitch, judged, alpha), fitted_on.tokens)


def sampler_of(texts: Iterable[str], tokenizer: Any, folder: Path, context_size: int, seed: int) -> BlockSampler:
    """Blocks of packed texts in random order. Raises ValueError for texts that do not fill two blocks."""
    from heredity.text.tokens import BlockSampler, pack

    packed = pack(_checked(texts), tokenizer, folder / "tokens")
    if packed.n_blocks(context_size) < 2:
        few = f"texts hold {len(packed.tokens)} tokens, fewer than two blocks of {context_size}"
        raise ValueError(f"{few}; give more text, or lower context_size")
    return BlockSampler({"texts": packed}, context_size, seed, None)


def _opened(models: tuple[Model, Model], tokenizer: Any) -> tuple[list[Any], Any]:
    """Two models and the tokenizer that they share, read from their folders where these are given."""
    from heredity.lm.load import load_model
    from heredity.text.tokens import fingerprint_tokenizer, load_tokenizer

    opened = [load_model(str(model)) if isinstance(model, str | Path) else model for model in models]
    known = [] if tokenizer is None else [tokenizer]
    known += [load_tokenizer(str(model)) for model in models if isinstance(model, str | Path)]
    if not known:
        raise ValueError("tokenizer: is needed for models given as objects; pass the one they were trained with")
    if len({fingerprint_tokenizer(one) for one in known}) > 1:
        raise ValueError(f"{models[0]} and {models[1]} have different tokenizers; their positions cannot be aligned")
    return opened, known[0]


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each of which must be one."""
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r}: is one string; give a list of texts, or a column of a data set")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            wrong = f"texts[{place}] is of type {type(text).__name__}, not a string"
            raise ValueError(f'{wrong}; of a data set give one column, such as data["text"]')
        yield text
