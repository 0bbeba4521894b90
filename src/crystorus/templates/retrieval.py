"""From a composition to the known crystals that its elements would fit into, best first.

Every template with the same pattern of element counts is a candidate, and where those are far,
also what can be derived from templates of other patterns. The candidates near in cost vote for the
prototype they have in common: many distant relatives of one prototype say more than one near
relative of another.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from crystorus.data.compositions import Composition, symbol_of
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.templates.derivatives import REACH, fit_derivatives
from crystorus.templates.fitting import Fits, fit_pattern
from crystorus.templates.library import TemplateLibrary
from crystorus.templates.surroundings import differences

VOTERS = 200
"""Candidates nearest in cost that are heard."""
FAR = 1.2
"""Cost of the nearest candidate from which derivatives of other patterns are heard too."""
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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A known crystal with the wanted elements in its place.

    Attributes:
        template: Its number in the library.
        template_id: Its name there.
        numbers: Wanted element of each atom of the template, [n].
        cost: -log of the probability that the prototype survives the exchange, the least likely
            of its elements counted 1.6 times, ≥ 0; 0.022 per element that stays. For one of
            another pattern, with what a derivative costs.
        share: Of all votes, those for this prototype, 0 to 1; the votes for a known phase of the
            very composition count in full here, and less in the order of the candidates.
        copies: Template cells along each lattice vector.
        distances: Surroundings with the elements in the order of the wanted slots.
        same_composition: Whether no element was exchanged.
        exchange: What stands for what, such as "Sr>Ba Ti>Zr": elements of the template that do
            not stay, and the wanted ones on their sites.
    """

    template: int
    template_id: str
    numbers: np.ndarray
    cost: float
    share: float
    copies: tuple[int, int, int]
    distances: np.ndarray
    same_composition: bool
    exchange: str


def find_templates(
    library: TemplateLibrary, composition: Composition, *, limit: int = 20, exclude: int = -1
) -> list[Candidate]:
    """Return the candidates of distinct prototypes, the likeliest first.

    Where no template has as many atoms, those with a whole fraction of them are repeated. Where
    the nearest is far or there is none, derivatives are candidates too.

    Args:
        library: Where to look.
        composition: What one cell is to hold.
        limit: Candidates at most.
        exclude: A template that may not be used, by its number.
    """
    plain = _of_pattern(library, composition, exclude)
    nearest = math.inf if plain is None else float(plain.cost[0])
    derived = None
    if nearest >= FAR:
        derived = fit_derivatives(library, composition, below=nearest + REACH, exclude=exclude)
    fits = [pool for pool in (plain, derived) if pool is not None]
    return _by_votes(library, Fits.concat(fits), composition, limit) if fits else []


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
    numbers = torch.from_numpy(candidate.numbers)
    crystal = _repeated(
        Crystals(template.lattice, template.frac_coords, numbers, template.n_atoms),
        candidate.copies,
    )
    volume = float(statistics.expected_log_volume(crystal).exp() * crystal.n_atoms)
    scale = (volume / float(crystal.volume[0])) ** (1 / 3)
    order = Composition.of(candidate.numbers.tolist()).order(crystal.atomic_numbers.tolist())
    return Crystals(
        crystal.lattice * scale,
        crystal.frac_coords[order],
        crystal.atomic_numbers[order],
        crystal.n_atoms,
    )


def _of_pattern(library: TemplateLibrary, composition: Composition, exclude: int) -> Fits | None:
    """Return the templates of the pattern, or of a whole fraction of it."""
    for copies in _divisors(math.gcd(*(count for _, count in composition.counts))):
        smaller = Composition(tuple((z, count // copies) for z, count in composition.counts))
        found = fit_pattern(library, smaller, limit=VOTERS, exclude=exclude)
        if found is not None:
            return found
    return None


def _by_votes(
    library: TemplateLibrary, fits: Fits, composition: Composition, limit: int
) -> list[Candidate]:
    apart = differences(fits.distances)
    share, weight = _votes(fits.cost, apart, fits.same)
    return [
        Candidate(
            int(fits.templates[n]),
            library.ids[fits.templates[n]],
            fits.numbers[n],
            float(fits.cost[n]),
            float(share[n]),
            _compact(
                library.template(int(fits.templates[n])),
                composition.n_atoms // len(fits.numbers[n]),
            ),
            fits.distances[n],
            bool(fits.same[n]),
            _exchange(library.atomic_numbers(int(fits.templates[n])), fits.numbers[n]),
        )
        for n in _distinct(share * weight, apart, limit)
    ]


def _exchange(old: np.ndarray, new: np.ndarray) -> str:
    """Return what stands for what, as Sr>Ba; where an element is shared, as Fe>Mg+Fe."""
    given: dict[int, list[int]] = {}
    for was, now in dict.fromkeys(zip(old.tolist(), new.tolist(), strict=True)):
        given.setdefault(was, []).append(now)
    return " ".join(
        f"{symbol_of(was)}>{'+'.join(map(symbol_of, sorted(now)))}"
        for was, now in given.items()
        if now != [was]
    )


def _votes(cost: np.ndarray, apart: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of votes for each candidate's prototype, and what it counts."""
    beyond = cost - cost.min()
    vote = sum((weight * np.exp(-beyond / t) for weight, t in TEMPERATURES), np.zeros_like(cost))
    vote *= np.where(same, SAME_COMPOSITION_VOTE, 1.0)
    heard = np.exp(-0.5 * (apart / WIDTH) ** 2) @ vote + OWN_VOTE * vote
    known = (apart[:, same] < KNOWN_WITHIN).any(1)
    return heard / (1 + OWN_VOTE) / vote.sum(), np.where(known, LIKE_KNOWN, 1.0)


def _distinct(preference: np.ndarray, apart: np.ndarray, limit: int) -> list[int]:
    """Return the candidates, the most preferred first, those like an earlier one left out."""
    chosen: list[int] = []
    for n in np.argsort(-preference, kind="stable").tolist():
        if (apart[n, chosen] >= DISTINCT).all():
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
