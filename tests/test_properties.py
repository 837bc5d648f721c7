"""What holds for any input: counts add up, order and scale do not matter, and what is written is read again."""

from __future__ import annotations

import csv
import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from heredity import format
from heredity.engine.store import digest
from heredity.errors import short
from heredity.explain import parse
from heredity.explain.protocol import Answer, Failure
from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.features.families import family
from heredity.features.fates import fates, flow
from heredity.features.transmission import Effects
from heredity.features.verdicts import VERDICTS, Followed, judge
from heredity.kernels.sparse import moments, stored, transpose
from heredity.lm.merge import linear, slerp, task_arithmetic, ties
from heredity.show import seen
from heredity.show.gate import limit_of
from heredity.study import CorpusConfig, Study
from heredity.text.corpora import documents
from tiny import study_values
from worlds import matches_of

SEEDS = st.integers(0, 10**6)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=60)
many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sparse_acts(rng: np.random.Generator, tokens: int, features: int) -> np.ndarray:
    """Activations [tokens, features], some features silent, some constant."""
    acts = rng.lognormal(0, 1, (tokens, features)) * (rng.random((tokens, features)) < rng.uniform(0.05, 0.6, features))
    acts[:, rng.random(features) < 0.15] = 0
    return acts


def matched(parent: np.ndarray, child: np.ndarray, **more: Any) -> Matches:
    return correlate(FeatureActs.from_dense(parent), FeatureActs.from_dense(child), workers=1, **more)


# -- matching ---------------------------------------------------------------------------------------------------


@many
@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_matches_follow_their_features_whatever_the_order_of_features_and_tokens(seed, d_parent, d_child):
    rng = np.random.default_rng(seed)
    parent, child = sparse_acts(rng, 60, d_parent), sparse_acts(rng, 60, d_child)
    before = matched(parent, child, top=1)
    rows, of_parent, of_child = rng.permutation(60), rng.permutation(d_parent), rng.permutation(d_child)
    after = matched(parent[rows][:, of_parent], child[rows][:, of_child], top=1)
    np.testing.assert_allclose(after.parent_r, before.parent_r[of_parent], atol=1e-9)
    np.testing.assert_allclose(after.child_r, before.child_r[of_child], atol=1e-9)
    np.testing.assert_allclose(after.parent_density, before.parent_density[of_parent])
    clear = np.isfinite(after.parent_r[:, 0]) & (after.parent_r[:, 0] > 0.05)  # partners of one r may change places
    r = np.nan_to_num(_pearson(parent, child), nan=-1)[of_parent]
    apart = np.ones(d_parent, bool) if d_child < 2 else np.diff(np.sort(r, 1)[:, -2:], axis=1)[:, 0] > 1e-9
    chosen = clear & apart
    np.testing.assert_array_equal(of_child[after.parent_match[chosen, 0]], before.parent_match[of_parent][chosen, 0])


