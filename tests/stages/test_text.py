"""A corpus is what its key says, also when its files change while it is read."""

from __future__ import annotations

import pytest

import tiny
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.stages import text
from heredity.study import Study
from heredity.text.sources import CorpusError


def test_a_corpus_that_changes_while_the_study_runs_is_refused_by_name(tmp_path):
    tiny.write_corpora(tmp_path)
    study = Study.of(tiny.study_values(tmp_path), root=tmp_path)
    stage = text.corpus_stage(study, "words")
    file = next(path for path in sorted((tmp_path / "words").rglob("*")) if path.is_file())
    before = file.read_text()
    file.write_text(before + " and more")
    with pytest.raises(CorpusError, match="corpus words: local:.* changed while the study ran"):
        run([stage], Store(tmp_path / "runs"))
    file.write_text(before)
    run([text.corpus_stage(study, "words")], Store(tmp_path / "runs"))
