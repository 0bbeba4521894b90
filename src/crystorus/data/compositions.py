"""Compositions: what a user writes, and how many atoms of what that puts into a cell.

Formulas are plain: symbols, whole numbers, parentheses. Everything else is refused with the
place where it went wrong.
"""

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from math import gcd

from pymatgen.core import Element

from crystorus.data.arrays import MAX_ATOMIC_NUMBER, ReadingError

MAX_COUNT = 1_000_000
_TOKEN = re.compile(r"(?P<symbol>[A-Z][a-z]?)|(?P<open>\()|(?P<close>\))|(?P<blank>\s+)")
_COUNT = re.compile(r"[-+]?\d+(?:\.\d*)?|[-+]")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


class FormulaError(ReadingError):
    """A formula or a chemical system that cannot be read, or is too large."""


@dataclass(frozen=True, order=True)
class Composition:
    """How many atoms of each element one cell holds.

    Attributes:
        counts: (atomic number, count) by increasing electronegativity, as formulas are written.
    """

    counts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, atomic_numbers: Iterable[int]) -> "Composition":
        """Count the atoms of a cell.

        Raises:
            FormulaError: If there are none, or an atomic number is not 1 to 118.
        """
        return cls.from_counts(Counter(int(z) for z in atomic_numbers))

    @classmethod
    def from_counts(cls, counts: dict[int, int] | Counter[int]) -> "Composition":
        """Sort counts by atomic number into a composition.

        Raises:
            FormulaError: If there are no atoms, or an atomic number is not 1 to 118.
        """
        wrong = [z for z in counts if not 1 <= z <= MAX_ATOMIC_NUMBER]
        if wrong:
            raise FormulaError(f"atomic number {wrong[0]}: use 1 to {MAX_ATOMIC_NUMBER}")
        if not counts or min(counts.values()) < 1:
            raise FormulaError("a composition needs atoms: give every element a count above zero")
        return cls(tuple(sorted(counts.items(), key=lambda pair: _rank(pair[0]))))

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Element of every atom, those of one element together, in the order of the formula."""
        return tuple(z for z, count in self.counts for _ in range(count))

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols, in the order of the formula."""
        return tuple(symbol_of(z) for z, _ in self.counts)

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the cell."""
        return sum(count for _, count in self.counts)

    @property
    def formula_units(self) -> int:
        """Z: how many reduced formulas the cell holds."""
        return gcd(*(count for _, count in self.counts))

    @property
    def reduced(self) -> "Composition":
        """One formula unit."""
        units = self.formula_units
        return Composition(tuple((z, count // units) for z, count in self.counts))

    @property
    def formula(self) -> str:
        """All atoms of the cell, such as Li2Fe2O4."""
        return "".join(symbol_of(z) + (str(n) if n > 1 else "") for z, n in self.counts)

    @property
    def reduced_formula(self) -> str:
        """One formula unit, such as LiFeO2; an element is one atom: O, not O2."""
        return self.reduced.formula

    @property
    def hill_formula(self) -> str:
        """All atoms in Hill's order: with carbon C, H, then by letter; without by letter."""
        counts = {symbol_of(z): n for z, n in self.counts}
        first = [s for s in ("C", "H") if s in counts] if "C" in counts else []
        order = first + sorted(s for s in counts if s not in first)
        return "".join(s + (str(counts[s]) if counts[s] > 1 else "") for s in order)

    def order(self, atomic_numbers: Sequence[int]) -> list[int]:
        """Return the places of a cell's atoms in the order of the formula, stable within one."""
        rank = {z: place for place, (z, _) in enumerate(self.counts)}
        return sorted(range(len(atomic_numbers)), key=lambda atom: rank[atomic_numbers[atom]])

    def __mul__(self, units: int) -> "Composition":
        if units < 1:
            raise FormulaError(f"{units} formula units of {self.formula}: use 1 or more")
        return Composition(tuple((z, units * n) for z, n in self.counts))