def _pearson(parent: np.ndarray, child: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = ((x - x.mean(0)) / x.std(0) for x in (parent, child))
        return a.T @ b / len(a)


@many
@given(SEEDS, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_unit_of_activations_does_not_matter(seed, first, second):
    rng = np.random.default_rng(seed)
    parent, child = sparse_acts(rng, 80, 7), sparse_acts(rng, 80, 5)
    before, after = matched(parent, child), matched(parent * first, child * second)
    np.testing.assert_allclose(after.parent_r, before.parent_r, atol=1e-6)
    np.testing.assert_array_equal(after.parent_density, before.parent_density)


@many
@given(SEEDS, st.integers(1, 5))
def test_r_is_that_of_numpy_and_the_two_ends_agree(seed, top):
    rng = np.random.default_rng(seed)
    parent, child = sparse_acts(rng, 50, 6), sparse_acts(rng, 50, 6)
    found, turned = matched(parent, child, top=top), matched(child, parent, top=top)
    expected = np.sort(np.where(np.isfinite(r := _pearson(parent, child)), r, -np.inf), 1)[:, ::-1][:, :top]
    np.testing.assert_allclose(np.where(found.parent_match < 0, -np.inf, found.parent_r), expected, atol=1e-5)
    np.testing.assert_array_equal(found.parent_r, turned.child_r)


@many
@given(SEEDS)
def test_a_sparse_matrix_turned_twice_is_itself_and_keeps_its_moments(seed):
    rng = np.random.default_rng(seed)
    dense = sparse_acts(rng, *rng.integers(1, 30, 2))
    acts = FeatureActs.from_dense(dense)
    again = transpose(transpose(acts.sparse))
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(acts.sparse, name))
    assert stored(acts.sparse).sum() == (dense.astype(np.float32) != 0).sum()
    np.testing.assert_allclose(
        moments(acts.sparse).total, dense.astype(np.float32).astype(np.float64).sum(0), rtol=1e-9
    )


# -- accounting -------------------------------------------------------------------------------------------------


@many
@given(SEEDS, st.floats(-0.2, 0.99), st.integers(1, 3))
def test_the_flow_adds_up_and_does_not_depend_on_the_order_of_parents_and_features(seed, threshold, parents):
    rng = np.random.default_rng(seed)
    d_merge, names = int(rng.integers(1, 9)), [f"p{at}" for at in range(parents)]
    sizes = rng.integers(1, 9, parents)
    base = {name: _random_r(rng, 5, n) for name, n in zip(names, sizes, strict=True)}
    into = {name: _random_r(rng, n, d_merge) for name, n in zip(names, sizes, strict=True)}
    one = flow(*({n: matches_of(r, 9) for n, r in side.items()} for side in (base, into)), threshold)
    assert one.from_base + sum(one.emerged.values()) + one.emerged_in_both + one.novel == one.live
    order, turned = rng.permutation(d_merge), dict(reversed(into.items()))
    turned = {name: r[:, order] for name, r in turned.items()}
    other = flow(*({n: matches_of(r, 9) for n, r in side.items()} for side in (base, turned)), threshold)
    assert (one.from_base, one.emerged_in_both, one.novel, one.live) == other[:1] + other[2:5]
    assert one.emerged == other.emerged and one.undecided == other.undecided == 0


def _random_r(rng: np.random.Generator, d_parent: int, d_child: int) -> np.ndarray:
    r = rng.uniform(-0.2, 1, (d_parent, d_child)) ** rng.integers(1, 6)
    r[rng.random(d_parent) < 0.2] = np.nan
    r[:, rng.random(d_child) < 0.2] = np.nan
    return r


@many
@given(SEEDS, st.floats(-0.2, 0.99))
def test_a_higher_threshold_never_keeps_more(seed, threshold):
    matches = matches_of(_random_r(np.random.default_rng(seed), 8, 7))
    low, high = fates(matches, threshold), fates(matches, threshold + 0.05)
    assert (high.persist <= low.persist).all() and (high.inherited <= low.inherited).all()
    assert (low.persist.astype(int) + low.disappear == (matches.parent_density > 0)).all()
    assert (low.inherited.astype(int) + low.emerge == (matches.child_density > 0)).all()


def random_evidence(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Evidence on n features, of any kind, some of it missing."""

    def numbers(low: float, high: float) -> np.ndarray:
        return np.where(rng.random(n) < 0.1, np.nan, rng.uniform(low, high, n))

    figures = {}
    for name in Effects._fields[:-2]:
        figures[name] = numbers(0.001, 0.3) if name.endswith("_error") else numbers(-0.3, 1.6)
    effect = Effects(**figures, apart=rng.uniform(0, 1, n), groups=int(rng.integers(3, 40)))
    r = (numbers(-0.1, 1), numbers(-0.1, 1))
    match, reread = (Followed(one, one - rng.uniform(0, 0.2, n), one + rng.uniform(0, 0.2, n)) for one in r)
    return {"effect": effect, "stable": rng.random(n) < 0.8, "match": match, "reread": reread}


def reordered(evidence: dict[str, Any], order: np.ndarray) -> dict[str, Any]:
    effect = evidence["effect"]
    own = Effects(*(one[order] for one in effect[:-1]), groups=effect.groups)
    ends = {name: Followed(*(one[order] for one in evidence[name])) for name in ("match", "reread")}
    return {"effect": own, "stable": evidence["stable"][order], **ends}


@many
@given(SEEDS, st.integers(1, 60))
def test_every_feature_has_one_verdict_that_its_place_does_not_change(seed, n):
    rng = np.random.default_rng(seed)
    evidence, order = random_evidence(rng, n), rng.permutation(n)
    one, other = judge(**evidence), judge(**reordered(evidence, order))
    np.testing.assert_array_equal(other.verdict, one.verdict[order])
    np.testing.assert_array_equal(other.p_lost, one.p_lost[order])
    assert other.scale == one.scale
    counts = {name: int((one.verdict == at).sum()) for at, name in enumerate(VERDICTS)}
    judged = evidence["stable"] & np.isfinite(evidence["effect"].transmission)
    assert sum(counts.values()) == n and counts["unstable"] == n - judged.sum()
    p = one.p_lost[np.isfinite(one.p_lost)]
    assert ((p >= 0) & (p <= 1)).all()


@many
@given(SEEDS)
def test_a_family_has_one_member_a_model_and_is_joined(seed):
    rng = np.random.default_rng(seed)
    models = [f"m{at}" for at in range(int(rng.integers(2, 6)))]
    edges = [(models[int(rng.integers(0, at))], child) for at, child in enumerate(models) if at]
    edges += [(models[0], models[-1])] * (edges.count((models[0], models[-1])) == 0)
    matches = {edge: matches_of(_random_r(rng, 4, 4)) for edge in edges}
    start = str(rng.choice(models))
    members = family(start, int(rng.integers(0, 4)), edges, matches)
    reached = [member.model for member in members]
    assert len(set(reached)) == len(reached) and reached[0] == start
    for at, member in enumerate(members[1:], start=1):
        assert member.via in reached[:at] and {(member.via, member.model), (member.model, member.via)} & set(edges)


# -- merging ----------------------------------------------------------------------------------------------------


def tensors(seed: int, count: int, n: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, n // 3, generator=generator) for _ in range(count)]


@many
@given(SEEDS, st.floats(0, 1))
def test_slerp_turned_round_is_slerp_at_the_other_end(seed, t):
    a, b = tensors(seed, 2)
    torch.testing.assert_close(slerp(a, b, t), slerp(b, a, 1 - t), atol=1e-5, rtol=1e-5)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    torch.testing.assert_close(slerp(a, a, t), a)
    torch.testing.assert_close(slerp(2.5 * a, 2.5 * b, t), 2.5 * slerp(a, b, t), atol=1e-5, rtol=1e-5)


@many
@given(SEEDS, st.lists(st.floats(0.1, 3), min_size=2, max_size=4), st.floats(0.1, 1))
def test_merges_do_not_depend_on_the_order_of_models(seed, weights, density):
    base, *models = tensors(seed, len(weights) + 1)
    order = list(range(len(weights)))
    random.Random(seed).shuffle(order)
    turned, of = [models[at] for at in order], [weights[at] for at in order]
    close: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(linear(models, weights), linear(turned, of), **close)
    one, other = task_arithmetic(base, models, weights), task_arithmetic(base, turned, of)
    torch.testing.assert_close(one, other, **close)
    torch.testing.assert_close(ties(base, models, weights, density), ties(base, turned, of, density), **close)
    torch.testing.assert_close(ties(base, [base] * 2, [1, 1], density), base)


# -- reading and writing ----------------------------------------------------------------------------------------


@many
@given(st.lists(TEXTS, min_size=1, max_size=6, unique=True))
def test_texts_are_the_same_in_every_form_they_are_kept_in(tmp_path, texts):
    assume(all(text.strip() for text in texts))
    folder = Path(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "x.jsonl").write_text(lines, encoding="utf-8", newline="")
    (folder / "x.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False), encoding="utf-8")
    pq.write_table(pa.table({"text": texts}), folder / "x.parquet")
    table = io.StringIO(newline="")
    csv.writer(table).writerows([["text"], *([text] for text in texts)])
    (folder / "x.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    found = {}
    for name in ("x.jsonl", "x.json", "x.parquet", "x.csv"):
        found[name] = sorted(one.text for one in documents(CorpusConfig(source=f"local:{name}"), 0, folder))
    assert found["x.jsonl"] == found["x.json"] == found["x.parquet"] == found["x.csv"]


@many
@given(st.text(max_size=300), st.sampled_from(["stop", "length"]))
def test_no_answer_of_a_model_is_more_than_read_or_refused(text, finish):
    answer = Answer(text, finish, 1, 1)
    assert isinstance(parse.read_explanation(answer), str | Failure)
    levels = parse.read_levels(answer, [2, 3])
    assert levels is not None
    assert isinstance(parse.read_verdicts(answer, 3), np.ndarray | Failure)
    assert isinstance(parse.read_intruder(answer, 3), int | Failure)


@many
@given(st.text(max_size=12) | st.floats().map(str) | st.decimals().map(lambda one: f"{one}%"))
def test_a_limit_is_a_share_or_refused(text):
    try:
        assert 0 <= limit_of(text) <= 1
    except ValueError as error:
        assert "--max-lost" in str(error)


@many
@given(st.integers(0, 100))
def test_percents_mean_their_share(n):
    assert limit_of(f"{n}%") == limit_of(f"{n} %") == pytest.approx(limit_of(str(n / 100)))


@many
@given(st.text(max_size=400), st.integers(20, 200))
def test_what_reaches_a_line_is_short_and_does_nothing_to_a_terminal(text, longest):
    line = seen(short(text, longest))
    assert line.isprintable() and "\n" not in line and len(short(text, longest)) <= longest


@many
@given(st.floats(0, 1), st.integers(0, 10**9), st.integers(1, 10**9))
def test_every_value_has_a_text(share, count, whole):
    assert format.percent(share).endswith("%") and format.duration(share * 1e6)
    assert str(f"{min(count, whole):,}") in format.of(min(count, whole), whole)


@many
@given(SEEDS)
def test_a_study_written_and_read_is_the_same_and_so_is_one_in_another_order(tmp_path, seed):
    import tomllib

    values = values_in(Path(tmp_path))
    one = Study.of(values, "s", Path(tmp_path))
    again = Study.of(tomllib.loads(one.config.to_toml()), "s", Path(tmp_path))
    shuffled = Study.of(_shuffled(values, random.Random(seed)), "s", Path(tmp_path))
    assert one.config == again.config
    assert digest(one.config.sae.model_dump(mode="json")) == digest(shuffled.config.sae.model_dump(mode="json"))
    assert set(one.order) == set(shuffled.order) and set(one.edges) == set(shuffled.edges)


@cache
def values_in(folder: Path) -> dict[str, Any]:
    return study_values(folder)


def _shuffled(value: Any, rng: random.Random) -> Any:
    """The same tables, their keys in another order."""
    if not isinstance(value, dict):
        return value
    keys = list(value)
    rng.shuffle(keys)
    return {key: _shuffled(value[key], rng) for key in keys}
