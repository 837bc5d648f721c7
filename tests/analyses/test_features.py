"""Cases as a study file gives them, put to planted features; and what the stage writes of a feature's firings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import artifacts
from heredity.analyses import verdicts as evidence
from heredity.analyses.features import (
    ANALYSIS,
    LOST_AND_NEW,
    _case_rows,
    _lost_and_new,
    _told,
    _verdict_row,
    fired_on,
    predicted,
)
from heredity.analyses.features import _windows as windows_of
from heredity.analyses.hypotheses import case_of, hypothesis_of, recipe_of
from heredity.features.acts import FeatureActs
from heredity.features.cards import Card, LogitTokens, Sizes, cards
from heredity.features.correlate import correlate
from heredity.study import CaseConfig, Edge, StudyError

VOCABULARY = ["a", " =", "=", "b", "1"]


def sample() -> SimpleNamespace:
    """Two models on 40 blocks: feature 1 of the parent and feature 0 of the child fire on ` =` and `=`."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 5, (40, 16))
    fires = np.isin(ids.ravel(), [1, 2]) * rng.lognormal(0, 0.2, ids.size)
    noise = rng.random((2, ids.size)) * (rng.random((2, ids.size)) < 0.2)
    acts = {
        "base": FeatureActs.from_dense(np.stack([noise[0], fires], 1)),
        "tuned": FeatureActs.from_dense(np.stack([fires + 0.1 * noise[1], noise[1]], 1)),
    }
    edge = Edge("base", "tuned")
    matches = {edge: correlate(acts["base"], acts["tuned"], workers=1)}
    return SimpleNamespace(
        ids=ids, vocabulary=VOCABULARY, acts=acts, models=("base", "tuned"), edges=[edge], matches=matches,
        threshold={edge: 0.6}, common=(acts, None),
    )  # fmt: skip


def asked(tmp_path: Path, **case: Any) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """The case of the planted sample."""
    return case_of(tmp_path, sample(), CaseConfig(**case))  # pyright: ignore[reportArgumentType]


def test_a_case_is_told_whole(tmp_path):
    case, chosen = asked(tmp_path, tokens=["=", " =", "absent"])
    assert case["verdict"] == "persists" and case["start"] == "base" and chosen == [("base", 1)]
    assert case["not_in_vocabulary"] == ["absent"] and case["set_size"] == 2 and case["misses"] == []
    assert {model: row["feature"] for model, row in case["models"].items()} == {"base": 1, "tuned": 0}
    assert {top["token"] for top in case["top_tokens"]} == {"=", " ="}
    rows = {row["model"]: row for row in _case_rows("equals", case)}
    assert rows["tuned"]["best_feature"] == 0 and rows["tuned"]["best_r"] == pytest.approx(1)
    assert rows["base"]["elsewhere"] == 0 and rows["base"]["hits"] == case["hits"]
    assert rows["tuned"]["status"] == "kept" and rows["tuned"]["via"] == "base" and rows["tuned"]["r"] > 0.9
    assert rows["tuned"]["paper"] == "persists" and rows["base"].get("paper") is None
    (pair,) = case["pairs"]
    dense = [sample().acts[model].dense()[:, feature] for model, feature in (("base", 1), ("tuned", 0))]
    assert pair["r"] == case["pairs_r"] == pytest.approx(np.corrcoef(*dense)[0, 1])
    assert (pair["model_a"], pair["feature_a"], pair["model_b"], pair["feature_b"]) == ("base", 1, "tuned", 0)
    verdict = _verdict_row("equals", case)
    assert verdict["unigram"] == case["base_rate"] and verdict["paper_verdict"] == "persists"
    assert verdict["tokens"] == "'=' ' =' 'absent'" and verdict["not_in_vocabulary"] == "'absent'"
    assert verdict["hypothesis"] == "tokens '=', ' =', 'absent'" and verdict["kind"] == "tokens"


def test_patterns_and_tokens_that_mean_the_same_find_the_same(tmp_path):
    by_pattern, by_tokens = asked(tmp_path, regex=" ?=")[0], asked(tmp_path, tokens=["=", " ="])[0]
    assert by_pattern["models"] == by_tokens["models"] and set(by_pattern["tokens"]) == {"=", " ="}


def test_what_stands_nowhere_has_no_family(tmp_path):
    case, chosen = asked(tmp_path, script="Greek")
    assert case["verdict"] == "nothing in the sample fits" and chosen == [] and list(_case_rows("g", case)) == []


