"""What became of each feature along an edge, as far as the evidence carries: kept, changed, lost or undecided.

Only stable features are judged: those that a second SAE of the same model, of another seed, has too (best r > 0.7); the
others are listed as unstable and are in no share. How a verdict is reached: `features.verdicts`. Parent features are
kept, changed, lost or undecided; for child features, read in the parent, the same are inherited, changed, new or
undecided. Every count is of one text: common (the corpora that both ends have read), own (those of the child alone,
where what it learned shows), or a corpus that the study names.

Reference edges stand beside every edge: the parent itself, with a random change of the same size in every tensor,
trained on with its own text (sham), and the child trained again (twin), each read by the parent's second SAE; and
instruments without training (a codebook of random tokens' activations, random directions, neurons, token identity). On
texts other than common these are the parent itself, the random change and the sham. Intervals: Wilson's, for features
of other SAE seeds, and as wide as the shares under the two seeds; not over training seeds of the models. A second
interval, where there is a twin, adds the variance between two trainings of the child.

`changed_most` ranks features by their largest change: of effect, |transmission - 1|; of r, 1 - the better of match_r
and map_r; of density, |log density_ratio|; each over the 95 % quantile of the same under the random edit, without which
the order is by effect. What ranks is the least change that its 95 % interval leaves (`least_change`), so that uncertain
features do not stand first. Beside each: the same change of that feature under the sham, and of its counterpart in the
second SAE, as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses import verdict_findings
from heredity.analyses.aligned_ends import Known, Sample, read_again, read_ends, sample_of
from heredity.analyses.analysis import Analysis, Aside, Cost, Item, Needs, Results, seed_of
from heredity.analyses.match_findings import KEY
from heredity.analyses.reading import load, on_device, reader_of, sampler_of, state_of
from heredity.analyses.reference_models import reference_need
from heredity.analyses.sae import read_passes, sae_need, second_need
from heredity.analyses.text import tokens_needs
from heredity.analyses.verdict_references import (
    MODELS,
    UNTRAINED,
    EdgeJudged,
    changes_of,
    judge_references,
    names_of,
    values_of,
)
from heredity.engine.stage import Work
from heredity.study import Edge, Precision, ReferencesConfig, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from heredity.analyses.plan import Shapes
    from heredity.engine.workers import Progress
    from heredity.features.collect import Reader
    from heredity.features.ends import End

WORDS = {"parent": {}, "child": {"kept": "inherited", "lost": "new"}}
"""What verdicts are called at each end, where it is not their own name."""
_KEY = (*KEY, "text")
_BESIDE_CHANGES = ("unchanged", "edit", "sham")  # references on texts other than common
_LISTED = 10  # features in the ranking of what changed most
_LEAST_USUAL = 0.01  # a change under the random edit below which none is told from rounding
COUNTS = ("kept", "changed", "lost", "undecided")

VERDICTS = Table(
    "verdicts",
    "Verdicts on the features of both ends of every edge. Intervals: 95 %, over SAE seeds and features.",
    (*_KEY, "end"),
    (
        Column("end", "text", "Whose features: parent (read in the child) or child (read in the parent)."),
        Column("corpora", "text", "Corpora of the text."),
        Column("identical", "flag", "Whether both ends have the same weights, so that all is kept."),
        Column(
            "same_activations",
            "flag",
            "Whether activations are equal to the bit on all tokens: all that differs lies behind the hook point.",
        ),
        Column("live", "count", "Features that fired on the aligned tokens."),
        Column("stable", "count", "Live features that a second SAE of the same model has too; only they are judged."),
        Column("kept", "count", "Parent features that are kept, or child features that are inherited.", of="stable"),
        Column("changed", "count", "Still there, but not the same: moved, fainter, blurred, split.", of="stable"),
        Column("lost", "count", "Parent features that are lost, or child features that are new.", of="stable"),
        Column("undecided", "count", "The evidence does not decide.", of="stable"),
        Column("kept_share", "share", "Kept over stable.", ci=True),
        Column("lost_share", "share", "Lost (new) over stable.", ci=True),
        *(
            Column(
                f"{name}_share_retrained_{end}",
                "share",
                f"{word} end of an interval of {name}_share that covers "
                "another training of the child as well; null without a twin.",
            )
            for name in ("kept", "lost")
            for end, word in (("low", "Lower"), ("high", "Upper"))
        ),
        Column("scale", "number", "Size of effects in the other model over the own, median of shared features."),
        Column("tokens", "count", "Aligned tokens; as many more fitted the maps."),
        Column("pairs", "count", "Features judged under both SAE seeds that are each other's best match."),
        Column("agreement", "share", "Share of these pairs that have the same verdict under both seeds."),
        Column("kappa", "number", "Cohen's kappa of these verdicts; null where all are the same."),
        Column("other_seed_lost", "share", "lost_share under the other SAE seed."),
        Column("other_seed_kept", "share", "kept_share under the other SAE seed."),
    ),
    brief=("instrument", "edge", "text", "end", "live", "stable", *COUNTS, "lost_share", "agreement"),
    sums=(("stable", *COUNTS),),
)
REFERENCES = Table(
    "references",
    "What the same verdicts say where the answer is known, and of dictionaries that nobody trained. Shares mean "
    "something only beside these.",
    (*_KEY, "reference"),
    (
        Column(
            "reference",
            "text",
            "Read by the parent's second SAE: unchanged, edit (random change of the edge's size), random (changed in "
            "the child's way, at random), sham (the parent trained on with its own text), twin (the child trained with "
            "another seed), frozen (the child itself), removal. Read by dictionaries that nobody trained: codebook, "
            "random decoder, neurons, token identity.",
        ),
        Column("stable", "count", "Parent features that are judged."),
        *(Column(name, "count", f"Of them {name}.", of="stable") for name in COUNTS),
        Column("removed", "count", "removal: stable features whose directions were taken out of the activations."),
        Column("removed_lost", "count", "Of the removed features, those called lost.", of="removed"),
        Column("kept_difference", "share", "Kept share of the edge itself less this one.", ci=True),
    ),
    brief=("instrument", "edge", "text", "reference", "stable", *COUNTS, "removed_lost"),
    sums=(("stable", *COUNTS),),
)
GRADED = Table(
    "grades",
    "Judged parent features by their effect in the child, and the same under the references: what lies between the "
    "line of the edge and that of the random edit changed, whatever the verdict.",
    (*_KEY, "line", "transmission"),
    (
        Column("line", "text", "edge, or the reference."),
        Column("transmission", "number", "Lower end of the bin; the first and the last hold what lies beyond."),
        Column("features", "count", "Judged features in the bin."),
        Column("share", "share", "Of the line's judged features."),
    ),
    plot=Plot("lines", x="transmission", y="share", by="line"),
)
CHANGED_MOST = Table(
    "changed_most",
    "Stable features that differ most between both models, in units of what a random change of the same size does.",
    (*_KEY, "end", "rank"),
    (
        Column("end", "text", "Whose features: parent or child."),
        Column("rank", "count", "1 differs most."),
        Column("feature", "feature", "Index of the SAE feature."),
        Column("verdict", "text", "Its verdict."),
        Column("by", "text", "What about it changed most: effect, r or density."),
        Column("change", "number", "That change over the 95 % quantile of the same under the random edit."),
        Column("least_change", "number", "The least of it that its 95 % interval leaves; what ranks."),
        Column(
            "transmission",
            "number",
            "Effect over that in its own model; 1: the median of shared features.",
            ci=True,
        ),
        Column("strength", "number", "Size of its effect over that in its own model, on the same scale.", ci=True),
        Column("match_r", "r", "Best r in the SAEs of the other model."),
        Column("map_r", "r", "r with itself, read from the other model's activations through a map."),
        Column("density_ratio", "number", "Firings in the other model, read through the map, over its own."),
        Column("sham", "number", "The same change of this feature under the sham, in the same unit."),
        Column("seed", "number", "The same change of its best match in the second SAE of its model."),
        Column("beyond_edit", "flag", "Whether least_change exceeds the change of 95 % of features under the edit."),
    ),
    brief=("instrument", "edge", "text", "end", "feature", "verdict", "by", "change", "least_change", "sham", "seed"),
)
EVIDENCE = Table(
    "evidence",
    "Evidence and verdict of every feature.",
    (*_KEY, "end", "feature"),
    (
        Column("end", "text", "Whose features: parent or child."),
        Column("verdict", "text", "kept, changed or lost (child: inherited, changed or new), undecided, unstable."),
        Column("firings", "count", "Aligned tokens on which it fires."),
        Column("stability", "r", "Best r in the second SAE of the same model."),
        Column("owned", "flag", "At least 30 % of its energy lies in its own model; true of an SAE that reads one."),
        Column("match_r", "r", "Best r in the SAEs of the other model.", ci=True),
        Column("map_r", "r", "r with itself, read from the other model's activations through an affine map.", ci=True),
        Column("same_r", "r", "r with itself, where one SAE reads the other model's activations too, as they are."),
        Column("density_ratio", "number", "Firings in the other model, read through that map, over its own.", ci=True),
        Column("strength", "number", "Size of its effect in the other model over its own, other features fixed."),
        Column("strength_error", "number", "Standard error (jackknife over documents)."),
        Column("direction", "r", "Cosine of the effect with the image of its own."),
        Column("direction_error", "number", "Standard error."),
        Column("transmission", "number", "strength times direction, not yet relative to scale."),
        Column("transmission_error", "number", "Standard error."),
        Column("remainder", "number", "strength without what stable features of the other model alone carry."),
        Column("remainder_error", "number", "Standard error."),
        Column("retained", "number", "Effect along its decoder row in the other model over that in its own."),
        Column("retained_error", "number", "Standard error."),
        Column("residual_strength", "number", "remainder off directions of other features that both models have."),
        Column("residual_strength_error", "number", "Standard error."),
        Column("residual_retained", "number", "retained off these directions."),
        Column("residual_retained_error", "number", "Standard error."),
        Column("readable", "number", "R² of a linear readout from the other model over that from its own."),
        Column("readable_error", "number", "Standard error (jackknife over folds)."),
        Column("apart", "share", "Share of its variance that other features do not explain; below 5 %, undecided."),
        Column("p_lost", "number", "p-value of the hypothesis that it is not lost."),
    ),
    large=True,
)


class VerdictSettings(NamedTuple):
    edge: Edge
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    mix: str
    references: ReferencesConfig
    instrument: str
    """Of `joint` and `frozen` one SAE reads both ends; a frozen one is the parent's, and judges its features alone."""
    seed: int
    text_seed: int
    """Of the order of the blocks: edges that compare on the same corpora read the same ones."""
    sites: Aside = Aside(())
    """Places that one pass of a model serves."""


