"""Every hot path beside its floor: what cannot be avoided, at the rate that this machine was measured at.

    GOMP_SPINCOUNT=10000 python benchmarks/hot_paths.py [--json] [--write] [--rounds N]

The variable is what the command line sets by itself: threads of torch that spin for longer take the cores from what
runs in between. Each path runs in turn with its floor (A B A B) at the shapes of the built-in study and at those of a
real one. A floor is products at the rate of the fastest type that the path may use, or bytes at the rate of a copy.
Ratios are ours over the floor: 1 is as fast as the machine. No peers: those are in the other scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_correlate import Case, in_cache_rate, load, make, multiply_adds
from bench_encode import our_sae
from bench_sae_step import Job
from bench_sae_step import Sizes as StepSizes
from paired import complete, in_turn, ratio, rendered, rounded, spread, written
from planted import oracle, vectors, world
from sae_peers import Setting

from heredity.features.correlate import correlate
from heredity.kernels.paths import product_of, screens
from heredity.kernels.screens import make_screen
from heredity.kernels.torch_forms import linear

SMALL, MIDDLE, FULL = StepSizes(256, 2048, 1024, 3), StepSizes(256, 4096, 1024, 3), StepSizes(1024, 16384, 3072, 3)
TOKENS, CONTEXT = 16, 128  # blocks, and their length, that a language model reads at once


COMMAND = "GOMP_SPINCOUNT=10000 python benchmarks/hot_paths.py"


class HotPath(NamedTuple):
    """A hot path and what it cannot do without."""

    name: str
    call: Callable[[], object]
    floor: Callable[[], object]
    floor_is: str
    limit: str
    """What keeps it from the floor."""
    plain: Callable[[], object] | None = None
    """One float32 product of the encoder's shape, beside floors in another type."""


def product(x: torch.Tensor, weight: torch.Tensor) -> tuple[Callable[[], object], str]:
    """The fastest product that screens here at this shape, and its type."""
    kind = screens(weight.shape[1], len(weight))[0]
    if kind == "float32":
        return lambda: linear(x, weight), kind
    sides = make_screen(x.contiguous(), kind), make_screen(weight.contiguous(), kind)
    return product_of(*sides), kind


def of_saes() -> Iterator[HotPath]:
    """Encoding and training steps."""
    for sizes in (SMALL, MIDDLE, FULL):
        shape = f"{sizes.d_in} → {sizes.d_sae}, batch {sizes.batch}"
        planted = world(sizes.d_in, sizes.d_sae, 30)
        batches = [vectors(planted, sizes.batch, seed) for seed in range(1, 5)]
        relu, ranked = (oracle(planted, batches[0], l0) for l0 in (30, None))
        weights = {"relu": relu, "topk": ranked}
        job = Job(sizes, Setting(sizes.batch, k=32, l1=3e-4, lr=1e-4), batches, weights)
        x = batches[0]
        for kind, given in weights.items():
            sae, (floor, screen) = our_sae(kind, given), product(x, given.w_enc)
            plain = partial(linear, x, given.w_enc)
            about = f"one {screen} product of the encoder's shape"
            slow = "choosing candidates and deciding them in float32"
            yield HotPath(f"encode {kind}, {shape}", partial(sae.encode_sparse, x), floor, about, slow, plain)
            ours, turn = job.ours(kind), iter(batches * 1000)
            slow = "the sparse decoder side, and Adam on the rows that were touched"
            yield HotPath(
                f"step {kind}, {shape}", lambda ours=ours, turn=turn: ours.step(next(turn)), floor, about, slow
            )


def of_matching(folder: Path) -> Iterator[HotPath]:
    """All pairs of two dictionaries' features."""
    for case in (Case(120_000, 1024, 1024, 16), Case(300_000, 16384, 16384, 30)):
        at = folder / str(case.d_parent)
        at.mkdir()
        make(case, at)
        sides = load(at)
        rate, count = in_cache_rate(case, torch.get_num_threads()), multiply_adds(*sides)
        name = f"match {case.d_parent:,} × {case.d_child:,}, {case.tokens:,} tokens, L0 {case.l0}"
        about = f"{count:,} multiply-adds at {rate:.3g} a second and core, in the cache"
        wait = count / rate / torch.get_num_threads()
        slow = "rows of pairs that do not stay in the cache"
        yield HotPath(name, lambda sides=sides: correlate(*sides, 5), lambda wait=wait: wait, about, slow)


