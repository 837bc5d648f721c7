"""Texts of both models of a stitch, steered by directions of their own and of each other.

A direction is the unit difference of mean activations on the wanted corpus and on the others. At every token h becomes
h + (z - h·v) v, with z the mean of h·v on the wanted corpus in the model that writes (Chen et al. 2025, section 3.3,
equation 9). A direction is carried by the map's matrix, without the bias. Arms: `none`, `native` (the model's own
direction), `carried` (the other model's) and `random`, which moves vectors as far as the native one. A classifier of
characters, fitted on training documents, tells which corpus a text is like; shares have Clopper-Pearson intervals.
Transfer gap (equation 16): share by the carried direction over share by the native one, clipped to 0..1, with 0/0 = 0;
beside it stands the corpus's frequency in the tokens that the maps are fitted to, which take corpora in equal parts as
far as each has text (appendix F.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Results, Statement, Tables, rows_of
from heredity.analyses.probes import require_sklearn
from heredity.analyses.reading import packs, sampler_of
from heredity.analyses.stitch_maps import Sides, StitchSettings, by_stitch, pass_cost, percent, stitch_needs
from heredity.engine.stage import Work
from heredity.engine.store import CONFIG
from heredity.study import Study, StudyError
from heredity.study.stitch import SteeringConfig
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.stitch.affine import Moments
    from heredity.stitch.probe import Estimate

_PIECES, _TESTED = 2_000, 500  # per corpus, on which the classifier is fitted, and tested
_READ = 20  # documents from which each prompt is drawn
_CHARACTERS = 40  # read of a document for each token of a prompt
_EXAMPLES = 2
_CORRELATED = 4  # corpora behind a correlation, at least
_SPAN = 2  # the most frequent over the least, at least: of equal parts only the luck of the blocks differs
_WANTED = Column("wanted", "text", "Corpus that its texts should be like.")
_ARM = Column("arm", "text", "none, native, carried (direction of the other model) or random.")

STEERING_CLASSIFIERS = Table(
    "steering_classifiers",
    "Classifiers that judge which corpus a text is like.",
    ("stitch",),
    (
        Column("reason", "text", "Reason why nothing was steered; empty where it was."),
        Column("classes", "text", "Classes: the corpora that both models have read."),
        Column("accuracy", "share", "On pieces of held-out documents at most as long as the texts.", ci=True),
        Column("fitted", "count", "Pieces of training documents that it was fitted on."),
        Column("tested", "count", "Pieces of held-out documents behind its accuracy."),
    ),
)
STEERING = Table(
    "steering",
    "Steered texts like the wanted corpus, by the direction used.",
    ("stitch", "model", "wanted", "arm"),
    (
        _WANTED,
        _ARM,
        Column("share", "share", "Share of the texts taken for the wanted corpus.", ci=True),
        Column("n", "count", "Texts, one per prompt."),
        Column("change", "number", "Root mean square of the shift of activations of the other corpora; 0 for none."),
    ),
    brief=("stitch", "model", "wanted", "arm", "share", "n"),
    plot=Plot("bars", x="wanted", y="share", by="arm"),
)
STEERING_GAPS = Table(
    "steering_gaps",
    "Carried directions against native ones.",
    ("stitch", "model", "wanted"),
    (
        _WANTED,
        Column("gap", "r", "Share by the carried direction over share by the native one; 1 is as good as native."),
        Column("cosine", "r", "Cosine of the carried and the native direction."),
        Column("frequency", "share", "Share of the wanted corpus in the tokens that the maps are fitted to."),
    ),
    brief=("stitch", "model", "wanted", "gap", "cosine", "frequency"),
)
STEERING_FREQUENCIES = Table(
    "steering_frequencies",
    "Transfer gap by the wanted corpus's frequency in the tokens that the maps are fitted to.",
    ("stitch", "model"),
    (
        Column("corpora", "count", "Wanted corpora, each with its gap."),
        Column("r", "r", "Pearson r of gap and log frequency; null unless four corpora differ in both.", ci=True),
        Column("reason", "text", "Reason why there is no r; empty where there is one."),
    ),
)
STEERING_EXAMPLES = Table(
    "steering_examples",
    "A few of the steered texts.",
    ("stitch", "model", "wanted", "arm", "number"),
    (
        _WANTED,
        _ARM,
        Column("number", "count", "Number of the prompt."),
        Column("prompt", "text", "Start of a held-out document of another corpus."),
        Column("text", "text", "What the model wrote after it."),
    ),
)
_TABLES = (STEERING_CLASSIFIERS, STEERING, STEERING_GAPS, STEERING_FREQUENCIES, STEERING_EXAMPLES)


def _items(study: Study) -> Iterable[Item]:
    """Stitches with prompts. Raises StudyError where scikit-learn is missing, before anything runs."""
    for name, stitch in study.config.stitch.items():
        if stitch.steering.prompts:
            if len(study.stitch_corpora(name)) > 1:
                require_sklearn(study, name, "steering.prompts = 0")
            yield {"stitch": name}


def _run(work: Work, settings: StitchSettings) -> Results:
    from heredity.stitch.probe import proportion
    from heredity.stitch.steer import change, generate, interleave, steering_arms, transfer_gap

    corpora, config, seed = settings.corpora, settings.config.steering, settings.seed
    classifier: dict[str, Any] = {"reason": "", "classes": ", ".join(corpora), "fitted": 0, "tested": 0}
    results: dict[str, list[dict[str, Any]]] = {table.name: [] for table in _TABLES}
    results["steering_classifiers"].append(classifier)
    if len(corpora) < 2:
        classifier["reason"] = f"both models have read {', '.join(corpora)} only; a direction lies between two corpora"
        return results
    sides, total = Sides.of(work), 2 + 2 * len(corpora)
    if config.chat and not all(tokenizer.chat_template for tokenizer in sides.tokenizers):
        classifier["reason"] = "chat = true, but a tokenizer has no chat template"
        return results
    frequencies = _frequencies(work)
    classify, accuracy, fitted, tested = _classifier(work, sides, config.max_tokens, seed)
    classifier |= {"fitted": fitted, "tested": tested, **accuracy.columns("accuracy")}
    work.progress(1, total)
    moments = _moments(work, settings, sides)
    work.progress(2, total)
    starts = _starts(work, config, seed)
    both = (
        (settings.config.source, sides.source, sides.stitch.down),
        (settings.config.target, sides.target, sides.stitch.up),
    )
    for place, (name, (model, hook_point), arriving) in enumerate(both):
        tokenizer = sides.tokenizers[place]
        for number, wanted in enumerate(corpora):
            own, others = (part.swapped() if place else part for part in moments[wanted])
            prompts = interleave([starts[corpus] for corpus in corpora if corpus != wanted])[: config.prompts]
            how: dict[str, Any] = {"max_tokens": config.max_tokens, "prompt_tokens": config.prompt_tokens}
            how |= {"chat": config.chat, "seed": seed + number}
            try:
                arms = steering_arms(own, others, arriving, np.random.default_rng([seed, place, number]))
                texts = {
                    arm: generate(model, tokenizer, prompts, hook_point, steering, **how)
                    for arm, steering in arms.items()
                }
                right = {arm: int((classify(some) == number).sum()) for arm, some in texts.items()}
                shares = {arm: proportion(hits, len(prompts)) for arm, hits in right.items()}
            except ValueError as error:
                raise StudyError(f"{settings.place}.steering: {name} to {wanted}: {error}") from error
            key = {"model": name, "wanted": wanted}
            ids = tokenizer(prompts[:_EXAMPLES], verbose=False)["input_ids"]
            read = [tokenizer.decode(row[: config.prompt_tokens]) for row in ids]
            for arm, steering in arms.items():
                moved = 0.0 if steering is None else change(steering, others.mean_a, others.aa)
                row = {**key, "arm": arm, "n": len(prompts), "change": moved, **shares[arm].columns("share")}
                results["steering"].append(row)
                results["steering_examples"] += [
                    {**key, "arm": arm, "number": at, "prompt": prompt, "text": text}
                    for at, (prompt, text) in enumerate(zip(read, texts[arm], strict=False))
                ]
            gap = transfer_gap(shares["carried"].value, shares["native"].value)
            cosine = float(arms["native"].direction @ arms["carried"].direction)  # type: ignore[union-attr]
            results["steering_gaps"].append({**key, "gap": gap, "cosine": cosine, "frequency": frequencies[wanted]})
            work.progress(3 + place * len(corpora) + number, total)
        gaps = [row["gap"] for row in results["steering_gaps"] if row["model"] == name]
        row = gap_by_frequency(np.array(gaps), np.array([frequencies[wanted] for wanted in corpora]))
        results["steering_frequencies"].append({"model": name, **row})
    return results


def gap_by_frequency(gaps: np.ndarray, frequencies: np.ndarray) -> dict[str, Any]:
    """Columns of `steering_frequencies` for gaps [n] and frequencies [n]: Pearson's r with its 95 % interval."""
    from scipy.stats import pearsonr

    row, ends = {"corpora": len(gaps), "reason": ""}, (frequencies.min(), frequencies.max())
    if len(gaps) < _CORRELATED:
        return row | {"reason": f"{len(gaps)} corpora are too few, {_CORRELATED} are needed"}
    if not 0 < _SPAN * ends[0] <= ends[1]:
        return row | {"reason": f"the maps read all alike, {format.interval('share', *ends)} of the tokens each"}
    if np.ptp(gaps) == 0:
        return row | {"reason": f"all gaps are {gaps[0]:.2f}"}
    found: Any = pearsonr(gaps, np.log(frequencies))
    low, high = found.confidence_interval(0.95)
    return row | {"r": float(found.statistic), "r_low": float(low), "r_high": float(high)}