def text_seed(study: Study, edge: Edge, text: str) -> int:
    """Seed of the order of the blocks on which the features of an edge are judged."""
    return seed_of(study, "verdicts", *study.text_corpora(edge, text))


def _items(study: Study) -> Iterable[Item]:
    if not study.config.verdicts.tokens:
        return ()
    return (
        {"instrument": instrument, "site": site, "edge": edge.name, "text": text}
        for instrument in study.instruments
        for edge in study.edges
        for text in study.config.verdicts.texts
        if study.text_corpora(edge, text)
        for site in study.sites  # one after another, while what one pass read is held
    )


def _tokens(study: Study, item: Item) -> int:
    return study.config.verdicts.tokens // (1 if item["text"] == "common" else 2)


def _settings(study: Study, item: Item) -> VerdictSettings:
    config, references = study.config, study.config.references
    if item["text"] != "common":  # what changed most needs no more beside it
        wanted = {name: getattr(references, name) for name in _BESIDE_CHANGES}
        references = ReferencesConfig(**dict.fromkeys(ReferencesConfig.model_fields, False) | wanted)
    return VerdictSettings(
        study.edge(item["edge"]),
        item["site"],
        config.precision,
        _tokens(study, item),
        config.sae.context_size,
        config.sae.mix,
        references,
        item["instrument"],
        seed_of(study, "verdicts", item["edge"]),
        text_seed(study, study.edge(item["edge"]), item["text"]),
        Aside(study.sites),
    )


