"""A process that compiles the kernels and one that loads them from the cache come to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

_STEPS = """
import hashlib
import numpy as np
import torch
from heredity.kernels import step
from heredity.kernels.encode import sparse_encode

torch.set_num_threads(1)
rng, (n, d, h) = np.random.default_rng(0), (256, 48, 200)
normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
x, w, dec, ages = normal(n, d), normal(h, d) / 7, normal(h, d) / 7, np.ones(h, np.int32)
acts = sparse_encode(torch.from_numpy(x), torch.from_numpy(w), torch.full((h,), -0.5), 8)
errors = step.errors(acts, x, dec, 0.01)
moments = lambda: (np.zeros((h, d), np.float32), np.zeros((h, d), np.float32))
enc_rows, dec_rows, dense_rows = (w, *moments()), (dec, *moments()), (dec.copy(), *moments())
for age in range(3):
    step.update_features(acts, errors, x, enc_rows, dec_rows, 1e-3, ages + age)
    step.adam_rows(dense_rows, normal(h, d), 1e-3, ages + age, True)
for arrays in (acts[:3], errors, enc_rows, dec_rows, dense_rows):
    print([hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays])
"""


def test_a_process_that_compiles_and_one_that_loads_come_to_the_same_bits(tmp_path):
    given = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", _STEPS], env=given, capture_output=True, text=True) for _ in range(2)]
    assert said[0].returncode == 0, said[0].stderr
    assert said[0].stdout == said[1].stdout and said[0].stdout.count("\n") == 5
