"""What a run answers at once: features by what they fire on, and all that is known of one feature."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from heredity.analyses.inspector import Inspector
from heredity.analyses.query import find, sample_of
from heredity.analyses.sample import Sample
from heredity.features.hypothesis import llr
from heredity.results import Run, open
from heredity.study import CaseConfig
from tiny import command


def show(run: Run, model: str, feature: int) -> dict[str, Any]:
    return Inspector(run).show(model, feature)


@pytest.fixture(scope="module")
def sample(lineage) -> Sample:
    return sample_of(lineage.run, lineage.run.study.order)


@pytest.fixture(scope="module")
def listed(lineage) -> dict[str, Any]:
    """What the features stage wrote of the most persistent feature."""
    features = lineage.artifact(("features", {"instrument": "parent", "site": lineage.run.study.site}))
    return json.loads((features / "features.json").read_text())[0]


@pytest.fixture(scope="module")
def shown(lineage, listed) -> dict[str, Any]:
    return show(lineage.run, listed["model"], listed["feature"])


def dense(sample: Sample, model: str, feature: int) -> np.ndarray:
    """Activations of a feature, [blocks, context]: the plain reference."""
    return sample.acts[model].dense()[:, feature].reshape(sample.ids.shape)


def test_features_are_found_by_what_they_fire_on(lineage):
    case = CaseConfig(tokens=("=", " ="))
    result = find(lineage.run, case, top=3)
    rows = {row["model"]: row for row in lineage.rows("cases", case="assignment", instrument="parent")}
    for model in ("base", "sums", "stories", "both"):
        first = result["models"][model]
        assert first[0]["feature"] == rows[model]["best_feature"] and first[0]["llr"] == rows[model]["best_llr"]
        assert [row["sensitivity"] for row in first] == sorted((row["sensitivity"] for row in first), reverse=True)
    assert {match["edge"] for match in result["models"]["both"][0]["matches"]} == {"sums->both", "stories->both"}
    assert list(find(lineage.run, case, ["sums"])["models"]) == ["sums"]


def test_counts_tokens_and_histogram_are_those_of_the_activations(sample, shown):
    values, ids = dense(sample, shown["model"], shown["feature"]), sample.ids
    firing = values[values > 0]
    expected = {"positions": ids.size, "context_size": ids.shape[1], "firings": len(firing), "max": values.max()}
    expected["density"] = len(firing) / ids.size
    assert {name: shown[name] for name in expected} == expected and len(firing) >= 20
    counts, _ = np.histogram(firing.astype(np.float64), 50, (0, float(values.max())))
    assert shown["histogram"] == counts.tolist()
    totals = np.bincount(ids.ravel(), values.ravel().astype(np.float64), len(sample.vocabulary))
    order = np.argsort(-totals, kind="stable")[: min(20, (totals > 0).sum())]
    assert [row["token"] for row in shown["tokens"]] == [sample.vocabulary[token] for token in order]
    for row, token in zip(shown["tokens"], order, strict=True):
        own = values[ids == token]
        assert row["share"] == pytest.approx(totals[token] / firing.sum(dtype=np.float64))
        assert row["firings"] == (own > 0).sum() and row["fired"] == pytest.approx((own > 0).mean())
        assert row["mean"] == pytest.approx(own[own > 0].mean(dtype=np.float64))
        hits = ids.ravel() == token
        assert row["llr"] == pytest.approx(float(llr(sample.acts[shown["model"]], hits).weighted[shown["feature"]]))


def test_examples_carry_the_activations_of_their_text(sample, shown):
    values, vocabulary = dense(sample, shown["model"], shown["feature"]), sample.vocabulary
    blocks: dict[tuple[str, ...], list[int]] = {}
    for block, ids in enumerate(sample.ids.tolist()):
        blocks.setdefault(tuple(vocabulary[token] for token in ids), []).append(block)

    def block_of(example: dict[str, Any]) -> int:
        """The block an example is from, known by its text and, where that occurs again, by what the feature does."""
        own = np.array(example.get("values", np.zeros(values.shape[1])))
        (block, *_) = [at for at in blocks[tuple(example["tokens"])] if np.abs(values[at] - own).max() <= 5.1e-5]
        assert example["corpus"] in sample.corpora
        return block

    peaks = np.sort(values.max(1))[::-1]
    for rank, example in enumerate(shown["top"]):
        block = block_of(example)
        assert example["values"][example["position"]] == pytest.approx(peaks[rank], abs=1e-4)
        for member in shown["family"][1:]:
            expected = dense(sample, member["model"], member["feature"])[block]
            np.testing.assert_allclose(example["family"][member["model"]], expected, atol=1e-4)
    assert len(shown["top"]) == min(20, (peaks > 0).sum()) and len(shown["family"]) > 1
    assert len(shown["levels"]) == 10 and any(level["examples"] for level in shown["levels"])
    for level in shown["levels"]:
        inside = (values > level["low"] + 1e-6) & (values < level["high"] - 1e-6)
        assert bool(level["examples"]) >= inside.any()
        for example in level["examples"]:
            block_of(example)
            assert level["low"] - 1e-4 <= example["values"][example["position"]] <= level["high"] + 1e-4
    assert all(block_of(example) >= 0 and example["values"][example["position"]] > 0 for example in shown["drawn"])
    assert len(shown["drawn"]) == 10
    assert len(shown["silent"]) == min(10, (peaks == 0).sum())
    assert all(values[block_of(example)].max() == 0 for example in shown["silent"])


def test_the_run_holds_the_same(lineage, shown, listed):
    """Of the features that the page lists it holds predictions, families, classes and explanations already."""
    assert all(shown[name] == listed[name] for name in ("density", "max", "family"))
    for name in ("promoted", "suppressed"):
        sides = [[[row[key] for row in side[name]] for side in (shown, listed["card"])] for key in ("token", "weight")]
        assert sides[0][0] == sides[0][1]
        np.testing.assert_allclose(*sides[1], rtol=1e-5)
    assert shown["no_logits"] == listed["card"]["no_logits"] == ""
    assert len(shown["promoted"]) == 10 and shown["promoted"][0]["weight"] > 0 > shown["suppressed"][0]["weight"]
    assert [{k: v for k, v in row.items() if k != "llr"} for row in shown["tokens"][:10]] == listed["card"]["tokens"]
    key = {"instrument": "parent", "model": shown["model"], "feature": shown["feature"]}
    (row,) = lineage.rows("feature_classes", **key)
    assert shown["class"] == {name: row[name] for name in shown["class"]} and shown["class"]["class"] != "silent"
    (row,) = lineage.rows("explanations", **key)
    assert not shown["explanation"]["on_the_spot"] and "rule" not in shown["explanation"]
    assert shown["explanation"]["description"] == row["description"]
    assert shown["explanation"]["simulation"] == row["simulation"]


def test_matches_are_listed_along_every_edge_of_the_model(lineage, sample):
    matches, threshold = sample.matches, sample.threshold
    feature = int(np.argmax(matches["sums", "both"].child_r[:, 0] >= 0))
    rows = {row["edge"]: row for row in show(lineage.run, "both", feature)["matches"]}
    assert rows.keys() == {"sums->both", "stories->both"}
    for parent in ("sums", "stories"):
        row, r = rows[f"{parent}->both"], matches[parent, "both"].child_r[feature, 0]
        assert row["model"] == parent and row["threshold"] == threshold[parent, "both"]
        assert row["persists"] == bool(r > row["threshold"])
        if row["feature"] is not None:
            assert row["r"] == float(r) and row["feature"] == matches[parent, "both"].child_match[feature, 0]


def test_verdicts_are_those_of_the_evidence_along_every_edge(lineage):
    edge, instrument = "base->sums", lineage.run.study.instrument
    rows = lineage.rows("evidence", edge=edge, instrument=instrument, end="parent")
    row = next(row for row in rows if row["transmission"] is not None and row["verdict"] != "unstable")
    scale = lineage.rows("verdicts", edge=edge, instrument=instrument, end="parent")[0]["scale"]
    said = show(lineage.run, "base", row["feature"])["verdicts"]
    assert [one["model"] for one in said] == ["sums", "stories"] and said[0]["verdict"] == row["verdict"]
    assert said[0]["transmission"] == row["transmission"] / scale and said[0]["stability"] == row["stability"]
    text = command("show", lineage.path, f"base/{row['feature']}", "--runs", lineage.runs).stdout
    assert f"verdict in sums: {row['verdict']} (transmission {said[0]['transmission']:.2f}, match r " in text
    best = find(lineage.run, CaseConfig(tokens=(" =", "=")), ["both"])["models"]["both"][0]
    assert best["verdicts"] == show(lineage.run, "both", best["feature"])["verdicts"] != []


def test_what_the_run_did_not_explain_is_explained_on_the_spot(lineage, sample):
    known = {row["feature"] for row in lineage.rows("explanations", instrument="parent", model="base")}
    frequent = np.argsort(-sample.firings["base"], kind="stable")
    other = next(feature for feature in frequent.tolist() if feature not in known)
    explanation = show(lineage.run, "base", other)["explanation"]
    assert explanation["on_the_spot"] and explanation["description"] and explanation["by"] == "offline"
    assert (explanation["origin_model"], explanation["origin_feature"]) == ("base", other)
    assert -1 <= explanation["simulation"] <= 1
    silent = next((name, int(own.argmin())) for name, own in sample.firings.items() if own.min() == 0)
    shown = show(lineage.run, *silent)
    assert shown["class"]["class"] == "silent" and shown["explanation"]["failure"] == "too_rare"
    assert shown["firings"] == 0 and shown["max"] == 0 and shown["tokens"] == shown["top"] == []
    assert len(shown["silent"]) == 10


def test_what_is_not_there_is_left_out_or_named(lineage, shown, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(
        lineage.run.folder, part, ignore=lambda _, names: {"classes", "explain", "model", "reference_model"} & {*names}
    )
    less = show(open(part), shown["model"], shown["feature"])
    assert less["class"] is None and less["explanation"]["on_the_spot"]
    assert less["promoted"] == [] and f"model/{shown['model']} of study s is not done" in less["no_logits"]
    same = set(less) - {"class", "explanation", "promoted", "suppressed", "no_logits"}
    assert {name: less[name] for name in same} == {name: shown[name] for name in same}
    shutil.rmtree(part / "match")
    run: Run = open(part)
    with pytest.raises(ValueError, match=r"match/base\+sums@parent .*is not done in .*until match"):
        show(run, shown["model"], shown["feature"])
    edge = find(run, CaseConfig(tokens=(" =", "=")), ["base"])["models"]["base"][0]["matches"]
    assert edge == [], "an edge that is not matched yet is left out"


def test_what_cannot_be_shown_or_found(lineage):
    for ask, *more, part in (
        (show, "nowhere", 1, "nowhere/1: no model of study s; models are base, sums, stories, both"),
        (show, "base", 99_999, "base/99999: its SAE has 128 features, counted from 0"),
        (show, "base", -1, "base/-1: its SAE has 128 features"),
        (find, CaseConfig(tokens=("=",)), ["nowhere"], "--model nowhere: no model of study s"),
        (find, CaseConfig(tokens=("no such token",)), r"0 of .* not in the vocabulary: \['no such token'\]"),
    ):
        with pytest.raises(ValueError, match=part):
            ask(lineage.run, *more)
