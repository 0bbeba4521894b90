"""Compositions: what a user writes, and how many atoms of each element that puts into a cell.

Neither torch nor pymatgen is imported, so that a mistyped formula is answered at once.
"""

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise

from crystorus.errors import RequestError

MAX_COUNT = 1_000_000
MAX_UNITS = 10_000
_BY_NUMBER = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
    "Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
# By Pauling electronegativity, elements of equal value and those without one by symbol.
# Source: pymatgen's Element.X, so that formulas are ordered as pymatgen orders them.
_BY_ELECTRONEGATIVITY = (
    "Fr Cs K Rb Ba Ra Na Sr Li Ca Ac La Tb Yb Ce Pm Pr Nd Sm Eu Gd Dy Y Ho Er Tm Lu Pu Am Bk Cf "
    "Cm Es Fm Hf Lr Md No Th Mg Zr Np Sc U Pa Ta Ti Mn Be Nb Al Tl V Zn Cr Cd In Ga Fe Co Cu Re "
    "Si Tc Ni Ag Sn Hg Po Ge Bi B Sb Te Mo As P At H Ir Os Pd Rn Ru Pt Rh Pb W Au C Se S Xe I Br "
    "Kr N Cl O F Ar Bh Cn Db Ds Fl He Hs Lv Mc Mt Ne Nh Og Rf Rg Sg Ts"
)
SYMBOLS = tuple(_BY_NUMBER.split())
"""Symbols of the elements by atomic number, hydrogen first."""
_NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}
_RANKS = {_NUMBERS[symbol]: rank for rank, symbol in enumerate(_BY_ELECTRONEGATIVITY.split())}
_HYDROGENS = {"D": 1, "T": 1}  # deuterium and tritium
_OPENING, _CLOSING, _DOTS = "([{", ")]}", "·•∙⋅.*"
_SYMBOL = re.compile(r"[A-Z][a-z]?")
# "SO4.5H2O" is a hydrate and no 4.5 oxygen atoms.
_COUNT = re.compile(r"\d+(?:\.\d+(?!\d*H2O))?")
_FACTOR = re.compile(r"\d+(?:\.\d+)?")
_CHARGE = re.compile(r"\^?\d*[-+\u2212\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


class FormulaError(RequestError):
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

        Args:
            atomic_numbers: One per atom.

        Raises:
            FormulaError: If there are none, or an atomic number is not 1 to 118.
        """
        return cls.from_counts(Counter(int(z) for z in atomic_numbers))

    @classmethod
    def from_counts(cls, counts: dict[int, int] | Counter[int]) -> "Composition":
        """Sort counts by atomic number into a composition.

        Args:
            counts: Atoms by atomic number.

        Raises:
            FormulaError: If there are no atoms, or an atomic number is not 1 to 118.
        """
        wrong = [z for z in counts if not 1 <= z <= len(SYMBOLS)]
        if wrong:
            raise FormulaError(f"atomic number {wrong[0]}: use 1 to {len(SYMBOLS)}")
        if not counts or min(counts.values()) < 1:
            raise FormulaError("a composition needs atoms: give every element a count above zero")
        return cls(tuple(sorted(counts.items(), key=lambda pair: _RANKS[pair[0]])))

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
        """Number of reduced formulas in the cell, Z."""
        return math.gcd(*(count for _, count in self.counts))

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
        """Return the places of a cell's atoms in the order of the formula, stable within one.

        Args:
            atomic_numbers: One per atom.
        """
        rank = {z: place for place, (z, _) in enumerate(self.counts)}
        return sorted(range(len(atomic_numbers)), key=lambda atom: rank[atomic_numbers[atom]])

    def __mul__(self, units: int) -> "Composition":
        if units < 1:
            raise FormulaError(f"{units} formula units of {self.formula}: use 1 or more")
        return Composition(tuple((z, units * n) for z, n in self.counts))


def parse_formula(  # noqa: C901 - one branch for each token of the grammar
    text: str, *, max_atoms: int | None = None
) -> Composition:
    """Read a formula such as LiFeO2, Ca(OH)2, [Cu(NH3)4]SO4, CuSO4·5H2O or "Li Fe O₂".

    D and T are hydrogen. Charges and counts that are not whole are refused, where possible with
    the formula that was meant.

    Args:
        text: Symbols, whole numbers, brackets, hydrate dots, blanks between them.
        max_atoms: Larger formulas are refused.

    Raises:
        FormulaError: With the character at fault, counted from 1.
    """
    if not text.strip():
        raise FormulaError("the formula is empty: write one such as LiFeO2")
    plain = text.translate(_SUBSCRIPTS)
    total: dict[int, Fraction] = {}
    factor = Fraction(1)  # before the part that is read, such as the 5 of ·5H2O
    groups: list[tuple[dict[int, Fraction], int]] = [({}, 0)]  # open brackets: content, place
    place = 0
    while place < len(plain):
        character, start = plain[place], place
        match = _SYMBOL.match(plain, place)
        if character.isspace():
            place += 1
        elif match is not None:
            z = _element(text, match.group(), start)
            count, place = _count(text, plain, match.end())
            _add(groups[-1][0], {z: count})
        elif character in _OPENING:
            groups.append(({}, start))
            place += 1
        elif character in _CLOSING:
            if len(groups) == 1:
                raise _at(text, start, f"{character!r} closes nothing: open it before or remove it")
            group, opened = groups.pop()
            closing = _CLOSING[_OPENING.index(plain[opened])]
            if character != closing:
                wrong = f"{plain[opened]!r} is closed by {character!r}: write {closing!r}"
                raise _at(text, start, wrong)
            if not group:
                raise _at(text, opened, "the brackets are empty: remove them or fill them")
            count, place = _count(text, plain, place + 1)
            _add(groups[-1][0], group, count)
        elif character in _DOTS and len(groups) == 1 and groups[0][0]:
            _add(total, groups.pop()[0], factor)
            rest = len(plain) - len(plain[place + 1 :].lstrip())
            factor, place = _count(text, plain, rest, _FACTOR)
            groups.append(({}, start))
        else:
            raise _misread(text, plain, place)
    content, opened = groups[-1]
    if len(groups) > 1:
        raise _at(text, opened, f"{plain[opened]!r} is never closed: add its counterpart")
    if not content:
        raise _at(text, opened, "nothing follows the dot: remove it, or write as in CuSO4·5H2O")
    _add(total, content, factor)
    return _within(_whole(text, plain, total), max_atoms)


def parse_units(text: str) -> tuple[int, ...]:
    """Read numbers of formula units such as "1,2,4", "1-4" or "1-4, 8"; repeats are left out.

    Args:
        text: As it was given.

    Raises:
        FormulaError: If they are no whole numbers from 1 up.
    """
    numbers: list[int] = []
    for part in text.replace("–", "-").split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last) if dash else (first, first)
        if not all(end.isdecimal() and 0 < int(end) <= MAX_UNITS for end in ends):
            raise FormulaError(
                f"{text!r} has {part.strip()!r} formula units: give whole numbers from 1 up "
                f"to {MAX_UNITS}, as in 1,2,4 or 1-4"
            )
        low, high = map(int, ends)
        if low > high:
            raise FormulaError(f"{text!r} counts down from {low} to {high}: write {high}-{low}")
        numbers += range(low, high + 1)
    return tuple(dict.fromkeys(numbers))


def expand(
    formula: str | Composition, z: Sequence[int] = (1, 2, 4), *, max_atoms: int | None = None
) -> list[Composition]:
    """Return the formula with each number of formula units, repeats left out.

    "Li2O2" with z = (1, 2) gives Li2O2 and Li4O4: the formula as written is the unit.

    Args:
        formula: Text is read, brackets too.
        z: Numbers of formula units.
        max_atoms: Per cell; None for no limit.

    Raises:
        FormulaError: If the formula cannot be read, a number of units is below 1, or a cell
            would hold more than `max_atoms`.
    """
    unit = parse_formula(formula) if isinstance(formula, str) else formula
    return [_within(unit * units, max_atoms) for units in dict.fromkeys(z)]


def count_system(system: str | Sequence[str], max_atoms: int = 20) -> int:
    """Return how many compositions `enumerate_system` yields: C(max_atoms + k, k) - 1.

    Args:
        system: Such as "Li-Fe-O", or its symbols.
        max_atoms: Per cell.

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

    Args:
        system: With hyphens, or its symbols.

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
    within = dict.fromkeys(_SYMBOL.findall(text))  # of LiFeO2, or with other signs between them
    whole = within.keys() <= _NUMBERS.keys() and not re.search(r"[A-Za-z]", _SYMBOL.sub("", text))
    if whole and len(within) > 1 and not _NUMBERS.keys() >= set(symbols):
        raise FormulaError(f"{text!r} is no chemical system: did you mean {'-'.join(within)}?")
    for symbol in symbols:
        place = text.index(symbol, place)
        numbers.append(_element(text, symbol, place))
        place += len(symbol)
    twice = [z for z, n in Counter(numbers).items() if n > 1]
    if twice:
        raise FormulaError(
            f"{text!r} names {symbol_of(twice[0])} more than once: name every element once"
        )
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


def _add(
    total: dict[int, Fraction], counts: dict[int, Fraction], times: Fraction = Fraction(1)
) -> None:
    for z, count in counts.items():
        total[z] = total.get(z, Fraction(0)) + count * times


def _whole(text: str, plain: str, counts: dict[int, Fraction]) -> Composition:
    """Return the composition, refusing counts that are not whole numbers."""
    scale = math.lcm(*(n.denominator for n in counts.values()))
    composition = Composition.from_counts({z: int(n * scale) for z, n in counts.items()})
    if scale == 1:
        return composition
    broken = next(m for m in _FACTOR.finditer(plain) if Fraction(m.group()).denominator > 1)
    meant = f": did you mean {composition.formula}?" if scale <= 12 else ""
    reason = f"{broken.group()!r} is no count, use whole numbers above zero{meant}"
    raise _at(text, broken.start(), reason)


def _count(
    text: str, plain: str, place: int, number: re.Pattern[str] = _COUNT
) -> tuple[Fraction, int]:
    """Read the number at `place`, 1 if there is none; return it and where it ends."""
    if _CHARGE.match(plain, place):
        raise _misread(text, plain, place)
    match = number.match(plain, place)
    if match is None:
        return Fraction(1), place
    digits = match.group()
    if len(digits) > 9 or not 0 < Fraction(digits) <= MAX_COUNT:
        raise _at(text, place, f"the count {digits[:20]} is not 1 to {MAX_COUNT}: correct it")
    return Fraction(digits), match.end()


def _element(text: str, symbol: str, place: int) -> int:
    if symbol in _NUMBERS or symbol in _HYDROGENS:
        return _NUMBERS.get(symbol) or _HYDROGENS[symbol]
    raise _at(text, place, f"no element is called {symbol!r}{_guess(text, symbol)}")


def _misread(text: str, plain: str, place: int) -> FormulaError:
    character, charge = plain[place], _CHARGE.match(plain, place)
    if charge is not None:
        if re.fullmatch(r"[A-Z][a-z]?(-[A-Z][a-z]?)+", plain):
            meant = f"sample --system {plain} or hull {plain}"
            return _at(text, place, f"this is a chemical system and no formula: say {meant}")
        # Fe3+ is one atom; NH4+ are five. Only where no digits are in doubt is the rest known.
        known = len(charge.group()) == 1 or charge.group()[0] == "^" or plain[place - 1] in "] "
        meant = _CHARGE.sub("", plain).strip() if known or _SYMBOL.fullmatch(plain[:place]) else ""
        what = f"{charge.group()!r} is a charge, a cell as a whole has no charges"
        return _at(text, place, what + (f": did you mean {meant}?" if meant else ""))
    if character.isdigit():
        return _at(text, place, "a number needs an element or a ')' right before it")
    if character.isalpha():
        word = re.match(r"[^\W\d_]+", plain[place:])
        found = word.group() if word else character
        return _at(text, place, f"{found!r} is no symbol{_guess(text, found)}")
    return _at(text, place, f"{character!r} has no place in a formula: remove it")


def _at(text: str, place: int, reason: str) -> FormulaError:
    return FormulaError(f"{text!r}, character {place + 1}: {reason}")


def _guess(text: str, word: str) -> str:
    """Return the end of an error: formulas with the same letters, or symbols like the word."""
    pieces = re.split(r"([A-Za-z]+)", text.translate(_SUBSCRIPTS))
    options = [_spellings(piece) if piece.isalpha() else [piece] for piece in pieces]
    meant = ["".join(each) for each in itertools.islice(itertools.product(*options), 3)]
    meant = meant or difflib.get_close_matches(word, SYMBOLS, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(meant)}?" if meant else ": use a symbol such as Li or O"


def _spellings(word: str) -> list[str]:
    """Return the symbols that the letters of a word can be, those of fewest elements first."""
    from ase.data import atomic_names

    if re.fullmatch(r"([A-Z][a-z]?)+", word) and _NUMBERS.keys() >= {*_SYMBOL.findall(word)}:
        return [word]
    names = {name.lower(): z for z, name in enumerate(atomic_names) if z}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.75)
    if close:
        return [symbol_of(names[close[0]])]
    if len(word) > 20:
        return []
    ways: list[list[list[str]]] = [[[]]]  # ways[n]: spellings of the first n letters
    for end in range(1, len(word) + 1):
        ways.append([])
        for size in (2, 1):
            symbol = word[max(0, end - size) : end].capitalize()
            if len(symbol) == size and symbol in _NUMBERS:
                ways[end] += [[*way, symbol] for way in ways[end - size]]
    return ["".join(way) for way in sorted(ways[-1], key=len)[:3]]


def symbol_of(atomic_number: int) -> str:
    """Return the symbol of an element.

    Args:
        atomic_number: 1 to 118.
    """
    return SYMBOLS[atomic_number - 1]
