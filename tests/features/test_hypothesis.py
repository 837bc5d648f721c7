"""Log-likelihood ratios of features under token-set hypotheses."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.hypothesis import Hypothesis, agreement, best_feature, hits, llr, of_script, ranked, token_shares

TOKENS = 20_000


@pytest.fixture(scope="module")
def sample() -> tuple[FeatureActs, np.ndarray]:
    """Features: 0 the whole set, 1 a tenth of the set, 2 strong on the set and weak elsewhere, 3 noise, 4 dead,
    5 everything but the set, 6 nine firings, all on the set."""
    rng = np.random.default_rng(0)
    hit = rng.random(TOKENS) < 0.02
    acts = np.zeros((TOKENS, 7))
    acts[:, 0] = hit * rng.lognormal(0, 0.2, TOKENS)
    acts[:, 1] = (hit & (rng.random(TOKENS) < 0.1)) * 3.0
    acts[:, 2] = np.where(hit, 10 * rng.lognormal(0, 0.5, TOKENS), 0.1 * (rng.random(TOKENS) < 0.2))
    acts[:, 3] = rng.random(TOKENS) * (rng.random(TOKENS) < 0.05)
    acts[:, 5] = ~hit
    acts[np.flatnonzero(hit)[:9], 6] = 5.0
    return FeatureActs.from_dense(acts), hit


def test_ratios_are_the_written_definition(sample):
    acts, hit = sample
    dense, base = acts.dense().astype(np.float64), hit.mean()
    found = llr(acts, hit)
    assert found.base_rate == pytest.approx(base)
    for i in (0, 1, 2, 3, 6):
        fired = dense[:, i] > 0
        assert found.weighted[i] == pytest.approx(np.log(dense[hit, i].sum() / dense[:, i].sum() / base))
        assert found.counted[i] == pytest.approx(np.log(fired[hit].sum() / fired.sum() / base))
        assert found.sensitivity[i] == pytest.approx(np.corrcoef(dense[:, i], hit)[0, 1])
        assert (found.firings[i], found.hits[i]) == (fired.sum(), fired[hit].sum())
    # Specificity is the activation elsewhere over that on the set.
    for i in (2, 3):
        inside, outside = dense[hit, i], dense[~hit, i]
        assert found.elsewhere[i] == pytest.approx(outside.sum() / inside.sum())
        assert found.elsewhere_mean[i] == pytest.approx(outside[outside > 0].mean() / inside[inside > 0].mean())
    np.testing.assert_allclose(found.weighted[:4], -np.log(found.base_rate * (1 + found.elsewhere[:4])))
    assert found.elsewhere[[0, 1, 6]].tolist() == [0, 0, 0] and found.elsewhere[5] == np.inf
    assert np.isnan(found.elsewhere[4]) and np.isnan(found.elsewhere_mean[[0, 4, 5]]).all()


def test_ratios_say_what_a_feature_is(sample):
    found = llr(*sample)
    for ratio in (found.weighted, found.counted):  # those of the set alone have the highest ratio that there can be
        np.testing.assert_allclose(ratio[[0, 1, 6]], -np.log(found.base_rate))
    assert found.weighted[2] > 3.5 > 2.5 > found.counted[2], "weights tell strong firings from weak ones"
    assert abs(found.counted[3]) < 0.5 and abs(found.sensitivity[3]) < 0.05, "one that fires by chance is near zero"
    assert np.isnan([found.weighted[4], found.counted[4], found.sensitivity[4]]).all(), "dead"
    assert found.weighted[5] == found.counted[5] == -np.inf, "off the set"
    assert found.sensitivity[5] == pytest.approx(-1)


def test_the_best_feature_fires_whenever_the_tokens_occur_and_often_enough(sample):
    acts, hit = sample
    found = llr(acts, hit)
    assert found.weighted[1] == pytest.approx(found.weighted[0])
    assert best_feature(found) == 0
    rare, none = (llr(FeatureActs.from_dense(acts.dense()[:, [4, other]]), hit) for other in (6, 5))
    assert best_feature(rare) is None and best_feature(rare, minimum_firings=9) == 1
    assert best_feature(none) is None


def test_the_scale_of_a_feature_does_not_matter_and_a_set_that_is_empty_everything_or_misaligned_is_refused(sample):
    acts, hit = sample
    scaled = FeatureActs(acts.indptr, acts.indices, acts.values * 8, acts.d_sae)
    for a, b in zip(llr(acts, hit), llr(scaled, hit), strict=True):
        np.testing.assert_allclose(a, b)
    for wrong in (hit & False, hit | True, np.ones(5, bool)):
        with pytest.raises(ValueError, match="some tokens in the set and some not"):
            llr(acts, wrong)


def test_ranks_put_the_more_sensitive_first_among_equal_ratios(sample):
    found = llr(*sample)
    assert ranked(found, "llr", 2).tolist() == [0, 1]  # both fire on the set alone
    assert ranked(found, "llr", 4, minimum_firings=9).tolist() == [0, 1, 6, 2]
    assert ranked(found, "sensitivity", 3).tolist() == sorted([0, 1, 2], key=lambda i: -found.sensitivity[i])


def test_token_shares_are_the_written_definition_and_agreement_is_pearson_over_all_tokens(sample):
    acts, hit = sample
    ids = np.where(hit, 7, np.arange(TOKENS) % 5)
    values, (tokens, shares, ratios, counts) = acts.dense()[:, 2].astype(np.float64), token_shares(acts, 2, ids, top=3)
    assert tokens[0] == 7 and len(tokens) == 3 and (np.diff(shares) <= 0).all()
    for token, share, ratio, firings in zip(tokens, shares, ratios, counts, strict=True):
        mine = values[ids == token]
        assert share == pytest.approx(mine.sum() / values.sum()) and firings == (mine > 0).sum()
        assert ratio == pytest.approx(np.log(share / (ids == token).mean()))
    assert ratios[0] == pytest.approx(llr(acts, hit).weighted[2])
    assert token_shares(acts, 4, ids)[0].tolist() == []
    dense = acts.dense().astype(np.float64)
    assert agreement(acts, 0, 2) == pytest.approx(np.corrcoef(dense[:, 0], dense[:, 2])[0, 1])
    assert agreement(acts, 0, 0) == pytest.approx(1) and np.isnan(agreement(acts, 0, 4))


# -- positions of a hypothesis, by text, pattern, script and function -------------------------------------------------


TEXTS = ["=", " =", "==", "7", " 42", "άβ", " Ω1", "Ωx", "x", "\ufffd", "数字", "\u0301"]
IDS = np.arange(len(TEXTS)).reshape(2, 6)


def chosen(**hypothesis) -> list[str]:
    """The texts that fit, found at the positions they stand at."""
    found = hits(Hypothesis(**hypothesis), IDS, TEXTS)
    assert found.mask.tolist() == found.vocabulary.tolist()
    return [text for text, fits in zip(TEXTS, found.mask, strict=True) if fits]


def test_tokens_patterns_and_scripts_choose_whole_tokens():
    assert chosen(tokens=["=", " =", "absent"]) == ["=", " ="]
    assert chosen(regex=r" ?\d+") == ["7", " 42"]
    assert chosen(script="Greek") == ["άβ", " Ω1"]
    assert chosen(script="latin") == ["x"]
    assert chosen(script="CJK") == ["数字"]
    # A script is the whole first word of a name and needs a letter.
    assert not of_script("12 +", "Digit") and not of_script("α", "Gre")


def test_a_predicate_sees_place_and_context_and_cannot_change_the_sample():
    def after_equals(ids: np.ndarray, texts: list[str]) -> np.ndarray:
        found = np.zeros(ids.shape, bool)
        found[:, 1:] = ids[:, :-1] == texts.index("=")
        return found

    ids = np.array([[0, 3, 0], [4, 0, 5]])
    found = hits(Hypothesis(predicate=after_equals), ids, TEXTS)
    assert found.vocabulary is None
    assert found.mask.tolist() == [False, True, False, False, False, True]

    def greedy(ids: np.ndarray, texts: list[str]) -> np.ndarray:
        ids[:] = 0
        texts.clear()
        return ids == 0

    before = ids.copy()
    hits(Hypothesis(predicate=greedy), ids, TEXTS)
    assert (before == ids).all() and len(TEXTS) == 12


ANSWERS = [(IDS, r"int64 \[2, 6\]"), (np.ones(12, bool), r"bool \[12\]"), ([True], "list")]


@pytest.mark.parametrize(
    ("hypothesis", "said"),
    [
        *((Hypothesis(predicate=lambda *_, answer=answer: answer), f"returned {said}") for answer, said in ANSWERS),
        (Hypothesis(), "gives nothing; give one of tokens, strings, regex, script, predicate"),
        (Hypothesis(["="], regex="="), "gives tokens and regex; give one of tokens, strings, regex, script, predicate"),
    ],
)
def test_a_predicate_with_another_answer_and_none_or_several_are_refused(hypothesis, said):
    with pytest.raises(ValueError, match=said):
        hits(hypothesis, IDS, TEXTS)
