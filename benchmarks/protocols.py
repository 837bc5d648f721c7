"""Which way of training the SAEs of an edge sees most: ceiling, counts and planted losses for each protocol.

    heredity demo
    python benchmarks/protocols.py [--runs runs] [--edge base cpp] [--json]

Language models: those of the finished built-in study. For each protocol, the share of the parent's live features with
r > 0.8 and r > 0.5 in another SAE of the parent (ceiling) and along the edge, explained variance at both ends, and the
vectors trained on beside the parent's own SAE. Planted worlds (`heredity.synthetic`): kept and lost features called
persisting at r > 0.8 and at the threshold by evidence.

independent: every SAE anew (the paper). parent: the child's SAE continues the parent's. slow: the same at a third of
the learning rate. order: both ends continue the parent's SAE on the same tokens in the same order. vote: two of three
continued SAEs. joint: one SAE on the vectors of both ends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from heredity import load_study
from heredity.analyses import stages_of
from heredity.analyses.reading import load, packs
from heredity.engine.store import Store
from heredity.features.acts import FeatureActs
from heredity.features.collect import collect
from heredity.features.correlate import correlate
from heredity.features.null import choose_threshold, floor
from heredity.lm.activations import ActivationStore, activations
from heredity.sae.evaluate import quality
from heredity.sae.model import SAE, new_sae
from heredity.sae.train import train
from heredity.study import SAEConfig
from heredity.synthetic.saes import label
from heredity.synthetic.world import KEPT, LOST, ROTATED, World, WorldConfig
from heredity.text.tokens import BlockSampler

PAPER = 0.8


class End(NamedTuple):
    """One model: how its vectors are drawn, and how an SAE is read on held-out ones."""

    stream: Callable[[int], Callable[[int], torch.Tensor]]
    """Seed of the order -> step -> vectors."""
    encode: Callable[[Sequence[SAE]], list[FeatureActs]]
    """Aligned activations of several SAEs."""
    explained: Callable[[SAE], float]
    """Explained variance."""


class Plan(NamedTuple):
    """Sizes of the SAEs."""

    d_in: int
    d_sae: int
    config: SAEConfig
    steps: int
    """Of a fresh SAE."""
    further: int
    """Of a continued one."""


class Edge(NamedTuple):
    """SAEs of one protocol: pairs along the edge and within the parent (each a list of voters)."""

    along: list[tuple[SAE, SAE]]
    within: list[tuple[SAE, SAE]]
    steps: int
    """Trained beside the parent's own SAE, one child and no ceiling."""


def fit(plan: Plan, batch: Callable[[int], torch.Tensor], seed: int, start: SAE | None = None, lr: float = 1.0) -> SAE:
    """Train an SAE, anew or from `start`."""
    config = plan.config.model_copy(update={"lr": plan.config.lr * lr})
    sae = deepcopy(start) if start else _fresh(plan, seed)
    train(sae, batch, config, plan.further if start else plan.steps, seed, continued=start is not None)
    return sae


def _fresh(plan: Plan, seed: int) -> SAE:
    return new_sae(plan.d_in, plan.d_sae, "topk", plan.config.k, torch.Generator().manual_seed(seed))


