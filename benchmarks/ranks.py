"""What dividing an SAE's training between two processes takes on one machine, beside one process with both threads.

    python benchmarks/ranks.py [--steps 12] [--only stage]

Each row is a training in processes of its own: `steps` reads vectors that are there already, `stage` reads them from a
model of random weights, as a study does. Prints one JSON object a row: median milliseconds of a step of one process of
two threads, of two of one thread each, and MiB that a process sends and receives a step. The first steps, which are
dense or compile, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from statistics import mean, median
from typing import Any

import numpy as np

SHAPES = {
    "steps, 256 -> 2,048, batch 1,024": {"d_in": 256, "d_sae": 2048, "batch": 1024},
    "steps, 1,024 -> 16,384, batch 3,072": {"d_in": 1024, "d_sae": 16_384, "batch": 3072},
    "stage, 2 blocks of 512 -> 4,096, batch 3,072": {"d_in": 512, "d_sae": 4096, "batch": 3072, "blocks": 2},
}
CONTEXT, VOCABULARY, K, LEFT_OUT = 24, 4096, 32, 4


class Drawn:
    """Blocks of random tokens, each a function of its number."""

    context_size = CONTEXT

    def take(self, first: int, stop: int) -> np.ndarray:
        return np.stack([np.random.default_rng(n).integers(0, VOCABULARY, CONTEXT) for n in range(first, stop)])


def stream(shape: dict[str, int], ranks: Any) -> Any:
    """Batches by number."""
    import torch

    if "blocks" not in shape:
        held = [
            torch.randn(shape["batch"], shape["d_in"], generator=torch.Generator().manual_seed(n)) for n in range(3)
        ]
        return lambda step: held[step % 3]
    from heredity.lm.activations import ActivationStore
    from heredity.lm.load import mistral_config, new_model
    from heredity.study import ArchitectureConfig

    width, layers = shape["d_in"], shape["blocks"]
    config = ArchitectureConfig(d_model=width, d_mlp=4 * width, n_layers=layers, n_heads=8)
    model: Any = new_model(mistral_config(config, VOCABULARY, CONTEXT, eos_token_id=0), 0).eval()
    place, drawn = f"blocks.{layers - 1}.hook_resid_post", Drawn()
    return ActivationStore(model, place, drawn, shape["batch"] // CONTEXT, 0, ranks=ranks).batch  # pyright: ignore[reportArgumentType]


def as_rank(name: str, steps: int) -> None:
    """One process of a training; the first prints the milliseconds of each step."""
    import torch

    from heredity.engine import ranks as engine
    from heredity.sae.model import new_sae
    from heredity.sae.train import training
    from heredity.study import SAEConfig

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    shape, sent = SHAPES[name], list[int]()
    with engine.ranks() as every:
        fill = every.fill
        every.fill = lambda whole, edges: (sent.append(whole.nbytes), fill(whole, edges))[1]
        sae = new_sae(shape["d_in"], shape["d_sae"], "topk", K, torch.Generator().manual_seed(0))
        config, took, last = SAEConfig(activation="topk", k=K, lr=1e-4, resample_every=0), [], time.perf_counter()
        for _ in training(sae, stream(shape, every), config, steps, 0, ranks=every):
            took.append(1e3 * (time.perf_counter() - last))
            last = time.perf_counter()
    if every.number == 0:
        print(json.dumps([took[LEFT_OUT:], sum(sent) / 2**20 / steps if every.count > 1 else 0]))


def measured(name: str, steps: int, count: int) -> tuple[list[float], float]:
    """Milliseconds of the steps in so many processes of two threads together, and MiB a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--steps", str(steps), "--row", name]
    processes = [
        subprocess.Popen(command, env=env | {"RANK": str(rank), "WORLD_SIZE": str(count)}, stdout=subprocess.PIPE)
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in processes]
    took, mib = json.loads(said[0])
    return took, mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--row", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        as_rank(options.row, options.steps)
        return
    for name in (name for name in SHAPES if name.startswith(options.only)):
        # A group of batches is read at once, every 16 steps: of a stage the mean over one group counts.
        steps, middle = (LEFT_OUT + 16, mean) if "stage" in name else (options.steps, median)
        (one, _), (two, mib) = (measured(name, steps, count) for count in (1, 2))
        row = {"one_ms": round(middle(one), 1), "two_ms": round(middle(two), 1), "ratio": middle(one) / middle(two)}
        print(json.dumps({"row": name, "steps": len(one)} | row | {"mib": round(mib, 1)}), flush=True)


if __name__ == "__main__":
    main()
