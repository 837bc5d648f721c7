"""Style and script without what only their readers need: comments, indentation and optional spaces."""

from __future__ import annotations

import re

_WHOLE = re.compile(
    r'"(?:\\.|[^"\\])*"'  # strings
    r"|//[^\n]*|/\*.*?\*/"  # comments
    r"|/(?![ =])(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n\[])+/\w*",  # regular expressions; a division has spaces around it
    re.DOTALL,
)
_TEMPLATE = re.compile(r"(?:\\.|[^`\\$]|\$(?!\{))*(`|\$\{)", re.DOTALL)
_CODE = re.compile(r'[^"`/{}]+(?:/ [^"`/{}]+)*|/')


def squeeze_script(source: str) -> str:
    """The same program; strings, templates and regular expressions stay as they are, and so does every line end."""
    out: list[str] = []
    braces: list[int] = []  # for every template that we are in an expression of: the braces open in the expression
    at, template = 0, False
    while at < len(source):
        mark = source[at]
        if template:
            match = _TEMPLATE.match(source, at)
            if match is None:
                raise ValueError("the script ends inside a template literal; close it")
            out.append(match[0])
            at, template = match.end(), False
            if match[1] == "${":
                braces.append(0)
        elif mark in "`{}":
            out.append(mark)
            at += 1
            template = mark == "`" or (mark == "}" and braces[-1:] == [0])
            if braces and template and mark == "}":
                braces.pop()
            elif braces and not template:
                braces[-1] += 1 if mark == "{" else -1
            if not template:
                at += len(source[at:]) - len(source[at:].lstrip(" "))
        elif match := _WHOLE.match(source, at):
            out.append("" if match[0].startswith(("//", "/*")) else match[0])
            at = match.end()
        else:
            match = _CODE.match(source, at)
            assert match is not None  # every character is code, a mark or the start of something whole
            code, at = _spaces(match[0]), match.end()
            out.append(code.rstrip(" ") if source[at : at + 1] in ("{", "}") else code)
    return re.sub(r"\n\s*\n", "\n", "".join(out))


def _spaces(code: str) -> str:
    code = re.sub(r"\n +", "\n", code)
    code = re.sub(r" *([=<>!&|?:;,()\[\]*]) *| (/) ", r"\1\2", code)
    return re.sub(r" ([+-]) (?![+-])", r"\1", code)  # a sign may follow: a + +b is not a++b


def squeeze_style(source: str) -> str:
    """The same style sheet."""
    source = re.sub(r"/\*.*?\*/|^ +", "", source, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r" *([{};,]) *|(:) +", r"\1\2", source).replace(";}", "}")
