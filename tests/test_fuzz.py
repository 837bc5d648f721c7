"""A short run of the fuzzer: whatever a file holds, an error of the package's own comes out, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
FAULTY = """
import sys
sys.argv = ["fuzz.py", *sys.argv[1:]]
sys.path.insert(0, {folder!r})
import fuzz
from heredity.lm import recipe
whole = recipe.parents_of
def parents_of(read):
    if not isinstance(read.get("merge_method"), str):
        raise KeyError("merge_method")
    while not isinstance(read.get("base_model"), str):
        pass
    return whole(read)
recipe.parents_of = parents_of
fuzz.SECONDS = 0.5
sys.exit(fuzz.main())
"""


def fuzz(*words: object, code: str = "") -> subprocess.CompletedProcess[str]:
    script = ["-c", code] if code else [str(FUZZ)]
    command = [sys.executable, *script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_mutated_files_at_every_door_end_in_errors_of_the_package(tmp_path):
    if (FUZZ.parent / "fuzz_found").exists():  # what earlier runs found is read again first
        shutil.copytree(FUZZ.parent / "fuzz_found", tmp_path / "found")
    done = fuzz("--cases", 2000, "--seed", 7, "--found", tmp_path / "found", "--state", tmp_path / "state")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "state/done.json").read_text())["counts"]["study"]["refused"] > 100


def test_foreign_errors_and_hangs_are_found_kept_and_tried_again(tmp_path):
    words = ("--cases", 120, "--doors", "recipe", "--found", tmp_path / "found")
    first = fuzz(*words, code=FAULTY.format(folder=str(FUZZ.parent)))
    assert first.returncode == 1 and "KeyError at <string>:parents_of" in first.stdout and "hung" in first.stdout
    kept = {(one / "outcome").read_text().strip() for one in (tmp_path / "found").iterdir()}
    assert {"KeyError at <string>:parents_of", "hung"} <= kept
    again = fuzz("--cases", 1, *words[2:])
    assert again.returncode == 0, again.stdout + again.stderr
