"""The documentation says what runs: commands, options, files and figures are checked against the code."""

from __future__ import annotations

import inspect
import json
import os
import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import heredity
from heredity.cli import app
from heredity.study import (
    AdamConfig,
    CarriedFeaturesConfig,
    CaseConfig,
    Config,
    ControlsConfig,
    CorpusConfig,
    EvaluationConfig,
    ExplainConfig,
    HubTaskConfig,
    LineageConfig,
    LoraConfig,
    MergeConfig,
    ModelConfig,
    ProbesConfig,
    RepeatConfig,
    ReportConfig,
    SAEConfig,
    ScratchConfig,
    SteeringConfig,
    StitchConfig,
    StudyConfig,
    TokenizerConfig,
    load_study,
)
from picture_stitch import picture
from summaries import MARKED, refreshed
from summaries_stitch import first

ROOT = Path(__file__).parent.parent
MADE_BY = "\nMade by `HEREDITY_UPDATE_DOCS=1 pytest tests/test_docs.py`.\n"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> dict[str, str]:
    """Help text of every command, by name."""
    runner = CliRunner()
    known = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    names = sorted(name for name, command in known.items() if not command.hidden)
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    return {name: runner.invoke(app, [name, "--help"], env=environment).output for name in names}


def rendered() -> str:
    """docs/cli.md as the command line itself would write it."""
    head = "# Command line\n\nWhat `heredity COMMAND --help` prints.\n" + MADE_BY
    parts = [f"\n## {name}\n\n```text\n{text.strip()}\n```\n" for name, text in commands().items()]
    return head + "".join(re.sub(r"[ \t]+$", "", part, flags=re.M) for part in parts)


def test_the_cli_page_is_what_the_commands_print():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        page.write_text(rendered())
    assert page.read_text() == rendered()


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
    """Marked parts are made from the summaries in docs/, each of a run of this code."""
    refreshed_text = refreshed(document.read_text(), ROOT / "docs")
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        document.write_text(refreshed_text)
    assert document.read_text() == refreshed_text
    marks = re.findall(r"^<!-- .* -->$", refreshed_text, flags=re.M)
    assert len(marks) == 2 * len(MARKED.findall(refreshed_text)), "a mark that nothing refreshes"
    assert all(len(body.strip()) > 0 for _, _, body in MARKED.findall(refreshed_text))


def test_the_picture_of_savings_is_of_the_recorded_run():
    recorded = json.loads((ROOT / "docs" / "stitching.json").read_text())
    drawn, made = ROOT / "docs" / "stitching.svg", picture(first(recorded))
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        drawn.write_text(made)
    assert drawn.read_text() == made


@pytest.mark.parametrize("name", ["demo", *map(str, sorted((ROOT / "studies").glob("*.toml")))])
def test_the_studies_that_travel_with_the_project_are_valid(name):
    assert load_study(name).edges


def test_nothing_names_a_machine():
    """No path of one machine, in any text of the project."""
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(home|root|work|tmp|mnt)/[a-z]")
    for path in [*DOCUMENTS, *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.toml")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{path.name}:{number}: {line}"


def rendered_api() -> str:
    """docs/api.md from the signatures and docstrings of the public names."""
    head = "# Public names\n\n`import heredity` loads none of them before it is used.\n" + MADE_BY
    parts = []
    for name in sorted((name for name in heredity.__all__ if not name.startswith("_")), key=str.lower):
        found = getattr(heredity, name)
        text = f"{_signature(name, found)}\n\n{inspect.getdoc(found)}"
        parts.append(f"\n## {name}\n\n`{found.__module__}`\n\n```text\n{text}\n```\n")
    return head + "".join(parts)


def _signature(name: str, found: object) -> str:
    if inspect.isclass(found) and hasattr(found, "model_fields"):
        return f"class {name}"
    return f"{'class ' if inspect.isclass(found) else ''}{name}{inspect.signature(found)}"  # pyright: ignore[reportArgumentType]


def test_the_api_page_is_what_the_docstrings_say():
    page = ROOT / "docs" / "api.md"
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        page.write_text(rendered_api())
    assert page.read_text() == rendered_api()


def rendered_study() -> str:
    """docs/study.md from the documentation of the settings."""
    head = "# The study file\n\nEvery key, with its default. An unknown key is refused by name.\n" + MADE_BY
    parts = [_table_of("(top level)", StudyConfig)]
    named = [("[corpus] NAME = {...}", CorpusConfig), ("[model.NAME]", ModelConfig), ("train = {...}", ScratchConfig)]
    named += [("merge = {...}", MergeConfig), ("lora = {...}", LoraConfig), ("[tokenizer]", TokenizerConfig)]
    named += [("[sae]", SAEConfig), ("[lineage]", LineageConfig), ("[controls]", ControlsConfig)]
    named += [("[evaluation]", EvaluationConfig), ("[case.NAME]", CaseConfig), ("[report]", ReportConfig)]
    named += [("[explain]", ExplainConfig), ("[repeat]", RepeatConfig), ("[stitch.NAME]", StitchConfig)]
    named += [("[stitch.NAME.adam]", AdamConfig), ("[stitch.NAME.probes]", ProbesConfig)]
    named += [("[stitch.NAME.probes.hub.TASK]", HubTaskConfig), ("[stitch.NAME.steering]", SteeringConfig)]
    named += [("[stitch.NAME.features]", CarriedFeaturesConfig)]
    return head + "".join(parts + [_table_of(title, config) for title, config in named])


def _table_of(title: str, config: type[Config]) -> str:
    rows = []
    for name, field in config.model_fields.items():
        plain = field.default is None or isinstance(field.default, str | int | float | tuple)
        default = "" if field.is_required() or not plain or field.default is None else f"`{json.dumps(field.default)}`"
        default = "needed" if field.is_required() else default
        rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def test_the_study_page_is_what_the_settings_say():
    page = ROOT / "docs" / "study.md"
    if os.environ.get("HEREDITY_UPDATE_DOCS"):
        page.write_text(rendered_study())
    assert page.read_text() == rendered_study()


def test_every_setting_is_documented():
    assert "|  |  |" not in rendered_study()
