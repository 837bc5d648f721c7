"""A whole study over a corpus ten times larger than the memory it may take.

    python benchmarks/bounded.py FOLDER [--gib 1] [--times 10]

The corpus repeats the documents of `HEREDITY_DATA`, each with a number before it, so that no two are equal. The study
is small; what is bounded is reading, tokenizing and sampling the corpus. A control group holds the run and everything
that it starts to `--gib` of memory, the pages of files included (needs root and Linux); the run is killed where it
needs more. The same command goes on from what is there. Exit code: the run's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

STUDY = """\
hook_point = "blocks.0.mlp.hook_post"
[tokenizer]
vocab_size = 4096
[corpus]
text = { source = "local:corpus.jsonl" }
sums = { source = "generated:stories", max_bytes = 2_000_000 }
[model.base.train]
corpora = ["text"]
d_model = 32
d_mlp = 128
n_layers = 1
n_heads = 4
tokens = 200_000
batch_size = 16
context_size = 128
[model.child]
parent = "base"
corpora = ["sums"]
tokens = 100_000
batch_size = 16
context_size = 128
[sae]
activation = "topk"
k = 8
expansion = 4
tokens = 200_000
context_size = 128
batch_blocks = 8
evaluation_tokens = 4_000
[lineage]
tokens = 100_000
[verdicts]
tokens = 20_000
[evaluation]
tokens = 4_000
[report]
tokens = 20_000
features = 3
[explain]
features = 8
"""


def texts(least: int) -> list[str]:
    """Documents of English and Python, of so many characters together where there are so many."""
    data, found, size = Path(os.environ.get("HEREDITY_DATA", "../shared/data")), list[str](), 0
    for file in sorted([*data.glob("english/*.jsonl.zst"), *data.glob("python/*.jsonl.zst")]):
        with file.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
            for line in io.TextIOWrapper(stream, encoding="utf-8"):
                found.append(json.loads(line).get("text") or "")
                size += len(found[-1])
                if size > least:
                    return found
    if not found:
        raise SystemExit(f"{data} holds no english/*.jsonl.zst or python/*.jsonl.zst; set HEREDITY_DATA")
    return found


def write(path: Path, size: int) -> None:
    """A file of so many bytes."""
    some, number, written, part = texts(150_000_000), 0, 0, path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        while written < size:
            line = json.dumps({"text": f"{number} {some[number % len(some)]}"}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            number += 1
    part.rename(path)


@contextmanager
def group(limit: int) -> Iterator[tuple[Path, Path]]:
    """A control group that takes no more memory: where a process joins it, and what it took at most."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    folder = (root / "memory" if first else root) / f"heredity-{os.getpid()}"
    folder.mkdir()
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    try:
        yield folder / "cgroup.procs", folder / ("memory.max_usage_in_bytes" if first else "memory.peak")
    finally:
        folder.rmdir()


def main() -> int:
    """Write the corpus where it is not there, and run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--times", type=float, default=10.0, help="size of the corpus over that")
    options = parser.parse_args()
    limit, corpus = int(options.gib * 2**30), options.folder / "corpus.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    if not corpus.exists():
        write(corpus, int(limit * options.times))
    (options.folder / "bounded.toml").write_text(STUDY)
    command = [sys.executable, "-m", "heredity", "run", "bounded.toml", "--progress", "lines"]
    with group(limit) as (joined, peak):
        start = time.monotonic()
        run = subprocess.run(
            command, cwd=options.folder, preexec_fn=lambda: joined.write_text(str(os.getpid())), check=False
        )
        row = {"gib": options.gib, "corpus_gib": round(corpus.stat().st_size / 2**30, 2), "status": run.returncode}
        row |= {
            "minutes": round((time.monotonic() - start) / 60, 1),
            "peak_gib": round(int(peak.read_text()) / 2**30, 3),
        }
    print(json.dumps(row))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