def parse_formula(text: str, *, max_atoms: int | None = None) -> Composition:
    """Read a formula such as LiFeO2, Ca(OH)2 or "Li Fe O2".

    Args:
        text: Symbols, whole numbers, parentheses, blanks between them, no hydrate dots or charges.
        max_atoms: Larger formulas are refused.

    Raises:
        FormulaError: With the character at fault, counted from 1.
    """
    if not text.strip():
        raise FormulaError("the formula is empty: write one such as LiFeO2")
    plain = text.translate(_SUBSCRIPTS)
    stack: list[tuple[Counter[int], int]] = [(Counter(), 0)]
    place = 0
    while place < len(plain):
        match = _TOKEN.match(plain, place)
        if match is None:
            raise _misread(text, place)
        start, place = place, match.end()
        if match["open"]:
            stack.append((Counter(), start))
        elif match["close"]:
            if len(stack) == 1:
                raise _at(text, start, "')' closes nothing: open a '(' before it or remove it")
            group, opened = stack.pop()
            if not group:
                raise _at(text, opened, "the parentheses are empty: remove them or fill them")
            count, place = _count(text, plain, place)
            stack[-1][0].update({z: n * count for z, n in group.items()})
        elif match["symbol"]:
            z = _element(text, match["symbol"], start)
            count, place = _count(text, plain, place)
            stack[-1][0][z] += count
    if len(stack) > 1:
        raise _at(text, stack[-1][1], "'(' is never closed: add a ')'")
    return _within(Composition.from_counts(stack[0][0]), max_atoms)


def expand(
    formula: str | Composition, z: Sequence[int] = (1, 2, 4), *, max_atoms: int | None = None
) -> list[Composition]:
    """Return the formula with each number of formula units, repeats left out.

    "Li2O2" with z = (1, 2) gives Li2O2 and Li4O4: the formula as written is the unit.

    Raises:
        FormulaError: If the formula cannot be read, a number of units is below 1, or a cell
            would hold more than `max_atoms`.
    """
    unit = parse_formula(formula) if isinstance(formula, str) else formula
    return [_within(unit * units, max_atoms) for units in dict.fromkeys(z)]


def count_system(system: str | Sequence[str], max_atoms: int = 20) -> int:
    """Return how many compositions `enumerate_system` yields: C(max_atoms + k, k) - 1.

    Raises:
        FormulaError: As `enumerate_system`.
    """
    elements = parse_system(system)
    _check_limit(max_atoms)
    return math.comb(max_atoms + len(elements), len(elements)) - 1


def enumerate_system(system: str | Sequence[str], max_atoms: int = 20) -> Iterator[Composition]:
    """Yield every composition of a chemical system with at most `max_atoms` atoms, once each.

    All reduced ratios times all numbers of formula units, the elements themselves and all
    sub-systems included; by number of atoms, then in the order of the elements given.

    Args:
        system: "Li-Fe-O", or symbols.
        max_atoms: The largest cell.

    Raises:
        FormulaError: If an element is unknown or named twice, or `max_atoms` is below 1.
    """
    elements = parse_system(system)
    _check_limit(max_atoms)
    return _compositions(elements, max_atoms)


def parse_system(system: str | Sequence[str]) -> tuple[int, ...]:
    """Return the atomic numbers of a chemical system such as "Li-Fe-O".

    Raises:
        FormulaError: If it is empty, or an element is unknown or named twice.
    """
    text = system if isinstance(system, str) else "-".join(system)
    symbols = [part.strip() for part in text.split("-")]
    if symbols == [""]:
        raise FormulaError("the chemical system is empty: write one such as Li-Fe-O")
    if "" in symbols:
        raise FormulaError(f"{text!r} has an element missing beside a '-': write it like Li-Fe-O")
    place, numbers = 0, []
    for symbol in symbols:
        place = text.index(symbol, place)
        numbers.append(_element(text, symbol, place))
        place += len(symbol)
    twice = [s for s, n in Counter(symbols).items() if n > 1]
    if twice:
        raise FormulaError(f"{text!r} names {twice[0]} more than once: name every element once")
    return tuple(numbers)


