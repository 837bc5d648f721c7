"""How sure r and counts are: intervals against a planted population whose r is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import (
    GROUPS,
    Jackknife,
    bootstrap_counts,
    document_groups,
    group_moments,
    leave_one_out,
    r_intervals,
    ratio_intervals,
)
from worlds import dense_pearson

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
TOPICS = 10


class Population(NamedTuple):
    """Pairs of a parent and a child feature, spread over all of r; every field is float64 [features] but `topic`."""

    density: np.ndarray
    topic: np.ndarray
    topical: np.ndarray  # how much more often a feature fires in documents of its topic
    spread: np.ndarray  # sigma of the lognormal magnitudes
    loudness: np.ndarray  # sigma of a factor on them that a document shares
    kept: np.ndarray  # share of firings the child has too
    jitter: np.ndarray  # sigma of a factor on these
    gain: np.ndarray  # sigma of a factor that a document shares
    spurious: np.ndarray  # density of the child's firings elsewhere

    @property
    def r(self) -> np.ndarray:
        """The population's r, from the moments of the lognormal."""
        p, first, second = self.density, np.exp(self.spread**2 / 2), np.exp(2 * self.spread**2)
        loud, loud2 = np.exp(self.loudness**2 / 2), np.exp(2 * self.loudness**2)
        elsewhere = (1 - p) * self.spurious
        x, xx = p * first * loud, p * second * loud2
        y = p * self.kept * first * loud + elsewhere * first
        yy = p * self.kept * second * loud2 * np.exp(self.jitter**2 + self.gain**2) + elsewhere * second
        return (p * self.kept * second * loud2 - x * y) / np.sqrt((xx - x * x) * (yy - y * y))


def plant(features: int, seed: int, density: tuple[float, float] = (0.015, 0.1)) -> Population:
    rng = np.random.default_rng(seed)
    p = np.exp(rng.uniform(*np.log(density), features))
    return Population(
        density=p, topic=rng.integers(0, TOPICS, features), topical=rng.uniform(1, 6, features),
        spread=rng.uniform(0.3, 0.7, features), loudness=rng.uniform(0, 0.3, features),
        kept=rng.beta(1.3, 0.8, features), jitter=rng.uniform(0.05, 0.5, features),
        gain=rng.uniform(0, 0.3, features), spurious=p * rng.beta(0.7, 2, features),
    )  # fmt: skip


def sample(world: Population, documents: int, seed: int, length: int = 50):
    """Parent acts, child acts and the document of each token. Documents have topics, loudness and gain."""
    rng, features = np.random.default_rng([seed, 1]), len(world.density)
    document = np.repeat(np.arange(documents), length)
    own = rng.integers(0, TOPICS, documents)[:, None] == world.topic
    rate = world.density * np.where(own, world.topical, (1 - world.topical / TOPICS) / (1 - 1 / TOPICS))
    fires = rng.random((len(document), features), np.float32) < rate[document]
    token, feature = np.nonzero(fires)
    loud, gain = (np.exp(sigma * rng.standard_normal(rate.shape)) for sigma in (world.loudness, world.gain))
    x = np.exp(world.spread[feature] * rng.standard_normal(len(token))) * loud[document[token], feature]
    factor = np.exp(world.jitter[feature] * rng.standard_normal(len(token)) - world.jitter[feature] ** 2 / 2)
    factor *= (gain * np.exp(-(world.gain**2) / 2))[document[token], feature]
    parent, child = np.zeros((2, *fires.shape), np.float32)
    parent[token, feature] = x
    child[token, feature] = x * factor * (rng.random(len(token)) < world.kept[feature])
    token, feature = np.nonzero(~fires & (rng.random(fires.shape, np.float32) < world.spurious))
    child[token, feature] = np.exp(world.spread[feature] * rng.standard_normal(len(token)))
    return FeatureActs.from_dense(parent), FeatureActs.from_dense(child), document


def same_index(features: int) -> np.ndarray:
    return np.arange(features)[:, None]


def jackknife_of(
    parent: FeatureActs, child: FeatureActs, document: np.ndarray, groups: int = 60, seed: int = 0, candidates=None
) -> Jackknife:
    candidates = same_index(parent.d_sae) if candidates is None else candidates
    return leave_one_out(group_moments(parent, child, candidates, document_groups(document, groups, seed)))


@pytest.fixture(scope="module")
def small():
    """One sample of a population."""
    return sample(plant(120, 7), 120, 7)


def test_the_planted_r_is_that_of_a_huge_sample():
    world = plant(6, 3, (0.1, 0.2))
    parent, child, _ = sample(world, 3000, 0)
    np.testing.assert_allclose(np.diag(dense_pearson(parent.dense(), child.dense())), world.r, atol=0.04)


