"""Ablations and substitutions where the answer is known: a copy, units that changed places, and one that is turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader, encoded
from heredity.features.fingerprints import fingerprints, with_hard_negatives
from heredity.sae.model import SAE
from tiny import tiny_model

VOCAB, UNITS, LAST = 60, 16, "blocks.1.mlp.hook_post"


def model() -> Any:
    made = tiny_model(0, VOCAB, 24, UNITS, 2)
    with torch.no_grad():
        for parameter in made.parameters():  # fresh weights are too small to have an effect
            parameter *= 4 if parameter.ndim == 2 else 1
    return made


def reader(made: Any) -> Reader:
    sae, eye = SAE(UNITS, 2 * UNITS, "relu"), torch.eye(UNITS)
    sae.W_enc.copy_(torch.cat([eye, -eye], 1))
    sae.W_dec.copy_(torch.cat([eye, -eye], 0))
    return Reader(made, LAST, [sae])


def found(child: Any, triples: list[tuple[int, int, int]], places: int = 8) -> Any:
    blocks = np.random.default_rng(0).integers(0, VOCAB, (60, 12))
    ends = reader(model()), reader(child)
    acts = encoded(ends[0], blocks)[0], encoded(ends[1], blocks)[0]
    return fingerprints(*ends, acts, np.array(triples), blocks, places)


def test_a_copy_does_the_same_and_repairs_everything():
    made = found(model(), [(i, i, (i + 3) % UNITS) for i in range(UNITS)])
    np.testing.assert_allclose(made.r, 1, atol=1e-6)
    np.testing.assert_allclose(made.repaired, 1, atol=1e-6)
    assert made.passes.all() and (made.kl > 0).all()
    assert np.nanmedian(made.hard_negative_r) < 0.5 and np.nanmedian(made.hard_negative_repaired) < 0.5


def test_a_unit_that_writes_the_opposite_is_repaired_and_has_the_opposite_fingerprint():
    child = model()
    with torch.no_grad():
        child.model.layers[1].mlp.down_proj.weight[:, 3] *= -1
        child.model.layers[1].mlp.up_proj.weight[4] = 0
    made = found(child, [(3, 3, 5), (4, 4, 5), (6, 6, 7)])
    assert made.r[0] < -0.7 and not made.passes[0], "it fires alike"
    assert made.repaired[0] == pytest.approx(1, abs=1e-6), "in the parent the activation does what it did"
    assert np.isnan(made.r[1]) and not made.passes[1] and made.repaired[1] == pytest.approx(0, abs=1e-9)
    assert made.r[2] > 0.9 and made.passes[2]


def test_hard_negatives_are_next_best_and_fire_about_as_often():
    rng = np.random.default_rng(1)
    own = (rng.random((4_000, 1)) < 0.1) * 1.0
    rare, often = own * (rng.random((4_000, 1)) < 0.3), own + (rng.random((4_000, 1)) < 0.05)
    other = np.concatenate([rare, own, often, rng.random((4_000, 1)) < 0.1], axis=1)
    acts = FeatureActs.from_dense(own), FeatureActs.from_dense(other)
    assert with_hard_negatives(*acts, np.array([0])).tolist() == [[0, 1, 2]]
    only = FeatureActs.from_dense(np.concatenate([rare, own], axis=1))
    assert with_hard_negatives(acts[0], only, np.array([0])).tolist() == [[0, 1, 0]], "where there is no other"
    assert with_hard_negatives(acts[0], acts[0], np.array([0])).shape == (0, 3)
    assert found(model(), np.empty((0, 3), np.int64)).r.shape == (0,)


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match="must share a tokenizer"):
        found(tiny_model(0, VOCAB + 1, 24, UNITS, 2), [(0, 0, 1)])
