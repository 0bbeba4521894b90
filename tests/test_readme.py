"""What the README, the pages of `docs` and the examples show is what there is."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import CliRunner

from crystal_fidelity.options import MIN_DISTANCE, MIN_VOLUME
from crystal_fidelity.validity import invalid_reason
from crystorus import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text):
    """Return the fenced blocks of a page with their language."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Return the lines of the blocks without a language, comments left out."""
    joined = "\n".join(block for language, block in blocks(text) if not language)
    return [line.split("#")[0].strip() for line in joined.replace("\\\n", " ").splitlines()]


SHOWN = sorted(
    {
        command
        for page in PAGES
        for command in commands(page.read_text())
        if command.startswith("crystorus ") and "…" not in command
    }
)


def targets_of_makefile():
    makefile = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_two_commands_of_a_newcomer_are_targets():
    first = [command for command in commands(README) if command.startswith("make ")][:2]
    assert first == ["make crystals", "make test"]
    assert {"crystals", "test"} <= targets_of_makefile()


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert "make test" in script
    assert any(line.startswith("make ") and "lint" in line.split() for line in script)


def test_every_make_command_anywhere_in_the_documents_exists():
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert len(named) >= 4
    assert named <= targets_of_makefile()


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_shown_is_understood(line):
    """Verbs and options exist; `--help` at the end keeps the command from being carried out."""
    result = CliRunner().invoke(cli.app, [*shlex.split(line)[1:], "--help"], prog_name="crystorus")
    assert result.exit_code == 0
    verb = " ".join(word for word in shlex.split(line)[1:3] if word in ("data", "get", "build"))
    assert (verb or shlex.split(line)[1]) in result.stdout
    for option in re.findall(r"--[a-z-]+", line):
        assert option in result.stdout


def test_an_option_that_does_not_exist_would_be_noticed():
    result = CliRunner().invoke(cli.app, ["sample", "LiFeO2", "--sed", "1"])
    assert result.exit_code == 2
    assert "--seed" in result.stderr


@pytest.mark.parametrize("code", [block for kind, block in blocks(README) if kind == "python"])
def test_the_python_of_the_readme_runs(code):
    found = {}
    exec(code, found)  # noqa: S102
    assert len(found["atoms"]) == len(found["structures"]) == 8
    assert len(found["trajectory"]) == 50


def test_the_makefile_refuses_an_old_python(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); '
        'exec(sys.argv[1])" "$2"\n'
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", ROOT, f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}", "crystals"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "python 3.9 is too old: crystorus needs 3.11" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_extras_are_installed_from_the_repository(page):
    """No index has the packages: a reader was told `pip install 'crystorus[hull]'` on one page."""
    assert not re.findall(r"crystorus\[[\w-]+\]", page.read_text())


def test_what_is_valid_is_defined_on_one_page():
    """Three pages once had three definitions, one with more than, one with at least 0.1 Å³."""
    saying = [p.name for p in PAGES if re.search(r"0\.1 Å³", p.read_text())]
    assert saying == ["fidelity.md", "glossary.md"]  # fidelity.md compares it with others' code
    words = (ROOT / "docs/glossary.md").read_text()
    assert f"closer than {MIN_DISTANCE} Å, and a cell of at least {MIN_VOLUME} Å³" in words
    assert not invalid_reason(MIN_VOLUME, MIN_DISTANCE)
    assert invalid_reason(0.999 * MIN_VOLUME, MIN_DISTANCE)
    assert invalid_reason(MIN_VOLUME, 0.999 * MIN_DISTANCE)
