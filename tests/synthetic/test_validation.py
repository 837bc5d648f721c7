"""Every rule held against planted truth, in a small form; `heredity plant` runs the large one."""

from __future__ import annotations

import json

import pytest
import torch

from heredity.report.planted import as_json, markdown, proof_of, tables
from heredity.synthetic.world import WorldConfig
from heredity.synthetic.train import Training
from heredity.synthetic.validation import Condition, Proof, judged, pooled, rates

SMALL = Condition("small", WorldConfig(d=40, kept=30, rotated=10, lost=40, new=40, l0=4), Training(k=5, expansion=5))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def proof() -> Proof:
    """One world with two protocols, and error rates of two worlds."""
    return Proof((judged(SMALL, "joint", 20_000, 0), judged(SMALL, "parent", 20_000, 0)), rates(2), 20_000, 1)


def test_the_default_rule_tells_kept_from_lost_in_a_well_trained_world(proof):
    for row in proof.worlds:
        best = row.verdicts[0]
        assert best.rule == "evidence"
        assert best.called["kept"] >= 0.98 and best.called["rotated"] >= 0.9
        assert best.called["lost"] <= 0.02 and best.precision >= 0.98
        assert row.found > 0.9 and row.reliability > 0.8


def test_the_papers_threshold_loses_kept_features(proof):
    for row in proof.worlds:
        by_rule = {verdict.rule: verdict for verdict in row.verdicts}
        assert by_rule["r > 0.8"].recall <= by_rule["evidence"].recall


def test_emerged_features_are_the_new_ones_and_scaling_confirms_them(proof):
    for row in proof.worlds:
        assert row.emerged["new"] >= 0.98 and row.emerged["kept"] <= 0.02
        assert row.really_new["new"] >= 0.95


def test_directions_of_continued_saes_cling_to_lost_features(proof):
    continued = {verdict.rule: verdict for verdict in proof.worlds[1].verdicts}
    assert continued["decoder cosine"].precision < continued["evidence"].precision
    assert "decoder cosine" not in {verdict.rule for verdict in proof.worlds[0].verdicts}, "one SAE has one decoder"


def test_error_rates_hold_roughly_even_over_two_worlds(proof):
    assert proof.rates.false_discoveries < 0.15 and proof.rates.power > 0.8
    assert proof.rates.r_coverage > 0.9 and proof.rates.count_coverage > 0.6


def test_the_result_is_json_and_text(proof):
    found = json.loads(json.dumps(as_json(proof), allow_nan=False))
    assert found["worlds"][0]["verdicts"][0]["rule"] == "evidence"
    assert len(pooled(proof.worlds)) == sum(len(row.verdicts) for row in proof.worlds)
    for _, headings, rows in tables(proof):
        assert rows and all(len(row) == len(headings) for row in rows)
    assert markdown(proof_of(found)) == markdown(proof)
    assert markdown(proof).count("| rule |") == 2