def _needs(study: Study, item: Item) -> Needs:
    edge, instrument, site = study.edge(item["edge"]), item["instrument"], item["site"]
    needs: Needs = {"tokens": tokens_needs(study.text_corpora(edge, item["text"]))}
    for end, model in (("parent", edge.parent), ("child", edge.child)):
        needs[end] = ("model", {"model": model})
        needs[f"{end}_saes"] = {
            "0": sae_need(study, model, instrument, site),
            "1": second_need(study, model, instrument, site),
        }
    for reference in MODELS[1:] if item["text"] == "common" else ("sham",):
        if need := reference_need(study, edge, reference):
            needs[reference] = need
    return needs


def _run(work: Work, settings: VerdictSettings) -> Results:
    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.text_seed, settings.mix)
    sample = sample_of(sampler, settings.tokens)
    readers = {
        end: reader_of(
            work.inputs[end], list(work.inputs[f"{end}_saes"].values()), settings.hook_point, settings.precision
        )()
        for end in ("parent", "child")
    }
    models = {name: partial(_reference_model, work, name, settings.seed) for name in MODELS}
    there = {name: make for name, make in models.items() if name == "edit" or name in work.inputs}
    known = _known(work, settings)
    ends, sample = read_ends(readers, sample, known)
    rows = rows_of_ends(ends, readers["parent"], sample, settings, there, work.progress, known)
    for row in rows["verdicts"]:
        row["corpora"] = ", ".join(work.inputs["tokens"])
        row["identical"] = state_of(work.inputs["parent"]) == state_of(work.inputs["child"])
    return rows


