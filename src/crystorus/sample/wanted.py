"""The compositions that users name: formulas, a table of structures, a chemical system."""

from collections.abc import Sequence
from pathlib import Path

from crystorus.data.compositions import Composition, count_system, enumerate_system, expand
from crystorus.data.io import read_crystals
from crystorus.sample.errors import RequestError
from crystorus.sample.plan import MAX_CRYSTALS


def of_formulas(formulas: Sequence[str], units: str = "1") -> list[Composition]:
    """Return every formula with every number of formula units.

    Args:
        formulas: Such as "LiFeO2" or "Ca(OH)2".
        units: Formula units per cell, comma-separated.

    Raises:
        RequestError: If the units are no positive whole numbers.
        FormulaError: If a formula cannot be read.
    """
    numbers = parse_units(units)
    return [composition for formula in formulas for composition in expand(formula, numbers)]


def of_structures(path: Path) -> list[Composition]:
    """Return the composition of every structure of a file or folder, in its order.

    Raises:
        RequestError: If one of the structures cannot be read, or there is none.
        ReadingError: If the file as a whole cannot be read.
    """
    compositions = []
    for name, crystal in read_crystals(path):
        if isinstance(crystal, ValueError):
            raise RequestError(f"{path}, {name}: {crystal}; correct it or take it out")
        compositions.append(Composition.of(crystal.atomic_numbers.tolist()))
    if not compositions:
        raise RequestError(f"{path} holds no structures: give at least one")
    return compositions


def of_system(system: str, max_atoms: int) -> list[Composition]:
    """Return every composition of a chemical system with at most `max_atoms` atoms per cell.

    Raises:
        FormulaError: If the system cannot be read.
        RequestError: If it has more compositions than one run can make.
    """
    count = count_system(system, max_atoms)
    if count > MAX_CRYSTALS:
        raise RequestError(
            f"--system {system} has {count} compositions of at most {max_atoms} atoms, a run makes "
            f"at most {MAX_CRYSTALS}: lower --max-atoms or name fewer elements"
        )
    return list(enumerate_system(system, max_atoms))


def parse_units(text: str) -> tuple[int, ...]:
    """Read comma-separated numbers of formula units.

    Raises:
        RequestError: If they are no whole numbers from 1 up.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isdecimal() and int(part) > 0)]
    if wrong:
        raise RequestError(
            f"--z {text} has {wrong[0]!r} formula units: give whole numbers from 1 up, as in 1,2,4"
        )
    return tuple(map(int, parts))
