"""A study's stitch between models of two tokenizers: each is read by its own, both at the same characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.nn import functional

import tiny
from heredity.analyses import Pipeline, read_tables, statements_of
from heredity.analyses.loaded import check_loaded, reader
from heredity.analyses.plan import plan
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.lm.load import save_model
from heredity.study import Study, StudyError
from heredity.text.tokens import train_tokenizer
from stitch.test_affine import random
from stitch.test_aligned import D_A, D_B, texts, told

HOOK = "blocks.0.hook_resid_pre"


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Two folders of models whose embeddings tell the letter that a token ends with, in vectors of their own."""
    tiny.write_corpora(tmp_path)
    of_a = functional.normalize(random(401, D_A, seed=0), dim=1)
    for name, letters, size in (("a", of_a, 380), ("b", of_a @ random(D_A, D_B, seed=1), 275)):
        tokenizer = train_tokenizer(texts(60, seed=size), size)
        save_model(told(tokenizer, letters).model, tokenizer, tmp_path / name)
    pair = {
        "source": "a",
        "target": "b",
        "target_hook_point": HOOK,
        "context_size": 16,
        "widths": [96],
        "tokens": 6_000,
    }
    pair |= {
        "held_out": 2_000,
        "evaluation": 500,
        "arms": ["random"],
        "adam": {"epochs": 0},
        "steering": {"prompts": 0},
    }
    pair |= {"alphas": [1], "probes": {"texts": 20, "sizes": [2], "context_size": 16}}
    sae = {"activation": "topk", "k": 4, "tokens": 20_000, "lr": 2e-3, "batch_blocks": 16, "context_size": 16}
    return {
        "seed": 1,
        "hook_point": HOOK,
        "corpus": {name: {"source": f"local:{name}", "validation": 0.3} for name in ("words", "sums")},
        "model": {name: {"load": name, "corpora": ["words", "sums"]} for name in "ab"},
        "sae": sae,
        "evaluation": {"tokens": 300},
        "stitch": {"pair": pair},
    }


def test_a_stitch_across_tokenizers_finds_the_planted_map_and_carries_an_sae(values, tmp_path: Path):
    pytest.importorskip("sklearn")
    study = Study.of(values, name="s", root=tmp_path)
    pipeline, store = Pipeline(study), Store(tmp_path / "runs")
    assert (reader(study, "a"), reader(study, "b")) == ("a", "b") and not pipeline._declared["feature_transfer"]
    assert [note for note in plan(pipeline, store)["notes"] if "different tokenizers" in note and "left out" in note]
    artifacts = run(list(pipeline.stages.values()), store)
    tables = {name: table.to_pylist() for name, table in read_tables(artifacts).items()}
    fits = {row["method"]: row for row in tables["stitch_fits"]}
    assert tables["stitch_maps"][0]["paired"] == "characters" and fits["joint"]["in_use"]
    assert min(fits["joint"]["r2_up"], fits["joint"]["r2_down"], fits["ridge"]["r2_up"]) > 0.99
    ways = {row["way"]: row for row in tables["stitched_models"]}
    assert list(ways) == ["source", "target", "source_round_trip", "target_round_trip"]
    assert ways["source_round_trip"]["increase"] == pytest.approx(0, abs=0.01)
    assert {row["way"]: row["r2"] for row in tables["alphas"]}.keys() == {*list(ways)[2:], "sae"}
    carried = {row["variant"]: row for row in tables["sae_transfer"] if row["left_out"] is None}
    assert carried["transferred"]["explained_variance"] > carried["source"]["explained_variance"] - 0.1 > 0.3
    assert {row["arm"] for row in tables["probes"]} >= {"source", "unchanged", "native"}
    assert [
        found for found in statements_of(tables) if found.question == "note" and "different tokenizers" in found.text
    ]


def test_one_tokenizer_in_two_folders_is_one_and_on_an_edge_another_is_refused(values, tmp_path: Path):
    values["model"]["c"] = {"parent": "b", "quantize": {"bits": 8}}
    with pytest.raises(StudyError, match=r"model\.b\.load: the tokenizer of .* unless stitches alone join them"):
        check_loaded(Study.of(values, name="s", root=tmp_path))
    del values["model"]["c"]
    for file in (tmp_path / "b").glob("token*"):
        file.write_bytes((tmp_path / "a" / file.name).read_bytes())
    assert reader(Study.of(values, name="s", root=tmp_path), "b") == "a"
