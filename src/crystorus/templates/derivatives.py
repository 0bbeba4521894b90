"""Templates of another pattern: the sites of one element shared by two, or of two taken by one.

An ordered derivative gives part of the sites of a template's element to one wanted element and
the rest to another, as MgFe2O4 is made of Fe3O4; a merged one gives the sites of two elements to
one, as Fe3O4 is made of MgFe2O4. They are looked for where the nearest template of the very
pattern is far, or there is none, and cost more than their substitutions alone.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crystorus.data.compositions import Composition
from crystorus.templates.fitting import Fits, assign, renamed, slots_of
from crystorus.templates.library import PatternGroup, TemplateLibrary
from crystorus.templates.surroundings import (
    difference,
    distances_between,
    nearest_distances,
    surroundings_in,
)

ORDERING_COST = 0.5
"""Cost of sharing an element's sites where they differ, beside the cost of the substitutions."""
SYMMETRY_BREAKING_COST = 0.9
"""The same where sites that are alike are shared."""
MERGING_COST = 0.6
"""Cost of giving the sites of two elements to one."""
MAX_COST_BEYOND = 1.2
"""A derivative is left out if it costs more than the best template of the exact pattern by this."""
MAX_COST = 4.0
"""A derivative that costs more is left out: of 29 such, none matched."""
_TEMPLATES = 60  # looked into, of either kind
_WAYS = 70  # ways to share the sites of one element that are tried
_KINDS = 10  # of sites of one element; of more, they are not shared as wholes
_FITS = 200
_ALIKE = 0.002  # difference of surroundings within which two ways to share are one
_SAME_SITE = 0.02  # greatest difference of two sites' nearest distances, in (V/n)^⅓


class _Wanted(NamedTuple):
    """What goes where one element of a template was: one element, or two and their counts."""

    total: int
    elements: tuple[int, ...]
    counts: tuple[int, ...]


class _Derivation(NamedTuple):
    """A template and what goes into it, by the elements it has."""

    cost: float
    template: int
    old: tuple[int, ...]
    new: tuple[_Wanted, ...]


def fit_derivatives(
    library: TemplateLibrary,
    composition: Composition,
    *,
    below: float = math.inf,
    exclude: int = -1,
) -> Fits | None:
    """Return templates with one element less or more than wanted, nearest in cost first.

    Args:
        library: Where to look.
        composition: What is wanted.
        below: Cost that they have to stay under; `MAX_COST` where that is less.
        exclude: A template that may not be used, by its number.
    """
    below = min(below, MAX_COST)
    ordered = _cheapest(library, _orderings(composition), below - ORDERING_COST, exclude)
    merged = _cheapest(library, _mergers(composition), below - MERGING_COST, exclude)
    found = [fit for one in ordered for fit in _ordered(library, one) if fit.cost[0] < below]
    found += [_merged(library, one) for one in merged]
    found.sort(key=lambda fit: float(fit.cost[0]))
    return Fits.concat(found[:_FITS]) if found else None


def _orderings(composition: Composition) -> Iterator[list[_Wanted]]:
    """Yield what is wanted with two of the elements on the sites of one."""
    wanted, counts = (each.tolist() for each in slots_of(composition))
    for pair in itertools.combinations(range(len(wanted)), 2):
        both = tuple(counts[slot] for slot in pair)
        yield [
            _Wanted(sum(both), tuple(wanted[slot] for slot in pair), both),
            *(
                _Wanted(counts[slot], (wanted[slot],), (counts[slot],))
                for slot in range(len(wanted))
                if slot not in pair
            ),
        ]


