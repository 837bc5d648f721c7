"""Two models in hand, no study file: what became of an SAE's features from one to the other, and maps between them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from heredity.analyses import TABLES, match, one_sae, verdict_findings, verdicts
from heredity.analyses import sae as sae_analysis
from heredity.analyses.aligned_ends import Sample, read_ends, sample_of
from heredity.analyses.analysis import Statement
from heredity.analyses.pairing import (
    Ends,
    Given,
    check_made_for,
    check_pair,
    check_positions,
    check_words,
    further,
    opened,
)
from heredity.analyses.text import FEW_UNKNOWN, unknown_note
from heredity.engine.workers import Progress
from heredity.errors import one_of, short
from heredity.lm.reading import OUTLIERS, Prefix, Reading, prefix_of, read_by
from heredity.study import ControlsConfig, Edge, LineageConfig, ReferencesConfig
from heredity.text.spoken import Roles, Spoken

if TYPE_CHECKING:
    import pyarrow as pa

    from heredity.features.acts import FeatureActs
    from heredity.features.collect import Reader
    from heredity.features.correlate import Matches
    from heredity.features.ends import End
    from heredity.stitch.affine import Stitch, StitchQuality
    from heredity.text.tokens import BlockSampler

Model = Any
"""A decoder with its weights, or the folder or hub id of one."""
_QUALITY, _PREDICTED = 50_000, 4_096  # tokens behind the figures of quality, and behind those of whole models


class EdgeResult(NamedTuple):
    """What became of features from a parent to a child."""

    tables: dict[str, pa.Table]
    """Of an edge, as in a run: `verdicts`, `evidence`, `edges`, `matches` ...; with one SAE `evidence`, `matches` and
    `saes` alone, since no share means anything then."""
    matches: Matches  # best matches of every feature, both ways
    notes: tuple[str, ...] = ()
    """What to know besides: of the texts, how the tokenizers differ, activations that are the same."""

    @property
    def statements(self) -> list[Statement]:
        """Findings in sentences, each with the figures it rests on."""
        small = {name: rows.to_pylist() for name, rows in self.tables.items() if not TABLES[name].large}
        notes = [Statement("", "note", note) for note in self.notes]
        if "verdicts" not in small:
            return [Statement("", "note", one_sae.ONE_SAE), *notes, *sae_analysis.SAE_QUALITY.say(small)]
        return notes + [
            statement
            for analysis in (verdicts.ANALYSIS, match.ANALYSIS, sae_analysis.SAE_QUALITY)
            for statement in analysis.say(small)
        ]

    def __str__(self) -> str:
        return "\n".join(statement.text for statement in self.statements)

    def __repr__(self) -> str:
        return f"<EdgeResult {self.tables['matches']['edge'][0]}: {', '.join(self.tables)}>"

    def write(self, folder: str | Path) -> None:
        """Write every table as `NAME.parquet` into a folder."""
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def compare(
    parent: Model,
    child: Model,
    sae: Given,
    texts: Iterable[str | Spoken],
    *,
    sae_child: Given | None = None,
    controls: Given | Sequence[Given] | Literal["train"] = (),
    child_control: Given | Literal["train"] | None = None,
    second_tokens: int = 1_000_000,
    save_second: str | Path | None = None,
    tokenizer: Any = None,
    hook_point: str | None = None,
    prefix: Prefix | None = None,
    names: tuple[str, str] = ("parent", "child"),
    dialogues: bool = False,
    roles: Roles = "all",
    tokens: int = 100_000,
    threshold: float | None = None,
    context_size: int = 128,
    seed: int = 0,
    effects: bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], object] | None = None,
) -> EdgeResult:
    """Judge the features of two models on the same texts: kept, changed, lost or new; and match them.

    parent, child: decoders, or folders or hub ids (`ID@REVISION`) of them, that read the same tokens; a reward model,
    with a score in place of the head, is one as far as no logits are read. sae: of the parent; it reads the child as
    well unless `sae_child` is given. controls: further SAEs of the parent, of other seeds: the first tells which
    features are stable and can be judged, all give the ceiling of matches; `train` trains one on `second_tokens`
    activations of these texts, after `say` (by default a line on stderr) got what that costs. child_control: the
    same of the child, whose features are judged then too. save_second: folder that what was trained is written
    into, as `parent` and `child`. Without controls every feature has its evidence, none a verdict, and no share is
    given. texts: strings, such as a list or a column of a `datasets.Dataset`; dialogues: that a chat template wrote
    them, so that every special token in them is one; roles: `assistant` samples only what the assistant says, as the
    spans of `heredity.text.spoken.Spoken` tell. tokenizer: needed where the parent is not a folder or hub id.
    hook_point: by default the one that the SAE's folder names. prefix: token before every block, which is no sample
    (see `[reading]` of a study); by default as the SAE's folder or else the tokenizer says. Positions of more than ten
    median norms are no samples either. threshold: on r; by default chosen by evidence. effects: whether features have
    effects among their evidence where there are no verdicts, which need them; by default unless so many fire that they
    take longer than all else. trust_remote_code: run code that
    the models' repositories ship. progress: called with the steps done and all; by default a bar on stderr, where that
    is a terminal. Raises ValueError, before any work, for tokenizers that give other ids to the same
    text, identical weights, weights that are not finite, models of different width, blocks longer than their positions,
    an SAE of other weights, of another place or width; and for too few texts.
    """
    from heredity.lm.hooks import evaluating, resolve
    from heredity.sae.made_for import first_token
    from heredity.text.tokens import unknown_tokens

    for name, count in (("tokens", tokens), ("second_tokens", second_tokens), ("context_size", context_size)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} must be a whole number of 1 or more")
    for end, model in (("parent", parent), ("child", child)):
        if not isinstance(model, str | Path) and not hasattr(model, "config"):
            raise ValueError(f"{end}={short(model, 40)}: is no model; give a decoder, or the folder or hub id of one")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} must lie between 0 and 1; leave it out to choose it by evidence")
    check_words(prefix, roles, context_size)
    second, train_parent = further("controls", controls)
    second_child, train_child = further("child_control", child_control)
    if child_control is not None and (sae_child is None or not (second or train_parent)):
        raise ValueError("child_control: is a second SAE of the child; give sae_child and controls with it")
    save_second = None if save_second is None else Path(save_second)
    if save_second is not None and save_second.exists() and (not save_second.is_dir() or any(save_second.iterdir())):
        raise ValueError(f"{save_second}: is a file or a folder with content; choose another for the second SAE")
    children = [] if sae_child is None else [sae_child, *second_child]
    saes = {"parent": opened([sae, *second]), "child": opened(children)}
    models, tokenizer, notes = _opened((parent, child), tokenizer, trust_remote_code)
    told = say or partial(print, file=sys.stderr)
    place = hook_point or saes["parent"][0].metadata.get("hook_name")
    if place is None:
        way_out = "give hook_point (--hook-point), such as blocks.0.mlp.hook_post"
        raise ValueError(f"sae {saes['parent'][0].name}: does not say where it reads; {way_out}")
    reading = Reading(first_token(tokenizer, prefix, saes["parent"][0].metadata), outliers=OUTLIERS)
    check_positions(models, names, context_size, reading.prefix)
    for some, model, given in zip(saes.values(), models, (parent, child), strict=True):
        resolve(model, place)
        name = str(given) if isinstance(given, str | Path) else getattr(model.config, "_name_or_path", "")
        said = list(check_made_for(some, model, name, place, hook_point is not None, context_size))
        notes += said
        for note in said:
            told(note)
    check_pair(models, saes, place, names)
    wanted = {"parent": train_parent, "child": train_child}
    settings = _settings(names, place, tokens, threshold, context_size, seed)
    if save_second is not None:
        save_second.mkdir(parents=True, exist_ok=True)  # before the hour that its content takes
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        progress = progress or stack.enter_context(_bar("compare"))
        for model in models:
            stack.enter_context(evaluating(model))
            stack.enter_context(read_by(model, reading))
        readers = _readers(models, saes, place)
        if reading.prefix is not None:
            first = tokenizer.convert_ids_to_tokens(reading.prefix)
            told(f"every block is read behind {first!r}, which is no sample itself; another prefix changes that")
        sampler = sampler_of(texts, tokenizer, Path(folder), context_size, seed, dialogues, roles)
        if len(np.unique(sample_of(sampler, tokens).documents)) < 2:  # before an SAE is trained on it
            raise ValueError("all tokens are of one document; give text of two or more, of ten for usable errors")
        notes += _few_tokens(sampler, tokens)
        share = unknown_tokens(sampler.packs[0], tokenizer) / len(sampler.packs[0].tokens)
        notes += [unknown_note("texts", share, tokenizer.unk_token)] if share > FEW_UNKNOWN else []
        for end, name in zip(readers, names, strict=True):
            if wanted[end]:
                kept = save_second and save_second / end
                made = one_sae.train_second(readers[end], sampler, second_tokens, seed + 1, told, name, kept, progress)
                readers[end] = readers[end]._replace(saes=[*readers[end].saes, made])
        tables, same = _tables_of(readers, models, sampler, settings, effects, progress, notes.append)
    matches = match.matches_from(tables)
    if "verdicts" in tables:  # which say themselves that activations are the same
        return EdgeResult(tables, matches, tuple(notes))
    notes += [verdict_findings.same_activations(*names, settings.hook_point)] if same else []
    return EdgeResult({name: tables[name] for name in ("evidence", "matches", "saes")}, matches, tuple(notes))


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A bar with an estimate on stderr while the block runs."""
    from rich import progress as rich
    from rich.console import Console

    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TaskProgressColumn()
    times = rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn()
    with rich.Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
    from heredity.analyses.reading import on_device, precision
    from heredity.lm.hooks import evaluating
    from heredity.stitch.affine import MomentStream, stitch_quality
    from heredity.stitch.aligned import Points, aligned
    from heredity.stitch.fit import Method, fit
    from heredity.text.tokens import distinct_blocks

    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must be a share between 0 and 1")
    one_of("method", method, get_args(Method))
    models, tokenizer, _ = _opened((source, target), tokenizer)
    prefix = prefix_of(tokenizer)
    check_positions(models, ("source", "target"), context_size, prefix)
    with tempfile.TemporaryDirectory() as folder:
        sampler = sampler_of(texts, tokenizer, Path(folder), context_size, seed)
        blocks = distinct_blocks(sampler, sampler.blocks_per_pass * context_size)
    count = max(2, round(held_out * len(blocks)))
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
            stack.enter_context(read_by(model, Reading(prefix)))
        first, second = map(on_device, models)
        points = Points(first, [source_hook_point]), Points(second, [target_hook_point])

        def moments(some: Any) -> Any:
            stream = MomentStream()
            for of_source, of_target in aligned(*points, some, list(tokenizer.all_special_ids), precision()):
                stream.add(of_source, of_target)
            return stream.pair(0, 0)

        fitted_on, tuning, judged = moments(blocks[count:]), moments(blocks[:count:2]), moments(blocks[1:count:2])
    widths = len(fitted_on.mean_a), len(fitted_on.mean_b)
    if fitted_on.tokens <= sum(widths):
        maps = f"{fitted_on.tokens} tokens, and maps between {widths[0]} and {widths[1]} dimensions"
        raise ValueError(f"{maps} fit any so few; give many times as many texts")
    stitch = fit(fitted_on, method, alpha, held_out=tuning).stitch  # pyright: ignore[reportArgumentType]
    return StitchResult(stitch, stitch_quality(stitch, judged, alpha), fitted_on.tokens)


