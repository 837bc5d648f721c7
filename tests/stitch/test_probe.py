"""A planted feature is found, each arm reaches what its world allows, and intervals cover what they say."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import beta, norm

from heredity.lm.hooks import capture
from heredity.lm.load import load_model
from heredity.sae.model import SAE, new_sae
from heredity.stitch.probe import (
    Views,
    balanced_accuracy,
    fit_probe,
    judge,
    mean_over_draws,
    means,
    probing,
    proportion,
    roc_auc,
    select,
    text_vectors,
    views,
)
from heredity.stitch.transfer import sparse_codes
from heredity.text.tokens import load_tokenizer
from tiny import HOOK, save_tiny_model

MARKS = 7
"""The feature that marks the class in the planted worlds."""


def world(n: int, seed: int, d_sae: int = 60, noise: float = 0.0) -> tuple[csr_array, np.ndarray]:
    """Sparse means of n texts: feature 7 is higher in the class, by a little; others fire at random, much louder."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.5
    X = rng.exponential(5.0, (n, d_sae)) * (rng.random((n, d_sae)) < 0.2)
    X[:, MARKS] = np.where(y, 3.0, 0.0) + rng.random(n)
    X[:, 3] = np.where(y, 0.0, 6.0)
    return csr_array(X + noise * rng.standard_normal(X.shape)), y


def of(rows: list[dict[str, Any]], arm: str, k: int) -> list[dict[str, Any]]:
    return [row for row in rows if (row["arm"], row["k"]) == (arm, k)]


def test_the_marking_feature_is_chosen_first_and_an_opposite_one_last():
    X, y = world(400, 0)
    assert select(X, y, 60)[0] == MARKS and select(X, y, 60)[-1] == 3
    assert np.array_equal(select(X, y, 5), select(X.toarray(), y, 5))
    dense = X.toarray()
    by_hand = sorted(range(60), key=lambda i: dense[~y, i].mean() - dense[y, i].mean())
    assert select(X, y, 60).tolist() == by_hand


def test_a_probe_of_one_feature_decides_the_class_in_units_of_the_feature():
    X, y = world(400, 0)
    probe, (held, truth) = fit_probe(X, y, select(X, y, 1)), world(200, 1)
    assert probe.features.tolist() == [MARKS]
    assert 1 < -probe.bias / probe.weights[0] < 3  # the cut lies between the classes
    score = judge(probe, held, truth)
    assert score["accuracy"] == score["auc"] == 1 and score["auc_low"] > 0.95


def test_scaling_a_feature_changes_its_weight_and_no_score_and_a_silent_one_has_no_weight():
    X, y = world(300, 2, noise=0.5)
    dense = X.toarray()
    dense[:, 5], dense[:, 6] = 0, 0.1
    scale = np.random.default_rng(3).lognormal(0, 3, X.shape[1])
    a, b = fit_probe(dense, y), fit_probe(csr_array(dense * scale), y)
    np.testing.assert_allclose(a.scores(dense), b.scores(csr_array(dense * scale)), rtol=1e-3, atol=1e-3)
    assert a.weights[5] == a.weights[6] == 0 and np.isfinite(a.weights).all()


@pytest.mark.parametrize("labels", [np.ones(5, bool), np.zeros(4, bool)])
def test_labels_of_one_class_or_another_length_are_refused(labels: np.ndarray):
    with pytest.raises(ValueError, match="of 5 texts; give one bool per text"):
        select(csr_array(np.eye(5)), labels, 1)
    with pytest.raises(ValueError, match="of 5 texts; give one bool per text"):
        roc_auc(np.zeros(5), labels)


def test_arms_reach_what_the_target_keeps_of_the_source():
    """In the target, the marking feature is the same but shifted: its own weights cut at the wrong place there."""
    rng = np.random.default_rng(5)
    turned = rng.permutation(60)

    def seen(n: int, seed: int) -> tuple[Views, np.ndarray]:
        X, y = world(n, seed)
        dense = X.toarray() @ np.random.default_rng(9).standard_normal((60, 8))
        dense[:, 0] += 40 * y
        shifted = X.toarray()
        shifted[:, MARKS] += 10
        native = csr_array(X.toarray()[:, turned])
        return Views(X, csr_array(shifted), native, dense, dense, dense @ np.diag(np.arange(1.0, 9))), y

    rows = probing(seen(400, 6), seen(300, 7), sizes=(1, 2), draws=4, seed=0)
    assert len(rows) == 2 * (4 + 4) + 3
    for k in (1, 2):
        for arm in ("source", "native", "refitted"):
            assert of(rows, arm, k)[0]["accuracy_low"] > 0.95
    (unchanged,) = of(rows, "unchanged", 1)
    assert unchanged["auc"] == 1  # the order is kept
    assert unchanged["balanced_accuracy"] == 0.5  # but all of it is above the source's cut
    drawn = of(rows, "random", 1)
    assert [row["draw"] for row in drawn] == [0, 1, 2, 3]
    assert np.mean([row["auc"] for row in drawn]) < 0.75
    source, unchanged, native = rows[-3:]
    assert source | {"arm": "dense_unchanged"} == unchanged and source["k"] == 8
    assert native["auc"] == pytest.approx(source["auc"], abs=0.01) and source["auc_low"] > 0.8


