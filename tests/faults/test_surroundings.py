"""Faults of what surrounds a run: kills, full disks, no memory, other processes, strange systems. Each run goes on with
the same command afterwards, to the bits of one that nothing disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults.table import SOURCE, STUDY, Ended, Fault, Faults, Place
from heredity.kernels.processors import processors
from ranks import ended, launched
from tiny import toml

FAULTS = Faults()
fault = FAULTS
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0 and sys.platform == "linux"
LINUX = sys.platform == "linux"


@pytest.mark.parametrize("one", FAULTS.rows)
def test_a_fault_of_the_surroundings_ends_as_promised(one: Fault, tried):
    tried(one)


# -- killed -----------------------------------------------------------------------------------------------------

KILLING = """
import os, signal, sys
count, at = 0, {at}
def wrapped(real):
    def call(*a, **k):
        global count
        if any("runs" in os.fspath(one) for one in a if isinstance(one, (str, os.PathLike))):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return call
for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "open"):
    setattr(os, name, wrapped(getattr(os, name)))
import atexit
atexit.register(lambda: open("count", "w").write(str(count)))
"""


def killed_and_resumed(place: Place, first: int, last: int) -> str:
    """Kill a run again and again, each try after some more operations on files, then let it end; compare."""
    place.study()
    rng, kills = random.Random(first), 0
    for at in rng.sample(range(first, last), 5):
        ended = place.command("run", "s.toml", env=place.injected(KILLING.format(at=at)))
        assert ended.code in (0, -signal.SIGKILL), ended
        kills += ended.code != 0
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    assert place.inside("verify").code == 0 and place.hidden() == []
    return f"{kills} kills in one run, then equal to the bit; nothing left over"


@fault("killed before single operations on files, early in a try", "goes on, equal to the bit", slow=True, only=LINUX)
def _(place: Place) -> str:
    return killed_and_resumed(place, 3, 30)


@fault("killed before single operations on files, late in a try", "goes on, equal to the bit", slow=True, only=LINUX)
def _(place: Place) -> str:
    return killed_and_resumed(place, 30, 160)


def stopped(place: Place, sent: signal.Signals, moments: list[int], code: int, words: str) -> str:
    """Send a signal when so many stages are done, a little later each time, then let the run end; compare."""
    place.study()
    for number, done in enumerate(moments):
        with working(place, "run", "s.toml") as process:
            while process.poll() is None and len(list(place.run_folder.glob("*/*/manifest.json"))) < done:
                time.sleep(0.01)
            time.sleep(0.05 * number)
            process.send_signal(sent)
            _, err = process.communicate(timeout=600)
            assert process.returncode in (code, 0), (process.returncode, err)
            assert "Traceback" not in err, err
            assert process.returncode == 0 or words in err, err
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    assert place.hidden() == []
    return f"{len(moments)} stops, code {code}, then equal to the bit"


@contextlib.contextmanager
def working(place: Place, *words: str, env: dict[str, str] | None = None) -> Any:
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE, **(env or {})}
    command = [sys.executable, "-m", "heredity", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=place.folder, env=given, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@fault("SIGKILL at five moments of a run", "goes on, equal to the bit", slow=True)
def _(place: Place) -> str:
    return stopped(place, signal.SIGKILL, [1, 4, 7, 9, 14], -signal.SIGKILL, "")


@fault("SIGTERM at three moments of a run", "one line, code 143, goes on, equal", slow=True)
def _(place: Place) -> str:
    return stopped(place, signal.SIGTERM, [1, 6, 12], 143, "interrupted; the same command goes on from here")


@fault("SIGINT in a run", "one line, code 130, goes on, equal", slow=True)
def _(place: Place) -> str:
    return stopped(place, signal.SIGINT, [6], 130, "interrupted; the same command goes on from here")


@fault(
    "a worker killed", "one line with a way out, no process left, goes on", slow=True, only=LINUX and processors() > 1
)
def _(place: Place) -> str:
    place.study()
    with working(place, "run", "s.toml", "--workers", "2") as process:
        deadline, found = time.monotonic() + 120, []
        while process.poll() is None and not found and time.monotonic() < deadline:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pids = children.read_text().split() if children.exists() else []
            with contextlib.suppress(OSError):
                found = [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            time.sleep(0.02)
        assert found, "no worker was seen"
        os.kill(int(found[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 2 and "Traceback" not in err, err
        line = next(line for line in err.splitlines() if line.startswith("error:"))
        assert "worker processes was killed" in line and "run with fewer workers" in line
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if at_work(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    return line


def at_work(pid: str) -> bool:
    """Whether a process is there and not one that has ended, which its parent may never ask for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# -- disks and memory -------------------------------------------------------------------------------------------


