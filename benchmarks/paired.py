"""What every benchmark shares: ours and a peer run in turn, ratios of neighbors, memory of a fresh process, a report.

Other work on a machine moves absolute times by a factor of two or more. Two calls that run right after each other see
much the same machine, so the figure to trust is the ratio within a pair; each report gives its smallest, median and
largest value.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "sae_lens": "sae-lens",
    "dictionary_learning": "dictionary-learning",
    "sparsify": "eai-sparsify",
    "mergekit": "mergekit",
}
"""By module, the package that a missing peer is installed from."""

RESULTS = Path(__file__).parent / "results"

_SPREAD = ("min", "median", "max")


class MissingPeer(RuntimeError):
    """A peer that cannot be imported; says which package to install."""


def peer(module: str) -> Any:
    """Import a module of a peer. Raises MissingPeer when that fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES.get(module.split(".")[0], module.split(".")[0])
        raise MissingPeer(
            f"{package} is needed for this comparison and cannot be imported ({error}); "
            f"install it with: pip install -c constraints.txt {package}"
        ) from error


def version(package: str) -> str:
    """Version of a package, `not installed` without one."""
    if package == "heredity":
        # It may run from its sources.
        return importlib.import_module(package).__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls run one after the other: A B A B; warm-up rounds are not counted.

    Raises ValueError without a round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measure nothing; give at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest value, to four digits."""
    return dict(zip(_SPREAD, map(rounded, (min(values), statistics.median(values), max(values))), strict=True))


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Spread of slower / faster within each pair of neighbors."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def floors(x: Any, weight: Any, bias: Any) -> dict[str, Callable[[], object]]:
    """Products of the encoder's shape, which no encoding or step can do without: float32, and what screens here."""
    from heredity.kernels.paths import product_of, screens
    from heredity.kernels.screens import make_screen
    from heredity.kernels.torch_forms import linear

    calls: dict[str, Callable[[], object]] = {"float32": lambda: linear(x, weight, bias)}
    for kind in screens(weight.shape[1], len(weight)):
        if kind != "float32":
            sides = make_screen(x.contiguous(), kind), make_screen(weight.contiguous(), kind)
            calls[kind] = product_of(*sides)
    return calls


def timed_case(name: str, package: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What every case says of its times: the screen that ours begins with, `ours`, `theirs` and the floors."""
    floor = {kind: seconds[kind] for kind in ("amx", "int8", "bf16", "int16", "float32") if kind in seconds}
    screen = next(iter(floor))
    return {
        "case": name,
        "peer": package,
        "peer_version": version(package),
        "ratio": ratio(seconds["theirs"], seconds["ours"]),
        "screen": screen,
        "floor_ratio": ratio(seconds["ours"], seconds["float32"])["median"],
        "floor_ratio_screen": ratio(seconds["ours"], floor[screen])["median"],
        "floor": {kind: spread(values) for kind, values in floor.items()},
    }


def headline(cases: Sequence[dict[str, Any]], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The first case's figures, the memory of both its sides, and all cases."""
    head = cases[0]
    named = ("peer", "peer_version", "ratio", "screen", "floor_ratio", "floor_ratio_screen", "ours", "agree")
    peaks = {
        "peak_rss_gib": peak_of(f"{kind}:ours", options),
        "peer_peak_rss_gib": peak_of(f"{kind}:{head['peer']}", options),
    }
    return {key: head[key] for key in named} | peaks | {"cases": list(cases)}


def note(case: dict[str, Any]) -> dict[str, Any]:
    """The same case, its ratio shown on standard error: a long benchmark tells how far it is."""
    print(f"{case['case']}: {_cell(case['ratio'])} times", file=sys.stderr, flush=True)
    return case


def rounded(value: float) -> float:
    """To four significant digits: no benchmark knows more."""
    return float(f"{value:.4g}")


def device() -> dict[str, Any]:
    """The machine in words: processor, cores this process may use, threads of torch. No host name."""
    import torch

    from heredity.kernels.torch_forms import native_bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "multiplies_bf16": native_bfloat16(),
        "cores": cores,
        "threads": torch.get_num_threads(),
    }


def device_word(machine: Mapping[str, Any]) -> str:
    """A name for file names: `AMD EPYC 9B14 Processor` with AVX2, 2 cores -> `epyc-9b14-avx2-2-cores`."""
    name = re.sub(r"\(\w+\)|@.*|\b(amd|intel|cpu|processor|\d+-core)\b", " ", machine["processor"].lower())
    return "-".join(
        [*re.findall(r"[a-z0-9]+", name), str(machine["instructions"]).lower(), str(machine["cores"]), "cores"]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would do, but on Linux a child inherits it from the parent that started it.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return rounded(int(found[1]) / 2**20)
    unit = 1 if sys.platform == "darwin" else 1024
    return rounded(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30)


def peak_of(job: str, options: argparse.Namespace) -> float:
    """Peak memory of a job of this script in a fresh process, GiB. Raises RuntimeError when the job fails."""
    size = [f"--{name}" for name in ("quick", "full") if getattr(options, name, False)]
    threads = ["--threads", str(options.threads)] if options.threads else []
    command = [sys.executable, sys.argv[0], "--job", job, *size, *threads]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the job {job} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)["peak_rss_gib"]


