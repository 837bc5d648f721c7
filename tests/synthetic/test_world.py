"""A planted world has the statistics its configuration specifies."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.synthetic.world import (
    BLOCK,
    FAINT,
    FATES,
    KEPT,
    LOST,
    MERGED,
    NEW,
    NOISY,
    ROTATED,
    SPLIT,
    Rates,
    Sample,
    World,
    WorldConfig,
    coin,
    fire,
)

COUNTS = {"kept": 40, "rotated": 20, "faint": 10, "noisy": 20, "split": 10, "merged": 10, "lost": 40, "new": 50}
TOKENS = 40_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(d=32, **COUNTS, l0=8, burst=2), seed=3)


@pytest.fixture(scope="module")
def sample(world: World) -> Sample:
    return world.draw(TOKENS, seed=4)


def r_between(a: FeatureActs, b: FeatureActs) -> np.ndarray:
    """r of every pair, by the definition."""
    z = [acts.dense() for acts in (a, b)]
    z = [(x - x.mean(0)) / x.std(0) for x in z]
    return z[0].T @ z[1] / a.tokens


def test_every_fate_has_the_features_asked_for(world):
    expected = {name: COUNTS[name] for name in FATES[:-1]} | {"merged": 20}
    for label, name in enumerate(FATES[:-1]):
        assert (world.parent.fate == label).sum() == expected[name]
    expected = {name: COUNTS[name] for name in FATES if name != "lost"} | {"split": 20}
    for label, name in enumerate(FATES):
        assert (world.child.fate == label).sum() == expected.get(name, 0)
    assert len(world.parent.fate) == world.config.parents == 160
    assert len(world.child.fate) == world.config.children == 170


def test_the_order_of_features_says_nothing_about_fates(world):
    assert abs(np.corrcoef(np.arange(160), world.parent.fate)[0, 1]) < 0.25
    assert not np.array_equal(world.parent.partners[:, 0], np.arange(160))


def test_partners_agree_from_both_ends(world):
    links = {(p, c) for p, row in enumerate(world.parent.partners) for c in row if c >= 0}
    assert links == {(p, c) for c, row in enumerate(world.child.partners) for p in row if p >= 0}
    assert all(world.parent.fate[p] == world.child.fate[c] for p, c in links)
    two, none = (world.parent.partners >= 0).all(1), (world.parent.partners < 0).all(1)
    assert set(world.parent.fate[two]) == {SPLIT} and set(world.parent.fate[none]) == {LOST}
    two, none = (world.child.partners >= 0).all(1), (world.child.partners < 0).all(1)
    assert set(world.child.fate[two]) == {MERGED} and set(world.child.fate[none]) == {NEW}


def test_directions_are_unit_rows_and_follow_the_fates(world):
    cosine = world.parent.directions @ world.child.directions.T
    np.testing.assert_allclose(np.linalg.norm(world.child.directions, axis=1), 1, atol=1e-6)
    first = cosine[np.arange(160), world.parent.partners[:, 0]]
    for fate in (KEPT, FAINT, NOISY):
        np.testing.assert_allclose(first[world.parent.fate == fate], 1, atol=1e-6)
    assert np.abs(first[world.parent.fate == ROTATED]).mean() < 0.3
    split = world.parent.fate == SPLIT
    halves = np.take_along_axis(cosine[split], world.parent.partners[split], axis=1)
    np.testing.assert_allclose(halves.max(1), 1, atol=1e-6)
    assert halves.min(1).max() < 0.7
    merged = world.child.partners[world.child.fate == MERGED]
    to_both = cosine[merged, np.flatnonzero(world.child.fate == MERGED)[:, None]]
    np.testing.assert_allclose(to_both[:, 0], to_both[:, 1], atol=1e-6)


def test_densities_and_l0_are_those_asked_for(world, sample):
    assert world.parent.density.sum() == pytest.approx(8)
    assert sample.parent.l0 == pytest.approx(8, rel=0.02) and sample.child.l0 == pytest.approx(
        world.child.density.sum(), rel=0.02
    )
    for model, acts in ((world.parent, sample.parent), (world.child, sample.child)):
        # Documents make counts vary more than coins would: by 1 + document x density x (burst - 1).
        deviation = np.sqrt(TOKENS * model.density * (1 + 64 * model.density))
        z = (acts.firings() - TOKENS * model.density) / deviation
        assert np.abs(z).max() < 5 and 0.7 < z.std() < 1.3


def test_densities_follow_a_power_law_with_a_share_of_rare_features():
    config = WorldConfig(kept=400, rotated=0, lost=0, new=0, l0=10, rarity=0.8, rare=0.25, rare_density=1e-4)
    density = np.sort(World(config, 0).parent.density)[::-1]
    assert density.sum() == pytest.approx(10) and (density == 1e-4).sum() == 100
    logs = np.log(density[:300])
    slope = np.polyfit(np.log(np.arange(1, 301)), logs, 1)[0]
    assert slope == pytest.approx(-0.9, abs=0.15)  # leaving out a quarter of the ranks makes it a little steeper
    flat = World(WorldConfig(rarity=0), 0).parent.density
    np.testing.assert_allclose(flat, flat[0])
    assert World(WorldConfig(kept=20, lost=20, l0=15, rarity=3), 0).parent.density.max() == 0.5


def test_magnitudes_are_lognormal_with_mean_one(world, sample):
    logs = np.log(sample.parent.values)
    assert logs.std() == pytest.approx(0.5, rel=0.01) and sample.parent.values.mean() == pytest.approx(1, rel=0.01)


def test_both_ends_fire_alike_except_as_the_fates_say(world, sample):
    parent, child = sample.parent.dense(), sample.child.dense()
    for p, (fate, (first, second)) in enumerate(zip(world.parent.fate, world.parent.partners, strict=True)):
        if fate in (KEPT, ROTATED):
            np.testing.assert_array_equal(parent[:, p], child[:, first])
        elif fate == FAINT:
            np.testing.assert_allclose(0.3 * parent[:, p], child[:, first], rtol=1e-6)
        elif fate == SPLIT:
            np.testing.assert_array_equal(parent[:, p], child[:, first] + child[:, second])
            assert not (child[:, first] * child[:, second]).any()
            assert (child[:, first] > 0).sum() / (parent[:, p] > 0).sum() == pytest.approx(0.5, abs=0.1)
    for c in np.flatnonzero(world.child.fate == MERGED):
        np.testing.assert_array_equal(child[:, c], parent[:, world.child.partners[c]].max(1))


def test_noisy_features_have_their_r_and_lost_and_new_ones_none(world, sample):
    r = r_between(sample.parent, sample.child)
    noisy = np.flatnonzero(world.parent.fate == NOISY)
    across = r[noisy, world.parent.partners[noisy, 0]]
    assert across.mean() == pytest.approx(0.7, abs=0.02) and np.abs(across - 0.7).max() < 0.1
    assert np.abs(r[world.parent.fate == LOST]).max() < 0.05
    assert np.abs(r[:, world.child.fate == NEW]).max() < 0.05
    best = correlate(sample.parent, sample.child, top=1)
    has = world.parent.fate != LOST
    assert (best.parent_match[has] == world.parent.partners[has]).any(1).all()


@pytest.mark.parametrize("noisy_r", [0.0, 1.0])
def test_noisy_features_at_the_extremes_are_kept_or_lost(noisy_r):
    sample = World(WorldConfig(kept=0, rotated=0, noisy=20, lost=0, new=0, l0=1, noisy_r=noisy_r), 0).draw(20_000, 0)
    best = correlate(sample.parent, sample.child, top=1).parent_r
    assert (best > 0.999).all() if noisy_r else (best < 0.1).all()


def mean_absolute_r(overlap: float) -> float:
    """Mean of |r| over pairs of different features of one model."""
    config = WorldConfig(kept=60, rotated=0, lost=0, new=0, l0=3, rarity=0, overlap=overlap, topics=4, burst=1)
    acts = World(config, 0).draw(40_000, 1).parent
    return float(np.abs(r_between(acts, acts)[~np.eye(60, dtype=bool)]).mean())


def test_unrelated_features_correlate_more_with_more_overlap():
    none, some, much = (mean_absolute_r(overlap) for overlap in (0.0, 0.5, 1.0))
    assert none < 0.006 < some < much
    # Density p: r = p (topics − 1) / (E m² − p) for two features of one topic, −p / (E m² − p) for others.
    unit = 0.05 / (np.exp(0.25) - 0.05)
    assert much == pytest.approx(unit * (0.25 * 3 + 0.75), rel=0.15)


def overdispersion(sample: Sample) -> float:
    """Variance of a document's firings of a feature over that of independent tokens; the mean over features."""
    counts = np.add.reduceat(sample.parent.dense() > 0, np.arange(0, sample.parent.tokens, 64), axis=0)
    density = sample.parent.density()
    return float((counts.var(0) / (64 * density * (1 - density))).mean())