@fault(
    "a disk that is full, and has a little more room at every try",
    "one line with a place; goes on",
    slow=True,
    only=ROOT,
)
def _(place: Place) -> str:
    place.study()
    place.run_folder.parent.mkdir()
    size, stops = 300, 0
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place.run_folder.parent], check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        while (ended := place.command("run", "s.toml")).code:
            ended.refused("No space left on device|could not be written|disk is full|make room")
            line = next(line for line in ended.err.splitlines() if line.startswith("error:"))
            assert "runs" in line or "/" in line, line
            stops, size = stops + 1, size + 400
            assert stops < 60
            subprocess.run(["mount", "-o", f"remount,size={size}k", place.run_folder.parent], check=True)
        place.equal(place.undisturbed())
        assert place.hidden() == []
        room = shutil.disk_usage(place.run_folder.parent)
    finally:
        subprocess.run(["umount", "-l", place.run_folder.parent], check=True)
    return f"{stops} stops, each one line; whole at {room.total >> 10} KiB, equal to the bit; nothing left over"


@fault("report, exports and merges onto a full disk", "one line, nothing half-written", slow=True, only=ROOT)
def _(place: Place) -> str:
    place.done()
    full = place.folder / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", full], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    model = place.artifact("model", "base") / "model"
    try:
        for words in (
            ["report", "s.toml", "-o", "full/r.html"],
            ["report", "s.toml", "--format", "md", "-o", "full/r.md"],
            *(["export", "s.toml", "--format", one, "-o", "full/x"] for one in ("csv", "parquet", "json")),
            ["merge", str(model), str(model), "--t", "0.5", "-o", "full/m"],
        ):
            ended = place.command(*words)
            if ended.code:
                ended.refused("full")
                assert list(full.iterdir()) == [], words
            for one in full.iterdir():
                shutil.rmtree(one) if one.is_dir() else one.unlink()
    finally:
        subprocess.run(["umount", "-l", full], check=True)
    return "6 of 6: one line and nothing there, or whole"


WRITING = """
import os, signal
def wrapped(real):
    def call(*a, **k):
        if any("out" in os.fspath(one).rpartition("/")[2] for one in a if isinstance(one, (str, os.PathLike))):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return call
os.replace, os.rename = wrapped(os.replace), wrapped(os.rename)
"""


@fault("killed while a report or an export is written", "nothing under its name, or whole", slow=True, only=LINUX)
def _(place: Place) -> str:
    place.done()
    for words in (["report", "-o", "out.html"], *(["export", "--format", one, "-o", "out"] for one in ("json", "csv"))):
        killed = place.command(words[0], "s.toml", *words[1:], env=place.injected(WRITING))
        assert killed.code == -signal.SIGKILL, killed
        assert not list(place.folder.glob("out*")), words
    place.command("export", "s.toml", "--format", "json", "-o", "out").well()
    assert not list(place.folder.glob(".out*")) and json.loads(next(place.folder.rglob("out*/*.json")).read_text())
    return "3 of 3 killed before a name was given: nothing there; then whole, and nothing left over"


@fault("one of two processes of a training killed", "one line; goes on, equal", slow=True, only=LINUX)
def _(place: Place) -> str:
    place.study(sae=STUDY["sae"] | {"tokens": 60_000})
    place.command("run", "s.toml", "--until", "model").well()
    first, second = launched(["-m", "heredity", "run", "s.toml", "--until", "sae"], 2, place.folder)
    while first.poll() is None and not list(place.run_folder.glob("sae_stream/.partial-*")):
        time.sleep(0.01)
    time.sleep(0.5)
    second.kill()
    (code, out, err), _ = ended([first, second])
    said = Ended(code, out, err).refused(
        "another process of this command has ended.*the same command goes on from here"
    )
    again = ended(launched(["-m", "heredity", "run", "s.toml", "--until", "sae"], 2, place.folder))
    assert [code for code, _, _ in again] == [0, 0], again
    found = files_of(place)
    for kind in ("sae", "sae_stream"):
        shutil.rmtree(place.run_folder / kind)
    place.command("run", "s.toml", "--until", "sae").well()
    assert files_of(place) == found
    return said


def files_of(place: Place) -> dict[str, bytes]:
    """The weights of all SAEs of a run."""
    return {f.parent.parent.name: f.read_bytes() for f in place.run_folder.glob("sae/*/**/*.safetensors")}


