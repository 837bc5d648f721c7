"""`heredity show`: all that is known of one feature of a study that has been run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tiny
from heredity.analyses import stages_of
from heredity.analyses.features import FEATURES
from heredity.analyses.query import sample_of, show
from heredity.analyses.sample import Sample
from heredity.cli import app
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.run import Run
from heredity.study import Study

_PUSHED = ("token", "weight")


class Done(NamedTuple):
    """A study that has been run."""

    folder: Path
    """With the study's file."""
    study: Study
    """The study."""
    store: Store
    """Its artifacts."""
    sample: Sample
    """What its features are shown on."""

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A Parquet table of an artifact."""
        return pq.read_table(next(self.store.root.glob(f"*/*/{table}"))).to_pylist()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("study")
    values = tiny.study_values(folder)
    values["sae"] |= {"init": ["joint"], "tokens": 20_000}
    values["controls"] = {"seeds": 1, "newness": 0, "passes": 1, "resamples": 100}
    values["explain"] = {"features": 4}
    study, store = Study.of(values, "s", folder), Store(folder / "runs" / "s")
    (folder / "s.toml").write_text(study.config.to_toml())
    run(stages_of(study), store, until="explain")
    sample = sample_of(Run(study, store.root), study.order, matched=True)
    return Done(folder, study, store, sample)


@pytest.fixture(scope="module")
def listed(done) -> dict[str, Any]:
    """What `features.json` says of the most persistent feature."""
    return json.loads(next(done.store.root.glob(f"features/*/{FEATURES}")).read_text())[0]


@pytest.fixture(scope="module")
def found(done, listed) -> dict[str, Any]:
    return shown(done, f"{listed['model']}/{listed['feature']}")


def shown(done: Done, *more: str, code: int = 0) -> dict[str, Any]:
    arguments = ["show", str(done.folder / "s.toml"), "--runs", str(done.folder / "runs"), "--json", *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else {"error": " ".join(result.stderr.split())}


def dense(done: Done, model: str, feature: int) -> np.ndarray:
    """Activations of a feature, [blocks, context]: the plain reference."""
    return done.sample.acts[model].dense()[:, feature].reshape(done.sample.ids.shape)


def test_counts_tokens_and_histogram_are_those_of_the_activations(done, found):
    values, ids = dense(done, found["model"], found["feature"]), done.sample.ids
    firing = values[values > 0]
    assert len(firing) >= 20
    assert found["positions"] == ids.size and found["context_size"] == ids.shape[1]
    assert found["firings"] == len(firing) and found["density"] == len(firing) / ids.size
    assert found["max"] == values.max()
    counts, _ = np.histogram(firing.astype(np.float64), 50, (0, float(values.max())))
    assert found["histogram"] == counts.tolist()
    totals = np.bincount(ids.ravel(), values.ravel().astype(np.float64), len(done.sample.vocabulary))
    order = np.argsort(-totals, kind="stable")[: min(20, (totals > 0).sum())]
    assert [row["token"] for row in found["tokens"]] == [done.sample.vocabulary[token] for token in order]
    for row, token in zip(found["tokens"], order, strict=True):
        own = values[ids == token]
        assert row["share"] == pytest.approx(totals[token] / firing.sum(dtype=np.float64))
        assert row["firings"] == (own > 0).sum() and row["fired"] == pytest.approx((own > 0).mean())
        assert row["mean"] == pytest.approx(own[own > 0].mean(dtype=np.float64))


def test_examples_carry_the_activations_of_their_text(done, found):
    values, vocabulary = dense(done, found["model"], found["feature"]), done.sample.vocabulary
    blocks: dict[tuple[str, ...], list[int]] = {}
    for block, ids in enumerate(done.sample.ids.tolist()):
        blocks.setdefault(tuple(vocabulary[token] for token in ids), []).append(block)

    def block_of(example: dict[str, Any]) -> int:
        """The block an example is from, told by its text and, where that occurs again, by what the feature does."""
        own = np.array(example.get("values", np.zeros(values.shape[1])))
        (block, *_) = [at for at in blocks[tuple(example["tokens"])] if np.abs(values[at] - own).max() <= 5.1e-5]
        assert example["corpus"] in done.sample.corpora
        return block

    peaks = np.sort(values.max(1))[::-1]
    for rank, example in enumerate(found["top"]):
        block = block_of(example)
        assert example["values"][example["position"]] == pytest.approx(peaks[rank], abs=1e-4)
        for member in found["family"][1:]:
            expected = dense(done, member["model"], member["feature"])[block]
            np.testing.assert_allclose(example["family"][member["model"]], expected, atol=1e-4)
    assert len(found["top"]) == min(20, (peaks > 0).sum()) and len(found["family"]) > 1
    assert len(found["levels"]) == 10 and any(level["examples"] for level in found["levels"])
    for level in found["levels"]:
        inside = (values > level["low"] + 1e-6) & (values < level["high"] - 1e-6)
        assert bool(level["examples"]) >= inside.any()
        for example in level["examples"]:
            block_of(example)
            assert level["low"] - 1e-4 <= example["values"][example["position"]] <= level["high"] + 1e-4
    assert all(block_of(example) >= 0 and example["values"][example["position"]] > 0 for example in found["drawn"])
    assert len(found["drawn"]) == 10
    assert len(found["silent"]) == min(10, (peaks == 0).sum())
    assert all(values[block_of(example)].max() == 0 for example in found["silent"])


def test_the_run_has_said_the_same(done, found, listed):
    """Of the features that the report lists it holds predictions, families, classes and explanations already."""
    for name in ("density", "max", "family"):
        assert found[name] == listed[name]
    for name in ("promoted", "suppressed"):
        tokens, weights = ([[row[key] for row in side[name]] for side in (found, listed["card"])] for key in _PUSHED)
        assert tokens[0] == tokens[1]
        np.testing.assert_allclose(*weights, rtol=1e-5)
    assert found["no_logits"] == listed["card"]["no_logits"] == ""
    assert len(found["promoted"]) == 10 and found["promoted"][0]["weight"] > 0 > found["suppressed"][0]["weight"]
    assert found["tokens"][:10] == listed["card"]["tokens"]
    key = (found["model"], found["feature"])
    (row,) = [row for row in done.rows("feature_classes.parquet") if (row["model"], row["feature"]) == key]
    assert found["class"] == {name: row[name] for name in found["class"]} and found["class"]["class"] != "silent"
    (row,) = [row for row in done.rows("explanations.parquet") if (row["model"], row["feature"]) == key]
    assert not found["explanation"]["on_the_spot"] and "rule" not in found["explanation"]
    assert found["explanation"]["description"] == row["description"]
    assert found["explanation"]["simulation"] == row["simulation"]


def test_matches_are_told_along_every_edge_of_the_model(done):
    matches, threshold = done.sample.matches, done.sample.threshold
    feature = int(np.argmax(matches["sums", "both"].child_r[:, 0] >= 0))
    rows = {row["edge"]: row for row in show(Run(done.study, done.store.root), "both", feature)["matches"]}
    assert rows.keys() == {"sums->both", "stories->both"}
    for parent in ("sums", "stories"):
        row, r = rows[f"{parent}->both"], matches[parent, "both"].child_r[feature, 0]
        assert row["model"] == parent and row["threshold"] == threshold[parent, "both"]
        assert row["persists"] == bool(r > row["threshold"])
        if row["feature"] is not None:
            assert row["r"] == float(r) and row["feature"] == matches[parent, "both"].child_match[feature, 0]


def test_what_the_run_did_not_explain_is_explained_on_the_spot(done):
    known = {row["feature"] for row in done.rows("explanations.parquet") if row["model"] == "base"}
    often = np.argsort(-done.sample.firings["base"])
    other = next(feature for feature in often.tolist() if feature not in known)
    said = shown(done, f"base/{other}")["explanation"]
    assert said["on_the_spot"] and said["description"] and said["by"] == "offline"
    assert (said["origin_model"], said["origin_feature"]) == ("base", other) and 0 <= said["simulation"] <= 1
    silent = np.flatnonzero(done.sample.firings["base"] == 0)
    assert len(silent), "the tiny study has silent features"
    found = shown(done, f"base/{silent[0]}")
    assert found["class"]["class"] == "silent" and found["explanation"]["failure"] == "too_rare"
    assert found["firings"] == 0 and found["max"] == 0 and found["tokens"] == found["top"] == []
    assert len(found["silent"]) == 10


def test_what_is_not_there_is_said_or_named(done, found, tmp_path):
    part = Store(tmp_path / "part")
    shutil.copytree(done.store.root, part.root, ignore=lambda _, names: {"classes", "explain", "model"} & {*names})
    less = show(Run(done.study, part.root), found["model"], found["feature"])
    assert less["class"] is None and less["explanation"]["on_the_spot"]
    assert less["promoted"] == [] and f"model/{found['model']} of study s is not done" in less["no_logits"]
    same = set(less) - {"class", "explanation", "promoted", "suppressed", "no_logits"}
    assert {name: less[name] for name in same} == {name: found[name] for name in same}
    shutil.rmtree(part.root / "match")
    with pytest.raises(ValueError, match=r"match/base.sums@joint .*is not done in .*until match"):
        show(Run(done.study, part.root), found["model"], found["feature"])


def test_what_cannot_be_shown(done):
    for feature, part in (
        ("nowhere/1", "nowhere/1: no model of study s; models are base, sums, stories, both"),
        ("base/99999", "base/99999: its SAE has 128 features, counted from 0"),
        ("base", "error: feature 'base': must be a model, a slash and a number, such as base/12"),
        ("base/-1", "must be a model, a slash and a number"),
        ("base/1,base/2", "one feature is shown at a time; give one of these 2"),
    ):
        assert part in shown(done, feature, code=2)["error"], feature


def test_a_feature_is_printed_in_text(done, found):
    arguments = ["show", str(done.folder / "s.toml"), f"{found['model']}/{found['feature']}", "--top", "2"]
    result = CliRunner().invoke(app, [*arguments, "--runs", str(done.folder / "runs")])
    assert result.exit_code == 0, result.output
    assert " ".join(found["explanation"]["description"].split()) in " ".join(result.stdout.split())
    assert f"{found['model']}/{found['feature']}" in result.stdout and "«" in result.stdout