def both(a: Callable[[int], torch.Tensor], b: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    """Half of every batch from each of two streams."""

    def batch(step: int) -> torch.Tensor:
        x, y = a(step), b(step)
        half = len(x) // 2
        return torch.cat([x[:half], y[half:]])

    return batch


def protocols(plan: Plan, parent: End, child: End) -> dict[str, Edge]:
    """The SAEs of every protocol."""
    first = fit(plan, parent.stream(0), 0)
    found = {
        "independent": Edge(
            [(first, fit(plan, child.stream(1), 1))], [(first, fit(plan, parent.stream(2), 2))], plan.steps
        )
    }
    kept = [fit(plan, parent.stream(seed), seed, first) for seed in (3, 4, 5, 6)]
    new = [fit(plan, child.stream(seed), seed, first) for seed in (3, 4, 5)]
    found["parent"] = Edge([(first, new[0])], [(first, kept[1])], plan.further)
    slow = fit(plan, child.stream(3), 3, first, 1 / 3), fit(plan, parent.stream(4), 4, first, 1 / 3)
    found["slow"] = Edge([(first, slow[0])], [(first, slow[1])], plan.further)
    found["order"] = Edge([(kept[0], new[0])], [(kept[0], kept[1])], 2 * plan.further)
    found["vote"] = Edge([(first, sae) for sae in new], [(first, sae) for sae in kept[:3]], 3 * plan.further)
    one = fit(plan._replace(steps=plan.steps + plan.further), both(parent.stream(0), child.stream(0)), 0)
    found["joint"] = Edge([(one, one)], [(one, one)], plan.further)
    return found


class Measured(NamedTuple):
    """What a protocol shows."""

    acts: FeatureActs
    """Of the parent's SAE."""
    r: np.ndarray
    """Best r along the edge; of voters the median."""
    ceiling: np.ndarray
    """Best r within the parent."""
    threshold: float
    """By evidence."""
    explained_variance: tuple[float, float]
    """At both ends."""


def measured(edge: Edge, parent: End, child: End) -> Measured:
    """Encode both ends and compare."""
    own = parent.encode([sae for pair in [*edge.along, *edge.within] for sae in pair])
    other = child.encode([sae for pair in edge.along for sae in pair])
    matches = [correlate(own[2 * at], other[2 * at + 1], 1) for at in range(len(edge.along))]
    start = 2 * len(edge.along)
    ceilings = [correlate(own[start + 2 * at], own[start + 2 * at + 1], 1) for at in range(len(edge.within))]
    r, ceiling = (np.median([found.parent_r[:, 0] for found in rows], axis=0) for rows in (matches, ceilings))
    by_chance = floor(own[0], other[1], 2, 0).parent_r
    explained = parent.explained(edge.along[0][0]), child.explained(edge.along[0][1])
    return Measured(own[0], r, ceiling, choose_threshold(r, by_chance, [ceiling]).threshold, explained)


def share(r: np.ndarray, threshold: float, of: np.ndarray | None = None) -> float:
    """Share of the features with an r (or of some) above a threshold."""
    known = np.isfinite(r) if of is None else of
    return float((r[known] > threshold).mean())


def on_language_models(runs: Path, names: tuple[str, str], tokens: int) -> dict[str, dict]:
    """Every protocol on an edge of the built-in study."""
    study = load_study("demo")
    artifacts = {}
    store = Store(runs / study.name)
    for stage in stages_of(study):
        if stage.kind in ("model", "tokens"):
            artifact = store.find(stage.kind, stage.name, stage.key)
            if artifact is None:
                raise SystemExit(f"{runs}: {stage.label} of the built-in study is not there; run `heredity demo` first")
            artifacts[stage.label] = artifact
    config = study.config.sae

    def sampler(name: str, seed: int, split: str = "train", corpora: Sequence[str] | None = None) -> BlockSampler:
        found = {corpus: artifacts[f"tokens/{corpus}"] for corpus in corpora or study.trace(name)}
        return BlockSampler(packs(found, split), config.context_size, seed)

    common = [corpus for corpus in study.trace(names[0]) if corpus in study.trace(names[1])]

    def end(name: str) -> End:
        model = load(artifacts[f"model/{name}"])
        place = study.config.hook_point
        held_out = sampler(name, 7, "validation").take(0, 1000)
        return End(
            lambda seed: ActivationStore(model, place, sampler(name, seed), config.batch_blocks, seed).batch,
            lambda saes: collect(model, place, saes, sampler(name, 99, "train", common), tokens),
            lambda sae: quality(sae, activations(model, place, held_out)).explained_variance,
        )

    size = config.batch_blocks * config.context_size
    parent, child = end(names[0]), end(names[1])
    d_in = parent.stream(0)(0).shape[1]
    plan = Plan(d_in, config.expansion * d_in, config, 1_000_000 // size, 400_000 // size)
    rows = {}
    for name, edge in protocols(plan, parent, child).items():
        found = measured(edge, parent, child)
        rows[name] = {
            "ceiling": {str(at): share(found.ceiling, at) for at in (PAPER, 0.5)},
            "persist": {str(at): share(found.r, at) for at in (PAPER, 0.5)},
            "threshold": found.threshold,
            "persist_by_evidence": share(found.r, found.threshold),
            "explained_variance": found.explained_variance,
            "further_vectors": edge.steps * size,
        }
    return rows


def on_planted(seed: int, tokens: int) -> dict[str, dict]:
    """Every protocol on a planted world of 160 features an end, half of them kept."""
    world = World(WorldConfig(), seed)
    x = {end: torch.from_numpy(world.x(end, tokens, 0)) for end in ("parent", "child")}
    unseen = {end: torch.from_numpy(world.x(end, tokens // 2, 1)) for end in ("parent", "child")}
    config = SAEConfig(activation="topk", k=8, lr=4e-3, decay=True)
    d_in = x["parent"].shape[1]
    plan = Plan(d_in, 6 * d_in, config, 700, 350)

    def end(name: str) -> End:
        def stream(order: int) -> Callable[[int], torch.Tensor]:
            return lambda step: x[name][np.random.default_rng((order, step)).integers(0, tokens, 512)]

        def encode(saes: Sequence[SAE]) -> list[FeatureActs]:
            return [FeatureActs(*sae.encode_sparse(unseen[name]), d_sae=plan.d_sae) for sae in saes]

        return End(stream, encode, lambda sae: quality(sae, [unseen[name]]).explained_variance)

    parent, child = end("parent"), end("child")
    true = world.draw(tokens // 2, 1).parent
    rows = {}
    for name, edge in protocols(plan, parent, child).items():
        found = measured(edge, parent, child)
        fate = label(found.acts, true, world.parent.fate).fate
        kept, lost = np.isin(fate, (KEPT, ROTATED)), fate == LOST
        rows[name] = {
            "ceiling": share(found.ceiling, PAPER),
            "threshold": found.threshold,
            "kept_called": {str(at): share(found.r, at, kept) for at in (PAPER, found.threshold)},
            "lost_recalled": {str(at): 1 - share(found.r, at, lost) for at in (PAPER, found.threshold)},
            "explained_variance": found.explained_variance,
        }
    return rows


def main() -> None:
    """Run both and print one JSON object, or two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the finished built-in study")
    parser.add_argument("--edge", nargs=2, default=("base", "cpp"), metavar=("PARENT", "CHILD"))
    parser.add_argument("--tokens", type=int, default=120_000, help="aligned tokens of the language models")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args()
    planted = on_planted(0, 60_000)
    models = on_language_models(given.runs, tuple(given.edge), given.tokens)
    if given.json:
        print(json.dumps({"edge": list(given.edge), "language_models": models, "planted": planted}, indent=1))
        return
    print(f"{given.edge[0]} -> {given.edge[1]} of the built-in study; shares of live features")
    for name, row in models.items():
        print(
            f"{name:<12} ceiling {row['ceiling']['0.8']:.3f}  persist {row['persist']['0.8']:.3f} at .8, "
            f"{row['persist']['0.5']:.3f} at .5, {row['persist_by_evidence']:.3f} at {row['threshold']:.2f}  "
            f"explained {row['explained_variance'][0]:.3f} {row['explained_variance'][1]:.3f}"
        )
    print("planted world")
    for name, row in planted.items():
        kept, lost = (
            " ".join(f"{v:.3f} at {k}" for k, v in row[key].items()) for key in ("kept_called", "lost_recalled")
        )
        print(f"{name:<12} ceiling {row['ceiling']:.3f}  kept called {kept}  lost found {lost}")


if __name__ == "__main__":
    main()
