"""Functional features across a stitch: entropy and attention deactivation; a part of `feature_transfer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.analyses.analysis import Tables, rows_of
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.feature_transfer import Inquiry
    from heredity.stitch.functional import MovedHead, Side

_ABLATED = 10_000  # tokens, at most, of blocks in which a feature fires, on which heads are run with and without it
_SHOWN = 500  # features drawn for the table of null-space shares
_HIGH = 0.95  # quantile above which a share, or a push, is high
_BINS = 10  # of activation
LEVELS = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
QUANTILES = tuple(
    Column(name, "r", f"{level:.0%} quantile; null without values.".replace("%", " %"))
    for name, level in LEVELS.items()
)
_END = Column("end", "text", "source, or target (transferred features).")
_EFFECT = Column("effect", "text", "off (attention to the first token drops most without the feature), or on (least).")
_PUSH = "Largest activation times the norm of the direction, which is 1 in the source."

TRANSFER_NULL_SPACE = Table(
    "transfer_null_space",
    "Shares of decoder directions in the effective null space of the unembedding.",
    ("stitch", "end"),
    (
        _END,
        Column("by_chance", "share", "Root mean square of a random direction's share."),
        Column("dimensions", "count", "Dimensions of the null space."),
        *QUANTILES,
        Column("share_cut", "share", "95 % quantile of the shares of judged features: above it a share is high."),
        Column("push_cut", "number", "95 % quantile of their pushes, likewise."),
        Column("high", "count", "Judged features with a high share and a high push: entropy features."),
        Column("high_by_chance", "number", "Their number if shares and pushes were independent."),
        Column("kept", "count", "Those that are high in the other model too.", of="high"),
        Column("kept_by_chance", "number", "Their number if both models drew theirs independently."),
    ),
)
NULL_SHARES = Table(
    "null_shares",
    f"Null-space share by push: entropy features, and {_SHOWN} judged features drawn at random.",
    ("stitch", "end", "feature"),
    (
        _END,
        Column("push", "number", _PUSH),
        Column("share", "share", "Share of the direction in the null space."),
        Column("high", "flag", "Whether both are high among the judged features of this end."),
    ),
    plot=Plot("points", x="push", y="share", by="end"),
)
ENTROPY_FEATURES = Table(
    "entropy_features",
    "Features of the largest null-space share times push.",
    ("stitch", "feature"),
    (
        Column("share", "share", "Share of the direction in the null space, in the source."),
        Column("carried", "share", "Share of the transferred direction, in the target."),
        Column("push", "number", f"{_PUSH} In the source."),
        Column("carried_push", "number", "The same in the target."),
        Column("kept", "flag", "Whether share and push are high in both models."),
    ),
)
DEACTIVATION_FEATURES = Table(
    "deactivation_features",
    "Features of the highest head scores, and the heads that they turn off and on, run with and without them.",
    ("stitch", "feature", "end", "effect"),
    (
        _END,
        _EFFECT,
        Column("layer", "count", "Layer of the head; null for a feature that fires in too few blocks."),
        Column("head", "feature", "Head. Every fifth block chooses it among all heads, the others measure."),
        Column("score", "number", "Attention logit of the first token for an activation of 1."),
        Column("tokens", "count", "Tokens on which the feature fires, and the head is measured."),
        Column("attention", "share", "Mean attention to the first token."),
        Column("attention_drop", "number", "Decrease of it without the feature, over blocks.", ci=True),
        Column("norm", "number", "Mean length of the head's output."),
        Column("norm_drop", "number", "Decrease without the feature; below 0 where it turns the head off.", ci=True),
        Column("null_share", "share", "Share of the feature's direction in the null space of this model."),
    ),
)
ATTENTION_CURVES = Table(
    "attention_curves",
    "Loss of attention to the first token without a feature, by its activation.",
    ("stitch", "feature", "end", "effect", "activation"),
    (
        _END,
        _EFFECT,
        Column("activation", "number", f"Lower end of the bin, one of {_BINS} up to the largest activation."),
        Column("tokens", "count", "Tokens in the bin."),
        Column("attention_drop", "number", "Mean decrease of the attention to the first token.", ci=True),
    ),
    plot=Plot("lines", x="activation", y="attention_drop", by="effect"),
)
TABLES = (TRANSFER_NULL_SPACE, NULL_SHARES, ENTROPY_FEATURES, DEACTIVATION_FEATURES, ATTENTION_CURVES)


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Quantiles of the finite values by name; None without any."""
    known = values[np.isfinite(values)]
    if not len(known):
        return dict.fromkeys(LEVELS)
    return dict(zip(LEVELS, map(float, np.quantile(known, list(LEVELS.values()))), strict=True))


