"""What became of lost and changed features, looked at one by one, and of what is new in the child.

Every parent feature with the verdict lost, those that changed most, and every new child feature, up to 200 at each end,
is looked for in the activations of the other model (R² of a linear readout, with what co-firing features say taken
off), and in its SAE (as two features that split it, or one that absorbed some of its firings). Fates, with cuts fixed
beforehand in `features.examination`; the first that holds:

gone: less than 0.2 of what is readable in its own model is readable apart, and its effect in its direction is below
0.2. split: the best pair of features follows it with an r at least 0.1 above that of the best single one, and above
0.6. absorbed: a feature follows 0.1 to 0.8 of its energy, and another one fires on half of the rest and on at most
0.15 of that. narrowed: the direction is the same (cosine above 0.7), and the effect is missing at some firings
(unevenness above 0.5). faint: the direction is the same, and the effect less than half as strong at all firings. moved:
at least 0.5 is readable apart, with another direction (cosine below 0.75), and a feature of the other model follows it
(r above 0.5). blurred: the same without such a feature. unclear: none of these beyond 1.7 standard errors.

A sample of lost, changed and kept parent features is taken away in the parent, and their matches in the child: do the
log-probabilities change alike (fingerprint)? Putting the match's activation in the place of the feature's says how much
of the damage it repairs (substitution). Both stand beside a hard negative, the next best partner of similar density.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.aligned_ends import Known, Sample, read_ends, sample_of
from heredity.analyses.analysis import Analysis, Aside, Cost, Item, Needs, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.match_findings import KEY
from heredity.analyses.newness import vocabularies_differ
from heredity.analyses.reading import reader_of, sampler_of
from heredity.analyses.sae import read_passes, sae_need, second_need
from heredity.analyses.text import tokens_needs
from heredity.analyses.verdicts import text_seed
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Precision, Study
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.collect import Reader
    from heredity.features.ends import End

_MOST = 200  # features examined at each end
_ASKED = {"parent": ("lost", "changed"), "child": ("new",)}
_FATES = ("gone", "split", "absorbed", "narrowed", "faint", "moved", "blurred", "unclear")
_COMPARED = ("lost", "changed", "kept")

EXAMINED = Table(
    "examined",
    "What became of lost and changed features of the parent, and where the parent has new features of the child.",
    (*KEY, "end", "verdict"),
    (
        Column("end", "text", "Whose features: parent (looked for in the child) or child (in the parent)."),
        Column("verdict", "text", "lost or changed (parent), new (child)."),
        Column("listed", "count", "Features with this verdict."),
        Column("features", "count", "Of them examined: all lost and new ones, and those that changed most, up to 200."),
        Column("gone", "count", "Neither readable apart from other features, nor with an effect.", of="features"),
        Column("split", "count", "Two features of the other model share it.", of="features"),
        Column("absorbed", "count", "Silent where one other feature fires.", of="features"),
        Column("narrowed", "count", "Same direction, at some of its firings only.", of="features"),
        Column("faint", "count", "Same direction, less than half as strong.", of="features"),
        Column("moved", "count", "Another direction, which a feature of the other model follows.", of="features"),
        Column("blurred", "count", "Readable, in another direction, without a feature that follows it.", of="features"),
        Column("unclear", "count", "None of these for sure.", of="features"),
        Column("readable", "share", "Median R² of a readout from the other model over that from its own."),
        Column("readable_apart", "share", "The same beyond what other stable features say (partial R²)."),
    ),
    brief=("instrument", "edge", "end", "verdict", "listed", *_FATES),
    sums=(("features", *_FATES),),
)  # fmt: skip
EXAMINED_FEATURES = Table(
    "examined_features",
    "Every examined feature.",
    (*KEY, "end", "feature"),
    (
        Column("end", "text", "Whose features: parent or child."),
        Column("verdict", "text", "Its verdict."),
        Column("fate", "text", f"What became of it: {', '.join(_FATES)}."),
        Column("readable", "share", "R² of a linear readout from the other model, over that from its own; held out."),
        Column("readable_apart", "share", "The same of what other stable features leave (partial R²)."),
        Column("own_apart", "r", "Partial R² in its own model; a small one makes readable_apart uncertain."),
        Column("unevenness", "number", "Variance of its effect over firings, in squared mean effects; (1 - p)/p where "
               "a share p of the firings has it."),
        Column("strength", "number", "Size of its effect over that in its own model, relative to scale."),
        Column("direction", "r", "Cosine of the effect with the image of its own."),
        Column("match_r", "r", "Best r in the SAEs of the other model."),
        Column("first", "feature", "Of the pair of parts that follows it best; -1 where there are no two parts."),
        Column("second", "feature", "The other one of the pair."),
        Column("pair_r", "r", "Multiple r of the feature with the pair."),
        Column("absorber", "feature", "Feature that fires where it is silent; -1 where there is none."),
        Column("absorbed", "share", "Share of its silent firings (by energy) at which that one fires."),
    ),
    large=True,
)  # fmt: skip
FINGERPRINTS = Table(
    "fingerprints",
    "Whether features of the parent and their matches in the child do the same to the prediction, beside hard "
    "negatives.",
    (*KEY, "verdict"),
    (
        Column("verdict", "text", "lost, changed, or kept (for comparison)."),
        Column("pairs", "count", "Features compared with their best match; a sample."),
        Column("passes", "count", "Matches whose ablation is more like the feature's than the hard negative's.",
               of="pairs"),
        Column("fingerprint", "r", "Median r of the ablations' changes of log-probabilities."),
        Column("hard_negative", "r", "The same of the hard negatives."),
        Column("repaired", "share", "Median share of the ablation's KL that the match's activation repairs in the "
               "parent."),
        Column("hard_negative_repaired", "share", "The same of the hard negatives."),
        Column("unavailable", "text", "Why there are no figures."),
    ),
    brief=("instrument", "edge", "verdict", "pairs", "passes", "fingerprint", "hard_negative", "repaired"),
)  # fmt: skip
FINGERPRINT_FEATURES = Table(
    "fingerprint_features",
    "Every feature whose ablation was compared with its match's.",
    (*KEY, "feature"),
    (
        Column("verdict", "text", "Its verdict."),
        Column("match", "feature", "Its best match in the child."),
        Column("hard_negative", "feature", "The next best partner of similar density."),
        Column("fingerprint_r", "r", "r of the changes of log-probabilities, at the feature's highest activations."),
        Column("hard_negative_r", "r", "The same of the hard negative."),
        Column("passes", "flag", "Whether the first is larger."),
        Column("kl", "nats", "Mean KL(parent || parent without the feature) at these tokens."),
        Column("repaired", "share", "Share of it that the match's activation repairs, scaled by least squares."),
        Column("hard_negative_repaired", "share", "The same of the hard negative."),
    ),
    large=True,
)


class LostSettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    mix: str
    examine: int
    seed: int
    text_seed: int
    sites: Aside = Aside(())
    """Places that one pass of a model serves."""


def _items(study: Study) -> Iterable[Item]:
    if not study.config.verdicts.tokens or not study.config.verdicts.examine:
        return ()
    return (
        {"instrument": instrument, "site": site, "edge": edge.name}
        for instrument in study.instruments
        for edge in study.descent
        for site in study.sites  # one after another, while what one pass read is held
    )


def _settings(study: Study, item: Item) -> LostSettings:
    config = study.config
    return LostSettings(
        item["site"],
        config.precision,
        config.verdicts.tokens,
        config.sae.context_size,
        config.sae.mix,
        config.verdicts.examine,
        seed_of(study, "verdicts", item["edge"]),
        text_seed(study, study.edge(item["edge"]), "common"),  # the tokens on which features were judged
        Aside(study.sites),
    )


def _needs(study: Study, item: Item) -> Needs:
    edge, instrument, site = study.edge(item["edge"]), item["instrument"], item["site"]
    needs: Needs = {"tokens": tokens_needs(study.common_trace(edge))}
    needs["verdicts"] = ("verdicts", item | {"text": "common"})
    for end, model in (("parent", edge.parent), ("child", edge.child)):
        needs[end] = ("model", {"model": model})
        second = second_need(study, model, instrument, site)
        needs[f"{end}_saes"] = {"0": sae_need(study, model, instrument, site), "1": second}
    return needs


def _run(work: Work, settings: LostSettings) -> Results:
    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.text_seed, settings.mix)
    sample = sample_of(sampler, settings.tokens)
    readers = {
        end: reader_of(
            work.inputs[end], list(work.inputs[f"{end}_saes"].values()), settings.hook_point, settings.precision
        )()
        for end in _ASKED
    }
    known = Known({end: work.inputs[end].key for end in _ASKED}, settings.sites.value)
    ends, sample = read_ends(readers, sample, known)
    evidence, scales = _verdicts(work.inputs["verdicts"])
    work.progress(1, 4)
    columns, examined = [], []
    for number, (end, other) in enumerate((("parent", "child"), ("child", "parent")), 2):
        if end not in scales:  # a child that only the parent's SAE reads is not judged
            continue
        found = _examined(ends[end], ends[other], evidence[end], scales[end], _ASKED[end])
        if found:
            columns.append({"end": np.full(len(found["feature"]), end, object), **found})
        examined += [_summary(end, verdict, evidence[end], found) for verdict in _ASKED[end]]
        work.progress(number, 4)
    features = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]} if columns else []
    figures, pairs = _fingerprints(readers, ends, evidence["parent"], scales["parent"], sample, settings)
    return {
        "examined": examined,
        "examined_features": features,
        "fingerprints": figures,
        "fingerprint_features": pairs,
    }


def _verdicts(artifact: Artifact) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Columns of `evidence`, in the order of features, and the scale of effects, by end."""
    evidence, rows = (artifact.table(name) for name in ("evidence", "verdicts"))
    columns = {name: evidence[name].to_numpy() for name in evidence.column_names}
    by_end = {end: {name: part[columns["end"] == end] for name, part in columns.items()} for end in _ASKED}
    return by_end, {row["end"]: row["scale"] for row in rows.to_pylist()}


