from __future__ import annotations

import ast
import importlib.metadata
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import numpy
import pytest

from heredity.demo import installed
from heredity.demo.installed import docstrings, prose
from heredity.study import CorpusConfig
from heredity.text.corpora import documents
from heredity.text.sources import CorpusError

LIMIT = 200_000


@pytest.mark.parametrize("name", installed.NAMES)
def test_an_installed_source_is_the_same_each_time_and_another_for_another_seed(name):
    config = CorpusConfig(source=f"installed:{name}", max_bytes=LIMIT)
    first = list(documents(config, 0, Path()))
    assert sum(len(document.text.encode()) for document in first) == LIMIT
    assert first == list(documents(config, 0, Path()))
    assert first != list(documents(config, 1, Path()))
    assert all(sys.prefix not in document.source and ":" in document.source for document in first)
    assert {document.license for document in first} != {"unknown"}


def test_the_standard_library_parses_as_python_and_has_no_tests():
    for document in islice(documents(CorpusConfig(source="installed:python-stdlib"), 0, Path()), 40):
        assert document.license == "PSF-2.0"
        assert "/test" not in document.source
        ast.parse(document.text)


def test_english_has_no_doctests_and_no_paragraph_twice():
    found = documents(CorpusConfig(source="installed:python-english", max_bytes=LIMIT), 0, Path())
    paragraphs = [paragraph for document in found for paragraph in document.text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not any(">>>" in paragraph for paragraph in paragraphs)
    words = " ".join(paragraphs).lower().split()
    assert words.count("the") > 0.04 * len(words)


def test_missing_packages_are_named_with_a_way_out(monkeypatch):
    monkeypatch.setattr(installed, "_include_folder", lambda _: None)
    with pytest.raises(CorpusError, match="installed:cpp-headers: .*install torch"):
        next(documents(CorpusConfig(source="installed:cpp-headers"), 0, Path()))


@pytest.mark.parametrize("module", ["argparse", "statistics", "_pydecimal", "tarfile", "asyncio/tasks"])
def test_docstrings_found_by_search_are_those_found_by_parsing(module):
    other = 'x = """no"""\ndef f():  # why\n    r"""Yes \\d."""\n    y = """no"""\n\nclass A:\n    """A \\"B\\"."""\n'
    assert list(docstrings(other)) == ["Yes \\d.", 'A "B".'], "other strings are passed over"
    source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    parsed = {text for node in nodes if (text := ast.get_docstring(node, clean=False))}
    quoted = {text for text in parsed if f'"""{text}"""' in source}
    assert len(quoted) > 10
    found = set(docstrings(source))
    assert found <= parsed
    assert len(found & quoted) >= 0.95 * len(quoted)


def test_prose_keeps_sentences_and_drops_the_rest():
    text = """
    Return the largest value that is in the list,
    as :func:`max` does for *all* of the ``values``.

    >>> largest([1, 2])
    2

    Parameters
    ----------
    values : list of float
        The values to look at, of which there must be at least one.

    x = [y for y in z if y.is_good(a=1, b=2)] + some.other.thing(of, the, list).
    """
    assert prose(text).split("\n\n") == [
        "Return the largest value that is in the list, as max does for all of the values.",
        "The values to look at, of which there must be at least one.",
    ]


def test_what_a_package_carries_in_its_own_folder_is_not_installed(tmp_path, monkeypatch):
    """As in processes that Ray starts, whose path begins with such a folder."""
    caches = installed._distributions, installed._requirements, installed._owner, installed._providers
    expected = installed.versions("python-english")
    carried = tmp_path / "site-packages" / "carrier" / "thirdparty_files"
    (carried / "numpy-0.0.1.dist-info").mkdir(parents=True)
    (carried / "numpy-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(carried))
    for one in caches:
        one.cache_clear()
    assert importlib.metadata.version("numpy") == "0.0.1"
    assert installed.versions("python-english") == expected
    assert installed._owner("numpy")[0] == f"numpy-{numpy.__version__}"
    for one in caches:
        one.cache_clear()
