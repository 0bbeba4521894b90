"""Skeletons for a composition: which space group and which sites, from what is known or by rule.

A table keeps of every training crystal its space group and which element sits on which Wyckoff
position, nothing else: no coordinate, no cell. Crystals with the same pattern of element counts
lend their skeleton to the wanted elements at the cost of exchanging theirs, as templates do
(`templates.fitting`); those near in cost add up their weights where their skeletons agree. Where
nothing is known, or a space group is asked for, all ways to fill its sites are enumerated.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import cell_of
from crystorus.data.compositions import Composition
from crystorus.diffusion.space_groups import Skeleton, Skeletons
from crystorus.geometry.space_groups import (
    N_GROUPS,
    operations,
    orbits_of,
    site_permutations,
    sites,
)
from crystorus.networks.scorer import LEAST_WEIGHT
from crystorus.templates.fitting import assign, slots_of
from crystorus.templates.retrieval import NEAREST, SAME_COMPOSITION_WEIGHT, cost_weights
from crystorus.templates.substitution import mp20_counts

if TYPE_CHECKING:
    from moyopy import MoyoDataset

AGAIN = 0.3
"""Factor of a skeleton's weight, in the order of candidates, for every time that it was taken."""
ENUMERATED = 2000
"""Skeletons of one space group that are enumerated at most."""


class WeightedSkeleton(NamedTuple):
    """A skeleton for a composition, and the fraction of the weights that speak for it."""

    skeleton: Skeleton
    weight: float


@dataclass(frozen=True, eq=False)
class _Pattern:
    """Crystals of one pattern of element counts; slots are their elements, rarest first.

    Attributes:
        groups: Space group of each.
        indices: Its number in the table.
        elements: By slot, [crystals, slots].
        forms: Skeletons that were asked for, see `form`.
    """

    groups: NDArray[np.int64]
    indices: NDArray[np.int64]
    elements: NDArray[np.int64]
    forms: dict[tuple[int, tuple[int, ...]], Skeleton] = field(default_factory=dict)

    def form(self, skeletons: Skeletons, row: int, places: tuple[int, ...]) -> Skeleton:
        """Return the skeleton of a crystal in its usual form, with a place for every element.

        Args:
            skeletons: Those of the table.
            row: Which of the crystals of the pattern.
            places: Of each slot.
        """
        if (row, places) not in self.forms:
            known = skeletons[int(self.indices[row])]
            to = dict(zip(self.elements[row].tolist(), places, strict=True))
            usual = usual_form(known.group, ((to[z], site) for z, site in known.orbits))
            self.forms[row, places] = Skeleton(known.group, usual)
        return self.forms[row, places]


class _Nearest(NamedTuple):
    """The crystals of a pattern whose elements are most easily replaced by the wanted ones.

    Attributes:
        pattern: Of them.
        wanted: Wanted element of every slot.
        rows: Which of the pattern's crystals, the nearest first.
        cost: Of each.
        slot: Which slot of the crystal every wanted element takes, [crystals, slots].
    """

    pattern: _Pattern
    wanted: NDArray[np.int64]
    rows: NDArray[np.int64]
    cost: NDArray[np.float64]
    slot: NDArray[np.int64]

    def weight(self, least: float) -> NDArray[np.float64]:
        """Return the weight of each crystal.

        Args:
            least: Cost of the nearest crystal, from which the weights fall.
        """
        old = np.take_along_axis(self.pattern.elements[self.rows], self.slot, 1)
        # What is asked for often is another polymorph of what is known.
        return np.where((old == self.wanted).all(1), SAME_COMPOSITION_WEIGHT, 1.0) * cost_weights(
            self.cost, least
        )


