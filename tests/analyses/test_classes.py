"""The stage finds planted classes among kept, lost and new features of a study's edges, on the study's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import artifacts
import tiny
from heredity.analyses import Pipeline, classes
from heredity.analyses.classes import _paths
from heredity.analyses.reading import sampler_of, tokenizer_of
from heredity.analyses.sample import sample_settings
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.features.acts import FeatureActs
from heredity.features.classes import CLASSES
from heredity.features.correlate import correlate
from heredity.features.null import PAPER
from heredity.study import Edge, load_study

FEATURES: Mapping[str, tuple[str, ...]] = {
    "base": ("periods", "lines", "name", "words", "noise 1", "dead"),
    "sums": ("lines", "periods", "digits", "noise 2", "few", "dead"),
    "stories": ("periods", "lines", "name", "noise 3", "noise 4", "dead"),
    "both": ("lines", "digits", "noise 5", "dead", "periods", "name"),
}
"""What every feature of every model fires on; the same name fires on the same tokens, a noise on its own."""


def column(name: str, words: np.ndarray, in_words: np.ndarray) -> np.ndarray:
    """Activations of a feature. words: text of every token; in_words: whether it is of the corpus `words`."""
    rng = np.random.default_rng(list(name.encode()))
    if name.startswith("noise"):
        return rng.random(len(words)) * (rng.random(len(words)) < 0.05)
    where = {
        "periods": words == ".",
        "lines": words == "\n",
        "name": words == " y",
        "digits": np.array([word.strip().isdigit() for word in words]),
        "words": in_words & (rng.random(len(words)) < 0.2),
        "few": (words == ".") & (np.cumsum(words == ".") <= 9),
        "dead": np.zeros(len(words), bool),
    }[name]
    return where * rng.uniform(0.9, 1.1, len(words))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("classes")
    study = load_study(str(tiny.toml(tiny.study_values(folder), folder / "s.toml")))
    pipeline, settings = Pipeline(study), sample_settings(study)
    done = run(pipeline.closure(f"tokens/{name}" for name in study.config.corpus), Store(folder / "runs"))
    tokens = {name: done[f"tokens/{name}"] for name in study.config.corpus}
    size, blocks = settings.context_size, -(-settings.tokens // settings.context_size)
    sampler = sampler_of(tokens, "train", size, settings.seed, "equal")
    ids, corpus = sampler.take(0, blocks).ravel(), np.repeat(sampler.origin(0, blocks)[0], size)
    tokenizer = tokenizer_of(done["tokenizer/base"])
    words = np.array([str(tokenizer.decode([number])) for number in range(len(tokenizer))], object)[ids]
    in_words = corpus == sampler.names.index("words")
    acts = {
        model: FeatureActs.from_dense(np.stack([column(name, words, in_words) for name in names], 1))
        for model, names in FEATURES.items()
    }
    inputs = {
        "tokenizer": done["tokenizer/base"],
        "tokens": tokens,
        "acts": {model: artifacts.acts_artifact(folder / f"acts-{model}", own) for model, own in acts.items()},
        "match": {
            edge.name: artifacts.match_artifact(
                folder / f"{edge.parent}+{edge.child}", edge, acts[edge.parent], acts[edge.child], 0.7
            )
            for edge in study.edges
        },
    }
    work = artifacts.work_of(folder / "work", inputs)
    rows = classes.ANALYSIS.run(work, classes.ClassesSettings(settings, 0.95))
    return {one.name: one.check(rows[one.name], **artifacts.SITE).to_pylist() for one in classes.ANALYSIS.tables}


def rows(tables: dict[str, list[dict[str, Any]]], table: str, **key: object) -> list[dict[str, Any]]:
    return [row for row in tables[table] if all(row[name] == value for name, value in key.items())]


def held(tables: dict[str, list[dict[str, Any]]], subject: str, fate: str) -> dict[str, int]:
    """Classes of some features that any of them has, with their numbers."""
    own = rows(tables, "classes", subject=subject, fate=fate, kind="class")
    return {row["class"]: row["features"] for row in own if row["features"]}


def test_models_have_the_planted_classes(tables):
    assert held(tables, "base", "live") == {
        "punctuation": 1, "line break": 1, "single-token": 1, "domain": 1, "mixed": 1
    }  # fmt: skip
    assert held(tables, "sums", "live") == {"punctuation": 1, "line break": 1, "number": 1, "mixed": 1}
    (sums,) = rows(tables, "class_groups", subject="sums")
    assert (sums["features"], sums["judged"], sums["rare"], sums["silent"]) == (5, 4, 1, 0)
    assert rows(tables, "classes", subject="base", kind="domain", **{"class": "words"})[0]["features"] == 1
    languages = {row["corpus"]: row["language"] for row in tables["corpus_languages"]}
    assert languages == {"words": "prose", "code": "python", "sums": "prose", "stories": "prose"}
    assert sum(row["share"] for row in tables["token_categories"]) == pytest.approx(1)


def test_an_edge_keeps_punctuation_and_lines_loses_words_and_makes_digits(tables):
    edge = "base->sums"
    assert held(tables, edge, "persist") == {"punctuation": 1, "line break": 1}
    assert held(tables, edge, "disappear") == {"single-token": 1, "domain": 1, "mixed": 1}
    assert held(tables, edge, "emerge") == {"number": 1, "mixed": 1}
    groups = {row["fate"]: row for row in rows(tables, "class_groups", subject=edge)}
    assert groups["emerge"]["rare"] == 1
    assert groups["live"]["features"] == groups["persist"]["features"] + groups["disappear"]["features"] == 5
    assert groups["child_live"]["features"] == groups["inherited"]["features"] + groups["emerge"]["features"] == 5
    shares = {row["class"]: row for row in rows(tables, "classes", subject=edge, fate="persist", kind="group")}
    assert {name: row["share"] for name, row in shares.items()} == {
        "punctuation": 0.5, "formatting": 0.5, "code": 0.0, "single-token": 1.0
    }  # fmt: skip
    assert all(row["share_low"] <= row["share"] <= row["share_high"] for row in shares.values())
    gaps = {row["class"]: row for row in rows(tables, "group_gaps", edge=edge)}
    assert gaps["formatting"]["gap"] == 0.5 and gaps["formatting"]["gap_low"] <= 0.5 <= gaps["formatting"]["gap_high"]
    gaps = {row["class"]: row for row in rows(tables, "class_gaps", edge=edge)}
    assert gaps["mixed"]["gap"] == pytest.approx(-1 / 3)
    assert gaps["upper-case"]["gap_low"] < 0 < gaps["upper-case"]["gap_high"], "a class of neither"


def test_what_flows_the_whole_way_is_counted_in_the_last_model(tables):
    assert held(tables, "base->sums->both", "flow") == {"punctuation": 1, "line break": 1}
    assert held(tables, "base->stories->both", "flow") == {"punctuation": 1, "line break": 1, "single-token": 1}
    paths = {row["subject"] for row in rows(tables, "class_groups", fate="flow")}
    assert paths == {"base->sums->both", "base->stories->both"}
    groups = {row["group"]: row for row in rows(tables, "path_groups", path="base->stories->both", rule="own")}
    assert {name: row["features"] for name, row in groups.items() if row["features"]} == {
        "punctuation": 1, "formatting": 1, "code": 1, "single-token": 3
    }  # fmt: skip
    assert all(row["flowing"] == row["judged"] == 3 for row in groups.values())
    assert groups["formatting"]["share"] == pytest.approx(1 / 3) and groups["code"]["share_high"] < 1


def test_paths_are_counted_at_the_papers_threshold_too():
    """A feature that follows at r = 0.75 flows the whole way at an edge's own threshold of 0.7, and not at 0.8."""
    rng = np.random.default_rng(0)
    one = rng.random((4000, 1)) * (rng.random((4000, 1)) < 0.1)
    weaker = one + 0.15 * rng.normal(size=one.shape)
    matches = correlate(*(FeatureActs.from_dense(values) for values in (one, weaker)), workers=1)
    assert 0.7 < matches.parent_r[0, 0] < 0.8
    middle = correlate(*(FeatureActs.from_dense(values) for values in (weaker, weaker)), workers=1)
    edges = [Edge("base", "a"), Edge("a", "b")]
    flowing = [
        [chosen.tolist() for *_, chosen in _paths(edges, {edges[0]: matches.above(at), edges[1]: middle.above(at)})]
        for at in (0.7, PAPER)
    ]
    assert flowing == [[[True]], [[False]]]


def test_there_is_a_row_for_every_feature_that_fires(tables):
    features = {(row["model"], FEATURES[row["model"]][row["feature"]]): row for row in tables["feature_classes"]}
    assert len(features) == sum(name != "dead" for names in FEATURES.values() for name in names)
    assert {row["class"] for row in features.values()} <= set(CLASSES)
    name = features["base", "name"]
    assert (name["class"], name["single_token"], name["domain"], name["top_token"]) == (
        "single-token",
        True,
        "code",
        "y",
    )
    assert features["sums", "few"]["class"] == "rare" and features["sums", "few"]["firings"] == 9
    assert features["base", "words"]["domain"] == "words" and features["base", "words"]["domain_share"] == 1
    assert features["base", "noise 1"]["domain"] is None and features["base", "noise 1"]["class"] == "mixed"
