"""Planted edges on SAELens' generator hold what was planted."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from heredity.synthetic.planted_edges import COSINE, FAINT, PLANTED
from heredity.synthetic.synthsaebench import SynthSAEBenchConfig, SynthSAEBenchEdge
from heredity.synthetic.verdict_proof import EDGE_CONDITIONS, installed

CONFIG = SynthSAEBenchConfig(features=256, roots=2, d=64)


def test_it_is_left_out_without_saelens(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ImportError, match=r"pip install .* '.\[interop\]'"):
        SynthSAEBenchEdge(CONFIG, 0)
    monkeypatch.setattr("heredity.synthetic.verdict_proof.available", lambda: False)
    left = {one.name for one in EDGE_CONDITIONS} - {one.name for one in installed(EDGE_CONDITIONS)}
    assert left == {"SynthSAEBench"}


def test_fates_that_do_not_fit_into_the_trees_are_refused():
    with pytest.raises(ValueError, match="'lost': 0.9"):
        SynthSAEBenchConfig(lost=0.9)
    with pytest.raises(ValueError, match="features=100 do not fit into roots=2"):
        SynthSAEBenchConfig(features=100, roots=2)


def test_both_ends_are_what_their_fates_say():
    pytest.importorskip("sae_lens")
    edge = SynthSAEBenchEdge(CONFIG, 3)
    ends = edge.parent, edge.child
    planted = {name: [int((end.fate == PLANTED.index(name)).sum()) for end in ends] for name in PLANTED}
    assert {name: counts for name, counts in planted.items() if any(counts)} == {
        "kept": [178, 178], "turned": [13, 13], "faint": [13, 13], "lost": [26, 0], "new": [0, 26],
    }  # fmt: skip
    sample = edge.draw(9_000, 1)
    for acts, x, end in zip(sample.acts, sample.x, ends, strict=True):
        left = x - acts.dense() @ end.directions
        assert np.abs(left - left[0]).max() < 1e-3, "what is no feature is the same everywhere"
    lost, new = PLANTED.index("lost"), PLANTED.index("new")
    parent, child = np.flatnonzero(edge.parent.fate != lost), np.flatnonzero(edge.child.fate != new)
    fate, cosine = edge.parent.fate[parent], (edge.parent.directions[parent] * edge.child.directions[child]).sum(1)
    assert np.allclose(cosine, np.where(fate == PLANTED.index("turned"), COSINE, 1), atol=1e-5)
    own, other = sample.acts[0].dense()[:, parent], sample.acts[1].dense()[:, child]
    assert np.allclose(other, own * np.where(fate == PLANTED.index("faint"), FAINT, 1), atol=1e-5)

    again = SynthSAEBenchEdge(CONFIG, 3).draw(5_000, 1)
    assert np.array_equal(again.x[1], sample.x[1][:5_000]), "a longer text begins with a shorter one"
    assert not np.array_equal(edge.draw(5_000, 2).x[0], again.x[0])
