"""Every matching rule against planted truth: precision and recall in trained worlds, error rates over many seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from heredity.features import bootstrap
from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.features.criteria import by_parent, one_to_one, scores
from heredity.features.directions import shared
from heredity.features.newness import LatentScaling
from heredity.features.null import (
    PAPER,
    Floor,
    chance_threshold,
    choose_threshold,
    corrected,
    floor,
    p_values,
    q_values,
    split_threshold,
)
from heredity.sae.model import SAE
from heredity.study import Init
from heredity.synthetic.saes import (
    KEPT_LIKE,
    TrainedPair,
    Training,
    judge,
    label,
    noisy_code,
    noisy_codes,
    share_by_fate,
    train_pair,
)
from heredity.synthetic.world import FATES, LOST, NEW, World, WorldConfig
from heredity.tables import Column, Table

Row = dict[str, Any]
Progress = Callable[[int, int], None]
COSINE, RATE = 0.7, 0.01  # thresholds of the rules by directions and by chance
PASSES = 4  # of the floor
NOMINAL = 0.1  # false discovery rate
_PARENT_FATES = tuple(fate for fate in FATES if fate != "new")
_JUDGED = ("precision", "recall", *_PARENT_FATES)


class Condition(NamedTuple):
    """A planted world and the training of its SAEs."""

    name: str
    world: WorldConfig = WorldConfig()
    training: Training = Training()


CONDITIONS = (
    Condition("well trained"),
    Condition("mostly kept", WorldConfig(kept=110, rotated=40, lost=10, new=10)),
    Condition("mostly lost", WorldConfig(kept=15, rotated=5, lost=140, new=140)),
    Condition("nothing lost", WorldConfig(kept=120, rotated=40, lost=0, new=0)),
    Condition("nothing kept", WorldConfig(kept=0, rotated=0, lost=160, new=160)),
    Condition("noise 15 %", WorldConfig(noise=0.15)),
    Condition("noise 30 %", WorldConfig(noise=0.3)),
    Condition("steeper densities", WorldConfig(rarity=1.0)),
    Condition("a third rare", WorldConfig(rare=0.33)),
    Condition("overlap 50 %", WorldConfig(overlap=0.5)),
    Condition("overlap 90 %", WorldConfig(overlap=0.9)),
    Condition("under-trained", training=Training(epochs=1, continue_tokens=30_000)),
    Condition("hardly trained", training=Training(tokens=20_000, epochs=1, continue_tokens=10_000)),
    Condition("all fates", WorldConfig(kept=40, rotated=20, faint=15, noisy=15, split=10, merged=10, lost=50, new=50)),
)
"""From easy to hard."""

_COLUMNS = (
    Column("init", "text", "Initialization of the SAEs: joint, parent or independent."),
    Column("condition", "text", "Planted world and training of its SAEs."),
    Column("seed", "count", "Seed of world and training."),
    Column("tokens", "count", "Held-out aligned tokens."),
    Column("explained_variance", "r", "Explained variance of the parent's SAE on held-out tokens."),
    Column("recovered", "r", "Share of the parent's true features that an SAE feature follows."),
    Column("reliability", "r", "Median r of the parent's SAE features with the true features behind them."),
    Column("ceiling", "r", "Share of the parent's SAE features with r > 0.8 in another SAE of the parent."),
    Column("rule", "text", "Matching rule."),
    Column("threshold", "r", "Threshold on the rule's score."),
    Column(
        "precision",
        "r",
        "Share of kept, rotated, faint and noisy features among these and lost ones called persisting.",
    ),
    Column("recall", "r", "Share of kept, rotated, faint and noisy features called persisting."),
    *(Column(fate, "r", f"Share of {fate} parent features called persisting.") for fate in _PARENT_FATES),
    Column("kept_at_paper", "r", "Share of kept parent features with r > 0.8."),
    Column("fate", "text", "True fate of child features; unknown for those that follow no true feature."),
    Column("emerged", "r", "Share of child features called emerged, at the threshold by evidence."),
    Column("confirmed", "r", "Share of these that latent scaling confirms as new."),
    Column("new_emerged", "r", "Share of new child features called emerged."),
    Column("new_confirmed", "r", "Share of these that latent scaling confirms as new."),
    Column("unknown_confirmed", "r", "Likewise of emerged features that follow no true feature."),
    Column("rate", "text", "Error rate, power, or coverage of 95 % intervals."),
    Column("measured", "r", "Mean over worlds."),
    Column("nominal", "r", "Expected rate; none for power."),
    Column("worlds", "count", "Worlds without SAE training."),
)
_BY_EVIDENCE = ("kept", "rotated", "lost", "kept_at_paper", "new_emerged", "new_confirmed", "unknown_confirmed")


def _table(name: str, doc: str, key: tuple[str, ...], columns: tuple[str, ...], brief: tuple[str, ...] = ()) -> Table:
    known = {column.name: column for column in _COLUMNS}
    return Table(name, doc, key, tuple(known[column] for column in key + columns), key + brief if brief else ())


_WORLD = ("init", "condition", "seed")
_QUALITY = ("explained_variance", "reliability")
TABLES = (
    _table(
        "planted_rule_means",
        "Rules, mean over all worlds.",
        ("init", "rule"),
        _JUDGED,
        (*_JUDGED[:2], *_BY_EVIDENCE[:3]),
    ),
    _table(
        "planted_world_means",
        "Features called persisting or emerged by evidence, world by world.",
        ("init", "condition"),
        _QUALITY + _BY_EVIDENCE,
        _QUALITY + _BY_EVIDENCE,
    ),
    _table("planted_worlds", "SAEs of each trained world.", _WORLD, ("tokens", "recovered", "ceiling", *_QUALITY)),
    _table("planted_rules", "Rules in each trained world.", (*_WORLD, "rule"), ("threshold", *_JUDGED)),
    _table("planted_emerged", "Child features of each trained world.", (*_WORLD, "fate"), ("emerged", "confirmed")),
    _table(
        "planted_rates",
        "Error rates over worlds of noisy codes.",
        ("rate",),
        ("measured", "nominal", "worlds"),
        ("measured", "nominal"),
    ),
)
"""Tables of `prove`; those with brief columns are for the terminal."""


def prove(
    conditions: Sequence[Condition],
    inits: Sequence[Init],
    seeds: int,
    rate_seeds: int,
    tokens: int = 30_000,
    progress: Progress | None = None,
) -> dict[str, list[Row]]:
    """Compare every rule with planted truth: each condition with each init and seed, and error rates.

    tokens: held-out aligned tokens of each trained world. Rows by name of the table, see `TABLES`; a share without a
    denominator is None.
    """
    total = len(conditions) * len(inits) * seeds + rate_seeds
    tables: dict[str, list[Row]] = {"planted_worlds": [], "planted_rules": [], "planted_emerged": []}
    for condition in conditions:
        for init in inits:
            for seed in range(seeds):
                for name, rows in _judged(condition, init, tokens, seed).items():
                    tables[name] += rows
                if progress:
                    progress(len(tables["planted_worlds"]), total)
    trained = total - rate_seeds
    of_errors = rates(rate_seeds, lambda done: progress(trained + done, total) if progress else None)
    return means(tables) | tables | {"planted_rates": of_errors}


def _judged(condition: Condition, init: Init, tokens: int, seed: int) -> dict[str, list[Row]]:
    """Train the SAEs of one world and compare every rule with the truth on held-out aligned tokens."""
    world = World(condition.world, seed)
    pair = train_pair(world, init, condition.training, tokens, seed)
    parent = label(pair.parent, pair.sample.parent, world.parent.fate)
    child = label(pair.child, pair.sample.child, world.child.fate)
    matches = correlate(pair.parent, pair.child)
    if pair.parent_control is None:
        ceiling = np.where(np.isfinite(matches.parent_r[:, 0]), 1.0, np.nan)
    else:
        ceiling = correlate(pair.parent, pair.parent_control, 1).parent_r[:, 0]
    key: Row = {"condition": condition.name, "init": init, "seed": seed}
    quality = {
        "tokens": tokens,
        "explained_variance": pair.explained_variance["parent"],
        "recovered": parent.recovered,
        "reliability": parent.reliability,
        "ceiling": float((ceiling[np.isfinite(ceiling)] > PAPER).mean()),
    }
    persist = calls(matches, floor(pair.parent, pair.child, PASSES, seed), ceiling, pair.saes)
    rules = []
    for rule, (call, threshold) in persist.items():
        called, precision, recall = judge(call, parent.fate)
        row = {"rule": rule, "threshold": threshold, "precision": precision, "recall": recall}
        rules.append(_finite(key | row | {fate: called.get(fate) for fate in _PARENT_FATES}))
    emerge = (matches.child_density > 0) & ~(matches.child_r[:, 0] > persist["evidence"][1])
    confirmed = share_by_fate(_confirmed_new(world, pair, tokens, seed)[emerge], child.fate[emerge])
    emerged = judge(emerge, child.fate, (NEW,), KEPT_LIKE).called | {"unknown": None}
    return {
        "planted_worlds": [_finite(key | quality)],
        "planted_rules": rules,
        "planted_emerged": [
            key | {"fate": fate, "emerged": share, "confirmed": confirmed.get(fate)} for fate, share in emerged.items()
        ],
    }


def calls(
    matches: Matches, by_chance: Floor, ceiling: np.ndarray, saes: tuple[SAE, SAE]
) -> dict[str, tuple[np.ndarray, float]]:
    """By rule: bool [d_parent] persisting, and the threshold on its score."""
    best = matches.parent_r[:, 0]
    evidence = choose_threshold(best, by_chance.parent_r, [ceiling]).threshold
    by_rule = scores(matches, one_to_one(*matches[:4]))
    q = q_values(p_values(best, by_chance.parent_r, matches.parent_density))
    halves = split_threshold(best)
    rules = {
        "evidence": (best > evidence, evidence),
        "r > 0.8": (best > PAPER, PAPER),
        "split": (best > halves, halves),
        "more than chance": (q <= RATE, chance_threshold(best, by_chance.parent_r, RATE)),
        "mutual": (by_rule["mutual"] > evidence, evidence),
        "assigned": (by_rule["assigned"] > evidence, evidence),
        "corrected r > 0.8": (corrected(best, ceiling, ceiling) > PAPER, PAPER),
    }
    parent, child = saes
    if parent is not child:
        agreed = shared(parent.W_enc, parent.W_dec, child.W_enc, child.W_dec, COSINE)
        rules["decoder cosine"] = agreed.decoders.parent_cosine[:, 0] > COSINE, COSINE
        rules["shared"] = by_parent(agreed.pairs, agreed.cosine, len(best)) > COSINE, COSINE
    return rules


def _confirmed_new(world: World, pair: TrainedPair, tokens: int, seed: int) -> np.ndarray:
    """bool [d_child]: whether latent scaling on the parent's activations confirms a child feature as new."""
    x = [torch.from_numpy(world.x(end, tokens, 2 * seed + 1)) for end in ("parent", "child")]
    scaling = LatentScaling(pair.saes[1].W_dec)
    for parts in zip(*(vectors.split(max(1, tokens // 10)) for vectors in x), strict=True):
        codes = [sae.encode_sparse(part) for sae, part in zip(pair.saes, parts, strict=True)]
        hats = [sae.decode_sparse(*code) for sae, code in zip(pair.saes, codes, strict=True)]
        scaling.update(FeatureActs(*codes[1], d_sae=pair.child.d_sae), parts[0], hats[0], parts[1], hats[1])
    return scaling.result().new()


def means(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Means over seeds, then over conditions: tables planted_rule_means and planted_world_means of the other tables."""
    rules = _means(tables["planted_rules"], ("condition", "init", "rule"), _JUDGED)
    emerged = _means(tables["planted_emerged"], ("condition", "init", "fate"), ("emerged", "confirmed"))
    worlds = _means(tables["planted_worlds"], ("condition", "init"), _QUALITY)
    for world in worlds:
        here = (world["condition"], world["init"])
        by_rule = {row["rule"]: row for row in rules if (row["condition"], row["init"]) == here}
        by_fate = {row["fate"]: row for row in emerged if (row["condition"], row["init"]) == here}
        world |= {fate: by_rule["evidence"][fate] for fate in _BY_EVIDENCE[:3]}
        world["kept_at_paper"] = by_rule["r > 0.8"]["kept"]
        for fate, column in (("new", "emerged"), ("new", "confirmed"), ("unknown", "confirmed")):
            world[f"{fate}_{column}"] = by_fate.get(fate, {}).get(column)
    return {"planted_rule_means": _means(rules, ("init", "rule"), _JUDGED), "planted_world_means": worlds}


def _means(rows: Sequence[Row], key: tuple[str, ...], columns: Sequence[str]) -> list[Row]:
    """One row per value of the key: means of the numbers that are not None."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    result = []
    for values, group in groups.items():
        known = {name: [row[name] for row in group if row[name] is not None] for name in columns}
        mean = {name: float(np.mean(numbers)) if numbers else None for name, numbers in known.items()}
        result.append(dict(zip(key, values, strict=True)) | mean)
    return result


def _finite(row: Row) -> Row:
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def rates(seeds: int, progress: Callable[[int], None] | None = None) -> list[Row]:
    """False discoveries and coverage over worlds of noisy codes.

    The true r of kept features lie anywhere between 0 and 1; they are those of a sample twenty times as long. Rates
    are means over worlds: the share of lost features among those called at a false discovery rate of `NOMINAL`; the
    share of kept features called; and the shares of 95 % intervals that hold the truth, of r for features with 100
    firings in 30 documents, and of counts at .5, .6, .7 and .8.
    """
    config = WorldConfig(kept=160, rotated=0, lost=160, new=160, l0=12, document=48, burst=2.0)
    measured = []
    for seed in range(seeds):
        world = World(config, seed)
        measured.append((*_discoveries(world, seed), *_covered(world, seed)))
        if progress:
            progress(seed + 1)
    goals = {"false discovery rate": NOMINAL, "power": None, "coverage of r": 0.95, "coverage of counts": 0.95}
    return [
        {"rate": rate, "measured": float(np.mean(values)), "nominal": goal, "worlds": seeds}
        for (rate, goal), values in zip(goals.items(), zip(*measured, strict=True), strict=True)
    ]


def _discoveries(world: World, seed: int) -> tuple[float, float]:
    """Share of lost features among the discoveries, and of kept features that are discovered."""
    parent, child, _ = noisy_codes(world, 16_000, seed, reliability=0.6, miss=0.3, false_fire=0.2)
    matches = correlate(parent.acts, child.acts, 1)
    by_chance = floor(parent.acts, child.acts, 2 * PASSES, seed)
    called = q_values(p_values(matches.parent_r[:, 0], by_chance.parent_r, matches.parent_density, 160)) <= NOMINAL
    fate = world.parent.fate[parent.feature]
    kept = np.isin(fate, KEPT_LIKE)
    return float((fate[called] == LOST).mean()) if called.any() else 0.0, float(called[kept].mean())


def _covered(world: World, seed: int) -> tuple[float, float]:
    """Share of the intervals of r and of counts that hold the truth in one world."""
    documents, thresholds = 400, (0.5, 0.6, 0.7, 0.8)
    wanted = np.random.default_rng((seed, 1)).uniform(0.2, 1.0, world.config.parents)

    def sample(documents: int, seed: int) -> tuple[bootstrap.Jackknife, np.ndarray, FeatureActs, np.ndarray]:
        """Of each parent feature and its partner; the true features; the parent's activations and documents."""
        drawn = world.draw(documents * world.config.document, seed)
        rng = np.random.default_rng((seed, 2))
        parent = noisy_code(drawn.parent, rng, 1.0, 0.0, 0.0)
        child = noisy_code(drawn.parent, rng, 0.95, 1 - np.square(wanted), 0.0)
        pairs = np.argsort(child.feature)[parent.feature][:, None]
        groups = bootstrap.document_groups(drawn.document, seed=seed)
        moments = bootstrap.group_moments(parent.acts, child.acts, pairs, groups)
        return bootstrap.leave_one_out(moments), parent.feature, parent.acts, drawn.document

    jackknife, feature, parent, document = sample(documents, seed)
    long, other, *_ = sample(20 * documents, 10_000 + seed)
    truth = np.tanh(long.z[:, 0])[np.argsort(other)][feature]
    intervals = bootstrap.r_intervals(jackknife)
    token = np.repeat(np.arange(parent.tokens), np.diff(parent.indptr))
    fired_in = np.unique(np.stack([parent.indices, document[token]]), axis=1)[0]  # a feature once per document
    often = (parent.firings() >= 100) & (np.bincount(fired_in, minlength=parent.d_sae) >= 30)
    inside = (intervals.low <= truth) & (truth <= intervals.high)
    counts = bootstrap.bootstrap_counts(jackknife, thresholds, 300, seed)
    true_counts = (truth[:, None] > np.array(thresholds)).sum(0)
    return float(inside[often].mean()), float(((counts.low <= true_counts) & (true_counts <= counts.high)).mean())
