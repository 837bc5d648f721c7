"""The offline judge finds the form that was planted, says it in words, and predicts by it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from explain import planted
from explain.planted import AFTER_SELF, ASSIGN, FIRST, KINDS, LUA, NOISE, NUMBER, World, drawn_of, world
from heredity.explain.protocol import Failure
from heredity.explain.statistical import FORMS, chain


@pytest.fixture(scope="module")
def found() -> World:
    return world()


def explained(found: World, feature: int) -> Any:
    return found.judge.explain(str(feature), ())


@pytest.mark.parametrize(
    ("feature", "form", "words"),
    [
        (ASSIGN, "token", ['fires on "=" and " =" (100 %']),
        (AFTER_SELF, "pair", ['".x" (100 %', 'strongest after "self"']),
        (NUMBER, "category", ["kind number (100 %"]),
        (FIRST, "position", ["place 1 of a block (100 %"]),
        (planted.AFTER, "previous", ['after "self" (100 %']),
        (NOISE, "constant", ["no simple rule"]),
        (planted.TOKEN, "category", ["kind punctuation", '","']),
        (LUA, "corpus_category", ["kind word (100 %", "in lua (100 %"]),
    ],
)
def test_the_planted_form_is_found_and_said(found: World, feature: int, form: str, words: list[str]):
    said = explained(found, feature)
    assert said.rule.form == form, said
    assert all(part in said for part in words), said
    assert (said.rule.gain > 0.2) == (form != "constant")


def test_only_the_half_that_explains_is_looked_at(found: World):
    rows, values = found.columns.of(ASSIGN)
    spoiled = np.where(found.text.explains[rows // found.text.ids.shape[1]], values, 100 * values)
    assert found.judge.statistics.fit(rows, spoiled) == found.judge.statistics.fit(rows, values)


@pytest.mark.parametrize("feature", [ASSIGN, AFTER_SELF, NUMBER, FIRST, LUA, NOISE])
def test_predictions_are_the_shrunken_means_of_a_plain_reference(found: World, feature: int):
    text, rule = found.text, explained(found, feature).rule
    ids, context = text.ids.tolist(), text.ids.shape[1]
    dense = found.acts.dense()[:, feature].astype(float)

    def keys(row: int) -> Any:
        block, at = divmod(row, context)
        token, before, corpus = ids[block][at], ids[block][at - 1] if at else -1, found.corpora[block]
        kind = KINDS[token]
        every = {"corpus": corpus, "position": at, "category": kind, "previous": before, "token": token}
        every |= {"corpus_category": (corpus, kind), "after": (before, kind), "pair": (before, token)}
        return enumerate([every[level] for level in chain(rule.form)])

    table: dict[object, list[float]] = {}
    total = [row for row in range(len(dense)) if text.explains[row // context]]
    for row in total:
        for key in keys(row):
            table.setdefault(key, []).append(dense[row])
    rows, expected = np.random.default_rng(0).permutation(len(dense))[:400], []
    for row in rows.tolist():
        value = float(np.mean(dense[total]))
        for key in keys(row):
            seen = table.get(key, [])
            value = (sum(seen) + value) / (len(seen) + 1)
        expected.append(value)
    np.testing.assert_allclose(found.judge.statistics.predict(rule, rows), expected, rtol=1e-6)


def test_a_rule_is_written_as_one_line_of_json(found: World):
    for feature in (ASSIGN, AFTER_SELF, NOISE):
        rule = explained(found, feature).rule
        line = rule.to_json()
        fields = json.loads(line)
        assert fields["form"] == rule.form and "\n" not in line
        for table, sums in zip(fields["sums"], rule.sums, strict=True):
            assert {key: pytest.approx(value, rel=1e-8) for key, value in table} == dict(sums)


def test_levels_run_from_0_to_9_and_are_high_where_the_feature_fires(found: World):
    excerpts = drawn_of(found, ASSIGN).scoring
    answer: Any = found.judge.simulate("ASSIGN", explained(found, ASSIGN), excerpts)
    for levels, excerpt in zip(answer, excerpts, strict=True):
        assert levels.shape == excerpt.values.shape and (levels >= 0).all() and (levels <= 9).all()
        assert (levels[excerpt.values > 0] > 4).all() and (levels[excerpt.values == 0] < 0.5).all()


def test_a_description_without_a_rule_is_a_failure_and_no_score(found: World):
    excerpts = drawn_of(found, ASSIGN).scoring
    asked: Any = "0", "fires on =", excerpts
    answers = [found.judge.simulate(*asked), found.judge.detect(*asked)]
    for answer in [*answers, found.judge.fuzz(*asked, [excerpt.values > 0 for excerpt in excerpts])]:
        assert isinstance(answer, Failure) and answer.kind == "unparsed" and "fires on =" in answer.detail


def test_an_excerpt_of_another_text_is_refused(found: World):
    excerpt = drawn_of(found, ASSIGN).scoring[0]
    said = explained(found, ASSIGN)
    with pytest.raises(ValueError, match="does not hold the excerpt"):
        found.judge.detect("0", said, [excerpt._replace(ids=excerpt.ids[::-1] + 1)])


def test_a_feature_that_does_not_fire_has_no_rule(found: World):
    with pytest.raises(ValueError, match="does not fire on the explaining half"):
        found.judge.statistics.fit(np.empty(0, np.int64), np.empty(0))


def test_forms_are_in_the_order_of_complexity_with_what_they_rest_on():
    for number, form in enumerate(FORMS):
        assert all(FORMS.index(level) <= number for level in chain(form))
