import json
import subprocess
import sys

import ase.io
import pytest
from prototypes import everything, rattled, simple_cubic

from crystal_fidelity.cli import RENAMED, app
from crystal_fidelity.commandline import run as run_command
from crystal_fidelity.structures import to_atoms


@pytest.fixture
def files(tmp_path):
    truth = everything()
    guesses = [rattled(c, 0.05, i) for i, c in enumerate(truth)]
    guesses[2] = simple_cubic(0.48)
    ase.io.write(tmp_path / "made.extxyz", [to_atoms(c) for c in guesses], format="extxyz")
    ase.io.write(tmp_path / "real.extxyz", [to_atoms(c) for c in truth], format="extxyz")
    return tmp_path


@pytest.fixture
def run(capsys):
    """The command line: exit status, standard output, standard error in one line."""

    def call(*arguments):
        status = run_command(app, [str(a) for a in arguments], renamed=RENAMED)
        streams = capsys.readouterr()
        return status, streams.out, " ".join(streams.err.split())

    return call


def test_compare_prints_a_table_and_writes_everything(files, run):
    pytest.importorskip("smact")
    report = files / "out.json"
    arguments = (files / "made.extxyz", files / "real.extxyz", "--workers", 1, "--json", report)
    status, out, _ = run("compare", *arguments, "--metrics", "validity,density,match")
    assert status == 0
    assert "density EMD" in out
    content = json.loads(report.read_text())
    scores = {s["name"]: s for s in content["scores"]}
    assert scores["validity"]["value"] == pytest.approx(5 / 6)
    assert scores["validity"]["real"] == 1.0
    assert scores["match rate, all"]["value"] == pytest.approx(5 / 6)
    assert scores["match rate, all"]["n_reference"] == 6
    assert all(s["protocol"] for s in content["scores"])


def test_brackets_in_a_path_are_no_markup(files, run):
    path = files / "made[bold]and[" / "x].extxyz"
    path.parent.mkdir()
    path.write_bytes((files / "made.extxyz").read_bytes())
    status, out, error = run("validity", path, "--workers", 1)
    assert status == 0
    assert "unexpected" not in error
    assert "made[bold]and[/x].extxyz" in "".join(out.split())


@pytest.mark.parametrize(
    ("option", "value"), [("--timeout", "nan"), ("--timeout", 0), ("--best-of", 0), ("--seed", -1)]
)
def test_settings_beyond_their_limits_are_refused(files, run, option, value):
    path = files / "real.extxyz"
    for command in ("compare", "match"):
        status, _, error = run(command, path, path, option, value, "--workers", 1)
        assert status in (1, 2)
        assert f"{option} is {value}: give" in error
        assert "unexpected" not in error


def test_validity_names_the_invalid(files, run):
    report = files / "out.json"
    status, _, error = run("validity", files / "made.extxyz", "--workers", 1, "--json", report)
    assert status == 0
    assert "invalid: made-2: contact 0.480 Å" in error
    rows = json.loads(report.read_text())["structures"]
    assert [r["valid"] for r in rows] == [True, True, False, True, True, True]
    assert "0.480" in rows[2]["reason"]


def test_match_writes_every_pair(files, run):
    report = files / "out.json"
    sides = files / "made.extxyz", files / "real.extxyz"
    assert run("match", *sides, "--workers", 1, "--json", report)[0] == 0
    pairs = json.loads(report.read_text())["pairs"]
    assert [p["status"] for p in pairs].count("matched") == 5
    assert pairs[2]["status"] == "composition"


@pytest.mark.parametrize("words", [("--protocol", "cdvae"), ("--protocol=cdvae",)])
def test_an_option_that_is_gone_is_named_and_ignored(files, run, words):
    pytest.importorskip("smact")
    arguments = ("match", files / "made.extxyz", files / "real.extxyz", "--workers", 1)
    status, out, error = run(*arguments[:2], *words, *arguments[2:])
    assert (status, out) == run(*arguments)[:2]
    assert "match rate, valid" in out
    assert "--protocol is gone: match rates by all protocols" in error


def test_errors_are_one_sentence_with_a_remedy(files, run):
    sides = files / "made.extxyz", files / "real.extxyz"
    status, out, error = run("compare", *sides, "--metrics", "fidelity")
    assert (status, out) == (2, "")
    assert "choose from validity" in error
    status, out, error = run("match", *sides, "--best-of", "4")
    assert (status, out) == (1, "")
    assert "6 generated structures and 6 references: " in error
    assert "needs 24" in error
    assert run("compare", *sides, "--best-of", "x")[0] == 2


def test_help_names_every_command_and_loads_nothing_heavy():
    program = (
        "import sys, crystal_fidelity.cli as c\n"
        "c.app(['--help'], result_action='return_value')\n"
        "c.app(['compare', '--help'], result_action='return_value')\n"
        "print([m for m in ('scipy', 'pymatgen', 'ase', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for word in ("compare", "validity", "match", "features", "frechet", "weights", "study"):
        assert f" {word} " in done.stdout
    assert done.stdout.endswith("[]\n")


def test_options_reach_the_record(files, run):
    report = files / "out.json"
    sides = files / "made.extxyz", files / "real.extxyz"
    words = "--metrics density,validity --known x.csv --best-of 2 --timeout 9 --seed 4"
    (files / "x.csv").touch()
    words = words.replace("x.csv", str(files / "x.csv")).split()
    assert run("compare", *sides, *words, "--workers", 1, "--json", report)[0] == 0
    settings = json.loads(report.read_text())["settings"]
    assert settings["metrics"] == ["validity", "density"]
    assert settings["known"] == str(files / "x.csv")
    assert (settings["best_of"], settings["timeout_s"]) == (2, 9.0)
    assert (settings["seed"], settings["workers"]) == (4, 1)


def test_progress_goes_to_standard_error_only(files):
    program = "from crystal_fidelity.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "validity", str(files / "made.extxyz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "validity" in done.stdout
    assert "invalid: made-2" in done.stderr
    assert "reading" not in done.stdout


def test_distributions_as_numbers_are_the_densities_themselves(files, run):
    from crystal_fidelity.distances import densities
    from crystal_fidelity.reading import read_structures

    found = files / "out.json"
    sets = files / "made.extxyz", files / "real.extxyz"
    assert run("study", "distributions", *sets, "--energy", "none", "--json", found)[0] == 0
    (density,) = json.loads(found.read_text())["distributions"]
    assert (density["name"], density["unit"]) == ("density", "g/cm³")
    for path in sets:
        assert density["values"][path.name] == pytest.approx(densities(read_structures(path)))


@pytest.mark.parametrize("words", [[], ["--json", "out.json"]])
def test_distributions_need_somewhere_to_go_and_sets_of_different_names(files, words, run):
    made = files / "made.extxyz"
    status, _, error = run("study", "distributions", made, made, "--energy", "none", *words)
    assert status == 1
    assert "nothing to write" in error or "the same file name" in error


def test_the_module_runs_as_a_program(files):
    done = subprocess.run(
        [sys.executable, "-m", "crystal_fidelity", "validity", str(files / "made.extxyz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "validity" in done.stdout
