"""Which lattice systems crystals fall into, and their cells alone, within several tolerances.

The paper sees cubic, hexagonal … cells that no rule asked for (Figures 1 and 2). A crystal's system
follows from its space group; a cell's from the lattice alone, one atom on every point.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import moyopy
import numpy as np
from ase.build import cut
from pymatgen.core import Structure

from crystal_fidelity.cells import niggli_reduce
from crystal_fidelity.structures import Crystal, Entry, to_atoms
from crystal_fidelity.symmetry import dataset, group_of, space_group
from reproduction.settings import Tree

LATTICE_SYSTEMS = (
    "triclinic", "monoclinic", "orthorhombic", "tetragonal", "rhombohedral", "hexagonal", "cubic",
)  # fmt: skip
"""By rising symmetry. Trigonal groups are divided between the rhombohedral and the hexagonal."""
TOLERANCES = (0.01, 0.1, 0.2, 0.5)
"""Å. The paper names 0.1 and 0.5."""
P1, P1BAR = 1, 2
"""Groups of a crystal and of a lattice without any other symmetry."""


@cache
def lattice_system(group: int) -> str:
    """Return the lattice system of a space group, 1 to 230."""
    return str(moyopy.SpaceGroupType(group).lattice_system).lower()


def shares(groups: Sequence[int]) -> dict[str, float]:
    """Return the fraction of every lattice system, by rising symmetry."""
    counts = Counter(map(lattice_system, groups))
    return {system: counts[system] / max(len(groups), 1) for system in LATTICE_SYSTEMS}


def total_variation(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """Return ½ Σ |p − q| of two sets of fractions: 0 equal, 1 disjoint."""
    return sum(abs(left.get(k, 0) - right.get(k, 0)) for k in {*left, *right}) / 2


def agreement(left: Sequence[int], right: Sequence[int]) -> tuple[float, float]:
    """Return how often pairs of groups have one lattice system, and how often by chance.

    Args:
        left: Groups of generated crystals, one per composition.
        right: Groups of the real crystals of the same compositions, in the same order.
    """
    same = sum(lattice_system(a) == lattice_system(b) for a, b in zip(left, right, strict=True))
    p, q = shares(left), shares(right)
    return same / len(left), sum(p[s] * q[s] for s in LATTICE_SYSTEMS)


def holohedry(lattice: np.ndarray, symprec: float) -> int:
    """Return the space group of a lattice with one atom on each point: its symmetry alone.

    Args:
        lattice: Rows are the lattice vectors, Å.
        symprec: Tolerance in Å.
    """
    one = Crystal(lattice, np.zeros((1, 3)), np.ones(1, dtype=np.int64))
    return space_group(one, symprec).number


def study_lattices(
    sets: Mapping[str, Sequence[Entry]], tolerances: Sequence[float] = TOLERANCES
) -> list[Tree]:
    """Find the symmetry of every crystal and of its cell.

    Args:
        sets: Crystals by name. What could not be read counts as triclinic in its place.
        tolerances: In Å.

    Returns:
        Of every set and tolerance `name`, `symprec`, the `groups` of its crystals and the
        `holohedries` of its cells.
    """
    found = []
    for (name, several), symprec in itertools.product(sets.items(), tolerances):
        usable = [entry if isinstance(entry, Crystal) else None for entry in several]
        groups = [P1 if c is None else space_group(c, symprec).number for c in usable]
        holohedries = [P1BAR if c is None else holohedry(c.lattice, symprec) for c in usable]
        one_set = {"name": name, "symprec": symprec}
        found.append(one_set | {"groups": groups, "holohedries": holohedries})
    return found


def conventional_cell(crystal: Crystal, symprec: float) -> tuple[Crystal, str, int]:
    """Put a crystal into the conventional cell of its space group, its atoms where they were.

    Args:
        crystal: A crystal, its cell of either hand, primitive or not.
        symprec: Tolerance in Å within which the group is found, and within twice of which atoms
            that coincide in a cell smaller than the given one are one atom.

    Returns:
        The crystal, and symbol and number of the group.

    Raises:
        ReadingError: If its cell cannot be reduced.
    """
    reduced = niggli_reduce(crystal)
    data = dataset(reduced, symprec)
    symbol, number = group_of(data)
    if data is None:
        return reduced, symbol, number
    # The columns of P are the new vectors in the old ones; cut() takes them row by row.
    a, b, c = np.array(data.std_linear).T
    # A little beside the origin: cut() loses atoms that rounding puts on either side of a face.
    origin = np.array(data.std_origin_shift) - 1e-4
    whole = cut(to_atoms(reduced), a, b, c, origo=origin, tolerance=1e-6)
    merged = Structure(whole.cell.array, whole.numbers, whole.get_scaled_positions())
    merged.merge_sites(2 * symprec, mode="delete")
    numbers = np.array(merged.atomic_numbers)
    return Crystal(merged.lattice.matrix, merged.frac_coords % 1, numbers), symbol, number
