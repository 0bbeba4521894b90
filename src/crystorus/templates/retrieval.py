"""From a composition to the known crystals that its elements would fit into, best first.

Every library crystal with the same pattern of element counts can be a template, and where those
cost much, also what can be derived from crystals of other patterns. Templates near in cost add
weight to the prototype they have in common: many distant relatives of one prototype say more than
one near relative of another.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from crystorus.data.compositions import Composition, symbol_of
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import supercell
from crystorus.templates.derivatives import MAX_COST_BEYOND, fit_derivatives
from crystorus.templates.fitting import Fits, fit_pattern
from crystorus.templates.library import TemplateLibrary
from crystorus.templates.ranking import KERNEL_WIDTH, OWN_WEIGHT, shipped_ranking, shortlist
from crystorus.templates.surroundings import differences, match_probability

NEAREST = 200
"""Number of templates, nearest in cost, that are considered."""
FAR_COST = 1.2
"""Cost of the nearest template from which derivatives of other patterns are considered too."""
DECAYS = ((1.0, 0.1), (0.03, 0.36))
"""Factors of a template's weight and the costs over which they fall by e: near relatives, the
rest."""
SAME_COMPOSITION_WEIGHT = 0.13
"""Factor for a crystal of the very composition: what is asked for often is another polymorph."""
KNOWN_PHASE_WEIGHT = 0.2
"""Factor, in the order of the templates alone, for the prototype of a known phase of the very
composition."""
KNOWN_WITHIN = 0.05
"""Difference of surroundings within which a template counts as that phase."""
DISTINCT_FROM = 0.05
"""Difference of surroundings from which two templates count as two prototypes."""
PROTOTYPES, PROTOTYPES_FROM, CHEAPEST = 12, 0.08, 28
"""The network weighs the first twelve prototypes by weight, as different as this, and the 28
templates nearest in cost."""


@dataclass(frozen=True, eq=False)
class Template:
    """A known crystal with the wanted elements in place of its own.

    Attributes:
        template: Its number in the library.
        template_id: Its name there.
        numbers: Wanted element of each atom of the template, [n].
        cost: -log of the probability that the prototype survives the substitution, the least
            likely of its elements counted again by `fitting.WORST_AGAIN`, >= 0. For one of another
            pattern, with what a derivative costs.
        prototype_fraction: Probability, estimated from known crystals alone, that its prototype is
            right and those before it are not, 0 to 1; 0 for what comes after the shortlist.
        copies: Template cells along each lattice vector.
        distances: Surroundings with the elements in the order of the wanted slots.
        same_composition: Whether no element was substituted.
        substitution: What stands for what, such as "Sr>Ba Ti>Zr": elements of the template that
            do not stay, and the wanted ones on their sites.
    """

    template: int
    template_id: str
    numbers: np.ndarray
    cost: float
    prototype_fraction: float
    copies: tuple[int, int, int]
    distances: np.ndarray
    same_composition: bool
    substitution: str


def find_templates(
    library: TemplateLibrary, composition: Composition, *, limit: int = 20, exclude: int = -1
) -> list[Template]:
    """Return templates of distinct prototypes, the likeliest first.

    Where no crystal of the library has as many atoms, those with a whole fraction of them are
    repeated. Where the nearest costs much or there is none, derivatives are considered too.

    Args:
        library: Where to look.
        composition: What one cell is to hold.
        limit: Templates at most.
        exclude: A library crystal that may not be used, by its number.

    Returns:
        At most `limit` templates, empty if none fits.
    """
    fits = considered_fits(library, composition, exclude=exclude)
    if fits is None:
        return []
    apart = differences(fits.distances)
    by_weight = np.argsort(-prototype_weights(fits.cost, apart, fits.same), kind="stable")
    some = shortlisted(fits, apart, by_weight)
    ranking = shipped_ranking()
    described = shortlist(
        library,
        composition,
        fits,
        some,
        np.log(cost_weights(fits.cost, fits.cost.min())),
        ranking.log_volumes.numpy(),
    )
    with torch.no_grad():
        left = ranking(described)[0].double().numpy()
    alike = match_probability(apart[np.ix_(some, some)])
    chosen: list[int] = []
    fractions: list[float] = []
    free = np.ones(len(some), dtype=bool)
    while free.any() and len(chosen) < limit:
        # The one most likely to match where those before it do not.
        gains = np.where(free, alike @ left, -1.0)
        best = int(gains.argmax())
        chosen.append(int(some[best]))
        fractions.append(float(gains[best]))
        left = left * (1 - alike[best])
        free &= apart[some, some[best]] >= DISTINCT_FROM
    for n in by_weight.tolist():
        if len(chosen) < limit and (apart[n, chosen] >= DISTINCT_FROM).all():
            chosen.append(n)
            fractions.append(0.0)
    return [
        _template(library, fits, n, fraction, composition.n_atoms)
        for n, fraction in zip(chosen, fractions, strict=True)
    ]


def considered_fits(
    library: TemplateLibrary, composition: Composition, *, exclude: int = -1
) -> Fits | None:
    """Return all templates that are considered for a composition, as `find_templates` does.

    Args:
        library: Where to look.
        composition: What is wanted.
        exclude: Number of a template that is passed over; -1 for none.
    """
    plain = None
    for copies in _divisors(math.gcd(*(count for _, count in composition.counts))):
        smaller = Composition(tuple((z, count // copies) for z, count in composition.counts))
        plain = fit_pattern(library, smaller, limit=NEAREST, exclude=exclude)
        if plain is not None:
            break
    nearest = math.inf if plain is None else float(plain.cost[0])
    derived = None
    if nearest >= FAR_COST:
        below = nearest + MAX_COST_BEYOND
        derived = fit_derivatives(library, composition, below=below, exclude=exclude)
    pools = [pool for pool in (plain, derived) if pool is not None]
    return Fits.concat(pools) if pools else None


def shortlisted(fits: Fits, apart: np.ndarray, by_weight: np.ndarray) -> np.ndarray:
    """Return which templates the network weighs: prototypes of most weight, and the nearest.

    Args:
        fits: All that are considered.
        apart: Differences of their surroundings, [N, N].
        by_weight: Their numbers, the greatest prototype weight first, [N].
    """
    prototypes: list[int] = []
    for n in by_weight.tolist():
        if len(prototypes) < PROTOTYPES and (apart[n, prototypes] >= PROTOTYPES_FROM).all():
            prototypes.append(n)
    return np.union1d(prototypes, np.argsort(fits.cost, kind="stable")[:CHEAPEST])


def substitute(
    library: TemplateLibrary, template: Template, statistics: CellStatistics
) -> Crystals:
    """Return the template as a crystal, at its own volume times what its new elements change.

    That is the ratio of the volumes which the statistics expect of the two compositions: one where
    no element is substituted, so that a known compound stays what it is. The atoms are in the
    order of `Composition.atomic_numbers`.

    Args:
        library: Where the template was found.
        template: What to build.
        statistics: Expect a volume of each composition, linear in atomic fractions.

    Returns:
        A batch of one, float64.
    """
    known = library.template(template.template)
    numbers = torch.from_numpy(template.numbers)
    crystal = Crystals(known.lattice, known.frac_coords, numbers, known.n_atoms)
    expected, own = (statistics.expected_log_volume(one) for one in (crystal, known))
    scale = float((expected - own).exp()) ** (1 / 3)
    if template.copies != (1, 1, 1):
        crystal = supercell(crystal, template.copies)
    order = Composition.of(template.numbers.tolist()).order(crystal.atomic_numbers.tolist())
    return Crystals(
        crystal.lattice * scale,
        crystal.frac_coords[order],
        crystal.atomic_numbers[order],
        crystal.n_atoms,
    )


def cost_weights(cost: np.ndarray, least: float) -> np.ndarray:
    """Return the weight of each template by its cost alone, about 1 where it is the least.

    Args:
        cost: Of substitution, 0 for the composition itself, [N].
        least: Cost from which the weights fall.
    """
    beyond = cost - least
    return np.asarray(sum(factor * np.exp(-beyond / t) for factor, t in DECAYS))


def prototype_weights(cost: np.ndarray, apart: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return each template's weight together with that of those like it.

    Args:
        cost: Of each template, [N].
        apart: Differences of their surroundings, [N, N].
        same: Whether no element was substituted, [N].
    """
    weight = cost_weights(cost, cost.min()) * np.where(same, SAME_COMPOSITION_WEIGHT, 1.0)
    shared = np.exp(-0.5 * (apart / KERNEL_WIDTH) ** 2) @ weight + OWN_WEIGHT * weight
    known = (apart[:, same] < KNOWN_WITHIN).any(1)
    return np.asarray(shared * np.where(known, KNOWN_PHASE_WEIGHT, 1.0))


