"""`Crystals` to and from `crystal_fidelity.Crystal`, ASE atoms and pymatgen structures.

Columns of `Crystals.lattice` are the lattice vectors, rows everywhere else. Cells are transposed
in this file and in no other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crystal_fidelity import structures
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.structures import Crystal, ReadFailure, wrap_coords
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


def crystals_from(several: Any, *, dtype: torch.dtype = torch.float32) -> Crystals:
    """Convert `ase.Atoms`, `pymatgen.core.Structure` or `Crystal`; oxidation states are dropped.

    Args:
        several: One structure or several.
        dtype: Type of cells and coordinates.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    return join(usable_crystals(several), dtype=dtype)


def usable_crystals(several: Any) -> list[Crystal]:
    """Return structures of any kind as crystals; see `crystals_from`.

    Args:
        several: One structure or several.

    Raises:
        ReadingError: If one of them is not a usable crystal; the message says which.
    """
    # Atoms and structures are iterable themselves, over their atoms.
    one = hasattr(several, "positions") or hasattr(several, "lattice")
    crystals = []
    for number, entry in enumerate(structures.as_entries([several] if one else several), start=1):
        if isinstance(entry, ReadFailure):
            raise ReadingError(f"structure {number}: {entry.reason}")
        crystals.append(entry)
    return crystals


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
