"""Sparse feature activations behave as the dense array they stand for."""

from __future__ import annotations

import json
import mmap

import numpy as np
import pytest
from safetensors.numpy import save_file

from heredity.features.acts import FeatureActs


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((40, 7)) * (rng.random((40, 7)) < 0.3)).astype(np.float32)


@pytest.fixture
def acts(x) -> FeatureActs:
    return FeatureActs.from_dense(x)


def test_dense_to_sparse_and_back_is_the_same_array(x, acts):
    np.testing.assert_array_equal(acts.dense(), x)
    assert (acts.tokens, acts.d_sae, acts.n) == (40, 7, (x != 0).sum())
    assert acts.l0 == pytest.approx((x != 0).sum(1).mean())
    np.testing.assert_allclose(acts.density(), (x != 0).mean(0))
    assert acts.density().dtype == np.float64


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (3, 9), (5, 5), (30, 99), (9, 3), (-5, 40)])
def test_rows_are_a_slice(x, acts, start, stop):
    np.testing.assert_array_equal(acts.rows(start, stop).dense(), x[start:stop])


def test_parts_concatenate_to_the_whole_and_chosen_tokens_are_a_mask(x, acts):
    whole = FeatureActs.concatenate([acts.rows(0, 13), acts.rows(13, 13), acts.rows(13, 40)])
    np.testing.assert_array_equal(whole.dense(), x)
    chosen = np.random.default_rng(0).random(40) < 0.4
    np.testing.assert_array_equal(acts.where(chosen).dense(), x[chosen])
    with pytest.raises(ValueError, match=r"d_sae=\[7, 6\]"):
        FeatureActs.concatenate([acts, FeatureActs.from_dense(x[:, :6])])
    with pytest.raises(ValueError, match="one or more"):
        FeatureActs.concatenate([])


@pytest.mark.parametrize("offset", [*([by] * 7 for by in (-90, -40, -3, 0, 1, 39, 90)), [0, 7, 49, 13, -2, 40, 5]])
def test_shifts_roll_the_tokens_of_each_feature(x, acts, offset):
    rolled = np.stack([np.roll(column, by) for column, by in zip(x.T, offset, strict=True)], axis=1)
    np.testing.assert_array_equal(acts.scattered(np.array(offset)).dense(), rolled)


def test_columns_list_each_features_tokens(x, acts):
    indptr, rows, values = acts.to_columns()
    for feature in range(7):
        own = slice(indptr[feature], indptr[feature + 1])
        for tokens, activations in ((rows[own], values[own]), acts.of(feature)):
            np.testing.assert_array_equal(tokens, np.flatnonzero(x[:, feature]))
            np.testing.assert_array_equal(activations, x[x[:, feature] != 0, feature])


def test_arrays_get_their_dtypes_and_cannot_be_written():
    acts = FeatureActs(np.array([0, 1], np.int32), np.array([2], np.int64), np.array([0.5]), 3)
    assert (acts.indptr.dtype, acts.indices.dtype, acts.values.dtype) == (np.int64, np.int32, np.float32)
    with pytest.raises(ValueError, match="read-only"):
        acts.values[0] = 1


def test_what_is_saved_is_loaded_and_mapped_but_not_copied(tmp_path, acts):
    for part in (acts, acts.rows(0, 0)):
        part.save(tmp_path / "acts.safetensors")
        again = FeatureActs.load(tmp_path / "acts.safetensors")
        np.testing.assert_array_equal(again.dense(), part.dense())
        assert (again.d_sae, again.tokens) == (7, part.tokens)
    acts.save(tmp_path / "acts.safetensors")
    base = FeatureActs.load(tmp_path / "acts.safetensors").values
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert isinstance(base, mmap.mmap)


def test_arrays_at_odd_addresses_are_loaded_too(tmp_path, acts):
    arrays = {"values": acts.values, "indices": acts.indices, "indptr": acts.indptr, "d_sae": np.array([7])}
    header, at = {}, 0
    for name, array in arrays.items():
        kind = {"float32": "F32", "int32": "I32", "int64": "I64"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    text = json.dumps(header | {"__metadata__": {"made": "by hand"}}).encode()
    text += b" " * (2 - len(text) % 4 + 4)
    path = tmp_path / "acts.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in arrays.values()))
    again = FeatureActs.load(path)
    assert again.values.flags.aligned and again.indptr.flags.aligned
    np.testing.assert_array_equal(again.dense(), acts.dense())


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "acts.safetensors"
    arrays = {"indptr": np.zeros(1, int), "indices": np.zeros(0, np.int32), "d_sae": np.array([3])}
    for wrong, message in (
        ({"W_enc": np.ones(3, np.float32)}, "holds {'W_enc': 'F32'}, no feature activations"),
        (arrays | {"values": np.zeros(0)}, "'values': 'F64'"),
    ):
        save_file(wrong, path)
        with pytest.raises(ValueError, match=message):
            FeatureActs.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short|damaged"):
        FeatureActs.load(path)


def test_no_tokens_are_fine():
    acts = FeatureActs.from_dense(np.zeros((0, 4), np.float32))
    assert acts.tokens == 0 and acts.n == 0 and np.isnan(acts.l0) and np.isnan(acts.density()).all()
    assert acts.scattered(np.full(4, 3)).tokens == 0


@pytest.mark.parametrize(
    ("indptr", "indices", "values", "message"),
    [
        ([0, 2], [0, 3], [1, 1], "column out of range at token 0, feature 3"),
        ([0, 1], [-1], [1], "column out of range"),
        ([0, 1, 2], [0, 1], [1, np.nan], "not finite at token 1, feature 1 = nan"),
        ([0, 1], [0], [np.inf], "not finite"),
        ([0, 1], [0], [0.0], "stored zero"),
        ([0, 2], [1, 1], [1, 2], "occurs twice"),
        ([0, 2, 1, 2], [0, 1], [1, 1], "ends before it starts"),
        ([0, 1], [0, 1], [1, 1], "do not fit"),
        ([1, 2], [0, 1], [1, 1], "do not fit"),
        ([], [], [], "do not fit"),
    ],
)
def test_arrays_that_are_no_such_matrix_are_refused_by_token(indptr, indices, values, message):
    with pytest.raises(ValueError, match=message):
        FeatureActs(np.array(indptr), np.array(indices), np.array(values), 3)
