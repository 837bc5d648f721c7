"""Functional features planted in a source and a target are found with what each keeps and changes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from heredity.analyses.feature_transfer import Inquiry
from heredity.analyses.functional_features import ATTENTION_CURVES, TABLES, deactivation, entropy
from heredity.lm.hooks import capture
from heredity.lm.logit_attribution import logit_weights
from heredity.sae.model import SAE
from heredity.stitch.functional import Side, activation_correlation
from stitch.test_affine import random
from stitch.test_functional import BOS, CONTEXT, HOOK, VOCAB, D, model, turning

FEATURES, PLANTED = 60, 7
TEXT = np.random.default_rng(0).integers(1, VOCAB, (80, CONTEXT))


def planted(made: Any, direction: torch.Tensor, gain: float) -> SAE:
    """Random features that fire on a third of the tokens, and one that reads (times a gain) and writes a direction."""
    sae = SAE(D, FEATURES, "relu")
    sae.W_dec.copy_(normalize(random(FEATURES, D, seed=5), dim=1))
    sae.W_dec[PLANTED] = direction
    sae.W_enc.copy_(sae.W_dec.T)
    sae.W_enc[:, PLANTED] *= gain
    x = capture(made, HOOK, torch.from_numpy(TEXT)).flatten(0, 1)
    sae.b_enc.copy_(-(x @ sae.W_enc).quantile(0.67, dim=0))
    return sae


def inquiry(source: Side, target: Side, functional: int) -> Any:
    """The inquiry of two models that the identity maps to each other."""
    made: Any = Inquiry.__new__(Inquiry)
    made.source, made.target, made.blocks = source, target, TEXT
    made.paired = activation_correlation(source, target, TEXT)
    made.judged = made.paired.source_firings >= 30
    made.columns = dict.fromkeys(("null_share", "carried_null_share"), [None] * FEATURES)
    made.rows, made.row = {table.name: [] for table in TABLES}, {}
    made.config, made.settings = SimpleNamespace(functional=functional), SimpleNamespace(seed=0)
    made.sides = SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=BOS))
    return made


def checked(made: Any) -> dict[str, list[dict[str, Any]]]:
    return {table.name: table.check(made.rows[table.name], stitch="s").to_pylist() for table in TABLES}


def test_an_entropy_feature_keeps_both_where_the_target_has_its_null_space():
    made = model("mistral")
    left = torch.linalg.svd(logit_weights(made, HOOK, torch.eye(D)).double())[0]
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.lm_head.weight.copy_(3 * random(VOCAB, D, seed=8))
    sae = planted(made, left[:, -1].float(), 8.0)
    for target, kept in ((made, True), (other, False)):
        found = inquiry(Side(made, HOOK, sae), Side(target, HOOK, sae), 1)
        entropy(found)
        tables = checked(found)
        (row,) = tables["entropy_features"]
        assert (row["feature"], row["kept"]) == (PLANTED, kept)
        assert row["share"] > 0.99 and (row["carried"] > 0.99) == kept and row["push"] == row["carried_push"]
        spaces = {one["end"]: one for one in tables["transfer_null_space"]}
        assert spaces["source"]["high"] == 1 > 5 * spaces["source"]["high_by_chance"]
        assert all(one["kept"] == kept for one in spaces.values())
        shown = [(one["end"], one["feature"]) for one in tables["null_shares"] if one["high"]]
        assert ("source", PLANTED) in shown and (("target", PLANTED) in shown) == kept


def test_a_feature_that_turns_one_head_off_and_in_the_target_another_on_is_told_so():
    """Figures 5b and 16: off at (2, 1) of the source; off at (2, 3) and on at (1, 2) of the target."""
    direction = random(D, seed=2)
    direction = normalize(direction - direction.mean(), dim=0)
    ends = {
        "source": turning(model("gpt2"), direction, {(2, 1): 8.0}),
        "target": turning(model("gpt2"), direction, {(2, 3): 8.0, (1, 2): -8.0}),
    }
    sides = [Side(made, HOOK, planted(made, direction, 1.0)) for made in ends.values()]
    found = inquiry(*sides, 1)
    entropy(found)
    deactivation(found)
    tables = checked(found)
    rows = {(row["end"], row["effect"]): row for row in tables["deactivation_features"]}
    assert {row["feature"] for row in rows.values()} == {PLANTED}
    where = {key: (row["layer"], row["head"]) for key, row in rows.items()}
    assert where["source", "off"] == (2, 1) and where["target", "off"] == (2, 3) and where["target", "on"] == (1, 2)
    assert rows["target", "on"]["attention_drop_high"] < 0 < rows["source", "off"]["attention_drop_low"]
    assert rows["source", "on"]["attention_drop"] > rows["target", "on"]["attention_drop"] / 2, "no head is turned on"
    share = found.columns["null_share"][PLANTED]
    assert rows["source", "on"]["null_share"] == rows["source", "off"]["null_share"] == pytest.approx(share)
    for end, effect, sign in (("source", "off", 1), ("target", "on", -1)):
        curve = [row for row in tables[ATTENTION_CURVES.name] if (row["end"], row["effect"]) == (end, effect)]
        drops = [sign * row["attention_drop"] for row in curve if row["tokens"] >= 10]
        assert len(drops) > 3 and max(drops[-3:]) > 1.5 * drops[0] > 0, "the effect rises with activation"
