"""Random crystals of every space group, written in every dialect of CIF, are read as themselves.

The written text and the expected atoms come from gemmi's operations and plain loops here; nothing
of the reader is used to make them.
"""

from dataclasses import dataclass

import gemmi
import moyopy
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystal_fidelity.cif import parse_cif
from crystal_fidelity.structures import Crystal, density, lattice_from_parameters, to_pymatgen

TABLE = list(gemmi.spacegroup_table())
TABULATED = 530
FULL = [moyopy.HallSymbolEntry(hall).hm_full for hall in range(1, TABULATED + 1)]
REFERENCE = {gemmi.find_spacegroup_by_number(n).hm for n in range(1, 231)}
DIALECTS = ("operations", "hall", "symbol", "letter", "code", "short", "full", "number")
MIN_APART = 0.7


@dataclass
class Sample:
    row: int
    parameters: list[float]
    sites: list[tuple[int, np.ndarray]]
    truth: Crystal


def group_of(row):
    group = TABLE[row]
    return group, [(np.array(op.rot) / 24, np.array(op.tran) / 24) for op in group.operations()]


def orbit_of(site, operations):
    """Return the distinct images of a site, by plain comparison of coordinates."""
    found = []
    for rotation, shift in operations:
        image = (rotation @ site + shift) % 1.0
        if all(np.abs((image - x + 0.5) % 1.0 - 0.5).max() > 1e-6 for x in found):
            found.append(image)
    return np.array(found)


def random_sample(rng, row):
    """A crystal with sites on special and general positions, no two atoms within 0.7 Å."""
    _, operations = group_of(row)
    special = [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 1 / 3, 2 / 3, 1 / 6]
    while True:
        metric = np.diag(rng.uniform(0.6, 1.6, 3) ** 2)
        skew = np.eye(3) + rng.uniform(-0.35, 0.35, (3, 3))
        metric = skew @ metric @ skew.T
        metric = np.mean([r.T @ metric @ r for r, _ in operations], axis=0)
        sites = []
        for number in rng.choice([3, 8, 13, 26, 56], rng.integers(1, 4), replace=False):
            x, y, z = (rng.choice(special) if rng.random() < 0.6 else rng.random() for _ in "xyz")
            point = [(x, y, z), (x, x, z), (x, 2 * x, z), (x, x, x), (x, -x, z)][rng.integers(5)]
            sites.append((int(number), np.array(point, dtype=float) % 1.0))
        orbits = [orbit_of(site, operations) for _, site in sites]
        frac = np.concatenate(orbits)
        numbers = np.repeat([z for z, _ in sites], [len(o) for o in orbits])
        metric *= (14 * len(frac) / np.sqrt(np.linalg.det(metric))) ** (2 / 3)
        lengths = np.sqrt(np.diag(metric))
        cosines = metric / np.outer(lengths, lengths)
        angles = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]]))
        lattice = lattice_from_parameters(*lengths, *angles)
        apart = frac[:, None] - frac[None]
        distances = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=-1)
        np.fill_diagonal(distances, np.inf)
        if distances.min() > MIN_APART and len(frac) <= 400:
            truth = Crystal(lattice, frac, numbers)
            return Sample(row, [*lengths, *angles], sites, truth)


def symmetry_lines(row, dialect):
    """Return the lines that name the group, None where this dialect cannot name it."""
    group, _ = group_of(row)
    extension = group.ext.strip("\x00")
    symbol = "_symmetry_space_group_name_H-M"
    suffix = f" :{extension}" if extension in ("1", "2") else ""
    if dialect == "operations":
        return ["loop_", "_space_group_symop_operation_xyz"] + [
            f"'{op.triplet()}'" for op in group.operations()
        ]
    if dialect == "hall":
        return [f"_space_group_name_Hall '{group.hall}'"]
    if dialect == "symbol":
        return [f"{symbol} '{group.hm}{suffix}'"]
    if dialect == "letter":  # as ICSD
        letter = {"": "", "1": " S", "2": " Z", "H": " H", "R": " R"}[extension]
        return [f"{symbol} '{group.hm}{letter}'"]
    if dialect == "code":
        code = extension.lower() if extension else group.qualifier
        if not code or (extension in ("1", "2") and group.qualifier):
            return None
        return [f"_space_group_name_H-M_alt '{group.hm}'", f"{CODE} {code}"]
    if dialect == "short" and row < TABULATED:
        name = group.hm
        if 3 <= group.number <= 15:
            name = " ".join(part for part in name.split() if part != "1")
        return [f"{symbol} {name.replace(' ', '')}{suffix.replace(' ', '')}"]
    if dialect == "full" and row < TABULATED and "e" not in FULL[row]:  # Cmma and Cmmb are Cmme
        return [f"_space_group_name_H-M_full '{FULL[row]}{suffix}'"]
    if dialect == "number" and group.hm in REFERENCE:
        code = [f"{CODE} {extension}"] if extension in ("1", "2") else []
        return [f"_symmetry_Int_Tables_number {group.number}", *code]
    return None


