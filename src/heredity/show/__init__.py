"""Every medium of a result: terminal, `summary.json`, export, documents and the report page.

Each is a function of rows and their declaration (`heredity.tables`), and writes values through `heredity.format`.
"""
