"""Two models in hand: what became of an SAE's features, and maps between them, from folders or from objects."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

import tiny
from heredity.lm.load import load_model, save_model
from heredity.sae.formats import read_sae, write_sae
from heredity.sae.model import new_sae
from heredity.text.tokens import load_tokenizer, train_tokenizer
from heredity.two_models import EdgeResult, compare, fit_stitch

HOOK, RESIDUAL = tiny.HOOK, "blocks.0.hook_resid_post"
TEXTS = [f"the cat sat on the mat = {number}; x = y + {number % 7}\n" * 3 for number in range(120)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SimpleNamespace:
    """Folders of two models, another of its own tokenizer, a wider one, and SAEs of the first."""
    folder = tmp_path_factory.mktemp("models")
    parent = tiny.save_tiny_model(folder / "parent")
    model, tokenizer = load_model(str(parent)), load_tokenizer(str(parent))
    with torch.no_grad():  # every unit of the child as before, but the first four
        mlp = model.model.layers[0].mlp
        mlp.up_proj.weight[:4] = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    save_model(model, tokenizer, folder / "child")
    other = tiny.save_tiny_model(folder / "other", text="a text of another kind altogether, with other words\n")
    wider = tiny.save_tiny_model(folder / "wider", seed=4, d_model=24)
    sae = new_sae(32, 64, "relu")  # a feature for each unit and sign
    sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
    sae.W_dec.copy_(sae.W_enc.T)
    write_sae(sae, folder / "sae", {"hook_name": HOOK})
    control = tiny.save_tiny_sae(folder / "control", seed=1)
    models = {"parent": parent, "child": folder / "child", "other": other, "wider": wider}
    return SimpleNamespace(**models, sae=folder / "sae", control=control)


def asked(saved: SimpleNamespace, **more: Any) -> EdgeResult:
    ends: Any = {"parent": saved.parent, "child": saved.child, "sae": saved.sae, "texts": TEXTS}
    return compare(**ends | {"tokens": 2_000, "context_size": 16} | more)


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


def test_an_sae_made_for_another_place_is_refused_wherever_it_is_given(saved, tmp_path):
    other = tiny.save_tiny_sae(tmp_path / "other", hook_name="blocks.0.mlp.hook_pre")
    both = f"SAE {other} was made for blocks.0.mlp.hook_pre, and is read at {HOOK}; give SAEs of one place"
    for ends in ({"sae_child": other}, {"controls": [other]}):
        with pytest.raises(ValueError, match=re.escape(both)):
            asked(saved, **ends)
    asked_for = f"{both.partition(';')[0]}; leave hook_point out, give 'blocks.0.mlp.hook_pre', or an SAE of {HOOK}"
    with pytest.raises(ValueError, match=re.escape(asked_for)):
        asked(saved, sae_child=other, hook_point=HOOK)
    write_sae(read_sae(saved.sae)[0], tmp_path / "twin", {"hook_name": RESIDUAL})
    with pytest.raises(ValueError, match=f"was made for {RESIDUAL}"):
        asked(saved, controls=[tmp_path / "twin"])
    said: list[str] = []  # a name of another library's, and the same place by another name
    foreign = tiny.save_tiny_sae(tmp_path / "foreign", hook_name="blocks.0.mlp.hook_in")
    same = tiny.save_tiny_sae(tmp_path / "same", hook_name="layers.0.mlp.down_proj.input")
    result = asked(saved, sae=same, sae_child=foreign, hook_point=HOOK, say=said.append)
    (note,) = [note for note in said if "mlp.hook_in" in note]
    assert f"it is read at {HOOK}, as asked" in note and note in str(result)
    with pytest.raises(ValueError, match="mlp.hook_in' is unknown"):
        asked(saved, sae_child=foreign)
    wrong = tiny.save_tiny_sae(tmp_path / "wrong", hook_name=RESIDUAL)  # of another width than its own
    result = asked(saved, sae_child=wrong, hook_point=HOOK)
    assert re.search(rf"says {RESIDUAL}, which is \d+ wide, .*; it is read at {HOOK}, as asked", str(result))


def test_an_sae_is_no_control_of_itself(saved):
    with pytest.raises(ValueError, match="a control is the SAE itself"):
        asked(saved, controls=[saved.sae])
    with pytest.raises(ValueError, match="tokens=0 must be a whole number of 1 or more"):
        asked(saved, tokens=0)


def test_with_one_sae_every_feature_has_evidence_and_none_a_verdict_or_a_share(saved):
    result = asked(saved)
    assert set(result.tables) == {"evidence", "matches", "saes"}
    assert str(result).startswith("One SAE: stability unknown.") and "%" not in str(result)
    rows = result.tables["evidence"].to_pylist()
    assert {row["verdict"] for row in rows} == {"stability unknown"} and len(rows) == 64
    assert {row["stability"] for row in rows} == {None}
    quality = result.tables["saes"].to_pylist()
    assert [row["model"] for row in quality] == ["parent", "child"] and quality[0]["explained_variance"] > 0.99


def test_text_of_one_document_is_refused_before_an_sae_is_trained_on_it(saved):
    said: list[str] = []
    with pytest.raises(ValueError, match="all tokens are of one document"):
        asked(saved, texts=[" ".join(map(str, TEXTS))], controls="train", say=said.append)
    assert not any("training" in one for one in said)


def test_fewer_tokens_than_asked_for_are_said(saved):
    result = asked(saved, tokens=1_000_000)
    [note] = [one for one in result.notes if "asked for" in one]
    there = result.tables["evidence"].to_pandas().firings.sum() / 32  # active ones a token
    assert note.startswith(f"features are judged on {there:,.0f} tokens, fewer than the 1,000,000 asked for: the texts")
    assert not any("asked for" in one for one in asked(saved).notes)


def test_a_second_sae_is_trained_after_its_cost_is_said_and_kept(saved, tmp_path):
    said: list[str] = []
    ends = {"sae_child": saved.control, "child_control": "train"}
    options = {"second_tokens": 4_000, "save_second": tmp_path / "second", "say": said.append}
    result = asked(saved, controls="train", **ends, **options)
    assert said.pop(0) == f"SAE {saved.control} was made for the model tiny, and is read in {saved.child}"
    assert "every block is read behind '<|endoftext|>'" in said.pop(0)
    assert len(said) == 2 and "second SAE of parent (64 features, topk with k = " in said[0] and ": about " in said[0]
    made, metadata = read_sae(tmp_path / "second/parent")
    assert made.W_enc.shape == (32, 64) and metadata["training_tokens"] == 4_096
    kept = {"controls": [tmp_path / "second/parent"], "child_control": tmp_path / "second/child"}
    again = asked(saved, **ends | kept)
    assert again.tables["evidence"].equals(result.tables["evidence"]) and "verdicts" in again.tables
    with pytest.raises(ValueError, match="a folder with content; choose another for the second SAE"):
        asked(saved, controls="train", **options)


def test_findings_are_sentences_and_tables_files(edge, tmp_path):
    assert {statement.question for statement in edge.statements} >= {"inherited", "lost", "new", "sure"}
    assert "stable features of parent" in str(edge) and " live features of parent" in str(edge)
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
    save_model(load_model(str(saved.parent)), load_tokenizer(str(saved.parent)), tmp_path / "again")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"child": saved.parent}, "parent and child have identical weights"),
        ({"child": tmp_path / "again"}, "identical weights"),
        ({"child": saved.other}, "have different tokenizers"),
        ({"sae": owned}, "owned was trained on other weights than the model it is given for"),
        ({"controls": [owned]}, "owned was trained on other weights"),
        ({"sae": read_sae(saved.sae)[0]}, "does not say where it reads; give hook_point"),
        ({"parent": load_model(str(saved.parent)), "child": load_model(str(saved.child))}, "tokenizer: is needed"),
        ({"texts": ["too short"]}, "texts hold .* tokens, fewer than two blocks of 16"),
        ({"sae": wide}, "wide reads vectors of width 48, and .* gives 32 in parent; give an SAE trained at this"),
        ({"sae_child": wide}, "wide reads vectors of width 48"),
        ({"controls": [wide]}, "wide reads vectors of width 48"),
        ({"child": saved.wider}, f"{HOOK} is 32 wide in parent and 48 in child; features are matched at one width"),
        ({"controls": "trian"}, "controls='trian': is neither 'train' nor the folder of an SAE; correct the word or"),
        ({"sae_child": saved.control, "controls": "train", "child_control": "trian"}, "child_control='trian': is nei"),
        ({"roles": "asistant"}, "roles='asistant': must be 'all' or 'assistant'"),
        ({"prefix": "boss"}, "prefix='boss': must be 'auto', 'bos', 'eos', 'none' or None, as the SAE says"),
        ({"context_size": 1}, "context_size=1 must be 2 or more"),
        ({"texts": "data/web"}, "is one string; give a list"),
        ({"texts": [*TEXTS, None]}, r"texts\[120\] is of type NoneType"),
        ({"texts": [{"text": "a"}]}, "is of type dict.*one column"),
        ({"texts": None}, "texts=None: holds no texts; give a list"),
        ({"texts": [*TEXTS, "\ud800"]}, r"texts\[120\] holds half of a surrogate pair"),
        ({"child": 3}, "child=3: is no model; give a decoder, or the folder or hub id of one"),
        ({"tokens": "x"}, "tokens='x' must be a whole number of 1 or more"),
        ({"threshold": 2.0}, "threshold=2.0 must lie between 0 and 1"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            asked(saved, **given)


def test_one_folder_stands_for_a_list_of_one(saved, edge):
    for one in (str(saved.control), saved.control, read_sae(saved.control)[0]):
        assert asked(saved, controls=one).tables["evidence"].equals(edge.tables["evidence"])


def test_what_cannot_work_is_refused_before_a_second_sae_is_trained(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("heredity.analyses.one_sae.train_second", lambda *_: pytest.fail("trained"))
    (broken := load_model(str(saved.child))).model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    save_model(broken, load_tokenizer(str(saved.parent)), tmp_path / "nan")
    tensor = "tensor model.layers.0.mlp.up_proj.weight of its weights is not finite"
    (file := tmp_path / "file").touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"child": saved.wider}, "features are matched at one width"),
        ({"child": tmp_path / "nan"}, tensor),
        ({"child": broken, "tokenizer": load_tokenizer(str(saved.parent))}, f"a MistralForCausalLM in hand: {tensor}"),
        ({"sae_child": tiny.save_tiny_sae(tmp_path / "wide", d_in=48)}, "reads vectors of width 48"),
        ({"save_second": file}, "is a file or a folder with content"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            asked(saved, controls="train", **given)
    with pytest.raises(NotADirectoryError):
        asked(saved, controls="train", save_second=file / "second")


def test_blocks_longer_than_the_positions_a_model_has_learned_are_refused_as_a_study_does(tmp_path, saved):
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=4, n_inner=32, n_positions=64)
    tokenizer = load_tokenizer(str(saved.parent))
    ends = {name: GPT2LMHeadModel(config) for name in ("parent", "child")}
    words = "context_size: 64: model base has 64 positions, one of them for the token before every block; set it to 63"
    options: dict[str, Any] = {"tokenizer": tokenizer, "names": ("base", "tuned")}
    with pytest.raises(ValueError, match=words):
        asked(saved, **ends, **options, context_size=64)
    assert "evidence" in asked(saved, **ends, **options, context_size=63).tables


def test_models_in_hand_come_back_in_the_mode_they_were_in(saved):
    parent, child = (load_model(str(one)) for one in (saved.parent, saved.child))
    child.train().model.layers[0].mlp.eval()
    options: dict[str, Any] = {"tokenizer": load_tokenizer(str(saved.parent))}
    asked(saved, parent=parent, child=child, **options)
    fit_stitch(parent, child, TEXTS, **POINTS | options)
    assert child.training and not child.model.layers[0].mlp.training and not parent.training


POINTS: dict[str, Any] = {"source_hook_point": RESIDUAL, "target_hook_point": RESIDUAL, "context_size": 16}


@pytest.mark.parametrize("method", ["joint", "ridge", "procrustes"])
def test_maps_are_fitted_between_models_of_different_width(saved, method):
    result = fit_stitch(saved.parent, saved.wider, TEXTS, **POINTS, method=method)
    assert result.stitch.up.weight.shape == (16, 24) and result.stitch.down.weight.shape == (24, 16)
    assert result.tokens > 1_000
    up, down = result.quality.up, result.quality.down
    assert 0 < up.r2 <= 1 and 0 < down.r2 <= 1 and result.quality.tokens < result.tokens
    models, tokenizer = [load_model(str(one)) for one in (saved.parent, saved.wider)], load_tokenizer(str(saved.wider))
    same = fit_stitch(*models, TEXTS, **POINTS, method=method, tokenizer=tokenizer)
    assert same.stitch.up.weight.equal(result.stitch.up.weight) and same.quality.up.mse == up.mse


def test_what_cannot_be_stitched_is_refused_by_name(saved):
    other = train_tokenizer(["quite another text"] * 20 + [chr(code) for code in range(32, 127)], 300)
    few = {"context_size": 4, "held_out": 0.4}
    cases: list[tuple[Any, list[str], dict[str, Any], str]] = [
        (saved.other, TEXTS, {}, "have different tokenizers"),
        (saved.wider, TEXTS, {"tokenizer": other}, "have different tokenizers"),
        (saved.wider, TEXTS[:1], few, "tokens, and maps between 16 and 24 dimensions fit any so few"),
        (saved.wider, ["x"], {}, "texts hold .* fewer than two blocks"),
        (saved.wider, TEXTS, {"held_out": 1.5}, "held_out=1.5 must be a share"),
        (saved.wider, TEXTS, {"method": "rigde"}, "method='rigde': must be 'ridge', 'joint' or 'procrustes'"),
    ]
    for target, texts, more, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_stitch(saved.parent, target, texts, **POINTS | more)


def test_a_child_that_changed_only_behind_the_hook_point_has_the_same_activations_and_that_is_said(saved, tmp_path):
    model, tokenizer = load_model(str(saved.parent)), load_tokenizer(str(saved.parent))
    with torch.no_grad():
        model.lm_head.weight += 0.1
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    save_model(model, tokenizer, tmp_path / "behind")
    words = f"activations of parent and child at {HOOK} are identical, bit for bit"
    for more in ({}, {"controls": [saved.control]}):
        result = asked(saved, child=tmp_path / "behind", **more)
        assert words in str(result) and "it has 1 tokens that the other lacks ('<|end|>')" in str(result)
    assert result.tables["verdicts"].to_pylist()[0]["same_activations"]
    assert "identical, bit for bit" not in str(asked(saved, controls=[saved.control]))


def test_a_reward_model_is_compared_by_its_activations(saved, tmp_path):
    config = AutoConfig.from_pretrained(saved.parent, num_labels=1, pad_token_id=0)
    reward = AutoModelForSequenceClassification.from_config(config)
    reward.model.load_state_dict(load_model(str(saved.child)).model.state_dict())
    save_model(reward, load_tokenizer(str(saved.parent)), tmp_path / "reward")
    result = asked(saved, child=tmp_path / "reward")
    expected = asked(saved)
    assert result.tables["matches"].equals(expected.tables["matches"])
    recovered = [row["ce_loss_recovered"] for row in result.tables["saes"].to_pylist()]
    assert recovered[0] is not None and recovered[1] is None


def test_a_comparison_tells_how_far_it_is_on_stderr_where_nothing_else_is_told(saved, monkeypatch, capsys):
    monkeypatch.setenv("TTY_INTERACTIVE", "1")  # rich's word for a terminal that can redraw
    monkeypatch.setenv("FORCE_COLOR", "1")
    steps: list[tuple[int, int]] = []
    for progress in (None, lambda done, total: steps.append((done, total))):
        compare(saved.parent, saved.child, saved.sae, TEXTS, tokens=600, context_size=16, progress=progress)
        told = capsys.readouterr()
        assert ("left" in told.err) == (progress is None) and not told.out
    assert steps and all(0 < done <= total for done, total in steps)


def test_where_more_features_fire_than_memory_holds_effects_are_left_out_and_said(saved, monkeypatch):
    monkeypatch.setattr("heredity.features.transmission.free_memory", lambda: 1000.0)
    found = asked(saved, tokens=2_000, context_size=16)
    rows = found.tables["evidence"].to_pylist()
    assert all(row["transmission"] is None for row in rows) and any(row["match_r"] is not None for row in rows)
    (told,) = (note for note in found.notes if "effects of features are left out" in note)
    assert re.search(r"[0-9]+ features that fire take .* GiB to be told apart, and 0 are free; judge on fewer", told)
    with pytest.raises(ValueError, match="judge on fewer tokens, or with a narrower SAE"):
        asked(saved, tokens=2_000, context_size=16, controls=[saved.control])


def test_effects_that_nothing_asks_for_are_left_out_where_many_features_fire(saved, monkeypatch):
    monkeypatch.setattr("heredity.analyses.one_sae.REGRESSED", 3)
    known = []
    for effects in (None, True, False):
        found = asked(saved, tokens=2_000, context_size=16, effects=effects)
        rows = found.tables["evidence"].to_pylist()
        known.append(any(row["transmission"] is not None for row in rows))
        told = [note for note in found.notes if "effects of features are left out" in note]
        assert bool(told) == (effects is None) and all("effects=True" in note for note in told)
        assert any(row["match_r"] is not None for row in rows)
    assert known == [False, True, False]
