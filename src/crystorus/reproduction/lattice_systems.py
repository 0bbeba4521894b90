"""Which lattice systems crystals fall into, and their cells alone, within several tolerances.

The paper sees cubic, hexagonal … cells that no rule asked for (Figures 1 and 2). A crystal's
system follows from its space group; a cell's from the lattice alone, one atom on every point.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import moyopy
import numpy as np
import spglib
import torch
from ase import Atoms
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crystorus.data.arrays import CrystalArrays, least_distance, niggli_reduce
from crystorus.data.io import crystals_from_atoms, split_arrays
from crystorus.reproduction.plots import COLOURS

LATTICE_SYSTEMS = (
    "triclinic", "monoclinic", "orthorhombic", "tetragonal", "rhombohedral", "hexagonal", "cubic",
)  # fmt: skip
"""By rising symmetry. Trigonal groups are divided between the rhombohedral and the hexagonal."""

TOLERANCES = (0.01, 0.1, 0.2, 0.5)
"""Å. The paper names 0.1 and 0.5."""

LEAST_DISTANCES = 3.0
"""Tolerances end at a crystal's least distance over this: beyond, atoms are mixed up."""

SMALLEST_TOLERANCE = 1e-4
"""Å, for atoms that coincide."""

P1, P1BAR = 1, 2
"""Groups of a crystal and of a lattice without any other symmetry."""

_TRIES = 6

DRAWN = (0.1, 0.5)
"""Å. The tolerances that are drawn; of others all are."""

_MORE = ("#8a5a9e", "#b08a2e", "#3fb8c4", "#9aa3ab")


@dataclass(frozen=True)
class Symmetries:
    """Symmetry of every crystal of a set within one tolerance.

    Attributes:
        name: The set, such as "generated".
        symprec: Tolerance in Å, at most a third of a crystal's least distance. Where operations
            found within it form no group it is halved, up to five times, and after that the
            crystal counts as P1.
        groups: Number of the space group of every crystal; empty where only cells were given.
        holohedries: Number of the space group of the lattice alone, one atom on every point.
    """

    name: str
    symprec: float
    groups: tuple[int, ...]
    holohedries: tuple[int, ...]

    def crystal_shares(self) -> dict[str, float]:
        """Return the share of crystals in each lattice system by their space group."""
        return _shares(self.groups)

    def cell_shares(self) -> dict[str, float]:
        """Return the share of cells in each lattice system by the lattice alone."""
        return _shares(self.holohedries)

    def group_counts(self) -> dict[int, int]:
        """Return how often each space group occurs, most frequent first."""
        return dict(Counter(self.groups).most_common())