def _few_tokens(sampler: BlockSampler, tokens: int) -> list[str]:
    """What to say of texts that hold less than twice the tokens asked for, since as many more fit the maps."""
    there = sampler.blocks_per_pass * sampler.context_size
    judged = len(sample_of(sampler, tokens).blocks) * sampler.context_size
    if judged + sampler.context_size > tokens:
        return []
    return [
        f"features are judged on {judged:,} tokens, fewer than the {tokens:,} asked for: the texts hold {there:,}, and "
        "half of them fit the maps between the models; give more text for narrower intervals"
    ]


def _readers(models: Sequence[Any], saes: Ends, place: str) -> dict[str, Reader]:
    """Both models with their SAEs; a child without one is read by the parent's first."""
    from heredity.analyses.reading import device, on_device, precision
    from heredity.features.collect import Reader

    readers: dict[str, Reader] = {}
    for (end, some), model in zip(saes.items(), models, strict=True):
        own = [one.sae.to(device()) for one in some] or readers["parent"].saes[:1]
        readers[end] = Reader(on_device(model), place, own, precision())
    return readers


def _settings(
    names: tuple[str, str], place: str, tokens: int, threshold: float | None, context_size: int, seed: int
) -> match.MatchSettings:
    from heredity.analyses.reading import precision

    config = ControlsConfig()
    return match.MatchSettings(
        edge=Edge(*names),
        hook_point=place,
        precision=precision(),
        lineage=LineageConfig(threshold="evidence" if threshold is None else threshold, tokens=tokens),
        passes=config.passes,
        rate=config.rate,
        resamples=config.resamples,
        level=config.level,
        context_size=context_size,
        mix="tokens",
        seed=seed,
        text_seed=seed,
    )


