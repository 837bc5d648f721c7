"""Verdicts on a small model whose weights were edited."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from heredity.synthetic import edit_proof
from heredity.synthetic.saes import Training
from heredity.synthetic.surgery import quantized


@pytest.mark.slow
def test_a_change_of_basis_keeps_every_feature_and_nothing_that_was_not_taken_out_is_lost():
    model = tiny.tiny_model(0, vocab=64, d_model=32)
    blocks = np.random.default_rng(0).integers(0, 64, (2_400, 16))
    steps: list[tuple[int, int]] = []
    documents = np.arange(len(blocks)) // 8
    tables = edit_proof.prove_edits(
        model,
        quantized(model, 3),
        blocks,
        documents,
        training=Training(epochs=10, k=3, expansion=3, lr=1e-2, batch=256),
        progress=lambda *step: steps.append(step),
    )
    rows = {row["edit"]: row for row in edit_proof.EDITS.check(tables["proof_of_edits"]).to_pylist()}
    assert steps == [(done, 10) for done in range(1, 11)] and len(rows) == 10
    for edit in ("copy", "neurons permuted", "residual stream rotated"):
        assert rows[edit]["kept"] == rows[edit]["stable"] > 20, edit
    assert all(row["others_lost"] == 0 for edit, row in rows.items() if row["truth"] in ("all kept", "none lost"))
    assert rows["8 projected out"]["kept"] < rows["copy"]["kept"]
