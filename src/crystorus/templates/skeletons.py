"""Skeletons for a composition: which space group and which sites, from what is known or by rule.

A table keeps of every training crystal its space group and which element sits on which Wyckoff
position, nothing else: no coordinate, no cell. Crystals with the same pattern of element counts
lend their skeleton to the wanted elements at the cost of exchanging theirs, as templates do
(`templates.fitting`); those near in cost add up their weights where their skeletons agree. Where
nothing is known, or a space group is asked for, all ways to fill its sites are enumerated.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import cell_of
from crystorus.data.compositions import Composition
from crystorus.diffusion.space_groups import Skeleton
from crystorus.geometry.space_groups import N_GROUPS, operations, orbits_of, sites
from crystorus.templates.fitting import assign, slots_of
from crystorus.templates.retrieval import DECAYS, NEAREST, SAME_COMPOSITION_WEIGHT
from crystorus.templates.substitution import mp20_counts

if TYPE_CHECKING:
    from moyopy import MoyoDataset

ENUMERATED = 2000
"""Skeletons of one space group that are enumerated at most."""


class WeightedSkeleton(NamedTuple):
    """A skeleton for a composition, and the fraction of the weights that speak for it."""

    skeleton: Skeleton
    weight: float


@dataclass(frozen=True, eq=False)
class SkeletonTable:
    """Skeletons of known crystals, by their pattern of element counts.

    Attributes:
        skeletons: One per crystal, in the order of the crystals.
    """

    skeletons: Sequence[Skeleton]
    _patterns: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict, repr=False
    )

    @cached_property
    def _groups(self) -> NDArray[np.int64]:
        return np.array([skeleton.group for skeleton in self.skeletons])

    def __len__(self) -> int:
        return len(self.skeletons)

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
        wanted, counts = slots_of(composition)
        indices, elements = self._pattern(tuple(counts.tolist()))
        if not len(indices):
            return []
        cost, slot = assign(elements, mp20_counts().cost[wanted], counts)
        allowed = np.isin(self._groups[indices], list(groups)) & (indices != exclude)
        cost = np.where(allowed, cost, np.inf)
        near = np.argsort(cost, kind="stable")[:NEAREST]
        near = near[np.isfinite(cost[near])]
        weights: dict[Skeleton, float] = defaultdict(float)
        for place in near.tolist():
            known = self.skeletons[int(indices[place])]
            old = elements[place][slot[place]]
            beyond = cost[place] - cost[near[0]]
            weight = sum(w * np.exp(-beyond / t) for w, t in DECAYS)
            if (old == wanted).all():  # what is asked for often is another polymorph
                weight *= SAME_COMPOSITION_WEIGHT
            exchange = dict(zip(old.tolist(), wanted.tolist(), strict=True))
            orbits = ((exchange[z], site) for z, site in known.orbits)
            weights[_ordered(known.group, orbits, composition)] += weight
        total = sum(weights.values())
        best = sorted(weights.items(), key=lambda pair: -pair[1])[:limit]
        return [WeightedSkeleton(skeleton, weight / total) for skeleton, weight in best]

    def _pattern(self, pattern: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the crystals of a pattern, and their elements by slot."""
        if not self._patterns:
            members: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
            for index, skeleton in enumerate(self.skeletons):
                counts: Counter[int] = Counter()
                for z, site in skeleton.orbits:
                    counts[z] += sites(skeleton.group)[site].multiplicity
                slots = sorted((n, z) for z, n in counts.items())
                members[tuple(n for n, _ in slots)].append((index, [z for _, z in slots]))
            for key, pairs in members.items():
                self._patterns[key] = (
                    np.array([index for index, _ in pairs]),
                    np.array([elements for _, elements in pairs]),
                )
        empty = (np.empty(0, np.int64), np.empty((0, len(pattern)), np.int64))
        return self._patterns.get(pattern, empty)


