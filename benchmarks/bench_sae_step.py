"""One training step of an SAE in the trained regime (few active features): ours against SAELens and others.

    python benchmarks/bench_sae_step.py [--quick] [--json] [--write] [--case NAME] [--pairs N]

Both sides start from the same weights, the planted world's own dictionary with a threshold that gives L0 ~ 30, and see
the same batches. Ours is `heredity.sae.step.sparse_step`, which `heredity.sae.train` runs. The floor is one product of
the encoder's shape, measured in the same rounds: every step has to make its pre-activations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from paired import Benchmark, floors, headline, in_turn, main, note, peer, rounded, spread, timed_case
from planted import oracle, vectors, world
from sae_peers import PEERS, Setting, Trained
from torch import Tensor

from heredity.kernels.sparse import Sparse
from heredity.kernels.torch_forms import linear
from heredity.sae.step import BETAS, SPARSE_BELOW, Rule, Weights, dense_step, sparse_step, training_acts

CASES = {
    "relu, SAELens": ("relu", "sae-lens"),
    "relu, dictionary_learning": ("relu", "dictionary-learning"),
    "topk, SAELens": ("topk", "sae-lens"),
    "topk, dictionary_learning": ("topk", "dictionary-learning"),
    "topk, sparsify": ("topk", "eai-sparsify"),
    "batchtopk, SAELens": ("batchtopk", "sae-lens"),
}
"""By name: the activation and the peer's package. The first is the headline."""

L0 = 30
CURVE = (30, 100, 300, 1000, 2000)
"""L0 at which our own step is timed; above them, half of all features, where an untrained SAE starts."""

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")

TOLERANCE = 2e-6
"""Largest error of a gradient, relative to the tensor's largest, that counts as the same gradient."""


class Sizes(NamedTuple):
    """Shapes of a run."""

    d_in: int
    d_sae: int
    batch: int
    pairs: int


FULL, QUICK = Sizes(1024, 16384, 3072, 5), Sizes(256, 4096, 1024, 3)


class Ours:
    """Our SAE in training: weights, Adam's moments, and a step that is what `heredity.sae.train` does."""

    def __init__(self, weights: Weights, rule: Rule, lr: float) -> None:
        self.weights = Weights(*(getattr(weights, name).clone() for name in NAMES))
        self.first, self.second = Weights.zeros_like(weights), Weights.zeros_like(weights)
        self.ages = torch.zeros(len(weights.w_enc), dtype=torch.int32)
        self.rule, self.lr, self.steps, self.l0 = rule, lr, 0, 0.0

    def centered(self, x: Tensor) -> Tensor:
        """x [n, d_in] without b_dec."""
        return (x - self.weights.b_dec).contiguous()

    def step(self, x: Tensor, take: Callable[..., Any] = sparse_step) -> Any:
        """One step on raw vectors [n, d_in]; returns what it saw."""
        self.steps += 1
        self.ages += 1
        state = (self.weights, self.first, self.second, self.ages)
        outcome = take(*state, self.centered(x), self.rule, self.lr, self.steps)
        self.l0 = outcome.l0
        if self.rule.activation == "batchtopk":
            # As in training, the next selection begins near the place where this one was cut.
            self.rule = self.rule._replace(threshold=outcome.least)
        return outcome


class Job(NamedTuple):
    """Data and weights that both sides start from."""

    sizes: Sizes
    setting: Setting
    batches: list[Tensor]
    weights: dict[str, Weights]
    """By activation."""

    def rule(self, kind: str) -> Rule:
        """How our activations are chosen."""
        return Rule("relu", l1=self.setting.l1) if kind == "relu" else Rule(kind, k=self.setting.k)  # type: ignore

    def ours(self, kind: str) -> Ours:
        """Our side from the start."""
        return Ours(self.weights[kind], self.rule(kind), self.setting.lr)

    def peer(self, kind: str, package: str) -> Trained:
        """The peer's side from the same start."""
        return PEERS[package][0](kind, self.weights[kind], self.setting)