def _mergers(composition: Composition) -> Iterator[list[_Wanted]]:
    """Yield what is wanted with one of the elements on the sites of two."""
    wanted, counts = (each.tolist() for each in slots_of(composition))
    alone = [_Wanted(n, (z,), (n,)) for z, n in zip(wanted, counts, strict=True)]
    for one in alone:
        rest = [other for other in alone if other is not one]
        for part in range(1, one.total // 2 + 1):
            halves = (part, one.total - part)
            yield [*(_Wanted(n, one.elements, (n,)) for n in halves), *rest]


def _cheapest(
    library: TemplateLibrary, options: Iterator[list[_Wanted]], below: float, exclude: int
) -> list[_Derivation]:
    """Return the templates that the options cost least in."""
    found: list[_Derivation] = []
    for option in options:
        wanted = sorted(option, key=lambda one: one.total)
        counts = np.array([one.total for one in wanted])
        group = library.group(tuple(counts.tolist()))
        if group is not None:
            found += _in_group(library, group, wanted, counts, below, exclude)
    found.sort(key=lambda one: one.cost)
    return found[:_TEMPLATES]


def _in_group(
    library: TemplateLibrary,
    group: PatternGroup,
    wanted: Sequence[_Wanted],
    counts: np.ndarray,
    below: float,
    exclude: int,
) -> list[_Derivation]:
    costs = np.stack([library.substitution.cost[list(one.elements)].sum(0) for one in wanted])
    cost, slots = assign(group.elements, costs, counts)
    cost[group.indices == exclude] = np.inf
    near = np.argsort(cost, kind="stable")[:_TEMPLATES]
    return [
        _Derivation(
            float(cost[n]),
            int(group.indices[n]),
            tuple(group.elements[n, slots[n]].tolist()),
            tuple(wanted),
        )
        for n in near[cost[near] < below].tolist()
    ]


def _merged(library: TemplateLibrary, one: _Derivation) -> Fits:
    new = np.array([each.elements[0] for each in one.new])
    numbers = renamed(library.atomic_numbers(one.template), np.array(one.old), new)
    return _fit(one, numbers, _distances(library, one.template), MERGING_COST)


def _ordered(library: TemplateLibrary, one: _Derivation) -> list[Fits]:
    """Return the different ways to share the sites, those between sites that differ first."""
    old = library.atomic_numbers(one.template)
    shared = next(n for n, each in enumerate(one.new) if len(each.elements) == 2)
    first, second = one.new[shared].elements
    rest = renamed(old, np.array(one.old), np.array([each.elements[-1] for each in one.new]))
    sites = np.flatnonzero(old == one.old[shared])
    distances = _distances(library, one.template)
    ways: list[Fits] = []
    kinds = _kinds(distances, old)[sites]
    for chosen, cost in _ways(sites, kinds, one.new[shared].counts[0]):
        numbers = rest.copy()
        numbers[chosen] = first
        numbers[np.setdiff1d(sites, chosen)] = second
        way = _fit(one, numbers, distances, cost)
        if all(difference(way.distances, other.distances)[0] >= _ALIKE for other in ways):
            ways.append(way)
    return ways


def _ways(sites: np.ndarray, kinds: np.ndarray, count: int) -> Iterator[tuple[list[int], float]]:
    """Yield the choices of `count` sites, all of a kind or none of it first, and their costs."""
    members = [sites[kinds == kind].tolist() for kind in np.unique(kinds)]
    if len(members) <= _KINDS:
        numbers = range(1, len(members))
        some = itertools.chain.from_iterable(itertools.combinations(members, n) for n in numbers)
        wholes = ([site for kind in kinds for site in kind] for kinds in some)
        fitting = (chosen for chosen in wholes if len(chosen) == count)
        yield from ((chosen, ORDERING_COST) for chosen in itertools.islice(fitting, _WAYS))
    if math.comb(len(sites), count) <= _WAYS:
        for subset in itertools.combinations(sites.tolist(), count):
            yield list(subset), SYMMETRY_BREAKING_COST


def _kinds(distances: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return for every atom the first one with the same nearest distances to every element."""
    nearest = nearest_distances(distances, numbers, np.unique(numbers))
    alike = abs(nearest[:, :, None] - nearest[:, None]).max((0, -1)) < _SAME_SITE
    return (alike & (numbers[:, None] == numbers[None])).argmax(1)


def _distances(library: TemplateLibrary, template: int) -> np.ndarray:
    crystal = library.template(template)
    return distances_between(crystal.lattice[0].numpy(), crystal.frac_coords.numpy())


def _fit(one: _Derivation, numbers: np.ndarray, distances: np.ndarray, beside: float) -> Fits:
    found = surroundings_in(distances, numbers)
    return Fits(
        np.array([one.template]),
        [numbers],
        np.array([one.cost + beside]),
        found.distances[None].astype(np.float32),
        np.array([False]),
        np.array([True]),
    )
