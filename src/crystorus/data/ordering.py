"""Ordered supercells of a crystal whose sites are partly occupied, or shared by several elements.

In the smallest supercells in which every count of atoms is whole, all ways to fill the sites are
listed, once each under the operations of the averaged crystal, the lowest electrostatic energy of
point charges first. It is a way to choose, no energy: relax what is found.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.cells import HARDLY_PHYSICAL, min_distance_ratio, niggli_reduce
from crystal_fidelity.matching import MatcherSettings
from crystal_fidelity.structures import Crystal, ReadFailure, from_pymatgen, to_pymatgen
from crystorus.errors import ReadingError, RequestError

if TYPE_CHECKING:
    from pymatgen.core import Structure

MOST_WAYS = 1_000_000
"""Ways to fill the sites of one supercell that are listed."""
_SYMPREC = 0.01  # Å, of the averaged crystal
_SAME_SITE = 0.05  # Å, between a site and the image of another
_ALIKE = MatcherSettings(stol=0.05, ltol=0.01, angle_tol=0.5, scale=False)


@dataclass(frozen=True, eq=False)
class Ordering:
    """An ordered supercell.

    Attributes:
        crystal: In its Niggli cell.
        energy_per_atom: Electrostatic, eV/atom, of ideal point charges; None without charges.
        ways: How many ways to fill the supercell are this one, by the averaged crystal's symmetry.
    """

    crystal: Crystal
    energy_per_atom: float | None
    ways: int


class _Group(NamedTuple):
    """Equivalent sites that share what is on them."""

    sites: list[int]
    species: list[str]
    occupancies: list[float]


def read_disordered(path: Path) -> "Structure":
    """Read the averaged crystal of a CIF, in its primitive cell, as pymatgen does.

    Args:
        path: The CIF.

    Raises:
        ReadingError: If it cannot be read.
    """
    import warnings

    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Occupancies of 1/3, as 0.3334, add up to a little more than 1.
            parser = CifParser(path, occupancy_tolerance=1.01)
            return parser.parse_structures(primitive=True)[0]
        except (OSError, ValueError, KeyError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ReadingError(f"{path} is no CIF that can be read: {reason}") from error


def order_sites(
    averaged: "Structure",
    *,
    n: int = 10,
    max_atoms: int = 40,
    tolerance: float = 0.01,
    charges: dict[str, float] | None = None,
) -> list[Ordering]:
    """Return ordered supercells of a crystal, the lowest electrostatic energy first.

    Args:
        averaged: With partly occupied sites, in its primitive cell.
        n: How many, at most.
        max_atoms: Of a supercell.
        tolerance: By which an occupancy may be rounded.
        charges: By element; by default those that the sites have, or likely oxidation states.
            Crystals of metals, and others that none balance, have no energies.

    Raises:
        RequestError: If it is ordered already, no cell is large enough, or too many ways are left.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    symmetry = SpacegroupAnalyzer(averaged, _SYMPREC).get_symmetry_dataset()
    groups = _groups(averaged, symmetry.equivalent_atoms)
    if not groups:
        raise RequestError("every site is full: there is nothing to order")
    rotations = np.array(symmetry.rotations, dtype=np.int64)
    shifts = np.array(symmetry.translations)
    matcher, kept = _ALIKE.matcher(), list[Ordering]()
    for cells, counts in _whole_counts(averaged, groups, max_atoms, tolerance):
        if len(kept) >= n:
            break
        ways = math.prod(_ways(sum(count), count) for count in counts)
        if ways > MOST_WAYS and kept:
            break
        if ways > MOST_WAYS:
            raise RequestError(
                f"its sites can be filled in {ways:.2g} ways in the smallest cell with whole "
                f"numbers of atoms, above {MOST_WAYS}: order some of them by hand, or round their "
                "occupancies so that a smaller cell will do (--tolerance)"
            )
        states = _charges(averaged, groups, counts, cells, charges)
        for shape in _shapes(cells, rotations):
            for one in _fill(averaged, groups, counts, shape, rotations, shifts, states, n):
                # Cells of several shapes and volumes may hold the same crystal.
                near = (
                    o
                    for o in kept
                    if abs((o.energy_per_atom or 0) - (one.energy_per_atom or 0)) < 1e-4
                )
                structure = to_pymatgen(one.crystal)
                if not any(matcher.fit(structure, to_pymatgen(other.crystal)) for other in near):
                    kept.append(one)
    kept.sort(key=lambda one: 0.0 if one.energy_per_atom is None else one.energy_per_atom)
    if not kept:
        raise RequestError(
            f"every way to fill its sites puts two atoms nearer than {HARDLY_PHYSICAL:g} of the "
            "sum of their radii: correct the occupancies of split sites"
        )
    return kept[:n]