def prepared(quick: bool) -> Job:
    """A planted world, four batches of it and its oracle weights."""
    sizes = QUICK if quick else FULL
    planted = world(sizes.d_in, sizes.d_sae, L0)
    batches = [vectors(planted, sizes.batch, seed) for seed in range(1, 5)]
    setting = Setting(sizes.batch, k=32, l1=3e-4, lr=1e-4)
    relu, ranked = (oracle(planted, batches[0], l0) for l0 in (L0, None))
    return Job(sizes, setting, batches, {"relu": relu, "topk": ranked, "batchtopk": ranked})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases in turn, then memory and our own cost along L0."""
    chosen = {name: CASES[name] for name in options.case or CASES}
    for _, package in chosen.values():
        peer(PEERS[package][1])
    job = prepared(options.quick)
    agreements = {kind: gradient_errors(job, kind) for kind in {kind: 0 for kind, _ in chosen.values()}}
    pairs = options.pairs or job.sizes.pairs
    cases = [note(timed(job, name, *case, pairs, agreements[case[0]])) for name, case in chosen.items()]
    kind, _ = next(iter(chosen.values()))
    return headline(cases, kind, options) | {
        "l0_curve": l0_curve(job, pairs),
        "configuration": {**job.sizes._asdict(), "pairs": pairs, "batches": len(job.batches)}
        | {"l0": L0, **job.setting._asdict(), "sparse_below": SPARSE_BELOW, "tolerance": TOLERANCE},
        "packages": [package for package in PEERS],
    }


def timed(job: Job, name: str, kind: str, package: str, pairs: int, errors: dict[str, Any]) -> dict[str, Any]:
    """One case: steps of both in turn with the floor's products, and whether the two agree at the start."""
    ours, theirs = job.ours(kind), job.peer(kind, package)
    agree = errors | peer_agreement(job, kind, theirs)
    x, weight, bias = job.batches[0], job.weights[kind].w_enc, job.weights[kind].b_enc
    turns = [iter(job.batches * (pairs + 2)) for _ in range(2)]
    seconds = in_turn(
        {
            "ours": lambda: ours.step(next(turns[0])),
            "theirs": lambda: theirs.step(next(turns[1])),
        }
        | floors(x, weight, bias),
        pairs,
    )
    return timed_case(name, package, seconds) | {
        "ours": {"seconds": spread(seconds["ours"]), "l0": rounded(ours.l0)},
        "theirs": {"seconds": spread(seconds["theirs"]), "l0": l0_of(theirs.acts(x))},
        "agree": agree,
    }


def gradient_errors(job: Job, kind: str) -> dict[str, Any]:
    """Our gradients against float64 autograd: largest error over the tensor's largest entry.

    Ours are read off Adam's first moment after one step from zero, which is 1 − β₁ of the gradient; for w_dec that
    is the gradient without its part along the rows, in the reference too.
    """
    ours = job.ours(kind)
    x = ours.centered(job.batches[0])
    mask = dense_mask(training_acts(ours.weights, x, ours.rule), ours.weights.w_enc.shape[0])
    expected, support = reference(job.weights[kind], x, ours.rule, mask)
    ours.lr = 0.0
    outcome = ours.step(job.batches[0])
    errors = {}
    for name in NAMES:
        made = getattr(ours.first, name).double() / (1 - BETAS[0])
        errors[name] = float((made - expected[name]).abs().max() / expected[name].abs().max())
    loss = outcome.mse + ours.rule.l1 * outcome.l1
    errors["loss"] = abs(loss - support.pop("loss")) / loss
    same = max(errors.values()) <= TOLERANCE
    return {name: rounded(error) for name, error in errors.items()} | support | {"same_gradient": same}