@fault("a limit of file sizes", "one line with a place; goes on", slow=True)
def _(place: Place) -> str:
    place.study()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))  # noqa: E731
    said = place.command("run", "s.toml", preexec_fn=limit).refused("runs|written")
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    return said


@fault("no memory in a stage", "one line with the stage and a way out; goes on", slow=True, only=LINUX)
def _(place: Place) -> str:
    # What is loaded takes some of the address space; the SAEs of this study ask for 64 GiB more.
    place.study(sae=STUDY["sae"] | {"expansion": 2**24})
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))"
    said = place.command("run", "s.toml", env=place.injected(code)).refused(
        "sae_stream/.*not enough memory.*narrower SAEs"
    )
    place.study()
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    return said


@fault("the text stages of a study over a corpus five times what they take for it", "done", slow=True, only=LINUX)
def _(place: Place) -> str:
    place.study()
    with open(place.folder / "words.jsonl", "a") as file:
        for number in range(250_000):
            # No two texts are the same, nor is each a word that no other has: vocabularies are held.
            words = f"{number % 1000} {number // 1000} the cat sat on the mat and saw a dog. "
            file.write(json.dumps({"text": words * 80}) + "\n")
    size = (place.folder / "words.jsonl").stat().st_size
    code = """
import sys
sys.argv = ["heredity", "run", "s.toml", "--until", "tokens"]
import heredity.cli, heredity.analyses, torch, transformers, heredity.text.corpora, heredity.kernels.sparse
import heredity.analyses.worked, tokenizers, heredity.text.tokens, datasets
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
before = most()
try:
    heredity.cli.main()
finally:
    print(most() - before, file=sys.stderr)
"""
    # What a limit counts, of the address space or the data, is mostly what allocators set aside for threads.
    ended = place.process([sys.executable, "-c", code], timeout=1800)
    ended.well()
    more = int(ended.err.strip().splitlines()[-1]) << 10
    assert more < size / 5, f"{more >> 20} MiB more in memory for {size >> 20} MiB of text"
    return f"{size >> 20} MiB of text; the peak is {more >> 20} MiB above that of a process that has loaded all code"


# -- what changes while a run is at work ------------------------------------------------------------------------

CHANGING = """
import os
real = os.mkdir
def mkdir(path, *a, **k):
    if ".partial-{stage}" in os.fspath(path):
        exec({code!r})
    return real(path, *a, **k)
os.mkdir = mkdir
"""


@fault("a corpus that changes while the run is at work", "noticed; the old key never holds the new text", slow=True)
def _(place: Place) -> str:
    place.study()
    code = "p = 'words.jsonl'; t = open(p).read().replace('cat', 'EVIL'); open(p, 'w').write(t)"
    said = place.command("run", "s.toml", env=place.injected(CHANGING.format(stage="words", code=code))).refused(
        "chang"
    )
    place.study()
    place.command("run", "s.toml").well()
    place.equal(place.undisturbed())
    return said


@fault(
    "a loaded model that another process writes to while the run is at work",
    "noticed before its numbers are used",
    slow=True,
)
def _(place: Place) -> str:
    place.done()
    model = place.folder / "m"
    shutil.copytree(place.artifact("model", "base") / "model", model)
    values = STUDY | {"model": {"base": {"load": "m", "corpora": ["words"]}, "sums": STUDY["model"]["sums"]}}
    values = {key: value for key, value in values.items() if key != "tokenizer"}
    toml(values, place.folder / "l.toml")
    code = """
from safetensors.numpy import load_file, save_file
p = "m/model.safetensors"
t = {k: v * 1.5 for k, v in load_file(p).items()}
save_file(t, p, {"format": "pt"})
"""
    env = place.injected(CHANGING.format(stage="joint", code=code))
    said = place.command("run", "l.toml", env=env).refused("changed")
    again = place.command("run", "l.toml")
    again.well()
    return said


@fault(
    "a study file that changes while the run is at work",
    "the run is of what it read; the next of what it is",
    slow=True,
)
def _(place: Place) -> str:
    path = place.study()
    code = "p = 's.toml'; t = open(p).read().replace('seed = 1', 'seed = 2'); open(p, 'w').write(t)"
    env = place.injected(CHANGING.format(stage="base", code=code))
    place.command("run", "s.toml", env=env).well()
    place.equal(place.undisturbed())
    assert "seed = 2" in path.read_text()
    place.inside("report", "--format", "md").refused("has changed since the run")
    return "equal to the bit; then refused until it is run again"