def test_a_match_that_never_fires_on_the_set_is_told_and_a_lower_r_than_the_papers_disappears_there(tmp_path):
    given = sample()
    at = np.flatnonzero(np.isin(given.ids.ravel(), [1, 2]))
    parent, child = given.acts["base"].dense().copy(), given.acts["tuned"].dense().copy()
    child[at, 0] = 0  # on this sample; the match was made on other text, at r = .7
    given.acts = {"base": given.acts["base"], "tuned": FeatureActs.from_dense(child)}
    given.common = given.acts, None
    match = given.matches[given.edges[0]]
    lowered = match._replace(parent_r=np.minimum(match.parent_r, 0.7), child_r=np.minimum(match.child_r, 0.7))
    given.matches = {given.edges[0]: lowered}
    case, _ = case_of(tmp_path, given, CaseConfig(tokens=("=", " =")))
    assert case["verdict"] == "persists; its match in tuned never fires on the set"
    assert case["paper_verdict"] == "disappears on base->tuned" and parent[at, 1].all()
    rows = {row["model"]: row for row in _case_rows("equals", case)}
    assert rows["tuned"]["paper"] == "disappears" and rows["tuned"]["hits"] == 0


def test_a_case_may_be_a_string_of_several_tokens(tmp_path):
    given = sample()
    ends = np.zeros(given.ids.shape, bool)
    ends[:, 1:] = (given.ids[:, :-1] == 1) & (given.ids[:, 1:] == 3)  # ` =` and then `b`
    ends[:, 1:] |= (given.ids[:, :-1] == 2) & (given.ids[:, 1:] == 3)  # `=` and then `b`
    fires = ends.ravel() * np.random.default_rng(0).lognormal(0, 0.2, ends.size)
    given.acts["base"] = FeatureActs.from_dense(np.stack([given.acts["base"].dense()[:, 1], fires], 1))
    case, _ = case_of(tmp_path, given, CaseConfig(strings=("=b",)))
    row, (space, plain, b) = case["models"]["base"], (np.mean(given.ids == token) for token in (1, 2, 3))
    assert row["feature"] == 1 and case["hits"] == ends.sum() and case["tokens"] == ["=b"]
    assert case["unigram"] == pytest.approx((space + plain) * b)  # the paper's P(s), a product of unigrams
    assert row["llr_unigram"] == pytest.approx(-np.log((space + plain) * b))
    assert row["llr"] == pytest.approx(-np.log(ends.mean())) and _verdict_row("s", case)["kind"] == "strings"


def test_a_predicate_of_the_users_own_is_part_of_the_recipe(tmp_path):
    module = tmp_path / "own_predicates_a.py"
    module.write_text("def equals(ids, texts):\n    return (ids == 1) | (ids == 2)\n")
    case = CaseConfig(predicate="own_predicates_a:equals")
    assert asked(tmp_path, predicate=case.predicate)[0]["models"]["base"]["feature"] == 1
    before = recipe_of(case, tmp_path)
    module.write_text(module.read_text() + "\n# another\n")
    assert recipe_of(case, tmp_path) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [("own_absent:f", "put own_absent.py into"), ("own_predicates_b:g", "has no function g"),
     ("own_predicates_c:f", "NameError")],
)  # fmt: skip
def test_a_predicate_that_cannot_be_had_is_refused_by_name(tmp_path, name, message):
    (tmp_path / "own_predicates_b.py").write_text("")
    (tmp_path / "own_predicates_c.py").write_text("undefined\n")
    with pytest.raises(StudyError, match=f"predicate '{name}': .*{message}"):
        hypothesis_of(CaseConfig(predicate=name), tmp_path)


def test_a_predicate_that_fails_is_named(tmp_path):
    (tmp_path / "own_predicates_d.py").write_text("def f(ids, texts):\n    return ids.nothing\n")
    with pytest.raises(StudyError, match="'own_predicates_d:f' failed .AttributeError"):
        asked(tmp_path, predicate="own_predicates_d:f")


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "gives no hypothesis"), ({"tokens": ["="], "regex": "="}, "gives tokens and regex"),
     ({"regex": "("}, "is no pattern"), ({"predicate": "no function"}, "should match pattern")],
)  # fmt: skip
def test_a_case_is_exactly_one_hypothesis(given, message):
    with pytest.raises(ValueError, match=message):
        CaseConfig(**given)


# -- firings of a feature ----------------------------------------------------------------------------------------------

SIZE, LEVELS = 32, 5


