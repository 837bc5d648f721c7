"""Lineages whose truth is planted: what matching and accounting must find in them.

Both ends of an edge carry the noise of their SAEs, so a latent that is fully kept shows r = reliability x reliability
(each the r of an SAE feature with its latent), not 1. With reliabilities near .87, which is what trained SAEs reach,
that product falls on both sides of the paper's threshold of 0.8 and cuts kept features in half, while lost ones stay
near 0. Worlds with noisy SAEs are therefore judged at 0.5, the lowest point of the published curve and well inside the
gap; worlds with little noise at 0.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.features.fates import EMERGED, EMERGED_IN_BOTH, FROM_BASE, NOVEL, fates, flow
from heredity.features.null import chance_threshold, corrected, floor, split_threshold
from heredity.sae.model import SAE, new_sae
from heredity.sae.train import train
from heredity.study import SAEConfig
from worlds import World, measured, plant, precision_and_recall

TOKENS = 30_000
CLEAN = {"missed": 0.1, "jitter": 0.15, "spurious": 0.02}
NOISY = {"missed": 0.3, "jitter": 0.3, "spurious": 0.2}


@pytest.fixture(scope="module")
def edge() -> tuple[World, FeatureActs, FeatureActs]:
    """A world of one edge, and the true activations of its ends."""
    world = plant(
        {"same": 200, "rotated": 100, "lost": 300, "new": 250},
        {"parent": ["same", "rotated", "lost"], "child": ["same", "rotated", "new"]},
        d_in=64,
        l0=12,
        seed=0,
        rotated={"child": ["rotated"]},
    )
    fired = world.fire(TOKENS, np.random.default_rng(1))
    return world, world.acts("parent", fired), world.acts("child", fired)


def noisy_matches(edge: tuple[World, FeatureActs, FeatureActs], noise: dict[str, float]) -> Matches:
    rng = np.random.default_rng(2)
    return correlate(measured(edge[1], rng, **noise), measured(edge[2], rng, **noise))


def test_true_activations_are_matched_without_a_mistake(edge):
    world, parent, child = edge
    matches = correlate(parent, child)
    found = fates(matches, 0.99)
    np.testing.assert_array_equal(found.persist, world.has("parent", "child"))
    np.testing.assert_array_equal(found.inherited, world.has("child", "parent"))
    np.testing.assert_array_equal(
        world.latents["parent"][found.mutual[:, 0]], world.latents["child"][found.mutual[:, 1]]
    )
    assert len(found.mutual) == 300


@pytest.mark.parametrize(("noise", "threshold"), [(CLEAN, 0.8), (CLEAN, 0.5), (NOISY, 0.5)])
def test_fates_are_right_in_19_of_20_cases(edge, noise, threshold):
    world = edge[0]
    found = fates(noisy_matches(edge, noise), threshold)
    kept, old = world.has("parent", "child"), world.has("child", "parent")
    for called, truth in (
        (found.persist, kept),
        (found.disappear, ~kept),
        (found.inherited, old),
        (found.emerge, ~old),
    ):
        precision, recall = precision_and_recall(called, truth)
        assert precision >= 0.95 and recall >= 0.95


def test_the_papers_threshold_overcounts_losses_and_never_keeps_a_lost_feature(edge):
    kept = edge[0].has("parent", "child")
    precision, recall = precision_and_recall(fates(noisy_matches(edge, NOISY), 0.8).persist, kept)
    assert precision == 1 and recall < 0.5


def test_matches_lead_to_the_same_latent(edge):
    world, kept = edge[0], edge[0].has("parent", "child")
    matches = noisy_matches(edge, NOISY)
    same = world.latents["child"][matches.parent_match[:, 0]] == world.latents["parent"]
    assert same[kept].mean() >= 0.99 and not same[~kept].any()


def test_a_kept_features_r_is_the_product_of_its_reliabilities(edge):
    world, parent, child = edge
    rng = np.random.default_rng(3)
    ends = [measured(acts, rng, **NOISY) for acts in (parent, child)]
    matches = correlate(ends[0], ends[1])
    kept = world.has("parent", "child")
    own = [correlate(acts, end, 1).parent_r[:, 0] for acts, end in zip((parent, child), ends, strict=True)]
    # `corrected` takes reliabilities as the r of two noisy measurements: the square of the r with the truth.
    r = corrected(matches.parent_r[:, 0], own[0] ** 2, own[1][matches.parent_match[:, 0]] ** 2)
    assert np.median(matches.parent_r[kept, 0]) < 0.8
    assert np.quantile(r[kept], 0.05) > 0.93 and r[~kept].max() < 0.2


def test_the_data_choose_a_threshold_in_the_gap(edge):
    world, kept = edge[0], edge[0].has("parent", "child")
    rng = np.random.default_rng(4)
    ends = [measured(acts, rng, **NOISY) for acts in edge[1:]]
    best = correlate(ends[0], ends[1]).parent_r[:, 0]
    chance = floor(ends[0], ends[1], passes=2, seed=0).parent_r
    assert np.nanmax(chance) < 0.2
    # The cut by chance lies at its upper edge, where lost features lie too: it lets about 1 % of false calls through.
    precision, recall = precision_and_recall(best > chance_threshold(best, chance, rate=0.01), kept)
    assert precision >= 0.97 and recall == 1
    assert precision_and_recall(best > split_threshold(best), kept) == (1, 1)
    assert world.group[world.latents["parent"][best < 0.5]].tolist() == ["lost"] * 300


def test_turning_the_directions_alone_does_not_end_a_lineage(edge):
    world = edge[0]
    persist = fates(noisy_matches(edge, NOISY), 0.5).persist
    rotated = world.group[world.latents["parent"]] == "rotated"
    assert persist[rotated].mean() >= 0.95


MERGE_GROUPS = {
    "everywhere": (60, ("base", "lua", "stories", "merge"), FROM_BASE),
    "through lua": (50, ("base", "lua", "merge"), FROM_BASE),
    "through stories": (40, ("base", "stories", "merge"), FROM_BASE),
    "lua": (55, ("lua", "merge"), EMERGED),
    "stories": (45, ("stories", "merge"), EMERGED + 1),
    "both": (35, ("lua", "stories", "merge"), EMERGED_IN_BOTH),
    "novel": (65, ("merge",), NOVEL),
    "returned": (20, ("base", "merge"), NOVEL),
    "lost in training": (70, ("base",), None),
    "lost in merging": (50, ("base", "lua", "stories"), None),
    "short-lived": (30, ("lua",), None),
}


@pytest.mark.parametrize(("noise", "threshold"), [(CLEAN, 0.8), (NOISY, 0.5)])
def test_every_feature_of_a_planted_merge_gets_its_origin(noise, threshold):
    models = ("base", "lua", "stories", "merge")
    members = {model: [name for name, (_, where, _) in MERGE_GROUPS.items() if model in where] for model in models}
    world = plant({name: size for name, (size, _, _) in MERGE_GROUPS.items()}, members, d_in=8, l0=10, seed=5)
    rng = np.random.default_rng(6)
    fired = world.fire(TOKENS, rng)
    acts = {model: measured(world.acts(model, fired), rng, **noise) for model in models}
    found = flow(
        {parent: correlate(acts["base"], acts[parent]) for parent in ("lua", "stories")},
        {parent: correlate(acts[parent], acts["merge"]) for parent in ("lua", "stories")},
        threshold,
    )
    truth = np.array([MERGE_GROUPS[name][2] for name in world.group[world.latents["merge"]]])
    for label in (FROM_BASE, EMERGED, EMERGED + 1, EMERGED_IN_BOTH, NOVEL):
        precision, recall = precision_and_recall(found.labels == label, truth == label)
        assert precision >= 0.95 and recall >= 0.95
    assert found.undecided == 0 and found.live == len(truth)


D_IN, D_SAE, K = 96, 320, 9
SAMPLE, BATCH, STEPS = 60_000, 1024, 1000


class Trained(NamedTuple):
    """A world with SAEs trained on its vectors, and their activations on tokens they did not see."""

    kept: np.ndarray
    """bool [latents of the parent]: whether the child has the latent too."""
    rotated: np.ndarray
    """bool [latents of the parent]: kept, with another direction in the child."""
    best_feature: np.ndarray
    """int [latents of the parent]: the parent's SAE feature that follows it best."""
    reliability: np.ndarray
    """float64 [latents of the parent]: its r with the latent."""
    parent: FeatureActs
    """The parent's SAE."""
    children: dict[str, FeatureActs]
    """The child's SAEs: `independent`, and `continued` from the parent's."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from a second thread, and on a busy machine lose a lot."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(one_thread: None) -> Trained:  # noqa: ARG001
    """240 latents in 96 dimensions at both ends, half of them kept; 30 % noise; TopK SAEs with a third to spare."""
    world = plant(
        {"same": 70, "rotated": 50, "lost": 120, "new": 120},
        {"parent": ["same", "rotated", "lost"], "child": ["same", "rotated", "new"]},
        d_in=D_IN,
        l0=8,
        seed=0,
        rotated={"child": ["rotated"]},
    )
    rng = np.random.default_rng(1)
    fired, held_out = world.fire(SAMPLE, rng), world.fire(SAMPLE // 3, rng)
    x = {model: world.x(model, fired, 0.3, rng) for model in ("parent", "child")}
    unseen = {model: world.x(model, held_out, 0.3, rng) for model in ("parent", "child")}
    config = SAEConfig(activation="topk", k=K, lr=4e-3, decay=True)

    def fit(sae: SAE, model: str, seed: int, continued: bool) -> SAE:
        def batch(step: int) -> torch.Tensor:
            rows = np.random.default_rng((seed, step)).integers(0, SAMPLE, BATCH)
            return torch.from_numpy(x[model][rows])

        train(sae, batch, config, STEPS, seed, continued=continued)
        return sae

    def fresh(seed: int) -> SAE:
        return new_sae(D_IN, D_SAE, "topk", K, torch.Generator().manual_seed(seed))

    def encoded(sae: SAE, model: str) -> FeatureActs:
        return FeatureActs(*sae.encode_sparse(torch.from_numpy(unseen[model])), d_sae=D_SAE)

    parent = fit(fresh(2), "parent", seed=2, continued=False)
    children = {
        "independent": fit(fresh(3), "child", seed=3, continued=False),
        "continued": fit(deepcopy(parent), "child", seed=4, continued=True),
    }
    acts = encoded(parent, "parent")
    truth = correlate(world.acts("parent", held_out), acts, top=1)
    return Trained(
        kept=world.has("parent", "child"),
        rotated=world.group[world.latents["parent"]] == "rotated",
        best_feature=truth.parent_match[:, 0],
        reliability=truth.parent_r[:, 0],
        parent=acts,
        children={name: encoded(sae, "child") for name, sae in children.items()},
    )


def test_the_trained_dictionary_follows_the_planted_latents(trained):
    assert np.mean(trained.reliability > 0.7) > 0.95
    assert 0.8 < np.median(trained.reliability) < 0.95


@pytest.mark.parametrize("start", ["independent", "continued"])
def test_trained_saes_tell_kept_from_lost_latents(trained, start):
    """Judged at 0.5, because noise holds the r of kept latents near .84 (see the head of this file).

    Every latent of the parent counts: one that the parent's SAE has not learned is an error too.
    """
    matches = correlate(trained.parent, trained.children[start])
    called = fates(matches, 0.5).persist[trained.best_feature]
    for answer, truth in ((called, trained.kept), (~called, ~trained.kept)):
        precision, recall = precision_and_recall(answer, truth)
        assert precision >= 0.95 and recall >= 0.95
    assert called[trained.rotated].mean() >= 0.95


@pytest.mark.parametrize("start", ["independent", "continued"])
def test_the_cut_between_the_two_groups_of_r_is_read_off_the_data(trained, start):
    r = correlate(trained.parent, trained.children[start]).parent_r[:, 0]
    cut = split_threshold(r)
    assert 0.2 < cut < 0.65
    assert min(precision_and_recall(r[trained.best_feature] > cut, trained.kept)) >= 0.95
    assert precision_and_recall(r[trained.best_feature] > 0.8, trained.kept)[1] < 0.95