def test_tokens_of_a_document_depend_on_each_other_by_bursts():
    config = {"kept": 60, "rotated": 0, "lost": 0, "new": 0, "l0": 3, "rarity": 0}
    alone = World(WorldConfig(**config, burst=1), 0).draw(64_000, 1)
    gathered = World(WorldConfig(**config, burst=4), 0).draw(64_000, 1)
    assert overdispersion(alone) == pytest.approx(1, abs=0.05)
    # A document that suits fires at 4 p, one in four does: variance over independent coins' 1 + (64 p − p) 3 / (1 − p).
    expected = (1 - 4 * 0.05 + 64 * 0.05 * 3) / (1 - 0.05)
    assert overdispersion(gathered) == pytest.approx(expected, rel=0.05)
    assert gathered.parent.l0 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.4])
def test_noise_has_its_share_of_the_variance(noise):
    world = World(WorldConfig(d=64, faint=20, split=10, merged=5, noise=noise, burst=1), 5)
    sample = world.draw(TOKENS, 6)
    for end, model, acts in (("parent", world.parent, sample.parent), ("child", world.child, sample.child)):
        x = world.x(end, TOKENS, 6)
        error = x - acts.dense() @ model.directions
        share = error.var(0).sum(dtype=float) / x.var(0).sum(dtype=float)
        assert share == pytest.approx(noise, rel=0.1, abs=1e-9)


