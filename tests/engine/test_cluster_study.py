"""A study on a cluster of this machine has the bits of the same study in one process, with a worker killed on the way
and its results on S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray (the extra `ray`)")

import s3
import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]
UNTIL = ("--until", "match")


def two_processors() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def heredity(*words: object, **environment: str) -> subprocess.Popen[str]:
    """`heredity WORDS` on two processors, one thread a task."""
    return subprocess.Popen(
        [sys.executable, "-c", "from heredity.cli import main; main()", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=two_processors,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process printed on stdout and stderr until it ended well."""
    with process:
        try:
            printed = process.communicate(timeout=550)
        finally:
            process.kill()
    assert process.returncode == 0, printed
    return printed


def files(study: Path) -> dict[str, str]:
    """Checksums of all files of all artifacts."""
    found = {}
    for manifest in study.glob("*/*/manifest.json"):
        recorded = json.loads(manifest.read_text())["files"]
        found |= {f"{manifest.parent.relative_to(study)}/{name}": digest for name, digest in recorded.items()}
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two models with an edge, and what one process made of it, text to matches."""
    folder = tmp_path_factory.mktemp("study")
    values = tiny.study_values(folder)
    for name in ("stories", "both"):
        del values["model"][name]
    values["sae"] |= {"tokens": 16_000, "continue_tokens": 5_000}
    tiny.toml(values, folder / "s.toml")
    ended(heredity("run", folder / "s.toml", "--runs", folder / "runs", *UNTIL))
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from s3.bucket(monkeypatch)


def worker_of(driver: int, stage: str, deadline: float) -> int:
    """Process of the worker that makes a stage, among what a driver started."""
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(f"ray::{stage}".encode()) and below(int(path.parent.name), driver):
                    return int(path.parent.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise TimeoutError(f"no worker made {stage}")


def below(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor


def test_a_study_on_a_cluster_leaves_the_same_files_when_a_worker_is_killed(here, tmp_path):
    on_ray = ("--engine", "ray", "--workers", 2, "--progress", "json")
    run = heredity("run", here / "s.toml", "--runs", tmp_path, *on_ray, *UNTIL)
    try:
        killed = worker_of(run.pid, "sae_stream/", time.monotonic() + 300)
        time.sleep(1.0)
        os.kill(killed, signal.SIGKILL)
    finally:
        _, progress = ended(run)
    events = [json.loads(line) for line in progress.splitlines() if line.startswith("{")]
    assert [one["stage"].partition("/")[0] for one in events if one["event"] == "again"] == ["sae_stream"], progress
    assert files(tmp_path / "s") == files(here / "runs" / "s")


def test_trainings_divided_among_workers_leave_the_same_files_when_one_of_these_is_killed(here, tmp_path):
    shutil.copytree(here / "runs" / "s", tmp_path / "s", ignore=shutil.ignore_patterns("sae", "sae_stream"))
    on_ray = ("--engine", "ray", "--workers", 2, "--train-workers", 2, "--progress", "json")
    run = heredity("run", here / "s.toml", "--runs", tmp_path, *on_ray, "--until", "sae")
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("s/sae_stream/.partial-*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # until all have come together
        killed = worker_of(run.pid, "rank 1 of sae_stream/", deadline)
        os.kill(killed, signal.SIGKILL)
    finally:
        _, progress = ended(run)
    events = [json.loads(line) for line in progress.splitlines() if line.startswith("{")]
    assert [one["stage"].partition("/")[0] for one in events if one["event"] == "again"] == ["sae_stream"], progress
    assert files(tmp_path / "s") == files(here / "runs" / "s")


def test_a_study_whose_results_lie_on_s3_leaves_the_same_files(here, tmp_path, bucket):
    import fsspec

    runs, cache = f"{bucket}/runs", {"HEREDITY_CACHE": str(tmp_path / "cache")}
    ended(heredity("run", here / "s.toml", "--runs", runs, "--engine", "ray", "--workers", 2, *UNTIL, **cache))
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    fsspec.filesystem("s3", endpoint_url=endpoint).get(f"{runs}/s", str(tmp_path / "copy"), recursive=True)
    assert files(tmp_path / "copy") == files(here / "runs" / "s")
    elsewhere = {"HEREDITY_CACHE": str(tmp_path / "other")}
    verified, _ = ended(heredity("verify", here / "s.toml", "--runs", runs, "--json", **elsewhere))
    assert json.loads(verified)["damaged"] == {}
