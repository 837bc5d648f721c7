"""Trainings whose steps two processes divide end in the bits of one process, and what divides them says so."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heredity.engine.ranks import ALONE, RankError, Ranks, ranks
from heredity.kernels.encode import sparse_encode
from heredity.sae import divided
from heredity.sae.model import new_sae
from heredity.sae.step import NAMES
from heredity.sae.train import training
from heredity.study import SAEConfig
from ranks import ended, launched

WIDTH, FEATURES, ROWS, STEPS = 24, 600, 130, 40  # 130 rows: 65 each, and no multiple of a vector
KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {},
    "relu": {"l0": (4, 6)},
    "jumprelu": {"l0": (4, 6)},
    "subtract_mean": {"subtract_mean": True},
    "continued": {},
}


def batch(step: int) -> torch.Tensor:
    """Sparse sums of 40 directions; a function of the step alone."""
    draw = np.random.default_rng([7, step])
    directions = np.random.default_rng(7).standard_normal((40, WIDTH))
    strengths = draw.exponential(size=(ROWS, 40)) * (draw.random((ROWS, 40)) < 0.08)
    return torch.from_numpy((strengths @ directions + 0.05 * draw.standard_normal((ROWS, WIDTH))).astype(np.float32))


def trained(kind: str, every: Ranks) -> dict[str, int]:
    """Checksums of all that a training leaves in its state."""
    activation: Any = kind if kind in ("topk", "batchtopk", "relu", "jumprelu") else "topk"
    config = SAEConfig(activation=activation, k=4, lr=3e-3, resample_every=8, **KINDS[kind])
    sae = new_sae(WIDTH, FEATURES, activation, 4, torch.Generator().manual_seed(1))
    *_, state = training(sae, batch, config, STEPS, 3, continued=kind == "continued", ranks=every)
    groups = ("weights", "first", "second")
    tensors = {f"{of} {name}": getattr(getattr(state, of), name) for of in groups for name in NAMES}
    tensors |= {
        "last_fired": state.last_fired,
        "sae": sae.W_enc,
        "rows": torch.tensor([row.loss for row in state.rows]),
    }
    assert kind != "topk" or any(row.resampled for row in state.rows)
    return {name: zlib.crc32(tensor.detach().contiguous().numpy().data) for name, tensor in tensors.items()}


def as_rank(folder: Path) -> None:
    """What each process does: all trainings, and how many rows it encoded at a time."""
    torch.set_num_threads(1)
    rows, found = set[int](), {}
    divided.sparse_encode = lambda x, *more: (rows.add(len(x)), sparse_encode(x, *more))[1]
    with ranks() as every:
        for kind in KINDS:
            found[kind] = trained(kind, every)
    (folder / f"{every.number}.json").write_text(json.dumps([found, sorted(rows)]))


def test_two_processes_end_in_the_bits_of_one_and_each_encodes_half(tmp_path):
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]}\n"
    code += "import pathlib, test_divided; test_divided.as_rank(pathlib.Path('.'))"
    for exit_code, _, err in ended(launched(["-c", code], 2, tmp_path)):
        assert exit_code == 0, err
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {kind: trained(kind, ALONE) for kind in KINDS}
    finally:
        torch.set_num_threads(before)
    for number in range(2):
        found, rows = json.loads((tmp_path / f"{number}.json").read_text())
        assert found == expected
        assert rows == [ROWS // 2]


def test_one_process_is_alone_and_has_all_of_the_work(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with ranks() as every:
        assert every is ALONE and every.own(7) == (0, 7) and every.told({"a": 1}) == {"a": 1}
        every.agree(3, "here")
        every.meet()


def test_shares_cover_everything_once_and_the_last_is_never_empty():
    for count in range(1, 7):
        every = Ranks()
        every.count = count
        for n in range(1, 20):
            edges = every.edges(n)
            assert edges[0] == 0 and edges[-1] == n and edges == sorted(edges) and edges[-2] < n


APART = """
import numpy as np
from heredity.engine.ranks import RankError, ranks
try:
    with ranks() as every:
        assert every.told(every.number + 5) == 5 and every.told(every.number + 5, by=1) == 6
        every.agree(7, "step 1")
        every.agree(every.number, "step 2")
except RankError as error:
    print(error)
"""


def test_processes_that_come_to_different_numbers_are_told_where(tmp_path):
    for code, out, err in ended(launched(["-c", APART], 2, tmp_path)):
        assert code == 0, err
        assert out.startswith("step 2: the processes have come to different numbers; give them machines of one kind")


COPIED = """
import pathlib
from heredity.engine import ranks
ranks._PIECE = 3
with ranks.ranks() as here:
    folder = pathlib.Path(str(here.number))
    folder.mkdir()
    if here.number == 0:
        (folder / "a").mkdir()
        (folder / "a/b").write_bytes(b"seven b")
        (folder / "empty").touch()
    here.copy(folder)
    print(sorted((str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*") if path.is_file()))
"""


def test_the_files_of_the_first_come_to_the_others_whole(tmp_path):
    for code, out, err in ended(launched(["-c", COPIED], 2, tmp_path)):
        assert code == 0, err
        assert out.strip() == str([("a/b", b"seven b"), ("empty", b"")])


ALONE_AT_LAST = """
import os
from heredity.engine.ranks import RankError, ranks
try:
    with ranks() as every:
        every.meet()
        assert "RANK" not in os.environ and "WORLD_SIZE" not in os.environ
        if every.number == 1:
            os._exit(9)
        every.meet()
except RankError as error:
    print(error)
"""


def test_a_process_that_has_lost_another_says_so(tmp_path):
    (code, out, err), (other, _, _) = ended(launched(["-c", ALONE_AT_LAST], 2, tmp_path))
    assert (code, other) == (0, 9), err
    assert out.startswith("another process of this command has ended") and "goes on from here" in out


def test_a_rank_error_is_one_line_of_the_package():
    assert issubclass(RankError, ValueError)
    with pytest.raises(ValueError, match="x"):
        raise RankError("x")
