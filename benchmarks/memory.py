"""Does an SAE of 65,536 features train on a layer of a 2B-parameter model within 24 GiB? A few steps of it, measured.

    python benchmarks/memory.py [--features 65536] [--steps 4]

The model has random weights and the shape of a decoder of 26 blocks of width 2,304; it is read up to the middle, as a
study reads it, and the SAE trains on what is read, as a study trains it. Beside the peak: what the parts must take.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from paired import peak_gib, rounded

WIDTH, INNER, LAYERS, HEADS, VOCAB, CONTEXT = 2304, 9216, 26, 8, 32_000, 128


def main() -> int:
    """Make the model, train some steps, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()

    from heredity.lm.activations import ActivationStore
    from heredity.lm.load import mistral_config, new_model
    from heredity.sae.model import new_sae
    from heredity.sae.train import training
    from heredity.study import ArchitectureConfig, SAEConfig
    from heredity.text.tokens import BlockSampler, pack, train_tokenizer

    start = time.perf_counter()
    shape = ArchitectureConfig(d_model=WIDTH, d_mlp=INNER, n_layers=LAYERS, n_heads=HEADS)
    model: Any = new_model(mistral_config(shape, VOCAB, CONTEXT, eos_token_id=0), 0)
    count = sum(weight.numel() for weight in model.parameters())
    made = time.perf_counter() - start
    config = SAEConfig(activation="topk", k=32, batch_blocks=16, context_size=CONTEXT, lr=1e-4)
    words = np.random.default_rng(0).choice([f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"], (4000, 40))
    texts = [" ".join(line) for line in words]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, 400)
        sampler = BlockSampler({"text": pack(texts, tokenizer, Path(folder) / "tokens")}, CONTEXT, 0, None)
        place = f"blocks.{LAYERS // 2}.hook_resid_pre"
        store = ActivationStore(model, place, sampler, config.batch_blocks, 0, buffer=2)  # a study holds 16 batches
        sae = new_sae(WIDTH, options.features, "topk", 32)
        start = time.perf_counter()
        for state in training(sae, store.batch, config, options.steps, 0):
            print(f"step {state.step} of {options.steps}, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    weights = 2 * WIDTH * options.features
    parts = {"model": 4 * count, "sae weights": 4 * weights, "adam": 8 * weights}
    row = vars(options) | {"parameters": count, "seconds to make": rounded(made)}
    row |= {"seconds": rounded(time.perf_counter() - start), "peak_gib": peak_gib()}
    row |= {f"{name} gib": rounded(size / 2**30) for name, size in parts.items()}
    print(json.dumps(row | {"all parts gib": rounded(sum(parts.values()) / 2**30)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