def _known(work: Work, settings: VerdictSettings) -> Known:
    names = {role: work.inputs[role].key for role in ("parent", "child", *MODELS) if role in work.inputs}
    names["edit"] = f"{names['parent']} {names['child']} {settings.seed}"
    return Known(names, settings.sites.value)


def rows_of_ends(
    ends: Mapping[str, End],
    reader: Reader,
    sample: Sample,
    settings: VerdictSettings,
    models: Mapping[str, Callable[[], Any]],
    progress: Progress | None = None,
    known: Known | None = None,
) -> dict[str, Any]:
    """Rows of all tables of one edge.

    ends: parent and child, each with its two SAEs; a child with one SAE is read in, and its features are not judged,
    as are those of a child that is read by the parent's (instrument `frozen`). reader: of the parent, with both SAEs.
    models: make the reference models that there are, by name: those of `MODELS`.
    known: names of the models by role, under which what is read of them is held.
    """
    from heredity.features.ends import Between, Judge, agreement, tally
    from heredity.features.verdicts import VERDICTS as NAMES
    from heredity.features.verdicts import owned, same_r, share_interval

    def read(name: str) -> End:
        return read_again(reader._replace(saes=reader.saes[1:2]), sample, models[name], name, known)

    judges = [pair for pair in (("parent", "child"), ("child", "parent")) if len(ends[pair[0]].saes) > 1]
    judges = judges[:1] if settings.instrument == "frozen" else judges  # what is new in the child no such SAE has
    references = names_of(settings.references, models)
    steps = _counter(progress, 2 * len(judges) + len(references))
    rows: dict[str, list[Any]] = {name: [] for name in ("verdicts", "references", "grades", "changed_most")}
    columns: list[dict[str, Any]] = []
    same, between = np.array_equal(ends["parent"].x, ends["child"].x), None
    for end, other in judges:
        judged, evidence, judges_of = [], [], []
        between = Between.of(ends[end], ends[other], between)
        for seed in (0, 1):
            acts = ends[end].acts[seed]
            there = ends[other].acts[seed] if settings.instrument in ("joint", "frozen") else None  # of the same SAE
            mine = owned(acts, there) if there is not None and settings.instrument == "joint" else None
            judges_of.append(Judge(ends[end], seed, sample.documents, settings.seed, mine))
            verdict, found = judges_of[-1].against(ends[other], between, whole=seed == 0)
            found["same_r"] = same_r(acts, there) if there is not None else np.full(acts.d_sae, np.nan)
            judged.append(verdict)
            evidence.append(found)
            steps()
        counts = [tally(one) for one in judged]
        row = {"end": end, "live": int((ends[end].acts[0].firings() > 0).sum()), **counts[0]}
        row |= {
            "scale": judged[0].scale,
            "tokens": len(sample.documents),
            "same_activations": same,
            **agreement(ends[end], judged),
        }
        for name in ("kept", "lost"):
            own, second = (each[name] / max(1, each["stable"]) for each in counts)
            low, high = share_interval(counts[0][name], counts[0]["stable"], (second,) if counts[1]["stable"] else ())
            row |= {f"{name}_share": own, f"{name}_share_low": low, f"{name}_share_high": high}
            row[f"other_seed_{name}"] = second
        rows["verdicts"].append(row)
        changes = {"seed": _by_match(ends[end], values_of(evidence[1], judged[1].scale))}
        usual: dict[str, np.ndarray] | None = None
        if end == "parent":
            given = judges_of[0], judged[0], evidence[0], read, sample.tokens, sample.documents, settings.seed
            beside = judge_references(references, EdgeJudged(ends[end], ends[other], *given), row, steps)
            rows["references"], rows["grades"], usual = beside.rows, beside.grades, beside.usual
            changes |= {"sham": beside.sham} if beside.sham else {}
            row |= beside.retrained
        words = {name: WORDS[end].get(name, name) for name in NAMES}
        named = np.array([words[NAMES[i]] for i in judged[0].verdict], object)
        columns.append({"end": [end] * len(named), "feature": np.arange(len(named)), "verdict": named})
        columns[-1] |= evidence[0] | {"p_lost": judged[0].p_lost}
        rows["changed_most"] += _changed_most(end, columns[-1], judged[0].scale, usual, changes)
    return rows | {"evidence": {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}}


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = iter(range(1, total + 1))
    return lambda: progress(next(done), total) if progress else None


