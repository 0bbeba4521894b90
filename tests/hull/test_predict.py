"""Formulas to ranked crystals, with a potential that costs nothing."""

import json
import re

import numpy as np
import pytest
from alloys import EMT_PATH, crystorus, one_sentence, table

from crystorus.data.compositions import parse_formula
from crystorus.diffusion.space_groups import Skeleton, Skeletons
from crystorus.hull.candidates import suggest_units
from crystorus.templates.skeletons import SkeletonTable

EMT = ("--potential", EMT_PATH, "--workers", 0, "--relax-steps", 4)


@pytest.fixture
def predicted(tmp_path, fake_model, library):
    done = crystorus("predict", "Cu3Au", "CuAu", "--z", 1, "--n", 3, "--library", library,
                     "--start", "both", "--out", tmp_path / "run", *EMT)  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path / "run", done


def test_formulas_are_ranked_apart_with_cells_and_counts(predicted):
    folder, done = predicted
    rows = [row for row in table(folder) if row["rank"] and row["energy_per_atom"]]
    assert {row["formula"] for row in rows} == {"Cu3Au", "CuAu"}
    assert [row["formula"] for row in rows] == sorted(row["formula"] for row in rows)
    for formula in ("Cu3Au", "CuAu"):
        energies = [float(r["energy_per_atom"]) for r in rows if r["formula"] == formula]
        assert energies == sorted(energies)
        above = [float(r["e_above_lowest"]) for r in rows if r["formula"] == formula]
        assert above == pytest.approx(np.array(energies) - energies[0], abs=2e-6)
    assert all(row["e_above_hull"] == "" for row in rows)
    cubic = next(row for row in rows if row["space_group"] == "Pm-3m")
    lengths = [float(cubic[name]) for name in "abc"]
    assert lengths == pytest.approx([lengths[0]] * 3)
    assert float(cubic["volume_per_atom"]) == pytest.approx(lengths[0] ** 3 / 4, abs=1e-3)
    assert sum(int(row["found"]) for row in rows) == len(rows) + done.stdout.count("\t2\t")
    assert done.stdout.startswith("formula\tabove lowest\tenergy\tspace group\t")
    assert "6 crystals of Cu3Au, CuAu, " in done.stderr
    assert "hull" not in done.stdout
    assert "-0.000" not in done.stdout


def test_the_page_names_the_potential_and_draws_no_hull(predicted):
    folder, _ = predicted
    page = (folder / "report.html").read_text()
    assert f"Energies: {EMT_PATH} (alloys of unknown version)." in page
    assert "<h1>Cu3Au, CuAu</h1>" in page
    assert "<svg" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not (folder / "hull.svg").exists()
    text = re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    data = json.loads(text)
    assert data["known"] == []
    labels = [label for _, label, _ in data["columns"]]
    assert "above lowest / eV/atom" in labels
    assert "above hull / eV/atom" not in labels


def test_the_same_command_goes_on_and_another_is_refused(predicted, library):
    folder, _ = predicted
    words = ("--n", 3, "--library", library, "--start", "both", "--out", folder, *EMT)
    before = table(folder)
    again = crystorus("predict", "Cu3Au", "CuAu", "--z", 1, *words)
    assert again.exit_code == 0, again.output
    assert table(folder) == before
    one_sentence(crystorus("predict", "Cu3Au", "--z", 1, *words), "holds another run")


def test_with_references_there_is_a_hull(tmp_path, fake_model, alloys, library):
    done = crystorus("predict", "Cu3Au", "--z", 1, "--n", 2, "--library", library,
                     "--references", alloys, "--out", tmp_path / "run", *EMT)  # fmt: skip
    assert done.exit_code == 0, done.output
    best = table(tmp_path / "run")[0]
    assert (best["novelty"], best["known_id"]) == ("rediscovered", "L1_2")
    assert float(best["e_above_hull"]) == pytest.approx(0.0, abs=0.01)
    assert (tmp_path / "run/hull.svg").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no formula given"),
        (["nacl"], "did you mean NaCl?"),
        (["Fe3+"], "did you mean Fe?"),
        (["Cu3Au", "--z", "0"], "whole numbers from 1 up"),
        (["Cu3Au", "--held-out", "."], "name --references too"),
        (["Cu", "--references", "."], "1 element: a hull takes 2 to 6"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(words, said):
    done = crystorus("predict", *words)
    assert done.exit_code in (1, 2)
    assert said in done.stderr


class Model:
    """Skeletons of three spinels (two units in the primitive cell) and one other AB2C4."""

    max_atoms = 20
    skeletons = Skeletons.of(
        [Skeleton(227, ((a, 0), (b, 2), (8, 4))) for a, b in ((12, 13), (30, 13), (25, 13))]
    )


def test_as_many_formula_units_as_known_crystals_have(capsys):
    spinels = SkeletonTable(Model.skeletons)._pattern((2, 4, 8))
    assert len(spinels.indices) == 3  # the sites are those of spinel
    units = suggest_units(parse_formula("MgCr2O4"), Model())
    assert [one.formula for one in units] == ["Mg2Cr4O8"]
    assert "MgCr2O4 with 2 formula units" in capsys.readouterr().err
    assert [c.formula for c in suggest_units(parse_formula("NaCl"), Model())] == ["NaCl"]
    assert "no known crystal tells" in capsys.readouterr().err
