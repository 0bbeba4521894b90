"""`Crystals` to and from what users hold: ASE atoms, pymatgen structures, CIF text, files.

Columns inside, rows outside: cells are transposed on the way in (`reading`) and out (here).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses
from jaxtyping import Float
from pymatgen.core import Lattice, Structure
from torch import Tensor

from crystorus.data import arrays
from crystorus.data.arrays import CrystalArrays, ReadingError, check, wrap_coords
from crystorus.data.cif import parse_cif
from crystorus.data.preparing import crystal_of
from crystorus.data.reading import atoms_arrays, read_records, structure_arrays
from crystorus.geometry import Crystals

DALTON_PER_CUBIC_ANGSTROM = 1.66053906660  # g/cm³


def read_crystals(
    path: Path, *, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Crystals | ReadingError]]:
    """Yield (id, crystal or what is wrong with it) for every structure of a file or folder.

    Cells are kept as they are; `niggli_reduce` and `build_store` reduce them.

    Raises:
        ReadingError: If the path as a whole cannot be read.
    """
    for record in read_records(path):
        try:
            yield record.name, join_arrays([crystal_of(record)], dtype=dtype)
        except ReadingError as error:
            yield record.name, error


def crystals_from_atoms(
    atoms: Atoms | Sequence[Atoms], *, dtype: torch.dtype = torch.float32
) -> Crystals:
    """Convert ASE atoms.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    several = [atoms] if isinstance(atoms, Atoms) else atoms
    return join_arrays(_checked(atoms_arrays, several), dtype=dtype)


def crystals_from_structures(
    structures: Structure | Sequence[Structure], *, dtype: torch.dtype = torch.float32
) -> Crystals:
    """Convert pymatgen structures; oxidation states and site properties are dropped.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    several = [structures] if isinstance(structures, Structure) else structures
    return join_arrays(_checked(structure_arrays, several), dtype=dtype)


def crystals_from_cif(text: str, *, dtype: torch.dtype = torch.float32) -> Crystals:
    """Convert CIF text, its symmetry expanded.

    Raises:
        ReadingError: If it is no usable crystal.
    """
    return join_arrays([parse_cif(text)], dtype=dtype)


def crystals_to_atoms(crystals: Crystals) -> list[Atoms]:
    """Convert to ASE atoms, one per crystal."""
    return [
        Atoms(
            numbers=c.atomic_numbers,
            scaled_positions=c.frac_coords,
            cell=c.lattice.T,
            pbc=True,
        )
        for c in split_arrays(crystals)
    ]


def crystals_to_structures(crystals: Crystals) -> list[Structure]:
    """Convert to pymatgen structures, one per crystal."""
    return [
        Structure(Lattice(c.lattice.T), c.atomic_numbers.tolist(), c.frac_coords)
        for c in split_arrays(crystals)
    ]


def niggli_reduce(crystals: Crystals) -> Crystals:
    """Return the same crystals in right-handed Niggli-reduced cells, in their own dtype.

    Raises:
        ReadingError: If a cell cannot be reduced.
    """
    reduced = join_arrays([arrays.niggli_reduce(c) for c in split_arrays(crystals)])
    return reduced.to(device=crystals.lattice.device, dtype=crystals.lattice.dtype)


def least_distance(crystals: Crystals) -> Float[Tensor, " crystals"]:
    """Return the least distance in Å between two atoms of each crystal, own images included.

    Exact for every cell, skewed ones included. NaN for cells that are singular or not finite.
    """
    values = []
    for crystal in split_arrays(crystals):
        try:
            values.append(arrays.least_distance(crystal))
        except (ReadingError, np.linalg.LinAlgError):
            values.append(float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def density(crystals: Crystals) -> Float[Tensor, " crystals"]:
    """Return mass densities in g/cm³."""
    masses = torch.as_tensor(atomic_masses)[crystals.atomic_numbers.cpu()]
    total = torch.zeros(len(crystals), dtype=torch.float64)
    total.index_add_(0, crystals.crystal_of_atom.cpu(), masses)
    return DALTON_PER_CUBIC_ANGSTROM * total / crystals.volume.double().cpu()


def split_arrays(crystals: Crystals) -> list[CrystalArrays]:
    """Return every crystal as float64 arrays."""
    lattice = crystals.lattice.detach().double().cpu().numpy()
    frac = crystals.frac_coords.detach().double().cpu().numpy()
    numbers = crystals.atomic_numbers.cpu().numpy()
    ends = np.cumsum(crystals.n_atoms.cpu().numpy())[:-1]
    parts = zip(lattice, np.split(frac, ends), np.split(numbers, ends), strict=True)
    return [CrystalArrays(*part) for part in parts]


def join_arrays(
    crystals: Sequence[CrystalArrays], *, dtype: torch.dtype = torch.float64
) -> Crystals:
    """Return arrays as one batch, coordinates in [0, 1)."""
    frac = np.concatenate([np.empty((0, 3)), *(c.frac_coords for c in crystals)])
    numbers = np.concatenate([np.empty(0, np.int64), *(c.atomic_numbers for c in crystals)])
    return Crystals(
        torch.from_numpy(np.array([c.lattice for c in crystals]).reshape(-1, 3, 3)).to(dtype),
        torch.from_numpy(wrap_coords(frac)).to(dtype),
        torch.from_numpy(numbers.astype(np.int64)),
        torch.tensor([len(c.atomic_numbers) for c in crystals], dtype=torch.int64),
    )


def _checked(
    convert: Callable[[Any], CrystalArrays], several: Iterable[Any]
) -> list[CrystalArrays]:
    converted = []
    for number, one in enumerate(several, start=1):
        try:
            converted.append(check(convert(one)))
        except ReadingError as error:
            raise ReadingError(f"structure {number}: {error}") from error
    return converted