def test_95_percent_intervals_contain_the_truth_95_percent_of_the_time():
    """A new world and a new sample each time; r of features with 100 firings in 30 documents."""
    of_r, of_counts = [], []
    for seed in range(16):
        world = plant(200, seed)
        parent, child, document = sample(world, 160, seed)
        jackknife = jackknife_of(parent, child, document, GROUPS, seed)
        found, counts = r_intervals(jackknife), bootstrap_counts(jackknife, THRESHOLDS, 200, seed)
        fired = parent.dense() > 0
        often = (fired.sum(0) >= 100) & (fired.reshape(160, -1, 200).any(1).sum(0) >= 30)
        of_r += ((found.low <= world.r) & (world.r <= found.high))[often].tolist()
        truth = (world.r[:, None] > THRESHOLDS).sum(0)
        of_counts.append((counts.low <= truth) & (truth <= counts.high))
    # 16 samples, in which thresholds and features of a topic depend on each other: bands for that size.
    assert len(of_r) > 3000 and 0.93 < np.mean(of_r) < 0.98
    assert 0.86 < np.mean(of_counts) <= 1


def test_intervals_narrow_with_the_number_of_documents():
    world, widths = plant(100, 1), []
    for documents in (60, 240):
        jackknife = jackknife_of(*sample(world, documents, 0))
        r, counts = r_intervals(jackknife), bootstrap_counts(jackknife, THRESHOLDS, 200)
        widths.append((np.nanmedian(r.high - r.low), (counts.high - counts.low).sum()))
    ratio = np.divide(*widths)
    assert 1.5 < ratio[0] < 2.7 and ratio[1] > 1.2


def test_documents_that_differ_widen_the_interval_that_tokens_alone_would_give():
    world = plant(120, 7)._replace(gain=np.full(120, 0.8), loudness=np.full(120, 0.5))
    parent, child, document = sample(world, 120, 0)
    found = [r_intervals(jackknife_of(parent, child, one)) for one in (document, np.arange(parent.tokens))]
    width, narrow = (each.high - each.low for each in found)
    assert np.nanmedian(width / narrow) > 1.1


def test_leaving_a_group_out_equals_matching_without_it():
    parent, child, document = sample(plant(30, 7), 60, 7)
    group = document_groups(document, 12)
    candidates = np.random.default_rng(0).integers(-1, 30, (30, 3))
    candidates[:, 0] = np.arange(30)
    jackknife = jackknife_of(parent, child, document, 12, candidates=candidates)

    def plain(chosen):
        r = dense_pearson(parent.where(chosen).dense(), child.where(chosen).dense())[same_index(30), candidates]
        return np.arctanh(np.where(candidates < 0, np.nan, r))

    np.testing.assert_allclose(jackknife.z, plain(group >= 0), atol=1e-9)
    without = np.stack([plain(group != g) for g in range(12)])
    known = np.isfinite(without).all(0)
    np.testing.assert_allclose(jackknife.deviation, np.where(known, without.mean(0) - without, 0), atol=1e-9)
    np.testing.assert_allclose(jackknife.bias[known], 11 * (without.mean(0) - plain(group >= 0))[known], atol=1e-7)
    assert known[:, 0].all() and (jackknife.effective[~known] == 0).all() and (jackknife.effective[known] > 1).all()


def test_draws_move_like_plainly_resampled_counts(small):
    jackknife = jackknife_of(*small, candidates=np.stack([np.arange(120), np.roll(np.arange(120), 1)], 1))
    thresholds, plain = np.array([0.8, 0.3, 0.6]), []
    found, groups = bootstrap_counts(jackknife, thresholds, 100, seed=3), len(jackknife.deviation)
    for drawn in np.random.default_rng(3).multinomial(groups, np.full(groups, 1 / groups), 100):
        moved = jackknife.z + jackknife.bias + np.tensordot(drawn, jackknife.deviation, 1)
        best = np.where(np.isfinite(moved), moved, -np.inf).max(1)
        plain.append((np.tanh(best)[:, None] > thresholds).sum(0))
    plain = np.array(plain)
    for k in range(3):
        assert np.corrcoef(found.draws[:, k], plain[:, k])[0, 1] == pytest.approx(1)
        # Extrapolation and doubt about it only add to the spread of the resampled counts.
        assert 1 < found.draws[:, k].std() / plain[:, k].std() < 1.5


def test_extrapolation_takes_out_the_bias_that_noise_gives_a_count():
    # The density of z falls at the threshold, so noise carries more of them over it than under.
    features, groups, noise = 4000, 50, 0.15
    rng = np.random.default_rng(0)
    truth = rng.normal(0.7, 0.3, features)
    deviation = rng.standard_normal((groups, features, 1)) * noise / np.sqrt(groups)
    z = (truth + noise * rng.standard_normal(features))[:, None]
    planted = Jackknife(z, np.zeros_like(z), deviation, np.full_like(z, 20.0), np.zeros(z.shape, np.int32))
    found, wanted = bootstrap_counts(planted, (0.85,), 400), (np.tanh(truth) > 0.85).sum()
    assert found.seen[0] - wanted > 40 and abs(found.corrected[0] - wanted) < 25
    assert found.low[0] <= wanted < found.seen[0] <= found.high[0]


