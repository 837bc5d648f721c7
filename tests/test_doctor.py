"""`heredity doctor` measures the products that SAEs can be encoded with, and names the one that is taken."""

from __future__ import annotations

import json

import pytest

from heredity.kernels.paths import FORCE
from tiny import command


def test_doctor_measures_every_product_and_takes_one_first(monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    rows = json.loads(command("doctor", "--json", "--shape", "64x512").stdout)["products"]
    assert [row["product"] for row in rows] == ["amx", "int8", "bf16", "int16", "float32"]
    assert [row["taken"] for row in rows].count("first") == 1
    assert rows[-1]["gflops"] > 0 and all(row["gflops"] is None or row["gflops"] > 0 for row in rows)
    assert {(row["d_in"], row["d_sae"]) for row in rows} == {(64, 512)}


def test_doctor_obeys_what_the_environment_forces_and_prints_a_table(monkeypatch):
    monkeypatch.setenv(FORCE, "float32")
    lines = command("doctor", "--shape", "32x64").stdout.splitlines()
    (line,) = [line for line in lines if "float32" in line]
    assert line.split()[-1] == "first"


@pytest.mark.parametrize("shape", ["64", "64x", "0x5", "axb"])
def test_a_shape_that_is_none_is_refused(shape):
    assert "must be two numbers such as 1024x16384" in command("doctor", "--shape", shape, code=2).stderr
