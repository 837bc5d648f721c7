"""Are the features that emerged along an edge really new?

Activation similarity says which child features have no match in the parent's SAE. Latent scaling (Minder et al. 2025)
asks the parent's activations as well: nu is how much of a child feature's contribution the parent's activations hold
over how much the child's do (1: as much; 0: nothing in this direction). The paper calls a feature new where nu_eps <
0.2 and nu_r < 0.5 (`new_fixed`). Here its strength in the parent, in whichever direction, must be below 0.9 as well,
and all three cuts are lowered together, edge by edge and among features that fire about as often, until at most 5 % of
inherited features (best r > 0.8) lie below (`new`); half of them set the cut at which the other half is counted. A
feature is `turned` where it is new by the paper's cuts, but the parent's activations move at least half as far on its
firings, in other directions; `missed` features are not new, and the parent holds at least half of them: its SAE has no
such feature.

Where models have a second SAE, features that it does not have are `unstable`, a fate of their own.

Effects compare what child features and their best parent matches do to the next-token prediction. Splicing moves the
emerged features into the parent and measures how much of KL(child || parent) that recovers, beside as many other
features that differ, each like one of them in how far and how often it moves.

Measured on all corpora in the child's trace, in equal parts; edge counts use the common trace only. Emerged features
often fire only on the child's own text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Cost, Item, Needs, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.match import KEY, edge_items, read_matches, threshold_of
from heredity.analyses.match_findings import beside_verdicts
from heredity.analyses.reading import reader_of, sampler_of
from heredity.analyses.sae import encode_flops, expected_l0, read_passes, sae_need, second_need
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.study import Precision, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.collect import Reader

_ATTRIBUTED, _SPLICED = 4_000, 2_000  # tokens, at most, that attributions are taken on and features are moved on
_PAIRS = 200  # of inherited and of emerged features, whose effects are compared
_CONTROLS = 3

ORIGINS = Table(
    "newness",
    "What the parent's activations hold of the child's features, whatever its SAE finds there.",
    (*KEY, "fate"),
    (
        Column(
            "fate",
            "text",
            "emerged, inherited (for comparison), unseen (silent on the edge's common trace), or unstable: any of "
            "these, without a counterpart in a second SAE of the child.",
        ),
        Column("features", "count", "Child features of this fate."),
        Column("judged", "count", "Features with at least 30 firings on the sample and a nu.", of="features"),
        Column("new", "count", "In no direction of the parent, by cuts calibrated on this edge.", of="judged"),
        Column("new_fixed", "count", "Not in its direction: nu_eps < 0.2 and nu_r < 0.5 (the paper).", of="judged"),
        Column("surely_new", "count", "New by two standard errors.", of="judged"),
        Column(
            "turned",
            "count",
            "Not in its direction, and not new: the parent moves in others.",
            of="judged",
        ),
        Column("missed", "count", "Not new: the parent's activations have at least half of them.", of="judged"),
        Column("nu", "number", "Median nu."),
        Column("strength", "number", "Median strength of the parent's response to their firings over the child's."),
        Column("tokens", "count", "Aligned token positions."),
        Column("cut", "number", "Factor on the cuts, median of these features; 1 where it is not calibrated."),
        Column("known", "count", "Inherited features with best r > 0.8, which calibrate the cut of the edge."),
        Column("known_new", "count", "Of them called new, at the cut that the other half of them sets.", of="known"),
        Column("calibrated", "flag", "Whether there are 40 or more of them; with fewer, cuts are the paper's."),
    ),
    brief=("instrument", "edge", "fate", "judged", "new", "new_fixed", "turned", "missed"),
    plot=Plot("bars", x="edge", y="new", by="fate"),
)
EFFECTS = Table(
    "effects",
    "Whether child features and their best matches in the parent do the same to the prediction.",
    (*KEY, "fate"),
    (
        Column("fate", "text", "inherited, or emerged with the nearest miss."),
        Column("pairs", "count", "Pairs compared; a sample of at most 200."),
        Column("logits", "r", "Median Pearson r of their logit weights."),
        Column("attribution", "r", "Median Pearson r of their attributions over tokens."),
        Column("unavailable", "text", "Why logit figures, or all figures of effects, are missing."),
    ),
)
SPLICE = Table(
    "splice",
    "How much of the difference between the models the emerged features carry, moved into the parent. "
    "KL(child || parent) per token; intervals: bootstrap over blocks of tokens.",
    KEY,
    (
        Column("features", "count", "Emerged features that differ between the models on these tokens; all are moved."),
        Column("others", "count", "Other features that differ between the models; controls are taken from these."),
        Column("tokens", "count", "Positions compared."),
        Column("before", "nats", "KL of the models as they are.", ci=True),
        Column("spliced", "nats", "KL with the emerged features moved.", ci=True),
        Column(
            "control",
            "nats",
            "KL with as many others moved, each the nearest to an emerged one by size and density of its move; mean of "
            "three draws.",
            ci=True,
        ),
        Column("all", "nats", "KL with all features moved.", ci=True),
        Column("recovered", "share", "(before - spliced) / (before - all).", ci=True),
        Column("control_recovered", "share", "The same of the others.", ci=True),
        Column("excess", "share", "Difference of the two.", ci=True),
        Column("reach", "share", "(before - all) over what the child's activations recover: the most the SAE carries."),
        Column("moved", "share", "Mean squared length of what emerged features add, as a share of what all add."),
        Column("control_moved", "share", "The same of the others; features that add more can recover more."),
        Column("matched", "flag", "Whether control_moved is 0.8 to 1.25 times moved; otherwise excess says nothing."),
    ),
)
FEATURES = Table(
    "newness_features",
    "Newness of every child feature.",
    (*KEY, "feature"),
    (
        Column("match", "feature", "Best match in the parent; -1 where there is none."),
        Column("best_r", "r", "Its r."),
        *(
            Column(name, "flag", doc)
            for name, doc in (
                ("emerged", "Live, without a match above the threshold."),
                ("inherited", "With a match above the threshold."),
                ("unseen", "Silent on the edge's common trace."),
                ("judged", "At least 30 firings and a nu."),
                ("new", "nu_eps, nu_r and strength below the calibrated cuts."),
                ("new_fixed", "nu_eps < 0.2 and nu_r < 0.5."),
                ("surely_new", "New by two standard errors."),
                ("turned", "Not in its direction, but the parent moves on its firings, in others."),
                ("missed", "Not new; the parent has at least half of it."),
            )
        ),
        Column("stability", "r", "Best r in a second SAE of the child on this text; null where there is none."),
        Column("cut", "number", "Factor on the cuts at which it is judged."),
        Column("nu", "number", "Share of its contribution that the parent's activations hold."),
        Column("nu_r", "number", "The same of the parent's reconstruction."),
        Column("nu_eps", "number", "The same of the parent's reconstruction error."),
        Column("nu_error", "number", "Standard error of nu (jackknife)."),
        Column("nu_r_error", "number", "Standard error of nu_r."),
        Column("nu_eps_error", "number", "Standard error of nu_eps."),
        Column("beta_parent", "number", "Least-squares scale of the contribution in the parent."),
        Column("beta_child", "number", "Least-squares scale of the contribution in the child."),
        Column("strength", "number", "Length of the parent's response to its firings over the child's."),
        Column("alignment", "r", "Cosine of the two responses."),
        Column("firings", "count", "Tokens on which it fires."),
        Column("logit_similarity", "r", "Pearson r of its logit weights with its match's."),
        Column("attribution_similarity", "r", "Pearson r of its attributions with its match's."),
    ),
    large=True,
)

_SURE = 0.8  # best r of inherited features that calibrate
_MATCHED = 1.25  # ratio of the moves of emerged features and controls beyond which these are no comparison


class NewnessSettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    level: float
    context_size: int
    seed: int


def _items(study: Study) -> Iterable[Item]:
    edges = edge_items(study, study.descent) if study.config.controls.newness else ()
    return (item for item in edges if item["instrument"] != "frozen")  # whose SAE has nothing of the child's own


def _settings(study: Study, item: Item) -> NewnessSettings:
    config = study.config
    return NewnessSettings(
        item["site"],
        config.precision,
        config.controls.newness,
        config.controls.level,
        config.sae.context_size,
        seed_of(study, "newness", item["edge"]),
    )


def _needs(study: Study, item: Item) -> Needs:
    edge, instrument, site = study.edge(item["edge"]), item["instrument"], item["site"]
    needs: Needs = {
        "parent": ("model", {"model": edge.parent}),
        "child": ("model", {"model": edge.child}),
        "parent_sae": sae_need(study, edge.parent, instrument, site),
        "child_sae": sae_need(study, edge.child, instrument, site),
        "match": ("match", item),
        "tokens": tokens_needs(study.trace(edge.child)),
    }
    second = second_need(study, edge.child, instrument, site)
    return needs | {"second_sae": second} if study.config.verdicts.tokens else needs


def _run(work: Work, settings: NewnessSettings) -> Results:
    from heredity.features.correlate import median
    from heredity.features.effects import attribution_similarity, logit_similarity
    from heredity.features.newness import calibrate, groups_of, judged_of, matched_pairs, newness, origins_of
    from heredity.features.verdicts import STABLE
    from heredity.text.tokens import distinct_blocks

    seed = settings.seed
    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, seed)
    blocks = distinct_blocks(sampler, settings.tokens)
    parent, child = (
        reader_of(work.inputs[end], [work.inputs[f"{end}_sae"]], settings.hook_point, settings.precision)()
        for end in ("parent", "child")
    )
    matches, threshold = read_matches(work.inputs["match"]), threshold_of(work.inputs["match"])
    result = newness(parent, child, blocks)
    work.progress(1, 3)
    stability = _stability(work, child, blocks)
    stable = None if stability is None else stability > STABLE
    fates = groups_of(matches, result.firings, threshold, stable)
    known = judged_of(result) & (matches.child_r[:, 0] > _SURE)
    calibration = calibrate(result, known if stable is None else known & stable, seed)
    origins = origins_of(result, calibration.cut)
    unavailable = vocabularies_differ(parent, child)
    pairs = (
        {}
        if unavailable
        else {
            fate: matched_pairs(matches, fates[fate] & origins["judged"], _PAIRS, seed)
            for fate in ("inherited", "emerged")
        }
    )
    logits, attribution = np.full((2, len(result.nu)), np.nan)
    splice = [] if unavailable else _splice(parent, child, fates["emerged"], _first(blocks, _SPLICED), settings)
    if any(map(len, pairs.values())):
        every = np.concatenate(list(pairs.values()))
        attribution[every[:, 1]] = attribution_similarity(parent, child, every, _first(blocks, _ATTRIBUTED))
        try:
            logits[every[:, 1]] = logit_similarity(parent, child, every)
        except ValueError as error:  # a hook point or a model without a linear way to the logits
            unavailable = str(error)
    work.progress(2, 3)
    arrays = {name: value for name, value in result._asdict().items() if isinstance(value, np.ndarray)}
    features = {
        "feature": np.arange(len(result.nu)),
        "match": matches.child_match[:, 0].astype(np.int64),
        "best_r": matches.child_r[:, 0],
        **groups_of(matches, result.firings, threshold),
        "stability": np.full(len(result.nu), np.nan) if stability is None else stability,
        "cut": np.where(np.isfinite(calibration.cut), calibration.cut, np.nan),
        **origins,
        **arrays,
        "logit_similarity": logits,
        "attribution_similarity": attribution,
    }
    rows = []
    for fate, own in fates.items():
        judged, counts = own & origins["judged"], {name: int((own & which).sum()) for name, which in origins.items()}
        medians = {"nu": median(result.nu[judged]), "strength": median(result.strength[judged])}
        cut = {"cut": median(calibration.cut[judged]), "calibrated": calibration.calibrated}
        cut |= {"known": calibration.known, "known_new": calibration.false}
        rows.append({"fate": fate, "features": int(own.sum()), "tokens": result.tokens, **counts, **medians, **cut})
    effects = [
        {
            "fate": fate,
            "pairs": len(own),
            "logits": median(logits[own[:, 1]]),
            "attribution": median(attribution[own[:, 1]]),
            "unavailable": unavailable,
        }
        for fate, own in pairs.items()
    ] or [{"fate": fate, "pairs": 0, "unavailable": unavailable} for fate in ("inherited", "emerged")]
    return {"newness": rows, "effects": effects, "splice": splice, "newness_features": features}


def _first(blocks: np.ndarray, tokens: int) -> np.ndarray:
    return blocks[: max(1, tokens // blocks.shape[1])]


def _stability(work: Work, child: Reader, blocks: np.ndarray) -> np.ndarray | None:
    """Best r of each feature in the child's second SAE, float64 [d_child]; None without one."""
    from heredity.features.collect import encoded
    from heredity.features.correlate import correlate
    from heredity.sae.formats import read_sae

    if "second_sae" not in work.inputs:
        return None
    second = read_sae(work.inputs["second_sae"] / "sae")[0].to(child.sae.W_enc.device)
    acts = encoded(child._replace(saes=[child.sae, second]), blocks)
    return correlate(acts[0], acts[1], 1).parent_r[:, 0]


