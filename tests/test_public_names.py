"""The public names are sorted, exist, are documented, and cost nothing until they are used."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time

import pytest

import heredity


def test_public_names_are_sorted_and_exist():
    assert heredity.__all__ == sorted(heredity.__all__)
    for name in heredity.__all__:
        assert getattr(heredity, name) is not None


@pytest.mark.parametrize("name", [name for name in heredity.__all__ if not name.startswith("_")])
def test_every_public_name_is_documented_with_its_own_words(name):
    found = getattr(heredity, name)
    assert found.__module__.startswith("heredity."), f"{name} is not ours"
    assert inspect.getdoc(found) and len(inspect.getdoc(found) or "") > 20


def test_every_public_name_has_a_home_and_every_home_is_public():
    assert sorted([*heredity._HOMES, "__version__"]) == heredity.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = heredity.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_heredity_takes_under_a_second_and_no_torch():
    code = "import sys, heredity; assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - start < 1.0 + _bare_start()


def _bare_start() -> float:
    """What Python itself takes to start here."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import importlib.metadata"], check=True)
    return time.monotonic() - start
