"""Crystals as text: CIF as they are, CIF with their symmetry, extended XYZ."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import gemmi
import moyopy
import numpy as np

from crystal_fidelity.options import SYMPREC
from crystal_fidelity.structures import cell_parameters, element_symbol, wrap_coords
from crystal_fidelity.symmetry import dataset, operations
from crystorus.data.convert import split
from crystorus.geometry import Crystals

_SAME_SITE = 1e-3  # fractional; standardised positions are exact to rounding
_LONGEST_NAME = 120


def harmless_field(text: str) -> str:
    """Put an apostrophe before text that begins like a spreadsheet formula and is no number.

    Args:
        text: Of one field of a table.
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def safe_name(text: str) -> str:
    """Return an id as a name of a CIF data block, of a row, and of a file in any folder.

    Letters, digits and `_.+-` stay; the rest, path separators among it, becomes `_`. It does not
    begin with one of the last three, so that it is neither a path, nor an option, nor a formula of
    a spreadsheet; it is no number, which ASE's database would take for one; and a digest takes the
    place of what is too long for a file system.

    Args:
        text: Any id.
    """
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).lstrip(".+-") or "crystal"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    try:
        float(name)
    except ValueError:
        return name if name.lower() not in ("true", "false") else f"id-{name}"
    return f"id-{name}"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """Write a table with its header; text that a spreadsheet would take for a formula is quoted.

    Args:
        columns: In their order.
        rows: By column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: harmless_field(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def cif_text(crystal: Crystals, name: str) -> str:
    """Write one crystal as CIF in P1, every atom listed.

    A CIF holds lengths and angles, not handedness: a left-handed cell is first replaced by its
    negative, which describes the same crystal.

    Args:
        crystal: A batch of one.
        name: Name of the data block.
    """
    (one,) = split(crystal)
    rows, frac = one.lattice, one.frac_coords
    if np.linalg.det(rows) < 0:
        rows, frac = -rows, wrap_coords(-frac)
    sites = [(int(z), 1, x) for z, x in zip(one.atomic_numbers, frac, strict=True)]
    return _cif(name, rows, ("P 1", 1), ["x,y,z"], sites)


def symmetrised_cif_text(crystal: Crystals, name: str, symprec: float = SYMPREC) -> str:
    """Find the symmetry of one crystal and write it as CIF; see `dataset_cif_text`.

    Args:
        crystal: A batch of one.
        name: Of the data block.
        symprec: Å.
    """
    return dataset_cif_text(crystal, dataset(split(crystal)[0], symprec), name, symprec)


def dataset_cif_text(
    crystal: Crystals, data: moyopy.MoyoDataset | None, name: str, symprec: float
) -> str:
    """Write one crystal as CIF in its conventional cell, one atom of every orbit listed.

    Args:
        crystal: A batch of one.
        data: Its symmetry; without one the crystal is written in P1.
        name: Name of the data block.
        symprec: Tolerance in Å within which the symmetry was looked for and is imposed. It is
            named in the file.
    """
    if data is None:
        return f"# no symmetry looked for or found within symprec = {symprec:g} Å\n" + cif_text(
            crystal, name
        )
    rotations, shifts = operations(data.hall_number)
    cell = data.std_cell
    frac = wrap_coords(np.array(cell.positions))
    sites: list[tuple[int, int, np.ndarray]] = []
    left = list(range(len(frac)))
    while left:
        images = rotations @ frac[left[0]] + shifts
        orbit = [i for i in left if cell.numbers[i] == cell.numbers[left[0]]]
        apart = images[:, None] - frac[orbit][None]
        near = np.abs(apart - np.rint(apart)).max(-1).min(0) < _SAME_SITE
        orbit = [i for i, same in zip(orbit, near, strict=True) if same]
        sites.append((cell.numbers[left[0]], len(orbit), frac[left[0]]))
        left = [i for i in left if i not in orbit]
    triplets = []
    for rotation, shift in zip(rotations, shifts, strict=True):
        operation = gemmi.Op()
        operation.rot = (rotation * gemmi.Op.DEN).astype(int).tolist()
        operation.tran = np.rint(shift * gemmi.Op.DEN).astype(int).tolist()
        triplets.append(operation.wrap().triplet())
    entry = moyopy.HallSymbolEntry(data.hall_number)
    group = (entry.hm_short.replace("_", ""), entry.number)  # as CIFs spell it
    text = _cif(name, np.array(cell.basis), group, triplets, sites)
    return f"# symmetrised within symprec = {symprec:g} Å\n{text}"


def extxyz_text(
    crystals: Crystals,
    infos: Sequence[Mapping[str, str | int | float | bool]] | None = None,
) -> str:
    """Write crystals as frames of extended XYZ, each with its own info.

    Args:
        crystals: The frames.
        infos: Key and value pairs of the comment line of each frame.

    Raises:
        ValueError: If there are not as many infos as crystals.
    """
    infos = [{}] * len(crystals) if infos is None else infos
    if len(infos) != len(crystals):
        raise ValueError(f"{len(infos)} infos for {len(crystals)} crystals: give one each")
    lines = []  # as ase.io.write has them, whose import takes a second
    for crystal, info in zip(split(crystals), infos, strict=True):
        cell = " ".join(map(str, crystal.lattice.ravel().tolist()))
        pairs = "".join(f"{name}={_extxyz_value(value)} " for name, value in info.items())
        lines.append(str(len(crystal)))
        lines.append(f'Lattice="{cell}" Properties=species:S:1:pos:R:3 {pairs}pbc="T T T"')
        positions = crystal.frac_coords @ crystal.lattice
        for z, place in zip(crystal.atomic_numbers.tolist(), positions.tolist(), strict=True):
            lines.append(f"{element_symbol(z):2}" + "".join(f" {x:16.8f}" for x in place))
    return "".join(f"{line}\n" for line in lines)


def _extxyz_value(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    text = str(value)
    if not set(text) & set(" \"'{}[]"):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _cif(
    name: str,
    rows: np.ndarray,
    group: tuple[str, int],
    triplets: Sequence[str],
    sites: Sequence[tuple[int, int, np.ndarray]],
) -> str:
    """Return a CIF.

    Args:
        name: Name of the data block.
        rows: Lattice vectors in Å, rows, [3, 3].
        group: Symbol and number of the space group.
        triplets: Its operations.
        sites: (atomic number, multiplicity, fractional coordinates) of every orbit.
    """
    from pymatgen.core import Composition, Element

    parameters = cell_parameters(rows)
    counts: Counter[int] = Counter()
    for z, multiplicity, _ in sites:
        counts[z] += multiplicity
    formula = Composition({Element.from_Z(z): n for z, n in counts.items()})
    lines = [f"data_{safe_name(name)}"]
    lines += [f"_cell_length_{n} {v:.8f}" for n, v in zip("abc", parameters[:3], strict=True)]
    greek = ("alpha", "beta", "gamma")
    lines += [f"_cell_angle_{n} {v:.8f}" for n, v in zip(greek, parameters[3:], strict=True)]
    lines += [
        f"_cell_volume {abs(np.linalg.det(rows)):.8f}",
        f"_space_group_name_H-M_alt '{group[0]}'",
        f"_space_group_IT_number {group[1]}",
        f"_chemical_formula_structural {formula.reduced_formula}",
        f"_chemical_formula_sum '{formula.formula}'",
        f"_cell_formula_units_Z {round(formula.get_reduced_composition_and_factor()[1])}",
        "loop_",
        "_space_group_symop_operation_xyz",
        *(f"'{triplet}'" for triplet in triplets),
        "loop_",
    ]
    columns = ("type_symbol", "label", "site_symmetry_multiplicity", "fract_x", "fract_y")
    lines += [f"_atom_site_{c}" for c in (*columns, "fract_z", "occupancy")]
    for number, (z, multiplicity, x) in enumerate(sites, start=1):
        symbol = element_symbol(z)
        place = " ".join(f"{v:.10f}" for v in x)
        lines.append(f"{symbol} {symbol}{number} {multiplicity} {place} 1")
    return "\n".join(lines) + "\n"