class SkeletonTable:
    """Skeletons of known crystals, by their pattern of element counts.

    Args:
        skeletons: One per crystal, in the order of the crystals.
    """

    def __init__(self, skeletons: Skeletons) -> None:
        self.skeletons = skeletons
        self._patterns: dict[tuple[int, ...], _Pattern] = {}

    def find(
        self,
        composition: Composition,
        *,
        limit: int = 20,
        groups: Collection[int] = range(1, N_GROUPS + 1),
        exclude: int = -1,
    ) -> list[WeightedSkeleton]:
        """Return skeletons for a composition, the likeliest first.

        Args:
            composition: What one primitive cell is to hold.
            limit: Skeletons at most.
            groups: Space groups that are allowed.
            exclude: A crystal that is not asked, by its number.
        """
        near = self._nearest(composition, groups=groups, exclude=exclude)
        if not len(near.rows):
            return []
        weight = near.weight(near.cost[0])
        # The place in the composition of what takes each slot of a crystal.
        wanted = near.wanted.tolist()
        place = np.array([[z for z, _ in composition.counts].index(z) for z in wanted])
        places = np.empty_like(near.slot)
        np.put_along_axis(places, near.slot, place[None], 1)
        weights: dict[Skeleton, float] = defaultdict(float)
        for row, to, w in zip(near.rows.tolist(), places.tolist(), weight.tolist(), strict=True):
            weights[near.pattern.form(self.skeletons, row, tuple(to))] += w
        total = sum(weights.values())
        best = sorted(weights.items(), key=lambda pair: -pair[1])[:limit]
        return [WeightedSkeleton(_with_elements(s, composition), w / total) for s, w in best]

    def units(self, unit: Composition, max_atoms: int) -> list[tuple[int, float]]:
        """Return how many formula units cells of known crystals hold, the likeliest number first.

        Crystals with the same ratio of element counts are weighed as in `find`, by the cost of
        putting the wanted elements in the place of theirs.

        Args:
            unit: One formula unit.
            max_atoms: Of the largest cell.

        Returns:
            Numbers of formula units of primitive cells, and their fractions of the weights; empty
            if no known crystal has the ratio.
        """
        cells = {z: self._nearest(unit * z) for z in range(1, max_atoms // unit.n_atoms + 1)}
        cells = {z: near for z, near in cells.items() if len(near.rows)}
        least = min((near.cost[0] for near in cells.values()), default=0.0)
        weights = {z: float(near.weight(least).sum()) for z, near in cells.items()}
        best = sorted(weights.items(), key=lambda pair: -pair[1])
        return [(z, weight / sum(weights.values())) for z, weight in best]

    def _nearest(
        self,
        composition: Composition,
        *,
        groups: Collection[int] = range(1, N_GROUPS + 1),
        exclude: int = -1,
    ) -> "_Nearest":
        """Return the crystals whose elements are most easily replaced; see `find`."""
        wanted, counts = slots_of(composition)
        pattern = self._pattern(tuple(counts.tolist()))
        if not len(pattern.indices):
            nothing = np.empty((0, len(wanted)), np.int64)
            return _Nearest(pattern, wanted, np.empty(0, np.int64), np.empty(0), nothing)
        cost, slot = assign(pattern.elements, mp20_counts().cost[wanted], counts)
        if len(groups) < N_GROUPS:
            cost[~np.isin(pattern.groups, list(groups))] = np.inf
        cost[pattern.indices == exclude] = np.inf
        near = np.argsort(cost, kind="stable")[:NEAREST]
        near = near[np.isfinite(cost[near])]
        return _Nearest(pattern, wanted, near, cost[near], slot[near])

    def _pattern(self, pattern: tuple[int, ...]) -> _Pattern:
        """Return the crystals of a pattern, which are looked for once."""
        if pattern not in self._patterns:
            counts, elements, n_elements = self._slots
            several = np.flatnonzero(n_elements == len(pattern))
            last = np.cumsum(n_elements)[several]
            rows = last[:, None] - np.arange(len(pattern), 0, -1)
            alike = (counts[rows] == pattern).all(1)
            indices = several[alike]
            self._patterns[pattern] = _Pattern(
                self.skeletons.group[indices], indices, elements[rows[alike]]
            )
        return self._patterns[pattern]

    @cached_property
    def _slots(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Count and element of every slot, crystal by crystal, and how many each crystal has."""
        several, most = self.skeletons, max(len(sites(n)) for n in range(1, N_GROUPS + 1))
        multiplicity = np.zeros((N_GROUPS + 1, most), np.int64)
        for number in range(1, N_GROUPS + 1):
            multiplicity[number, : len(sites(number))] = [s.multiplicity for s in sites(number)]
        crystal = np.arange(len(several)).repeat(several.n_orbits)
        keys, own = np.unique(crystal * 256 + several.element, return_inverse=True)
        counts = np.bincount(own, multiplicity[several.group[crystal], several.site])
        crystal, elements = keys // 256, keys % 256
        order = np.lexsort((elements, counts, crystal))
        n_elements = np.bincount(crystal, minlength=len(several))
        return counts[order].astype(np.int64), elements[order], n_elements


def in_turn(several: Sequence[WeightedSkeleton], count: int) -> list[WeightedSkeleton]:
    """Return the skeletons of several candidates: always that of the greatest weight next.

    A weight counts `AGAIN` times as much for every time that its skeleton was taken before: of
    several runs inside the right skeleton some miss the crystal.

    Args:
        several: Skeletons to take.
        count: Candidates.
    """
    turns = [
        (max(one.weight, LEAST_WEIGHT) * AGAIN**turn, one)
        for turn in range(count)
        for one in several
    ]
    turns.sort(key=lambda pair: -pair[0])
    return [one for _, one in turns[:count]]


@lru_cache(maxsize=2)
def table_of(skeletons: Skeletons) -> SkeletonTable:
    """Return the table of skeletons, which is made once.

    Args:
        skeletons: Of a checkpoint.
    """
    return SkeletonTable(skeletons)


def _with_elements(skeleton: Skeleton, composition: Composition) -> Skeleton:
    """Put the elements of a composition where a skeleton has their places in it."""
    orbits = ((composition.counts[place][0], site) for place, site in skeleton.orbits)
    return Skeleton(skeleton.group, tuple(orbits))


def usual_form(group: int, orbits: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the one of several names of a skeleton that is used: the least.

    Another origin or orientation gives the sites of a crystal other numbers: rocksalt has Na on 4a
    and Cl on 4b, or the other way round.

    Args:
        group: International number.
        orbits: Element, or any number that stands for it, and site of every orbit.
    """
    several = tuple(orbits)
    return min(tuple(sorted((z, to[s]) for z, s in several)) for to in site_permutations(group))


def skeleton_of(crystal: Crystal, found: "MoyoDataset | None") -> Skeleton:
    """Return the space group of a crystal and the sites of its atoms.

    Args:
        crystal: Any cell; the skeleton is of the primitive one.
        found: Its symmetry (`crystal_fidelity.symmetry.dataset`); None is P1.
    """
    if found is None:
        return Skeleton(1, tuple((z, 0) for z in sorted(crystal.atomic_numbers.tolist())))
    primitive, number = cell_of(found.prim_std_cell), found.number
    orbits = [
        (
            int(primitive.atomic_numbers[one.first]),
            _site_of(number, _key(one.projector, one.centre)),
        )
        for one in orbits_of(primitive, *operations(number))
    ]
    return Skeleton(number, usual_form(number, orbits))


_SHIFTS = np.array(list(itertools.product(range(-2, 3), repeat=3)), dtype=float)


def _key(projector: NDArray[np.float64], centre: NDArray[np.float64]) -> tuple[int, ...]:
    parts = (*np.rint(projector * 24).ravel(), *np.rint(centre * 48))
    return tuple(int(part) for part in parts)


@cache
def _site_of(number: int, key: tuple[int, ...]) -> int:
    """Return the Wyckoff position that a site P (1/24), c (1/48) belongs to.

    Two sites are one if their projectors agree and a lattice vector n moves one centre to the
    other: c' - c = (I - P) n.
    """
    projector, centre = np.array(key[:9]).reshape(3, 3) / 24, np.array(key[9:]) / 48
    rotations, translations = operations(number)
    across = np.eye(3) - projector
    moves = _SHIFTS @ across.T
    for index, site in enumerate(sites(number)):
        if site.freedom != round(float(np.trace(projector))):
            continue
        turned = rotations @ site.projector @ np.linalg.inv(rotations)
        alike = np.abs(turned - projector).max((1, 2)) < 1e-6
        centres = rotations[alike] @ site.centre + translations[alike]
        apart = (centre - centres @ across.T)[:, None] - moves
        if (np.abs(apart).max(2) < 1e-2).any():
            return index
    raise LookupError(f"no site of space group {number} is {key}")


def enumerate_skeletons(
    composition: Composition, group: int, *, limit: int = ENUMERATED
) -> list[Skeleton]:
    """Return the ways to fill the sites of a space group, those with fewest orbits first.

    A site without freedom holds one atom of one element; others take any number of orbits. Ways
    that differ by the choice of the origin or orientation are one (`site_permutations`).

    Args:
        composition: What one primitive cell is to hold.
        group: International number.
        limit: Ways at most.
    """
    multiplicities = [site.multiplicity for site in sites(group)]
    free = [site.freedom > 0 for site in sites(group)]

    def fillings(count: int, first: int, taken: frozenset[int]) -> Iterator[tuple[int, ...]]:
        """Yield multisets of sites from `first` on that hold `count` atoms."""
        if count == 0:
            yield ()
            return
        for site in range(first, len(multiplicities)):
            if multiplicities[site] > count or (site in taken and not free[site]):
                continue
            left, used = count - multiplicities[site], taken | {site}
            for rest in fillings(left, site if free[site] else site + 1, used):
                yield (site, *rest)

    def all_elements(
        left: Sequence[tuple[int, int]], taken: frozenset[int]
    ) -> Iterator[tuple[tuple[int, int], ...]]:
        if not left:
            yield ()
            return
        (place, count), *others = left
        for filling in fillings(count, 0, taken):
            for rest in all_elements(others, taken | set(filling)):
                yield (*((place, site) for site in filling), *rest)

    counts = [(place, count) for place, (_, count) in enumerate(composition.counts)]
    found = itertools.islice(all_elements(counts, frozenset()), limit)
    usual = dict.fromkeys(usual_form(group, orbits) for orbits in found)
    skeletons = [_with_elements(Skeleton(group, orbits), composition) for orbits in usual]
    return sorted(skeletons, key=lambda skeleton: len(skeleton.orbits))
