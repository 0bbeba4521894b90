"""CIF text to crystals, through gemmi's parser (about sixty times pymatgen's speed).

Unlike pymatgen's reader, sites that overlap in a P1 cell stay two sites: a generated structure
with a collision must not become a smaller valid one by being read.
"""

import gemmi
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.structures import Crystal, Entry, ReadFailure, checked

SNAP_TOLERANCE = 1e-4
"""Coordinates this close (relative) to 1/3 or 2/3 are taken for them, as pymatgen does."""
SITE_TOLERANCE = 1e-4
"""Images of one site under a space group that are closer (fractional) are one site."""
SYMMETRY_LOOPS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv.pos_as_xyz",
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
)
SYMMETRY_NAMES = (
    "_space_group_name_Hall",
    "_symmetry_space_group_name_Hall",
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
)
SYMMETRY_NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")


def parse_cif(text: str, name: str = "") -> Entry:
    """Read the first structure of a CIF text."""
    entries = parse_cif_blocks(text, name)
    return entries[0]


def parse_cif_blocks(text: str, name: str = "") -> list[Entry]:
    """Read every block that holds atoms; a text without any gives one failure."""
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        return [ReadFailure(name, f"not a CIF: {str(error)[:120]}")]
    blocks = [block for block in document if _column(block, "_atom_site_fract_x")]
    if not blocks:
        return [ReadFailure(name, "CIF without _atom_site_fract_x")]
    names = [name] if len(blocks) == 1 else [f"{name}:{block.name}" for block in blocks]
    return [_read_block(block, n) for block, n in zip(blocks, names, strict=True)]


def _read_block(block: gemmi.cif.Block, name: str) -> Entry:
    try:
        lattice = _lattice(block)
        frac, numbers = _asymmetric_unit(block)
        operations = _operations(block)
    except (ValueError, RuntimeError) as error:
        return ReadFailure(name, str(error)[:200])
    if operations:
        frac, numbers = _expand(frac, numbers, operations)
    return checked(lattice, frac, numbers, name)


def _column(block: gemmi.cif.Block, tag: str) -> list[str]:
    return [gemmi.cif.as_string(value) for value in block.find_values(tag)]


def _number(text: str, tag: str) -> float:
    value = gemmi.cif.as_number(text)
    if np.isnan(value):
        raise ValueError(f"{tag} is {text!r}, not a number")
    return float(value)


