"""Checks, transposition and sums of sparse rows and of pairs; and kernels that compile wherever the package lies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.kernels.pairs import pair_moments
from heredity.kernels.sparse import Sparse, in_ranges, moments, stored, transpose
from worlds import dense_of, random_acts

KERNEL = """
from heredity.kernels.sparse import compiled

@compiled()
def doubled(x):
    return 2 * x
"""


def signed_acts(seed: int, tokens: int, d: int) -> np.ndarray:
    acts = random_acts(seed, tokens, d, 0.2) * np.random.default_rng(seed).choice([-1, 1], (tokens, d))
    acts[:, 1] = 0
    return acts.astype(np.float32)


def sparse(dense: np.ndarray) -> Sparse:
    return FeatureActs.from_dense(dense).sparse


@pytest.mark.parametrize("writable", [True, False])
def test_kernels_compile_also_where_no_folder_can_be_written(tmp_path: Path, monkeypatch, writable):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nohome")
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL)
    if not writable:
        (tmp_path / "__pycache__").touch()  # a file where the folder of machine code would lie
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.doubled(21) == 42
    assert bool(list(tmp_path.glob("__pycache__/*.nbi"))) == writable


@pytest.mark.parametrize("cost", [None, np.array([0, 100, 100, 100, 101, 150, 151, 152, 153, 400, 401])])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_ranges_cover_everything_once(cost, threads):
    done = np.zeros(10, int)

    def work(start: int, stop: int) -> None:
        done[start:stop] += 1

    for n in (10, 0):
        in_ranges(work, n, 1 << 30, 2, cost if n else None, threads)
    assert done.tolist() == [1] * 10


def test_ranges_return_in_their_order_whoever_takes_them_and_raise_what_the_first_raises():
    for _ in range(50):
        assert in_ranges(lambda start, stop: (start, stop), 9, 1 << 30, 3, threads=3) == [(i, i + 1) for i in range(9)]

    def work(start: int, stop: int) -> int:
        done.append(start)
        if start in (2, 5):
            raise ValueError(f"range {start}")
        return start

    done: list[int] = []
    with pytest.raises(ValueError, match="range 2"):
        in_ranges(work, 8, 1 << 30, 4, threads=2)
    assert sorted(done) == list(range(8))
    # A range may be divided in turn: who waits has always done what nobody else has begun.
    inner = in_ranges(lambda a, b: in_ranges(lambda c, d: d - c, b - a, 1 << 30, threads=2), 8, 1 << 30, threads=2)
    assert inner == [[2, 2], [2, 2]]


def test_the_transposition_keeps_every_entry_and_the_order_of_tokens():
    x = signed_acts(20, 300, 17)
    columns = transpose(sparse(x))
    np.testing.assert_array_equal(dense_of(columns).T, x)
    for start, stop in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        assert np.all(np.diff(columns.indices[start:stop]) > 0)
    np.testing.assert_array_equal(stored(sparse(x)), (x != 0).sum(0))


@pytest.mark.parametrize(("first", "stop", "workers"), [(0, 17, 3), (0, 5, 1), (4, 17, 2), (6, 7, 5), (9, 9, 2)])
def test_some_columns_transpose_like_all_of_them(first, stop, workers):
    x = signed_acts(24, 300, 17)
    part, whole = transpose(sparse(x), first, stop, workers), transpose(sparse(np.ascontiguousarray(x[:, first:stop])))
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [0.1, 1e-20, 3e8, 0.3333333])
def test_moments_are_those_of_the_dense_columns_and_exactly_0_for_a_constant_one(value):
    x = signed_acts(21, 997, 6)
    x[:, 2] = value
    sums, dense = moments(sparse(x)), x.astype(np.float64)
    np.testing.assert_array_equal(sums.stored, (x != 0).sum(0))
    np.testing.assert_allclose(sums.total, dense.sum(0), rtol=1e-12)
    assert sums.square[2] == 0 and sums.square[1] == 0 and np.all(sums.square[3:] > 0)
    expected = np.square(dense - dense.mean(0)).sum(0)
    np.testing.assert_allclose(np.delete(sums.square, 2), np.delete(expected, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_groups_of_tokens_are_those_of_the_definition(seed, monkeypatch):
    monkeypatch.setattr("heredity.kernels.sparse.WORTH_THREADS", 1)
    monkeypatch.setattr("heredity.kernels.pairs.default_workers", lambda: 3)
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(0.5, 1, (400, d)).astype(np.float32) * (rng.random((400, d)) < 0.2) for d in (12, 19))
    candidates, group = rng.integers(-1, 19, (12, 3)), rng.integers(0, 7, 400)
    found = pair_moments(sparse(x), sparse(y), candidates, group, 7)
    x, y = x.astype(np.float64), y.astype(np.float64)
    products = x[:, :, None] * np.where(candidates >= 0, y[:, candidates], 0.0)
    plain = [np.stack([part[group == g].sum(0) for g in range(7)]) for part in (x, x * x, y, y * y, products)]
    for sums, expected in zip(found[:6], [np.bincount(group), *plain], strict=True):
        assert sums.dtype == np.float64
        np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)


def test_sums_are_in_float64():
    acts = sparse(np.full((3000, 1), 4097.3, np.float32))
    found = pair_moments(acts, acts, np.zeros((1, 1)), np.zeros(3000), 1)
    assert found.xx[0, 0] == pytest.approx(3000 * float(np.float32(4097.3)) ** 2, rel=1e-12)