def _groups(averaged: "Structure", orbits: NDArray[np.int32]) -> list[_Group]:
    """Return the sites that are not full, those of an orbit together."""
    members: dict[int, list[int]] = {}
    for index, site in enumerate(averaged):
        if not site.is_ordered:
            members.setdefault(int(orbits[index]), []).append(index)
    return [
        _Group(
            sites,
            [str(species) for species in averaged[sites[0]].species],
            list(averaged[sites[0]].species.values()),
        )
        for sites in members.values()
    ]


def _whole_counts(
    averaged: "Structure", groups: Sequence[_Group], max_atoms: int, tolerance: float
) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield the volumes of supercells with whole counts, and these, vacancies last."""
    atoms, nearest, any_yet = averaged.composition.num_atoms, (math.inf, 0), False
    for cells in range(1, int(max_atoms / atoms + 1e-6) + 1):
        counts, off = [], 0.0
        for group in groups:
            places = cells * len(group.sites)
            exact = [places * x for x in group.occupancies]
            whole = [round(x) for x in exact]
            empty = places - sum(whole)
            full = abs(sum(group.occupancies) - 1) <= tolerance
            off = math.inf if empty < 0 or (empty and full) else off
            off = max(off, *(abs(a - b) / places for a, b in zip(whole, exact, strict=True)))
            counts.append([*whole, empty])
        if off <= tolerance:
            any_yet = True
            yield cells, counts
        nearest = min(nearest, (off, cells))
    if not any_yet:
        raise RequestError(
            f"no supercell of at most {max_atoms} atoms ({atoms:g} in the primitive cell) has "
            f"whole numbers of every atom within {tolerance:g} of its occupancy"
            + (f" ({nearest[0]:.2g} in {nearest[1]} primitive cells)" if nearest[1] else "")
            + ": raise --max-atoms or --tolerance"
        )


def _ways(places: int, counts: Sequence[int]) -> int:
    ways = math.factorial(places)
    for count in counts:
        ways //= math.factorial(count)
    return ways


def _charges(
    averaged: "Structure",
    groups: Sequence[_Group],
    counts: Sequence[Sequence[int]],
    cells: int,
    given: dict[str, float] | None,
) -> dict[str, float]:
    """Return the charge of every species of the supercell by its name; nothing where none is."""
    from pymatgen.core import Composition, get_el_sp

    partial = {site for group in groups for site in group.sites}
    whole: dict[str, int] = {}
    for index, site in enumerate(averaged):
        if index not in partial:
            whole[str(site.specie)] = whole.get(str(site.specie), 0) + cells
    for group, count in zip(groups, counts, strict=True):
        for name, number in zip(group.species, count, strict=False):
            whole[name] = whole.get(name, 0) + number
    symbol = {name: get_el_sp(name).symbol for name in whole}
    if given:
        if missing := [s for s in symbol.values() if s not in given]:
            raise RequestError(f"--charge of {missing[0]} is missing: name one for every element")
        return {name: given[symbol[name]] for name in whole}
    written = {name: float(getattr(get_el_sp(name), "oxi_state", None) or 0.0) for name in whole}
    balance = sum(written[name] * number for name, number in whole.items())
    if any(written.values()) and abs(balance) < 1e-6:
        return written
    elements: dict[str, int] = {}
    for name, number in whole.items():
        elements[symbol[name]] = elements.get(symbol[name], 0) + number
    guesses = Composition(elements).reduced_composition.oxi_state_guesses(max_sites=-1)
    if not guesses or not any(guesses[0].values()):
        return {}
    return {name: float(guesses[0][symbol[name]]) for name in whole}


def _shapes(cells: int, rotations: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the superlattices of a volume, rows in the primitive cell, once under the rotations.

    Source: Hermite normal forms as in Hart and Forcade 2008, doi:10.1103/PhysRevB.77.224115.
    """
    seen: list[NDArray[np.float64]] = []
    for a, b in itertools.product(range(1, cells + 1), repeat=2):
        if cells % (a * b):
            continue
        c = cells // (a * b)
        for i, j, k in itertools.product(range(b), range(c), range(c)):
            shape = np.array([[a, i, j], [0, b, k], [0, 0, c]])
            images = shape @ rotations.transpose(0, 2, 1)
            if not any(_integer(images @ inverse).all((1, 2)).any() for inverse in seen):
                seen.append(np.linalg.inv(shape))
                yield shape