@fault("two runs at once", "the second is refused, by the process of the first", slow=True)
def _(place: Place) -> str:
    place.study()
    with working(place, "run", "s.toml") as process:
        while not (place.run_folder / ".lock").exists() or not (place.run_folder / ".lock").read_text():
            time.sleep(0.02)
            assert process.poll() is None
        said = place.command("run", "s.toml").refused(f"is being written by process {process.pid}; wait for it")
        for words in (["check", "s.toml"], ["status", "s.toml"]):
            place.command(*words).well()
        process.communicate(timeout=600)
        assert process.returncode == 0
    place.equal(place.undisturbed())
    return f"{said}; status and check beside it: code 0; the first: equal"


# -- strange systems --------------------------------------------------------------------------------------------


def in_a_system(place: Place, **env: str) -> str:
    """All that writes text, in an environment; the summary and the report must be UTF-8 all the same."""
    place.done()
    path = toml(STUDY | {"case": {"plus": {"tokens": [" plus", "é", "猫"]}}}, place.folder / "s.toml")
    assert path.exists()
    for words in (["run", "s.toml"], ["report", "s.toml", "-o", "r.html"], ["status", "s.toml"], ["verify", "s.toml"]):
        place.command(*words, env=env).well()
    summary = json.loads((place.run_folder / "summary.json").read_text(encoding="utf-8"))
    assert "猫" in summary["config"]["case"]["plus"]["tokens"]
    assert (place.folder / "r.html").read_text(encoding="utf-8").startswith("<!")
    return f"{len(env)} variables, 4 commands: code 0, files in UTF-8"


