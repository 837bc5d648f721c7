"""`heredity track` of two random models and a wide SAE: seconds and memory from folders to verdicts' evidence.

    python benchmarks/track.py [--width 128] [--features 65536] [--tokens 200000] [--k 32] [--profile]

No peer does this. The models are small, so that what is measured is everything but reading them: encoding, matching,
the null, one to one, rules and evidence, none of which may work on one core or hold a matrix of all pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def pair(folder: Path, width: int, layers: int, features: int, tokens: int, k: int) -> tuple[list[Any], int]:
    """Two models, a part of the second's weights moved, an SAE of the first and text, written into `folder`; the words
    of `heredity track` on them, and the parameters of a model."""
    from heredity.lm.load import mistral_config, new_model, save_model
    from heredity.sae.formats import write_sae
    from heredity.sae.model import new_sae
    from heredity.study import ArchitectureConfig
    from heredity.text.tokens import train_tokenizer

    words = np.random.default_rng(0).choice([f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"], (tokens // 20, 40))
    texts = [" ".join(line) for line in words]
    (folder / "text").mkdir()
    for number, text in enumerate(texts):
        (folder / "text" / f"{number}.txt").write_text(text)
    tokenizer = train_tokenizer(texts, 400)
    shape = ArchitectureConfig(d_model=width, d_mlp=4 * width, n_layers=layers, n_heads=max(2, width // 64))
    model: Any = new_model(mistral_config(shape, len(tokenizer), 128, tokenizer.eos_token_id), 0)
    save_model(model, tokenizer, folder / "parent")
    with torch.no_grad():
        for weight in model.model.layers[: max(1, layers // 2)].parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0
    save_model(model, tokenizer, folder / "child")
    sae = new_sae(width, features, "topk", k, torch.Generator().manual_seed(0))
    write_sae(sae, folder / "sae", {"hook_name": f"blocks.{layers // 2}.hook_resid_post"})
    command = ["track", folder / "parent", folder / "child", "--sae-parent", folder / "sae", "--corpus"]
    command += [f"local:{folder / 'text'}", "--tokens", tokens, "--second-sae", "none", "-o", folder / "out"]
    return command, sum(weight.numel() for weight in model.parameters())


def main() -> int:
    """Run it; the exit status of `track`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 128), ("features", 65_536), ("tokens", 200_000), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--profile", action="store_true", help="print the functions that took longest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        words, count = pair(Path(name), options.width, 1, options.features, options.tokens, options.k)
        profiled = ["-m", "cProfile", "-s", "cumtime"] if options.profile else []
        command = [sys.executable, *profiled, "-m", "heredity", *map(str, words)]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=None if options.profile else subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    row = {"parameters": count, "seconds": round(seconds, 1), "peak_rss_gib": round(peak, 2), "status": done.returncode}
    print(json.dumps({name: value for name, value in vars(options).items() if name != "profile"} | row))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
