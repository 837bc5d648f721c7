"""Lost and changed features of an edge are looked for one by one, and kept ones do in the child what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import artifacts
from heredity.analyses import lost_features, statements_of, verdicts, write_tables
from heredity.analyses.lost_features import LostSettings
from heredity.analyses.verdicts import VerdictSettings
from heredity.engine.store import Artifact
from heredity.sae.model import SAE, new_sae
from heredity.study import Edge, ReferencesConfig
from tiny import tiny_model

VOCAB, UNITS, LAST, EDGE = 90, 32, "blocks.1.mlp.hook_post", Edge("base", "tuned")
SILENT, FAINT = (2, 5, 11), (7, 8)
"""Units of the child that are off, and that are weaker."""
ITEM = {**artifacts.SITE, "edge": EDGE.name}


def model(vocab: int = VOCAB) -> Any:
    made = tiny_model(0, vocab, 24, UNITS, 2)
    with torch.no_grad():
        for parameter in made.parameters():  # fresh weights are too small to have an effect
            parameter *= 4 if parameter.ndim == 2 else 1
    return made


def child_model() -> Any:
    made = model()
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[list(SILENT)] = 0
        made.model.layers[1].mlp.up_proj.weight[list(FAINT)] *= 0.3
    return made


def units(seed: int) -> SAE:
    """One feature for each unit and sign, in an order of its own."""
    sae = new_sae(UNITS, 2 * UNITS, "relu")
    order = np.random.default_rng(seed).permutation(2 * UNITS) if seed else np.arange(2 * UNITS)
    sae.W_enc.copy_(torch.cat([torch.eye(UNITS), -torch.eye(UNITS)], dim=1)[:, order])
    sae.W_dec.copy_(sae.W_enc.T)
    return sae


def both(unit: tuple[int, ...]) -> list[int]:
    return [*unit, *(UNITS + one for one in unit)]


def inputs_of(folder: Path, child: Any) -> dict[str, Any]:
    ids, documents = np.random.default_rng(0).integers(0, VOCAB, 16 * 1200), np.arange(0, 16 * 1200 + 1, 64)
    saes = [artifacts.sae_artifact(folder / f"sae{seed}", units(seed)) for seed in range(4)]
    return {
        "parent": artifacts.model_artifact(folder / "parent", model()),
        "child": artifacts.model_artifact(folder / "child", child),
        "parent_saes": {"0": saes[0], "1": saes[1]},
        "child_saes": {"0": saes[2], "1": saes[3]},
        "tokens": {"words": artifacts.tokens_artifact(folder / "tokens", ids, documents)},
    }


def inquire(folder: Path, inputs: dict[str, Any], judged: Artifact) -> dict[str, Any]:
    steps: list[tuple[int, int]] = []
    work = artifacts.work_of(folder / "work", inputs | {"verdicts": judged}, lambda *step: steps.append(step))
    rows = lost_features.ANALYSIS.run(work, LostSettings(LAST, "float32", 9_600, 16, "tokens", 30, 4, 4))
    assert steps == [(done, 4) for done in (1, 2, 3)]
    return {table.name: table.check(rows[table.name], **ITEM).to_pylist() for table in lost_features.ANALYSIS.tables}


@pytest.fixture(scope="module")
def edge(tmp_path_factory) -> tuple[dict[str, Any], Artifact, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lost")
    inputs = inputs_of(folder, child_model())
    off = ReferencesConfig(edit=False, removal=False, codebook=False, token_identity=False)
    settings = VerdictSettings(EDGE, LAST, "float32", 9_600, 16, "tokens", off, "independent", 4, 4)
    rows = verdicts.ANALYSIS.run(artifacts.work_of(folder / "judging", inputs), settings)
    judged = artifacts.artifact(folder / "judged")
    write_tables(verdicts.ANALYSIS.tables, rows, judged.folder, ITEM | {"text": "common"})
    return inquire(folder, inputs, judged), judged, inputs


def test_what_is_off_is_gone_and_what_is_weaker_is_faint(edge):
    tables, *_ = edge
    fate = {row["feature"]: row["fate"] for row in tables["examined_features"] if row["end"] == "parent"}
    assert {fate[feature] for feature in both(SILENT)} == {"gone"}
    assert {fate[feature] for feature in both(FAINT)} == {"faint"}
    counts = {(row["end"], row["verdict"]): row for row in tables["examined"]}
    assert counts["parent", "lost"]["listed"] == counts["parent", "lost"]["gone"] == 6
    assert counts["child", "new"]["listed"] == 0 and counts["child", "new"]["readable"] is None


def test_kept_features_pass_against_hard_negatives_and_lost_ones_do_not(edge):
    rows = {row["verdict"]: row for row in edge[0]["fingerprints"]}
    assert rows["kept"]["pairs"] == 30 - 6 - 4 and rows["kept"]["passes"] >= 0.9 * rows["kept"]["pairs"]
    assert rows["kept"]["fingerprint"] > 0.9 and rows["kept"]["repaired"] > 0.95
    assert rows["kept"]["hard_negative_repaired"] < 0.5
    assert rows["lost"]["passes"] < 0.5 * rows["lost"]["pairs"] and rows["lost"]["repaired"] < 0.5
    assert all(row["unavailable"] == "" for row in rows.values())


def test_the_finding_counts_fates_and_says_how_matches_act(edge):
    (said,) = lost_features.ANALYSIS.say(edge[0])
    assert said.about == "tuned" and said.question == "changed"
    assert "Looked for in tuned, of 6 lost features of base 6 are gone; of " in said.text
    assert any("of 20 " in line and "kept" in line and "hard negative" in line for line in said.evidence)
    assert said in statements_of(edge[0])


def test_without_a_common_vocabulary_fingerprints_say_why_there_are_none(edge, tmp_path):
    _, judged, inputs = edge
    other = inputs | {"child": artifacts.model_artifact(tmp_path / "child", model(VOCAB + 1))}
    tables = inquire(tmp_path, other, judged)
    assert {row["unavailable"] for row in tables["fingerprints"]} == {"vocabulary sizes differ (parent 90, child 91)"}
    assert tables["fingerprint_features"] == [] and tables["examined_features"]


def test_every_edge_of_a_study_is_examined(lineage):
    rows = lineage.run["examined"].to_pylist()
    assert {row["instrument"] for row in rows} == {"parent", "independent", "joint"}
    assert len({(row["instrument"], row["edge"]) for row in rows}) == 12
    for row in rows:
        if row["end"] == "parent":
            key = {name: row[name] for name in ("instrument", "edge")}
            (judged,) = lineage.rows("verdicts", end="parent", text="common", **key)
            assert row["listed"] == judged[row["verdict"]]
