"""Latent scaling finds in a planted parent what is there: all of it, half, turned, missed by its SAE, or nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader
from heredity.features.correlate import Matches
from heredity.features.newness import LatentScaling, Newness, calibrate, groups_of, matched_pairs, newness, origins_of
from heredity.sae.model import new_sae
from tiny import HOOK, tiny_model
from worlds import measured, plant

TOKENS, D_IN = 10_000, 64
GROUPS = {"same": 40, "half": 30, "missed": 30, "turned": 30, "new": 40}
MODELS = {"child": list(GROUPS), "parent": ["same", "half", "missed", "turned"]}


class Planted(NamedTuple):
    acts: FeatureActs  # of the child, as an imperfect SAE would report them
    directions: np.ndarray
    group: np.ndarray
    truth: np.ndarray  # of nu: the size of the feature in the parent times the cosine of its directions in both models
    targets: tuple[Tensor, ...]  # as `update` takes them


def planted(seed: int = 0) -> Planted:
    """A parent that has the groups as they are called; one large mean vector in all activations of both models."""
    rng = np.random.default_rng(seed)
    world = plant(GROUPS, MODELS, D_IN, 8.0, 5, {"parent": ["turned"]})
    fired = world.fire(TOKENS, rng)
    offset = rng.standard_normal(D_IN) * 3
    acts = measured(world.acts("child", fired), rng, missed=0.05, jitter=0.1, spurious=0.02)
    child = world.x("child", fired, 0.2, rng) + offset
    parent_group = world.group[world.latents["parent"]]
    size = np.where(parent_group == "half", 0.5, 1.0)
    parts = world.acts("parent", fired).dense() * size
    parent_hat = (parts * (parent_group != "missed")) @ world.directions["parent"] + offset
    parent = parts @ world.directions["parent"] + offset + 0.3 * rng.standard_normal((TOKENS, D_IN))
    child_hat = acts.dense() @ world.directions["child"] + offset
    targets = tuple(torch.from_numpy(np.asarray(y, np.float32)) for y in (parent, parent_hat, child, child_hat))
    same = world.latents["child"][:, None] == world.latents["parent"]
    truth = (world.directions["child"] @ world.directions["parent"].T * same) @ size
    return Planted(acts, world.directions["child"], world.group[world.latents["child"]], truth, targets)


def streamed(world: Planted, batch: int = 1000, folds: int = 10) -> Newness:
    scaling = LatentScaling(torch.from_numpy(world.directions), folds)
    for start in range(0, TOKENS, batch):
        part = world.acts.rows(start, start + batch)
        scaling.update(part, *(y[start : start + batch] for y in world.targets))
    return scaling.result()


@pytest.fixture(scope="module")
def world() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def found(world: Planted) -> Newness:
    return streamed(world)


def median(values: np.ndarray, world: Planted) -> dict[str, float]:
    return {name: float(np.median(values[world.group == name])) for name in GROUPS}


def test_nu_is_the_share_that_the_parent_has_in_this_direction_and_its_parts_say_why(world, found):
    assert np.abs(found.nu - world.truth).max() < 0.12
    for name, truth in {"same": 1.0, "half": 0.5, "missed": 1.0, "new": 0.0}.items():
        assert median(found.nu, world)[name] == pytest.approx(truth, abs=0.03), name
    turned = world.group == "turned"
    assert np.corrcoef(found.nu[turned], world.truth[turned])[0, 1] > 0.9, "what is left is the cosine"
    assert median(found.beta_child, world)["same"] == pytest.approx(1.0, abs=0.08)
    # What the parent's SAE missed is in its error, the rest in its reconstruction.
    nu_r, nu_eps = median(found.nu_r, world), median(found.nu_eps, world)
    assert nu_r["same"] == pytest.approx(1.0, abs=0.08) and nu_eps["same"] == pytest.approx(0.0, abs=0.05)
    assert nu_r["missed"] == pytest.approx(0.0, abs=0.05) and nu_eps["missed"] == pytest.approx(1.0, abs=0.08)
    assert abs(nu_r["new"]) < 0.05 and abs(nu_eps["new"]) < 0.05
    # Strength and alignment tell turned from new.
    strength, alignment = median(found.strength, world), median(found.alignment, world)
    assert strength["turned"] == pytest.approx(1.0, abs=0.1) and abs(alignment["turned"]) < 0.2
    assert strength["new"] < 0.2
    assert strength["half"] == pytest.approx(0.5, abs=0.1) and alignment["half"] > 0.9
    assert strength["same"] == pytest.approx(1.0, abs=0.1) and alignment["same"] > 0.95


def test_streaming_agrees_with_least_squares_on_everything_at_once(world, found):
    """The plain reference: a regression of the whole target with a constant for each dimension."""
    parent, parent_hat, child, child_hat = (y.double().numpy() for y in world.targets)
    acts, directions = world.acts.dense().astype(np.float64), world.directions.astype(np.float64)
    for j in (0, 50, 120):
        own = acts[:, j, None] * directions[j]

        def beta(y: np.ndarray, own: np.ndarray = own) -> float:
            centered = own - own.mean(0)
            return float(np.linalg.lstsq(centered.reshape(-1, 1), (y - y.mean(0)).reshape(-1), rcond=None)[0][0])

        assert found.beta_parent[j] == pytest.approx(beta(parent), abs=1e-9)
        assert found.beta_child[j] == pytest.approx(beta(child), abs=1e-9)
        assert found.nu_r[j] == pytest.approx(beta(parent_hat) / beta(child_hat), abs=1e-9)
        with_own = child - child_hat + own
        assert found.nu_eps[j] == pytest.approx(beta(parent - parent_hat) / beta(with_own), abs=1e-9)


def test_batches_decide_the_folds_alone_and_the_mean_of_the_activations_does_not_matter(world, found):
    other = streamed(world, batch=TOKENS // 3, folds=3)
    for name in ("nu", "nu_r", "nu_eps", "beta_parent", "strength", "alignment"):
        np.testing.assert_allclose(getattr(other, name), getattr(found, name), rtol=1e-7, atol=1e-9)
    assert other.tokens == TOKENS and np.array_equal(other.firings, world.acts.firings())
    mean = 300 * torch.randn(D_IN, generator=torch.Generator().manual_seed(1))
    far = streamed(world._replace(targets=tuple(y + mean for y in world.targets)), batch=5000, folds=2)
    np.testing.assert_allclose(far.nu, found.nu, atol=1e-3)


def test_standard_errors_are_as_large_as_the_errors():
    """Of the new features, whose nu is 0 in truth but for chance."""
    z = []
    for seed in (1, 2):
        world = planted(seed)
        made = streamed(world)
        new = world.group == "new"
        z.append(made.nu[new] / made.nu_error[new])
    assert 0.8 < np.concatenate(z).std() < 1.35


def test_dead_and_constant_features_have_no_nu_and_wrong_arguments_are_refused():
    acts = FeatureActs.from_dense(np.array([[0, 2, 1], [0, 2, 0], [0, 2, 3], [0, 2, 0]], np.float32))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    made = LatentScaling(torch.eye(3, 5)).update(acts, x, x, x, x).result()
    assert np.isnan(made.nu[:2]).all() and np.isfinite(made.beta_child[2])
    assert np.isnan(made.nu_error).all() and not made.new()[:2].any(), "one update has no standard error"
    assert made.firings.tolist() == [0, 4, 2]
    scaling = LatentScaling(torch.eye(3, 5))
    with pytest.raises(ValueError, match="no tokens"):
        scaling.result()
    with pytest.raises(ValueError, match=r"parent_hat is \[4, 6\], not \[4, 5\]"):
        scaling.update(acts, x, torch.zeros(4, 6), x, x)
    with pytest.raises(ValueError, match="child holds NaN or infinity in update 0"):
        scaling.update(acts, x, x, x + torch.nan, x)


def test_models_are_read_on_the_same_tokens():
    sae = new_sae(48, 100, "topk", 6, torch.Generator().manual_seed(3))
    blocks, child = np.random.default_rng(0).integers(0, 300, (40, 32)), Reader(tiny_model(1), HOOK, [sae])
    itself = newness(child, child, blocks)
    live = itself.beta_child > 0
    assert live.any() and itself.tokens == 40 * 32
    np.testing.assert_allclose(itself.nu[live], 1.0)
    np.testing.assert_allclose(itself.alignment[live & (itself.strength > 0)], 1.0)
    other = newness(Reader(tiny_model(2), HOOK, [sae]), child, blocks)
    assert np.nanmedian(np.abs(other.nu[itself.firings > 20])) < 0.5
    with pytest.raises(ValueError, match="has 2 SAEs; give the one to use"):
        newness(Reader(child.model, HOOK, [sae, sae]), child, blocks)


# -- groups of features by fate and origin ---------------------------------------------------------------------------


def test_origins_are_those_of_the_planted_world(world, found):
    origins = {**origins_of(found), "new_by_nu": found.new(), "sure_by_nu": found.new(errors=3)}
    share = {name: {group: mask[world.group == group].mean() for group in GROUPS} for name, mask in origins.items()}
    assert all(value > 0.95 for value in share["judged"].values())
    for name in ("new_fixed", "new_by_nu"):
        assert share[name]["new"] > 0.95 and share[name]["turned"] > 0.9, "a turned feature is new in its direction"
        assert share[name]["same"] == share[name]["missed"] == 0
    assert share["new"]["new"] > 0.95 and share["new"]["turned"] < 0.2 and share["new"]["same"] == 0
    assert origins["sure_by_nu"].sum() < found.new().sum() and not (origins["sure_by_nu"] & ~found.new()).any()
    assert share["surely_new"]["new"] > 0.9 and share["surely_new"]["new"] <= share["new"]["new"]
    assert share["turned"]["turned"] > 0.8 and share["turned"]["new"] < 0.05
    for group in ("same", "missed"):
        assert share["turned"][group] == 0 and share["missed"][group] > 0.95
    assert share["missed"]["new"] == share["missed"]["turned"] == 0
    few = found._replace(firings=np.full_like(found.firings, 29))
    assert not any(mask.any() for mask in origins_of(few).values())


def test_calibrated_cuts_spare_inherited_features_that_are_weaker_and_still_find_new_ones():
    """A parent that has everything at 0.4 of the child's size: the fixed cuts call all of it new."""
    false, known = 0, 0
    for seed in (0, 1, 2):
        world = planted(seed)
        weaker = world._replace(targets=(0.4 * world.targets[0], 0.4 * world.targets[1], *world.targets[2:]))
        made = streamed(weaker)
        inherited, new = np.isin(world.group, ["same", "half"]), world.group == "new"
        calibration = calibrate(made, inherited, seed)
        fixed, calibrated = (origins_of(made, cut) for cut in (1.0, calibration.cut))
        assert fixed["new_fixed"][inherited].mean() > 0.9 and fixed["new_fixed"][new].mean() > 0.95
        assert calibration.calibrated and calibration.known == inherited.sum() == 70
        assert calibration.false == calibrated["new"][inherited].sum(), "each half is judged at the other half's cut"
        assert calibrated["new"][new].mean() > 0.9 and not (calibrated["new"] & ~calibrated["new_fixed"]).any()
        false, known = false + calibration.false, known + calibration.known
    assert 0 < false <= 0.08 * known
    few = calibrate(made, inherited & (np.cumsum(inherited) < 40), 0)
    assert not few.calibrated and few.known == 39 == few.false and (few.cut == 1).all()