def entropy(inquiry: Inquiry) -> None:
    """Shares of features in the null space of the unembedding, in both models."""
    from heredity.features.correlate import rank_correlation
    from heredity.stitch.functional import null_share

    spaces = {
        end: null_share(side.model, side.hook_point, side.sae.W_dec)
        for end, side in (("source", inquiry.source), ("target", inquiry.target))
    }
    if not inquiry.judged.any():
        raise ValueError("no feature fires often enough to be judged; give more tokens")
    judged, peaks = inquiry.judged, (inquiry.paired.source_peak, inquiry.paired.target_peak)
    share = {end: space.share for end, space in spaces.items()}
    push = {end: space.norm * peak for (end, space), peak in zip(spaces.items(), peaks, strict=True)}
    inquiry.columns |= {"null_share": share["source"], "carried_null_share": share["target"]}
    inquiry.row["null_share_rank"] = rank_correlation(*(each[judged] for each in share.values()))
    cuts = {end: [np.nanquantile(each[end][judged], _HIGH) for each in (share, push)] for end in spaces}
    high = {end: judged & (share[end] > cuts[end][0]) & (push[end] > cuts[end][1]) for end in spaces}
    kept, count = high["source"] & high["target"], int(judged.sum())
    drawn = np.random.default_rng(inquiry.settings.seed).permutation(np.flatnonzero(judged))[:_SHOWN]
    shown = np.union1d(drawn, np.flatnonzero(high["source"] | high["target"]))
    for end, space in spaces.items():
        row: dict[str, Any] = {"end": end, "by_chance": space.by_chance, "dimensions": space.dimensions}
        row |= {**quantiles(share[end][judged]), "share_cut": cuts[end][0], "push_cut": cuts[end][1]}
        sizes = [int(each.sum()) for each in high.values()]
        beyond = [float((each[end][judged] > cut).mean()) for each, cut in zip((share, push), cuts[end], strict=True)]
        row |= {"high": int(high[end].sum()), "high_by_chance": count * beyond[0] * beyond[1]}
        row |= {"kept": int(kept.sum()), "kept_by_chance": sizes[0] * sizes[1] / count}
        inquiry.rows["transfer_null_space"].append(row)
        inquiry.rows["null_shares"] += [
            {"end": end, "feature": int(i), "push": push[end][i], "share": share[end][i], "high": bool(high[end][i])}
            for i in shown
        ]
    columns = {"share": share["source"], "carried": share["target"], "push": push["source"]}
    columns |= {"carried_push": push["target"], "kept": kept}
    inquiry.rows["entropy_features"] += [
        {"feature": i} | {name: values[i].item() for name, values in columns.items()}
        for i in inquiry.best(share["source"] * push["source"])
    ]


def deactivation(inquiry: Inquiry) -> None:
    """Features that turn heads to the first token, and all heads that they move, in both models."""
    from heredity.lm.reading import plainly

    tokenizer = inquiry.sides.tokenizer
    first = "bos" if tokenizer.bos_token_id is not None else "eos"
    bos = int(getattr(tokenizer, f"{first}_token_id"))
    sides = {"source": inquiry.source, "target": inquiry.target}
    with ExitStack() as stack:  # blocks begin with their own first token here
        for side in sides.values():
            stack.enter_context(plainly(side.model))
        _moved(inquiry, sides, first, bos)