def _chosen(evidence: Mapping[str, np.ndarray], scale: float, verdicts: Sequence[str], most: int) -> np.ndarray:
    """Features with these verdicts, int64, the first verdict's first, then by how far transmission is from scale."""
    change = np.nan_to_num(np.abs(evidence["transmission"] / scale - 1), nan=-1.0)
    verdict = evidence["verdict"]
    parts = [np.flatnonzero(verdict == name) for name in verdicts]
    return np.concatenate([part[np.argsort(-change[part], kind="stable")] for part in parts])[:most]


def _examined(
    own: End, other: End, evidence: Mapping[str, np.ndarray], scale: float, verdicts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of `examined_features` of one end; none where no feature has one of the verdicts."""
    from heredity.features import examination
    from heredity.features.correlate import correlate
    from heredity.features.ends import encode
    from heredity.features.verdicts import ALONE, STABLE

    chosen, stable = _chosen(evidence, scale, verdicts, _MOST), evidence["verdict"] != "unstable"
    if not len(chosen):
        return {}
    follows = np.fmax.reduce([correlate(other.acts[0], each, 1).parent_r[:, 0] for each in own.acts])
    alone = (correlate(other.acts[0], other.acts[1], 1).parent_r[:, 0] > STABLE) & ~(follows > ALONE)
    fitting, judging = (
        examination.Sides(examination.beside(mine, theirs, alone), x, y)
        for mine, theirs, x, y in (
            (encode(own.saes[0], own.fitting), encode(other.saes[0], other.fitting), own.fitting, other.fitting),
            (own.acts[0], other.acts[0], own.x, other.x),
        )
    )
    regressors = np.concatenate([stable, np.ones(int(alone.sum()), bool)])
    read = examination.readability(fitting, judging, chosen, regressors)
    uneven = examination.unevenness(judging, chosen, regressors)
    found = examination.partners(own.acts[0], other.acts[0], chosen)
    known = {name: value[chosen] for name, value in evidence.items()}
    bounds = (
        (known[name] + examination.MARGIN * known[f"{name}_error"]) / scale for name in ("transmission", "retained")
    )
    judged = examination.Evidence(
        known["strength"] / scale,
        known["strength_error"] / scale,
        known["direction"],
        known["direction_error"],
        np.fmin(*bounds),
        known["match_r"],
    )
    return {
        "feature": chosen,
        "verdict": known["verdict"],
        "fate": examination.fates_of(read.readable_apart, uneven, found, judged).astype(object),
        "readable": read.readable,
        "readable_apart": read.readable_apart,
        "own_apart": read.own_apart,
        "unevenness": uneven,
        "strength": judged.strength,
        **{name: known[name] for name in ("direction", "match_r")},
        **{name: getattr(found, name) for name in ("first", "second", "pair_r", "absorber", "absorbed")},
    }


def _summary(
    end: str, verdict: str, evidence: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    from heredity.features.correlate import median

    own = found["verdict"] == verdict if found else np.empty(0, bool)
    row = {"end": end, "verdict": verdict, "listed": int((evidence["verdict"] == verdict).sum())}
    fates = found["fate"][own] if found else own
    row |= {"features": len(fates), **{fate: int((fates == fate).sum()) for fate in _FATES}}
    return row | {name: median(found[name][own]) if found else None for name in ("readable", "readable_apart")}


def _fingerprints(
    readers: Mapping[str, Reader],
    ends: Mapping[str, End],
    evidence: Mapping[str, np.ndarray],
    scale: float,
    sample: Sample,
    settings: LostSettings,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `fingerprints` and columns of `fingerprint_features`: a third each of lost and changed features, as far
    as there are any, and kept ones, drawn at random."""
    from heredity.features.correlate import median
    from heredity.features.fingerprints import fingerprints, with_hard_negatives

    chosen = [_chosen(evidence, scale, [verdict], settings.examine // 3) for verdict in _COMPARED[:2]]
    kept = np.random.default_rng(settings.seed).permutation(np.flatnonzero(evidence["verdict"] == "kept"))
    chosen.append(kept[: max(0, settings.examine - sum(map(len, chosen)))])
    parent, child = (readers[end]._replace(saes=readers[end].saes[:1]) for end in _ASKED)
    acts = ends["parent"].acts[0], ends["child"].acts[0]
    unavailable = vocabularies_differ(parent, child)
    triples = with_hard_negatives(*acts, np.concatenate(chosen)[: 0 if unavailable else None])
    verdict = evidence["verdict"][triples[:, 0]]
    if sample.kept is not None:
        acts = acts[0].spread(sample.kept), acts[1].spread(sample.kept)
    made = fingerprints(parent, child, acts, triples, np.ma.getdata(sample.blocks))
    rows = []
    for name in _COMPARED:
        own = verdict == name
        row = {"verdict": name, "pairs": int(own.sum()), "passes": int(made.passes[own].sum())}
        medians = {
            "fingerprint": made.r,
            "hard_negative": made.hard_negative_r,
            "repaired": made.repaired,
            "hard_negative_repaired": made.hard_negative_repaired,
        }
        rows.append(row | {to: median(value[own]) for to, value in medians.items()} | {"unavailable": unavailable})
    columns = dict(zip(("feature", "match", "hard_negative"), triples.T, strict=True)) | {"verdict": verdict}
    figures = {name: value for name, value in made._asdict().items() if name != "r"}
    return rows, columns | {"fingerprint_r": made.r, "passes": made.passes, **figures}


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    """Both models on the sample, three inversions at each end, and seven passes over eight blocks of each feature."""
    config, parent, site = study.config, study.edge(item["edge"]).parent, item["site"]
    tokens, d_in = config.verdicts.tokens, shapes.width(parent, site)
    size = config.sae.expansion * d_in + d_in
    ablated = 7 * 8 * config.verdicts.examine * config.sae.context_size
    passes = read_passes(study, parent, shapes, 4 * tokens, site)
    passes = passes._replace(flops=passes.flops + 2 * ablated * shapes.parameters(parent))
    flops = 20 * tokens * config.sae.expansion * d_in**2 + 6 * size**3
    gib = shapes.read_gib(parent, parent) + shapes.logits_gib(parent) + (24 * tokens * d_in + 48 * size**2) / 2**30
    return Cost(4 * tokens + ablated, flops, gib, 0.3, passes=passes)


def _say(tables: Tables) -> Iterable[Statement]:
    for edge in {tuple(row[name] for name in KEY): row for row in rows_of(tables, "examined")}.values():
        key = {name: edge[name] for name in KEY}
        parent, child = edge["edge"].split("->")
        rows = [row for row in rows_of(tables, "examined", end="parent", **key) if row["features"]]
        if not rows:
            continue
        parts = [f"of {row['features']:,} {row['verdict']} features of {parent} {_counted(row)}" for row in rows]
        text = f"Looked for in {child}, {'; '.join(parts)}."
        compared = [row for row in rows_of(tables, "fingerprints", **key) if row["pairs"]]
        acts = tuple(
            f"for {format.of(row['passes'], row['pairs'])} {row['verdict']} features, removing the best match in "
            f"{child} changes the prediction as removing the feature in {parent} does, more than removing a hard "
            f"negative (median r {format.value('r', row['fingerprint']) or 'unknown'} against "
            f"{format.value('r', row['hard_negative']) or 'unknown'})"
            for row in compared
        )
        yield Statement(child, "changed", text, acts, edge["instrument"])


def _counted(row: Mapping[str, Any]) -> str:
    """`12 are gone, 1 is unclear`."""
    return format.listed([f"{row[name]:,} {'is' if row[name] == 1 else 'are'} {name}" for name in _FATES if row[name]])


ANALYSIS = Analysis(
    kind="lost_features",
    version=1,
    title="What became of lost features?",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(EXAMINED, EXAMINED_FEATURES, FINGERPRINTS, FINGERPRINT_FEATURES),
    cost=_cost,
    say=_say,
)
