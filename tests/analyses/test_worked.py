"""What the stages of a run took, beside what the machine can do."""

from __future__ import annotations

import pytest

from heredity.analyses.worked import WORKED, worked
from heredity.engine.store import Store


def test_every_stage_is_counted_once_and_the_small_ones_together(lineage):
    run = lineage.run
    rows = worked(run.pipeline, Store(run.folder), list(run.artifacts))
    WORKED.check(rows)
    assert sum(row["stages"] for row in rows) == len(run.artifacts) and rows[-1]["stage"] == "others"
    assert sum(row["took"] for row in rows) == pytest.approx(run.seconds)
    assert max(row["peak_gib"] for row in rows) == run.peak_memory_gib
    known = [row for row in rows if row["ceiling"] is not None]
    assert known and all(0 < row["ceiling"] < 1.5 for row in known)
    trained = next(row for row in rows if row["tokens"])
    assert trained["tokens_a_second"] == pytest.approx(trained["tokens"] / trained["took"], abs=1)
    assert worked(run.pipeline, Store(run.folder), []) == []
