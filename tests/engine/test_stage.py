"""The engine makes what is missing, once, from what is there."""

from __future__ import annotations

import pytest

from heredity.engine.stage import Stage, Watcher, run
from heredity.engine.store import ArtifactError, Store


def chain(made: list[str], setting: int = 1) -> list[Stage]:
    """Two stages: the second writes the first's number plus one."""

    def first(work):
        made.append("first")
        (work.folder / "n").write_text(str(work.config["n"]))

    def second(work):
        made.append("second")
        (work.folder / "n").write_text(str(int((work.inputs["first"] / "n").read_text()) + 1))

    one = Stage("number", "first", {"n": setting}, {}, first)
    return [one, Stage("number", "second", {}, {"first": one}, second)]


def test_stages_run_once_and_a_changed_setting_remakes_all_that_follows(tmp_path):
    made: list[str] = []
    for setting, ends, calls in ((1, "2", 2), (1, "2", 2), (5, "6", 4)):
        found = run(chain(made, setting), Store(tmp_path))
        assert (found["number/second"] / "n").read_text() == ends
        assert made == ["first", "second"] * (calls // 2)


def test_until_ends_after_the_stage_that_it_names(tmp_path):
    made: list[str] = []
    assert list(run(chain(made), Store(tmp_path), until="number/first")) == ["number/first"]
    assert made == ["first"]
    with pytest.raises(ArtifactError, match="no such stage; kinds of stages are number"):
        run(chain([]), Store(tmp_path), until="nonsense")


def test_a_stage_that_fails_leaves_what_came_before(tmp_path):
    made: list[str] = []
    one, _ = chain(made)

    def broken(work):
        raise RuntimeError("no")

    two = Stage("number", "second", {}, {"first": one}, broken)
    with pytest.raises(RuntimeError):
        run([one, two], Store(tmp_path))
    run(chain(made), Store(tmp_path))
    assert made == ["first", "second"]


def test_the_watcher_sees_progress_and_cached_stages(tmp_path):
    seen: list[tuple] = []

    class Seen(Watcher):
        def progress(self, stage, done, total):
            seen.append((stage.name, done, total))

        def end(self, stage, seconds, cached):
            seen.append((stage.name, cached))

    stage = Stage("number", "only", {}, {}, lambda work: work.progress(1, 2))
    run([stage], Store(tmp_path), Seen())
    run([stage], Store(tmp_path), Seen())
    assert seen == [("only", 1, 2), ("only", False), ("only", True)]