def _lattice(block: gemmi.cif.Block) -> NDArray[np.float64]:
    tags = [f"_cell_length_{axis}" for axis in "abc"]
    tags += [f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")]
    values = []
    for tag in tags:
        text = block.find_value(tag)
        if text is None:
            raise ValueError(f"CIF without {tag}")
        values.append(_number(text, tag))
    return lattice_from_parameters(*values)


def lattice_from_parameters(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> NDArray[np.float64]:
    """Return lattice rows, a along x and b in the xy plane (lengths Å, angles degrees).

    Raises:
        ValueError: the six numbers describe no cell.
    """
    cos_alpha, cos_beta, cos_gamma = np.cos(np.radians([alpha, beta, gamma]))
    sin_gamma = np.sin(np.radians(gamma))
    if min(a, b, c) <= 0 or not 0 < gamma < 180:
        raise ValueError(f"cell {a} {b} {c} {alpha} {beta} {gamma}: no such cell")
    cx, cy = cos_beta, (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    cz_squared = 1 - cx**2 - cy**2
    if cz_squared <= 0:
        raise ValueError(f"cell angles {alpha} {beta} {gamma} do not close a cell")
    return np.array(
        [
            [a, 0.0, 0.0],
            [b * cos_gamma, b * sin_gamma, 0.0],
            [c * cx, c * cy, c * np.sqrt(cz_squared)],
        ]
    )


def _asymmetric_unit(block: gemmi.cif.Block) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    symbols = _column(block, "_atom_site_type_symbol") or _column(block, "_atom_site_label")
    numbers = np.array([_atomic_number(symbol) for symbol in symbols], dtype=np.int64)
    columns = [_column(block, f"_atom_site_fract_{axis}") for axis in "xyz"]
    if any(len(column) != len(numbers) for column in columns):
        raise ValueError("atom site columns have different lengths")
    frac = np.array([[_number(v, "coordinate") for v in column] for column in columns]).T
    for occupancy in _column(block, "_atom_site_occupancy"):
        if occupancy not in ("?", ".", "") and abs(_number(occupancy, "occupancy") - 1) > 1e-6:
            raise ValueError(f"occupancy {occupancy}: the metrics need full sites")
    return _snap(frac.reshape(len(numbers), 3)), numbers


def _atomic_number(symbol: str) -> int:
    letters = symbol.rstrip("0123456789+-.()?*'\" ")
    for text in (symbol, letters, letters[:2], letters[:1]):
        element = gemmi.Element(text)
        if element.atomic_number > 0:
            return element.atomic_number
    raise ValueError(f"{symbol!r} is not an element")


def _snap(frac: NDArray[np.float64]) -> NDArray[np.float64]:
    for ideal in (1 / 3, 2 / 3):
        frac = np.where(np.abs(frac / ideal - 1) <= SNAP_TOLERANCE, ideal, frac)
    return frac


def _operations(block: gemmi.cif.Block) -> list[gemmi.Op]:
    for tag in SYMMETRY_LOOPS:
        triplets = _column(block, tag)
        if triplets:
            return [] if len(triplets) == 1 else [gemmi.Op(triplet) for triplet in triplets]
    for tag in SYMMETRY_NAMES:
        text = block.find_value(tag)
        if text is None or gemmi.cif.as_string(text).strip() in ("", "?"):
            continue
        symbol = gemmi.cif.as_string(text).strip()
        if tag.endswith("Hall"):
            return list(gemmi.symops_from_hall(symbol))
        group = gemmi.find_spacegroup_by_name(symbol)
        if group is None:
            raise ValueError(f"space group {symbol!r} is not known")
        return [] if group.number == 1 else list(group.operations())
    for tag in SYMMETRY_NUMBERS:
        text = block.find_value(tag)
        if text is not None and gemmi.cif.as_string(text) not in ("", "?"):
            group = gemmi.find_spacegroup_by_number(int(_number(text, tag)))
            if group is None:
                raise ValueError(f"space group {text} is not known")
            return [] if group.number == 1 else list(group.operations())
    return []


def _expand(
    frac: NDArray[np.float64], numbers: NDArray[np.int64], operations: list[gemmi.Op]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rotations = np.array([op.rot for op in operations], dtype=float) / gemmi.Op.DEN
    shifts = np.array([op.tran for op in operations], dtype=float) / gemmi.Op.DEN
    images = np.einsum("oij,aj->aoi", rotations, frac) + shifts
    kept, kept_numbers = [], []
    for orbit, number in zip(images % 1.0, numbers, strict=True):
        unique: list[NDArray[np.float64]] = []
        for point in orbit:
            offsets = np.array(unique).reshape(-1, 3) - point
            if not np.any(np.all(np.abs(offsets - np.round(offsets)) < SITE_TOLERANCE, axis=1)):
                unique.append(point)
        kept.extend(unique)
        kept_numbers.extend([number] * len(unique))
    return np.array(kept), np.array(kept_numbers, dtype=np.int64)


def format_cif(crystal: Crystal) -> str:
    """Return a P1 CIF with coordinates to 1e-10."""
    from crystal_fidelity.structures import element_symbol

    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    lines = [f"data_{crystal.name.replace(' ', '_') or 'crystal'}"]
    lines += [f"_cell_length_{x} {v:.10f}" for x, v in zip("abc", lengths, strict=True)]
    names = ("alpha", "beta", "gamma")
    lines += [f"_cell_angle_{x} {v:.10f}" for x, v in zip(names, angles, strict=True)]
    lines += ["loop_", " _symmetry_equiv_pos_as_xyz", "  'x, y, z'", "loop_"]
    lines += [" _atom_site_type_symbol", " _atom_site_label"]
    lines += [f" _atom_site_fract_{axis}" for axis in "xyz"]
    for index, (z, x) in enumerate(zip(crystal.atomic_numbers, crystal.frac_coords, strict=True)):
        symbol = element_symbol(int(z))
        lines.append(f"  {symbol} {symbol}{index} {x[0]:.10f} {x[1]:.10f} {x[2]:.10f}")
    return "\n".join(lines) + "\n"
