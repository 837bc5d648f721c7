"""One-to-one assignment over listed pairs against SciPy's dense one."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from heredity.kernels.assign import assign


@pytest.mark.parametrize("seed", range(30))
def test_no_assignment_over_the_listed_pairs_has_a_larger_sum(seed):
    rng = np.random.default_rng(seed)
    shape, few = rng.integers(1, 60, 2), 4
    weights = rng.uniform(0.01, 1, shape) if seed % 2 else rng.integers(1, few, shape) / few  # the latter with ties
    listed = rng.random(shape) < rng.choice([0.02, 0.1, 1.0])
    rows, columns = np.nonzero(listed)
    chosen = assign(np.searchsorted(rows, np.arange(shape[0] + 1)), columns, weights[listed], shape[1])
    made = chosen >= 0
    assert listed[made, chosen[made]].all() and len(np.unique(chosen[made])) == made.sum()
    gain = np.where(listed, weights, 0.0)
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    assert gain[made, chosen[made]].sum() == pytest.approx(best, abs=1e-12)
