"""Every rule held against planted truth: precision and recall in trained worlds, error rates over many seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import (
    Jackknife,
    bootstrap_counts,
    document_groups,
    group_moments,
    leave_one_out,
    r_intervals,
)
from heredity.features.correlate import Matches, correlate
from heredity.features.criteria import by_parent, one_to_one, scores
from heredity.features.directions import cosine_matches, shared
from heredity.features.newness import LatentScaling
from heredity.features.null import Floor, chance_threshold, floor, p_values, q_values
from heredity.features.threshold import PAPER, choose_threshold, corrected, split_threshold
from heredity.synthetic.codes import noisy_code, noisy_codes
from heredity.synthetic.settings import FATES, LOST, WorldConfig
from heredity.synthetic.train import Protocol, TrainedPair, Training, train_pair
from heredity.synthetic.truth import KEPT_LIKE, UNKNOWN, judge, judge_new, label_edge, recovery
from heredity.synthetic.world import World

COSINE = 0.7
RATE = 0.01
PASSES = 4
_HUGE = 20


class Condition(NamedTuple):
    """A planted world and how its SAEs are trained."""

    name: str
    """In words."""
    world: WorldConfig = WorldConfig()
    """What is planted."""
    training: Training = Training()
    """Of the SAEs."""


MIXED = WorldConfig(kept=40, rotated=20, faint=15, noisy=15, split=10, merged=10, lost=50, new=50)
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
    Condition("all fates", MIXED),
)
"""From easy to hard."""


class Verdict(NamedTuple):
    """One rule in one world."""

    rule: str
    """Its name."""
    threshold: float
    """On its score."""
    precision: float
    """Of the parent features called persisting, the share that is kept; nan when none is called."""
    recall: float
    """Of the kept features the share called."""
    called: dict[str, float]
    """By fate: share called persisting."""


class Judged(NamedTuple):
    """All rules in one world."""

    condition: str
    """Its name."""
    protocol: Protocol
    """How the SAEs were initialized."""
    found: float
    """Share of the parent's true features that its SAE has found."""
    reliability: float
    """Median r of the SAE's features with the true ones they follow."""
    explained_variance: float
    """Of the parent's SAE."""
    ceiling: float
    """Share persisting at r > 0.8 in another SAE of the parent; 1 for a joint one."""
    verdicts: tuple[Verdict, ...]
    """On the parent's features."""
    emerged: dict[str, float]
    """By fate: share of the child's features called emerged at the threshold by evidence."""
    really_new: dict[str, float]
    """By fate, and `unknown` for those that follow no true feature: share of the emerged ones that latent scaling
    confirms as new."""


def calls(
    matches: Matches, by_chance: Floor, ceiling: np.ndarray | None, saes: tuple[Any, Any]
) -> dict[str, tuple[np.ndarray, float]]:
    """By rule: bool [d_parent] persisting, and the threshold on its score."""
    best = matches.parent_r[:, 0]
    halves = split_threshold(best)
    evidence = choose_threshold(best, by_chance.parent_r, [] if ceiling is None else [ceiling]).threshold
    found = scores(matches, one_to_one(*matches[:4]))
    q = q_values(p_values(best, by_chance.parent_r, matches.parent_density))
    rules: dict[str, np.ndarray] = {
        "evidence": best > evidence,
        "r > 0.8": best > PAPER,
        "split": best > halves,
        "more than chance": q <= RATE,
        "mutual": found["mutual"] > evidence,
        "assigned": found["assigned"] > evidence,
    }
    cuts = dict.fromkeys(rules, evidence) | {"r > 0.8": PAPER, "split": halves}
    cuts["more than chance"] = chance_threshold(best, by_chance.parent_r, RATE)
    if ceiling is not None:
        rules["corrected r > 0.8"], cuts["corrected r > 0.8"] = corrected(best, ceiling, ceiling) > PAPER, PAPER
    if saes[0] is not saes[1]:
        parent, child = saes
        rules["decoder cosine"] = cosine_matches(parent.W_dec, child.W_dec, 1).parent_cosine[:, 0] > COSINE
        agreed = shared(parent.W_enc, parent.W_dec, child.W_enc, child.W_dec, COSINE)
        rules["shared"] = by_parent(agreed.pairs, agreed.cosine, len(best)) > COSINE
        cuts |= {"decoder cosine": COSINE, "shared": COSINE}
    return {rule: (call, cuts[rule]) for rule, call in rules.items()}


