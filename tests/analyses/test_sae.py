"""Stability of an SAE, with the truth planted in its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.analyses.sae import _stability
from heredity.sae.model import SAE, new_sae

WIDTH, UNREAD = 20, 5


def reader(order: np.ndarray, unread: int = 0) -> SAE:
    """One feature for each dimension, in an order; the first few dimensions are read by none."""
    sae = new_sae(WIDTH, WIDTH, "relu")
    sae.W_enc.copy_(torch.eye(WIDTH)[:, order])
    sae.W_dec.copy_(sae.W_enc.T)
    sae.b_enc[torch.from_numpy(order < unread)] = -1e6
    return sae


def test_stable_features_are_those_that_the_second_sae_reads_too():
    x = torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(0))
    order = np.random.default_rng(0).permutation(WIDTH)
    saes = [reader(np.arange(WIDTH)), reader(order, UNREAD)]
    row = _stability(saes, x.split(1000))
    assert (row["live"], row["unstable"], row["stable_share"]) == (WIDTH, UNREAD, 0.75)
    assert row["stable_share_low"] < 0.75 < row["stable_share_high"] == 1, "all that the second reads, the first has"
    assert row["pw_mcc"] == pytest.approx(1), "decoders hold the same rows, read or not"


def test_an_sae_without_live_features_has_no_share():
    row = _stability([reader(np.arange(WIDTH), WIDTH), reader(np.arange(WIDTH))], [torch.randn(100, WIDTH)])
    assert row["live"] == row["unstable"] == 0 and "stable_share" not in row