def firing() -> SimpleNamespace:
    """50 blocks of two corpora; feature 0 fires on every `=`, twice as strongly on ` =`, and feature 1 never."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 5, (50, SIZE))
    strength = rng.uniform(0.1, 1, ids.size) * np.select([ids.ravel() == 1, ids.ravel() == 2], [2.0, 1.0], 0.0)
    dense = np.stack([strength, np.zeros(ids.size)], 1)
    return SimpleNamespace(
        ids=ids, vocabulary=VOCABULARY, acts=FeatureActs.from_dense(dense), origin=np.arange(50) % 2,
        corpora=["prose", "code"], dense=dense,
        text=lambda token: VOCABULARY[token] if token < len(VOCABULARY) else f"#{token}",
        pieces=lambda block: [VOCABULARY[token] for token in ids[block].tolist()],
    )  # fmt: skip


def card_of(given: SimpleNamespace, feature: int) -> Card:
    sizes = Sizes(top=3, levels=LEVELS, each=2, drawn=0, silent=0, tokens=len(VOCABULARY), bins=10)
    return cards(given.acts, given.ids, np.array([feature]), sizes)[0]


def test_tokens_are_listed_by_their_share_of_all_activation():
    given = firing()
    rows = fired_on(given, card_of(given, 0))  # pyright: ignore[reportArgumentType]
    values, ids = given.dense[:, 0], given.ids.ravel()
    assert [token["token"] for token in rows] == [" =", "="]
    for token, number in zip(rows, (1, 2), strict=True):
        own = values[ids == number]
        assert token["share"] == pytest.approx(own.sum() / values.sum())
        assert token["firings"] == len(own) and token["fired"] == 1 and token["mean"] == pytest.approx(own.mean())
    card = card_of(given, 0)
    assert card.histogram.sum() == card.firings == (values > 0).sum()


def test_weaker_firings_lie_in_their_interval_and_carry_the_text_around():
    given = firing()
    card, values = card_of(given, 0), given.dense[:, 0].reshape(given.ids.shape)
    around = {
        (given.corpora[block % 2], tuple(VOCABULARY[token] for token in given.ids[block, max(0, at - 9) : at + 10]))
        for block, at in np.argwhere(values > 0)
    }
    assert len(card.levels) == LEVELS
    for place, places in enumerate(card.levels):
        low, high = (card.highest * (LEVELS - less - place) / LEVELS for less in (1, 0))
        for context in windows_of(given, places):  # pyright: ignore[reportArgumentType]
            assert low <= context["values"][context["position"]] + 1e-4 <= high + 2e-4
            assert (context["corpus"], tuple(context["tokens"])) in around
            assert context["tokens"][context["position"]] in (" =", "=")


def test_lost_and_new_features_are_the_surest_with_their_tokens_and_text(tmp_path):
    given, edge = firing(), Edge("base", "tuned")
    absent = dict.fromkeys(evidence.EVIDENCE.schema.names) | artifacts.SITE | {"edge": edge.name}
    rows = [
        absent | {"end": end, "feature": feature, "verdict": verdict, "firings": 9, "strength": 0.1, "p_lost": p}
        for end, feature, verdict, p in [
            *(("parent", feature, "lost", 0.01 / (feature + 1)) for feature in range(32)),
            ("parent", 32, "kept", 0.9), ("child", 0, "new", 0.02), ("child", 1, "inherited", 0.8),
        ]
    ]  # fmt: skip
    made = artifacts.artifact(tmp_path / "verdicts")
    pq.write_table(evidence.EVIDENCE.check(rows), made / "evidence.parquet")
    found = _lost_and_new(edge, made)
    assert [row["feature"] for row in found] == [*range(31, 1, -1), 0], "thirty by their p-value, and what is new"
    names = [("base", "lost on base->tuned"), ("tuned", "new on base->tuned")]
    assert [(row["model"], row["list"]) for row in found[-2:]] == names
    told = [_told(given, found[-1], card_of(given, feature)) for feature in (0, 1)]  # pyright: ignore[reportArgumentType]
    assert told[0]["tokens"].startswith("' =' ") and "=»" in told[0]["example"]
    assert told[1]["tokens"] == "" and told[1]["example"] == "never fires on the sample"
    table = LOST_AND_NEW.check([told[0], told[1] | {"feature": 1}], **artifacts.SITE).to_pylist()
    (said,) = ANALYSIS.say({"lost_and_new": table})
    assert (said.about, said.question) == ("tuned", "new") and "tuned/0 on ' =' " in said.text
    assert said.evidence[0] == "tuned/0: p 0.02, strength 0.10"


def test_predictions_are_text_even_beyond_the_vocabulary_and_else_a_reason_stands():
    given = firing()
    ends = np.array([3, 7]), np.array([1.5, 0.5], np.float32), np.array([0, 4]), np.array([-2, -1], np.float32)
    row = predicted(given, LogitTokens(*ends))  # pyright: ignore[reportArgumentType]
    assert row["promoted"] == [{"token": "b", "weight": 1.5}, {"token": "#7", "weight": 0.5}]
    assert [one["token"] for one in row["suppressed"]] == ["a", "1"] and row["no_logits"] == ""
    assert predicted(given, "no way")["no_logits"] == "no way"  # pyright: ignore[reportArgumentType]


def test_a_feature_that_never_fires_has_an_empty_card():
    given = firing()
    card = card_of(given, 1)
    assert card.firings == 0 and fired_on(given, card) == []  # pyright: ignore[reportArgumentType]
    assert not any(len(places.rows) for places in card.levels) and card.histogram.sum() == 0
