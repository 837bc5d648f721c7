"""What became of a direction is what was done to the other model's activations; files of directions are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from heredity.features.direction_fates import Readouts, alike, follow, scale_of, words_of
from heredity.features.direction_files import read_direction

D, TOKENS = 24, 6_000
DOCUMENTS = np.repeat(np.arange(TOKENS // 30), 30)


def activations(seed: int) -> np.ndarray:
    """With a steep spectrum, and a shift for each document."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((D, D)))[0] * np.linspace(0.3, 3, D)[:, None]
    return (rng.standard_normal((2 * TOKENS, D)) + np.repeat(rng.standard_normal((2 * TOKENS // 30, D)), 30, 0)) @ mix


def halves(x: np.ndarray, directions: np.ndarray) -> Readouts:
    return Readouts(x[:TOKENS].astype(np.float32), x[TOKENS:].astype(np.float32), directions)


@pytest.fixture(scope="module")
def planted():
    x, rng = activations(0), np.random.default_rng(1)
    v = rng.standard_normal(D)
    v /= np.linalg.norm(v)
    return x, np.vstack([v, alike(np.cov(x.T), v, 40, 0)])


def fates(planted, child: np.ndarray, turn: np.ndarray | None = None):
    x, directions = planted
    there = directions if turn is None else directions @ turn
    found = follow(halves(x, directions), halves(child, there), DOCUMENTS)
    return found, words_of(found, scale_of(found.at(slice(1, None))))


def test_random_directions_have_the_variance_of_the_one_they_stand_beside(planted):
    x, (v, *others) = planted
    covariance = np.cov(x.T)
    assert np.allclose([u @ covariance @ u for u in others], v @ covariance @ v) and np.allclose(
        np.linalg.norm(others, axis=1), 1
    )
    assert np.abs(np.array(others) @ v).mean() < 0.4


def test_a_direction_that_was_taken_out_is_lost_and_one_under_noise_is_kept(planted):
    x, (v, *_) = planted
    noise = 0.1 * np.random.default_rng(2).standard_normal(x.shape)
    found, words = fates(planted, x - np.outer(x @ v, v) + noise)
    assert words[0] == "lost" and abs(found.transmission[0]) < 0.02 and found.own[0] < 0.1
    assert found.readable[0] > 0.2, "other directions tell a part of it still"
    assert words[1:].count("lost") == 0 and words[1:].count("kept") > 30
    found, words = fates(planted, x + noise)
    assert set(words) == {"kept"} and abs(found.transmission[0] - 1) < 0.02


def test_a_change_of_basis_and_of_scale_is_no_change_and_a_move_is_no_loss(planted):
    x, (v, *_) = planted
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))[0]
    assert set(fates(planted, 0.3 * x @ turn, turn)[1]) == {"kept"}
    moved = x - np.outer(x @ v, v)
    elsewhere = np.linalg.svd(moved, full_matrices=False)[2][-2]  # another direction that hardly varies takes its place
    moved = moved - np.outer(moved @ elsewhere, elsewhere) + np.outer(x @ v, elsewhere)
    found, words = fates(planted, moved)
    assert words[0] == "changed" and found.own[0] > 0.9, "what it told is all there, along another direction"


def test_words_err_at_their_stated_rates(planted):
    x, directions = planted
    kept = lost = fragile = 0
    for seed in range(12):
        noise = 0.3 * activations(10 + seed)
        kept += fates(planted, activations(30 + seed))[1].count("kept")
        unscaled = words_of(follow(halves(x, directions), halves(0.5 * x + noise * 0.5, directions), DOCUMENTS))
        fragile += unscaled.count("kept")
        lost += fates(planted, x + noise)[1].count("lost")
    many = 12 * len(directions)
    assert kept == lost == 0, "nothing of an unrelated model is kept, nothing under noise lost"
    assert 0 < fragile / many < 0.12, "of directions at the margin itself, one bound of 95 % lets 5 % through"


def test_few_documents_decide_nothing(planted):
    x, directions = planted
    found = follow(halves(x, directions), halves(x, directions), np.zeros(TOKENS, int))
    assert set(words_of(found)) == {"undecided"}


def test_directions_are_read_from_files_of_every_form(tmp_path):
    v = np.arange(1, 5, dtype=np.float32)
    save_file({"probe.weight": v[None], "probe.bias": np.array([0.5], np.float32)}, tmp_path / "a.safetensors")
    np.save(tmp_path / "b.npy", v)
    torch.save({"layers": torch.arange(12.0).view(3, 4), "threshold": 2.0}, tmp_path / "c.pt")
    torch.save(torch.from_numpy(v), tmp_path / "d.pt")
    assert read_direction(tmp_path / "a.safetensors", 4).bias == 0.5
    for name in ("a.safetensors", "b.npy", "d.pt"):
        assert np.array_equal(read_direction(tmp_path / name, 4).vector, v)
    assert read_direction(tmp_path / "c.pt", 4, row=1) == (pytest.approx(np.arange(4.0, 8.0)), -2.0)


def test_a_file_without_one_direction_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.ones(4), two=np.ones(4), none=np.zeros(4))
    (tmp_path / "b.pt").write_bytes(b"no pickle")
    faults: list[tuple[dict[str, Any], str]] = [
        ({"d": 4}, "3 directions of 4 numbers among one"),
        ({"d": 5}, "0 directions of 5"),
        ({"tensor": "three"}, "has no tensor three; it has one"),
        ({"tensor": "none"}, "holds zeros only"),
    ]
    for given, said in faults:
        with pytest.raises(ValueError, match=said):
            read_direction(tmp_path / "a.npz", **given)
    np.savez(tmp_path / "c.npz", rows=np.ones((3, 4)))
    for name, given, said in (
        (
            "a.npz",
            {"tensor": "one", "row": 4},
            "0 directions in row 4 among one .* one vector, .* leave row out",
        ),
        ("c.npz", {"d": 4}, r"0 directions of 4 numbers among rows \[3, 4\]; set row to one of 0 to 2"),
        ("c.npz", {"d": 4, "row": 3}, "0 directions of 4 numbers in row 3 among rows .*; set row to one of 0 to 2"),
    ):
        with pytest.raises(ValueError, match=said):
            read_direction(tmp_path / name, **given)
    with pytest.raises(ValueError, match="cannot be read"):
        read_direction(tmp_path / "b.pt")
