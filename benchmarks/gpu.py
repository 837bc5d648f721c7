"""Everything that a GPU is to be measured at, in one call of at most eight minutes; see gpu.sh.

    python benchmarks/gpu.py [--dry] [--part NAME] [--budget SECONDS]

Each part runs in a process of its own under its own limit of time and prints every result as it comes, so that what is
cut off loses its rest alone. Times are milliseconds of neighboring runs in turn, with the device waited for. The report
goes to results/. Without a CUDA device nothing is measured; --dry runs every part at tiny shapes on the CPU, the
kernels in Triton's interpreter where Triton is installed, and writes no report.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from paired import complete, in_turn, ratio, rendered, rounded, spread, written
from planted import oracle, vectors, world
from sae_peers import PEERS, Setting, saelens
from torch import Tensor
from track import pair

from heredity.features.acts import FeatureActs
from heredity.kernels.pearson import TopPearson, top_pearson
from heredity.kernels.torch_forms import LISTED, active_entries, has_triton, top_pearson_torch
from heredity.sae.step import NAMES, Rule, Weights, dense_step, entry_step, fused_step, sparse_step

DRY = "--dry" in sys.argv
TRITON = importlib.util.find_spec("triton") is not None
L0, K, L1, LR = 30, 32, 3e-4, 1e-4
ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
ROOT = Path(__file__).parent.parent
BUDGET = 470.0  # seconds of all parts together


class Shape(NamedTuple):
    """Of an SAE and its batches."""

    d_in: int
    d_sae: int
    batch: int

    def __str__(self) -> str:
        return f"{self.d_in} -> {self.d_sae}, batch {self.batch}"


SMALL, LARGE = (Shape(24, 160, 16), Shape(40, 192, 12)) if DRY else (Shape(1024, 16384, 3072), Shape(2304, 65536, 4096))
MATCHES = {"small": (400, 40), "large": (200, 64)} if DRY else {"small": (1_000_000, 16384), "large": (300_000, 65536)}
DEVICE = "cpu" if DRY else "cuda"
ROUNDS, TIMES = (1, 1) if DRY else (5, 5)
Row = dict[str, Any]


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(calls: Mapping[str, Callable[[], object]], times: int = TIMES) -> dict[str, list[float]]:
    """Of each call in each round, in turn; a call runs several times before the device is waited for."""

    def repeated(call: Callable[[], object]) -> None:
        for _ in range(times):
            call()
        synchronize()

    seconds = in_turn({name: partial(repeated, call) for name, call in calls.items()}, ROUNDS, 0 if DRY else 2)
    return {name: [1000 * value / times for value in values] for name, values in seconds.items()}


def gib() -> float | None:
    """Most memory of the device since the last call, GiB."""
    if DEVICE != "cuda":
        return None
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return rounded(most)


class Data(NamedTuple):
    """A planted world's batches and its own dictionary as the weights of an SAE, on the device."""

    shape: Shape
    batches: list[Tensor]
    weights: dict[str, Weights]

    def rule(self, kind: str) -> Rule:
        """How activations are chosen in training."""
        if kind == "jumprelu":
            return Rule("jumprelu", l0=L1)
        return Rule("relu", l1=L1) if kind == "relu" else Rule(kind, k=min(K, self.shape.d_sae // 8))  # type: ignore[arg-type]


def prepared(shape: Shape) -> Data:
    """Two batches and weights for every activation."""
    planted = world(shape.d_in, shape.d_sae, min(L0, shape.d_sae / 16))
    batches = [vectors(planted, shape.batch, seed) for seed in (1, 2)]
    ranked, relu = (oracle(planted, batches[0], l0) for l0 in (None, min(L0, shape.d_sae / 16)))
    ranked, relu = (Weights(*(getattr(one, name).to(DEVICE) for name in NAMES)) for one in (ranked, relu))
    relu.b_enc.mul_(1.0001)  # the world's cut is the value of an entry: what rounding decides is no difference
    cut = -relu.b_enc.clamp(max=-0.01)
    jumps = Weights(relu.w_enc, torch.zeros_like(cut), relu.w_dec, relu.b_dec, cut.log())
    weights = {"relu": relu, "topk": ranked, "batchtopk": ranked, "jumprelu": jumps}
    return Data(shape, [batch.to(DEVICE) for batch in batches], weights)


class Training:
    """An SAE in training by one kind of step."""

    def __init__(self, data: Data, kind: str, take: Callable[..., Any]) -> None:
        given = data.weights[kind]
        self.weights = Weights(*(getattr(given, name).clone() for name in NAMES))
        self.first, self.second = Weights.zeros_like(self.weights), Weights.zeros_like(self.weights)
        self.ages = torch.zeros(len(given.b_enc), dtype=torch.int32, device=given.b_enc.device)
        self.batches, self.rule, self.take, self.number = data.batches, data.rule(kind), take, 0

    def step(self) -> Any:
        """The next step."""
        x = self.batches[self.number % len(self.batches)]
        self.number += 1
        self.ages += 1
        state = self.weights, self.first, self.second, self.ages
        outcome = self.take(*state, (x - self.weights.b_dec).contiguous(), self.rule, LR, self.number)
        if self.rule.activation == "batchtopk":
            self.rule = self.rule._replace(threshold=outcome.least)
        return outcome


def ours() -> Callable[..., Any]:
    """The step that a training takes on the device."""
    return fused_step if DRY and TRITON else sparse_step


def ceilings() -> Iterator[Row]:
    """One product of the encoder's shape in each type, and fused Adam on both matrices."""
    for shape in (SMALL, LARGE):
        x, weight = torch.randn(shape.batch, shape.d_in, device=DEVICE), torch.randn(*shape[1::-1], device=DEVICE)
        low = x.bfloat16(), weight.bfloat16()

        def product(precision: str, x: Tensor = x, weight: Tensor = weight) -> None:
            torch.set_float32_matmul_precision(precision)
            torch.nn.functional.linear(x, weight)

        parameters = [torch.nn.Parameter(weight.clone()) for _ in range(2)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        calls = {"bf16": partial(torch.nn.functional.linear, *low), "tf32": partial(product, "high")}
        calls |= {"float32": partial(product, "highest")}
        calls |= {"fused adam": torch.optim.Adam(parameters, fused=True).step}
        yield {"shape": str(shape)} | {name: spread(values) for name, values in milliseconds(calls).items()}
        torch.set_float32_matmul_precision("highest")


def steps(shape: Shape) -> Iterator[Row]:
    """Training steps of every activation: ours, the torch form, and how far the first is from the dense step."""
    data = prepared(shape)
    for kind in ACTIVATIONS:
        one, reference = Training(data, kind, ours()), Training(data, kind, dense_step)
        found, expected = one.step(), reference.step()
        errors = []
        for name in NAMES:
            made, wanted = getattr(one.first, name), getattr(reference.first, name)
            if len(wanted):
                errors.append(float((made - wanted).abs().max() / wanted.abs().max()))
        agree = {"gradient error": rounded(max(errors)), "l0": rounded(found.l0), "dense l0": rounded(expected.l0)}
        del reference
        gib()
        one.step()
        most, torch_form = gib(), Training(data, kind, entry_step)
        times = milliseconds({"ours": one.step, "torch form": torch_form.step})
        yield {"shape": str(shape), "activation": kind, **{name: spread(values) for name, values in times.items()},
               "ratio": ratio(times["torch form"], times["ours"]), "gib": most, **agree}  # fmt: skip


def encode(shape: Shape) -> Iterator[Row]:
    """Encoding to active entries on the device, and the dense definition in float32 and TF32."""
    data = prepared(shape)
    for kind in ACTIVATIONS:
        weights, x = data.weights[kind], data.batches[0] - data.weights[kind].b_dec
        k = data.rule(kind).k if kind == "topk" else None
        floor = weights.log_threshold.exp() if kind == "jumprelu" else None
        if kind == "batchtopk":
            pre_acts = torch.nn.functional.linear(x, weights.w_enc)
            floor = pre_acts.flatten().topk(data.rule(kind).k * len(x)).values[-1]
        given = x, weights.w_enc, weights.b_enc, k, floor

        def dense(precision: str, given: Any = given) -> None:
            torch.set_float32_matmul_precision(precision)
            x, weight, bias, k, floor = given
            acts = torch.nn.functional.linear(x, weight, bias)
            _ = acts.topk(k) if k else torch.where(acts > (0 if floor is None else floor), acts, 0)

        calls = {
            "ours": _encoded(*given),
            "dense float32": partial(dense, "highest"),
            "dense tf32": partial(dense, "high"),
        }
        times = milliseconds(calls)
        torch.set_float32_matmul_precision("highest")
        yield {"shape": str(shape), "activation": kind, **{name: spread(values) for name, values in times.items()}}


def _encoded(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: Tensor | None) -> Callable[[], object]:
    if not (DRY and TRITON):
        return partial(active_entries, x, weight, bias, k, floor)
    from heredity.kernels.triton_forms import chosen_entries, weight_screen

    least = bias.new_zeros(1) if floor is None else floor.reshape(-1)
    return lambda: chosen_entries(x, weight, bias, weight_screen(weight), k, least)


def activations(tokens: int, width: int, seed: int) -> FeatureActs:
    """Random firings, about L0 a token, with the few features firing much; half of them the same for every seed."""
    both, own = np.random.default_rng(0), np.random.default_rng(seed)
    drawn = [(width * np.square(rng.random((tokens, L0 // 2)))).astype(np.int32) for rng in (both, own)]
    features = np.sort(np.concatenate(drawn, 1), axis=1)
    kept = np.diff(features, axis=1, prepend=-1) > 0
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))])
    return FeatureActs(indptr, features[kept], own.lognormal(0, 1, int(indptr[-1])).astype(np.float32), width)


def matching(name: str) -> Iterator[Row]:
    """Matching on the device and on the processor, and whether they agree."""
    tokens, width = MATCHES[name]
    parent, child = (activations(tokens, width, seed).sparse for seed in (1, 2))
    form = None
    if DRY and TRITON:
        from heredity.kernels.triton_pearson import FORM as form
    found: dict[str, TopPearson] = {}

    def take(side: str, match: Callable[[], TopPearson]) -> None:
        found[side] = match()

    memory = {} if DRY else {"memory": torch.cuda.mem_get_info()[0] // 2}
    calls: dict[str, Callable[[], TopPearson]] = {
        "ours": lambda: top_pearson_torch(parent, child, 5, DEVICE, form=form, **memory),
        "processor": lambda: top_pearson(parent, child, 5),
    }
    if name == "small":
        calls["torch form"] = lambda: top_pearson_torch(parent, child, 5, DEVICE, form=LISTED, **memory)
    times = milliseconds({side: partial(take, side, call) for side, call in calls.items()}, 1)
    one, other = found["ours"], found["processor"]
    apart = max(float(np.nanmax(np.abs(getattr(one, r) - getattr(other, r)))) for r in ("parent_r", "child_r"))
    yield {"tokens": tokens, "features": width, **{side: spread(values) for side, values in times.items()},
           "ratio": ratio(times["processor"], times["ours"]), "largest difference of r": apart, "gib": gib(),
           "same counts": bool((one.histogram == other.histogram).all() and (one.pairs_over == other.pairs_over).all()),
           "same partners": rounded(float((one.parent_match == other.parent_match).mean()))}  # fmt: skip


def peers(shape: Shape) -> Iterator[Row]:
    """Training steps of the peers that can be imported, against ours in turn."""
    data = None
    for package, (make, module) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            yield {"peer": package, "shape": str(shape), "error": "not installed"}
            continue
        data = data or prepared(shape)
        kinds = {"sae-lens": ("topk", "relu", "batchtopk"), "dictionary-learning": ("topk", "relu")}.get(
            package, ("topk",)
        )
        for kind in kinds:
            setting = Setting(shape.batch, data.rule("topk").k, L1, LR)
            makes: dict[str, Callable[..., Any]] = {package: make}
            if package == "sae-lens" and DEVICE == "cuda":
                makes["sae-lens, autocast"] = partial(saelens, autocast=True)
            for name, made in makes.items():
                theirs = made(kind, data.weights[kind], setting)
                mine, batches = Training(data, kind, ours()), data.batches
                times = milliseconds({"ours": mine.step, "peer": lambda s=theirs.step, b=batches: s(b[0])})
                spreads = {side: spread(values) for side, values in times.items()}
                yield {"peer": name, "shape": str(shape), "activation": kind, **spreads,
                       "ratio": ratio(times["peer"], times["ours"])}  # fmt: skip


def models() -> Iterator[Row]:
    """`heredity track` of two random models and an SAE: parent, and a child with a part of its weights moved."""
    width, layers, features, tokens = (32, 2, 128, 2_000) if DRY else (2048, 16, 65536, 300_000)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        words, count = pair(Path(folder), width, layers, features, tokens, 8 if DRY else K)
        made = time.perf_counter() - start
        words += ["--context-size", 32] if DRY else []
        yield _command("track", words) | {"parameters": count, "tokens": tokens, "seconds to make": rounded(made)}


def demo() -> Iterator[Row]:
    """The built-in study; when dry, only its plan."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["check", "demo", "--runs", folder] if DRY else ["demo", "--runs", folder]
        yield _command("demo", words)


def _command(name: str, words: list[Any]) -> Row:
    """Run `heredity WORDS`; its progress goes to standard error as it comes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "heredity", *map(str, words)]
    done = subprocess.run(command, stdout=sys.stderr, env=_environment())
    return {"command": name, "status": done.returncode, "seconds": rounded(time.perf_counter() - start)}


def tests() -> Iterator[Row]:
    """The tests of the GPU; when dry, those of its kernels in the interpreter that encode."""
    chosen = ["tests/kernels/test_triton_forms.py", "-k", "encoding"] if DRY else ["-m", "gpu"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "-p", "no:cacheprovider", "-p", "no:benchmark", *chosen]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=_environment())  # fmt: skip
    counts = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}
    failed = []
    assert done.stdout is not None
    for line in done.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        for word in counts:
            if f" {word} " in line and "::" in line:
                counts[word] += 1
                failed += [line.split()[0]] if word in ("FAILED", "ERROR") else []
    yield {"status": done.wait(), **{f"{word.lower()} tests": count for word, count in counts.items()}, "names": failed,
           "seconds": rounded(time.perf_counter() - start)}  # fmt: skip


def _environment() -> dict[str, str]:
    own = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": own}


class Part(NamedTuple):
    """A part of the benchmark."""

    rows: Callable[[], Iterator[Row]]
    seconds: float
    """Limit of its time."""


# In the order of what is worth most: a machine that compiles slowly does not come to the last ones.
PARTS = {
    "ceilings": Part(ceilings, 20),
    "steps_small": Part(partial(steps, SMALL), 75),
    "steps_large": Part(partial(steps, LARGE), 100),
    "matching_small": Part(partial(matching, "small"), 45),
    "encode_small": Part(partial(encode, SMALL), 30),
    "encode_large": Part(partial(encode, LARGE), 45),
    "matching_large": Part(partial(matching, "large"), 45),
    "peers_small": Part(partial(peers, SMALL), 40),
    "tests": Part(tests, 110),
    "models": Part(models, 110),
    "peers_large": Part(partial(peers, LARGE), 45),
    "demo": Part(demo, 150),
}


def run_part(name: str) -> int:
    """Print the rows of a part as lines of JSON, each as it comes."""
    for row in PARTS[name].rows():
        print(json.dumps(row), flush=True)
    return 0


def collected(name: str, limit: float) -> list[Row]:
    """Rows of a part, in a process of its own, that came within its time; what cut it off is one more."""
    command = [sys.executable, __file__, "--part", name, *(["--dry"] if DRY else [])]
    rows, start = list[Row](), time.monotonic()
    print(f"== {name} (at most {limit:.0f} s)", flush=True)
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, env=_environment(), start_new_session=True)
        place = 0
        while True:
            ended = process.poll() is not None
            out.seek(place)
            for line in out:
                if line.endswith("\n"):
                    place += len(line.encode())
                    rows.append(json.loads(line))
                    print(line, end="", flush=True)
            if ended:
                break
            if time.monotonic() - start > limit:
                os.killpg(process.pid, 9)  # with what it has started
                process.wait()
                rows.append({"error": f"cut off after {limit:.0f} s"})
                break
            time.sleep(0.2)
    if process.returncode and not (rows and "error" in rows[-1]):
        rows.append({"error": f"ended with status {process.returncode}"})
    ending = rows[-1].get("error", "done") if rows else "nothing came"
    print(f"== {name}: {ending}, {time.monotonic() - start:.0f} s", flush=True)
    return rows


def main() -> int:
    """Run the parts; the exit status is 0 also where a part was cut off, which the report says."""
    parser = argparse.ArgumentParser(description="What a GPU does, in one call")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU; no report")
    parser.add_argument("--part", choices=list(PARTS), help="only this one, in this process")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all parts together")
    options = parser.parse_args()
    if DRY and TRITON:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported
    if not DRY and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured and nothing written (--dry runs all parts on the CPU)")
        return 0
    if options.part:
        return run_part(options.part)
    start, found, text = time.monotonic(), dict[str, list[Row]](), ""
    for name, part in PARTS.items():
        left = 1e9 if DRY else options.budget - (time.monotonic() - start)
        limit = 900.0 if DRY else min(part.seconds, left)
        found[name] = collected(name, limit) if left > 5 else [{"error": "no time left"}]
        text = reported(found)  # after every part: who ends the call loses the rest alone
    print(text)
    rows = [(name, row) for name, of_part in found.items() for row in of_part]
    bad = [name for name, row in rows if row.get("error", "not installed") != "not installed" or row.get("status")]
    print(f"not done, or in part: {', '.join(dict.fromkeys(bad))}" if bad else "all parts ran")
    return 1 if DRY and bad else 0


def reported(found: dict[str, list[Row]]) -> str:
    """The report of the parts so far; it is written too unless the run is dry."""
    report = complete("gpu", [], {"times_are": "ms, least / median / largest", "packages": list(PEERS), **found})
    report["command"] = "benchmarks/gpu.sh"
    report["kernels"] = "Triton" if not DRY and has_triton(torch.device("cuda", 0)) else "torch"
    report["versions"] |= {"triton": _triton_version(), "cuda": torch.version.cuda}
    if not DRY:
        report["device"] |= {"processor": torch.cuda.get_device_name().removeprefix("NVIDIA ")}
    text = rendered("What a GPU does: SAE steps, encoding, matching and models", report)
    if not DRY:
        written(text, report)
    return text


def _triton_version() -> str:
    return importlib.import_module("triton").__version__ if TRITON else "not installed"


if __name__ == "__main__":
    sys.exit(main())