def test_turned_features_that_are_inherited_do_not_hide_new_ones(found, world):
    calibration = calibrate(found, np.isin(world.group, ["same", "turned"]), 0)
    origins = origins_of(found, calibration.cut)
    assert calibration.calibrated and calibration.false <= 0.1 * calibration.known
    assert origins["new"][world.group == "new"].mean() > 0.9


def test_cuts_are_no_higher_than_the_papers(found, world):
    calibration = calibrate(found, world.group == "same", 0)
    assert calibration.calibrated and (calibration.cut == 1).all() and calibration.false == 0


def test_fates_are_the_edges_and_what_fires_on_other_text_only_is_apart(found):
    density, r = np.zeros(len(found.nu)), np.full((len(found.nu), 1), np.nan)
    density[:5], r[:5, 0] = 0.1, [0.9, 0.8, 0.5, np.nan, 0.95]
    match = np.where(np.isfinite(r), 0, -1)
    matches = Matches(match, r, match, r, density, density, 100)
    groups = groups_of(matches, found.firings, 0.8)
    assert np.flatnonzero(groups["inherited"]).tolist() == [0, 4]
    assert np.flatnonzero(groups["emerged"]).tolist() == [1, 2, 3]
    assert groups["unseen"].sum() == (found.firings[5:] > 0).sum() > 0
    stable = np.arange(len(density)) % 2 == 0
    apart = groups_of(matches, found.firings, 0.8, stable)
    assert np.flatnonzero(apart["emerged"]).tolist() == [2] and np.flatnonzero(apart["unstable"])[:2].tolist() == [1, 3]
    assert sum(map(sum, apart.values())) == sum(map(sum, groups.values()))


def test_pairs_are_a_sample_of_the_chosen_features_with_a_match():
    match = np.array([[3], [-1], [0], [2], [2]])
    matches = Matches(match, match, match, np.zeros((5, 1)), np.ones(5), np.ones(5), 100)
    chosen = np.array([True, True, True, False, True])
    assert matched_pairs(matches, chosen, 5, 0).tolist() == [[3, 0], [0, 2], [2, 4]]
    assert matched_pairs(matches, chosen, 2, 0).tolist() in ([[3, 0], [0, 2]], [[3, 0], [2, 4]], [[0, 2], [2, 4]])
    assert matched_pairs(matches, np.zeros(5, bool), 2, 0).shape == (0, 2)
