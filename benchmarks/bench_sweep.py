"""A sweep of 21 slerp merges of two models: ours in memory against mergekit's merges written, reloaded and evaluated.

    python benchmarks/bench_sweep.py [--quick] [--json] [--write] [--tokens N] [--pairs N]

Both start from two model folders and end with the t where the accuracies on both parents' validation sets cross.
Ours is `heredity.lm.sweep`, told not to bisect: it evaluates the points of the grid that t and its interval hang on,
and the crossing, and draws the intervals; its t and interval are held against those of its own whole grid. mergekit
runs in this process, so that its imports are not counted; its merges are evaluated by transformers' own forward pass,
and for a second ratio by `heredity.lm.evaluate`, as ours are. The floor is that evaluation of the whole grid alone,
beside our whole grid. The more tokens, the more both are evaluation, so a case with none shows what making the merges
costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from paired import Benchmark, in_turn, main, note, peak_of, peer, ratio, rounded, spread, version

from heredity.lm.evaluate import evaluate
from heredity.lm.load import load_model, mistral_config, new_model, save_model
from heredity.lm.sweep import Bench, Sweep, crossing, sweep
from heredity.study import ArchitectureConfig, Precision

PARENTS = ("first", "second")

FOLLOWED = 0.5
"""Share of the tokens of a validation set that are its parent's own prediction; the others are random."""

MOVED = 0.3
"""Distance of each parent from the model that both are fine-tunes of, in standard deviations of its weights."""

WEIGHTS_TOLERANCE, ACCURACY_TOLERANCE = 2.0**-22, 1e-3
"""Largest difference from mergekit's weights, relative to a tensor's largest; and of accuracies, both in float32."""


Judge = Callable[[Any, "Job"], dict[str, float]]
"""Accuracy of a model on both parents' blocks."""


class Sizes(NamedTuple):
    """Shapes of a run."""

    d_model: int
    d_mlp: int
    n_heads: int
    vocab: int
    context: int
    tokens: tuple[int, ...]
    """Validation tokens of each parent, one case each; the first is the headline."""
    points: int
    pairs: int


FULL = Sizes(512, 1024, 16, 8192, 256, tokens=(4_000,), points=21, pairs=3)
"""The paper's one-layer model on few tokens: a study evaluates on 200,000 a corpus unless it says otherwise and the
demo on 30,000, which takes both sides so long that the evaluations hide everything else (`--tokens 30000`)."""

QUICK = Sizes(128, 256, 4, 2048, 64, tokens=(2_000,), points=5, pairs=2)


