"""From a composition to the known crystals that its elements would fit into, best first.

Every template with the same pattern of element counts is a candidate. Its elements are assigned to
the wanted ones of equal count at the least cost of exchange, and the candidates near in cost vote
for the prototype they have in common: many distant relatives of one prototype say more than one
near relative of another.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from crystorus.data.compositions import Composition
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.geometry import Crystals
from crystorus.templates.library import PatternGroup, TemplateLibrary
from crystorus.templates.surroundings import difference

VOTERS = 200
"""Candidates nearest in cost that are heard."""
WORST_EXCHANGE = 0.6
"""How much of the costliest exchange of a candidate is counted again."""
TEMPERATURES = ((1.0, 0.1), (0.03, 0.36))
"""Weights, and the costs over which a vote falls by e: near relatives, and the rest."""
WIDTH = 0.023
"""Difference of surroundings over which two candidates cease to vote for each other."""
OWN_VOTE = 0.08
"""How much of its own vote a candidate gets again."""
SAME_COMPOSITION_VOTE = 0.13
"""Vote of a crystal of the very composition: what is asked for often is another polymorph."""
LIKE_KNOWN = 0.2
"""What the votes for a known phase of the very composition count in the order of the candidates,
whoever gave them."""
KNOWN_WITHIN = 0.05
"""Difference of surroundings within which a candidate counts as that phase."""
DISTINCT = 0.08
"""Difference of surroundings from which two candidates count as two prototypes; half of the pairs
that differ so much still match (StructureMatcher, stol 0.5)."""
_ASSIGNMENTS = 5040  # seven elements of equal count; of more, that many orders are tried


@dataclass(frozen=True, eq=False)
class Candidate:
    """A known crystal with the wanted elements in its place.

    Attributes:
        template: Its number in the library.
        template_id: Its name there.
        assignment: Wanted element by template element, as atomic numbers.
        cost: -log of the probability that the prototype survives the exchange, the least likely
            of its elements counted 1.6 times, ≥ 0; 0.022 per element that stays.
        share: Of all votes, those for this prototype, 0 to 1; the votes for a known phase of the
            very composition count in full here, and less in the order of the candidates.
        copies: Template cells along each lattice vector.
        distances: Surroundings with the elements in the order of the wanted slots.
    """

    template: int
    template_id: str
    assignment: dict[int, int]
    cost: float
    share: float
    copies: tuple[int, int, int]
    distances: np.ndarray

    @property
    def same_composition(self) -> bool:
        """Whether no element was exchanged."""
        return all(old == new for old, new in self.assignment.items())


def find_templates(
    library: TemplateLibrary, composition: Composition, *, limit: int = 20, exclude: int = -1
) -> list[Candidate]:
    """Return the candidates of distinct prototypes, the likeliest first.

    Where no template has as many atoms, those with a whole fraction of them are repeated.

    Args:
        library: Where to look.
        composition: What one cell is to hold.
        limit: Candidates at most.
        exclude: A template that may not be used, by its number.
    """
    counts = sorted(count for _, count in composition.counts)
    for copies in _divisors(math.gcd(*counts)):
        smaller = Composition(tuple((z, count // copies) for z, count in composition.counts))
        found = _of_pattern(library, smaller, limit, exclude, copies)
        if found:
            return found
    return []


def substitute(
    library: TemplateLibrary, candidate: Candidate, statistics: CellStatistics
) -> Crystals:
    """Return the candidate as a crystal, at the volume expected of its composition.

    The atoms are in the order of `Composition.atomic_numbers`.

    Args:
        library: Where the candidate was found.
        candidate: What to put into it.
        statistics: Give the volume, through their model linear in atomic fractions.

    Returns:
        A batch of one, float64.
    """
    template = library.template(candidate.template)
    renamed = [candidate.assignment[z] for z in template.atomic_numbers.tolist()]
    crystal = _repeated(
        Crystals(template.lattice, template.frac_coords, torch.tensor(renamed), template.n_atoms),
        candidate.copies,
    )
    volume = float(statistics.expected_log_volume(crystal).exp() * crystal.n_atoms)
    scale = (volume / float(crystal.volume[0])) ** (1 / 3)
    order = Composition.of(renamed).order(crystal.atomic_numbers.tolist())
    return Crystals(
        crystal.lattice * scale,
        crystal.frac_coords[order],
        crystal.atomic_numbers[order],
        crystal.n_atoms,
    )


def _of_pattern(
    library: TemplateLibrary, composition: Composition, limit: int, exclude: int, copies: int
) -> list[Candidate]:
    slots = sorted((count, z) for z, count in composition.counts)
    wanted = np.array([z for _, z in slots])
    counts = np.array([count for count, _ in slots])
    group = library.group(tuple(counts.tolist()))
    if group is None:
        return []
    cost, assigned = _assign(group, wanted, counts, library.exchange.cost)
    cost[group.indices == exclude] = np.inf
    near = np.argsort(cost, kind="stable")[:VOTERS]
    near = near[np.isfinite(cost[near])]
    if not len(near):
        return []
    slot = assigned[near]
    distances = group.distances[near[:, None, None], slot[:, :, None], slot[:, None, :]]
    elements = np.take_along_axis(group.elements[near], slot, 1)
    share, weight = _votes(cost[near], distances, (elements == wanted).all(1))
    return [
        Candidate(
            int(group.indices[near[n]]),
            library.ids[group.indices[near[n]]],
            dict(zip(elements[n].tolist(), wanted.tolist(), strict=True)),
            float(cost[near[n]]),
            float(share[n]),
            _compact(library.template(int(group.indices[near[n]])), copies),
            distances[n],
        )
        for n in _distinct(share * weight, distances, limit)
    ]


def _assign(
    group: PatternGroup, wanted: np.ndarray, counts: np.ndarray, cost: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least cost of every template, [N], and the slot each wanted element takes."""
    slots = list(itertools.islice(_assignments(counts.tolist()), _ASSIGNMENTS))
    costs = (cost[wanted, group.elements[:, slot]] for slot in slots)
    totals = np.stack([each.sum(1) + WORST_EXCHANGE * each.max(1) for each in costs])
    best = totals.argmin(0)
    return totals.min(0), np.array(slots)[best]


