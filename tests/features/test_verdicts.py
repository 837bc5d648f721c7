"""Effects against dense least squares and known edits; verdicts at their margins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.transmission import Effects, Predictor, Regression, centered_products, mapped
from heredity.features.verdicts import (
    CHANGED_R,
    KEPT_R,
    LOST_MATCH,
    VERDICTS,
    Followed,
    judge,
    owned,
    reason,
    same_r,
    share_interval,
)

TOKENS, FEATURES, D, DOCUMENT = 12_000, 40, 16, 40
RNG = np.random.default_rng(0)
DOCUMENTS = np.arange(TOKENS) // DOCUMENT


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense_acts(seed: int = 0, tokens: int = TOKENS) -> np.ndarray:
    """Independent features of density .08 with lognormal magnitudes."""
    rng = np.random.default_rng(seed)
    return (rng.random((tokens, FEATURES)) < 0.08) * rng.lognormal(0, 0.5, (tokens, FEATURES))


def noise(seed: int, tokens: int = TOKENS) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((tokens, D))


DIRECTIONS = unit(RNG.standard_normal((FEATURES, D)))
DENSE = dense_acts()
ACTS = FeatureActs.from_dense(DENSE)
OWN = DENSE @ DIRECTIONS + noise(1)


def effects(
    acts: FeatureActs,
    own: np.ndarray,
    image: np.ndarray,
    other: np.ndarray,
    documents: np.ndarray,
    seed: int = 0,
    **given: Any,
) -> Effects:
    weight = np.linalg.lstsq(own - own.mean(0), image - image.mean(0))[0]
    return Regression(acts, own, documents, seed).effects(weight, other, **given)


def relative(other_directions: np.ndarray, image: np.ndarray | None = None) -> Effects:
    """Effects in another model that writes these directions, with noise of its own."""
    other = DENSE @ other_directions + noise(2)
    return effects(ACTS, OWN, OWN if image is None else image, other, DOCUMENTS)


def test_effects_equal_a_dense_regression_with_the_same_ridge():
    other = DENSE @ (DIRECTIONS * np.linspace(0, 2, FEATURES)[:, None]) + noise(2)
    result = effects(ACTS, OWN, OWN, other, DOCUMENTS)
    x = DENSE.astype(np.float32).astype(np.float64)
    x = x - x.mean(0)
    gram = x.T @ x
    rows = {}
    for name, y in (("own", OWN), ("other", other)):
        rows[name] = np.linalg.solve(gram + 1e-3 * np.median(np.diag(gram)) * np.eye(FEATURES), x.T @ (y - y.mean(0)))
    length = {name: np.linalg.norm(each, axis=1) for name, each in rows.items()}
    cosine = (rows["own"] * rows["other"]).sum(1) / (length["own"] * length["other"])
    large = np.arange(FEATURES) > 4  # of the others a squared length is mostly its variance, which is taken off
    np.testing.assert_allclose(result.strength[large], (length["other"] / length["own"])[large], rtol=2e-3)
    np.testing.assert_allclose(result.direction[large], cosine[large], atol=2e-3)
    np.testing.assert_allclose(result.transmission, result.strength * result.direction)


def test_errors_are_the_spread_over_other_documents():
    scales = np.linspace(0.5, 1.5, FEATURES)[:, None]
    estimates, errors = [], []
    for seed in range(30):
        dense = dense_acts(100 + seed, 4000)
        own, other = dense @ DIRECTIONS + noise(200 + seed, 4000), dense @ (DIRECTIONS * scales) + noise(seed, 4000)
        result = effects(FeatureActs.from_dense(dense), own, own, other, DOCUMENTS[:4000], seed)
        estimates.append([result.strength, result.transmission])
        errors.append([result.strength_error, result.transmission_error])
    ratio = np.sqrt(np.square(errors).mean((0, 2))) / np.sqrt(np.var(estimates, axis=0, ddof=1).mean(1))
    np.testing.assert_allclose(ratio, 1, atol=0.15)


def test_a_rotation_of_the_other_models_space_is_no_change():
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))[0]
    weight, bias = Predictor(OWN).to(OWN @ turn)
    np.testing.assert_allclose(weight, turn, atol=1e-4)
    np.testing.assert_allclose(mapped(OWN, weight, bias), OWN @ weight + bias, rtol=1e-5, atol=1e-6)
    other = (OWN @ turn).astype(np.float32)
    products = centered_products(other, OWN)
    for given, plain in zip(Predictor(OWN).to(other, products.T), Predictor(OWN).to(other), strict=True):
        np.testing.assert_allclose(given, plain, rtol=1e-12, atol=1e-12)
    result = relative(DIRECTIONS @ turn, OWN @ weight + bias)
    np.testing.assert_allclose(result.transmission, 1, atol=0.03)


def test_scaling_a_feature_gives_its_strength_and_removing_it_no_transmission():
    edited = DIRECTIONS.copy()
    edited[3] *= 0.4
    edited[5] = 0
    edited[7] = unit(np.random.default_rng(4).standard_normal((1, D)) - DIRECTIONS[7])
    result = relative(edited)
    assert result.strength[3] == pytest.approx(0.4, abs=0.02) and result.direction[3] > 0.98
    assert result.strength[5] < 0.05 and abs(result.transmission[5]) < 0.02
    cosine = float(edited[7] @ DIRECTIONS[7])
    assert result.strength[7] == pytest.approx(1, abs=0.02) and result.direction[7] == pytest.approx(cosine, abs=0.03)
    rest = np.setdiff1d(np.arange(FEATURES), [3, 5, 7])
    np.testing.assert_allclose(result.transmission[rest], 1, atol=0.03)


def test_the_lost_half_of_a_pair_that_fires_together_is_lost():
    rng = np.random.default_rng(5)
    dense = DENSE.copy()
    dense[:, 1] = np.where(rng.random(TOKENS) < 0.85, dense[:, 0] > 0, False) * rng.lognormal(0, 0.5, TOKENS)
    acts, edited = FeatureActs.from_dense(dense), DIRECTIONS.copy()
    edited[1] = 0
    own, other = dense @ DIRECTIONS + noise(1), dense @ edited + noise(2)
    result = effects(acts, own, own, other, DOCUMENTS)
    ones = np.ones(FEATURES)
    follows = np.where(np.arange(FEATURES) == 1, 0.4, 1.0)
    verdict = judge(result, ones > 0, *[Followed.exactly(follows)] * 2).verdict
    assert verdict[1] == VERDICTS.index("lost") and (np.delete(verdict, 1) == VERDICTS.index("kept")).all()
    assert abs(result.transmission[1]) < 0.05


def test_what_fires_together_in_the_other_model_alone_is_left_out_of_the_remainder():
    rng = np.random.default_rng(7)
    edited, new = DIRECTIONS.copy(), rng.standard_normal((1, D))
    new = unit(new - new @ DIRECTIONS[2] * DIRECTIONS[2])
    edited[2] = 0
    fires = ((DENSE[:, 2] > 0) & (rng.random(TOKENS) < 0.9)) * 1.0
    alone = fires[:, None] * new
    other = DENSE @ edited + alone + noise(2)
    result = effects(ACTS, OWN, OWN, other, DOCUMENTS, alone=alone)
    without = effects(ACTS, OWN, OWN, other, DOCUMENTS)
    assert result.strength[2] > 0.6 and result.remainder[2] < 0.05
    np.testing.assert_array_equal(without.remainder, without.strength)
    np.testing.assert_array_equal(without.strength, result.strength)
    ones = np.ones(FEATURES)
    follows = np.where(np.arange(FEATURES) == 2, 0.2, 1.0)
    for effect, called in ((result, "lost"), (without, "changed")):
        verdict = judge(effect, ones > 0, *[Followed.exactly(follows)] * 2).verdict
        assert verdict[2] == VERDICTS.index(called) and (np.delete(verdict, 2) == VERDICTS.index("kept")).all()


def test_a_latent_that_writes_a_neighbor_as_well_is_lost_where_only_the_neighbor_is_left():
    d, rng = 256, np.random.default_rng(8)
    directions, neighbor = unit(rng.standard_normal((FEATURES, d))), unit(rng.standard_normal((1, d)))
    fires = (DENSE[:, 2] > 0) * 1.0  # the neighbor, which no feature follows, wherever feature 2 does
    spread = [0.05 * np.random.default_rng(seed).standard_normal((TOKENS, d)) for seed in (1, 2)]
    left = DENSE.copy()
    left[:, 2] = 0
    own, lost, kept = (x @ directions + fires[:, None] * neighbor for x in (DENSE, left, DENSE))
    ones, follows = np.ones(FEATURES), np.where(np.arange(FEATURES) == 2, 0.6, 1.0)

    def verdict(other: np.ndarray, shared: bool, elsewhere: float = 0.9) -> str:
        given = {"directions": (directions, directions), "shared": (neighbor, neighbor) if shared else None}
        effect = effects(ACTS, own + spread[0], own + spread[0], other + spread[1], DOCUMENTS, **given)
        result = judge(effect, ones > 0, *[Followed.exactly(follows)] * 2, elsewhere * ones).verdict
        assert (np.delete(result, 2) == VERDICTS.index("kept")).all()
        return VERDICTS[result[2]]

    assert verdict(lost, shared=True) == "lost" and verdict(lost, shared=False) == "changed"
    assert verdict(kept, shared=True) != "lost"
    assert verdict(lost, shared=True, elsewhere=0.6) == "changed", "its match may be the whole it is half of"


def test_a_feature_that_hardly_fires_has_no_effect():
    dense = DENSE.copy()
    dense[:, 0] = 0
    dense[:9, 0] = 1
    result = effects(FeatureActs.from_dense(dense), OWN, OWN, OWN, DOCUMENTS)
    assert np.isnan(result.strength[0]) and np.isfinite(result.strength[1:]).all()
    silent = FeatureActs.from_dense(np.zeros((TOKENS, 3)))
    assert np.isnan(effects(silent, OWN, OWN, OWN, DOCUMENTS).transmission).all()


def test_effects_that_are_wanted_are_those_of_all():
    other = DENSE @ (DIRECTIONS * np.linspace(0, 2, FEATURES)[:, None]) + noise(2)
    regression, wanted = Regression(ACTS, OWN, DOCUMENTS), np.arange(FEATURES) % 3 == 0
    every, some = regression.effects(np.eye(D), other), regression.effects(np.eye(D), other, wanted=wanted)
    for name, one, all_of in zip(Effects._fields, some, every, strict=True):
        if name != "groups":
            np.testing.assert_allclose(one[wanted], all_of[wanted], rtol=1e-4, err_msg=name)
            assert np.isnan(one[~wanted]).all()


def test_errors_in_single_precision_are_those_in_double():
    other = DENSE @ (DIRECTIONS * np.linspace(0, 2, FEATURES)[:, None]) + noise(2)
    regression = Regression(ACTS, OWN, DOCUMENTS)
    single, exactly = regression.effects(np.eye(D), other), Regression(ACTS, OWN, DOCUMENTS)
    exactly._inverse = exactly._exact
    for name, one, exact in zip(Effects._fields, single, exactly.effects(np.eye(D), other), strict=True):
        np.testing.assert_allclose(one, exact, rtol=2e-4, err_msg=name)


def test_effects_refuse_samples_that_do_not_fit():
    with pytest.raises(ValueError, match="give the same"):
        effects(ACTS, OWN[1:], OWN[1:], OWN, DOCUMENTS)
    with pytest.raises(ValueError, match="of one document"):
        effects(ACTS, OWN, OWN, OWN, np.zeros(TOKENS))


def test_least_squares_leaves_constant_dimensions_at_zero():
    x = np.concatenate([OWN, np.full((TOKENS, 1), 3.0)], axis=1)
    weight, bias = Predictor(x).to(OWN + 1)
    np.testing.assert_allclose(weight[-1], 0, atol=1e-9)
    np.testing.assert_allclose(x @ weight + bias, OWN + 1, atol=1e-3)


GROUPS = 16
T = float(stats.t(GROUPS - 1).ppf(0.95))


def judged(
    strength: float = 1,
    direction: float = 1,
    error: float = 0.01,
    match_r: float = 0.9,
    map_r: float = 0.9,
    readable: float | None = None,
    within: float = 0,
) -> str:
    """The verdict on one feature among forty that are as they were."""
    many = np.ones(41)
    s, c = many.copy(), many.copy()
    s[0], c[0] = strength, direction
    errors = np.full(41, error)
    none = [np.full(41, np.nan)] * 6  # neither retained nor residual
    effect = Effects(s, errors, c, errors, s * c, errors, s, errors, *none, many, groups=GROUPS)
    r = [np.where(np.arange(41) == 0, mine, 0.9) for mine in (match_r, map_r)]
    followed = [Followed(each, each - within, each + within) for each in r]
    read = None if readable is None else (np.where(np.arange(41) == 0, readable, 1.0), 0.02 * many, 8)
    return VERDICTS[judge(effect, many > 0, *followed, read=read).verdict[0]]


def test_verdicts_at_their_margins():
    assert judged() == "kept"
    assert judged(strength=0.5 + 0.01 * T + 0.001) == "kept" and judged(strength=0.5 + 0.01 * T - 0.001) == "changed"
    assert judged(strength=2 - 0.01 * T - 0.001) == "kept" and judged(strength=2 - 0.01 * T + 0.001) == "changed"
    assert judged(direction=0.7 + 0.01 * T + 0.001) == "kept"
    assert judged(direction=0.7 + 0.01 * T - 0.001) == "changed"
    assert judged(error=0.4) == "undecided"
    above, below = KEPT_R + 0.01, CHANGED_R - 0.01
    assert judged(match_r=above, map_r=0) == "kept" and judged(match_r=np.nan, map_r=above) == "kept"
    assert judged(match_r=0.55, map_r=0.55) == "undecided" and judged(match_r=below, map_r=below) == "changed"
    unsure = {"match_r": below, "map_r": below - 0.3, "within": 0.02}
    assert judged(**unsure) == "undecided", "r may be above"
    assert judged(match_r=above, map_r=0, within=0.02) == "undecided", "r may be below"
    assert judged(match_r=below, map_r=below, within=np.nan) == "undecided", "r rests on one group of documents"
    assert judged(strength=0.1, match_r=0, map_r=0) == "lost"
    # What follows it may be the other half of a pair: then its own effect must be smaller.
    assert judged(strength=0.55, direction=0.1, match_r=LOST_MATCH - 0.01, map_r=0) == "lost"
    assert judged(strength=0.55, direction=0.1, match_r=LOST_MATCH + 0.01, map_r=0) == "changed"
    assert judged(strength=0.1, match_r=LOST_MATCH + 0.01, map_r=0) == "lost"
    assert judged(strength=1, direction=0, match_r=0, map_r=0) == "changed", "moved in another direction"
    gone = {"strength": 1, "direction": 0, "match_r": 0}
    assert judged(**gone, map_r=0, readable=0.05) == "lost", "nothing reads it, wherever the model moves"
    assert judged(**gone, map_r=0, readable=0.24) == judged(**gone, map_r=0, readable=0.9) == "changed"
    assert judged(**gone, map_r=0.8, readable=0.05) == "changed", "its own encoder reads it"
    assert judged(strength=0.1, error=0.2, match_r=0, map_r=0) == "changed", "too uncertain to be lost"


def test_what_is_not_stable_or_hardly_fires_is_unstable():
    value = np.array([1.0, np.nan, 1.0])
    error = np.full(3, 0.01)
    effect = Effects(*[value, error] * 7, np.ones(3), groups=GROUPS)
    result = judge(effect, np.array([True, True, False]), *[Followed.exactly(value)] * 2)
    assert [VERDICTS[i] for i in result.verdict] == ["kept", "unstable", "unstable"]
    assert np.isfinite(result.p_lost).tolist() == [True, False, False] and result.scale == 1


def test_effects_are_judged_relative_to_those_of_shared_features():
    value, error = np.full(30, 3.0), np.full(30, 0.01)
    ones = np.ones(30)
    result = judge(
        Effects(value, error, ones, error, *[value, error] * 5, ones, groups=GROUPS),
        ones > 0,
        *[Followed.exactly(ones)] * 2,
    )
    assert result.scale == 3 and (result.verdict == VERDICTS.index("kept")).all()


def test_same_r_is_pearson_r_column_by_column():
    other = np.where(np.random.default_rng(6).random(DENSE.shape) < 0.7, DENSE, 0.0)
    other[:, 4] = 0
    r = same_r(ACTS, FeatureActs.from_dense(other))
    expected = [np.corrcoef(DENSE[:, i], other[:, i])[0, 1] for i in (0, 1, 2)]
    np.testing.assert_allclose(r[:3], expected, atol=1e-6)
    assert np.isnan(r[4])


def test_a_feature_is_owned_where_enough_of_its_energy_lies():
    own = FeatureActs.from_dense(np.array([[1.0, 1.0, 0.0, 1.0]]))
    other = FeatureActs.from_dense(np.array([[0.0, 1.5, 1.0, 1.6]]))
    assert owned(own, other).tolist() == [True, True, False, False]
    assert owned(own, other, least=0.25).tolist() == [True, True, False, True]


def test_an_interval_holds_its_share_and_those_of_other_seeds():
    low, high = share_interval(8, 10)
    assert (low, high) == pytest.approx(stats.binomtest(8, 10).proportion_ci(method="wilson"))
    assert share_interval(8, 10, (0.2, 0.99)) == (0.2, 0.99) and share_interval(8, 10, (0.7,)) == (low, high)
    assert share_interval(0, 50)[0] == 0 and share_interval(50, 50)[1] == pytest.approx(1)
    assert np.isnan(share_interval(0, 0)).all()


def test_a_feature_that_others_explain_has_no_effect_of_its_own():
    rng = np.random.default_rng(8)
    dense = np.where(rng.random((3_000, 3)) < 0.2, rng.lognormal(0, 0.5, (3_000, 3)), 0).astype(np.float32)
    dense = np.column_stack([dense, dense[:, 0] + 1e-3 * (dense[:, 0] > 0)])  # a twin of the first
    x = dense @ rng.normal(size=(4, 6)).astype(np.float32)
    effect = effects(FeatureActs.from_dense(dense), x, x, x, np.arange(3_000) // 50)
    assert (effect.apart[[0, 3]] < 0.05).all() and (effect.apart[[1, 2]] > 0.9).all()
    result = judge(effect, np.ones(4, bool), *[Followed.exactly(np.ones(4))] * 2)
    assert [VERDICTS[i] for i in result.verdict] == ["undecided", "kept", "kept", "undecided"]
    assert np.isnan(result.p_lost[[0, 3]]).all()


def test_models_may_differ_in_width():
    wide = np.linalg.qr(np.random.default_rng(8).standard_normal((150, D)))[0].T
    weight, bias = Predictor(OWN).to(OWN @ wide)
    result = effects(ACTS, OWN, OWN @ weight + bias, OWN @ wide, DOCUMENTS)
    np.testing.assert_allclose(result.transmission, 1, atol=1e-3)
    back, bias = Predictor(OWN @ wide).to(OWN)
    np.testing.assert_allclose(
        effects(ACTS, OWN @ wide, OWN @ wide @ back + bias, OWN, DOCUMENTS).transmission, 1, atol=1e-3
    )


def test_a_verdict_is_given_its_reason_in_words():
    figures = {"transmission": 0.4, "direction": 0.9, "strength": 0.5, "match_r": 0.8, "map_r": None, "stability": 0.9}
    row = figures | {"apart": 0.5, "p_lost": 0.001, "owned": True}
    for changes, part in (
        (
            {"verdict": "kept", "transmission": 0.9},
            "transmission 0.90, direction 0.90, r 0.80: within the margins 0.5 to 2",
        ),
        ({"verdict": "changed"}, "transmission 0.40 outside of 0.6 to 1.67, beyond the errors"),
        ({"verdict": "changed", "transmission": 1.0, "match_r": 0.3}, "r 0.30 below 0.5, beyond the errors"),
        (
            {"verdict": "lost"},
            "p 0.001 that it is not, at a false discovery rate of 10 %; transmission 0.40, strength 0.50",
        ),
        ({"verdict": "undecided"}, "neither within the margins of kept nor outside of those of changed"),
        ({"verdict": "undecided", "apart": 0.02}, "other features explain all but 2 % of it"),
        ({"verdict": "unstable", "stability": 0.5}, "stability 0.50: not above 0.7 in a second SAE of its model"),
        ({"verdict": "unstable", "stability": None}, "stability not measured"),
        ({"verdict": "unstable", "owned": False}, "less than 30 % of its energy lies in its own model"),
        ({"verdict": "unstable"}, "its effect could not be measured"),
    ):
        assert part in reason(row | changes), changes


def test_an_inverse_made_by_torch_is_that_of_lapack(monkeypatch):
    from heredity.features import transmission

    rng = np.random.default_rng(0)
    features = csr_array(np.where(rng.random((400, 30)) < 0.2, rng.random((400, 30)), 0))
    mean = np.asarray(features.mean(0)).ravel()
    usual, apart = transmission._inverse(features, mean)
    monkeypatch.setattr(transmission, "_OPENBLAS", 8)
    made, also = transmission._inverse(features, mean)
    np.testing.assert_allclose(made, usual, rtol=1e-9, atol=1e-12 * np.abs(usual).max())
    np.testing.assert_allclose(also, apart, rtol=1e-9)


def test_what_never_varies_or_is_noise_alone_has_no_effect():
    rng = np.random.default_rng(8)
    acts = np.where(rng.random((400, 6)) < 0.2, rng.random((400, 6)) + 0.5, 0)
    acts[:, 2], acts[:, 5] = 3.0, np.where(rng.random(400) < 0.2, 1e-9, 0)
    own = np.delete(acts, 5, 1) @ rng.standard_normal((5, 8))
    regression = Regression(FeatureActs.from_dense(acts), own, np.arange(400) // 10)
    effects = regression.effects(np.eye(8), own + 0.01 * rng.standard_normal(own.shape))
    assert np.isnan(effects.strength[2]) and np.isnan(effects.transmission[2])
    np.testing.assert_allclose(effects.strength[[0, 1, 3, 4]], 1, atol=0.05)
    known = effects.transmission[np.isfinite(effects.transmission)]
    assert np.abs(known).max() < 10
