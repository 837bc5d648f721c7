"""What is held is what would be read again, within its budget, and a text is read once in a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiny
from heredity.analyses import aligned_ends
from heredity.analyses.aligned_ends import Known, Sample, read_again, read_ends
from heredity.analyses.held import Held
from heredity.features.collect import Reader
from heredity.lm import activations
from heredity.sae.model import new_sae

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")
BLOCKS = np.random.default_rng(0).integers(0, 300, (12, 16))
SAMPLE = Sample(BLOCKS[:6], BLOCKS[6:], np.arange(6 * 16))


def test_the_values_used_least_lately_go_first():
    held = Held(10)
    for name, size in (("a", 4), ("b", 4), ("too large", 11)):
        assert held.get(name, lambda name=name, size=size: (name, size)) == name
    assert held.get("a", lambda: pytest.fail("it is held")) == "a"
    held.put("c", "c", 6)
    assert "a" in held and "c" in held and "b" not in held and "too large" not in held and held.bytes == 10


@pytest.fixture
def passes(monkeypatch) -> list[tuple[Any, tuple[str, ...]]]:
    """Every reading of a model, with its places."""
    found: list[tuple[Any, tuple[str, ...]]] = []
    plain = activations.marked_at

    def marked_at(model: Any, places: Any, *rest: Any) -> Any:
        found.append((model, tuple(places)))
        return plain(model, places, *rest)

    monkeypatch.setattr(activations, "marked_at", marked_at)
    monkeypatch.setattr(aligned_ends, "HELD", Held())
    return found


def test_edges_and_sites_share_what_is_read_of_a_model(passes):
    base, first, second = (tiny.tiny_model(layers=2, seed=seed) for seed in (0, 1, 2))
    sae = new_sae(32, 64, "topk", 4)
    for edge, child in (("first", first), ("second", second)):
        for site in SITES:
            known = Known({"parent": "base", "child": edge, "edit": f"edit {edge}"}, SITES)
            readers = {"parent": Reader(base, site, [sae]), "child": Reader(child, site, [sae])}
            ends, sample = read_ends(readers, SAMPLE, known)
            alone, _ = read_ends(readers, SAMPLE)
            again = read_again(readers["parent"], sample, lambda child=child: child, "edit", known)
            for name, end in (*ends.items(), ("child", again)):
                assert np.array_equal(end.x, alone[name].x) and np.array_equal(end.fitting, alone[name].fitting)
    shared = [(model, places) for model, places in passes if len(places) == 2]
    read = [sum(model is one for model, _ in shared) for one in (base, first, second)]
    assert read == [2, 4, 4], "judged and fitting text, of base once for both edges, of a child for itself and its edit"


def test_large_readings_are_of_one_site(passes, monkeypatch):
    monkeypatch.setattr(aligned_ends, "HELD", Held(BLOCKS.size // 2 * 32 * 4 + 200))
    base, sae = tiny.tiny_model(layers=2), new_sae(32, 64, "topk", 4)
    readers = {end: Reader(base, SITES[0], [sae]) for end in ("parent", "child")}
    read_ends(readers, SAMPLE, Known({"parent": "a", "child": "b"}, SITES))
    assert {places for _, places in passes} == {SITES[:1]}