def _assignments(counts: list[int]) -> itertools.chain[list[int]]:
    """Yield every order of the slots that only exchanges slots of equal count."""
    runs = [list(run) for _, run in itertools.groupby(range(len(counts)), key=counts.__getitem__)]
    orders = itertools.product(*map(itertools.permutations, runs))
    return itertools.chain([slot for run in order for slot in run] for order in orders)


def _votes(
    cost: np.ndarray, distances: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of votes for each candidate's prototype, and what it counts."""
    apart = difference(distances[:, None], distances[None])
    beyond = cost - cost.min()
    vote = sum((weight * np.exp(-beyond / t) for weight, t in TEMPERATURES), np.zeros_like(cost))
    vote *= np.where(same, SAME_COMPOSITION_VOTE, 1.0)
    heard = np.exp(-0.5 * (apart / WIDTH) ** 2) @ vote + OWN_VOTE * vote
    known = (apart[:, same] < KNOWN_WITHIN).any(1)
    return heard / (1 + OWN_VOTE) / vote.sum(), np.where(known, LIKE_KNOWN, 1.0)


def _distinct(preference: np.ndarray, distances: np.ndarray, limit: int) -> list[int]:
    """Return the candidates, the most preferred first, those like an earlier one left out."""
    chosen: list[int] = []
    for n in np.argsort(-preference, kind="stable").tolist():
        if all(difference(distances[n], distances[c]) >= DISTINCT for c in chosen):
            chosen.append(n)
            if len(chosen) == limit:
                break
    return chosen


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _compact(crystal: Crystals, copies: int) -> tuple[int, int, int]:
    """Return how often to repeat the cell along its vectors so that it is as cubic as can be."""
    lengths = torch.linalg.norm(crystal.lattice[0], dim=0).tolist()
    options = [(a, b, copies // a // b) for a in _divisors(copies) for b in _divisors(copies // a)]
    return min(options, key=lambda n: max(k * x for k, x in zip(n, lengths, strict=True)))


def _repeated(crystal: Crystals, copies: tuple[int, int, int]) -> Crystals:
    """Return the supercell of whole copies along the lattice vectors."""
    if copies == (1, 1, 1):
        return crystal
    size = torch.tensor(copies, dtype=crystal.lattice.dtype)
    cells = torch.cartesian_prod(*(torch.arange(k, dtype=size.dtype) for k in copies))
    frac_coords = (crystal.frac_coords[:, None] + cells) / size
    total = len(cells)
    return Crystals(
        crystal.lattice * size,
        frac_coords.flatten(0, 1),
        crystal.atomic_numbers.repeat_interleave(total),
        crystal.n_atoms * total,
    )
