"""Activations of all features of one SAE on one token sample, kept sparse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_array

from heredity.errors import reading, short
from heredity.kernels.processors import default_workers
from heredity.kernels.sparse import Sparse, first_fault, stored, transpose

_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "BOOL": np.bool_}
_MOST = 2**26  # features of an SAE
_STORED = {"indptr": "I64", "indices": "I32", "values": "F32", "d_sae": "I64"}
_MASK = {"samples": "BOOL"}


@dataclass(frozen=True)
class FeatureActs:
    """Feature activations, tokens x features by rows; zeros are not stored. The arrays are read-only.

    Raises `ValueError`, naming token and feature, when they do not describe such a matrix: a feature out of range or
    twice at one token, a value that is NaN, infinite or zero, starts that fall.
    """

    indptr: np.ndarray  # int64 [tokens + 1]: the entries of token t are indptr[t]:indptr[t + 1]
    indices: np.ndarray  # int32 [n]: the feature of each entry, in any order within a token
    values: np.ndarray  # float32 [n]: its activation; SAEs give positive ones, negative ones are allowed
    d_sae: int  # number of features
    samples: np.ndarray | None = None  # bool [tokens]: positions that are samples, the others empty; None where all are

    def __post_init__(self) -> None:
        for name, dtype in (("indptr", np.int64), ("indices", np.int32), ("values", np.float32)):
            array = np.ascontiguousarray(getattr(self, name), dtype).view()
            array.flags.writeable = False  # the compiled kernels also need only one version then
            object.__setattr__(self, name, array)
        if not len(self.indptr) or self.indptr[0] != 0 or self.indptr[-1] != self.n or self.n != len(self.values):
            sizes = f"indptr[{len(self.indptr)}], indices[{self.n}] and values[{len(self.values)}] do not fit"
            raise ValueError(f"{sizes}: indptr must run from 0 to the number of entries, one index and one value each")
        if self.samples is not None and self.samples.shape != (self.tokens,):
            raise ValueError(
                f"samples {list(self.samples.shape)} do not fit {self.tokens} tokens; give one bool for each"
            )
        fault = first_fault(self.sparse)
        if fault is not None:
            where = f"token {fault.row}"
            if fault.entry < self.n:
                where += f", feature {self.indices[fault.entry]} = {self.values[fault.entry]}"
            raise ValueError(f"{fault.kind} at {where} of {self.d_sae} features; check what made these activations")

    @property
    def sparse(self) -> Sparse:
        """The same arrays as the kernels take them."""
        return Sparse(self.indptr, self.indices, self.values, self.d_sae)

    def matrix(self) -> csr_array:
        """The same as a sparse matrix, float64 [tokens, d_sae]."""
        values = self.values.astype(np.float64)
        return csr_array((values, self.indices, self.indptr), shape=(self.tokens, self.d_sae))

    @property
    def tokens(self) -> int:
        """Token positions."""
        return len(self.indptr) - 1

    @property
    def n(self) -> int:
        """Stored entries: firings of any feature at any token."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(one.nbytes for one in (self.indptr, self.indices, self.values))

    @property
    def counted(self) -> int:
        """Token positions that are samples: what shares and means are of."""
        return self.tokens if self.samples is None else int(self.samples.sum())

    @property
    def l0(self) -> float:
        """Mean number of active features per sample; nan without any."""
        return self.n / self.counted if self.counted else float("nan")

    def firings(self) -> np.ndarray:
        """Tokens on which each feature fires, int64 [d_sae]."""
        return stored(self.sparse)

    def density(self) -> np.ndarray:
        """Share of samples on which each feature fires, float64 [d_sae]; nan without any."""
        return self.firings() / self.counted if self.counted else np.full(self.d_sae, np.nan)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens on which one feature fires, int64 [k] rising, and its activations there; searches all entries."""
        entries = np.flatnonzero(self.indices == feature)
        return np.searchsorted(self.indptr, entries, side="right") - 1, self.values[entries]

    def rows(self, start: int, stop: int) -> FeatureActs:
        """Tokens start to stop (slice rules); indices and values are views."""
        start, stop, _ = slice(start, stop).indices(self.tokens)
        indptr = self.indptr[start : max(start, stop) + 1]
        entries = slice(indptr[0], indptr[-1])
        own = None if self.samples is None else self.samples[start : max(start, stop)]
        return FeatureActs(indptr - indptr[0], self.indices[entries], self.values[entries], self.d_sae, own)

    def where(self, chosen: np.ndarray) -> FeatureActs:
        """The chosen tokens only, in order. chosen: bool [tokens]."""
        length = np.diff(self.indptr)
        entries = np.repeat(chosen, length)
        indptr = np.concatenate([[0], np.cumsum(length[chosen])])
        own = None if self.samples is None or self.samples[chosen].all() else self.samples[chosen]
        return FeatureActs(indptr, self.indices[entries], self.values[entries], self.d_sae, own)

    def spread(self, samples: np.ndarray) -> FeatureActs:
        """The same on more positions, of which these tokens are the samples. samples: bool [positions]."""
        lengths = np.zeros(len(samples), np.int64)
        lengths[samples] = np.diff(self.indptr)
        return FeatureActs(np.concatenate([[0], np.cumsum(lengths)]), self.indices, self.values, self.d_sae, samples)

    def scattered(self, offsets: np.ndarray) -> FeatureActs:
        """Each feature moved around the circle of tokens by its offset, int64 [d_sae]: row t goes to t + offset."""
        workers = default_workers()
        columns = transpose(self.sparse, workers=workers)
        moved = (np.repeat(offsets, np.diff(columns.indptr)) + columns.indices) % max(1, self.tokens)
        rows = transpose(Sparse(columns.indptr, moved.astype(np.int32), columns.values, self.tokens), workers=workers)
        return FeatureActs(rows.indptr, rows.indices, rows.values, self.d_sae)

    @staticmethod
    def concatenate(parts: Sequence[FeatureActs]) -> FeatureActs:
        """The tokens of all parts, one after the other. Raises `ValueError` for no part or different `d_sae`."""
        widths, lengths = [part.d_sae for part in parts], [np.diff(part.indptr) for part in parts]
        if len(set(widths)) != 1:
            raise ValueError(f"parts have d_sae={widths}; concatenate one or more parts of one SAE")
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        indices, values = (np.concatenate([getattr(part, own) for part in parts]) for own in ("indices", "values"))
        masks = [np.ones(part.tokens, bool) if part.samples is None else part.samples for part in parts]
        samples = None if all(part.samples is None for part in parts) else np.concatenate(masks)
        return FeatureActs(indptr, indices, values, widths[0], samples)

    @staticmethod
    def from_dense(acts: np.ndarray) -> FeatureActs:
        """Activations [tokens, d_sae] with the zeros left out."""
        acts = np.asarray(acts, np.float32)
        token, feature = np.nonzero(acts)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=len(acts)))])
        return FeatureActs(indptr, feature, acts[token, feature], acts.shape[1])

    def dense(self) -> np.ndarray:
        """All activations, float32 [tokens, d_sae]; for small samples."""
        acts = np.zeros((self.tokens, self.d_sae), np.float32)
        acts[np.repeat(np.arange(self.tokens), np.diff(self.indptr)), self.indices] = self.values
        return acts

    def to_columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same by features: (indptr int64 [d_sae + 1], rows int32 [n] rising within a feature, values [n])."""
        columns = transpose(self.sparse, workers=default_workers())
        return columns.indptr, columns.indices, columns.values

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        arrays = {"indptr": self.indptr, "indices": self.indices, "values": self.values}
        arrays |= {} if self.samples is None else {"samples": np.ascontiguousarray(self.samples)}
        save_file({**arrays, "d_sae": np.array([self.d_sae])}, path)

    @staticmethod
    def load(path: Path) -> FeatureActs:
        """What `save` wrote, mapped rather than read: the arrays take memory only where they are looked at, and share
        it between processes. The file must not be written to meanwhile. Raises `ValueError` for any other file."""
        # safetensors itself copies what it reads. Its format: the length of the header in 8 bytes, the header in JSON
        # with the offsets of each array, the arrays. Opening checks that offsets, dtypes, shapes and file fit.
        with reading(path, "it is damaged; make it again"), safe_open(path, "np"), open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        if kinds not in (_STORED, _STORED | _MASK):
            raise ValueError(f"{path} holds {kinds}, no feature activations; make it again")
        with reading(path, "it is damaged; make it again"):
            data, arrays = np.memmap(path, np.uint8, "r")[8 + size :].view(np.ndarray), {}
            for name, entry in header.items():
                part = data[slice(*entry["data_offsets"])].view(_DTYPES[entry["dtype"]])
                # A copy only where the writer left an array at an odd address, which compiled code cannot take.
                arrays[name] = np.require(part.reshape(entry["shape"]), None, "A")
        if arrays["d_sae"].size != 1 or not 0 <= arrays["d_sae"].ravel()[0] <= _MOST:
            raise ValueError(f"{path}: d_sae is {short(arrays['d_sae'], 80)}, no number of features; make it again")
        d_sae = int(arrays.pop("d_sae").ravel()[0])
        return FeatureActs(**arrays, d_sae=d_sae)
