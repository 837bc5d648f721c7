"""Two models in hand: what became of an SAE's features, and maps between them, from folders or from objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from heredity.lm.load import load_model, save_model
from heredity.sae.formats import read_sae, write_sae
from heredity.sae.model import new_sae
from heredity.text.tokens import load_tokenizer, train_tokenizer
from heredity.two_models import EdgeResult, compare, fit_stitch

HOOK, RESIDUAL = tiny.HOOK, "blocks.0.hook_resid_post"
TEXTS = [f"the cat sat on the mat = {number}; x = y + {number % 7}\n" * 3 for number in range(120)]


class Saved(NamedTuple):
    """Folders of two models, another of its own tokenizer, and SAEs of the first."""

    parent: Path
    child: Path
    other: Path
    sae: Path
    control: Path


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    folder = tmp_path_factory.mktemp("models")
    parent = tiny.save_tiny_model(folder / "parent")
    model, tokenizer = load_model(str(parent)), load_tokenizer(str(parent))
    with torch.no_grad():  # every unit of the child as before, but the first four
        mlp = model.model.layers[0].mlp
        mlp.up_proj.weight[:4] = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    save_model(model, tokenizer, folder / "child")
    other = tiny.save_tiny_model(folder / "other", text="a text of another kind altogether, with other words\n")
    sae = new_sae(32, 64, "relu")  # a feature for each unit and sign
    sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
    sae.W_dec.copy_(sae.W_enc.T)
    write_sae(sae, folder / "sae", {"hook_name": HOOK})
    return Saved(parent, folder / "child", other, folder / "sae", tiny.save_tiny_sae(folder / "control", seed=1))


def asked(saved: Saved, **more: Any) -> EdgeResult:
    given = {"parent": saved.parent, "child": saved.child, "sae": saved.sae, "tokens": 2_000, "context_size": 16}
    given |= {"texts": TEXTS} | more
    return compare(given.pop("parent"), given.pop("child"), given.pop("sae"), given.pop("texts"), **given)


@pytest.fixture(scope="module")
def edge(saved) -> EdgeResult:
    return asked(saved, controls=[saved.control])


def edges(result: EdgeResult) -> dict[str, dict[str, Any]]:
    return {row["rule"]: row for row in result.tables["edges"].to_pylist()}


def test_features_of_an_edge_are_matched_and_called(edge):
    rows = edges(edge)
    own = rows["evidence"]
    assert own["edge"] == "parent->child" and own["site"] == HOOK and own["tokens"] == 2_000
    assert own["persist"] + own["disappear"] == own["parent_live"] > 50 and own["parent_features"] == 64
    changed = [feature for feature in range(64) if feature % 32 < 4]
    np.testing.assert_allclose(np.delete(edge.matches.parent_r[:, 0], changed), 1, atol=1e-6)
    assert (edge.matches.parent_r[changed, 0] < 0.99).all() and 0 < own["disappear"] <= own["emerge"] + 8
    assert own["persist"] >= 56, "units that are as they were"
    assert own["one_dictionary"] and own["ceiling"] == 1
    assert (edge.matches.parent_r[:, 0] > own["threshold"]).sum() == own["persist"]
    assert rows["paper"]["threshold"] == 0.8
    assert {"matches", "fates", "strata", "curves", "chance"} < set(edge.tables)


def test_findings_are_sentences(edge):
    assert {statement.question for statement in edge.statements} >= {"inherited", "lost", "new", "sure"}
    assert str(edge).startswith("child inherited ") and " live features of parent." in str(edge)


def test_tables_are_written_one_file_each(edge, tmp_path):
    edge.write(tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(edge.tables)
    assert pq.read_table(tmp_path / "out/matches.parquet").equals(edge.tables["matches"])


def test_objects_give_what_folders_give(saved, edge):
    result = asked(
        saved, parent=load_model(str(saved.parent)), child=load_model(str(saved.child)), sae=read_sae(saved.sae)[0],
        controls=[read_sae(saved.control)[0]], tokenizer=load_tokenizer(str(saved.parent)), hook_point=HOOK,
    )  # fmt: skip
    for name, table in edge.tables.items():
        assert result.tables[name].equals(table), name


def test_an_sae_of_the_child_and_a_given_threshold(saved):
    result = asked(
        saved, sae_child=saved.control, controls=[saved.control], threshold=0.6, names=("base", "tuned"), seed=3
    )
    own = edges(result)["study"]
    assert own["edge"] == "base->tuned" and own["threshold"] == 0.6 and not own["one_dictionary"]
    assert 0 <= own["floor"] <= own["ceiling"] < 1
    np.testing.assert_array_equal(result.tables["edges"]["parent"].to_pylist(), ["base"] * 2)


def test_what_cannot_be_compared_is_refused_by_name(saved, tmp_path):
    wide = tiny.save_tiny_sae(tmp_path / "wide", d_in=48)
    owned = tiny.save_tiny_sae(tmp_path / "owned", model_state="another")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"child": saved.parent}, "parent and child have identical weights"),
        ({"child": saved.other}, "have different tokenizers"),
        ({"sae": owned}, "owned was trained on other weights than the model it is given for"),
        ({"controls": [owned]}, "owned was trained on other weights"),
        ({"sae": read_sae(saved.sae)[0]}, "does not say where it reads; give hook_point"),
        ({"parent": load_model(str(saved.parent)), "child": load_model(str(saved.child))}, "tokenizer: is needed"),
        ({"texts": ["too short"]}, "texts hold .* tokens, fewer than two blocks of 16"),
        ({"sae": wide}, "48"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            asked(saved, **given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"texts": "data/web"}, "is one string; give a list"),
        ({"texts": [*TEXTS, None]}, r"texts\[120\] is of type NoneType"),
        ({"texts": [{"text": "a"}]}, "is of type dict.*one column"),
        ({"threshold": 2.0}, "threshold=2.0 must lie between 0 and 1"),
    ],
)
def test_texts_and_thresholds_of_another_kind_are_refused(saved, more, message):
    with pytest.raises(ValueError, match=message):
        asked(saved, **more)


def test_a_child_that_keeps_its_weights_in_another_file_is_still_the_parent(saved, tmp_path):
    save_model(load_model(str(saved.parent)), load_tokenizer(str(saved.parent)), tmp_path / "again")
    with pytest.raises(ValueError, match="identical weights"):
        asked(saved, child=tmp_path / "again")


# -- maps between two models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wider(tmp_path_factory) -> Path:
    return tiny.save_tiny_model(tmp_path_factory.mktemp("wider") / "model", seed=4, d_model=24)


@pytest.mark.parametrize("method", ["joint", "ridge", "procrustes"])
def test_maps_are_fitted_between_models_of_different_width(saved, wider, method):
    points = {"source_hook_point": RESIDUAL, "target_hook_point": RESIDUAL}
    result = fit_stitch(saved.parent, wider, TEXTS, **points, method=method, context_size=16)
    assert result.stitch.up.weight.shape == (16, 24) and result.stitch.down.weight.shape == (24, 16)
    assert result.tokens > 1_000
    up, down = result.quality.up, result.quality.down
    assert 0 < up.r2 <= 1 and 0 < down.r2 <= 1 and result.quality.tokens < result.tokens
    same = fit_stitch(
        load_model(str(saved.parent)), load_model(str(wider)), TEXTS, **points, method=method, context_size=16,
        tokenizer=load_tokenizer(str(wider)),
    )  # fmt: skip
    assert same.stitch.up.weight.equal(result.stitch.up.weight) and same.quality.up.mse == up.mse


def test_what_cannot_be_stitched_is_refused_by_name(saved, wider):
    points = {"source_hook_point": RESIDUAL, "target_hook_point": RESIDUAL, "context_size": 16}
    with pytest.raises(ValueError, match="have different tokenizers"):
        fit_stitch(saved.parent, saved.other, TEXTS, **points)
    with pytest.raises(ValueError, match="tokens, and maps between 16 and 24 dimensions fit any so few"):
        fit_stitch(saved.parent, wider, TEXTS[:1], **points | {"context_size": 4}, held_out=0.4)
    with pytest.raises(ValueError, match="texts hold .* fewer than two blocks"):
        fit_stitch(saved.parent, wider, ["x"], **points)
    other = train_tokenizer(["quite another text"] * 20 + [chr(code) for code in range(32, 127)], 300)
    with pytest.raises(ValueError, match="have different tokenizers"):
        fit_stitch(saved.parent, wider, TEXTS, **points, tokenizer=other)
