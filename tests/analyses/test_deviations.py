"""Settings of studies beside those of the papers they follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from heredity.analyses import stages_of
from heredity.analyses.deviations import ANALYSIS, DEVIATIONS, PAPERS
from heredity.study import Study, load_study

STUDIES = Path(__file__).parents[2] / "studies"
# What the study of the first paper leaves to this machine, and its threshold: counts at 0.8 stand beside others anyway.
PUBLISHED = ['tokenizer.load="mistralai/Mistral-7B-v0.1"', "text=hub", "lineage.threshold=0.8"]


def rows_of(study: Study) -> dict[str, dict[str, Any]]:
    """Rows of the study's table by setting."""
    (item,) = ANALYSIS.items(study)
    table = DEVIATIONS.check(ANALYSIS.settings(study, item).rows).to_pylist()
    assert [row["setting"] for row in table] == [one.setting for one in PAPERS[study.config.paper or ""]]
    return {row["setting"]: row for row in table}


def test_a_study_with_the_papers_settings_differs_in_nothing():
    rows = rows_of(load_study(str(STUDIES / "tracking.toml"), PUBLISHED))
    assert [row for row in rows.values() if not row["same"] or row["why"]] == []
    assert rows["base.tokens"]["ours"] == "3 epochs" and rows["sae.betas"]["ours"] == "0.9, 0.9999"
    assert rows["base.kv_heads"]["ours"] == "8" and rows["base.tie_embeddings"]["ours"] == "no"


def test_what_was_changed_is_told_and_nothing_else():
    changes = {
        "sae.tokens=1_500_000": ("sae.tokens", "1,500,000", "10 % of it: less to compute"),
        "sae.lr=0.001": ("sae.lr", "0.001", "higher, for a shorter training"),
        "model.stories.lr=0.001": ("finetune.lr", "lua 2e-05, stories 0.001", ""),
        "model.base.train.tokens=3_000_000": ("base.tokens", "3,000,000", "0.3 % of it: less to compute"),
        "model.lua_stories.merge.t=0.5": ("merge.t", "0.5", ""),
        "sae.l0=[20, 30]": None,  # without effect beside a coefficient
    }
    rows = rows_of(load_study(str(STUDIES / "tracking.toml"), [*PUBLISHED, *changes]))
    different = {name: (name, row["ours"], row["why"]) for name, row in rows.items() if not row["same"]}
    assert different == {told[0]: told for told in changes.values() if told}
    plain = rows_of(load_study(str(STUDIES / "tracking.toml")))
    assert {name for name, row in plain.items() if not row["same"]} == {
        *("base.corpora", "finetune.corpora", "lineage.threshold")
    }
    small = rows_of(load_study(str(STUDIES / "tracking_cpu.toml")))
    assert "the range that the paper reports" in small["sae.l1_coefficient"]["why"]
    assert plain["base.corpora"]["why"] == "text of this machine"
    topk = rows_of(load_study(str(STUDIES / "tracking_joint.toml")))["sae.l1_coefficient"]
    assert (topk["ours"], topk["why"]) == ("none", "L0 is set by k = 16")


def test_the_second_papers_settings_are_those_of_the_first_stitch():
    study = load_study(str(STUDIES / "stitching.toml"), ["stitch.small-large.tokens=92_160_000"])
    rows = rows_of(study)
    assert rows["stitch.tokens"]["same"] and rows["stitch.alpha"]["same"] and rows["stitch.probes.sizes"]["same"]
    assert rows["stitch.models"]["ours"] == "trained here; trained here" and rows["stitch.arms"]["same"]
    assert rows["stitch.method"]["why"] == "the exact minimum of the same loss; the published descent stands beside"
    assert rows["stitch.adam.lr"]["why"] == "the published descent stands beside"
    assert rows["sae.lr"]["why"] == rows["sae.normalize"]["why"] == "as published in stitch published"
    assert rows["sae.k"]["same"] and rows["stitch.target_hook_point"]["ours"] == "by SVCCA"


def test_what_a_loaded_model_does_not_tell_is_left_open(tmp_path):
    values = tiny.study_values(tmp_path, paper="tracking")
    values["model"] = {"base": {"load": "nilq/baby-python", "corpora": ["words"]}}
    values["model"]["lua"] = {"load": "nilq/lua", "parent": "base", "corpora": ["sums"]}
    rows = rows_of(Study.of(values, "s", tmp_path))
    assert rows["base.d_model"]["same"] is None and rows["base.d_model"]["why"] == "loaded, not trained here"
    assert rows["merge.t"]["same"] is False and rows["merge.t"]["why"] == "the study has none"


def test_a_study_that_follows_no_paper_has_no_such_table_and_an_unknown_one_is_refused(tmp_path):
    values = tiny.study_values(tmp_path)
    assert not [stage for stage in stages_of(Study.of(values, "s", tmp_path)) if stage.kind == "deviations"]
    with pytest.raises(ValueError, match="paper"):
        Study.of({**values, "paper": "another"}, "s", tmp_path)
