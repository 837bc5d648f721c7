"""What a merge does with the t that its sweep found."""

from __future__ import annotations

import pytest

from heredity.engine.store import Artifact, write_json
from heredity.stages.models import equilibrium_of
from heredity.study import StudyError


def _sweep(folder, t: float) -> Artifact:
    points = [
        {"t": 0.0, "accuracy": {"lua": 0.29, "stories": 0.3}},
        {"t": 1.0, "accuracy": {"lua": 0.24, "stories": 0.34}},
    ]
    write_json(folder / "sweep.json", {"t": t, "first": "lua", "second": "stories", "points": points})
    return Artifact(folder, "0" * 64)


def test_a_merge_lies_where_its_sweep_says(tmp_path):
    assert equilibrium_of("study", "merge", _sweep(tmp_path, 0.3)) == 0.3


@pytest.mark.parametrize(("t", "parent"), [(0.0, "lua"), (1.0, "stories")])
def test_a_merge_that_would_be_a_parent_again_is_refused(tmp_path, t, parent):
    words = (
        rf"study: model\.merge\.merge\.t: .* lua's goes from 29\.0% to 24\.0% and stories's goes from 30\.0% to 34\.0%"
        rf".* t = {t:g}, which is {parent} itself\. Give t, such as t = 0\.5"
    )
    with pytest.raises(StudyError, match=words):
        equilibrium_of("study", "merge", _sweep(tmp_path, t))
