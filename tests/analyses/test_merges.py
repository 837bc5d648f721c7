"""Merges beside their parents and base, and beside other methods: planted differences are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import tiny
from artifacts import artifact, model_artifact, tokens_artifact, work_of
from heredity.analyses import merges, write_tables
from heredity.analyses.model import MERGES
from heredity.analyses.reading import validation_blocks
from heredity.lm.evaluate import evaluate
from heredity.lm.merge import merge_states
from heredity.study import Study

rng = np.random.default_rng(5)
SHARE = rng.uniform(0.3, 0.5, 60)
"""Share of tokens that the specialist predicts, block by block."""
HITS = {
    "base": {"lua": 0.5 * SHARE, "stories": 0.5 * SHARE},
    "lua": {"lua": SHARE, "stories": 0.4 * SHARE},
    "stories": {"lua": 0.4 * SHARE, "stories": SHARE},
    "both": {"lua": 0.8 * SHARE, "stories": 0.3 * SHARE},
}
SWEPT = {"lua": ("lua",), "stories": ("stories", "lua")}
SETTINGS = merges.AccuracySettings(
    "both", ("lua", "stories"), "base", ("lua", "stories"), dict.fromkeys(HITS, 32), SWEPT, 0
)


def measured(folder: Path, settings: merges.AccuracySettings) -> dict[str, list[dict[str, Any]]]:
    made = {name: artifact(folder / name) for name in HITS}
    for name, hits in HITS.items():
        save_file(hits, folder / name / "hits.safetensors")
    found = merges.ACCURACY.run(work_of(folder / "work", {"quality": made}), settings)
    return {table.name: table.check(found[table.name], model="both").to_pylist() for table in merges.ACCURACY.tables}


def beside(folder: Path, settings: merges.AccuracySettings) -> list[dict[str, Any]]:
    return measured(folder, settings)["merge_accuracy"]


def test_a_merge_is_held_against_the_best_parent_of_each_corpus_and_against_the_base(tmp_path):
    rows = {(row["corpus"], row["beside"]): row for row in beside(tmp_path, SETTINGS)}
    assert {key: row["reference"] for key, row in rows.items() if key[1] == "specialist"} == {
        ("lua", "specialist"): "lua",
        ("stories", "specialist"): "stories",
    }
    planted = {
        ("lua", "specialist"): 0.8,
        ("lua", "base"): 1.6,
        ("stories", "specialist"): 0.3,
        ("stories", "base"): 0.6,
    }
    for key, ratio in planted.items():
        row, reference = rows[key], SHARE.mean() / (1 if key[1] == "specialist" else 2)
        ends = [row[f"relative{end}"] for end in ("", "_low", "_high")]
        assert ends == pytest.approx([ratio - 1] * 3), "on the same blocks the ratio is exact"
        assert row["points"] == pytest.approx(100 * (ratio - 1) * reference)
        assert row["points_low"] <= row["points"] <= row["points_high"] and row["accuracy_low"] < row["accuracy"]
    apart = beside(tmp_path, SETTINGS._replace(context_sizes=SETTINGS.context_sizes | {"lua": 64}))
    low, high = (next(row for row in apart if row["reference"] == "lua")[f"relative_{end}"] for end in ("low", "high"))
    assert low < -0.2 < high and high - low > 0.02, "other blocks vary by themselves"


def test_the_base_stands_beside_the_curves_of_a_merge_on_the_same_text(tmp_path, lineage):
    rows = {row["parent"]: row for row in measured(tmp_path, SETTINGS)["merge_bases"]}
    pooled = {parent: np.mean([HITS["base"][corpus] for corpus in corpora]) for parent, corpora in SWEPT.items()}
    assert {parent: row["accuracy"] for parent, row in rows.items()} == pytest.approx(pooled)
    assert all(
        row["base"] == "base" and row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] for row in rows.values()
    )
    assert measured(tmp_path / "none", SETTINGS._replace(swept={}))["merge_bases"] == []
    # in a run, a model is measured as the merge is along t: of the parents both are known
    ends = {(row["parent"], row["t"]): row["accuracy"] for row in lineage.rows("sweeps", model="both")}
    (merge,) = lineage.rows("merges", model="both")
    alone = {(row["model"], row["corpus"]): row["accuracy"] for row in lineage.rows("accuracy")}
    for base in lineage.rows("merge_bases", model="both"):
        corpora = lineage.run.study.own_corpora(base["parent"])
        assert base["accuracy"] == pytest.approx(np.mean([alone[base["base"], corpus] for corpus in corpora]))
        for t, model in ((0.0, merge["first"]), (1.0, merge["second"])):
            same = np.mean([alone[model, corpus] for corpus in corpora])
            assert ends[base["parent"], t] == pytest.approx(same), "the same blocks and arithmetic"


def test_a_merge_that_is_worse_than_its_base_on_its_parents_text_is_noted(tmp_path):
    said = list(merges.ACCURACY.say({"merge_accuracy": beside(tmp_path, SETTINGS)}))
    assert [one.question for one in said] == ["merge", "note"]
    assert said[0].text == (
        "Next-token accuracy of both is on lua 20 % below lua and 60 % above base; on stories 70 % below stories and "
        "40 % below base."
    )
    assert said[1].text.startswith("both predicts stories, which its parents were trained on, worse than base,")
    only = SETTINGS._replace(own=("lua",))
    assert [one.question for one in merges.ACCURACY.say({"merge_accuracy": beside(tmp_path, only)})] == ["merge"]


def test_other_methods_merge_the_same_parents(tmp_path):
    """Two parents with one task vector: all that averages gives them back, task arithmetic adds it twice."""
    base, parent = tiny.tiny_model(0), tiny.tiny_model(0)
    with torch.no_grad():
        for weight in parent.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    twice = merge_states([parent.state_dict()] * 2, "task_arithmetic", None, [1.0, 1.0], 0.5, base.state_dict())[0]
    ends = np.arange(0, 2049, 256)
    tokens = tokens_artifact(tmp_path / "tokens", rng.integers(0, 300, 2048), ends, "validation")
    merge = model_artifact(tmp_path / "both", parent)
    row = {"method": "slerp", "first": "a", "second": "b", "t": 0.3, "linear_fallback": 0}
    write_tables([MERGES], {"merges": [row]}, merge.folder, {"model": "both"})
    parents = {name: model_artifact(tmp_path / name, parent) for name in ("a", "b")}
    inputs = {"merge": merge, "parent": parents, "base": model_artifact(tmp_path / "base", base)}
    settings = merges.MethodsSettings(
        "slerp", ("linear", "task_arithmetic", "ties"), ("a", "b"), ("x",), 2048, 32, "float32", 0
    )
    work = work_of(tmp_path / "work", inputs | {"tokens": {"x": tokens}})
    rows = merges.MERGE_METHODS.check(merges.METHODS.run(work, settings)["merge_methods"], model="both").to_pylist()
    by_method = {row["method"]: row for row in rows}
    assert [by_method[name]["t"] for name in ("slerp", "linear", "ties")] == [0.3, 0.3, None]
    assert by_method["slerp"]["taken"] and not by_method["linear"]["taken"]
    assert by_method["linear"]["ce_loss"] == pytest.approx(by_method["slerp"]["ce_loss"])
    assert by_method["linear"]["points"] == by_method["linear"]["points_low"] == by_method["slerp"]["points_high"] == 0
    parent.load_state_dict(twice)
    from heredity.text.tokens import PackedTokens

    blocks = validation_blocks(PackedTokens.open(tmp_path / "tokens" / "validation"), 32, 2048)
    assert by_method["task_arithmetic"]["ce_loss"] == pytest.approx(
        evaluate(parent, blocks, precision="float32").ce_loss
    )
    assert len({round(row["ce_loss"], 4) for row in rows}) == 3, "ties trims half of the task vector"


@pytest.mark.parametrize(
    ("points", "words"),
    [(-2.0, "linear would be less accurate on the corpora of both parents, beyond the intervals, and none more"),
     (2.0, "none would be less accurate on the corpora of both parents, beyond the intervals, and linear more")],
)  # fmt: skip
def test_methods_that_are_worse_or_better_on_both_corpora_are_named(points, words):
    def row(method: str, corpus: str, points: float) -> dict[str, Any]:
        ends = {"points": points, "points_low": points - 1, "points_high": points + 1, "accuracy": 0.3}
        return {"model": "both", "method": method, "corpus": corpus, "taken": method == "slerp", **ends}

    by = {"slerp": (0.0, 0.0), "linear": (points, points), "ties": (-2.0, 0.5)}
    rows = [row(method, corpus, p) for method, ps in by.items() for corpus, p in zip(("x", "y"), ps, strict=True)]
    (said,) = merges.METHODS.say({"merge_methods": rows})
    assert words in said.text and said.evidence[0] == "slerp: 30 % on average, 30 % on x, 30 % on y"


def test_methods_are_compared_where_a_study_asks_for_it(tmp_path):
    values = tiny.study_values(tmp_path)
    assert not list(merges.METHODS.items(Study.of(values, root=tmp_path)))
    study = Study.of(values | {"evaluation": {"merge_methods": True}}, root=tmp_path)
    (item,) = merges.METHODS.items(study)
    settings = merges.METHODS.settings(study, item)
    assert settings.others[:3] == ("linear", "task_arithmetic", "ties") and settings.corpora == ("sums", "stories")
    assert merges.METHODS.needs(study, item)["base"] == ("model", {"model": "base"})
