"""Crystals of a folder on one page, and as inputs of other programs, read back by their parsers."""

import json
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal as ase_crystal
from commandline import CliRunner
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp import Incar, Kpoints, Poscar

from crystal_fidelity.structures import from_atoms
from crystal_fidelity.symmetry import cell_of, dataset
from crystorus.errors import RequestError
from crystorus.results.command import _page_of
from crystorus.results.options import ViewOptions
from crystorus.results.reading import read_results

TOLERANCE = 1e-6  # Å


def crystorus(*words):
    return CliRunner().invoke(None, list(map(str, words)))


def quartz():
    return ase_crystal(
        ["Si", "O"], [(0.46, 0.0, 1 / 3), (0.41, 0.27, 0.214)], spacegroup=152,
        cellpar=[4.91, 4.91, 5.40, 90, 90, 120],
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two crystals of which one is slightly distorted, and one that is none."""
    frames = [quartz(), bulk("NaCl", "rocksalt", a=5.64), Atoms("Cu", cell=[2, 0, 0], pbc=True)]
    frames[1].rattle(0.01, seed=0)
    for atoms, name in zip(frames, ["quartz", "salt", "broken"], strict=True):
        atoms.info["material_id"] = name
    ase.io.write(tmp_path / "mine.extxyz", frames, format="extxyz")
    return tmp_path / "mine.extxyz"


def expected(atoms, *, primitive=False):
    """The symmetrised cell, by moyo."""
    data = dataset(from_atoms(atoms), 0.1)
    return cell_of(data.prim_std_cell if primitive else data.std_cell)


def farthest(found: Structure, crystal):
    """Return the largest distance in Å of an atom from its place; cells must be alike."""
    assert np.abs(found.lattice.matrix - crystal.lattice).max() < TOLERANCE
    ours = Structure(crystal.lattice, crystal.atomic_numbers.tolist(), crystal.frac_coords)
    assert found.composition == ours.composition
    away = found.lattice.get_all_distances(ours.frac_coords, found.frac_coords)
    numbers = np.array(found.atomic_numbers)
    away[np.array(ours.atomic_numbers)[:, None] != numbers[None]] = np.inf
    return away.min(1).max()


def read_back(kind, out, name) -> Structure:
    match kind:
        case "poscar":
            return Poscar.from_file(out / f"{name}.vasp").structure
        case "vasp-inputs":
            assert Incar.from_file(out / name / "INCAR")["ENCUT"] == 520
            assert Kpoints.from_file(out / name / "KPOINTS").kpts
            assert (out / name / "POTCAR.spec").read_text().split()
            return Poscar.from_file(out / name / "POSCAR").structure
        case "cif":
            return AseAtomsAdaptor.get_structure(ase.io.read(out / f"{name}.cif"))
        case "qe":
            lines = (out / f"{name}.in").read_text().splitlines()
            namelists = [line for line in lines if line.startswith("&")]
            assert namelists == ["&CONTROL", "&SYSTEM", "&ELECTRONS", "&IONS", "&CELL"]
            atoms = ase.io.read(out / f"{name}.in", format="espresso-in")
        case "aims":
            atoms = ase.io.read(out / name / "geometry.in", format="aims")
    return AseAtomsAdaptor.get_structure(atoms)


@pytest.mark.parametrize("kind", ["poscar", "vasp-inputs", "qe", "aims", "cif"])
@pytest.mark.parametrize("primitive", [False, True])
def test_inputs_read_back_are_the_symmetrised_crystal(folder, tmp_path, kind, primitive):
    if kind == "cif" and primitive:
        pytest.skip("a CIF with symmetry lists the conventional cell")
    words = ["--primitive"] if primitive else []
    done = crystorus("export", folder, "--format", kind, "--out", tmp_path / "to", *words)
    assert done.exit_code == 0, done.output
    assert f"2 crystals as {kind}" in done.stderr
    for name, atoms in zip(["quartz", "salt"], ase.io.read(folder, ":2"), strict=True):
        wanted = expected(atoms, primitive=primitive)
        assert farthest(read_back(kind, tmp_path / "to", name), wanted) < TOLERANCE
    moved = read_back(kind, tmp_path / "to", "quartz")
    moved.translate_sites([0], [0, 0, 1e-5])
    assert farthest(moved, expected(quartz(), primitive=primitive)) > TOLERANCE


def test_crystals_are_chosen_by_name_and_by_rank(folder, tmp_path):
    words = ("export", folder, "--out", tmp_path / "to")
    assert crystorus(*words, "--name", "salt").exit_code == 0
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["salt.vasp"]
    assert crystorus(*words, "--best", 1).exit_code == 0
    assert len(list((tmp_path / "to").iterdir())) == 2
    wrong = crystorus(*words, "--name", "pepper")
    assert wrong.exit_code == 1
    assert "has no crystal pepper: name one as its files are, such as quartz" in wrong.stderr
    wrong = crystorus(*words, "--best", 0)
    assert "--best 0: give 1 or more" in wrong.stderr


def data_of(page: Path):
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>',
                     page.read_text(), re.DOTALL)  # fmt: skip
    return json.loads(text[1])


def test_a_page_of_structures_has_their_cells_and_says_what_is_none(folder, tmp_path):
    page = tmp_path / "page.html"
    done = crystorus("view", folder, "--out", page, "--no-browser")
    assert (done.exit_code, done.stdout) == (0, f"{page}\n")
    data = data_of(page)
    assert [row["name"] for row in data["rows"]] == ["quartz", "salt", "broken"]
    first, second, last = data["rows"]
    assert (first["space_group"], second["space_group"]) == ("P3_121", "Fm-3m")
    assert first["a"] == pytest.approx(4.91, abs=1e-6)
    assert first["gamma"] == pytest.approx(120)
    assert first["volume_per_atom"] == pytest.approx(quartz().get_volume() / 9)
    assert last["failed"]
    assert last["reason"]
    assert data["structures"].keys() == {"quartz", "salt"}
    salt = data["structures"]["salt"]
    assert (len(salt["symbols"]), len(salt["conventional"]["symbols"])) == (2, 8)
    assert "src=" not in re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)


def test_the_page_of_a_run_has_its_table_in_its_order(tmp_path):
    (tmp_path / "run").mkdir()
    ase.io.write(tmp_path / "run/one.cif", quartz())
    lines = ["index,formula,valid,start,origin,confidence,cif_file,cif_symmetrised_file",
             "0,SiO2,True,noise,not in library,0.5,one.cif,one.cif",
             "1,SiO2,False,noise,,,,"]  # fmt: skip
    (tmp_path / "run/table.csv").write_text("\n".join(lines) + "\n")
    done = crystorus("view", tmp_path / "run", "--no-browser")
    assert done.exit_code == 0, done.output
    data = data_of(tmp_path / "run/view.html")
    assert [row["name"] for row in data["rows"]] == ["one", "00001-SiO2"]
    assert data["counts"] == {"crystals": 2, "valid": 1}
    assert data["rows"][0]["confidence"] == 0.5
    labels = [label for _, label, _ in data["columns"]]
    assert {"valid", "origin", "start"} <= set(labels)
    assert "novelty" not in labels  # no row has any
    assert data["rows"][1]["failed"]


def test_a_folder_with_a_report_is_opened_as_it_is(tmp_path):
    (tmp_path / "report.html").write_text("<html>")
    assert _page_of(tmp_path) == tmp_path / "report.html"
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared/scores.html").write_text("<html>")
    assert _page_of(tmp_path / "compared") == tmp_path / "compared/scores.html"
    (tmp_path / "compared/view.html").write_text("<html>")  # our own is written again
    assert _page_of(tmp_path / "compared") == tmp_path / "compared/scores.html"
    with pytest.raises(RequestError, match="does not exist"):
        _page_of(tmp_path / "none.html")


def test_a_campaign_that_is_not_ranked_is_shown_as_relaxed(tmp_path):
    ase.io.write(tmp_path / "cu.extxyz", bulk("Cu", a=3.8), format="extxyz")
    out = tmp_path / "relaxed"
    emt = ("--potential", "ase.calculators.emt:EMT", "--workers", 0, "--out", out)
    assert crystorus("relax", tmp_path / "cu.extxyz", *emt).exit_code == 0
    (one,) = read_results(out, ViewOptions())
    assert one.entry.volume == pytest.approx(3.59**3 / 4, rel=0.01)
    assert crystorus("view", out, "--no-browser").exit_code == 0
    page = (out / "view.html").read_text()
    assert float(one.row["energy_per_atom"]) == pytest.approx(-0.007, abs=0.003)
    assert '"E / eV/atom"' in page
    assert "EMT" in re.search("Energies: [^<]*", page)[0]


def test_what_a_file_becomes_is_written_below_out(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    viewed = crystorus("view", folder, "--no-browser")
    assert (viewed.exit_code, viewed.stdout) == (0, "out/view-mine.html\n")
    exported = crystorus("export", folder)
    assert "2 crystals as poscar in out/export-poscar-mine" in exported.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"mine.extxyz", "out"}


@pytest.mark.parametrize("command", ["view", "export"])
def test_a_folder_of_nothing_is_named_with_what_to_name(tmp_path, command):
    (tmp_path / "out/empty").mkdir(parents=True)
    wrong = crystorus(command, tmp_path / "out")
    assert wrong.exit_code == 1
    assert "holds neither table.csv nor campaign.db nor structures: name" in wrong.stderr
    assert "such as" not in wrong.stderr
    (tmp_path / "out/NaCl").mkdir()
    (tmp_path / "out/NaCl/table.csv").write_text("index\n")
    wrong = crystorus(command, tmp_path / "out")
    assert f"a command wrote, such as {tmp_path / 'out/NaCl'}, or a file" in wrong.stderr