@lru_cache(maxsize=2)
def table_of(skeletons: tuple[Skeleton, ...]) -> SkeletonTable:
    """Return the table of skeletons, which is made once."""
    return SkeletonTable(skeletons)


def _ordered(group: int, orbits: Iterable[tuple[int, int]], composition: Composition) -> Skeleton:
    """Return a skeleton in its usual form, the atoms in the order of the composition's."""
    place = {z: place for place, (z, _) in enumerate(composition.counts)}
    elements = [z for z, _ in composition.counts]
    usual = usual_form(group, ((place[z], site) for z, site in orbits))
    return Skeleton(group, tuple((elements[n], site) for n, site in usual))


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
_ALL_SMALL = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=9))).reshape(-1, 3, 3)
_UNIMODULAR = _ALL_SMALL[np.abs(np.abs(np.linalg.det(_ALL_SMALL)) - 1) < 0.5]
_PARTS = sorted({k / 8 for k in range(8)} | {k / 6 for k in range(6)})
_ORIGINS = np.array(list(itertools.product(_PARTS, repeat=3)))


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


@cache
def site_permutations(number: int) -> tuple[tuple[int, ...], ...]:
    """Return how other origins and orientations renumber the Wyckoff positions of a space group.

    A map x → W x + w that carries the group into itself and keeps every cell of that symmetry, that
    is Wᵀ G W = G for a general metric G of it, is an isometry of the crystal: what it makes of a
    skeleton is the same skeleton, and is sampled with the same probabilities. These maps are the
    Euclidean normaliser of a general metric (International Tables A, 2016, chapter 3.5). Axes are
    not exchanged unless the cell allows it: a cell is no part of a skeleton, but the lengths of
    standard cells are ordered, and so is the prior.

    Args:
        number: International number.

    Returns:
        The new number of every position, once for each distinct renumbering.
    """
    rotations, translations = operations(number)
    random = np.random.default_rng(0).normal(size=(3, 3))
    metric = (rotations.transpose(0, 2, 1) @ (np.eye(3) + random @ random.T) @ rotations).mean(0)
    kept = _UNIMODULAR.transpose(0, 2, 1) @ metric @ _UNIMODULAR
    found, covered = set(), set()
    for turn in _UNIMODULAR[np.abs(kept - metric).max((1, 2)) < 1e-8]:
        if turn.tobytes() in covered:
            continue
        covered |= {np.rint(turn @ rotation).tobytes() for rotation in rotations}
        back = np.linalg.inv(turn)
        turned = np.rint(turn @ rotations @ back)
        same = (np.abs(turned[:, None] - rotations) < 0.5).all((2, 3))
        if not same.any(1).all():
            continue
        # {W|w}{R|t}{W|w}⁻¹ = {R'|W t + w - R' w} has to be an operation, up to a lattice vector.
        beyond = translations @ turn.T - translations[same.argmax(1)]
        origins = _ORIGINS
        for rotation, shift in zip(turned, beyond, strict=True):
            apart = shift + origins - origins @ rotation.T
            origins = origins[(np.abs(apart - np.rint(apart)) < 1e-6).all(1)]
        for origin in origins:
            renumbered = []
            for site in sites(number):
                projector = turn @ site.projector @ back
                centre = (np.eye(3) - projector) @ (turn @ site.centre + origin)
                renumbered.append(_site_of(number, _key(projector, centre)))
            found.add(tuple(renumbered))
    return tuple(sorted(found))


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
        (z, count), *others = left
        for filling in fillings(count, 0, taken):
            for rest in all_elements(others, taken | set(filling)):
                yield (*((z, site) for site in filling), *rest)

    found = itertools.islice(all_elements(composition.counts, frozenset()), limit)
    skeletons = dict.fromkeys(_ordered(group, orbits, composition) for orbits in found)
    return sorted(skeletons, key=lambda skeleton: len(skeleton.orbits))