def _compositions(elements: tuple[int, ...], max_atoms: int) -> Iterator[Composition]:
    # Ways to put n atoms on k elements: places of k - 1 bars among n + k - 1.
    for n in range(1, max_atoms + 1):
        for bars in combinations(range(n + len(elements) - 1), len(elements) - 1):
            edges = (-1, *bars, n + len(elements) - 1)
            counts = [b - a - 1 for a, b in pairwise(edges)]
            present = {z: c for z, c in zip(elements, counts, strict=True) if c}
            yield Composition.from_counts(present)


def _check_limit(max_atoms: int) -> None:
    if max_atoms < 1:
        raise FormulaError(f"cells of at most {max_atoms} atoms: use a limit of 1 or more")


def _within(composition: Composition, max_atoms: int | None) -> Composition:
    if max_atoms is not None and composition.n_atoms > max_atoms:
        raise FormulaError(
            f"{composition.formula} has {composition.n_atoms} atoms in the cell, above the limit "
            f"of {max_atoms}: ask for fewer formula units, or raise the limit"
        )
    return composition


def _count(text: str, plain: str, place: int) -> tuple[int, int]:
    """Read the number at `place`, 1 if there is none; return it and where it ends."""
    match = _COUNT.match(plain, place)
    if match is None:
        return 1, place
    number = match.group()
    if not number.isdigit():
        reason = f"{number!r} is no count: use whole numbers above zero, no charges"
        raise _at(text, place, reason)
    if int(number) == 0 or len(number) > 9 or int(number) > MAX_COUNT:
        raise _at(text, place, f"the count {number[:20]} is not 1 to {MAX_COUNT}: correct it")
    return int(number), match.end()


def _element(text: str, symbol: str, place: int) -> int:
    if symbol in numbers_of_symbols():
        return numbers_of_symbols()[symbol]
    raise _at(text, place, f"no element is called {symbol!r}{_guess(symbol)}")


def _guess(symbol: str) -> str:
    names = {e.long_name.lower(): e.symbol for e in map(Element.from_Z, range(1, 119))}
    close = difflib.get_close_matches(symbol.lower(), names, n=1, cutoff=0.75)
    if symbol.capitalize() in numbers_of_symbols():
        return f": did you mean {symbol.capitalize()}?"
    if close:
        return f": did you mean {names[close[0]]}?"
    near = difflib.get_close_matches(symbol, numbers_of_symbols(), n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ": use a symbol such as Li or O"


def _misread(text: str, place: int) -> FormulaError:
    character = text[place]
    if character in "·.*•":
        return _at(text, place, "a hydrate dot is not read: write CuSO4(H2O)5 for CuSO4·5H2O")
    if character.isdigit() or character in "+-":
        return _at(text, place, "a number needs an element or a ')' right before it")
    if character.islower():
        word = re.match(r"[a-z]+", text[place:])
        found = word.group() if word else character
        return _at(text, place, f"{found!r} is no symbol{_guess(found)}")
    return _at(text, place, f"{character!r} has no place in a formula: remove it")


def _at(text: str, place: int, reason: str) -> FormulaError:
    return FormulaError(f"{text!r}, character {place + 1}: {reason}")


@cache
def numbers_of_symbols() -> dict[str, int]:
    """Return atomic numbers by symbol, 1 to 118."""
    return {symbol_of(z): z for z in range(1, MAX_ATOMIC_NUMBER + 1)}


@cache
def symbol_of(atomic_number: int) -> str:
    """Return the symbol of an element."""
    return Element.from_Z(atomic_number).symbol


@cache
def _rank(atomic_number: int) -> tuple[float, str]:
    """Key by which pymatgen sorts: electronegativity, elements without one last, then symbol."""
    symbol = symbol_of(atomic_number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that noble gases have none is expected here
        value = float(Element.from_Z(atomic_number).X)
    return (math.inf if math.isnan(value) else value), symbol