def of_models() -> Iterator[HotPath]:
    """Reading, evaluating, training and merging language models."""
    from heredity.lm.activations import sampled
    from heredity.lm.evaluate import dtype_of, evaluate, next_token_loss, trunk_and_head
    from heredity.lm.load import mistral_config, new_model
    from heredity.lm.sweep import Bench
    from heredity.study import ArchitectureConfig

    rng = np.random.default_rng(0)
    shapes = {
        "1 × 128": (ArchitectureConfig(d_model=128, d_mlp=256, n_layers=1, n_heads=4), 2048),
        "6 × 512": (ArchitectureConfig(d_model=512, d_mlp=1536, n_layers=6, n_heads=8), 16384),
    }
    for label, (shape, vocab) in shapes.items():
        model: Any = new_model(mistral_config(shape, vocab, CONTEXT, eos_token_id=0), 0)
        head, whole = model.get_output_embeddings().weight.numel(), sum(p.numel() for p in model.parameters())
        inside = whole - model.get_input_embeddings().weight.numel() - head
        blocks = rng.integers(0, vocab, (TOKENS, CONTEXT))
        tokens, kind = blocks.size, dtype_of("bf16", torch.device("cpu"))
        last = f"blocks.{shape.n_layers - 1}.hook_resid_post"
        slow = "attention, norms and the rest that is no product of weights"

        def floor(weights: int, times: int, kind: torch.dtype = kind, tokens: int = tokens) -> Callable[[], object]:
            """As many multiply-adds as `times` products of all tokens with `weights` weights."""
            a, b = torch.randn(tokens, 512).to(kind), torch.randn(512, max(1, weights // 512)).to(kind)
            return lambda: [a @ b for _ in range(times)]

        about = f"{str(kind).removeprefix('torch.')} products of all weights"
        yield HotPath(
            f"read {label}, {tokens} tokens",
            lambda model=model, last=last, blocks=blocks: list(sampled(model, last, blocks, "bf16")),
            floor(inside, 1), f"{about} but the head", slow,
        )  # fmt: skip
        yield HotPath(
            f"evaluate {label}, {tokens} tokens", lambda model=model, blocks=blocks: evaluate(model, blocks),
            floor(inside + head, 1), about, f"{slow}; softmax over {vocab:,} words",
        )  # fmt: skip
        parts: Any = trunk_and_head(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def train(parts: Any = parts, blocks: Any = blocks, kind: Any = kind, optimizer: Any = optimizer) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
                loss = next_token_loss(*parts, torch.from_numpy(blocks), kind)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        yield HotPath(
            f"training step {label}, {tokens} tokens", train, floor(inside + head, 3), f"three times {about}", slow
        )
        states = model.state_dict(), {name: value + 0.01 for name, value in model.state_dict().items()}
        bench = Bench(model, *states, "slerp", {})
        ends = iter(np.linspace(0, 1, 1000).tolist())
        source, target = torch.randn(2 * whole), torch.empty(2 * whole)
        yield HotPath(
            f"merge {label} in memory", lambda bench=bench, ends=ends: bench.into(next(ends)),
            lambda source=source, target=target: target.copy_(source), "a copy of as many bytes as three models",
            "several passes over the weights of a tensor",
        )  # fmt: skip


def measure(rounds: int) -> dict[str, Any]:
    """All paths."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        paths = (path for part in (of_saes(), of_matching(Path(name)), of_models()) for path in part)
        for path in paths:
            fixed = path.floor() if path.name.startswith("match") else None  # seconds that were reckoned, not run
            calls = {"ours": path.call} | ({} if fixed else {"floor": path.floor})
            calls |= {"plain": path.plain} if path.plain else {}
            seconds = in_turn(calls, rounds, warm_up=2)
            floor = [float(fixed)] * rounds if isinstance(fixed, float) else seconds["floor"]
            rows.append(
                {
                    "path": path.name,
                    "milliseconds": {key: rounded(1e3 * value) for key, value in spread(seconds["ours"]).items()},
                    "floor": rounded(1e3 * spread(floor)["median"]),
                    "ratio": ratio(seconds["ours"], floor),
                    "over a float32 product": ratio(seconds["ours"], seconds["plain"]) if path.plain else None,
                    "floor is": path.floor_is,
                    "limited by": path.limit,
                }
            )
            print(f"{path.name}: {rows[-1]['ratio']['median']} of its floor", file=sys.stderr, flush=True)
    return {"paths": rows, "configuration": {"rounds": rounds}, "packages": []}


def main() -> int:
    """Measure, print, and write with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the report into results/")
    options = parser.parse_args()
    if "GOMP_SPINCOUNT" not in os.environ:
        parser.error(f"OpenMP has been loaded without a limit to its spinning; run it as {COMMAND}")
    found = complete("hot_paths", [], measure(options.rounds)) | {"command": COMMAND}
    text = rendered("Hot paths beside their floors", found)
    print(json.dumps(found) if options.json else text)
    if options.write:
        written(text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
