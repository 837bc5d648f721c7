"""Kernels that are compiled while a run still reads text and trains models.

On a new machine that takes half a minute, on one processor. A process of the lowest priority does it on what the run
leaves idle, and the run loads what it finds.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import numpy as np

from heredity.kernels.processors import gives_way, processors

_PR_SET_PDEATHSIG = 1  # sys/prctl.h: the signal that comes when the parent ends, however it ends
_D_IN, _D_SAE, _K, _STEPS, _BATCH, _TOKENS = 256, 1024, 16, 12, 1024, 4096


def compile_ahead() -> subprocess.Popen[bytes] | None:
    """Start to compile in a process of its own, which ends with this one; None where it would be no help: all is
    compiled, there is no place to keep it, or there is one processor. Without it the run compiles what it needs."""
    if processors() < 2 or not _missing():
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "heredity.analyses.ahead"],  # no module of the folder that it is called in
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    atexit.register(process.kill)
    gives_way(process)
    return process


def _missing() -> bool:
    """Whether one of the kernels that take longest is not compiled, and could be kept."""
    from heredity.kernels import candidates, pearson, step
    from heredity.kernels.sparse import Cache

    kernels = candidates.active_in_groups, pearson._match_features, step._update
    return any(isinstance(kernel._cache, Cache) and not kernel._cache.filled for kernel in kernels)


def compile_kernels() -> None:
    """Have all kernels of a study compiled, in the order in which one needs them: a small SAE is trained and encoded
    with, and an edge between two samples of its activations matched and judged."""
    import torch

    from heredity.features.acts import FeatureActs
    from heredity.features.correlate import correlate
    from heredity.features.edge_statistics import Compared, Directions, Settings, edge_statistics
    from heredity.features.ends import end_of, judge_end
    from heredity.features.null import floor
    from heredity.sae.model import new_sae
    from heredity.sae.train import train
    from heredity.study import SAEConfig

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _D_IN, generator=generator)
    saes = [new_sae(_D_IN, _D_SAE, "topk", _K, generator) for _ in range(2)]

    def batches(step: int) -> torch.Tensor:
        return x[step % 4 * _BATCH :][:_BATCH]

    train(saes[0], batches, SAEConfig(activation="topk", k=_K), _STEPS, 0)
    documents, vectors = np.arange(_TOKENS) // 64, x.numpy()
    own, other = (end_of(saes, each, each) for each in (vectors, vectors + 0.1 * np.roll(vectors, 1)))
    judge_end(own, other, 0, documents, 0)

    parent, spare = own.acts
    rows = np.repeat(np.arange(_TOKENS), np.diff(parent.indptr))
    split = (2 * parent.indices + rows % 2).astype(parent.indices.dtype)  # each feature into two
    child = FeatureActs(parent.indptr, split, parent.values, 2 * _D_SAE)
    compared = Compared(
        parent, child, [spare], correlate(parent, child), [correlate(parent, spare, 1)],
        floor(parent, child, 1, 0), documents, np.arange(_TOKENS) % 512,
    )  # fmt: skip
    ends = saes[0], new_sae(_D_IN, 2 * _D_SAE, "topk", _K, generator)
    weights = Directions((ends[0].W_enc, ends[1].W_enc), (ends[0].W_dec, ends[1].W_dec))
    edge_statistics(compared, Settings(None, 0.01, 20, 0.95, 0), weights)

    many = new_sae(_D_IN, _D_SAE, "batchtopk", _K, generator)  # of which there are more candidates
    train(many, batches, SAEConfig(activation="batchtopk", k=_K), _STEPS, 0)


def _main() -> None:
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):  # only Linux has these, and a container may forbid them
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It gives way at once, where the lowest priority alone does at the next tick.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    compile_kernels()


if __name__ == "__main__":
    _main()