def test_noise_is_independent_at_the_two_ends(world, sample):
    errors = [world.x("parent", TOKENS, 4) - sample.parent.dense() @ world.parent.directions]
    errors.append(world.x("child", TOKENS, 4) - sample.child.dense() @ world.child.directions)
    r = np.corrcoef(errors[0].ravel(), errors[1].ravel())[0, 1]
    assert abs(r) < 0.01 and errors[0].std() > 0


def test_a_longer_sample_continues_a_shorter_one(world, sample):
    np.testing.assert_array_equal(sample.document, np.arange(TOKENS) // 64)
    shorter = world.draw(BLOCK + 9, 4)
    np.testing.assert_array_equal(shorter.document, sample.document[: BLOCK + 9])
    for again, first in ((shorter.parent, sample.parent), (shorter.child, sample.child)):
        np.testing.assert_array_equal(again.values, first.rows(0, BLOCK + 9).values)
        np.testing.assert_array_equal(again.indices, first.rows(0, BLOCK + 9).indices)
    for end in ("parent", "child"):
        np.testing.assert_array_equal(world.x(end, BLOCK + 9, 4), world.x(end, TOKENS, 4)[: BLOCK + 9])


def test_seeds_decide_everything(world, sample):
    again = World(world.config, 3)
    np.testing.assert_array_equal(again.child.directions, world.child.directions)
    np.testing.assert_array_equal(again.draw(9_000, 4).child.values, sample.child.rows(0, 9_000).values)
    assert not np.array_equal(World(world.config, 5).child.fate, world.child.fate)
    other = world.draw(9_000, 5)
    assert np.abs(r_between(other.parent, sample.parent.rows(0, 9_000))).max() < 0.2


def test_firings_agree_with_a_plain_walk():
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 3, 12)
    rates = Rates(rng.integers(0, 3, 9), rng.uniform(0, 0.5, 9), rng.uniform(0, 0.1, 9), rng.uniform(1, 3, 9))
    rates.outside[4] = 0
    token, source = fire(rates, topic, 10, np.random.default_rng(1))
    plain = np.random.default_rng(1)
    salt = plain.integers(0, 2**64, dtype=np.uint64)
    found = []
    for s in range(9):
        own = [d for d in range(12) if topic[d] == rates.topic[s]]
        behind = [d for d in np.argsort(topic, kind="stable") if topic[d] > rates.topic[s]]
        before = [d for d in np.argsort(topic, kind="stable") if topic[d] < rates.topic[s]]
        for rate, documents in ((rates.within[s], own), (rates.outside[s], behind + before)):
            place = 0.0
            while rate > 0:
                place -= np.log(1 - plain.random()) / rate
                if place >= 10 * len(documents):
                    break
                number, at = divmod(int(place), 10)
                if coin(documents[number], s, salt) < 1 / rates.burst[s]:
                    found.append((documents[number] * 10 + at, s))
                else:
                    place = 10.0 * (number + 1)
    assert sorted(set(found)) == list(zip(token.tolist(), source.tolist(), strict=True))
    assert len(token) >= 50


def test_coins_are_uniform_and_unrelated():
    coins = np.array([[coin(d, s, np.uint64(7)) for d in range(100)] for s in range(100)])
    assert coins.min() >= 0 and coins.max() < 1
    assert coins.mean() == pytest.approx(0.5, abs=0.01) and coins.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
    r = np.corrcoef(coins)
    assert np.abs(r[~np.eye(100, dtype=bool)]).max() < 0.45
    assert r[~np.eye(100, dtype=bool)].std() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": -1}, "kept=-1 must lie between 0 and inf"),
        ({"burst": 0.5}, "burst=0.5 must lie between 1 and inf"),
        ({"overlap": 1.5}, "overlap=1.5"),
        ({"noise": 1.0}, "noise=1.0"),
        ({"document": 20_000}, "document=20000"),
        ({"faint_strength": 0.0}, "faint_strength=0.0"),
        ({"rare_density": 0.0}, "rare_density=0.0"),
        ({"kept": 0, "rotated": 0, "lost": 0}, "0 parent"),
        ({"l0": 0.0}, "l0=0.0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**change)


def test_an_l0_out_of_reach_and_empty_samples_are_refused(world):
    with pytest.raises(ValueError, match="l0=90 is out of reach"):
        World(WorldConfig(l0=90), 0)
    with pytest.raises(ValueError, match="l0=1 is out of reach"):
        World(WorldConfig(l0=1, rare=1, rare_density=0.1), 0)
    with pytest.raises(ValueError, match="tokens=0"):
        world.draw(0, 0)