def _frequencies(work: Work) -> dict[str, float]:
    """Share of each corpus in the tokens that the maps are fitted to; as read, since a corpus may be short."""
    from heredity.text.tokens import corpus_shares

    made = work.inputs["stitch"].json(CONFIG)
    config = made["config"]
    return corpus_shares(
        sampler_of(work.inputs["tokens"], "train", config["context_size"], made["seed"]), config["tokens"]
    )


def _classifier(
    work: Work, sides: Sides, size: int, seed: int
) -> tuple[Callable[[list[str]], np.ndarray], Estimate, int, int]:
    """A classifier of pieces of `size` tokens by corpus, its accuracy, and the pieces it is fitted and tested on."""
    from heredity.stitch.probe import proportion
    from heredity.stitch.steer import longest_pieces, text_classifier
    from heredity.text.tokens import BlockSampler, distinct_blocks

    def pieces(split: str, count: int) -> tuple[list[str], np.ndarray]:
        parts = []
        for pack in packs(work.inputs["tokens"], split).values():
            sampler = BlockSampler({"corpus": pack}, min(size, len(pack.tokens)), seed)
            blocks = distinct_blocks(sampler, count * sampler.context_size)
            parts.append(longest_pieces(blocks, sides.tokenizer, sides.tokenizer.all_special_ids))
        least = min(map(len, parts))
        return [text for own in parts for text in own[:least]], np.repeat(np.arange(len(parts)), least)

    texts, y = pieces("train", _PIECES)
    classify = text_classifier(texts, y)
    held_out, truth = pieces("validation", _TESTED)
    hits = int((classify(held_out) == truth).sum())
    return classify, proportion(hits, len(truth)), len(texts), len(held_out)