def test_counts_are_whole_between_0_and_live_and_around_the_plain_count(small):
    found = bootstrap_counts(jackknife_of(*small), THRESHOLDS, 200)
    r = np.diag(dense_pearson(small[0].dense(), small[1].dense()))
    np.testing.assert_array_equal(found.seen, (r[:, None] > THRESHOLDS).sum(0))
    assert found.low.dtype == found.high.dtype == np.int64
    assert (found.low >= 0).all() and (found.high <= 120).all()
    assert (found.low < found.seen).all() and (found.seen < found.high).all()


def test_resamples_follow_from_the_seed(small):
    jackknife = jackknife_of(*small)
    first, again, other = (bootstrap_counts(jackknife, THRESHOLDS, 100, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert (first.draws != other.draws).any()
    one_by_one = [bootstrap_counts(jackknife, (t,), 100, 1).draws[:, 0] for t in THRESHOLDS]
    np.testing.assert_allclose(first.draws, np.stack(one_by_one, 1))


def test_what_documents_do_to_both_counts_cancels_in_their_ratio(small):
    parent, child, document = small
    counts = bootstrap_counts(jackknife_of(*small), THRESHOLDS[:4], 200)
    np.testing.assert_allclose(ratio_intervals(counts, counts), 1)
    noise = np.random.default_rng(0).lognormal(0, 0.4, child.n)
    noisier = FeatureActs(child.indptr, child.indices, child.values * noise, 120)
    edge = bootstrap_counts(jackknife_of(parent, noisier, document), THRESHOLDS[:4], 200)
    ratio, low, high = ratio_intervals(edge, counts)
    np.testing.assert_allclose(ratio, edge.seen / counts.seen)
    assert (low <= ratio).all() and (ratio <= high).all() and (low >= 0).all()
    apart = edge.seen / counts.seen * np.hypot(*((c.draws.std(0) / c.corrected) for c in (edge, counts)))
    assert np.median((high - low) / (2 * 1.99 * apart)) < 0.95
    none = bootstrap_counts(jackknife_of(*small), (0.9999,), 100)
    assert none.seen[0] == none.high[0] == 0
    assert np.isnan(ratio_intervals(bootstrap_counts(jackknife_of(*small), (0.5,), 100), none)).all()


def test_the_best_of_several_candidates_is_taken(small):
    worse = np.stack([np.full(120, -1), np.roll(np.arange(120), 1), np.arange(120)], 1)
    found, alone = (r_intervals(jackknife_of(*small, candidates=each)) for each in (worse, None))
    clear = alone.r > 0.2
    assert clear.sum() > 80
    np.testing.assert_array_equal(found.match[clear], np.flatnonzero(clear))
    for name in ("r", "low", "high"):
        np.testing.assert_allclose(getattr(found, name)[clear], getattr(alone, name)[clear])


def test_features_of_one_group_and_silent_ones_get_no_interval_and_copies_a_sure_one():
    rng = np.random.default_rng(0)
    dense = rng.lognormal(0, 1, (400, 4)) * (rng.random((400, 4)) < 0.3)
    document = np.arange(400) // 10
    dense[:, 1] *= document_groups(document, 20) == 3
    dense[:, 2] = 0
    child = dense * [2.0, 1.0, 1.0, 1.0]
    child[:, 1] *= 1 + rng.random(400)
    parent, child = FeatureActs.from_dense(dense), FeatureActs.from_dense(child)
    jackknife = jackknife_of(parent, child, document, 20, candidates=np.array([[0], [1], [2], [-1]]))
    found, counts = r_intervals(jackknife), bootstrap_counts(jackknife, (0.5,), 100)
    np.testing.assert_array_equal(found.match, [0, 1, -1, -1])
    assert (found.r[0], found.low[0], found.high[0]) == pytest.approx((1, 1, 1))
    assert found.r[1] > 0.5 and np.isnan([found.low[1], found.high[1]]).all() and found.effective[1] == 0
    assert np.isnan([found.r[2:], found.low[2:], found.high[2:]]).all()
    assert counts.seen[0] == 2


def test_documents_are_dealt_whole_at_random_and_evenly():
    rng = np.random.default_rng(0)
    documents = np.repeat(rng.permutation(1000) * 7 - 50, rng.integers(1, 40, 1000))
    group = document_groups(documents, 64, seed=1)
    assert all(len(np.unique(group[documents == d])) == 1 for d in np.unique(documents)[::50])
    assert len(np.unique(documents * 64 + group)) == 1000
    tokens = np.bincount(group)
    assert len(tokens) == 64 and tokens.max() - tokens.min() < 80
    np.testing.assert_array_equal(group, document_groups(documents, 64, seed=1))
    assert (group != document_groups(documents, 64, seed=2)).mean() > 0.9
    assert np.bincount(document_groups(np.arange(300) // 20)).tolist() == [20] * 15


def test_samples_and_candidates_that_do_not_fit_are_refused(small):
    parent, child, document = small
    group, rows = document_groups(document, 60), same_index(120)
    for given, message in (
        ((rows, group[:100]), "group 100"),
        ((rows[:7], group), "give each of 120 features"),
        ((rows + 1, group), "run to 120; give each of 120 features some of 120"),
    ):
        with pytest.raises(ValueError, match=message):
            group_moments(parent, child, *given)
