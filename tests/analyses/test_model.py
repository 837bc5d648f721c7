"""What a merge does with the t that its sweep yields, and corpora that change while a study runs."""

from __future__ import annotations

import pytest

import tiny
from heredity.analyses import Pipeline
from heredity.analyses.model import _equilibrium as equilibrium
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.study import Study, StudyError
from heredity.text.sources import CorpusError

POINTS = [{"t": 0.0, "accuracy": {"lua": 0.29, "stories": 0.3}}, {"t": 1.0, "accuracy": {"lua": 0.24, "stories": 0.34}}]


def sweep(t: float) -> dict:
    return {"t": t, "first": "lua", "second": "stories", "points": POINTS}


def test_a_merge_lies_where_its_sweep_says():
    assert equilibrium("study: model.merge.merge.t", sweep(0.3)) == 0.3


@pytest.mark.parametrize(("t", "parent"), [(0.0, "lua"), (1.0, "stories")])
def test_a_merge_that_would_be_a_parent_again_is_refused(t, parent):
    words = (
        rf"study: model\.merge\.merge\.t: .* lua's goes from 29\.0% to 24\.0% and stories's goes from 30\.0% to 34\.0%"
        rf".* t = {t:g}, which is {parent} itself\. Give t, such as t = 0\.5"
    )
    with pytest.raises(StudyError, match=words):
        equilibrium("study: model.merge.merge.t", sweep(t))


def test_a_corpus_that_changes_while_the_study_runs_is_refused_by_name(tmp_path):
    study = Study.of(tiny.study_values(tmp_path), root=tmp_path)

    def stage():
        return Pipeline(study).stages["corpus/words"]

    planned = stage()
    file = next(path for path in sorted((tmp_path / "words").rglob("*")) if path.is_file())
    before = file.read_text()
    file.write_text(before + " and more")
    with pytest.raises(CorpusError, match="corpus words: local:.* changed while the study ran"):
        run([planned], Store(tmp_path / "runs"))
    assert stage().key != planned.key
    file.write_text(before)
    run([stage()], Store(tmp_path / "runs"))
