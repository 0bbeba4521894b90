"""Space groups: of one crystal, exactly symmetrised cells, and the frequencies in two sets.

This is the only file that searches for symmetry, because a search needs guards: within tolerances
that cannot tell atoms or lattice vectors apart, moyo may not end and take all memory.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.options import SYMPREC
from crystal_fidelity.scores import Score, noise_floor, part_error, rate_error
from crystal_fidelity.structures import Crystal, Entry, as_entries
from crystal_fidelity.validity import invalid_reason, structural_validity
from crystal_fidelity.workers import map_in_order

if TYPE_CHECKING:
    import moyopy

WIDE = 0.2
"""Å. Wider tolerances, and those that blur a long cell's vectors, are spglib's."""
HALVINGS = 5
N_GROUPS = 231
"""The space groups and, at 0, "none"."""


class SpaceGroup(NamedTuple):
    """A space group and the crystal made exactly symmetric under it."""

    symbol: str
    """Short international symbol without blanks, such as Fm-3m or P6_3/mmc."""
    number: int
    """International number, 1 to 230."""
    standardized: Crystal
    """Conventional cell in the standard setting; the crystal itself where there is no symmetry."""


def space_group(crystal: Crystal, symprec: float = SYMPREC) -> SpaceGroup:
    """Find the space group of a crystal, P1 where `dataset` finds none.

    Args:
        crystal: Any crystal, valid or not.
        symprec: Tolerance in Å, above 0.

    Returns:
        Symbol, number and conventional cell.

    Raises:
        ValueError: The tolerance is no positive number.

    Examples:
        >>> from ase.build import bulk
        >>> from crystal_fidelity.structures import from_atoms
        >>> found = space_group(from_atoms(bulk("MgO", "rocksalt", a=4.21)))
        >>> found.symbol, found.number
        ('Fm-3m', 225)
    """
    data = dataset(crystal, symprec)
    standard = crystal if data is None else cell_of(data.std_cell, crystal.name)
    return SpaceGroup(*group_of(data), standard)


def group_of(data: "moyopy.MoyoDataset | None") -> tuple[str, int]:
    """Return symbol and number of what `dataset` found, those of P1 for None.

    Args:
        data: Of `dataset`.
    """
    if data is None:
        return "P1", 1
    import moyopy

    return moyopy.HallSymbolEntry(data.hall_number).hm_short.replace(" ", ""), data.number


def sites_of(data: "moyopy.MoyoDataset | None") -> list[str]:
    """Return the Wyckoff sites that atoms take, such as 4a and 8c, by letter; none for None.

    Args:
        data: What `dataset` found.

    Returns:
        One text per orbit: atoms of it in the conventional cell, and the letter.
    """
    if data is None:
        return []
    # Atoms that symmetry brings onto each other share the first one's number, translations of a
    # supercell included. Multiplicities are those of the conventional cell.
    counts = Counter(zip(data.orbits, data.wyckoffs, strict=True))
    cells = len(data.wyckoffs) / len(data.std_cell.numbers)
    several = sorted(counts.items(), key=lambda item: (item[0][1].swapcase(), item[0][0]))
    return [f"{round(count / cells)}{letter}" for (_, letter), count in several]


def cell_of(cell: "moyopy.Cell", name: str = "") -> Crystal:
    """Return a cell of moyo as a crystal, coordinates in [0, 1).

    Args:
        cell: Lattice rows in Å.
        name: Of the crystal.
    """
    frac = np.array(cell.positions)
    frac -= np.floor(frac)
    frac[frac >= 1] = 0.0
    return Crystal(np.array(cell.basis), frac, np.array(cell.numbers), name)


def dataset(
    crystal: Crystal,
    symprec: float = SYMPREC,
    *,
    halvings: int = HALVINGS,
    least: float | None = None,
) -> "moyopy.MoyoDataset | None":
    """Search for the symmetry of a crystal, in the standard settings of moyo.

    Within WIDE the search is moyo's; beyond it spglib finds the group and the idealised cell, which
    is then described by moyo. Operations refer to the idealised cell in that case.

    Args:
        crystal: Any crystal. One with contacts below 0.5 Å or a volume below 0.1 Å³ has none.
        symprec: Tolerance in Å, above 0. It is lowered to half the least contact: beyond that it
            cannot tell atoms apart.
        halvings: Operations found within a tolerance may form no group; it is then halved, at most
            so many times.
        least: Its least contact in Å, where that is known already.

    Returns:
        What was found, None where no tolerance gives a group.

    Raises:
        ValueError: The tolerance is no positive number.
    """
    if not 0 < symprec < math.inf:
        raise ValueError(f"symprec = {symprec}: give a tolerance in Å above 0, such as {SYMPREC}")
    if least is None:
        least = float(structural_validity([crystal]).min_distance[0])
    if invalid_reason(crystal.volume, least):
        return None
    from ase.geometry.minkowski_reduction import minkowski_reduce

    # A vector c that is nearly normal to a has the length of c + a within a²/2c. A tolerance beyond
    # that takes the shear c → c + a for a symmetry, whose powers never close to a group.
    lengths = np.linalg.norm(minkowski_reduce(crystal.lattice)[0], axis=1)
    safe = min(WIDE, lengths.min() ** 2 / (2 * lengths.max()))
    tolerances = [min(symprec, least / 2) / 2**k for k in range(halvings + 1)]
    for tolerance in tolerances:
        with suppress(ValueError, RuntimeError):
            if tolerance <= safe:
                return _moyo(crystal, tolerance)
            if (ideal := _idealised(crystal, tolerance)) is not None:
                return _moyo(ideal, min(safe, 0.01))
    return None


def _moyo(crystal: Crystal, symprec: float) -> "moyopy.MoyoDataset":
    import moyopy

    cell = moyopy.Cell(
        crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist()
    )
    with _quiet("moyo"):
        return moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.standard())


def _idealised(crystal: Crystal, symprec: float) -> Crystal | None:
    """Return spglib's exactly symmetric conventional cell, None where it finds no group."""
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # what fails is answered below
    import spglib

    arrays = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    cell = tuple(array.tolist() for array in arrays)
    with suppress(spglib.SpglibError):
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
        if found is not None:
            types = np.asarray(found.std_types, dtype=np.int64)
            return Crystal(found.std_lattice, found.std_positions, types)
    return None


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back warnings of a logger that speak of operations, not of the space group."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def operations(hall_number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rotations (n, 3, 3) and translations (n, 3) of a setting, centrings included.

    Args:
        hall_number: Of the setting, 1 to 530.
    """
    import moyopy

    entry = moyopy.HallSymbolEntry(hall_number)
    found = moyopy.operations_from_number(
        entry.number, setting=moyopy.Setting.hall_number(hall_number)
    )
    return np.array(found.rotations), np.array(found.translations)


# Frequencies in sets


@dataclass(frozen=True)
class SpaceGroupResult:
    """Space-group numbers of both sets, 0 where none was found."""

    generated: NDArray[np.int64]
    """(generated structures,)."""
    reference: NDArray[np.int64]
    """(reference structures,)."""
    symprec: float
    """Å."""
    floor: float
    """Mean total variation of two disjoint parts of the reference of size `floor_n`."""
    floor_n: int
    uncertainty: float | None
    """Standard error from disjoint parts of the generated set."""

    @property
    def total_variation(self) -> float:
        """½ Σ |p − q| over the 230 groups and "none": 0 equal, 1 disjoint."""
        return total_variation(self.generated, self.reference)

    def scores(self) -> list[Score]:
        """Return the rows of the table."""
        n, m = len(self.generated), len(self.reference)
        label = f"moyo, symprec {self.symprec:g} Å"
        p1, real = float((self.generated == 1).mean()), float((self.reference == 1).mean())
        return [
            Score(
                "space-group distance",
                self.total_variation,
                n_generated=n,
                n_reference=m,
                protocol=f"total variation of space-group frequencies; {label}",
                real=self.floor,
                uncertainty=self.uncertainty,
                better="lower",
                details={
                    "n of real against real": self.floor_n,
                    "generated": counts(self.generated),
                    "reference": counts(self.reference),
                },
            ),
            Score(
                "P1 fraction",
                p1,
                n_generated=n,
                n_reference=m,
                protocol=f"structures without symmetry; {label}",
                real=real,
                uncertainty=rate_error(p1, n),
                rate=True,
            ),
        ]


def space_groups(
    structures: Sequence[object], *, symprec: float = SYMPREC, workers: int = 1
) -> NDArray[np.int64]:
    """Return the space-group number of each structure.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        symprec: Tolerance in Å, above 0; see `dataset`. It is not halved where it gives no group.
        workers: Processes.

    Returns:
        (structures,), 0 where none could be determined.

    Raises:
        ValueError: The tolerance is no positive number.
    """
    jobs = [(entry, symprec) for entry in as_entries(structures)]
    return np.array(list(map_in_order(_number, jobs, workers)), dtype=np.int64)


def _number(job: tuple[Entry, float]) -> int:
    entry, symprec = job
    data = dataset(entry, symprec, halvings=0) if isinstance(entry, Crystal) else None
    return 0 if data is None else int(data.number)


def space_group_distance(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    symprec: float = SYMPREC,
    workers: int = 1,
    seed: int = 0,
) -> SpaceGroupResult:
    """Compare the space-group frequencies of two sets.

    Args:
        generated: Crystals, read failures, pymatgen structures or ASE atoms.
        reference: The same.
        symprec: Tolerance in Å, above 0.
        workers: Processes.
        seed: Of the random parts that give floor and error.

    Returns:
        The groups of both sets and how far their frequencies are apart.

    Raises:
        ValueError: A set is empty, or the tolerance is no positive number.
    """
    if len(generated) == 0 or len(reference) == 0:
        raise ValueError(f"{len(generated)} and {len(reference)} structures: need both")
    left = space_groups(generated, symprec=symprec, workers=workers)
    right = space_groups(reference, symprec=symprec, workers=workers)
    floor, size = noise_floor(
        len(right), len(left), lambda a, b: total_variation(right[a], right[b]), seed=seed
    )
    error = part_error(len(left), lambda part: total_variation(left[part], right), seed=seed)
    return SpaceGroupResult(left, right, symprec, floor, size, error)


def total_variation(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Return ½ Σ |p − q| of two samples of space-group numbers.

    Args:
        left: (n,), 0 to 230.
        right: (m,), 0 to 230.
    """
    p = np.bincount(left, minlength=N_GROUPS) / len(left)
    q = np.bincount(right, minlength=N_GROUPS) / len(right)
    return float(np.abs(p - q).sum() / 2)


def counts(groups: NDArray[np.int64]) -> dict[str, int]:
    """Return how often each group occurs, most frequent first; "none" for 0.

    Args:
        groups: Space-group numbers, (structures,), 0 where none was found.
    """
    frequent = Counter(groups.tolist()).most_common()
    return {str(group) if group else "none": count for group, count in frequent}
