"""Readouts against truth: features that a model has come to confuse, and what its own model hardly says."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups
from heredity.features.readout import Readout

TOKENS, FEATURES, D = 6000, 12, 24
DOCUMENTS = np.arange(TOKENS) // 50


def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    dense = (rng.random((TOKENS, FEATURES)) < 0.1) * rng.lognormal(0, 0.3, (TOKENS, FEATURES))
    return dense, np.linalg.qr(rng.standard_normal((D, D)))[0][:FEATURES]


def noise(seed: int) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).standard_normal((TOKENS, D))


def test_features_that_another_model_confuses_are_not_read_there():
    dense, directions = sample()
    edited = directions.copy()
    edited[2:8] = directions[2:8].sum(0) * 2  # six features move the other model the same way, and strongly
    edited[0], edited[1] = 0, 0.5 * directions[1]
    edited[9] = np.random.default_rng(1).standard_normal(D)
    acts = FeatureActs.from_dense(dense)
    own, other = dense @ directions + noise(1), dense @ edited + noise(2)
    ratio, error, folds = Readout(acts, own, DOCUMENTS).readable(other)
    assert folds == 8 and ratio[0] < 0.05 and (ratio[2:8] < 0.35).all() and (error[2:8] < 0.05).all()
    np.testing.assert_allclose(ratio[[1, 8, 9, 10, 11]], 1, atol=0.1, err_msg="fainter and moved features are read")


def test_the_ratio_is_that_of_ridge_regressions_on_held_out_documents():
    dense, directions = sample()
    own, other = dense @ directions + 20 * noise(1), dense @ directions[::-1] + 40 * noise(2)
    ratio, _, _ = Readout(FeatureActs.from_dense(dense), own, DOCUMENTS).readable(other)
    fold = document_groups(DOCUMENTS, 8, 0)

    def explained(x: np.ndarray) -> np.ndarray:
        left = whole = 0
        for number in range(8):
            fit, held = fold != number, fold == number
            ridge = 1e-3 * np.square(x[fit] - x.mean(0)).sum() / D
            fitted = Ridge(alpha=ridge).fit(x[fit], dense[fit])
            left = left + np.square(dense[held] - fitted.predict(x[held])).sum(0)
            whole = whole + np.square(dense[held] - dense[held].mean(0)).sum(0)
        return 1 - left / whole

    np.testing.assert_allclose(ratio, explained(other) / explained(own), rtol=1e-4)


def test_what_its_own_model_does_not_say_has_no_ratio():
    dense, directions = sample()
    own = dense[:, 1:] @ directions[1:] + noise(1)
    ratio, error, _ = Readout(FeatureActs.from_dense(dense), own, DOCUMENTS).readable(own)
    assert np.isnan([ratio[0], error[0]]).all()
    np.testing.assert_allclose(ratio[1:], 1)
    assert np.isnan(Readout(FeatureActs.from_dense(dense), own, np.zeros(TOKENS, int)).readable(own)[0]).all()
