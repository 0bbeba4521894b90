"""Which reader a path needs, and ASE's and pymatgen's structures as arrays.

Both libraries hold cells as rows; they are transposed here and, on the way out, in `io`.
"""

import io
import re
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError
from pymatgen.core import Structure

from crystorus.data.arrays import CrystalArrays, ReadingError
from crystorus.data.cif import snap
from crystorus.data.sources import (
    FORMATS,
    ID_COLUMNS,
    Record,
    cif_records,
    csv_records,
    is_csv,
)

_ASE_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError,
    StopIteration, TypeError, UnknownFileTypeError, ValueError,
)  # fmt: skip
_FLAT = 1e-6


def read_records(path: Path) -> Iterator[Record]:
    """Yield one record per structure of a file or folder.

    Raises:
        ReadingError: If the path does not exist, its format is unknown, or it is broken.
    """
    if not path.exists():
        raise ReadingError(f"{path} does not exist: give {FORMATS}")
    ending = path.suffix.lower()
    if path.is_dir() or ending == ".cif":
        return cif_records(path)
    if is_csv(path):
        return csv_records(path)
    if ending in (".extxyz", ".xyz"):
        return extxyz_records(path)
    if ending in (".vasp", ".poscar") or path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return poscar_records(path)
    if ending == ".db":
        return database_records(path)
    raise ReadingError(f"{path} is of no known format: give {FORMATS}")


def atoms_arrays(atoms: Atoms) -> CrystalArrays:
    """Return ASE atoms as arrays.

    Raises:
        ReadingError: If they have no cell or are not periodic in all three directions.
    """
    rows = np.asarray(atoms.cell.array, dtype=float)
    if not rows.any():
        raise ReadingError("it has no cell: a crystal needs its three lattice vectors")
    if not atoms.pbc.all():
        raise ReadingError(
            f"it is periodic along {int(atoms.pbc.sum())} of 3 directions: set pbc to true, "
            "true, true if it is a crystal"
        )
    numbers = atoms.numbers.astype(np.int64)
    return CrystalArrays(rows.T.copy(), _fractional(atoms.positions, rows), numbers)


def _fractional(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1)
    if not np.isfinite(rows).all() or abs(np.linalg.det(rows)) < _FLAT * lengths.prod():
        raise ReadingError(
            f"its cell {rows.tolist()} Å is singular: give three independent vectors"
        )
    return np.linalg.solve(rows.T, positions.T).T


def structure_arrays(structure: Structure) -> CrystalArrays:
    """Return a pymatgen structure as arrays; oxidation states are dropped.

    Raises:
        ReadingError: If a site is partially occupied or holds no element.
    """
    for site in structure:
        if not site.is_ordered:
            raise ReadingError(
                f"the site {site.species_string} is partially occupied: partial occupancies are "
                "not supported, give an ordered structure"
            )
    try:
        numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
    except AttributeError as error:
        raise ReadingError(f"a site holds no element ({error}): replace it") from error
    rows = np.array(structure.lattice.matrix, dtype=float)
    return CrystalArrays(rows.T.copy(), np.array(structure.frac_coords).reshape(-1, 3), numbers)


def extxyz_records(path: Path) -> Iterator[Record]:
    """Yield the frames of an extended XYZ file; a broken frame does not stop the others.

    Raises:
        ReadingError: If the file is empty, or a frame does not start with a number of atoms.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    start, frame = 0, 0
    if not any(line.strip() for line in lines):
        raise ReadingError(f"{path} is empty: give at least one frame")
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        try:
            n_atoms = int(lines[start])
        except ValueError as error:
            raise ReadingError(
                f"{path}, line {start + 1}: {lines[start][:40]!r} is not a number of atoms"
            ) from error
        if n_atoms < 0:
            raise ReadingError(
                f"{path}, line {start + 1}: {n_atoms} atoms are announced, give 1 or more"
            )
        stop = start + 2 + n_atoms
        yield _frame_record(lines[start:stop], n_atoms, f"{path.stem}-{frame}")
        start, frame = stop, frame + 1


def _frame_record(lines: list[str], n_atoms: int, name: str) -> Record:
    if len(lines) != n_atoms + 2:
        found = max(0, len(lines) - 2)
        return Record(name, ReadingError(f"it has {found} of {n_atoms} atoms: the file is cut"))
    try:
        atoms = ase.io.read(io.StringIO("\n".join(lines) + "\n"), format="extxyz")
    except _ASE_FAILURES as error:
        return Record(name, ReadingError(f"it is not a frame of extended XYZ ({error})"))
    return _atoms_record(atoms, name, {key: str(value) for key, value in atoms.info.items()})


def _atoms_record(atoms: Atoms, name: str, extra: dict[str, str]) -> Record:
    name = next((extra.pop(c) for c in ID_COLUMNS if c in extra), name)
    try:
        return Record(name, atoms_arrays(atoms), extra)
    except ReadingError as error:
        return Record(name, error, extra)


def poscar_records(path: Path) -> Iterator[Record]:
    """Yield the structure of a POSCAR file.

    Raises:
        ReadingError: If it cannot be parsed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = ase.io.read(path, format="vasp")
    except _ASE_FAILURES as error:
        raise ReadingError(f"{path} is not a POSCAR with element symbols ({error})") from error
    name = path.stem if path.suffix else path.name
    record = _atoms_record(atoms, name, {})
    if isinstance(record.content, CrystalArrays):
        crystal = record.content
        snapped = CrystalArrays(crystal.lattice, snap(crystal.frac_coords), crystal.atomic_numbers)
        record = Record(record.name, snapped)
    yield record


def database_records(path: Path) -> Iterator[Record]:
    """Yield the rows of an ASE database, key-value pairs as extra columns.

    Raises:
        ReadingError: If it is no ASE database or has no rows.
    """
    try:
        with ase.db.connect(path) as database:
            if not database.count():
                raise ReadingError(f"{path} has no rows: give a database with structures")
            for row in database.select():
                pairs = {k: str(v) for k, v in row.key_value_pairs.items()}
                yield _atoms_record(row.toatoms(), f"{path.stem}-{row.id}", pairs)
    except (sqlite3.Error, OSError, KeyError) as error:
        raise ReadingError(f"{path} is not an ASE database ({error})") from error


def clean_name(name: str) -> str:
    """Return a name fit for a CIF data block and a file: no blanks, no separators."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name) or "crystal"
