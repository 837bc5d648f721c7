"""`torchrun -m heredity run` trains SAEs in all of its processes, and leaves what one process leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from faults.table import STUDY, write_texts
from ranks import SOURCE, ended, launched
from tiny import command, toml

SITES = ["blocks.0.mlp.hook_post", "blocks.0.hook_resid_post"]


def weights(runs: Path) -> dict[str, bytes]:
    """Every tensor file of the SAEs of a run."""
    return {str(file.relative_to(runs)): file.read_bytes() for file in sorted(runs.glob("s/sae*/*/**/*.safetensors"))}


def test_two_processes_make_the_saes_of_two_sites_that_one_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    toml(STUDY | {"hook_point": SITES}, tmp_path / "s.toml")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun sets it: on their number the rounding of matrix products depends
    try:
        command("run", "s.toml", "--until", "sae")
    finally:
        torch.set_num_threads(threads)
    expected = weights(tmp_path / "runs")
    for folder in (tmp_path / "runs/s").glob("sae*"):
        shutil.rmtree(folder)

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "heredity"]
    env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "run", "s.toml", "--until", "sae", "--json"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sae_stream/joint" in [row["stage"] for row in json.loads(done.stdout)["worked"]]
    assert len(expected) > 2 and weights(tmp_path / "runs") == expected
    assert not [path for path in (tmp_path / "runs").rglob(".*") if path.name != ".lock"]


def test_workers_of_a_training_without_ray_are_sent_to_the_launcher():
    printed = command("run", "demo", "--train-workers", 3, code=2).stderr
    assert "--train-workers 3: is of --engine ray; " in printed and "--nproc-per-node 3" in printed


KILLED = """
import os, time
from heredity.engine import ranks
with ranks.ranks() as here:
    assert here.told("begun", by=0) == "begun"
    if here.number == 1:
        time.sleep(4)  # at work, and alive
        here.told("made", by=1)
        os._exit(9)  # before it tells the next
    assert here.told(None, by=1) == "made"
    begun = time.monotonic()
    try:
        here.told(None, by=1)
    except ranks.RankError as error:
        print(error, flush=True)
    assert time.monotonic() - begun < 30
    os._exit(3)
"""


def test_a_rank_that_is_killed_is_missed_by_those_that_wait_for_its_word(tmp_path):
    (code, out, err), (other, _, _) = ended(launched(["-c", KILLED], 2, tmp_path))
    assert (code, other) == (3, 9), err
    assert "another process of this command has ended" in out
