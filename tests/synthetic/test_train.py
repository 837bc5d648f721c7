"""SAEs trained on a planted world recover its features and distinguish kept from lost ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from heredity.features.correlate import correlate
from heredity.synthetic.train import Training, train_pair
from heredity.synthetic.truth import KEPT_LIKE, judge, label
from heredity.synthetic.world import NEW, World, WorldConfig

SMALL = Training(tokens=10_000, epochs=4, k=4, lr=6e-3, batch=256)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # problems of this size gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(d=32, kept=20, rotated=8, lost=25, new=25, l0=3, rarity=0.3), 0)


@pytest.mark.parametrize("init", ["independent", "parent"])
def test_trained_saes_distinguish_kept_from_lost_features(world, init):
    pair = train_pair(world, init, SMALL, 6_000, seed=0)
    parent = label(pair.parent, pair.sample.parent, world.parent.fate)
    child = label(pair.child, pair.sample.child, world.child.fate)
    assert parent.recovered > 0.95 and child.recovered > 0.9
    matches = correlate(pair.parent, pair.child, top=1)
    called = judge(matches.parent_r[:, 0] > 0.5, parent.fate)
    assert called.precision > 0.95 and called.recall > 0.9
    new = judge((matches.child_density > 0) & ~(matches.child_r[:, 0] > 0.5), child.fate, (NEW,), KEPT_LIKE)
    assert new.precision > 0.85 and new.recall > 0.95
    # Two SAEs of one model share their input noise and agree better than those of an edge.
    follows = parent.feature >= 0
    control = correlate(pair.parent, pair.parent_control, top=1).parent_r[follows, 0]
    assert np.median(control) > np.median(matches.parent_r[follows & (matches.parent_r[:, 0] > 0.5), 0])
    assert min(pair.explained_variance.values()) > 0.7


def test_a_pair_is_reproducible_and_its_controls_are_other_saes():
    world = World(WorldConfig(d=16, kept=10, rotated=0, lost=5, new=5, l0=2), 0)
    tiny = Training(tokens=2_000, epochs=1, k=3, expansion=2, batch=256)
    one, again = (train_pair(world, "parent", tiny, 500, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.child.values, again.child.values)
    np.testing.assert_array_equal(one.sample.child.values, world.draw(500, 3).child.values)
    assert one.parent_control is not None and not np.array_equal(one.parent.values, one.parent_control.values)


def test_what_cannot_be_is_refused(world):
    with pytest.raises(ValueError, match="init='other'"):
        train_pair(world, "other", SMALL, 100, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="epochs=0"):
        Training(epochs=0)
    with pytest.raises(ValueError, match="continue_tokens=0"):
        Training(continue_tokens=0)
