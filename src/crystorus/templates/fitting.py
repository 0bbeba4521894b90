"""Put the wanted elements into templates of their own pattern, at the least cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystorus.data.compositions import Composition
from crystorus.templates.library import TemplateLibrary

WORST_AGAIN = 0.6
"""Factor with which the costliest substitution of a template is counted again."""
_ASSIGNMENTS = 5040  # seven elements of equal count; of more, that many orders are tried


@dataclass(frozen=True, eq=False)
class Fits:
    """N templates with the wanted elements in place of theirs, side by side.

    Attributes:
        templates: Their numbers in the library, [N].
        numbers: Wanted element of each of a template's atoms, N arrays of [n].
        cost: Cost of the substitution, [N].
        distances: Surroundings, the wanted elements in the order of `slots_of`, [N, m, m, 6].
        same: Whether no element was substituted, [N].
        derived: Whether the template has another pattern, see `derivatives`, [N].
    """

    templates: np.ndarray
    numbers: Sequence[np.ndarray]
    cost: np.ndarray
    distances: np.ndarray
    same: np.ndarray
    derived: np.ndarray

    def __len__(self) -> int:
        return len(self.templates)

    def select(self, rows: np.ndarray) -> "Fits":
        """Return some of the templates.

        Args:
            rows: Their places, [K].
        """
        return Fits(
            self.templates[rows],
            [self.numbers[row] for row in rows.tolist()],
            self.cost[rows],
            self.distances[rows],
            self.same[rows],
            self.derived[rows],
        )

    @staticmethod
    def concat(fits: "Sequence[Fits]") -> "Fits":
        """Return the templates of all of them, in their order.

        Args:
            fits: At least one.
        """
        return Fits(
            np.concatenate([fit.templates for fit in fits]),
            [numbers for fit in fits for numbers in fit.numbers],
            np.concatenate([fit.cost for fit in fits]),
            np.concatenate([fit.distances for fit in fits]),
            np.concatenate([fit.same for fit in fits]),
            np.concatenate([fit.derived for fit in fits]),
        )


def slots_of(composition: Composition) -> tuple[np.ndarray, np.ndarray]:
    """Return the elements of a composition and their counts, rarest first, [m] each.

    Args:
        composition: Of a cell.
    """
    slots = sorted((count, z) for z, count in composition.counts)
    return np.array([z for _, z in slots]), np.array([count for count, _ in slots])


def assign(
    elements: np.ndarray, costs: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give every template of a pattern its wanted elements where they cost least.

    Args:
        elements: Elements of the templates by slot, [N, m].
        costs: What it costs to put what is wanted where an element was, [m, 119].
        counts: Atoms of what is wanted, ascending, [m].

    Returns:
        The cost of each template, the costliest of its substitutions counted 1.6 times, [N], and
        the slot of the template that each of what is wanted takes, [N, m].
    """
    slots = list(itertools.islice(_assignments(counts.tolist()), _ASSIGNMENTS))
    rows = np.arange(len(counts))
    each = (costs[rows, elements[:, slot]] for slot in slots)
    totals = np.stack([cost.sum(1) + WORST_AGAIN * cost.max(1) for cost in each])
    return totals.min(0), np.array(slots)[totals.argmin(0)]


def fit_pattern(
    library: TemplateLibrary, composition: Composition, *, limit: int, exclude: int = -1
) -> Fits | None:
    """Return the templates that have the counts of a composition, nearest in cost first.

    Args:
        library: Where to look.
        composition: What is wanted.
        limit: Templates at most.
        exclude: A template that may not be used, by its number.
    """
    wanted, counts = slots_of(composition)
    group = library.group(tuple(counts.tolist()))
    if group is None:
        return None
    cost, assigned = assign(group.elements, library.substitution.cost[wanted], counts)
    cost[group.indices == exclude] = np.inf
    near = np.argsort(cost, kind="stable")[:limit]
    near = near[np.isfinite(cost[near])]
    if not len(near):
        return None
    slot = assigned[near]
    elements = np.take_along_axis(group.elements[near], slot, 1)
    return Fits(
        group.indices[near],
        [
            renamed(library.atomic_numbers(index), old, wanted)
            for index, old in zip(group.indices[near].tolist(), elements, strict=True)
        ],
        cost[near],
        group.distances[near[:, None, None], slot[:, :, None], slot[:, None, :]],
        (elements == wanted).all(1),
        np.zeros(len(near), dtype=bool),
    )


def renamed(numbers: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return atomic numbers with each of `old` replaced by the one of `new` beside it.

    Args:
        numbers: Atomic numbers, of any shape.
        old: Those replaced, [m], each once.
        new: What replaces them, [m].
    """
    table = np.zeros(max(int(numbers.max()), int(old.max())) + 1, dtype=np.int64)
    table[old] = new
    return table[numbers]


def _assignments(counts: list[int]) -> itertools.chain[list[int]]:
    """Yield every order of the slots that only permutes slots of equal count."""
    runs = [list(run) for _, run in itertools.groupby(range(len(counts)), key=counts.__getitem__)]
    orders = itertools.product(*map(itertools.permutations, runs))
    return itertools.chain([slot for run in order for slot in run] for order in orders)