def vocabularies_differ(parent: Reader, child: Reader) -> str:
    """Why predictions of the two models cannot be compared; empty when they can."""
    sizes: list[Any] = [reader.model.get_input_embeddings().num_embeddings for reader in (parent, child)]  # pyright: ignore[reportCallIssue]
    return "" if sizes[0] == sizes[1] else f"vocabulary sizes differ (parent {sizes[0]}, child {sizes[1]})"


def _splice(
    parent: Reader, child: Reader, emerged: np.ndarray, blocks: np.ndarray, settings: NewnessSettings
) -> list[dict[str, Any]]:
    """What moving the emerged features does; no row when none of them differs between the models on these blocks."""
    from heredity.features.effects import differing, splice, splice_figures

    differ = differing(parent, child, blocks)
    chosen = np.flatnonzero(emerged & differ)
    if not len(chosen):
        return []
    others = int(differ.sum()) - len(chosen)
    result = splice(parent.model, child, chosen, blocks, _CONTROLS if others >= len(chosen) else 0, settings.seed)
    row: dict[str, Any] = {"features": len(chosen), "others": others, "tokens": result.tokens}
    row |= splice_figures(result, settings.seed, settings.level)
    ratio = (row["control_moved"] or np.nan) / (row["moved"] or np.nan)
    return [row | {"matched": bool(1 / _MATCHED <= ratio <= _MATCHED) if np.isfinite(ratio) else None}]


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    """Both models on the sample; attributions forward and back; ten passes with features moved."""
    parent, site, tokens = study.edge(item["edge"]).parent, item["site"], 2 * study.config.controls.newness
    d_in, weights, half = shapes.width(parent, site), shapes.parameters(parent), tokens // 2
    effects = weights * (12 * min(half, _ATTRIBUTED) + 20 * min(half, _SPLICED))
    flops = tokens * (encode_flops(study, parent, shapes, site) + 8 * expected_l0(study) * d_in)
    passes = read_passes(study, parent, shapes, tokens, site)
    passes = passes._replace(flops=passes.flops + effects)
    gib = 24 * d_in * d_in * study.config.sae.expansion / 2**30
    gib += shapes.read_gib(parent, parent) + shapes.logits_gib(parent)
    return Cost(tokens, flops, gib, 0.6, passes=passes)


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "newness", fate="emerged"):
        if not row["judged"]:
            continue
        parent, child = row["edge"].split("->")
        key = {name: row[name] for name in KEY}
        same = rows_of(tables, "newness", fate="inherited", **key)[0]
        stable = "stable " if rows_of(tables, "newness", fate="unstable", **key) else ""
        mistaken = f"the cuts call {format.of(row['known_new'], row['known'])} held-out inherited features new"
        if not row["calibrated"]:
            mistaken = (
                f"the cuts are not calibrated, for want of inherited features, and call "
                f"{format.of(same['new'], same['judged'])} new"
            )
        text = (
            f"Of the {row['judged']:,} {stable}features that emerge in {child} by matches and fire often enough to "
            f"judge, {row['new']:,} are in no direction of the activations of {parent}, "
            f"{row['turned']:,} only in other directions, {row['missed']:,} are there as they are, missed by its SAE, "
            f"and {row['judged'] - row['new'] - row['turned'] - row['missed']:,} in part; {mistaken}."
        )
        if row["new"] * same["judged"] <= same["new"] * row["judged"] and same["new"]:
            text += (
                f" As large a share of inherited features is in no direction of {parent}, "
                f"{format.of(same['new'], same['judged'])}: this test does not tell emerged features from inherited "
                "ones here."
            )
        fixed = (
            f"by the paper's fixed cuts {format.of(row['new_fixed'], row['judged'])} emerged features are new, and "
            f"{format.of(same['new_fixed'], same['judged'])} inherited ones"
        )
        moved = tuple(map(_spliced, rows_of(tables, "splice", **key)))
        yield beside_verdicts(Statement(child, "new", text, (fixed, *moved), row["instrument"]), tables)


def _spliced(row: Mapping[str, Any]) -> str:
    """What moving the emerged features recovers, beside controls where these are like them."""
    parent = row["edge"].partition("->")[0]
    text = f"moved into {parent}, {row['features']:,} emerged features recover {format.percent(row['recovered'] or 0)}"
    text += " of what all features do"
    if row["matched"] is None:
        return f"{text}; there are too few others to compare with"
    if not row["matched"]:
        ratio = row["control_moved"] / row["moved"]
        return f"{text}; others that move alike do not exist (the nearest move {ratio:.2f} times as far)"
    return f"{text}, as many others that move as far {format.percent(row['control_recovered'] or 0)}"


ANALYSIS = Analysis(
    kind="newness",
    version=2,
    title="Are emerged features new?",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(ORIGINS, EFFECTS, SPLICE, FEATURES),
    cost=_cost,
    say=_say,
)
