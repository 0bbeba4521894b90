"""The compositions of a campaign: all of a system, less those that chemistry or users exclude."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from crystorus.data.compositions import (
    Composition,
    count_system,
    enumerate_system,
    parse_formula,
    parse_system,
    symbol_of,
)
from crystorus.errors import RequestError
from crystorus.hull.options import CompositionOptions

MIN_ELEMENTS, MAX_ELEMENTS = 2, 6
MAX_COMPOSITIONS = 2_000_000  # enumerated in memory before any filter


@dataclass(frozen=True)
class ChosenCompositions:
    """The compositions chosen in a system, and how many the filters left out."""

    compositions: tuple[Composition, ...]
    n_enumerated: int
    n_charged: int


def system_elements(system: str) -> tuple[str, ...]:
    """Return the symbols of a system that a hull can be drawn of.

    Args:
        system: Such as Li-Fe-O.

    Raises:
        FormulaError: If an element is unknown or named twice.
        RequestError: If it has fewer than 2 or more than 6 elements.
    """
    numbers = parse_system(system)
    if not MIN_ELEMENTS <= len(numbers) <= MAX_ELEMENTS:
        noun = "element" if len(numbers) == 1 else "elements"
        raise RequestError(
            f"{system} has {len(numbers)} {noun}: a hull takes {MIN_ELEMENTS} to {MAX_ELEMENTS}, "
            "as in Li-Fe-O"
        )
    return tuple(map(symbol_of, numbers))


def choose_compositions(system: str, options: CompositionOptions) -> ChosenCompositions:
    """Return the compositions of a system, simplest reduced formulas first.

    One cell of every reduced formula comes before a second, larger cell of any: a budget that
    ends early has tried every ratio it could.

    Args:
        system: Such as Li-Fe-O.
        options: Which of its compositions.

    Raises:
        FormulaError: If the system or a formula cannot be read.
        RequestError: If nothing is left, too much is, or an option contradicts the system.
    """
    elements = system_elements(system)
    for option, named in (("--require", options.require), ("--exclude", options.exclude)):
        for symbol in set(named) - set(elements):
            raise RequestError(
                f"{option} {symbol} is no element of {system}: name one of "
                f"{', '.join(sorted(elements))}"
            )
    listed = _listed(system, elements, options)
    kept = [c for c in listed if _is_wanted(c, options, len(elements))]
    neutral = [c for c in kept if not options.neutral or is_neutral(c)]
    if kept and not neutral:
        raise RequestError(
            f"none of the {len(kept)} compositions of {system} is neutral in common oxidation "
            "states: raise --max-atoms, or turn the filter off with --any-charge"
        )
    if not neutral:
        raise RequestError(
            f"no composition of {system} is left of {len(listed)} with at most "
            f"{options.max_atoms} atoms: raise --max-atoms, or loosen --z, --require, --exclude or "
            "--min-elements"
        )
    # Round robin: the smallest cell of every reduced formula, then the second of every, …
    ordered = sorted(neutral, key=lambda c: (c.reduced.n_atoms, c.reduced, c.formula_units))
    families = [list(family) for _, family in groupby(ordered, key=lambda c: c.reduced)]
    rounds = range(max(map(len, families)))
    chosen = [family[i] for i in rounds for family in families if i < len(family)]
    return ChosenCompositions(tuple(chosen), len(listed), len(kept) - len(neutral))


def is_neutral(composition: Composition) -> bool:
    """Tell whether common oxidation states can balance, atoms of one element differing if need be.

    Elements and alloys, compositions of metals alone, are neutral. An element without known
    states balances anything.

    Args:
        composition: Of a cell.
    """
    from pymatgen.core import Element

    elements = [Element.from_Z(z) for z, _ in composition.counts]
    if len(elements) == 1 or all(element.is_metal for element in elements):
        return True
    charges = {0}
    for z, count in composition.counts:
        states = _oxidation_states(z)
        if not states:
            return True
        for _ in range(count):
            charges = {charge + state for charge in charges for state in states}
    return 0 in charges


@cache
def _oxidation_states(atomic_number: int) -> tuple[int, ...]:
    from pymatgen.core import Element

    element = Element.from_Z(atomic_number)
    states = {*element.common_oxidation_states, *element.icsd_oxidation_states}
    return tuple(sorted(int(state) for state in states))


def _listed(system: str, elements: Sequence[str], options: CompositionOptions) -> list[Composition]:
    """Return all compositions of the formulas named, or of the whole system."""
    if not options.formulas:
        count = count_system(system, options.max_atoms)
        if count > MAX_COMPOSITIONS:
            raise RequestError(
                f"{system} has {count} compositions of at most {options.max_atoms} atoms, more "
                f"than {MAX_COMPOSITIONS}: lower --max-atoms or name formulas with --formula"
            )
        return list(enumerate_system(system, options.max_atoms))
    found: list[Composition] = []
    for text in options.formulas:
        unit = parse_formula(text).reduced
        if outside := [symbol for symbol in unit.elements if symbol not in elements]:
            raise RequestError(
                f"--formula {text} holds {outside[0]}, which is not in {system}: correct one"
            )
        largest = options.max_atoms // unit.n_atoms
        if largest < 1:
            raise RequestError(
                f"--formula {text} has {unit.n_atoms} atoms, above --max-atoms "
                f"{options.max_atoms}: raise the limit"
            )
        found += [unit * units for units in range(1, largest + 1)]
    return list(dict.fromkeys(found))


def _is_wanted(composition: Composition, options: CompositionOptions, n_elements: int) -> bool:
    elements = set(composition.elements)
    if len(elements) < min(options.min_elements, n_elements):
        return False
    if elements & set(options.exclude) or not elements >= set(options.require):
        return False
    if options.units and composition.formula_units not in options.units:
        return False
    largest = max(n for _, n in composition.reduced.counts)
    return bool(options.formulas) or largest <= options.max_count
