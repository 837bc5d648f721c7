"""Checks, transposition and sums of sparse rows; and kernels that compile wherever the package lies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.kernels.sparse import Sparse, in_ranges, moments, stored, transpose

KERNEL = """
from heredity.kernels.sparse import compiled

@compiled()
def doubled(x):
    return 2 * x
"""


def random_acts(seed: int, tokens: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tokens, d)) * (rng.random((tokens, d)) < np.geomspace(0.002, 0.6, d))
    values[:, 1] = 0
    return values.astype(np.float32)


def sparse(dense: np.ndarray) -> Sparse:
    return FeatureActs.from_dense(dense).sparse


@pytest.mark.parametrize("writable", [True, False])
def test_kernels_compile_also_where_no_folder_can_be_written(tmp_path: Path, monkeypatch, writable: bool):
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


def test_the_transposition_keeps_every_entry_and_the_order_of_tokens():
    x = random_acts(20, 300, 17)
    columns = transpose(sparse(x))
    dense = np.zeros((17, 300), np.float32)
    for feature in range(17):
        own = slice(columns.indptr[feature], columns.indptr[feature + 1])
        assert np.all(np.diff(columns.indices[own]) > 0)
        dense[feature, columns.indices[own]] = columns.values[own]
    np.testing.assert_array_equal(dense.T, x)
    np.testing.assert_array_equal(stored(sparse(x)), (x != 0).sum(0))


@pytest.mark.parametrize(("first", "stop", "workers"), [(0, 17, 3), (0, 5, 1), (4, 17, 2), (6, 7, 5), (9, 9, 2)])
def test_some_columns_transpose_like_all_of_them(first, stop, workers):
    x = random_acts(24, 300, 17)
    part, whole = transpose(sparse(x), first, stop, workers), transpose(sparse(np.ascontiguousarray(x[:, first:stop])))
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_are_those_of_the_dense_columns():
    x = random_acts(21, 400, 12).astype(np.float64)
    sums = moments(sparse(x))
    np.testing.assert_array_equal(sums.stored, (x != 0).sum(0))
    np.testing.assert_allclose(sums.total, x.sum(0), rtol=1e-12)
    np.testing.assert_allclose(sums.square, np.square(x - x.mean(0)).sum(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1e-20, 3e8, 0.3333333])
def test_a_constant_feature_is_recognized_by_its_extremes_not_by_rounding(value):
    x = random_acts(12, 997, 6)
    x[:, 2] = value
    sums = moments(sparse(x))
    assert sums.square[2] == 0 and sums.square[1] == 0 and np.all(sums.square[3:] > 0)