def judged(condition: Condition, protocol: Protocol, tokens: int, seed: int) -> Judged:
    """Train the SAEs of one world and hold every rule against the truth on `tokens` unseen aligned tokens."""
    world = World(condition.world, seed)
    pair = train_pair(world, protocol, condition.training, tokens, seed)
    truth = label_edge(pair.parent, pair.child, pair.sample, world)
    matches = correlate(pair.parent, pair.child)
    control = pair.parent_control
    ceiling = correlate(pair.parent, control, 1).parent_r[:, 0] if control is not None else None
    by_chance = floor(pair.parent, pair.child, PASSES, seed)
    same = np.where(np.isfinite(matches.parent_r[:, 0]), 1.0, np.nan) if ceiling is None else ceiling
    verdicts = []
    for rule, (call, threshold) in calls(matches, by_chance, same, pair.saes).items():
        found = judge(call, truth)
        shares = {name: group.share for name, group in found.groups.items() if name != "unknown"}
        verdicts.append(Verdict(rule, threshold, found.precision, found.recall, shares))
    cut = verdicts[0].threshold
    emerge = (matches.child_density > 0) & ~(matches.child_r[:, 0] > cut)
    new = _really_new(world, pair, tokens, seed)
    learned = recovery(truth.parent)
    return Judged(
        condition=condition.name,
        protocol=protocol,
        found=learned.share,
        reliability=learned.median_r,
        explained_variance=pair.explained_variance["parent"],
        ceiling=float((same[np.isfinite(same)] > PAPER).mean()),
        verdicts=tuple(verdicts),
        emerged={name: group.share for name, group in judge_new(emerge, truth).groups.items() if name != "unknown"},
        really_new=_shares(new, truth.child_fate, emerge),
    )


