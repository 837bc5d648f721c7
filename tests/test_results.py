"""A run opened from its folder: tables, matches, SAEs, models, activations, features, and what is missing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from heredity.analyses import TABLES
from heredity.engine.store import ArtifactError
from heredity.results import open as open_run
from heredity.study import StudyError


def test_every_small_table_is_there_and_the_large_ones_by_name(lineage):
    run = lineage.run
    assert run.name == "s" and run.study.order == ("base", "sums", "stories", "both") and run.seconds > 0
    assert repr(run).startswith("<Run s: corpora, ") and "missing" not in repr(run)
    assert all(isinstance(table, pa.Table) for table in run.tables.values())
    assert not {name for name in run.tables if TABLES[name].large}
    for name, table in run.tables.items():
        assert table.schema.equals(TABLES[name].schema, check_metadata=True), name
        assert run[name].equals(table)
    assert "matches" not in run.tables and len(run.table("matches")) == 12 * 2 * 128 * 5
    for name, hint in (("edge", "; did you mean edges"), ("zzzzzz", "; it has .*edges, "), ("repeats", "")):
        with pytest.raises(KeyError, match=f"run s has no table '{name}'{hint}"):
            run[name]


def test_matches_are_those_of_the_table(lineage):
    matches = lineage.run.matches("base->sums", "joint")
    rows = lineage.rows("matches", edge="base->sums", instrument="joint", end="parent", rank=1)
    assert matches.parent_match[:, 0].tolist() == [row["match"] for row in rows]
    np.testing.assert_array_equal(matches.parent_r[:, 0], np.array([row["r"] for row in rows], float))
    (edge,) = lineage.rows("edges", edge="base->sums", instrument="joint", rule="evidence")
    assert (matches.parent_r[:, 0] > edge["threshold"]).sum() == edge["persist"] and matches.tokens == edge["tokens"]
    assert (matches.child_density > 0).sum() == edge["child_live"]


def test_models_saes_tokenizers_and_activations_fit_together(lineage):
    run = lineage.run
    tokenizer, model, sae, acts = run.tokenizer(), run.model("sums"), run.sae("sums"), run.acts("sums")
    ids = torch.tensor([tokenizer.encode("3 plus 4 = 7;")])
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.shape == (1, ids.shape[1], len(tokenizer))
    assert sae.W_enc.shape == (32, 128) and acts.d_sae == 128 and acts.tokens >= 3_000
    assert run.sae("base", "joint").W_enc.equal(run.sae("sums", "joint").W_enc)
    assert not run.sae("base", "parent").W_enc.equal(sae.W_enc)


def test_a_feature_is_shown_as_html_in_a_notebook(lineage):
    matches = lineage.run.matches("base->sums")
    feature = int(np.nanargmax(matches.parent_r[:, 0]))
    shown = lineage.run.feature("base", feature)
    page = shown._repr_html_()
    assert f"base/{feature}" in page and "base-&gt;sums" in page and "rgba(255,140,0," in page
    assert shown.values["feature"] == feature and json.dumps(shown.values)
    firings = {name: lineage.run.acts(name).firings() for name in lineage.run.study.order}
    name, silent = next((name, int(np.argmin(own))) for name, own in firings.items() if own.min() == 0)
    assert f"{name}/{silent}" in lineage.run.feature(name, silent)._repr_html_(), "one that never fires"


def test_what_the_study_does_not_have_is_refused_by_name(lineage):
    run = lineage.run
    for call, message in (
        (lambda: run.matches("base->both"), "edge 'base->both': study s has base->sums, base->stories"),
        (lambda: run.matches("base->sums", "crosscoder"), "instrument 'crosscoder': study s has parent, independent"),
        (lambda: run.model("nowhere"), "model 'nowhere': study s has base, sums"),
        (lambda: run.sae("nowhere"), "model 'nowhere': study s has base, sums"),
        (lambda: run.acts("sums", "x"), "instrument 'x'"),
    ):
        with pytest.raises(StudyError, match=message):
            call()


def test_what_is_not_done_is_named_and_the_rest_is_there(lineage, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(lineage.run.folder, part, ignore=lambda _, names: {"match", "explain"} & {*names})
    run = open_run(part)
    assert len(run.missing) == 15 and "match/base+sums@joint" in run.missing and "explain/joint" in run.missing
    assert "15 of " in repr(run) and "edges" not in run.tables and "accuracy" in run.tables
    with pytest.raises(ArtifactError, match=r"match/base\+sums@parent of study s is not done in .*until match"):
        run.matches("base->sums")
    with pytest.raises(KeyError, match="run s has no table 'edges'"):
        run.table("edges")
    assert run.sae("base").W_enc.shape == (32, 128) and run.statements


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no run .*give a folder such as runs/demo"):
        open_run(tmp_path)
    (tmp_path / "track.json").write_text("{}")
    with pytest.raises(ArtifactError, match="tables of one edge that `heredity track` wrote, .*evidence.parquet"):
        open_run(tmp_path)
    (tmp_path / "track.json").rename(tmp_path / "summary.json")
    with pytest.raises(ArtifactError, match=r"a run of heredity 0\.1\.0 .*; run its study again"):
        open_run(tmp_path)
    names = ['{"toml": "x = [", "study": "s", "root": "."}', '{"toml": "", "study": 5, "root": "."}']
    for broken in ("no json", "{}", *names, "[1]"):
        (tmp_path / "run.json").write_text(broken)
        with pytest.raises(ArtifactError, match=r"run\.json: cannot be read .*; run the study again"):
            open_run(tmp_path)