class Job(NamedTuple):
    """Two parents on disk and their validation blocks."""

    sizes: Sizes
    folder: Path
    blocks: dict[str, np.ndarray]

    def parent(self, name: str) -> str:
        """Folder of a parent."""
        return str(self.folder / name)

    @property
    def grid(self) -> list[float]:
        """Positions of the merges."""
        return [i / (self.sizes.points - 1) for i in range(self.sizes.points)]

    def limited(self, tokens: int) -> Job:
        """The same with fewer tokens."""
        count = max(1, tokens // self.sizes.context)
        return self._replace(blocks={name: blocks[:count] for name, blocks in self.blocks.items()})


def prepared(options: argparse.Namespace, folder: Path) -> Job:
    """Make the parents, two fine-tunes of one model, and for each blocks that half follow its own predictions."""
    sizes = QUICK if options.quick else FULL
    if options.tokens:
        sizes = sizes._replace(tokens=(options.tokens,))
    shape = ArchitectureConfig(d_model=sizes.d_model, d_mlp=sizes.d_mlp, n_heads=sizes.n_heads)
    blocks = {}
    for seed, name in enumerate(PARENTS):
        model = new_model(mistral_config(shape, sizes.vocab, sizes.context, eos_token_id=0), 0).eval()
        moved(model, seed)
        save_model(model, None, folder / name)
        blocks[name] = predicted(model, max(sizes.tokens) // sizes.context, sizes, seed)
    return Job(sizes, folder, blocks)


@torch.no_grad()
def moved(model: Any, seed: int) -> None:
    """Move every matrix of a model by random amounts, `MOVED` times the spread of its weights: a fine-tune of it."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight += MOVED * weight.std() * torch.randn(weight.shape, generator=generator)


@torch.inference_mode()
def predicted(model: Any, count: int, sizes: Sizes, seed: int) -> np.ndarray:
    """Token blocks int64 [count, context]: each token is the model's most likely one or, half of the time, random."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(sizes.vocab, (max(1, count), sizes.context), generator=generator)
    follows = torch.rand(ids.shape, generator=generator) < FOLLOWED
    past = None
    for place in range(sizes.context - 1):
        made = model(input_ids=ids[:, place : place + 1], past_key_values=past, use_cache=True)
        past = made.past_key_values
        ids[:, place + 1] = torch.where(follows[:, place + 1], made.logits[:, -1].argmax(-1), ids[:, place + 1])
    return ids.numpy()


def ours(job: Job, precision: Precision = "bf16", adaptive: bool = True) -> Sweep:
    """Our sweep from the folders on, to the grid's crossing: no bisection, since its tolerance is the whole range."""
    first, second = (load_model(job.parent(name)) for name in PARENTS)
    blocks = {name: {"text": job.blocks[name]} for name in PARENTS}
    model = load_model(job.parent("first"))
    given = "slerp", blocks, job.sizes.points, 1.0, precision
    return sweep(model, first.state_dict(), second.state_dict(), *given, adaptive=adaptive)


def merged_by_mergekit(job: Job, t: float, out: str) -> None:
    """Write mergekit's slerp at t into the folder `out`."""
    config, merge, options = peer("mergekit.config"), peer("mergekit.merge"), peer("mergekit.options")
    recipe = {
        "merge_method": "slerp",
        "base_model": job.parent("first"),
        "models": [{"model": job.parent(name)} for name in PARENTS],
        "dtype": "float32",
        "parameters": {"t": t},
    }
    quiet = options.MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    merge.run_merge(config.MergeConfiguration.model_validate(recipe), out, quiet)


def mergekit(job: Job, judge: Judge) -> dict[float, dict[str, float]]:
    """Each merge written by mergekit, loaded again and evaluated; accuracies by t and parent."""
    found = {}
    for t in job.grid:
        with tempfile.TemporaryDirectory() as out:
            merged_by_mergekit(job, t, out)
            found[t] = judge(load_model(out), job)
    return found


@torch.inference_mode()
def by_transformers(model: Any, job: Job) -> dict[str, float]:
    """Accuracy on both parents' blocks, with the cross-entropy that the forward pass brings along."""
    found = {}
    for name in PARENTS:
        hits, loss = 0, 0.0
        for start in range(0, len(job.blocks[name]), 32):
            ids = torch.from_numpy(job.blocks[name][start : start + 32])
            made = model(input_ids=ids, labels=ids, use_cache=False)
            loss += float(made.loss) * len(ids)
            hits += int((made.logits[:, :-1].argmax(-1) == ids[:, 1:]).sum())
        found[name] = hits / job.blocks[name][:, 1:].size
    return found


def accuracies(model: Any, job: Job) -> dict[str, float]:
    """Accuracy on both parents' blocks."""
    return {name: evaluate(model, job.blocks[name]).accuracy for name in PARENTS}


def evaluations(job: Job) -> None:
    """What no sweep can do without: every point evaluated, with one model."""
    model = load_model(job.parent("first"))
    for _ in job.grid:
        accuracies(model, job)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All token counts, then making the merges alone, then memory."""
    peer("mergekit.merge")
    with tempfile.TemporaryDirectory() as folder:
        job = prepared(options, Path(folder))
        pairs = options.pairs or job.sizes.pairs
        weights = weights_error(job)
        cases = [note(timed(job.limited(tokens), tokens, pairs, weights)) for tokens in job.sizes.tokens]
        cases.append(note(merges_only(job, pairs)))
    head = cases[0]
    return {
        "peer": "mergekit",
        "peer_version": version("mergekit"),
        "ratio": head["ratio"],
        "floor_ratio": head["floor_ratio"],
        "peak_rss_gib": peak_of("ours", options),
        "peer_peak_rss_gib": peak_of("mergekit", options),
        "ours": head["ours"],
        "agree": head["agree"],
        "cases": cases,
        "configuration": {**job.sizes._asdict(), "layers": 1, "pairs": pairs, "precision": "bf16"}
        | {"weights_tolerance": rounded(WEIGHTS_TOLERANCE), "accuracy_tolerance": ACCURACY_TOLERANCE},
        "packages": ["mergekit"],
    }


def timed(job: Job, tokens: int, pairs: int, weights: float) -> dict[str, Any]:
    """Both sweeps and the evaluations alone in turn, and whether their accuracies agree."""
    theirs: dict[float, dict[str, float]] = {}
    calls = {
        "ours": lambda: ours(job),
        "theirs": lambda: theirs.update(mergekit(job, by_transformers)),
        "same_evaluation": lambda: mergekit(job, accuracies),
        "whole_grid": lambda: ours(job, adaptive=False),
        "floor": partial(evaluations, job),
    }
    short = job._replace(sizes=job.sizes._replace(points=2))
    ours(short), mergekit(short, by_transformers)
    seconds = in_turn(calls, pairs, warm_up=0)
    # where bf16 is native, its rounding alone changes what a model predicts
    exact, whole = ours(job, "float32"), ours(job, "float32", adaptive=False)
    at = {point.t: point.accuracy for point in whole.points}
    apart = max(abs(at[t][name] - theirs[t][name]) for t in job.grid for name in PARENTS)
    t, crossed = crossing(job.grid, [theirs[t][PARENTS[0]] - theirs[t][PARENTS[1]] for t in job.grid])
    same = weights <= WEIGHTS_TOLERANCE and apart <= ACCURACY_TOLERANCE
    same_t = (exact.t, exact.crossed, exact.interval) == (whole.t, whole.crossed, whole.interval)
    return {
        "case": f"{tokens} tokens a parent",
        "ratio": ratio(seconds["theirs"], seconds["ours"]),
        "ratio_with_our_evaluation": ratio(seconds["same_evaluation"], seconds["ours"]),
        "ratio_of_whole_grid": ratio(seconds["theirs"], seconds["whole_grid"]),
        "floor_ratio": ratio(seconds["whole_grid"], seconds["floor"])["median"],
        "ours": {"seconds": spread(seconds["ours"])},
        "theirs": {"seconds": spread(seconds["theirs"])},
        "floor": {"seconds": spread(seconds["floor"])},
        "points": {"ours": len(exact.points), "theirs": len(theirs)},
        "agree": {"weights_error": rounded(weights), "accuracy_differs": rounded(apart), "same_sweep": same}
        | {"same_t_and_interval_as_whole_grid": same_t, "t_differs_from_theirs": rounded(abs(whole.t - t))}
        | {"crossed": crossed, "interval": list(map(rounded, whole.interval))}
        | {f"accuracy_of_{name}_at_0": rounded(at[0.0][name]) for name in PARENTS},
    }


def merges_only(job: Job, pairs: int) -> dict[str, Any]:
    """The models of a sweep without evaluating them: in memory, and through the disk."""

    def in_memory() -> None:
        first, second = (load_model(job.parent(name)) for name in PARENTS)
        bench = Bench(load_model(job.parent("first")), first.state_dict(), second.state_dict(), "slerp", {})
        for t in job.grid:
            bench.into(t)

    def through_disk() -> None:
        for t in job.grid:
            with tempfile.TemporaryDirectory() as out:
                merged_by_mergekit(job, t, out)
                load_model(out)

    seconds = in_turn({"ours": in_memory, "theirs": through_disk}, pairs)
    return {
        "case": "merges without evaluation",
        "ratio": ratio(seconds["theirs"], seconds["ours"]),
        "ours": {"seconds": spread(seconds["ours"])},
        "theirs": {"seconds": spread(seconds["theirs"])},
    }


def weights_error(job: Job) -> float:
    """Largest difference of our merges from mergekit's over three t, relative to the tensor's largest weight."""
    first, second = (load_model(job.parent(name)).state_dict() for name in PARENTS)
    model = load_model(job.parent("first"))
    bench, worst = Bench(model, first, second, "slerp", {}), 0.0
    for t in (0.25, 0.5, 0.9):
        bench.into(t)
        with tempfile.TemporaryDirectory() as out:
            merged_by_mergekit(job, t, out)
            theirs = load_model(out).state_dict()
        for name, tensor in model.state_dict().items():
            worst = max(worst, float((tensor - theirs[name]).abs().max() / theirs[name].abs().max()))
    return worst


def run_job(name: str, options: argparse.Namespace) -> None:
    """A sweep of three points by one side: `ours` or `mergekit`."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepared(options, Path(folder))
        job = job._replace(sizes=job.sizes._replace(points=3))
        ours(job) if name == "ours" else mergekit(job, by_transformers)


def arguments(parser: argparse.ArgumentParser) -> None:
    """--tokens."""
    parser.add_argument("--tokens", type=int, help="validation tokens of each parent, in place of the usual cases")


BENCHMARK = Benchmark(
    "sweep", "A sweep of slerp merges: ours in memory and mergekit through the disk", measure, run_job, arguments
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
