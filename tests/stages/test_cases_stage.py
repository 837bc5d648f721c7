"""Cases as a study file gives them: one hypothesis each, a predicate from a module of the user's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.stages.cases import case_of, hypothesis_of, recipe_of
from heredity.study import CaseConfig, StudyError

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
    edge = ("base", "tuned")
    matches = {edge: correlate(acts["base"], acts["tuned"], workers=1)}
    return SimpleNamespace(
        ids=ids, vocabulary=VOCABULARY, acts=acts, edges=[edge], matches=matches, threshold={edge: 0.6}
    )


def asked(tmp_path: Path, **case) -> tuple[dict, list]:
    """The case of the planted sample."""
    return case_of(("base", "tuned"), tmp_path, sample(), CaseConfig(**case))  # pyright: ignore[reportArgumentType]


def test_a_case_is_told_whole(tmp_path):
    case, shown = asked(tmp_path, tokens=["=", " =", "absent"])
    assert case["verdict"] == "persists" and case["start"] == "base" and shown == [("base", 1)]
    assert case["not_in_vocabulary"] == ["absent"] and case["set_size"] == 2 and case["misses"] == []
    assert {model: row["feature"] for model, row in case["models"].items()} == {"base": 1, "tuned": 0}
    assert {top["token"] for top in case["top_tokens"]} == {"=", " ="}
    assert case["best"]["tuned"]["feature"] == 0 and case["best"]["tuned"]["r"] == pytest.approx(1)
    assert case["models"]["base"]["elsewhere"] == 0 and case["models"]["base"]["hits"] == case["hits"]


def test_patterns_and_tokens_that_mean_the_same_find_the_same(tmp_path):
    by_pattern, by_tokens = asked(tmp_path, regex=" ?=")[0], asked(tmp_path, tokens=["=", " ="])[0]
    assert by_pattern["models"] == by_tokens["models"] and set(by_pattern["tokens"]) == {"=", " ="}


def test_what_stands_nowhere_has_no_family(tmp_path):
    case, shown = asked(tmp_path, script="Greek")
    assert case["verdict"] == "nothing in the sample fits" and shown == []


def test_a_predicate_of_the_users_own_is_part_of_the_recipe(tmp_path):
    module = tmp_path / "own_predicates_a.py"
    module.write_text("def equals(ids, texts):\n    return (ids == 1) | (ids == 2)\n")
    case = CaseConfig(predicate="own_predicates_a:equals")
    assert asked(tmp_path, predicate=case.predicate)[0]["models"]["base"]["feature"] == 1
    before = recipe_of(case, tmp_path)
    module.write_text(module.read_text() + "\n# another\n")
    assert recipe_of(case, tmp_path) != before


@pytest.mark.parametrize(
    ("name", "said"),
    [("own_absent:f", "put own_absent.py into"), ("own_predicates_b:g", "has no function g"),
     ("own_predicates_c:f", "NameError")],
)  # fmt: skip
def test_a_predicate_that_cannot_be_had_is_refused_by_name(tmp_path, name, said):
    (tmp_path / "own_predicates_b.py").write_text("")
    (tmp_path / "own_predicates_c.py").write_text("undefined\n")
    with pytest.raises(StudyError, match=f"predicate '{name}': .*{said}"):
        hypothesis_of(CaseConfig(predicate=name), tmp_path)


def test_a_predicate_that_fails_is_told_by_name(tmp_path):
    (tmp_path / "own_predicates_d.py").write_text("def f(ids, texts):\n    return ids.nothing\n")
    with pytest.raises(StudyError, match="'own_predicates_d:f' failed .AttributeError"):
        asked(tmp_path, predicate="own_predicates_d:f")


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "gives no hypothesis"), ({"tokens": ["="], "regex": "="}, "gives tokens and regex"),
     ({"regex": "("}, "is no pattern"), ({"predicate": "no function"}, "should match pattern")],
)  # fmt: skip
def test_a_case_is_exactly_one_hypothesis(given, said):
    with pytest.raises(ValueError, match=said):
        CaseConfig(**given)
