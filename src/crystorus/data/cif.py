"""CIF text to arrays, through gemmi, with every way a CIF can disappoint named.

Symmetry is expanded, coordinates such as 0.3333 are read as ⅓ as pymatgen reads them, and
disordered structures are refused: the model has no word for half an atom.
"""

import re

import gemmi
import numpy as np

from crystorus.data.arrays import CrystalArrays, ReadingError, check, wrap_coords

SNAP_TOLERANCE = 1e-4  # relative, as pymatgen's CifParser
SAME_SITE = 0.05  # Å; images under the symmetry nearer than this are one atom
OCCUPANCY_TOLERANCE = 1e-3

_CELL = [
    f"_cell_{what}"
    for what in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
]
_OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_GROUP_NAMES = (
    "_space_group_name_Hall",
    "_symmetry_space_group_name_Hall",
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_full",
)
_GROUP_NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
_LETTERS = re.compile(r"[A-Za-z]{1,2}")
_NUMBERS = {gemmi.Element(z).name: z for z in range(1, 119)} | {"D": 1, "T": 1}


def parse_cif(text: str) -> CrystalArrays:
    """Return the crystal of the first data block with atoms.

    Raises:
        ReadingError: If the text is no CIF, or its structure cannot be used.
    """
    return parse_block(_blocks_with_atoms(text)[0])


def parse_cif_blocks(text: str) -> list[tuple[str, CrystalArrays | ReadingError]]:
    """Return every data block with atoms as (block name, crystal or what is wrong with it).

    Raises:
        ReadingError: If the text is no CIF or no block has atoms.
    """
    parsed: list[tuple[str, CrystalArrays | ReadingError]] = []
    for block in _blocks_with_atoms(text):
        try:
            parsed.append((block.name, parse_block(block)))
        except ReadingError as error:
            parsed.append((block.name, error))
    return parsed


def _blocks_with_atoms(text: str) -> list[gemmi.cif.Block]:
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise ReadingError(f"it is not a valid CIF ({error})") from error
    blocks = [b for b in document if len(b.find_values("_atom_site_fract_x"))]
    if not blocks:
        raise ReadingError(
            "it has no _atom_site_fract_x: a CIF needs atoms in fractional coordinates"
        )
    return blocks


def parse_block(block: gemmi.cif.Block) -> CrystalArrays:
    """Return the crystal of one data block, its symmetry expanded.

    Raises:
        ReadingError: If there is no cell, an occupancy differs from 1, an element is unknown, or
            the crystal fails `check`.
    """
    lattice = _cell(block)
    _refuse_disorder(block)
    numbers = _elements(block)
    columns = [_numbers(block, f"_atom_site_fract_{axis}") for axis in "xyz"]
    if len({len(numbers), *map(len, columns)}) > 1:
        raise ReadingError("its atom table is ragged: give every atom an element and x, y, z")
    crystal = check(CrystalArrays(lattice, snap(np.stack(columns, 1)), numbers))
    operations = _operations(block)
    if len(operations) > 1:
        crystal = _expand(crystal, operations)
    return CrystalArrays(lattice, wrap_coords(crystal.frac_coords), crystal.atomic_numbers)


def snap(frac_coords: np.ndarray) -> np.ndarray:
    """Read coordinates within 1e-4 (relative) of ⅓ or ⅔ as exactly that.

    Source: pymatgen's CifParser, `frac_tolerance`.
    """
    for third in (1 / 3, 2 / 3):
        near = np.abs(np.abs(frac_coords) / third - 1) < SNAP_TOLERANCE
        frac_coords = np.where(near, np.copysign(third, frac_coords), frac_coords)
    return frac_coords


