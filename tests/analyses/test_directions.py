"""A direction that was projected out of the weights is lost, one under small noise is kept, and files are followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

import artifacts
import tiny
from heredity.analyses import Pipeline, direction_vectors, directions, write_tables
from heredity.analyses.direction_vectors import Followed, VectorSettings
from heredity.analyses.directions import CarriedSettings, DirectionSettings
from heredity.features.direction_files import read_direction
from heredity.lm.activations import activations
from heredity.stitch.affine import Affine, Stitch
from heredity.study import DirectionConfig, Study, StudyError
from heredity.synthetic.surgery import projected, rotated, shaken

SITE, LENGTH, CONTEXT = "blocks.1.hook_resid_pre", 32, 16
WORDS = {"code": (0, 160), "words": (140, 300)}
"""Token ids of each corpus."""


def text(seed: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(low, high, 16_000)
    return ids, np.arange(0, len(ids) + 1, LENGTH)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """A parent, a child under small noise, and that child without the difference of means of two corpora."""
    folder = tmp_path_factory.mktemp("directions")
    base = tiny.tiny_model(layers=2)
    tokens = {}
    for seed, (name, ends) in enumerate(WORDS.items()):
        for split in ("train", "validation"):
            tokens[name] = artifacts.tokens_artifact(folder / name, *text(2 * seed + (split == "train"), *ends), split)
    x = {
        name: np.concatenate(list(activations(base, SITE, text(2 * seed + 1, *ends)[0].reshape(-1, CONTEXT))))
        for seed, (name, ends) in enumerate(WORDS.items())
    }
    noisy = shaken(base, projected(base, np.random.default_rng(0).standard_normal((1, 32)), 0.9), 1)
    planted = x["code"].mean(0) - x["words"].mean(0)
    cut = projected(noisy, planted[None])
    made = {"base": base, "noisy": noisy, "cut": cut, "after": shaken(cut, noisy, 2)}
    models = {name: artifacts.model_artifact(folder / f"model-{name}", model) for name, model in made.items()}
    inputs = {"model": models, "tokens": tokens, "sham": {"base->noisy": models["noisy"]}}
    pair = ("code", "words")
    config = {"means": DirectionConfig(from_corpora=pair), "probe": DirectionConfig(from_corpora=pair, how="probe")}
    followed = {name: Followed(one, SITE, "base", pair, None) for name, one in config.items()}
    other = np.random.default_rng(5).standard_normal(32)
    followed["given"] = Followed(DirectionConfig(file="g.npy"), SITE, "base", pair, (tuple(other), None))
    vectors = {}
    for name, one in followed.items():
        work = artifacts.work_of(folder / f"vector-{name}", {"model": models["base"], "tokens": tokens})
        assert direction_vectors.ANALYSIS.run(work, VectorSettings(one, 32_000, CONTEXT, "float32", 3)) == {}
        vectors[name] = artifacts.artifact(work.folder)
    parents = {"base": (), "noisy": ("base",), "cut": ("noisy",), "after": ("cut",)}
    settings = DirectionSettings(followed, parents, 32_000, CONTEXT, "float32", True, 3)
    work = artifacts.work_of(folder / "work", inputs | {"vector": vectors})
    rows = directions.ANALYSIS.run(work, settings)
    write_tables(directions.ANALYSIS.tables, rows, work.folder, {})
    vector = read_direction(work.folder / directions.VECTORS, 32, "means", 0).vector
    assert np.dot(vector, planted) > 0.98 * np.linalg.norm(planted), "made on the same text"
    return {name: list(own) for name, own in rows.items()}  # type: ignore[misc]


def row(tables: Any, name: str, **key: Any) -> dict[str, Any]:
    (found,) = [one for one in tables[name] if all(one[column] == value for column, value in key.items())]
    return found


def test_what_was_projected_out_is_lost_and_what_was_not_is_kept(tables):
    kept = row(tables, "direction_edges", direction="means", edge="base->noisy", line="edge")
    lost = row(tables, "direction_edges", direction="means", edge="noisy->cut", line="edge")
    assert (kept["verdict"], lost["verdict"]) == ("kept", "lost")
    assert kept["transmission"] > 0.9 and abs(lost["transmission"]) < 0.1 > lost["own"]
    assert lost["random_lost"] == 0 and lost["random_above"] == 1
    given = row(tables, "direction_edges", direction="given", edge="noisy->cut", line="edge")
    assert given["verdict"] == "kept", "only the difference of means was taken out"
    after = {row["direction"] for row in tables["direction_edges"] if row["edge"] == "cut->after"}
    assert "given" in after and "means" not in after, "what is gone has nothing to hand on"
    for line in ("edit", "sham"):
        assert row(tables, "direction_edges", direction="means", edge="base->noisy", line=line)["verdict"] == "kept"


def test_readouts_tell_their_corpora_apart_until_they_are_gone(tables):
    models = {name: row(tables, "directions", direction="means", model=name) for name in ("base", "noisy", "cut")}
    assert models["base"]["auc_low"] > 0.8 and models["noisy"]["accuracy"] > 0.75
    assert models["cut"]["auc"] < 0.65 and models["cut"]["spread"] < 0.05 * models["base"]["spread"]
    assert models["base"]["effect"] > 10 * models["cut"]["effect"] >= 0
    assert 0 < models["base"]["variance_share"] < 1
    assert row(tables, "directions", direction="probe", model="base")["auc"] > 0.8
    assert "auc" not in row(tables, "directions", direction="given", model="base"), "nothing to tell apart"


def test_findings_say_the_word_with_its_references(tables):
    said = {(one.about, one.text.split()[1]): one for one in directions.ANALYSIS.say(tables)}
    lost, kept = said["cut", "means"], said["noisy", "means"]
    assert lost.text.startswith("Direction means of noisy is lost in cut: its readout moves ")
    assert "random directions of equal variance 40 are kept and 0 lost, so that this is true of the edge" in kept.text
    assert "reference, base trained on with its own text: kept" in " ".join(kept.evidence)
    assert any(line.startswith("AUC of telling code from words: ") for line in lost.evidence)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_carried_direction_is_read_in_the_target_as_far_as_the_map_has_it(tmp_path, forgets):
    """The target is the source in another basis, and the map back is exact, or lacks the direction alone."""
    source, rng = tiny.tiny_model(layers=2), np.random.default_rng(0)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(7)))[0]
    vectors = np.ascontiguousarray(np.linalg.qr(rng.standard_normal((32, 20)))[0].T)
    v = torch.from_numpy(vectors[0]).float()
    down = turn.T @ (torch.eye(32) - torch.outer(v, v)) if forgets else turn.T
    Stitch(Affine(turn, torch.zeros(32)), Affine(down, torch.ones(32))).save(tmp_path / "maps" / "joint")
    row = {"method": "joint", "source_hook_point": SITE, "target_hook_point": SITE}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "maps" / "stitch_maps.parquet")
    made = artifacts.artifact(tmp_path / "made")
    save_file({"mine": vectors}, made / directions.VECTORS)
    models = {"source": source, "target": rotated(source, 7)}
    inputs: dict[str, Any] = {n: artifacts.model_artifact(tmp_path / n, model) for n, model in models.items()}
    inputs |= {"stitch": artifacts.artifact(tmp_path / "maps"), "directions": made, "tokens": {}}
    inputs["tokenizer"] = artifacts.tokenizer_artifact(tmp_path / "tokenizer", tiny.tiny_tokenizer())
    for seed, (name, ends) in enumerate(WORDS.items()):
        for split in ("train", "validation"):
            inputs["tokens"][name] = artifacts.tokens_artifact(tmp_path / name, *text(seed, *ends), split)
    settings = CarriedSettings({"mine": ("code", "words")}, "target", 4_000, CONTEXT, "float32", 0)
    work = artifacts.work_of(tmp_path / "work", inputs)
    rows = directions.CARRIED.run(work, settings)
    write_tables(directions.CARRIED.tables, rows, work.folder, {"stitch": "pair"})
    (found,) = artifacts.table_of(artifacts.artifact(work.folder), "carried_directions").to_pylist()
    assert found["r2_random"] > 0.99 and found["r2_best"] > 0.99
    assert found["r2"] == pytest.approx(0 if forgets else 1, abs=0.01)
    assert (found["auc"] == pytest.approx(found["source_auc"], abs=0.01)) != forgets
    (said,) = directions.ANALYSIS.say({"carried_directions": [found]})
    assert "carried to target by stitch pair, has R² " in said.text


def test_a_study_refuses_directions_that_cannot_be(tmp_path):
    values = tiny.study_values(tmp_path)
    np.save(tmp_path / "v.npy", np.ones(7))
    for given, said in (
        ({"file": "v.npy"}, "0 directions of 32 numbers"),
        ({"file": "w.npy"}, "there is no such file"),
        ({"from_corpora": ["words", "cods"]}, "did you mean 'code'"),
        ({"file": "v.npy", "from_corpora": ["words", "code"]}, "a file or from_corpora, and not both"),
        ({"from_corpora": ["words", "code"], "hook_point": "blocks.7.hook_resid_pre"}, "layer 7 is out of range"),
        ({"file": "v.npy", "model": "bas"}, "did you mean 'base'"),
    ):
        with pytest.raises(StudyError, match=said):
            Pipeline(Study.of(values | {"direction": {"mine": given}}, "s", tmp_path))