@fault("the locale ISO-8859-1", "files are UTF-8", slow=True)
def _(place: Place) -> str:
    more = {"LC_ALL": "de_DE.ISO-8859-1", "LANG": "de_DE.ISO-8859-1", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return in_a_system(place, **more, PYTHONIOENCODING="latin-1:backslashreplace")


@fault("the locale C, a terminal that can do nothing", "files are UTF-8", slow=True)
def _(place: Place) -> str:
    return in_a_system(place, LC_ALL="C", TERM="dumb", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", COLUMNS="1")


@fault("closed, full and broken outputs", "no traceback; what was made is whole", slow=True, only=LINUX)
def _(place: Place) -> str:
    place.done()
    command, seen = f"{sys.executable} -m heredity run s.toml", []
    for end in (">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full", "| true", "<&-"):
        (place.run_folder / "summary.json").unlink(missing_ok=True)
        ended = place.process(["bash", "-c", f"set -o pipefail; {command} {end}"])
        assert "Traceback" not in ended.err, (end, ended.err)
        assert (place.run_folder / "summary.json").exists(), (end, ended.err)
        seen.append(ended.code)
    return f"codes {', '.join(map(str, seen))}, the summary whole each time"


@fault("a system without `fcntl` or `resource`", "one line that names the systems it runs on", slow=True)
def _(place: Place) -> str:
    place.done()
    said = ""
    for module in ("fcntl", "resource"):
        missing = place.injected(f"import sys; sys.modules[{module!r}] = None")
        for words in (["run", "s.toml"], ["check", "demo"], ["--help"]):
            said = place.command(*words, env=missing).refused("runs on Linux and macOS; on Windows run it in WSL 2")
        code = "import heredity\ntry:\n    heredity.open('runs/s')\nexcept ImportError as error:\n    print(error)"
        ended = place.process([sys.executable, "-c", code], env=missing)
        ended.well()
        assert "runs on Linux and macOS" in ended.out, ended
    return said


@fault("no home, no cache folder, a package folder that cannot be written", "runs", slow=True)
def _(place: Place) -> str:
    place.study()
    package = place.folder / "package"
    shutil.copytree(Path(SOURCE) / "heredity", package / "heredity", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [package / "heredity", *(path for path in (package / "heredity").rglob("*") if path.is_dir())]
    for folder in folders:
        (folder / "__pycache__").touch()  # a file: no cache can lie there, for root as well
    env = {"PYTHONPATH": str(package), "HOME": "/proc/nohome", "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": ""}
    place.command("run", "s.toml", env=env | {"PYTHONDONTWRITEBYTECODE": "1"}).well()
    place.equal(place.undisturbed())
    return "code 0, equal to the bit"


@fault("a run folder that cannot be written", "one line with the folder", slow=True)
def _(place: Place) -> str:
    place.done()
    (place.run_folder / "flow").rename(place.folder / "kept")
    (place.run_folder / "flow").touch()  # a file where a folder is needed, for root as well
    said = place.command("run", "s.toml").refused("flow.*(folder|exist)")
    (place.run_folder / "flow").unlink()
    (place.folder / "kept").rename(place.run_folder / "flow")
    place.command("run", "s.toml").well()
    return said


@fault("a clock that runs backwards", "equal", slow=True)
def _(place: Place) -> str:
    place.study()
    code = "import time; real = time.time; time.time = lambda: 2e9 - real()"
    place.command("run", "s.toml", env=place.injected(code)).well()
    place.equal(place.undisturbed())
    return "code 0, equal to the bit"


@fault("a project that is moved, its runs renamed", "nothing is made anew", slow=True)
def _(place: Place) -> str:
    place.done()
    new = place.folder / "другой ’quoted’ 文件夹"
    new.mkdir()
    for path in [one for one in place.folder.iterdir() if one != new]:
        path.rename(new / path.name)
    moved = Place(new, lambda: new)
    before = {path: path.stat().st_mtime_ns for path in moved.run_folder.glob("*/*/manifest.json")}
    ended = moved.command("run", "s.toml", "--json")
    ended.well()
    assert json.loads(ended.out)["worked"] == []
    assert before == {path: path.stat().st_mtime_ns for path in moved.run_folder.glob("*/*/manifest.json")}
    return f"{len(before)} stages found, none made"


# -- checkpoints ------------------------------------------------------------------------------------------------


@fault(
    "checkpoints of an SAE that are cut, flipped, empty, gone", "told by file, or not used; the end is equal", slow=True
)
def _(place: Place) -> str:
    place.study(sae=STUDY["sae"] | {"tokens": 60_000})
    whole = place.command("run", "s.toml", "--until", "sae")
    whole.well()
    expected = {
        f.relative_to(place.run_folder): f.read_bytes() for f in place.run_folder.glob("sae/*/**/*.safetensors")
    }
    artifact, tried, said = place.artifact("sae_stream"), 0, ""
    for change in ("half", "flip", "empty", "gone"):
        shutil.rmtree(artifact)
        shutil.rmtree(place.run_folder / "sae")
        with working(place, "run", "s.toml", "--until", "sae", env=place.injected(OFTEN)) as process:
            partial = artifact.with_name(f".partial-{artifact.name}")
            while process.poll() is None and not list(partial.rglob("checkpoint/*")):
                time.sleep(0.005)
            process.kill()
            process.wait()
        for file in [one for one in partial.rglob("checkpoint/*") if one.is_file()]:
            content = bytearray(file.read_bytes())
            if change == "flip" and content:
                content[len(content) // 2] ^= 8
            file.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(change, bytes(content)))
            if change == "gone":
                file.unlink()
            tried += 1
        ended = place.command("run", "s.toml", "--until", "sae")
        if ended.code:
            said = ended.refused(r"checkpoint.*it is damaged; delete it to train from the start")
            for checkpoint in list(partial.rglob("checkpoint")):
                shutil.rmtree(checkpoint)
            place.command("run", "s.toml", "--until", "sae").well()
        found = {
            f.relative_to(place.run_folder): f.read_bytes() for f in place.run_folder.glob("sae/*/**/*.safetensors")
        }
        assert found == expected, change
    assert tried, "no checkpoint was seen"
    return f"{tried} damaged files of checkpoints, the SAEs equal to the bit; {said}"


OFTEN = """
import sys, threading
def patch():
    import time
    while "heredity.sae.train" not in sys.modules:
        time.sleep(0.001)
    train = sys.modules["heredity.sae.train"]
    while not hasattr(train, "time"):
        time.sleep(0.001)
    real = time.monotonic
    train.time = type("T", (), {"monotonic": staticmethod(lambda: real() * 1e5)})
threading.Thread(target=patch, daemon=True).start()
"""


@fault("a key in the environment, an endpoint that echoes it, --debug", "the key is nowhere", slow=True)
def _(place: Place) -> str:
    pytest.importorskip("openai")
    from explain.server import Reply, serving

    place.done()
    key = "sk-very-secret-0123456789"
    for status in (401, 500, 200, 302):
        with serving(
            lambda path, body, status=status: Reply(f'{{"error": "Bearer {key}", "key": "{key}"}}', status)
        ) as server:
            words = ["explain", "s.toml", "--features", "base/1,base/2", "--model", "m", "--base-url", server.url]
            words += ["--debug", "--out", f"out{status}", "--timeout", "5", "--max-requests", "3"]
            ended = place.command(*words, env={"OPENAI_API_KEY": key})
            assert any(key in one.get("authorization", "") for one in server.headers), "the server got the key"
        assert key not in ended.out + ended.err, status
    held = [path for path in place.folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert not held, held
    return "4 kinds of answers that hold it: not in output, ledger, tables or traceback"