@dataclass(frozen=True)
class LatticeStudy:
    """Symmetries of several sets at several tolerances.

    Attributes:
        sets: Every set at every tolerance.
    """

    sets: tuple[Symmetries, ...]

    def of(self, name: str, symprec: float) -> Symmetries:
        """Return one set at one tolerance.

        Raises:
            KeyError: If it was not measured.
        """
        for one in self.sets:
            if one.name == name and one.symprec == symprec:
                return one
        known = ", ".join(f"{s.name} at {s.symprec:g}" for s in self.sets)
        raise KeyError(f"no {name} at {symprec:g} Å: there is {known}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sets, in order."""
        return tuple(dict.fromkeys(s.name for s in self.sets))

    @property
    def tolerances(self) -> tuple[float, ...]:
        """Tolerances in Å, rising."""
        return tuple(sorted({s.symprec for s in self.sets}))


@cache
def lattice_system(group: int) -> str:
    """Return the lattice system of a space group, 1 to 230."""
    return str(moyopy.SpaceGroupType(group).lattice_system).lower()


def holohedry(lattice: np.ndarray, symprec: float) -> int:
    """Return the space group of a lattice with one atom on each point: its symmetry alone.

    Args:
        lattice: ρ in Å, columns.
        symprec: Tolerance in Å.
    """
    return _group(CrystalArrays(lattice, np.zeros((1, 3)), np.ones(1, dtype=np.int64)), symprec)


def study_lattices(
    crystals: Mapping[str, Sequence[Atoms | None]],
    *,
    cells: Mapping[str, np.ndarray] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
) -> LatticeStudy:
    """Find the symmetry of every crystal and of its cell.

    Args:
        crystals: Sets by name. None stands for a structure that is no crystal, and counts as
            triclinic in its place.
        cells: Sets of which only the cells count, ρ in columns, [cells, 3, 3]: a prior, say.
        tolerances: In Å.

    Raises:
        ValueError: If a set is empty.
        ReadingError: If a structure is no usable crystal.
    """
    sets = []
    for name, several in crystals.items():
        if len(several) == 0:
            raise ValueError(f"the set {name!r} is empty: give at least one crystal")
        arrays = [None if one is None else _arrays(one) for one in several]
        for symprec in tolerances:
            groups = tuple(P1 if one is None else _group(one, symprec) for one in arrays)
            alone = tuple(
                P1BAR if one is None else holohedry(one.lattice, symprec) for one in arrays
            )
            sets.append(Symmetries(name, symprec, groups, alone))
    for name, lattices in (cells or {}).items():
        for symprec in tolerances:
            alone = tuple(holohedry(lattice, symprec) for lattice in lattices)
            sets.append(Symmetries(name, symprec, (), alone))
    return LatticeStudy(tuple(sets))


def distance(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """Return the total variation ½ Σ |p − q| of two sets of shares: 0 equal, 1 disjoint."""
    return sum(abs(left.get(k, 0) - right.get(k, 0)) for k in {*left, *right}) / 2


def agreement(left: Sequence[int], right: Sequence[int]) -> tuple[float, float]:
    """Return how often pairs of groups have one lattice system, and how often by chance.

    Args:
        left: Groups of generated crystals, one per composition.
        right: Groups of the real crystals of the same compositions, in the same order.

    Raises:
        ValueError: If they are not equally long, or empty.
    """
    if len(left) != len(right) or not left:
        raise ValueError(f"{len(left)} and {len(right)} crystals: give pairs, one or more")
    pairs = [(lattice_system(a), lattice_system(b)) for a, b in zip(left, right, strict=True)]
    p, q = _shares(left), _shares(right)
    return sum(a == b for a, b in pairs) / len(pairs), sum(p[s] * q[s] for s in LATTICE_SYSTEMS)


def draw_lattice_systems(study: LatticeStudy) -> Figure:
    """Draw the shares of the lattice systems: cells above, crystals below, a panel a tolerance.

    Drawn are the tolerances that the paper names, or all where they were not measured. The
    whiskers are one standard error of a share.
    """
    tolerances = [s for s in DRAWN if s in study.tolerances] or study.tolerances
    figure = Figure(figsize=(7.0, 4.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(tolerances), sharey="row", sharex=True, squeeze=False)
    for column, symprec in enumerate(tolerances):
        sets = [s for s in study.sets if s.symprec == symprec]
        _draw_shares(grid[0][column], sets, study.names, cells=True)
        _draw_shares(grid[1][column], sets, study.names, cells=False)
        grid[0][column].set_title(f"within {symprec:g} Å", fontsize=9)
    grid[0][0].set_ylabel("share of cells", fontsize=8)
    grid[1][0].set_ylabel("share of crystals\n(by space group)", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_shares(
    axes: Any, sets: Sequence[Symmetries], names: Sequence[str], *, cells: bool
) -> None:
    width = 0.8 / len(names)
    places = np.arange(len(LATTICE_SYSTEMS))
    spare = itertools.cycle(_MORE)
    colours = {name: COLOURS.get(name) or next(spare) for name in names}
    for one in sets:
        numbers = one.holohedries if cells else one.groups
        if not numbers:
            continue
        rank = names.index(one.name)
        values = np.array(list(_shares(numbers).values()))
        error = np.sqrt(values * (1 - values) / len(numbers))
        axes.bar(
            places + (rank - (len(names) - 1) / 2) * width, values, width, yerr=error,
            color=colours[one.name], label=f"{one.name} (n = {len(numbers)})",
            error_kw={"lw": 0.6, "ecolor": "#333"},
        )  # fmt: skip
    axes.set_xticks(places, LATTICE_SYSTEMS, rotation=60, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _arrays(atoms: Atoms) -> CrystalArrays:
    (found,) = split_arrays(crystals_from_atoms(atoms, dtype=torch.float64))
    return found


def _group(crystal: CrystalArrays, symprec: float) -> int:
    """Return the space group within a tolerance that keeps neighbouring atoms apart.

    By spglib: within half an ångström moyopy, which the rest of the package uses, takes all memory
    on one cell of the prior in a hundred (2.0, 5.5 and 6.0 Å, say).
    """
    reduced = niggli_reduce(crystal)
    apart = least_distance(reduced) / LEAST_DISTANCES
    cell = (
        reduced.lattice.T.tolist(),
        reduced.frac_coords.tolist(),
        reduced.atomic_numbers.tolist(),
    )
    tolerance = max(min(symprec, apart), SMALLEST_TOLERANCE)
    for halvings in range(_TRIES):
        with suppress(spglib.SpglibError):
            found = spglib.get_symmetry_dataset(cell, symprec=tolerance / 2**halvings)
            if found is not None:
                return int(found.number)
    return P1


def _shares(groups: Sequence[int]) -> dict[str, float]:
    """Return the share of every lattice system, by rising symmetry."""
    counts = Counter(map(lattice_system, groups))
    return {system: counts[system] / max(len(groups), 1) for system in LATTICE_SYSTEMS}
