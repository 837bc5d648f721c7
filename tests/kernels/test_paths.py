"""The screen is chosen by what products take, can be forced, and is never one that this machine lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.kernels import paths, screens
from heredity.kernels.encode import sparse_encode, weight_screen
from heredity.kernels.paths import FORCE, Costs


@pytest.fixture(autouse=True)
def measured_anew(monkeypatch):
    forget = paths._measured.cache_clear
    monkeypatch.delenv(FORCE, raising=False)
    forget()
    yield
    forget()


def refuse(*given: object) -> None:
    raise RuntimeError("no such product on this processor")


@pytest.fixture
def generic(monkeypatch) -> None:
    """A machine without bfloat16 products, and a torch without oneDNN."""
    monkeypatch.setattr(screens, "bfloat16_product", refuse)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("amx", "int8", "bf16", "int16", "expected"),
    [
        (np.inf, 1.0, 2.0, 3.0, ("int8", "bf16", "int16", "float32")),
        (np.inf, 3.0, 2.0, 9.0, ("bf16", "float32")),
        (np.inf, 1.0, 9.0, 9.0, ("int8", "float32")),
        (np.inf, np.inf, 9.0, 2.0, ("int16", "float32")),
        (3.9, 3.9, 3.9, 3.9, ("float32",)),
        (np.inf, np.inf, np.inf, np.inf, ("float32",)),
        (0.5, 1.0, 2.0, 3.0, ("amx", "bf16", "int16", "float32")),
        (1.0, 1.0, 2.0, 3.0, ("int8", "bf16", "int16", "float32")),
        (0.5, np.inf, 9.0, 3.0, ("amx", "int16", "float32")),
    ],
)
def test_the_fastest_screen_comes_first_and_only_exacter_and_slower_ones_follow(
    monkeypatch, amx, int8, bf16, int16, expected
):
    monkeypatch.setattr(paths, "_measured", lambda *shape: Costs(amx, int8, bf16, int16, 4.0, 20.0))
    assert paths.screens(64, 512) == expected
    for kind, others in zip(expected, (expected[i:] for i in range(1, 5)), strict=False):
        assert paths.exacter(kind, 64, 512) == others


def test_an_exacter_screen_pays_when_it_spares_more_than_its_product_takes(monkeypatch):
    monkeypatch.setattr(paths, "_measured", lambda *shape: Costs(np.inf, 1.0, 2.0, np.inf, 4.0, 100.0))
    assert paths.pays("float32", "int8", 0.031, 64, 512) and not paths.pays("float32", "int8", 0.029, 64, 512)


def test_costs_are_measured_once_and_are_those_of_real_products():
    costs = paths.costs_of(48, 600)
    assert 0 < costs.float32 < np.inf and 0 < costs.dot < np.inf
    assert paths.costs_of(48, 600) is costs
    assert paths.screens(48, 600)[-1] == "float32"


def test_the_environment_forces_a_screen_and_a_wrong_word_is_refused(monkeypatch):
    monkeypatch.setenv(FORCE, "float32")
    assert paths.screens(64, 512) == ("float32",) and weight_screen(torch.ones(512, 64)).kind == "float32"
    monkeypatch.setenv(FORCE, "fp8")
    with pytest.raises(ValueError, match="=fp8 is not known; choose one of amx, int8, bf16, int16, float32"):
        paths.screens(64, 512)


def test_a_screen_that_is_missing_cannot_be_forced(monkeypatch, generic):
    monkeypatch.setenv(FORCE, "bf16")
    with pytest.raises(ValueError, match="no such product"):
        paths.screens(64, 512)


def test_products_of_int8_that_have_no_instruction_are_not_timed(monkeypatch):
    monkeypatch.setattr(paths, "HAS_FOURS", False)
    assert paths.costs_of(64, 512).int8 == np.inf and paths.costs_of(64, 512).int16 < np.inf


def test_registers_for_matrices_that_the_system_does_not_give_are_not_used(monkeypatch):
    monkeypatch.setattr(paths, "HAS_SQUARES", False)
    assert paths.costs_of(64, 512).amx == np.inf and "amx" not in paths.screens(64, 512)
    monkeypatch.setenv(FORCE, "amx")
    with pytest.raises(ValueError, match="HEREDITY_SCREEN=amx: no such product of 64 inputs here"):
        paths.screens(64, 512)


def test_rows_too_long_for_int32_sums_are_not_multiplied_in_int8(monkeypatch):
    monkeypatch.setattr(paths, "HAS_FOURS", True)
    assert paths._looked_at("int8", torch.ones(2, screens.WIDEST_INT8 + 1), torch.ones(3, 1)) is None


def test_a_machine_without_torchs_fast_products_encodes_to_the_same_bits(request):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(300, 64, generator=generator), torch.randn(2048, 64, generator=generator)
    given = x, weight, torch.full((2048,), -20.0)
    here = [sparse_encode(*given, k) for k in (None, 5)]
    request.getfixturevalue("generic")
    paths._measured.cache_clear()
    assert paths.screens(64, 2048)[-1] == "float32" and "bf16" not in paths.screens(64, 2048)
    for k, expected in zip((None, 5), here, strict=True):
        for array, other in zip(sparse_encode(*given, k)[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(array, other)