def _moments(work: Work, settings: StitchSettings, sides: Sides) -> dict[str, tuple[Moments, Moments]]:
    """Moments of the activations of both models on each corpus, and on all others."""
    from heredity.stitch.affine import MomentStream, pooled
    from heredity.text.tokens import BlockSampler, distinct_blocks

    own: dict[str, Moments] = {}
    for corpus, pack in packs(work.inputs["tokens"], "train").items():
        sampler = BlockSampler({corpus: pack}, settings.config.context_size, settings.seed)
        blocks = distinct_blocks(sampler, settings.config.steering.vectors)
        own[corpus] = MomentStream().extend(sides.pairs(blocks, settings.precision)).pair()
    return {name: (each, pooled([own[other] for other in own if other != name])) for name, each in own.items()}


def _starts(work: Work, config: SteeringConfig, seed: int) -> dict[str, list[str]]:
    """Held-out documents of each corpus in random order, cut to what a prompt can take of them."""
    from heredity.text.corpora import read_corpus

    starts = {}
    for number, (corpus, artifact) in enumerate(work.inputs["corpus"].items()):
        texts = list(islice(read_corpus(artifact / ".", "validation"), _READ * config.prompts))
        order = np.random.default_rng([seed, number]).permutation(len(texts))[: config.prompts]
        starts[corpus] = [texts[place][: _CHARACTERS * config.prompt_tokens] for place in order]
    return starts


def _say(tables: Tables) -> Iterable[Statement]:
    for name, ends, (row,) in by_stitch(tables, "steering_classifiers"):
        if row["reason"]:
            yield Statement(f"stitch {name}", "note", f"nothing was steered: {row['reason']}")
            continue
        for model, other in (ends, ends[::-1]):
            shares: dict[str, list[float]] = {}
            for one in rows_of(tables, "steering", stitch=name, model=model):
                shares.setdefault(one["arm"], []).append(one["share"])
            mean = {arm: percent(sum(values) / len(values)) for arm, values in shares.items()}
            text = (
                f"Steered by a direction of {other}, {model} writes like the wanted corpus in {mean['carried']} of its "
                f"texts; by its own direction in {mean['native']}, by a random one in {mean['random']}, unsteered in "
                f"{mean['none']}."
            )
            gaps = rows_of(tables, "steering_gaps", stitch=name, model=model)
            evidence = [f"mean over {format.listed([gap['wanted'] for gap in gaps])}"] if len(gaps) > 1 else []
            evidence += [f"{gap['wanted']}: {format.value('r', gap['gap'])} of native" for gap in gaps]
            (row,) = rows_of(tables, "steering_frequencies", stitch=name, model=model)
            if row["r"] is not None:
                ends = format.interval("r", row["r_low"], row["r_high"])
                evidence.append(f"gap by log frequency in the maps' text: r {format.value('r', row['r'])} [{ends}]")
            yield Statement(f"stitch {name}", "steering", text, tuple(evidence))


ANALYSIS = Analysis(
    kind="steering",
    version=2,
    title="Steering across a stitch",
    items=_items,
    settings=lambda study, item: StitchSettings.of(study, item["stitch"], "steering", "steering"),
    needs=lambda study, item: stitch_needs(study, item, study.stitch_corpora(item["stitch"])),
    run=_run,
    tables=_TABLES,
    cost=lambda study, item, shapes: pass_cost(study, item["stitch"], shapes, 8),
    say=_say,
)