def _template(
    library: TemplateLibrary, fits: Fits, n: int, fraction: float, n_atoms: int
) -> Template:
    number, elements = int(fits.templates[n]), fits.numbers[n]
    return Template(
        number,
        library.ids[number],
        elements,
        float(fits.cost[n]),
        fraction,
        _compact(library.template(number), n_atoms // len(elements)),
        fits.distances[n],
        bool(fits.same[n]),
        _substitution(library.atomic_numbers(number), elements),
    )


def _substitution(old: np.ndarray, new: np.ndarray) -> str:
    """Return what stands for what, as Sr>Ba; where an element is shared, as Fe>Mg+Fe."""
    given: dict[int, list[int]] = {}
    for was, now in dict.fromkeys(zip(old.tolist(), new.tolist(), strict=True)):
        given.setdefault(was, []).append(now)
    return " ".join(
        f"{symbol_of(was)}>{'+'.join(map(symbol_of, sorted(now)))}"
        for was, now in given.items()
        if now != [was]
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _compact(crystal: Crystals, copies: int) -> tuple[int, int, int]:
    """Return how often to repeat the cell along its vectors so that it is as cubic as can be."""
    lengths = torch.linalg.norm(crystal.lattice[0], dim=0).tolist()
    options = [(a, b, copies // a // b) for a in _divisors(copies) for b in _divisors(copies // a)]
    return min(options, key=lambda n: max(k * x for k, x in zip(n, lengths, strict=True)))
