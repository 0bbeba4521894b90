"""The compositions of a campaign: all of a system, less those that chemistry or users exclude."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from pymatgen.core import Element

from crystorus.data.compositions import (
    Composition,
    count_system,
    enumerate_system,
    numbers_of_symbols,
    parse_formula,
    parse_system,
    symbol_of,
)
from crystorus.hull.errors import SpaceError

MIN_ELEMENTS, MAX_ELEMENTS = 2, 6
MAX_COMPOSITIONS = 2_000_000  # enumerated in memory before any filter


@dataclass(frozen=True)
class Space:
    """Which compositions a campaign tries."""

    system: str
    """Chemical system, such as Li-Fe-O."""
    max_atoms: int = 12
    """Atoms per cell, at most."""
    units: tuple[int, ...] = ()
    """Formula units per cell; all that fit where empty."""
    formulas: tuple[str, ...] = ()
    """Only these formulas of the system, where given."""
    require: tuple[str, ...] = ()
    """Elements that every composition must hold."""
    exclude: tuple[str, ...] = ()
    """Elements that no composition may hold."""
    max_count: int = 8
    """Largest count of one element in a reduced formula."""
    min_elements: int = 2
    """Elements of a composition, at least; 1 tries the elements as well."""
    neutral: bool = True
    """Whether compounds with non-metals must be neutral in common oxidation states."""


@dataclass(frozen=True)
class Choice:
    """The compositions of a space, and how many the filters left out."""

    compositions: tuple[Composition, ...]
    n_enumerated: int
    n_charged: int


def check_system(system: str) -> tuple[int, ...]:
    """Return the atomic numbers of a system that a hull can be drawn of.

    Raises:
        FormulaError: If an element is unknown or named twice.
        SpaceError: If it has fewer than 2 or more than 6 elements.
    """
    numbers = parse_system(system)
    if not MIN_ELEMENTS <= len(numbers) <= MAX_ELEMENTS:
        noun = "element" if len(numbers) == 1 else "elements"
        raise SpaceError(
            f"{system} has {len(numbers)} {noun}: a hull takes {MIN_ELEMENTS} to {MAX_ELEMENTS}, "
            "as in Li-Fe-O"
        )
    return numbers


def choose_compositions(space: Space) -> Choice:
    """Return the compositions of a space, simplest reduced formulas first.

    One cell of every reduced formula comes before a second, larger cell of any: a budget that
    ends early has tried every ratio it could.

    Raises:
        FormulaError: If the system or a formula cannot be read.
        SpaceError: If nothing is left, too much is, or an option contradicts the system.
    """
    numbers = check_system(space.system)
    _check_options(space, numbers)
    listed = _enumerate(space, numbers)
    kept = [c for c in listed if _is_wanted(c, space, numbers)]
    neutral = [c for c in kept if not space.neutral or is_neutral(c)]
    if not neutral:
        raise SpaceError(_nothing_left(space, len(listed), len(kept)))
    return Choice(tuple(_round_robin(neutral)), len(listed), len(kept) - len(neutral))


def is_neutral(composition: Composition) -> bool:
    """Tell whether common oxidation states can balance, atoms of one element differing if need be.

    Elements and alloys, compositions of metals alone, are neutral. An element without known
    states balances anything.
    """
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
    element = Element.from_Z(atomic_number)
    states = {*element.common_oxidation_states, *element.icsd_oxidation_states}
    return tuple(sorted(int(state) for state in states))


def _check_options(space: Space, numbers: Sequence[int]) -> None:
    symbols = {symbol_of(z) for z in numbers}
    for option, named in (("--require", space.require), ("--exclude", space.exclude)):
        for symbol in named:
            if symbol not in symbols:
                raise SpaceError(
                    f"{option} {symbol} is no element of {space.system}: name one of "
                    f"{', '.join(sorted(symbols))}"
                )
    both = set(space.require) & set(space.exclude)
    if both:
        raise SpaceError(f"{min(both)} is both required and excluded: drop one of the two")
    if space.max_count < 1 or space.min_elements < 1 or any(u < 1 for u in space.units):
        raise SpaceError("--max-count, --min-elements and --z take whole numbers from 1 up")


def _enumerate(space: Space, numbers: tuple[int, ...]) -> list[Composition]:
    if space.formulas:
        return _from_formulas(space, numbers)
    count = count_system(space.system, space.max_atoms)
    if count > MAX_COMPOSITIONS:
        raise SpaceError(
            f"{space.system} has {count} compositions of at most {space.max_atoms} atoms, more "
            f"than {MAX_COMPOSITIONS}: lower --max-atoms or name formulas with --formula"
        )
    return list(enumerate_system(space.system, space.max_atoms))


def _from_formulas(space: Space, numbers: tuple[int, ...]) -> list[Composition]:
    found: list[Composition] = []
    for text in space.formulas:
        unit = parse_formula(text).reduced
        outside = [
            symbol for symbol in unit.elements if numbers_of_symbols()[symbol] not in numbers
        ]
        if outside:
            raise SpaceError(
                f"--formula {text} holds {outside[0]}, which is not in {space.system}: correct one"
            )
        largest = space.max_atoms // unit.n_atoms
        if largest < 1:
            raise SpaceError(
                f"--formula {text} has {unit.n_atoms} atoms, above --max-atoms {space.max_atoms}: "
                "raise the limit"
            )
        found += [unit * units for units in range(1, largest + 1)]
    return list(dict.fromkeys(found))


def _is_wanted(composition: Composition, space: Space, numbers: Sequence[int]) -> bool:
    elements = set(composition.elements)
    if len(elements) < min(space.min_elements, len(numbers)):
        return False
    if elements & set(space.exclude) or not elements >= set(space.require):
        return False
    if space.units and composition.formula_units not in space.units:
        return False
    return bool(space.formulas) or max(n for _, n in composition.reduced.counts) <= space.max_count


def _nothing_left(space: Space, n_listed: int, n_kept: int) -> str:
    if n_kept:
        return (
            f"none of the {n_kept} compositions of {space.system} is neutral in common oxidation "
            "states: raise --max-atoms, or turn the filter off with --any-charge"
        )
    return (
        f"no composition of {space.system} is left of {n_listed} with at most {space.max_atoms} "
        "atoms: raise --max-atoms, or loosen --z, --require, --exclude or --min-elements"
    )


def _round_robin(compositions: Sequence[Composition]) -> list[Composition]:
    def simplicity(composition: Composition) -> tuple[int, Composition]:
        reduced = composition.reduced
        return reduced.n_atoms, reduced

    ordered = sorted(compositions, key=lambda c: (*simplicity(c), c.formula_units))
    families = [list(family) for _, family in groupby(ordered, key=lambda c: c.reduced)]
    levels = max(map(len, families))
    return [family[level] for level in range(levels) for family in families if level < len(family)]
