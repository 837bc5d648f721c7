"""Encoding vectors with a trained SAE: our sparse CSR arrays against the dense (or top-k) activations of the peers.

    python benchmarks/bench_encode.py [--quick] [--json] [--write] [--case NAME] [--pairs N]

Both sides hold the same weights, the planted world's own dictionary at L0 ~ 30. Ours is `SAE.encode_sparse`; peers run
their own `encode` without gradients. The floor is one product of the encoder's shape, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from paired import Benchmark, floors, headline, in_turn, main, note, peer, rounded, spread, timed_case
from planted import oracle, vectors, world
from sae_peers import PEERS, encoder
from torch import Tensor

from heredity.sae.model import SAE
from heredity.sae.step import Weights

CASES = {
    "relu, SAELens": ("relu", "sae-lens"),
    "topk, SAELens": ("topk", "sae-lens"),
    "jumprelu, SAELens": ("jumprelu", "sae-lens"),
    "relu, dictionary_learning": ("relu", "dictionary-learning"),
    "topk, dictionary_learning": ("topk", "dictionary-learning"),
    "topk, sparsify": ("topk", "eai-sparsify"),
}
"""By name: the activation and the peer's package. The first is the headline."""

L0, K = 30, 32

TOLERANCE = 1e-5
"""Largest difference of activations relative to the largest one, and largest share of entries at the cut that one side
keeps and the other leaves out, that count as the same activations in float32."""


class Sizes(NamedTuple):
    """Shapes of a run."""

    d_in: int
    d_sae: int
    batch: int
    pairs: int


FULL, QUICK = Sizes(1024, 16384, 3072, 7), Sizes(256, 4096, 1024, 5)


def prepared(quick: bool, kind: str) -> tuple[Sizes, Weights, Tensor]:
    """Shapes, oracle weights for an activation, and one batch of a planted world."""
    sizes = QUICK if quick else FULL
    planted = world(sizes.d_in, sizes.d_sae, L0)
    x = vectors(planted, sizes.batch, seed=1)
    return sizes, oracle(planted, x, None if kind == "topk" else L0), x


def our_sae(kind: str, weights: Weights) -> SAE:
    """Our SAE with these weights; a jumprelu has the threshold where the others have a bias."""
    d_sae, d_in = weights.w_enc.shape
    sae = SAE(d_in, d_sae, kind, K)  # type: ignore[arg-type]
    for name in ("b_enc", "W_dec", "b_dec"):
        getattr(sae, name).copy_(getattr(weights, name.lower()))
    sae.W_enc.copy_(weights.w_enc.T)
    if sae.threshold is not None:
        sae.threshold.copy_(-weights.b_enc)
        sae.b_enc.zero_()
    return sae


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases in turn, then memory."""
    chosen = {name: CASES[name] for name in options.case or CASES}
    for _, package in chosen.values():
        peer(PEERS[package][1])
    sizes = QUICK if options.quick else FULL
    pairs = options.pairs or sizes.pairs
    cases = [note(timed(name, *case, *prepared(options.quick, case[0])[1:], pairs)) for name, case in chosen.items()]
    kind, _ = next(iter(chosen.values()))
    return headline(cases, kind, options) | {
        "configuration": {**sizes._asdict(), "pairs": pairs, "l0": L0, "k": K, "tolerance": TOLERANCE},
        "packages": [package for package in PEERS],
    }


def timed(name: str, kind: str, package: str, weights: Weights, x: Tensor, pairs: int) -> dict[str, Any]:
    """One case: both encoders in turn with the floor's products."""
    sae, theirs = our_sae(kind, weights), encoder(package, kind, weights, K)
    seconds = in_turn(
        {
            "ours": lambda: sae.encode_sparse(x),
            "theirs": lambda: theirs.encode(x),
        }
        | floors(x, weights.w_enc, weights.b_enc),
        pairs,
        warm_up=2,
    )
    indptr, indices, values = sae.encode_sparse(x)
    agree = agreement(indptr, indices, values, theirs.dense(theirs.encode(x)))
    return timed_case(name, package, seconds) | {
        "ours": side(seconds["ours"], x, (indptr, indices, values)),
        "theirs": side(seconds["theirs"], x, theirs.encode(x)),
        "agree": agree | {"l0": rounded(len(values) / len(x))},
    }


def side(seconds: list[float], x: Tensor, made: Any) -> dict[str, Any]:
    """Times of one side, vectors a second at the median, and bytes of what it returns for a vector."""
    found = spread(seconds)
    parts = made if isinstance(made, tuple) else (made,)
    return {
        "seconds": found,
        "vectors_per_second": rounded(len(x) / found["median"]),
        "bytes_per_vector": rounded(sum(part.nbytes for part in parts) / len(x)),
    }


def agreement(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, acts: Tensor) -> dict[str, Any]:
    """How our CSR arrays differ from dense activations [n, d_sae]: in entries, and in values where both have one."""
    rows = torch.repeat_interleave(torch.from_numpy(np.diff(indptr)))
    mine = torch.zeros_like(acts)
    mine[rows, torch.from_numpy(indices).long()] = torch.from_numpy(values)
    differ = (mine > 0) != (acts > 0)
    share = int(differ.sum()) / len(values)
    error = float(((mine - acts) * ~differ).abs().max() / mine.max())
    return {
        "support_differs": int(differ.sum()),
        "share_differs": rounded(share),
        "acts_error": rounded(error),
        "same_acts": share <= TOLERANCE and error <= TOLERANCE,
    }


def run_job(name: str, options: argparse.Namespace) -> None:
    """Three encodings of one side: `relu:ours` or `relu:sae-lens`."""
    kind, who = name.split(":")
    _, weights, x = prepared(options.quick, kind)
    encode: Callable[[Tensor], Any]
    encode = our_sae(kind, weights).encode_sparse if who == "ours" else encoder(who, kind, weights, K).encode
    for _ in range(3):
        encode(x)


def arguments(parser: argparse.ArgumentParser) -> None:
    """--case, any number of times."""
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be repeated")


BENCHMARK = Benchmark("encode", "Encoding with a trained SAE: our CSR and the peers", measure, run_job, arguments)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
