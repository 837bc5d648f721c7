"""Every medium of a result: terminal, `summary.json`, export, documents and the report page.

Each is a function of rows and their declaration (`heredity.tables`), and writes values through `heredity.format`.
"""


def seen(text: str) -> str:
    """Text that does nothing to a terminal: control and invisible characters as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