def _really_new(world: World, pair: TrainedPair, tokens: int, seed: int) -> np.ndarray:
    """bool [d_child]: whether latent scaling on the parent's activations confirms a child feature as new."""
    x = [torch.from_numpy(world.x(end, tokens, 2 * seed + 1)) for end in ("parent", "child")]
    scaling = LatentScaling(pair.saes[1].W_dec)
    for parts in zip(*(vectors.split(max(1, tokens // 10)) for vectors in x), strict=True):
        codes = [sae.encode_sparse(part) for sae, part in zip(pair.saes, parts, strict=True)]
        hats = [sae.decode_sparse(*code) for sae, code in zip(pair.saes, codes, strict=True)]
        scaling.update(FeatureActs(*codes[1], d_sae=pair.child.d_sae), parts[0], hats[0], parts[1], hats[1])
    return scaling.result().new()


def _shares(call: np.ndarray, fate: np.ndarray, among: np.ndarray) -> dict[str, float]:
    """By fate: share of the features of `among` that the call says yes to."""
    names = {**dict(enumerate(FATES)), UNKNOWN: "unknown"}
    groups = {name: among & (fate == number) for number, name in names.items()}
    return {name: float(call[own].mean()) for name, own in groups.items() if own.any()}


class Rates(NamedTuple):
    """Error rates over many worlds, without SAE training."""

    seeds: int
    """Worlds."""
    nominal: float
    """False discovery rate asked for."""
    false_discoveries: float
    """Mean share of lost features among the features whose match counts as more than chance."""
    power: float
    """Mean share of kept features called."""
    level: float
    """Coverage asked for."""
    r_coverage: float
    """Share of the intervals of r that hold the true r, of features with 100 firings in 30 documents."""
    count_coverage: float
    """Share of the intervals of a count that hold the true count, at .5, .6, .7 and .8."""


def rates(seeds: int, nominal: float = 0.1, progress: Callable[[int, int], None] | None = None) -> Rates:
    """False discoveries and coverage over worlds of noisy codes whose kept features have a true r anywhere in 0 to 1.

    True r are those of a sample twenty times as long.
    """
    config = WorldConfig(kept=160, rotated=0, lost=160, new=160, l0=12, document=48, burst=2.0)
    found: dict[str, list[float]] = {"false": [], "power": [], "r": [], "counts": []}
    for seed in range(seeds):
        world = World(config, seed)
        false, power = _discoveries(world, seed, nominal)
        of_r, of_counts = _covered(world, seed)
        for name, value in zip(found, (false, power, of_r, of_counts), strict=True):
            found[name].append(value)
        if progress:
            progress(seed + 1, seeds)
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    return Rates(seeds, nominal, mean["false"], mean["power"], 0.95, mean["r"], mean["counts"])


def _discoveries(world: World, seed: int, nominal: float) -> tuple[float, float]:
    codes = noisy_codes(world, 16_000, seed, reliability=0.6, miss=0.3, false_fire=0.2)
    found = correlate(codes.parent.acts, codes.child.acts, 1)
    by_chance = floor(codes.parent.acts, codes.child.acts, 2 * PASSES, seed)
    called = q_values(p_values(found.parent_r[:, 0], by_chance.parent_r, found.parent_density, 160)) <= nominal
    fate = world.parent.fate[codes.parent.feature]
    kept = np.isin(fate, KEPT_LIKE)
    return float((fate[called] == LOST).mean()) if called.any() else 0.0, float(called[kept].mean())


def _covered(world: World, seed: int) -> tuple[float, float]:
    """Share of the intervals of r and of counts that hold the truth in one world."""
    documents, thresholds = 400, (0.5, 0.6, 0.7, 0.8)
    wanted = np.random.default_rng((seed, 1)).uniform(0.2, 1.0, world.config.parents)

    def sample(documents: int, seed: int) -> tuple[Jackknife, np.ndarray, FeatureActs, np.ndarray]:
        """Of each parent feature and its partner; the true features behind; the parent's activations and documents."""
        drawn = world.draw(documents * world.config.document, seed)
        rng = np.random.default_rng((seed, 2))
        parent = noisy_code(drawn.parent, rng, 1.0, 0.0, 0.0)
        child = noisy_code(drawn.parent, rng, 0.95, 1 - np.square(wanted), 0.0)
        pairs = np.argsort(child.feature)[parent.feature][:, None]
        moments = group_moments(parent.acts, child.acts, pairs, document_groups(drawn.document, seed=seed))
        return leave_one_out(moments), parent.feature, parent.acts, drawn.document

    jackknife, feature, parent, document = sample(documents, seed)
    huge, other, *_ = sample(_HUGE * documents, 10_000 + seed)
    truth = np.tanh(huge.z[:, 0])[np.argsort(other)][feature]
    found = r_intervals(jackknife)
    often = (parent.firings() >= 100) & (_documents(parent, document) >= 30)
    inside = (found.low <= truth) & (truth <= found.high)
    counts = bootstrap_counts(jackknife, thresholds, 300, seed)
    true_counts = (truth[:, None] > np.array(thresholds)).sum(0)
    return float(inside[often].mean()), float(((counts.low <= true_counts) & (true_counts <= counts.high)).mean())


def _documents(acts: FeatureActs, document: np.ndarray) -> np.ndarray:
    """Documents in which each feature fires, int64 [d_sae]."""
    token = np.repeat(np.arange(acts.tokens), np.diff(acts.indptr))
    pairs = np.unique(np.stack([acts.indices, document[token]]), axis=1)
    return np.bincount(pairs[0], minlength=acts.d_sae)


class Proof(NamedTuple):
    """All of it."""

    worlds: tuple[Judged, ...]
    """Trained worlds."""
    rates: Rates
    """Worlds of noisy codes."""
    tokens: int
    """Unseen aligned tokens of each trained world."""
    seeds: int
    """Repetitions of each trained world."""


def prove(
    conditions: Sequence[Condition],
    protocols: Sequence[Protocol],
    seeds: int,
    rate_seeds: int,
    tokens: int = 30_000,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Hold every rule against planted truth: each condition with each protocol and seed, and error rates."""
    trained = len(conditions) * len(protocols) * seeds
    total, rows = trained + rate_seeds, []
    for condition in conditions:
        for protocol in protocols:
            for seed in range(seeds):
                rows.append(judged(condition, protocol, tokens, seed))
                if progress:
                    progress(len(rows), total)
    found = rates(rate_seeds, progress=lambda done, _: progress(trained + done, total) if progress else None)
    return Proof(tuple(rows), found, tokens, seeds)


def pooled(rows: Sequence[Judged]) -> dict[tuple[str, str, str], dict[str, float]]:
    """By condition, protocol and rule: mean over seeds of precision, recall and the shares called of each fate."""
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for row in rows:
        for verdict in row.verdicts:
            shares = {"precision": verdict.precision, "recall": verdict.recall, **verdict.called}
            found.setdefault((row.condition, row.protocol, verdict.rule), []).append(shares)
    return {
        key: {name: _mean([row[name] for row in same if name in row]) for name in _names(same)}
        for key, same in found.items()
    }


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