def lattice_from_parameters(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> np.ndarray:
    """Return ρ in Å, a along x and b in the xy plane, from lengths in Å and angles in degrees.

    Raises:
        ReadingError: If no cell has these lengths and angles.
    """
    cosines = np.cos(np.deg2rad([alpha, beta, gamma]))
    # Right angles are meant exactly.
    ca, cb, cg = np.where(np.abs(cosines) < 1e-15, 0.0, cosines)
    sg = np.sin(np.deg2rad(gamma))
    height = 1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg
    values = [a, b, c, alpha, beta, gamma]
    if not (np.isfinite(values).all() and min(a, b, c) > 0 and height > 1e-12 and sg > 1e-9):
        raise ReadingError(
            f"no cell has lengths {a:g}, {b:g}, {c:g} Å and angles {alpha:g}, {beta:g}, "
            f"{gamma:g}°: correct the cell"
        )
    return np.array(
        [
            [a, b * cg, c * cb],
            [0.0, b * sg, c * (ca - cb * cg) / sg],
            [0.0, 0.0, c * np.sqrt(height) / sg],
        ]
    )


def element_number(symbol: str) -> int:
    """Return Z of a CIF type symbol or site label: "Na", "Na1+", "O2-", "FE3" and "D".

    Raises:
        ReadingError: If it names no element.
    """
    match = _LETTERS.match(symbol)
    letters = match.group() if match else ""
    for name in (letters, letters.title(), letters[:1].upper()):
        if name in _NUMBERS:
            return _NUMBERS[name]
    raise ReadingError(f"{symbol!r} names no element: use symbols such as Na or O")


def _cell(block: gemmi.cif.Block) -> np.ndarray:
    values = [block.find_value(tag) for tag in _CELL]
    if not all(values):
        missing = next(t for t, v in zip(_CELL, values, strict=True) if v is None)
        raise ReadingError(f"it has no cell ({missing} is missing): a crystal needs its cell")
    return lattice_from_parameters(*(gemmi.cif.as_number(v) for v in values))


def _numbers(block: gemmi.cif.Block, tag: str) -> np.ndarray:
    column = list(block.find_values(tag))
    try:
        return np.array([float(v) for v in column])
    except ValueError:  # "0.5(3)", "?", "."
        return np.array([gemmi.cif.as_number(v) for v in column])


def _refuse_disorder(block: gemmi.cif.Block) -> None:
    occupancy = _numbers(block, "_atom_site_occupancy")
    partial = np.abs(occupancy - 1) > OCCUPANCY_TOLERANCE  # unknown ("?") counts as full
    if partial.any():
        i = int(partial.argmax())
        labels = list(block.find_values("_atom_site_label")) or [f"site {i + 1}"] * (i + 1)
        raise ReadingError(
            f"{labels[i]} has occupancy {occupancy[i]:g}: partial occupancies are not "
            "supported, give an ordered structure"
        )


def _elements(block: gemmi.cif.Block) -> np.ndarray:
    symbols = list(block.find_values("_atom_site_type_symbol")) or list(
        block.find_values("_atom_site_label")
    )
    return np.array(
        [_NUMBERS.get(s) or element_number(gemmi.cif.as_string(s)) for s in symbols], dtype=np.int64
    )


def _operations(block: gemmi.cif.Block) -> list[gemmi.Op]:
    for tag in _OPERATIONS:
        listed = [gemmi.cif.as_string(v) for v in block.find_values(tag)]
        if len(listed) == 1 and listed[0].replace(" ", "").lower() in ("x,y,z", "+x,+y,+z"):
            return []
        if listed:
            try:
                return [gemmi.Op(text) for text in listed]
            except (ValueError, RuntimeError) as error:
                raise ReadingError(f"{tag} is not a list of operations ({error})") from error
    return _operations_of_group(block)


def _operations_of_group(block: gemmi.cif.Block) -> list[gemmi.Op]:
    for tag in _GROUP_NAMES:
        name = block.find_value(tag)
        group = gemmi.find_spacegroup_by_name(gemmi.cif.as_string(name)) if name else None
        if group is not None:
            return list(group.operations())
    for tag in _GROUP_NUMBERS:
        number = gemmi.cif.as_int(block.find_value(tag) or "?", 0)
        if number:
            group = gemmi.find_spacegroup_by_number(number)
            if group is None:
                raise ReadingError(f"{tag} is {number}: space groups are 1 to 230")
            return list(group.operations())
    return []


def _expand(crystal: CrystalArrays, operations: list[gemmi.Op]) -> CrystalArrays:
    """Apply every operation to every site and keep one atom where images coincide."""
    rotations = np.array([op.rot for op in operations]) / gemmi.Op.DEN
    shifts = np.array([op.tran for op in operations]) / gemmi.Op.DEN
    coords, numbers = [], []
    for site, z in zip(crystal.frac_coords, crystal.atomic_numbers, strict=True):
        orbit: list[np.ndarray] = []
        for image in wrap_coords(rotations @ site + shifts):
            if not orbit or _nearest(np.array(orbit), image, crystal.lattice) > SAME_SITE:
                orbit.append(image)
        coords += orbit
        numbers += [z] * len(orbit)
    return CrystalArrays(crystal.lattice, np.array(coords), np.array(numbers))


def _nearest(orbit: np.ndarray, image: np.ndarray, lattice: np.ndarray) -> float:
    apart = orbit - image
    apart -= np.rint(apart)
    return float(np.linalg.norm(apart @ lattice.T, axis=1).min())
