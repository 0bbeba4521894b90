import json
import subprocess
import sys

import ase.io
import pytest
from prototypes import everything, rattled, simple_cubic
from typer.testing import CliRunner

from crystal_fidelity.cli import app, main
from crystal_fidelity.structures import to_atoms


@pytest.fixture
def files(tmp_path):
    truth = everything()
    guesses = [rattled(c, 0.05, i) for i, c in enumerate(truth)]
    guesses[2] = simple_cubic(0.48)
    ase.io.write(tmp_path / "made.extxyz", [to_atoms(c) for c in guesses], format="extxyz")
    ase.io.write(tmp_path / "real.extxyz", [to_atoms(c) for c in truth], format="extxyz")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_compare_prints_a_table_and_writes_everything(files):
    report = files / "out.json"
    arguments = (files / "made.extxyz", files / "real.extxyz", "--workers", 1, "--json", report)
    result = run("compare", *arguments, "--metrics", "validity,density,match")
    assert result.exit_code == 0
    assert "density EMD" in result.stdout
    content = json.loads(report.read_text())
    scores = {s["name"]: s for s in content["scores"]}
    assert scores["validity"]["value"] == pytest.approx(5 / 6)
    assert scores["validity"]["real"] == 1.0
    assert scores["match rate"]["value"] == pytest.approx(5 / 6)
    assert scores["match rate"]["n_reference"] == 6
    assert all(s["protocol"] for s in content["scores"])


def test_validity_names_the_invalid(files):
    report = files / "out.json"
    result = run("validity", files / "made.extxyz", "--workers", 1, "--json", report)
    assert result.exit_code == 0
    rows = json.loads(report.read_text())["structures"]
    assert [r["valid"] for r in rows] == [True, True, False, True, True, True]
    assert "0.480" in rows[2]["reason"]


def test_match_writes_every_pair(files):
    report = files / "out.json"
    result = run(
        "match", files / "made.extxyz", files / "real.extxyz", "--workers", 1, "--json", report
    )
    assert result.exit_code == 0
    pairs = json.loads(report.read_text())["pairs"]
    assert [p["status"] for p in pairs].count("matched") == 5
    assert pairs[2]["status"] == "composition"


def test_errors_are_one_sentence_with_a_remedy(files, capsys, monkeypatch):
    made, real = str(files / "made.extxyz"), str(files / "real.extxyz")
    monkeypatch.setattr(sys, "argv", ["x", "compare", made, real, "--metrics", "fidelity"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "choose from validity" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr(sys, "argv", ["x", "match", made, real, "--best-of", "4"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "are not 4 x 6" in capsys.readouterr().err.replace("\n", " ")


def test_progress_goes_to_standard_error_only(files):
    program = "from crystal_fidelity.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "validity", str(files / "made.extxyz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "validity" in done.stdout
    assert "invalid: frame 2" in done.stderr
    assert "reading" not in done.stdout


def test_distributions_as_numbers_are_the_densities_themselves(files):
    from crystal_fidelity.distances import densities
    from crystal_fidelity.reading import read_structures

    found = files / "out.json"
    sets = files / "made.extxyz", files / "real.extxyz"
    result = run("study", "distributions", *sets, "--energy", "none", "--json", found)
    assert result.exit_code == 0
    (density,) = json.loads(found.read_text())["distributions"]
    assert (density["name"], density["unit"]) == ("density", "g/cm³")
    for path in sets:
        assert density["values"][path.name] == pytest.approx(densities(read_structures(path)))


@pytest.mark.parametrize("words", [[], ["--json", "out.json"]])
def test_distributions_need_somewhere_to_go_and_sets_of_different_names(files, words):
    made = files / "made.extxyz"
    with pytest.raises(ValueError, match=r"nothing to write|the same file name"):
        run("study", "distributions", made, made, "--energy", "none", *words)


def test_the_module_runs_as_a_program(files):
    done = subprocess.run(
        [sys.executable, "-m", "crystal_fidelity", "validity", str(files / "made.extxyz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "validity" in done.stdout
