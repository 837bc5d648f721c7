"""Random order by arithmetic: a permutation of any size that is evaluated at single places and never stored."""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 6


def permuted(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Values at `places` of a random permutation of 0..size-1 that `key` picks, int64 of the shape of `places`.

    A balanced Feistel network over the smallest even number of bits that holds `size`; what falls outside is sent
    through again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002). The round function is the finalizer of SplitMix64. The result is the same on every machine and version.

    Raises:
        ValueError: a place is outside 0..size-1.
    """
    values = np.asarray(places, dtype=np.int64)
    if values.size and not (values.min() >= 0 and values.max() < size):
        raise ValueError(f"places {values.min()} to {values.max()} are outside a permutation of {size}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(key)
    values = _network(values.astype(np.uint64), half, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        walked = _network(values.flat[outside], half, keys)
        values.flat[outside] = walked
        outside = outside[walked >= size]
    return values.astype(np.int64)


def _network(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_scrambled(right ^ key) & mask)
    return (left << half) | right


def _scrambled(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.shake_256(repr(key).encode()).digest(8 * _ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
