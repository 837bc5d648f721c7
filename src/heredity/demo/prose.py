"""Plain English out of program documentation: docstrings, reStructuredText and Markdown, as text in and text out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

# What stands before a docstring: the line that ends in a colon, or nothing but comments since the file began.
_BELOW_COLON = re.compile(r"[^\n]*:[ \t]*(?:#[^\n]*)?\n[ \t]*([rRuU]?)")
_AT_THE_TOP = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*([rRuU]?)")
_QUOTES = '"""'
_BLANK = re.compile(r"\n[ \t]*\n")
_LABEL = re.compile(r"(?:[-*•+] +|\d+[.)] +|:\w+[^:\n]*:\s*|[\w*.`\[\]]+(?: *\([^)\n]*\))? *:\s+(?!:))")
_MARKUP = (
    ("`", re.compile(r":[\w:]+:`~?([^`<]+?)(?: *<[^>`]*>)?`"), r"\1"),
    ("](", re.compile(r"\[([^\]\n]+)\]\((?:[^()\s]|\([^()]*\))*\)"), r"\1"),
    ("`", re.compile(r"`+([^`<]+?)(?: *<[^>`]*>)?`+_{0,2}"), r"\1"),
    ("*", re.compile(r"(?<![\w*])(\*{1,2})(?=\w)([^*\n]+?)\1(?![\w*])"), r"\2"),
    ("  ", re.compile(r"\s+"), " "),
)
_NOT_PROSE = (">>>", "...", ".. ", "|", "+-", "+=", "#!", "$ ", "```", "@", "<", "![", "//", "Copyright", "SPDX")
_RARE_IN_PROSE = re.compile(r"[^A-Za-z ,.;:'\"()-]")
_COMMON_WORDS = (
    "the of to a an and in is are be for that this it as with on by or if not from when which will can has have was "
    "at you we they its into than then there these used one all any only may must should but do does no so more"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_FEWEST_WORDS = 8
_CODE_SIGNS = re.compile(r"[=<>{}\[\]\\|_^~%$#@]|\w\(|\.\w|::")


def docstrings(source: str) -> Iterator[str]:
    """Docstrings in triple double quotes of Python source text, in order, escapes resolved, indentation as written.

    Parsing with `ast` gives the same (a test compares) some twenty times slower: too slow for megabytes of prose.
    """
    start = source.find(_QUOTES)
    first = True
    while start >= 0:
        line = source.rfind("\n", 0, start)
        above = source.rfind("\n", 0, max(line, 0)) + 1
        before = (first and _AT_THE_TOP.fullmatch(source, 0, start)) or _BELOW_COLON.fullmatch(source, above, start)
        first = False
        stop = source.find(_QUOTES, start + 3)
        if before is None or stop < 0:
            start = stop
            continue
        body = source[start + 3 : stop]
        start = source.find(_QUOTES, stop + 3)
        if "\\" in body and before[1].lower() != "r":
            try:
                body = ast.literal_eval(_QUOTES + body + _QUOTES)
            except (SyntaxError, ValueError):
                continue
        yield body


def prose(text: str) -> str:
    """The paragraphs of `text` that are English sentences, unwrapped, markup removed, separated by blank lines.

    Code, doctests, tables, headings, signatures and lists of names are left out; the empty string when nothing stays.
    """
    sentences: list[str] = []
    for paragraph in _BLANK.split(text):
        sentences += filter(None, map(_sentence, _blocks(paragraph)))
    return "\n\n".join(sentences)


def _blocks(paragraph: str) -> Iterator[str]:
    """Runs of lines that belong together: a new run starts at a smaller indent, a list mark or below a label."""
    block: list[str] = []
    indent = 0
    for line in paragraph.split("\n"):
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith(_NOT_PROSE):
            return
        margin = len(line) - len(line.lstrip())
        starts = (
            margin < indent or _LABEL.match(stripped) or (margin > indent and " : " in block[-1] if block else False)
        )
        if block and starts:
            yield " ".join(block)
            block = []
        block.append(stripped)
        indent = margin
    if block:
        yield " ".join(block)


def _sentence(block: str) -> str | None:
    """The block as plain text when it reads as English, else `None`."""
    if block.count(" ") < _FEWEST_WORDS - 1 or block[-1] not in ".!?:)\"'":
        return None
    label = _LABEL.match(block)
    if label:
        block = block[label.end() :]
    if not block[:1].isupper():
        return None
    for mark, pattern, replacement in _MARKUP:
        if mark in block:
            block = pattern.sub(replacement, block)
    block = block.strip().removesuffix("::")
    words = block.lower().split(" ")
    if len(words) < _FEWEST_WORDS or sum(map(_COMMON.__contains__, words)) < 0.2 * len(words):
        return None
    rare = len(_RARE_IN_PROSE.findall(block))
    return block if rare <= 0.07 * len(block) and len(_CODE_SIGNS.findall(block)) <= 0.12 * len(words) else None
