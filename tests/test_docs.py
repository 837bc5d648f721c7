"""The documentation says what runs: commands, options, files and figures are checked against the code."""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import documents as docs
import heredity
from heredity import study
from heredity.cli import app

SETTINGS = [
    ("(top level)", study.StudyConfig),
    ("[corpus] NAME = {...}", study.CorpusConfig),
    ("[model.NAME]", study.ModelConfig),
    ("train = {...}", study.ScratchConfig),
    ("merge = {...}", study.MergeConfig),
    ("lora = {...}", study.LoraConfig),
    ("quantize = {...}", study.QuantizeConfig),
    ("prune = {...}", study.PruneConfig),
    ("edit = {...}", study.EditConfig),
    ("[tokenizer]", study.TokenizerConfig),
    ("[reading]", study.ReadingConfig),
    ("[sae]", study.SAEConfig),
    ("[verdicts]", study.VerdictsConfig),
    ("[references]", study.ReferencesConfig),
    ("[lineage]", study.LineageConfig),
    ("[controls]", study.ControlsConfig),
    ("[evaluation]", study.EvaluationConfig),
    ("[case.NAME]", study.CaseConfig),
    ("[direction.NAME]", study.DirectionConfig),
    ("[report]", study.ReportConfig),
    ("[explain]", study.ExplainConfig),
    ("[repeat]", study.RepeatConfig),
    ("[stitch.NAME]", study.StitchConfig),
    ("[stitch.NAME.adam]", study.AdamConfig),
    ("[stitch.NAME.probes]", study.ProbesConfig),
    ("[stitch.NAME.probes.sets.SET]", study.ProbeSetConfig),
    ("[stitch.NAME.steering]", study.SteeringConfig),
    ("[stitch.NAME.features]", study.CarriedFeaturesConfig),
]

ROOT = Path(__file__).parent.parent
MADE_BY = "\nMade by `HEREDITY_UPDATE_DOCS=1 pytest tests/test_docs.py`.\n"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def same(path: Path, made: str) -> None:
    """A file holds what is made now; HEREDITY_UPDATE_DOCS=1 writes it."""
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        path.write_text(made)
    assert path.read_text() == made


def commands() -> dict[str, str]:
    """Help text of every command, by name."""
    runner = CliRunner()
    known = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    names = sorted(name for name, command in known.items() if not command.hidden)
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    return {name: runner.invoke(app, [name, "--help"], env=environment).output for name in names}


_KEYS = "Every key, with its default. An unknown key is refused by name."
_PAPERS = (
    "heredity implements two papers. Here is every element of them, in our own words with the papers' values: where\n"
    "it stands in the paper, what does it here, what differs and why, and where a run's result is. *reproduce: ...*\n"
    "is a part of the table of figures that `heredity reproduce` prints, or its table `scale`, `deviations` or\n"
    "`claims`; a *picture* is one that it draws; all other tables are in [tables](tables.md). That recorded runs are\n"
    "smaller than the papers' is no deviation here: `scale` and `deviations` say by how much. Places called cards,\n"
    "code and hub are what was published beside the first paper; a review is one of the paper whose table it is in."
)
_TABLES = "Every analysis: its definition, and the tables it fills. Key columns in bold."
PAGES = {
    "cli.md": ("Command line", "What `heredity COMMAND --help` prints.", lambda: docs.commands(commands())),
    "api.md": (
        "Public names",
        "`import heredity` loads none of them before it is used.",
        lambda: docs.names(heredity),
    ),
    "study.md": ("The study file", _KEYS, lambda: docs.settings(SETTINGS)),
    "tables.md": ("Results", _TABLES, docs.results),
    "papers.md": ("The papers, element by element", _PAPERS, lambda: f"\n{docs.elements()}"),
}
"""Pages made whole from the code: title, first line, text."""
BESIDE = {
    "beside_tracking.md": "tracking_cpu.json",
    "beside_joint.md": "tracking_joint.json",
    "beside_stitching.md": "stitching.json",
    "beside_pretrained.md": "stitching_pretrained.json",
}
"""Recorded runs beside their papers."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_from_the_code_is_what_the_code_says(name):
    title, first, text = PAGES[name]
    same(ROOT / "docs" / name, f"# {title}\n\n{first}\n{MADE_BY}{text()}")


def test_every_command_takes_json_and_debug():
    for name, text in commands().items():
        assert "--json" in text and "--debug" in text, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_in_the_documents_exist(document):
    known = commands()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", document.read_text(), flags=re.S))
    for line in re.findall(r"^heredity (.+)$", shell, flags=re.M):
        words = line.split("#")[0].split()
        assert words[0] in known, line
        for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
            assert option in known[words[0]], f"{option} in: {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_in_the_documents_exist(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_of_functions_in_the_documents_exist(document):
    for name in set(re.findall(r"`(heredity(?:\.\w+)+)`", document.read_text())):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = import_module(".".join(parts[:cut]))
            except ImportError:
                continue
            for part in parts[cut:]:
                found = getattr(found, part)
            break


def test_the_readme_shows_the_two_commands_first():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make demo" in screen and "make test" in screen


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if "<!-- " in path.read_text()], ids=lambda path: path.name
)
def test_figures_are_those_of_the_recorded_runs(document: Path):
    """Marked parts are made from the summaries in docs/, each of a run of the study that the document names."""
    text = docs.refreshed(document.read_text(), ROOT / "docs")
    same(document, text)
    marks = re.findall(r"^<!-- .* -->$", text, flags=re.M)
    assert len(marks) == 2 * len(docs.MARKED.findall(text)), "a mark that nothing refreshes"
    assert all(len(body.strip()) > 0 for *_, body in docs.MARKED.findall(text))


@pytest.mark.parametrize("page", BESIDE)
def test_a_run_beside_its_paper_is_the_recorded_one(page):
    """As `heredity reproduce STUDY -o PAGE` wrote it; pictures are drawn from tables too large for a summary."""
    path = ROOT / "docs" / page
    found = re.findall(r"^!\[(.+)\]\((.+)\)$", path.read_text(), flags=re.M)
    pictures = {title: path.parent / unquote(file) for title, file in found}
    assert pictures and all(file.is_file() for file in pictures.values())
    same(path, docs.beside(json.loads((ROOT / "docs" / BESIDE[page]).read_text()), pictures))


def test_the_picture_of_savings_is_of_the_recorded_run():
    recorded = json.loads((ROOT / "docs" / "stitching.json").read_text())
    same(ROOT / "docs" / "stitching.svg", docs.picture(recorded, "small-large"))


@pytest.mark.parametrize("name", ["demo", *map(str, sorted((ROOT / "studies").glob("*.toml")))])
def test_the_studies_that_travel_with_the_project_are_valid(name):
    found = study.load_study(name)
    assert found.edges or found.config.stitch


def test_nothing_names_a_machine():
    """No path of one machine, in any text of the project."""
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(home|root|work|tmp|mnt)/[a-z]")
    for path in [*DOCUMENTS, *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.toml")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{path.name}:{number}: {line}"


def test_every_setting_is_documented():
    assert "|  |  |" not in docs.settings(SETTINGS)