CODE = "_space_group_IT_coordinate_system_code"


def text_of(sample, lines, decimals, rng):
    cell = zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
               sample.parameters, strict=True)  # fmt: skip
    text = ["data_x", *(f"_cell_{name} {value:.4f}" for name, value in cell), *lines]
    text += ["loop_", "_atom_site_type_symbol", "_atom_site_label"]
    text += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    for number, site in sample.sites:
        name = gemmi.Element(number).name
        shifted = site - rng.integers(0, 2, 3)  # coordinates below 0 as well
        text.append(f"{name} {name}1 " + " ".join(f"{x:.{decimals}f}" for x in shifted))
    return "\n".join(text) + "\n"


def difference(entry, truth, decimals):
    """Return what differs, "" if nothing does."""
    if not isinstance(entry, Crystal):
        return entry.reason
    if entry.formula != truth.formula or len(entry) != len(truth):
        return f"{len(entry)} atoms instead of {len(truth)}"
    if abs(density(entry) / density(truth) - 1) > 0.005:
        return f"density {density(entry)} instead of {density(truth)}"
    apart = entry.frac_coords[:, None] - truth.frac_coords[None]
    distances = np.linalg.norm((apart - np.rint(apart)) @ truth.lattice, axis=-1)
    # Rounding, and the reading of 0.66673 as 2/3.
    distances[entry.atomic_numbers[:, None] != truth.atomic_numbers[None]] = np.inf
    nearest = distances.argmin(axis=1)
    allowed = (1.2 * 10.0**-decimals + 7e-5) * np.linalg.norm(truth.lattice, axis=1).sum() + 2e-4
    if len(set(nearest.tolist())) < len(truth) or distances.min(axis=1).max() > allowed:
        return f"atoms are {distances.min(axis=1).max():.4f} Å from their places"
    return ""


def check(seed, rows, n_dialects=len(DIALECTS)):
    rng = np.random.default_rng(seed)
    wrong, n = [], 0
    for row in rows:
        sample = random_sample(rng, row)
        for dialect in rng.permutation(DIALECTS)[:n_dialects].tolist():
            lines = symmetry_lines(row, dialect)
            if lines is None:
                continue
            decimals = int(rng.integers(3, 7))
            text = text_of(sample, lines, decimals, rng)
            n += 1
            entry = parse_cif(text)
            if reason := difference(entry, sample.truth, decimals):
                wrong.append((dialect, decimals, TABLE[row].xhm(), reason, text))
    return wrong, n


def test_a_crystal_of_every_space_group_is_read_in_every_dialect():
    rng = np.random.default_rng(0)
    by_number = [[r for r, g in enumerate(TABLE) if g.number == n] for n in range(1, 231)]
    wrong, n = check(1, [int(rng.choice(rows)) for rows in by_number], 3)
    assert n > 500
    assert [w[:4] for w in wrong] == [], wrong[0][4]


def test_written_and_read_crystals_match_for_pymatgen():
    rng = np.random.default_rng(2)
    matcher = StructureMatcher(primitive_cell=False)
    for row in rng.integers(0, len(TABLE), 12).tolist():
        sample = random_sample(rng, row)
        text = text_of(sample, symmetry_lines(row, "operations"), 4, rng)
        entry = parse_cif(text)
        assert matcher.fit(to_pymatgen(entry), to_pymatgen(sample.truth)), text


def test_the_comparison_can_fail():
    rng = np.random.default_rng(3)
    row = next(r for r, g in enumerate(TABLE) if g.xhm() == "F d -3 m:1")
    sample = random_sample(rng, row)
    wrong = text_of(sample, symmetry_lines(row + 1, "symbol"), 5, rng)
    assert difference(parse_cif(wrong), sample.truth, 5)


@pytest.mark.slow
def test_thousands_of_crystals_in_all_settings_are_read_in_every_dialect():
    wrong, n = check(4, [*range(len(TABLE))] * 2)
    assert n >= 5000
    assert [w[:4] for w in wrong] == [], wrong[0][4]