@dataclass(frozen=True)
class Benchmark:
    """A script: what it measures and how its report is called."""

    name: str
    """The <what> of the report's file name."""
    title: str
    """One line: what is compared."""
    measure: Callable[[argparse.Namespace], dict[str, Any]]
    """The figures: peer, peer_version, ratio, floor_ratio, ours, agree, cases and what else there is."""
    job: Callable[[str, argparse.Namespace], object]
    """Run the job of this name once, for its memory."""
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None  # noqa: ARG005
    """Adds the script's own options."""


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Run a benchmark from the command line; the exit status, 2 for a missing peer."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _options(benchmark, argv)
    if options.threads:
        importlib.import_module("torch").set_num_threads(options.threads)
    try:
        # Peers print while they work; standard output is for the figures.
        with contextlib.redirect_stdout(sys.stderr):
            if options.job:
                benchmark.job(options.job, options)
            else:
                found = complete(benchmark.name, argv, benchmark.measure(options))
    except MissingPeer as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.job:
        print(json.dumps({"peak_rss_gib": peak_gib()}))
        return 0
    text = rendered(benchmark.title, found)
    if options.write:
        print(f"wrote {written(text, found)}", file=sys.stderr)
    print(json.dumps(found) if options.json else text)
    return 0


def _options(benchmark: Benchmark, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=benchmark.title)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--pairs", type=int, help="pairs of neighboring runs")
    parser.add_argument("--threads", type=int, help="of torch; on a busy machine 1, as threads wait for each other")
    parser.add_argument("--write", action="store_true", help="write the dated report into benchmarks/results")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    benchmark.arguments(parser)
    return parser.parse_args(argv)


def complete(name: str, argv: Sequence[str], figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with the benchmark's name before them, and versions, device, command and date behind."""
    packages = ("heredity", "torch", "numpy", "numba", "transformers", *figures.get("packages", ()))
    found = {"python": platform.python_version()} | {package: version(package) for package in packages}
    shown = [word for word in argv if word not in ("--json", "--write")]
    return {
        "name": name,
        **{key: value for key, value in figures.items() if key != "packages"},
        "versions": found,
        "device": device(),
        "command": " ".join(["python", f"benchmarks/bench_{name}.py", *shown]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def written(text: str, found: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write the report to <what>_<device>_<yyyy-mm-dd>.md in the folder, <what>_quick of --quick; returns its path."""
    folder.mkdir(exist_ok=True)
    what = found["name"] + "_quick" * ("--quick" in found["command"].split())
    path = folder / f"{what}_{device_word(found['device'])}_{found['date']}.md"
    path.write_text(text)
    return path


def rendered(title: str, found: Mapping[str, Any]) -> str:
    """The report in Markdown, readable in a terminal too."""
    plain = {key: value for key, value in found.items() if not _is_table(value) and not _is_section(value)}
    machine = found["device"]
    lines = [
        f"# {title}",
        "",
        f"    {plain.pop('command')}",
        "",
        f"{machine['processor']} ({machine['instructions']}, {'native' if machine['multiplies_bf16'] else 'no native'} "
        f"bfloat16 products), {machine['cores']} cores, {machine['threads']} threads, {plain.pop('date')}. "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + ".",
        "",
        *(f"- {_words(key)}: {_cell(value)}" for key, value in plain.items() if key != "name"),
    ]
    for key, value in found.items():
        if key in ("device", "versions"):
            continue
        if _is_table(value):
            lines += ["", f"## {_words(key)}", "", *_table([_flat(row) for row in value])]
        elif _is_section(value):
            lines += ["", f"## {_words(key)}", "", *(f"- {_words(k)}: {_cell(v)}" for k, v in _flat(value).items())]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_section(value: object) -> bool:
    return isinstance(value, dict) and not _is_spread(value)


def _is_spread(value: object) -> bool:
    return isinstance(value, dict) and tuple(value) == _SPREAD


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dicts as `outer inner` keys; spreads stay whole."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and not _is_spread(value):
            flat |= _flat(value, f"{before}{key} ")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_words(name) for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: object) -> str:
    if _is_spread(value):
        assert isinstance(value, dict)
        return " / ".join(f"{value[name]:.4g}" for name in _SPREAD)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return "" if value is None else str(value)
