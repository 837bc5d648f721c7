"""Imports run one way: a module may import only from rooms that stand before its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import heredity

PACKAGE = Path(heredity.__file__).parent

# From the ground up. A module belongs to the room with the longest name it starts with.
# Rooms of one line do not see each other.
ROOMS = [
    ["errors", "lm.reading"],
    ["metrics", "tables", "lm.hooks", "kernels", "papers", "text.letters", "text.patterns"],
    ["format"],
    ["engine.workers", "engine.ranks"],
    ["features.acts"],
    ["features.correlate", "features.hypothesis"],
    ["features.fates", "features.null", "features.families"],
    ["study"],
    ["text.readers", "text.forms"],
    ["text.sources"],
    ["demo"],
    ["engine.shared"],
    ["engine.snapshot"],
    ["engine.store", "text"],
    ["lm", "sae.model"],
    ["lm.activations", "sae.formats"],
    ["sae", "features.collect"],
    ["features"],
    ["explain", "synthetic", "stitch"],
    ["engine"],
    ["analyses"],
    ["notebook"],
    ["results", "two_models", "seed_proof"],
    ["papers.beside", "papers.elements"],
    ["papers.tracking", "papers.stitching"],
    ["papers.claims", "papers.pictures"],
    ["papers.reproduction"],
    ["show"],
    ["serve", "neuronpedia"],
    ["cli"],
]
# What shows results reads tables, a run, and the declarations of the analyses: no maths.
SHOWN = ("show", "errors", "tables", "format", "engine.store", "engine.stage", "study", "analyses", "results", "papers")
HEAVY = {"torch", "transformers", "numba", "scipy", "datasets", "sklearn"}


# Questions to a run get it as an argument: they name its type, and the run calls them.
ASK = ("query", "explain_on_demand", "asked", "feature_columns", "inspector", "notes", "raters", "trial")
TYPED = {(f"analyses.{name}", "results") for name in ASK}


def room_of(module: str) -> int | None:
    """Rank of the room a module (without the package's name) belongs to."""
    named = [
        (len(room), rank)
        for rank, rooms in enumerate(ROOMS)
        for room in rooms
        if module == room or module.startswith(room + ".")
    ]
    return max(named)[1] if named else None


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = ".".join(("heredity", *path.relative_to(PACKAGE).parts[: -node.level])) if node.level else ""
            module = ".".join(part for part in (folder, node.module) if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("heredity.") for name in found if name.startswith("heredity.")}


def test_every_module_belongs_to_a_room():
    modules = [module_of(path) for path in PACKAGE.rglob("*.py")]
    outside = [name for name in modules if name and room_of(name) is None]
    assert set(outside) <= {"__init__", "__main__"}, outside


def test_no_module_imports_from_a_room_above_its_own():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = room_of(module_of(path))
        if own is None:
            continue
        for name in imports_of(path):
            if (module_of(path), name.removesuffix(".Run")) in TYPED:
                continue
            rank = room_of(name)
            if rank is not None and (rank > own or (rank == own and not same_room(module_of(path), name))):
                wrong.append(f"{module_of(path)} imports {name}")
    assert wrong == []


def test_what_shows_results_sees_no_model_and_no_maths():
    for path in (PACKAGE / "show").rglob("*.py"):
        assert not {*HEAVY, "numpy"} & third_party(path), path
        others = {name for name in imports_of(path) if not any(f"{name}.".startswith(f"{room}.") for room in SHOWN)}
        assert others <= {"__version__"}, (path, others)


@pytest.mark.parametrize(
    "code",
    [
        "import heredity",
        "import heredity.analyses, heredity.results, heredity.two_models",
        "from heredity.analyses import Pipeline; from heredity.study import load_study; Pipeline(load_study('demo'))",
    ],
    ids=["package", "analyses", "planning"],
)
def test_nothing_heavy_is_imported_before_it_is_used(code):
    check = f"import sys; {code}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_nothing_but_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


def module_of(path: Path) -> str:
    """`sae.model` for src/heredity/sae/model.py; a package's own file has the package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def same_room(module: str, other: str) -> bool:
    """Whether two modules stand in the very same room."""
    rank = room_of(module)
    assert rank is not None
    return any(all(name == room or name.startswith(room + ".") for name in (module, other)) for room in ROOMS[rank])


def third_party(path: Path) -> set[str]:
    """Names of the top-level packages a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