def _moved(inquiry: Inquiry, sides: Mapping[str, Side], first: str, bos: int) -> None:
    from heredity.features.correlate import rank_correlation
    from heredity.stitch.functional import firing_blocks, head_scores, moved_heads

    scores = {end: head_scores(side.model, side.hook_point, side.sae.W_dec, bos) for end, side in sides.items()}
    own, carried = (each.max((1, 2)) for each, _ in scores.values())
    inquiry.columns |= {"head_score": own, "carried_head_score": carried}
    rank = rank_correlation(own[inquiry.judged], carried[inquiry.judged])
    inquiry.row |= {"first_token": first, "head_score_rank": rank}
    blocks, features = inquiry.blocks.copy(), inquiry.best(own)
    blocks[:, 0] = bos
    fires = {end: firing_blocks(side, features, blocks) for end, side in sides.items()}
    most = max(2, _ABLATED // blocks.shape[1])
    for place, feature in enumerate(features):
        for end, side in sides.items():
            score, layers = scores[end]
            heads = moved_heads(side, feature, layers, blocks[fires[end][:, place]][:most])
            null = inquiry.columns["null_share" if end == "source" else "carried_null_share"][feature]
            for effect in ("off", "on"):
                key = {"feature": feature, "end": end, "effect": effect}
                row = {**key, "tokens": 0, "null_share": null}
                if effect in heads:
                    own_score = float(score[feature, layers.index(heads[effect].layer), heads[effect].head])
                    row |= {"score": own_score, **_measured(heads[effect])}
                    inquiry.rows["attention_curves"] += [{**key, **point} for point in _curve(heads[effect])]
                inquiry.rows["deactivation_features"].append(row)


def _measured(moved: MovedHead) -> dict[str, Any]:
    """Columns of a head: means over the tokens where the feature fires, and drops without it with their intervals."""
    acts, blocks, attention, norm = moved.effect
    row = {"layer": moved.layer, "head": moved.head, "tokens": len(acts)}
    row |= {"attention": float(attention[0].mean()), "norm": float(norm[0].mean())}
    return row | _drop("attention_drop", attention, blocks) | _drop("norm_drop", norm, blocks)


def _curve(moved: MovedHead) -> Iterator[dict[str, Any]]:
    """The drop of attention in equal bins of activation, from 0 to the largest."""
    acts, blocks, attention, _ = moved.effect
    width = acts.max() / _BINS
    number = np.minimum(acts // width, _BINS - 1)
    for place in np.unique(number):
        here = number == place
        row = {"activation": float(place * width), "tokens": int(here.sum())}
        yield row | _drop("attention_drop", attention[:, here], blocks[here])


def _drop(name: str, values: np.ndarray, blocks: np.ndarray) -> dict[str, float]:
    """The mean decrease of values [2, n] without the feature, as columns with their interval."""
    from heredity.stitch.functional import mean_over_blocks

    return dict(
        zip((name, f"{name}_low", f"{name}_high"), mean_over_blocks(values[0] - values[1], blocks), strict=True)
    )


def evidence(tables: Tables, stitch: str, ends: tuple[str, str]) -> Iterator[str]:
    """What was found of both kinds of functional features of a stitch, with what chance would give."""
    models = dict(zip(("source", "target"), ends, strict=True))
    spaces = rows_of(tables, "transfer_null_space", stitch=stitch)
    if spaces:
        each = ", ".join(f"{row['high']:,} in {models[row['end']]} ({row['high_by_chance']:.1f})" for row in spaces)
        both = f"{spaces[0]['kept']:,} in both ({spaces[0]['kept_by_chance']:.1f})"
        yield f"entropy features (expected by chance): {each}, {both}"
    heads = [row for row in rows_of(tables, "deactivation_features", stitch=stitch) if row["tokens"]]
    for end, model in models.items():
        if some := [row for row in heads if row["end"] == end]:
            turned = {effect: sum(_moves(row) for row in some if row["effect"] == effect) for effect in ("off", "on")}
            turn = f"{turned['off']:,} turn a head of {model} off, {turned['on']:,} one on"
            yield f"of {len({row['feature'] for row in some}):,} features examined, {turn}"


def _moves(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a head's drop lies on the side of its effect."""
    if row["attention_drop_low"] is None:
        return False
    return row["attention_drop_low"] > 0 if row["effect"] == "off" else row["attention_drop_high"] < 0