def _tables_of(
    readers: Mapping[str, Reader],
    models: Sequence[Any],
    sampler: BlockSampler,
    settings: match.MatchSettings,
    effects: bool | None,
    progress: Progress | None,
    told: Callable[[str], object],
) -> tuple[dict[str, pa.Table], bool]:
    """Matches, then verdicts where the parent has two SAEs and evidence where it has one, and the SAEs' quality; and,
    with one, whether both models have the same activations."""
    from heredity.synthetic import surgery

    parent, child = readers["parent"], readers["child"]
    shared = child.saes[0] is parent.saes[0]
    ends, sample = read_ends(
        {"parent": parent, "child": child._replace(saes=parent.saes[:2]) if shared else child},
        sample_of(sampler, settings.lineage.tokens),
        progress=progress,
    )
    directions = match.directions_of(parent.saes[0], child.saes[0])
    matched = _matched_on(ends, sample, sampler, settings.lineage.tokens)
    rows = match.match_read(*matched, directions, settings)
    instrument = "frozen" if shared else "loaded"
    declared, same = [*match.TABLES, verdicts.EVIDENCE, sae_analysis.SAES], False
    if len(parent.saes) > 1:
        asked = verdicts.VerdictSettings(
            settings.edge, parent.hook_point, settings.precision, settings.lineage.tokens, sampler.context_size,
            "tokens", ReferencesConfig(), instrument, settings.seed, settings.text_seed
        )  # fmt: skip
        made = {"edit": partial(surgery.shaken, models[0], models[1], settings.seed)}
        judged = ends | {"parent": replace(ends["parent"], saes=parent.saes[:2], acts=ends["parent"].acts[:2])}
        rows |= verdicts.rows_of_ends(judged, parent, sample, asked, made, progress)
        declared += [table for table in verdicts.ANALYSIS.tables if table not in declared]
    else:
        found, first = rows["matches"], rows["matches"]["rank"] == 1
        best = {end: found["match"][first & (found["end"] == end)] for end in ends}
        known = best if len(matched[0].indptr) == len(sample.documents) + 1 else None  # on the same tokens
        rows["evidence"], same = one_sae.evidence(ends, sample, settings.seed, told, effects, known)
    blocks = sample.blocks[: max(1, _QUALITY // sampler.context_size)]
    rows["saes"] = [
        row
        for end, name in zip(readers, settings.edge, strict=True)
        for row in _quality(readers[end], ends[end] if sample.kept is None else None, name, blocks)
    ]
    item = {"instrument": instrument, "site": parent.hook_point, "edge": settings.edge.name, "text": "common"}
    tables = {
        table.name: table.check(rows[table.name], **{key: item[key] for key in table.key if key in item})
        for table in declared
    }
    return tables, same


def _matched_on(
    ends: Mapping[str, End], sample: Sample, sampler: BlockSampler, tokens: int
) -> tuple[FeatureActs, FeatureActs, list[FeatureActs], np.ndarray, np.ndarray]:
    """Activations of parent, child and the parent's further SAEs on which features are matched, and the document and
    the token of each position: what they are judged on, and where a pass of the texts holds less than twice the tokens
    asked for, the rest of it too."""
    from heredity.features.acts import FeatureActs
    from heredity.features.ends import encode

    acts = [[*ends["parent"].acts], [ends["child"].acts[0]]]
    documents, ids = sample.documents, sample.tokens
    count, context = len(sample.blocks), sampler.context_size
    if count * context + context <= tokens:
        acts = [
            [FeatureActs.concatenate([one, encode(sae, end.fitting)]) for one, sae in zip(own, end.saes, strict=False)]
            for own, end in zip(acts, (ends["parent"], ends["child"]), strict=True)
        ]
        kept = slice(None) if sample.kept_fitting is None else sample.kept_fitting
        more = np.repeat(sampler.documents(count, 2 * count), context)[kept]
        documents = np.concatenate([documents, more])
        ids = np.concatenate([ids, np.ma.getdata(sample.fitting).ravel()[kept]])
    (parent, *spare), (child,) = acts
    return parent, child, spare, documents, ids


def _quality(reader: Reader, end: End | None, name: str, blocks: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows of the table `saes` on token blocks; what its own training was like is not known. end: what was read of
    them already, first of all, if every position was a sample."""
    import torch

    from heredity.lm.activations import blocks_at_once, sampled
    from heredity.metrics import ce_loss_recovered
    from heredity.sae.evaluate import bare_losses, quality, spliced_loss

    model: Any = reader.model
    place, some = (model, reader.hook_point), blocks[: max(1, _PREDICTED // blocks.shape[1])]
    predicts = model.get_output_embeddings() is not None  # a reward model has no logits
    clean, zero = bare_losses(*place, some) if predicts else (0.0, 0.0)
    for number, sae in enumerate(reader.saes):
        if end is None:
            found = quality(sae, sampled(reader.model, reader.hook_point, blocks))
        else:
            chunk = blocks_at_once(blocks.shape[1]) * blocks.shape[1]
            x = torch.from_numpy(end.x[: blocks.size]).split(chunk)
            found = quality(sae, x, end.acts[number].rows(0, blocks.size))
        row = {"model": name, "seed": number, "d_in": sae.d_in, "d_sae": sae.d_sae, "activation": sae.activation}
        row |= sae_analysis.robust_figures(found, blocks)
        if predicts:
            row["ce_loss_recovered"] = ce_loss_recovered(clean, spliced_loss(*place, sae, some), zero)
        yield row


def sampler_of(
    texts: Iterable[str | Spoken],
    tokenizer: Any,
    folder: Path,
    context_size: int,
    seed: int,
    dialogues: bool = False,
    roles: Roles = "all",
) -> BlockSampler:
    """Blocks of packed texts in random order. Raises ValueError for texts that do not fill two blocks."""
    from heredity.text.tokens import BlockSampler, pack

    packed = pack(_checked(texts), tokenizer, folder / "tokens", dialogues, roles)
    if packed.n_blocks(context_size) < 2:
        few = f"texts hold {len(packed.tokens)} tokens, fewer than two blocks of {context_size}"
        raise ValueError(f"{few}; give more text, or lower context_size")
    return BlockSampler({"texts": packed}, context_size, seed, None)


def _opened(
    models: tuple[Model, Model], tokenizer: Any, trust_remote_code: bool = False
) -> tuple[list[Any], Any, list[str]]:
    """Two models and the tokenizer that both read, from their folders where these are given; and how their own differ.

    Tokenizers are compared before any weights are loaded.
    """
    from heredity.lm.checkpoint import located, tokenizer_place
    from heredity.lm.load import load_model, refuse_not_finite
    from heredity.text.tokens import load_tokenizer
    from heredity.text.vocabularies import check_rows, difference, notes

    sources = [
        located(str(model), code=trust_remote_code) if isinstance(model, str | Path) else None for model in models
    ]
    places = [source and source.folder / (source.gguf or "") for source in sources]
    own = [
        load_tokenizer(tokenizer_place(place), trust_remote_code=trust_remote_code) if place else tokenizer
        for place in places
    ]
    shared = next((one for one in (tokenizer, *own) if one is not None), None)
    if shared is None:
        raise ValueError("tokenizer: is needed for models given as objects; pass the one they were trained with")
    told: list[str] = []
    for model, one in zip(models, own, strict=True):
        if one is None or one is shared:
            continue
        if apart := difference(shared, one):
            whose = "the one given" if tokenizer is not None else f"that of {models[0]}"
            raise ValueError(
                f"{models[0]} and {models[1]} have different tokenizers; that of {model} is not {whose}: {apart}"
            )
        told += [f"tokenizer of {model}: {note}" for note in notes(shared, one)]
    loaded: list[Any] = [
        load_model(place, None, trust_remote_code, scores=True) if place else model
        for place, model in zip(places, models, strict=True)
    ]
    for given, model in zip(models, loaded, strict=True):
        embedding: Any = model.get_input_embeddings()
        name = str(given) if isinstance(given, str | Path) else f"a {type(given).__name__} in hand"
        check_rows(shared, embedding.num_embeddings, name)
        if model is given:  # a folder's weights were looked at when they were read
            refuse_not_finite(name, dict(model.named_parameters()))
    return loaded, shared, told


def _checked(texts: Iterable[str | Spoken]) -> Iterator[str | Spoken]:
    """The texts, each of which must be one."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        wrong = "is one string" if isinstance(texts, str) else "holds no texts"
        raise ValueError(f"texts={short(texts, 40)}: {wrong}; give a list of texts, or a column of a data set")
    for place, text in enumerate(texts):
        if not isinstance(text, str | Spoken):
            wrong = f"texts[{place}] is of type {type(text).__name__}, not a string"
            raise ValueError(f'{wrong}; of a data set give one column, such as data["text"]')
        try:
            (text if isinstance(text, str) else text.text).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"texts[{place}] holds half of a surrogate pair, which is no character; leave that text out"
            ) from None
        yield text