def _reference_model(work: Work, name: str, seed: int) -> Any:
    """The sham, twin or random counterpart of an edge; or edit: the parent with a random change in every tensor that
    has the norm of the edge's own change there."""
    from heredity.synthetic.surgery import shaken

    if name == "edit":
        return on_device(shaken(load(work.inputs["parent"]), load(work.inputs["child"]), seed))
    return on_device(load(work.inputs[name]))


def _by_match(end: End, changes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Changes of the second SAE's features by the features of the first that they match best, float64 [d_sae] each."""
    from heredity.features.correlate import correlate

    match = correlate(end.acts[0], end.acts[1], 1).parent_match[:, 0]
    return {name: np.where(match >= 0, change[match], np.nan) for name, change in changes.items()}


def _changed_most(
    end: str,
    columns: dict[str, Any],
    scale: float,
    edited: dict[str, np.ndarray] | None,
    beside: Mapping[str, Mapping[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """Rows of the ranking of one end. edited: `values_of` stable features under the random edit; beside: those of
    all features by column, float64 [d_sae] each."""
    changes = changes_of(columns, scale)
    names, usual, unit = ["effect"], None, {"effect": 1.0}
    if edited is not None and len(edited["effect"]):
        names = list(changes)
        unit = {name: max(float(np.nanquantile(edited[name], 0.95)), _LEAST_USUAL) for name in names}
        usual = float(np.nanquantile(np.fmax.reduce([edited[name] / unit[name] for name in names]), 0.95))
    change, least = (
        np.stack([getattr(changes[name], of) / unit[name] for name in names], 1) for of in ("value", "low")
    )
    most = least.max(1)
    stable = (columns["verdict"] != "unstable") & np.isfinite(most)
    rows = []
    for rank, i in enumerate(np.argsort(-np.where(stable, most, -np.inf), kind="stable")[: min(_LISTED, stable.sum())]):
        by = int(least[i].argmax())
        row = {"end": end, "rank": rank + 1, "feature": int(i), "verdict": columns["verdict"][i], "by": names[by]}
        if usual is not None:
            row |= {"change": change[i, by], "least_change": most[i], "beyond_edit": bool(most[i] > usual)}
            row |= {name: own[row["by"]][i] / unit[row["by"]] for name, own in beside.items()}
        for name in ("transmission", "strength"):
            value, error = columns[name][i] / scale, 1.96 * columns[f"{name}_error"][i] / scale
            row |= {name: value, f"{name}_low": value - error, f"{name}_high": value + error}
        rows.append(row | {name: columns[name][i] for name in ("match_r", "map_r", "density_ratio")})
    return rows


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    edge, tokens = study.edge(item["edge"]), _tokens(study, item)
    site, d_in = item["site"], shapes.width(edge.parent, item["site"])
    made = [name for name in MODELS if name == "edit" or reference_need(study, edge, name)]
    names = names_of(_settings(study, item).references, made)
    read, d_sae = 2 * (2 + sum(name in MODELS for name in names)) * tokens, study.config.sae.expansion * d_in
    seeds = 2 if item["instrument"] == "frozen" else 4  # of one end, or of both
    regressed, judged = seeds + sum(name in UNTRAINED for name in names), seeds + len(names)
    solved = regressed * (d_sae**3 + 32 * d_in * d_sae**2)
    solved += judged * (16 * d_in * d_sae**2 + 8 * tokens * d_in**2)  # of errors, half of the features are judged
    encoded = 6 * judged * tokens * d_in * d_sae
    # Both ends and a reference that is made of them are open at once, beside what was read of every model so far.
    gib = shapes.read_gib(*[edge.parent] * 3) + shapes.held_gib(edge.parent, 2 * tokens, len(study.order) + len(made))
    gib += (64 * tokens * d_in + 28 * d_sae**2) / 2**30
    return Cost(read, encoded + solved, gib, 0.3, passes=read_passes(study, edge.parent, shapes, read, site))


ANALYSIS = Analysis(
    kind="verdicts",
    version=10,
    title="Verdicts",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(VERDICTS, REFERENCES, GRADED, CHANGED_MOST, EVIDENCE),
    cost=_cost,
    say=verdict_findings.findings,
)
