"""How well one element stands in for another, counted over pairs of known crystals.

Two crystals that differ in one element either share a prototype or do not. The fraction of those
that do, shrunk towards what the elements' properties suggest where pairs are few, is the
probability that a prototype survives the substitution.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import numpy as np

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.networks.embedding import element_descriptors
from crystorus.templates.surroundings import Surroundings, difference

SAME_PROTOTYPE = 0.06
"""Greatest difference of surroundings within a prototype."""
ENOUGH_PAIRS = 20_000
"""Pairs from which a library is trusted to say itself what stands in for what."""
_PRIOR_PAIRS = 34.0
LARGEST_BUCKET = 400
"""Crystals that differ in one element and are compared with each other at most."""
_IDENTITY = 0.978
# Fraction of pairs that keep their prototype against the distance of the substituted elements in
# standardised properties, read off 140 893 pairs of MP-20 train.
_DISTANCES = np.array([0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 7.0, 10.0, 14.0])
_FRACTIONS = np.array([0.90, 0.86, 0.74, 0.66, 0.63, 0.55, 0.43, 0.33, 0.13, 0.05])


@dataclass(frozen=True, eq=False)
class SubstitutionCounts:
    """Pairs of crystals that differ in one element, by the two elements; symmetric, [119, 119].

    Attributes:
        same: Pairs that share a prototype.
        other: Pairs that do not.
    """

    same: np.ndarray
    other: np.ndarray

    @functools.cached_property
    def cost(self) -> np.ndarray:
        """-log of the probability that a prototype survives the substitution, [119, 119]."""
        prior = _PRIOR_PAIRS * prior_survival()
        survival = (self.same + prior) / (self.same + self.other + _PRIOR_PAIRS)
        np.fill_diagonal(survival, _IDENTITY)
        return -np.log(survival)

    @property
    def pairs(self) -> int:
        """Number of pairs counted."""
        return int(self.same.sum() + self.other.sum()) // 2


@functools.cache
def mp20_counts() -> SubstitutionCounts:
    """Return the counts over the training split of MP-20, which ship with the package."""
    with resources.as_file(resources.files("crystorus.templates") / "exchange.npz") as path:
        tables = np.load(path)
        return SubstitutionCounts(tables["same"], tables["other"])


def prior_survival() -> np.ndarray:
    """Return the survival probability that elemental properties alone suggest, [119, 119]."""
    descriptors = element_descriptors().numpy()
    distance = np.linalg.norm(descriptors[:, None] - descriptors[None], axis=-1)
    return np.interp(distance, _DISTANCES, _FRACTIONS)


def count_substitutions(crystals: Iterable[Surroundings]) -> SubstitutionCounts:
    """Count, over all pairs that differ in the element of one slot, which share a prototype.

    Args:
        crystals: Fingerprints of a library's crystals.
    """
    buckets: dict[tuple[tuple[int, int], ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
    for crystal in crystals:
        slots = list(zip(crystal.counts.tolist(), crystal.elements.tolist(), strict=True))
        for slot, (count, element) in enumerate(slots):
            rest = [s for s in range(len(slots)) if s != slot]
            key = ((count, 0), *(slots[s] for s in rest))
            order = [slot, *rest]
            buckets[key].append((element, crystal.distances[np.ix_(order, order)]))
    shape = (MAX_ATOMIC_NUMBER + 1, MAX_ATOMIC_NUMBER + 1)
    same, other = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    for members in buckets.values():
        # A bucket beyond this size (an element's own allotropes) says little more, squared.
        for group in _pieces(members):
            _count(group, same, other)
    return SubstitutionCounts(same, other)


def _pieces(members: list[tuple[int, np.ndarray]]) -> Iterable[list[tuple[int, np.ndarray]]]:
    cuts = [*range(0, len(members), LARGEST_BUCKET), len(members)]
    return (members[start:stop] for start, stop in pairwise(cuts))


def _count(members: list[tuple[int, np.ndarray]], same: np.ndarray, other: np.ndarray) -> None:
    if len(members) < 2:
        return
    elements = np.array([element for element, _ in members])
    distances = np.stack([d for _, d in members])
    alike = difference(distances[:, None], distances[None]) < SAME_PROTOTYPE
    differ = elements[:, None] != elements[None]
    first = np.broadcast_to(elements[:, None], differ.shape)
    second = np.broadcast_to(elements[None], differ.shape)
    for table, chosen in ((same, differ & alike), (other, differ & ~alike)):
        np.add.at(table, (first[chosen], second[chosen]), 1)
