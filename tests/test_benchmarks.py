"""The benchmarks run, print one JSON object, and compare sides that compute the same."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"

SHARED = {"name", "peer", "peer_version", "ratio", "floor_ratio", "peak_rss_gib", "peer_peak_rss_gib", "ours", "agree"}
SHARED |= {"cases", "configuration", "versions", "device", "command", "date"}

PEERS = {
    "sae_step": ("sae_lens", "dictionary_learning", "sparsify"),
    "encode": ("sae_lens", "dictionary_learning", "sparsify"),
    "sae_run": ("sae_lens",),
    "sweep": ("mergekit",),
}
SAME = {"sae_step": "same_gradient", "encode": "same_acts", "sae_run": "same_goal", "sweep": "same_sweep"}


@pytest.fixture(scope="module")
def paired():
    """benchmarks/paired.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("paired", SCRIPTS / "paired.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paired"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["paired"]


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / f"bench_{script}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=580)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("script", list(PEERS))
def test_the_quick_run_prints_json_and_both_sides_agree(script):
    missing = [module for module in PEERS[script] if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    done = run(script, "--quick", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.keys() >= SHARED
    assert found["name"] == script
    assert list(found["ratio"]) == ["min", "median", "max"]
    assert 0 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert found["floor_ratio"] > 0 and found["peak_rss_gib"] > 0 and found["peer_peak_rss_gib"] > 0
    assert found["agree"][SAME[script]] is True
    assert all(case["agree"][SAME[script]] for case in found["cases"] if "agree" in case)


@pytest.mark.parametrize("script", list(PEERS))
def test_a_missing_peer_is_named_with_the_package_to_install(script):
    if importlib.util.find_spec(PEERS[script][0]) is not None:
        pytest.skip(f"{PEERS[script][0]} is installed")
    done = run(script, "--quick", "--json")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"pip install -c constraints.txt {PEERS[script][0].replace('_', '-')}" in done.stderr


def test_a_missing_peer_is_one_line_that_names_its_package_not_its_module_and_status_2(paired, capsys):
    for package in ("nowhere", "not-nowhere"):
        with pytest.raises(paired.MissingPeer, match=f"pip install -c constraints.txt {package}"):
            paired.peer("nowhere.at.all")
        paired.PACKAGES["nowhere"] = "not-nowhere"
    benchmark = paired.Benchmark("example", "An example", lambda options: paired.peer("nowhere"), lambda *_: None)
    assert paired.main(benchmark, ["--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: not-nowhere is needed") and err.count("\n") == 1


def test_calls_run_in_turn_and_warm_ups_are_not_counted(paired):
    order = []
    seconds = paired.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="rounds=0"):
        paired.in_turn({}, rounds=0)


def test_the_ratio_is_of_neighbors_not_of_medians(paired):
    # The second pair ran while the machine was ten times slower: its ratio is as good as the others'.
    assert paired.ratio([4.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == {"min": 3.0, "median": 4.0, "max": 4.0}
    assert paired.spread([1.23456]) == {"min": 1.235, "median": 1.235, "max": 1.235}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("AMD EPYC", "epyc"),
        ("AMD EPYC 9B14 96-Core Processor", "epyc-9b14"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "xeon-platinum-8375c"),
    ],
)
def test_device_words_hold_no_vendor_and_fit_a_file_name(paired, name, word):
    device = {"processor": name, "instructions": "AVX2", "cores": 2}
    assert paired.device_word(device) == f"{word}-avx2-2-cores"


def test_peak_memory_is_that_of_this_process(paired):
    before = paired.peak_gib()
    block = bytearray(64 << 20)
    block[:: 1 << 12] = b"\x01" * len(block[:: 1 << 12])
    assert 0 < before <= paired.peak_gib() < 1000


def figures(options: argparse.Namespace) -> dict:
    sys.stdout.write("a peer that prints while it works\n")
    spread = {"min": 1.0, "median": 2.0, "max": 3.0}
    cases = [{"case": "one", "ratio": spread, "ours": {"seconds": spread}}, {"case": "two", "quick": options.quick}]
    return {"peer": "none", "ratio": spread, "agree": {"same": True, "error": 1e-7}, "cases": cases}


def test_json_is_all_there_is_on_standard_output(paired, capsys):
    benchmark = paired.Benchmark("example", "An example", figures, lambda job, options: None)
    assert paired.main(benchmark, ["--json", "--quick"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["command"] == "python benchmarks/bench_example.py --quick"
    assert "a peer that prints" in err
    assert paired.main(benchmark, ["--job", "some"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_rss_gib"] > 0


def test_the_report_is_dated_and_holds_the_figures(paired, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(paired, "_processor", lambda: "AMD EPYC")
    found = paired.complete("example", [], figures(argparse.Namespace(quick=False)))
    text = paired.rendered("An example", found)
    path = paired.written(text, found, tmp_path / "results")
    assert path.name.startswith("example_epyc-") and path.name.endswith(f"-cores_{found['date']}.md")
    lines = path.read_text().splitlines()
    assert lines[0] == "# An example" and "    python benchmarks/bench_example.py" in lines
    assert "- ratio: 1 / 2 / 3" in lines
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows == [
        ["case", "ratio", "ours seconds", "quick"],
        ["one", "1 / 2 / 3", "1 / 2 / 3", ""],
        ["two", "", "", "False"],
    ]
    assert f"torch {found['versions']['torch']}" in path.read_text()


def test_the_benchmark_of_a_gpu_says_in_one_line_that_there_is_none_and_writes_nothing():
    before = sorted((SCRIPTS / "results").iterdir())
    shell = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([SCRIPTS / "gpu.sh"], capture_output=True, text=True, timeout=300, env=os.environ | shell)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("no CUDA device here") and done.stdout.count("\n") == 1
    assert sorted((SCRIPTS / "results").iterdir()) == before
