"""A campaign with ASE's EMT, end to end: the table that earlier versions gave for the same command."""  # noqa: E501

import sys
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk

sys.path.insert(0, str(Path(__file__).parents[1] / "hull"))

from alloys import EMT_PATH, crystorus, guided_fake, l10, l12, table, write_alloys, write_library

# name, e_above_hull, e_above_full_hull, formation_energy, energy_per_atom (eV/atom), space group,
# volume change, novelty, known id, start, prototype fraction, status
HULL = """\
00000-CuAu -0.000872 0.000000 -0.007675 -0.011227 P4/mmm -0.0334 new - L1_0-AgPd 0.718 relaxed
00004-Cu3Au 0.000000 0.000000 -0.010204 -0.015495 Pm-3m -0.0323 rediscovered L1_2 L1_2 0.776 relaxed
00002-CuAu3 0.010540 0.010976 0.007138 0.005324 Pm-3m 0.1744 new - L1_2 0.634 relaxed
00001-CuAu 0.563545 0.564417 0.556742 0.553189 P1 0.0770 new - noise - unconverged
00005-Cu3Au 1.286639 1.286639 1.276435 1.271144 P1 0.2841 polymorph - noise - unconverged
00007-CuAu - - - - - - - - noise - exploded"""
RELAX = """\
CuAu -0.000872 0.000000 -0.007675 -0.011227 P4/mmm -0.0334 new - - - relaxed
Cu3Au 0.000000 0.000000 -0.010204 -0.015495 Pm-3m -0.0323 rediscovered L1_2 - - relaxed
Cu 0.032678 0.032678 0.032678 0.025650 Im-3m -0.0439 polymorph - - - relaxed"""
NUMBERS = ("e_above_hull", "e_above_full_hull", "formation_energy", "energy_per_atom")
WORDS = {"new": "not in the references", "polymorph": "new polymorph"}


def compare(rows, recorded, key):
    lines = [line.split() for line in recorded.splitlines()]
    assert [row[key] for row in rows] == [line[0] for line in lines]
    for row, (_, *energies, group, volume, verdict, known, start, fraction, status) in zip(
        rows, lines, strict=True
    ):
        for name, value in zip(NUMBERS, energies, strict=True):
            assert (
                row[name] == ""
                if value == "-"
                else float(row[name]) == pytest.approx(float(value), abs=3e-6)
            )
        texts = {
            "space_group": group, "novelty": WORDS.get(verdict, verdict), "known_id": known,
            "start": start, "prototype_fraction": fraction, "status": status,
        }  # fmt: skip
        assert {name: row[name] or "-" for name in texts} == texts
        if volume != "-":
            assert float(row["volume_change"]) == pytest.approx(float(volume), abs=2e-4)


def test_sampled_relaxed_and_ranked(tmp_path, monkeypatch):
    from crystorus import checkpoint

    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device="cpu": guided_fake())
    references = write_alloys(tmp_path / "alloys.extxyz")
    library = write_library(tmp_path / "known.templates")
    formulas = [word for name in ("CuAu", "CuAu3", "Cu3Au") for word in ("--formula", name)]
    done = crystorus(
        "hull", "Cu-Au", "--max-atoms", 4, "--n", 2, "--budget", 8, "--out", tmp_path / "run",
        "--library", library, "--start", "both", *formulas, "--references", references,
        "--potential", EMT_PATH, "--workers", 0, "--relax-steps", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    compare(table(tmp_path / "run"), HULL, "name")


def test_given_structures_relaxed_and_ranked(tmp_path):
    references = write_alloys(tmp_path / "alloys.extxyz")
    rattled, squeezed = l12(), l12()
    rattled.rattle(0.1, seed=1)
    squeezed.set_cell(squeezed.cell * 0.3, scale_atoms=True)
    frames = [l10(), bulk("Cu", "bcc", a=2.9), l12(), l12().repeat((2, 1, 1)), rattled, squeezed]
    ase.io.write(tmp_path / "mine.extxyz", frames, format="extxyz")
    ase.io.write(tmp_path / "hidden.extxyz", [l10(), l12()], format="extxyz")
    emt = ("--potential", EMT_PATH, "--workers", 0)
    done = crystorus("relax", tmp_path / "mine.extxyz", "--out", tmp_path / "mine", *emt)
    assert done.exit_code == 0, done.output
    done = crystorus("rank", tmp_path / "mine", "--references", references, *emt,
                     "--held-out", tmp_path / "hidden.extxyz")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = table(tmp_path / "mine")
    compare(rows, RELAX, "formula")
    assert [bool(row["held_out_id"]) for row in rows] == [True, False, False]
    figures = "generated: 6, valid: 5, unique before relaxation: 3, waiting: 0, relaxed: 3"
    assert figures in done.stdout