def _integer(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(values - np.rint(values)) < 1e-6


def _fill(
    averaged: "Structure",
    groups: Sequence[_Group],
    counts: Sequence[Sequence[int]],
    shape: NDArray[np.int64],
    rotations: NDArray[np.int64],
    shifts: NDArray[np.float64],
    charges: dict[str, float],
    n: int,
) -> Iterator[Ordering]:
    """Yield the distinct ways to fill one supercell, the lowest energy first, at most `n`."""
    from pymatgen.core import Lattice, Structure

    inverse, cells = np.linalg.inv(shape), round(np.linalg.det(shape))
    corners = np.array(list(itertools.product(*(range(x) for x in shape.diagonal()))))
    frac = ((averaged.frac_coords[:, None] + corners[None]) @ inverse).reshape(-1, 3)
    lattice = shape @ averaged.lattice.matrix
    site_of = np.arange(len(averaged) * cells).reshape(len(averaged), cells)
    partial = np.concatenate([site_of[group.sites].ravel() for group in groups])
    full = [index for index, site in enumerate(averaged) if site.is_ordered]
    names = [str(averaged[index].specie) for index in full for _ in range(cells)]
    fixed = site_of[full].ravel().astype(int)
    kinds = [name for group in groups for name in group.species]  # the code of a vacancy is -1
    ways = _assignments(groups, counts, cells)
    permutations = _permutations(frac[partial], lattice, shape, inverse, rotations, shifts, corners)
    energies = np.zeros(len(ways))
    if charges:
        sites = np.concatenate([fixed, partial])
        fixed_charges = np.array([charges[name] for name in names])
        energies = _ewald(
            lattice,
            frac[sites],
            fixed_charges,
            np.array([*(charges[name] for name in kinds), 0.0])[ways],
        )
    order_of = np.argsort(np.round(energies, 6), kind="stable")
    random = np.random.default_rng(0).integers(2**63, size=(len(partial), len(kinds) + 1))
    place, taken, given = np.arange(len(partial)), set[int](), 0
    for index in order_of.tolist():
        # The least of the sums over all images names a way whichever image is met first.
        keys = random[place, ways[index][permutations]].sum(-1)
        if (key := int(keys.min())) in taken:
            continue
        taken.add(key)
        way = ways[index]
        symbols = names + [kinds[code] for code in way if code >= 0]
        places = np.concatenate([fixed, partial[way >= 0]])
        made = from_pymatgen(Structure(Lattice(lattice), symbols, frac[places]))
        if isinstance(made, ReadFailure) or min_distance_ratio(made) < HARDLY_PHYSICAL:
            continue
        energy = float(energies[index]) / len(made) if charges else None
        yield Ordering(niggli_reduce(made), energy, len(np.unique(keys)))
        given += 1
        if given == n:
            return


def _assignments(
    groups: Sequence[_Group], counts: Sequence[Sequence[int]], cells: int
) -> NDArray[np.int8]:
    """Return every way to fill the sites, (ways, sites), by number of the species, -1 for none."""
    found, first = np.zeros((1, 0), dtype=np.int8), 0
    for group, count in zip(groups, counts, strict=True):
        own = np.full((1, cells * len(group.sites)), -1, dtype=np.int8)
        for code, number in enumerate(count[:-1], start=first):
            rows = []
            for row in own:
                free = np.flatnonzero(row < 0)
                chosen = np.array(list(itertools.combinations(free, number)), dtype=int)
                more = np.repeat(row[None], len(chosen), 0)
                np.put_along_axis(more, chosen, code, 1)
                rows.append(more)
            own = np.concatenate(rows)
        first += len(group.species)
        both = np.repeat(found, len(own), 0), np.tile(own, (len(found), 1))
        found = np.concatenate(both, axis=1)
    return found


def _permutations(
    frac: NDArray[np.float64],
    lattice: NDArray[np.float64],
    shape: NDArray[np.int64],
    inverse: NDArray[np.float64],
    rotations: NDArray[np.int64],
    shifts: NDArray[np.float64],
    corners: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return where every operation that keeps the supercell takes its sites, (ops, sites)."""
    kept = _integer(shape @ rotations.transpose(0, 2, 1) @ inverse).all((1, 2))
    found = []
    for rotation, shift in zip(rotations[kept], shifts[kept], strict=True):
        moved = frac @ shape @ rotation.T + shift
        for corner in corners:
            apart = ((moved + corner) @ inverse)[:, None] - frac[None]
            apart = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=-1)
            if (apart.min(1) < _SAME_SITE).all():
                found.append(apart.argmin(1))
    return np.unique(found, axis=0)


def _ewald(
    lattice: NDArray[np.float64],
    frac: NDArray[np.float64],
    fixed: NDArray[np.float64],
    ways: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return electrostatic energies in eV of ways to charge the last sites, the first being fixed.

    Args:
        lattice: Rows in Å.
        frac: Of all sites, (sites, 3).
        fixed: Charges of the first of them.
        ways: Charges of the others, a row each.
    """
    from pymatgen.analysis.ewald import EwaldSummation
    from pymatgen.core import Lattice, Structure

    unit = Structure(Lattice(lattice), ["H+"] * len(frac), frac)
    matrix = EwaldSummation(unit).total_energy_matrix  # of unit charges: energies are bilinear
    inner, outer = matrix[: len(fixed), : len(fixed)], matrix[: len(fixed), len(fixed) :]
    own = matrix[len(fixed) :, len(fixed) :]
    energies = ((ways @ own) * ways).sum(1) + 2 * ways @ (fixed @ outer)
    return energies + fixed @ inner @ fixed
