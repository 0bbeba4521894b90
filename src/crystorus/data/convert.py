"""`Crystals` to and from `crystal_fidelity.Crystal`, ASE atoms and pymatgen structures.

Columns of `Crystals.lattice` are the lattice vectors, rows everywhere else. Cells are transposed
in this file and in no other.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crystal_fidelity import cells, structures
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.structures import Crystal, Entry, ReadFailure, wrap_coords
from crystorus.geometry import Crystals

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


def join(crystals: Sequence[Crystal], *, dtype: torch.dtype = torch.float64) -> Crystals:
    """Return crystals as one batch, in order; names and properties are dropped.

    Args:
        crystals: Crystals of any size, rows of `lattice` are lattice vectors in Å.
        dtype: Type of cells and coordinates.

    Returns:
        The batch, columns are lattice vectors, coordinates in [0, 1).
    """
    frac = np.concatenate([np.empty((0, 3)), *(c.frac_coords for c in crystals)])
    numbers = np.concatenate([np.empty(0, np.int64), *(c.atomic_numbers for c in crystals)])
    rows = np.array([c.lattice for c in crystals]).reshape(-1, 3, 3)
    return Crystals(
        torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 2, 1))).to(dtype),
        torch.from_numpy(wrap_coords(frac)).to(dtype),
        torch.from_numpy(numbers.astype(np.int64)),
        torch.tensor([len(c.atomic_numbers) for c in crystals], dtype=torch.int64),
    )


def split(crystals: Crystals, names: Sequence[str] | None = None) -> list[Crystal]:
    """Return every crystal of a batch by itself, float64, rows of `lattice` are lattice vectors.

    Args:
        crystals: The batch, on any device.
        names: A name for each of them; without, all have the empty name.
    """
    rows = crystals.lattice.detach().double().cpu().numpy().transpose(0, 2, 1)
    frac = crystals.frac_coords.detach().double().cpu().numpy()
    numbers = crystals.atomic_numbers.cpu().numpy()
    ends = np.cumsum(crystals.n_atoms.cpu().numpy())[:-1]
    names = [""] * len(crystals) if names is None else names
    parts = zip(rows, np.split(frac, ends), np.split(numbers, ends), names, strict=True)
    return [Crystal(np.ascontiguousarray(cell), x, z, name) for cell, x, z, name in parts]


def crystals_from_atoms(
    atoms: "Atoms | Sequence[Atoms]", *, dtype: torch.dtype = torch.float32
) -> Crystals:
    """Convert ASE atoms.

    Args:
        atoms: One periodic structure or several.
        dtype: Type of cells and coordinates.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    several = [atoms] if hasattr(atoms, "positions") else atoms
    return join(_converted(structures.from_atoms, several), dtype=dtype)


def crystals_from_structures(
    several: "Structure | Sequence[Structure]", *, dtype: torch.dtype = torch.float32
) -> Crystals:
    """Convert pymatgen structures; oxidation states and site properties are dropped.

    Args:
        several: One structure or several.
        dtype: Type of cells and coordinates.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    one_or_more: Any = [several] if hasattr(several, "lattice") else several
    return join(_converted(structures.from_pymatgen, one_or_more), dtype=dtype)


def crystals_to_atoms(crystals: Crystals) -> "list[Atoms]":
    """Convert to periodic ASE atoms, one per crystal.

    Args:
        crystals: A batch.
    """
    return [structures.to_atoms(c) for c in split(crystals)]


def crystals_to_structures(crystals: Crystals) -> "list[Structure]":
    """Convert to pymatgen structures, one per crystal.

    Args:
        crystals: A batch.
    """
    return [structures.to_pymatgen(c) for c in split(crystals)]


def niggli_reduce(crystals: Crystals) -> Crystals:
    """Return the same crystals in right-handed Niggli-reduced cells, in their own dtype.

    Args:
        crystals: A batch.

    Raises:
        ReadingError: If a cell cannot be reduced.
    """
    reduced = join([cells.niggli_reduce(c) for c in split(crystals)])
    return reduced.to(device=crystals.lattice.device, dtype=crystals.lattice.dtype)


def least_distance(crystals: Crystals) -> Float[Tensor, " crystals"]:
    """Return the least distance in Å between two atoms of each crystal, own images included.

    Exact for every cell, skewed ones included. NaN for cells that are singular or not finite.

    Args:
        crystals: A batch.
    """
    values = []
    for crystal in split(crystals):
        try:
            values.append(cells.least_distance(crystal))
        except (ReadingError, np.linalg.LinAlgError):
            values.append(float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def density(crystals: Crystals) -> Float[Tensor, " crystals"]:
    """Return mass densities in g/cm³, float64; infinite for a cell without volume.

    Args:
        crystals: A batch.
    """
    return torch.tensor([structures.density(c) for c in split(crystals)], dtype=torch.float64)


def _converted(convert: Callable[[Any], Entry], several: Any) -> list[Crystal]:
    converted = []
    for number, one in enumerate(several, start=1):
        entry = convert(one)
        if isinstance(entry, ReadFailure):
            raise ReadingError(f"structure {number}: {entry.reason}")
        converted.append(entry)
    return converted