def test_random_features_follow_from_the_seed_and_sizes_beyond_the_live_ones_are_left_out():
    X, y = world(200, 8)
    few = csr_array(X.toarray() * (np.arange(60) < 8))
    seen = Views(X, few, X, *[X.toarray()[:, :4]] * 3)
    a, b, c = (probing((seen, y), (seen, y), (1, 5, 20), 3, seed) for seed in (0, 0, 1))
    assert a == b != c and {row["k"] for row in a} == {1, 5, 4}
    averaged, drawn = mean_over_draws(a), of(a, "random", 5)
    assert len(averaged) == len(a) - 2 * 2 and [row["draws"] for row in averaged if row["arm"] == "random"] == [3, 3]
    (random,) = of(averaged, "random", 5)
    for name in ("auc", "auc_low", "auc_high"):
        assert random[name] == pytest.approx(np.mean([row[name] for row in drawn]))
    assert random["spread"] == pytest.approx(np.std([row["balanced_accuracy"] for row in drawn], ddof=1))
    assert averaged[0] == {key: value for key, value in a[0].items() if key != "draw"} | {"draws": 1, "spread": None}


TEXTS = ["the cat sat on the mat", "x = y + 1", "a", "the mat = 3; the cat sat on x"]


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Any]:
    """Model, hook point and tokenizer."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "a", d_model=16)
    return load_model(folder), HOOK, load_tokenizer(str(folder))


def test_means_are_those_of_each_text_read_alone(end: tuple[Any, str, Any]):
    sae = new_sae(32, 128, "topk", 4, torch.Generator().manual_seed(0))
    texts = [*TEXTS, TEXTS[0] + "<|endoftext|>"]
    codes = partial(sparse_codes, sae)
    found, parts = means(text_vectors(*end, texts, 64), len(texts), codes, lambda x: codes(-x))
    for number, text in enumerate(texts):
        x = capture(*end[:2], torch.tensor([end[2](text.removesuffix("<|endoftext|>"))["input_ids"]]))[0]
        np.testing.assert_allclose(found[number], x.double().mean(0).numpy(), rtol=1e-4, atol=1e-6)
        for features, sign in zip(parts, (1, -1), strict=True):
            expected = sae.encode(sign * x).double().mean(0).numpy()
            np.testing.assert_allclose(features[[number]].toarray()[0], expected, rtol=1e-3, atol=1e-6)


def test_texts_must_be_read_once_each_and_have_a_token(end: tuple[Any, str, Any]):
    with pytest.raises(ValueError, match="text 1, '<|endoftext|>', has no token"):
        list(text_vectors(*end, ["a", "<|endoftext|>"], 64))
    with pytest.raises(ValueError, match="vectors of 1 texts were given for 2"):
        means([(torch.ones(2, 3), np.array([1, 1]))], 2)


def test_views_of_a_model_stitched_to_itself_agree_and_carried_weights_do_the_same(end: tuple[Any, str, Any]):
    """Down is x -> x P + b of an invertible P here; the SAE of the target undoes it."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0], torch.randn(32, generator=generator)

    def own(texts: Any) -> Any:
        return text_vectors(*end, texts, 64)

    def moved(texts: Any) -> Any:
        return (((x - bias) @ weight.T, text) for x, text in own(texts))

    sae: SAE = new_sae(32, 64, "relu", generator=generator)
    seen = views(TEXTS, own, moved, (sae, sae), lambda x: x @ weight + bias)
    np.testing.assert_allclose(seen.carried.toarray(), seen.source.toarray(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(seen.dense_carried, seen.dense_source, atol=1e-5)
    probe = fit_probe(seen.dense_source, np.arange(4) > 1)
    P, b = weight.double().numpy(), bias.double().numpy()
    by_weights = seen.dense_native @ (P @ probe.weights) + probe.bias + b @ probe.weights
    np.testing.assert_allclose(by_weights, probe.scores(seen.dense_carried), atol=2e-3)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (81, 163)])
def test_a_proportion_has_the_quantiles_of_the_beta_distribution_as_ends(hits: int, n: int):
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.low == pytest.approx(beta.ppf(0.025, hits, n - hits + 1) if hits else 0)
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1)


def test_balanced_accuracy_is_that_of_the_classes_however_many_cases_they_have():
    y = np.array([True] * 10 + [False] * 90)
    guess = np.concatenate([np.arange(10) < 5, np.zeros(90, bool)])
    found = balanced_accuracy(guess, y)
    assert found.value == 0.75
    # The ten cases of the rare class decide the width, not the ninety others.
    assert 0.2 < found.high - found.low < 0.35 and found.low < 0.75 < found.high


def test_perfect_guesses_leave_room_below():
    y = np.arange(20) % 2 == 0
    assert balanced_accuracy(y, y).high == 1 and 0.8 < balanced_accuracy(y, y).low < 1
    perfect = roc_auc(y.astype(float), y)
    assert perfect.value == perfect.high == 1 and 0.7 < perfect.low < 0.95
    assert roc_auc(1.0 - y, y)[:2] == (0, 0)


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 6, 40).astype(float), np.arange(40) % 3 == 0
    pairs = np.sign(scores[y][:, None] - scores[~y][None])
    assert roc_auc(scores, y).value == pytest.approx((pairs.mean() + 1) / 2)


def test_intervals_of_area_and_balanced_accuracy_cover_the_truth_as_often_as_they_say():
    rng, shift, runs = np.random.default_rng(1), 1.2, 120
    y = np.arange(80) % 4 == 0
    area, right, covered = norm.cdf(shift / np.sqrt(2)), norm.cdf(shift / 2), np.zeros(2)
    for _ in range(runs):
        scores = rng.standard_normal(80) + shift * (y - 0.5)
        for at, (found, truth) in enumerate(((roc_auc(scores, y), area), (balanced_accuracy(scores > 0, y), right))):
            covered[at] += found.low <= truth <= found.high
    assert (covered / runs > 0.9).all() and (covered / runs < 0.995).all()
