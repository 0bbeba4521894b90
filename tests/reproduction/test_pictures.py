"""What the pictures are made of: structures that are crystals, energies that are known."""

import csv

import numpy as np
import pytest
from ase import Atoms
from prototypes import all_prototypes

from crystorus.data.store import build_store
from crystorus.data.writing import cif_text
from crystorus.reproduction import pictures

PARTS = all_prototypes()


def store_of(folder, energies):
    """Prototypes with formation energies, "" where there is none; None for no such column."""
    with (folder / "all.csv").open("w", newline="", encoding="utf-8") as stream:
        names = ["material_id", "cif"] + ([pictures.ENERGY] if energies is not None else [])
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        for i, (name, crystal) in enumerate(PARTS.items()):
            row = {"material_id": name, "cif": cif_text(crystal, name)}
            writer.writerow(row | {pictures.ENERGY: energies[i] if energies else ""})
    return build_store(folder / "all.csv", folder / "all.store", n_workers=1)


def test_crystals_of_unknown_energy_are_left_out_not_all_energies(tmp_path):
    energies = [str(0.5 * i) if i % 3 else "" for i in range(len(PARTS))]
    crystals, known = pictures.with_energies(store_of(tmp_path, energies), 0, 20)
    kept = [i for i in range(len(PARTS)) if i % 3]
    assert known.tolist() == [0.5 * i for i in kept]
    wanted = [list(PARTS.values())[i].atomic_numbers.sort().values.tolist() for i in kept]
    assert [c.atomic_numbers.sort().values.tolist() for c in crystals.split()] == wanted


@pytest.mark.parametrize("energies", [None, [""] * len(PARTS)])
def test_without_any_energy_all_crystals_stay(tmp_path, energies):
    crystals, known = pictures.with_energies(store_of(tmp_path, energies), 0, 20)
    assert len(crystals) == len(known) == len(PARTS)
    assert np.isnan(known).all()


def test_what_is_no_crystal_is_told_apart():
    rocksalt = Atoms("NaCl", cell=np.full((3, 3), 2.8) - 2.8 * np.eye(3), pbc=True,
                     scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]])  # fmt: skip
    assert pictures.is_crystal(rocksalt)
    collapsed, lost, moved = rocksalt.copy(), rocksalt.copy(), rocksalt.copy()
    collapsed.set_cell(rocksalt.cell.array * 0.05)
    lost.set_cell(rocksalt.cell.array * np.nan)
    moved.positions[0, 0] = np.inf
    assert not any(map(pictures.is_crystal, (collapsed, lost, moved)))