def reference(weights: Weights, x: Tensor, rule: Rule, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float64 gradients of the plain loss by autograd on the features in `mask`, in chunks of tokens.

    Also its loss, and how `mask` differs from float64's own choice: entries, and how far the farthest of them is from
    the cut, which must be rounding.
    """
    n, d_in = x.shape
    tensors = {name: getattr(weights, name).double().requires_grad_() for name in NAMES}
    x_raw = x.double() + weights.b_dec.double()
    total, choice = 0.0, _Choice(rule, mask, weights, x)
    for start in range(0, n, 512):
        part, kept = x_raw[start : start + 512], mask[start : start + 512]
        pre_acts = (part - tensors["b_dec"]) @ tensors["w_enc"].T + tensors["b_enc"]
        choice.compare(pre_acts.detach(), kept)
        acts = pre_acts * kept
        error = acts @ tensors["w_dec"] + tensors["b_dec"] - part
        loss = error.square().sum() / (n * d_in) + rule.l1 * acts.sum() / n
        loss.backward()
        total += float(loss.detach())
    found = {name: tensor.grad for name, tensor in tensors.items()}
    along = (found["w_dec"] * tensors["w_dec"].detach()).sum(1, keepdim=True)
    found["w_dec"] = found["w_dec"] - along * tensors["w_dec"].detach()
    return found, {"loss": total, "support_differs": choice.differ, "support_margin": rounded(choice.margin)}


class _Choice:
    """Counts the entries on which float64 would have chosen otherwise, and how far from the cut they are."""

    def __init__(self, rule: Rule, mask: Tensor, weights: Weights, x: Tensor) -> None:
        self.rule, self.differ, self.margin = rule, 0, 0.0
        if rule.activation == "batchtopk":
            # The cut of the whole batch, from the smallest pre-activation that was kept.
            pre_acts = linear(x, weights.w_enc, weights.b_enc)
            self.cut = float(pre_acts[mask].min()) * (1 - 1e-7)

    def compare(self, pre_acts: Tensor, kept: Tensor) -> None:
        cut: Any = 0.0
        if self.rule.activation == "topk":
            cut = pre_acts.topk(self.rule.k).values[:, -1:].clamp(min=0) - 1e-12
        elif self.rule.activation == "batchtopk":
            cut = self.cut
        other = (pre_acts > cut) != kept
        self.differ += int(other.sum())
        self.margin = max(self.margin, float(((pre_acts - cut).abs() * other).max()))


def peer_agreement(job: Job, kind: str, theirs: Trained) -> dict[str, Any]:
    """Activations and loss of the peer on the same weights, before any step."""
    ours = job.ours(kind)
    x = job.batches[0]
    csr = training_acts(ours.weights, ours.centered(x), ours.rule)
    mask = dense_mask(csr, len(ours.weights.w_enc))
    acts = theirs.acts(x)
    mine = torch.zeros(mask.shape)
    mine[mask] = torch.from_numpy(csr.values)
    outcome = ours.step(x)
    loss = outcome.mse + ours.rule.l1 * outcome.l1
    return {
        "peer_support_differs": int(((acts > 0) != mask).sum()),
        "peer_acts_error": rounded(float((acts - mine).abs().max() / mine.max())),
        "peer_loss_error": rounded(abs(theirs.loss(x) - loss) / loss),
    }


def dense_mask(csr: Sparse, d_sae: int) -> Tensor:
    """bool [n, d_sae]: where the entries of `csr` are."""
    mask = torch.zeros(len(csr.indptr) - 1, d_sae, dtype=torch.bool)
    rows = torch.repeat_interleave(torch.from_numpy(csr.indptr).diff())
    mask[rows, torch.from_numpy(csr.indices).long()] = True
    return mask


def l0_of(acts: Tensor) -> float:
    """Mean number of active features."""
    return rounded(float((acts > 0).sum(1).double().mean()))


def l0_curve(job: Job, rounds: int) -> list[dict[str, Any]]:
    """Seconds of our relu step at rising L0, sparse and dense in turn; training takes the one that is marked."""
    d_sae = job.sizes.d_sae
    return [l0_row(job, l0, rounds) for l0 in [l0 for l0 in CURVE if l0 < d_sae / 2] + [d_sae // 2]]


def l0_row(job: Job, l0: int, rounds: int) -> dict[str, Any]:
    """The curve at one L0; the sparse step is left out where it is far from worth it."""
    x, d_sae = job.batches[0], job.sizes.d_sae
    weights = oracle(world(job.sizes.d_in, d_sae, L0), x, l0)
    takes = {"sparse": sparse_step, "dense": dense_step} if l0 < d_sae / 4 else {"dense": dense_step}
    # At a rate of 0, so that L0 stays where it is.
    sides = {name: Ours(weights, job.rule("relu"), 0.0) for name in takes}
    seconds = in_turn({name: partial(side.step, x, takes[name]) for name, side in sides.items()}, rounds)
    share = sides["dense"].l0 / d_sae
    taken = "sparse" if share < SPARSE_BELOW else "dense"
    row = {"l0": rounded(sides["dense"].l0), "share": rounded(share), "taken": taken}
    return row | {f"{name}_seconds": spread(seconds[name]) for name in seconds}


def run_job(name: str, options: argparse.Namespace) -> None:
    """Three steps of one side: `relu:ours` or `relu:sae-lens`."""
    kind, side = name.split(":")
    job = prepared(options.quick)
    step = job.ours(kind).step if side == "ours" else job.peer(kind, side).step
    for x in job.batches[:3]:
        step(x)


def arguments(parser: argparse.ArgumentParser) -> None:
    """--case, any number of times."""
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be repeated")


BENCHMARK = Benchmark(
    "sae_step", "A training step of an SAE with few active features: ours and peers", measure, run_job, arguments
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
