"""Symmetry operations of structure files: from text or space-group symbols, and applied to sites.

Operations act on fractional coordinates as x' = R x + t.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

import gemmi
import moyopy
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.cells import face_distances
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.structures import wrap_coords

METRIC_TOLERANCE = 0.05
"""Relative change of the metric tensor under an operation: 2.5 % of a length, 3° of an angle."""
MIN_MERGE, MAX_MERGE = 0.02, 0.4
"""Å; images of one site nearer than the first are one atom however many digits are written,
images farther apart than the second are never one."""
TABULATED = 530
"""Settings of the International Tables; gemmi's table goes on with unusual centrings."""
MAX_ATOMS = 1_000_000
"""Atoms of an expanded cell."""

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?"
_COMPONENT = re.compile(rf"(?:[+-]?(?:{_NUMBER}\*?[xyz]|{_NUMBER}|[xyz]))+")
_TERM = re.compile(rf"([+-]?)({_NUMBER})?\*?([xyz])?")
_SCREW = re.compile(r"(2(?=\(1)|3(?=\([12])|4(?=\([123])|6(?=\([1-5]))\((\d)\)")
_ORDINAL = re.compile(r"\s*(?:\(\s*\d+\s*\)|\(?\s*(?:no\.?|#)\s*\d+\s*\)?)$")
_SPOKEN = re.compile(r"[\s,(]*(?:origin\s*(?:choice)?\s*([12])|(h|r)\w+\s+(?:axes|setting))\s*\)?$")
_SUFFIX = re.compile(r"(.+?)\s*:\s*([-\w]+)|(.+?)\s*([hrsz])")


@dataclass(frozen=True, eq=False)
class Operations:
    """A group of symmetry operations, lattice translations left out.

    Attributes:
        rotations: R, (operations, 3, 3).
        translations: t in [0, 1), (operations, 3).
    """

    rotations: NDArray[np.float64]
    translations: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rotations)


@dataclass(frozen=True)
class Setting:
    """One row of the table of space-group settings.

    Attributes:
        number: 1 to 230.
        symbol: Hermann-Mauguin symbol without extension, such as "F d -3 m".
        extension: "1" or "2" for origins, "H" or "R" for axes, or empty.
        qualifier: Axes such as "b1" or "cab", empty for the standard ones.
        hall: Hall symbol.
    """

    number: int
    symbol: str
    extension: str
    qualifier: str
    hall: str

    def __str__(self) -> str:
        return f"{self.symbol} :{self.extension}" if self.extension else self.symbol


@lru_cache(maxsize=4096)
def parse_operations(triplets: tuple[str, ...]) -> Operations:
    """Return the group that a list such as ("x,y,z", "-x,y+1/2,-z") describes.

    A fourth component (time reversal of magnetic structures) is left out, the identity added,
    repeated operations are taken once.

    Args:
        triplets: In the notation of CIF.

    Raises:
        ReadingError: One is no operation, or together they are no group.
    """
    found = {tuple(np.eye(3).ravel()) + (0.0,) * 3: None}
    for triplet in triplets:
        found[_parse_triplet(triplet)] = None
    table = np.array(list(found))
    operations = Operations(table[:, :9].reshape(-1, 3, 3), table[:, 9:])
    if not _is_group(operations):
        raise ReadingError(
            f"its {len(triplets)} operations are no group: the list is cut or misspelt"
        )
    return operations


def _parse_triplet(triplet: str) -> tuple[float, ...]:
    parts = re.sub(r"\s+", "", triplet).lower().split(",")
    if len(parts) == 4 and parts[3] in ("+1", "-1", "1"):
        parts = parts[:3]
    if len(parts) != 3 or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise ReadingError(f"{triplet!r} is no symmetry operation such as -x,y+1/2,-z")
    rows, shifts = np.zeros((3, 3)), []
    for row, part in zip(rows, parts, strict=True):
        shift = Fraction(0)
        for sign, number, axis in _TERM.findall(part):
            value = (-1 if sign == "-" else 1) * _fraction(number or ("1" if axis else "0"))
            if axis:
                row["xyz".index(axis)] += float(value)
            else:
                shift += value
        shifts.append(float(shift % 1))
    if not (rows == np.rint(rows)).all() or abs(abs(np.linalg.det(rows)) - 1) > 1e-9:
        raise ReadingError(f"{triplet!r} is no symmetry operation: it does not keep volumes")
    return (*rows.ravel().tolist(), *shifts)


def _fraction(text: str) -> Fraction:
    """Return 1/3 for "1/3" as well as for "0.333"."""
    numerator, _, denominator = text.partition("/")
    if denominator:
        if int(denominator) == 0:
            raise ReadingError(f"{text} divides by zero")
        return Fraction(numerator) / int(denominator)
    value = Fraction(numerator)
    simple = value.limit_denominator(24)
    decimals = len(numerator.partition(".")[2])
    return simple if abs(simple - value) < Fraction(1, 10**decimals) else value


def _is_group(operations: Operations) -> bool:
    def codes(rotations: NDArray[np.float64], shifts: NDArray[np.float64]) -> NDArray[np.uint64]:
        # Translations are multiples of 1/110880 = 1 / (2^5 3^2 5 7 11) to all practical purposes.
        parts = np.rint(shifts * 110880).astype(np.int64) % 110880
        flat = np.concatenate([np.rint(rotations).reshape(-1, 9).astype(np.int64), parts], 1)
        return (flat.astype(np.uint64) * _HASH).sum(1)

    rotations, shifts = operations.rotations, operations.translations
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 3, 3)
    moved = np.einsum("aij,bj->abi", rotations, shifts) + shifts[:, None]
    return bool(np.isin(codes(products, moved.reshape(-1, 3)), codes(rotations, shifts)).all())


_HASH = np.random.default_rng(0).integers(1, 2**63, 12, dtype=np.uint64)


@cache
def hall_operations(symbol: str) -> Operations:
    """Return the operations of a Hall symbol.

    Args:
        symbol: Such as "-P 4 2 3".

    Raises:
        ReadingError: It is none.
    """
    try:
        group = list(gemmi.symops_from_hall(symbol.replace("_", " ").replace("=", '"')))
    except (ValueError, RuntimeError) as error:
        raise ReadingError(f"the Hall symbol {symbol!r} is not known ({error})") from error
    rotations = np.array([op.rot for op in group], dtype=float) / gemmi.Op.DEN
    return Operations(rotations, np.array([op.tran for op in group]) / gemmi.Op.DEN % 1.0)


@cache
def hall_number(symbol: str) -> int:
    """Return the number of the space-group type of a Hall symbol, 0 if the table lacks it.

    Args:
        symbol: Such as "-P 4 2 3".
    """
    group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(symbol.replace("_", " ")))
    return group.number if group else 0


@cache
def _table() -> tuple[list[Setting], dict[str, list[Setting]]]:
    """Return all settings and those of each normalised symbol (short, full, without the 1s)."""
    rows, index = [], defaultdict(list)
    for hall, group in enumerate(gemmi.spacegroup_table(), start=1):
        extension = group.ext.strip("\x00 ")
        row = Setting(group.number, group.hm, extension, group.qualifier, group.hall)
        rows.append(row)
        names = {_key(group.hm)}
        if hall <= TABULATED:
            names |= {_key(group.short_name()), _key(moyopy.HallSymbolEntry(hall).hm_full)}
            if 3 <= group.number <= 15:
                names.add(_key(" ".join(part for part in group.hm.split() if part != "1")))
        for name in names:
            index[name].append(row)
    return rows, index


def _key(symbol: str) -> str:
    return re.sub(r"[\s_]", "", symbol.lower().replace("\N{MINUS SIGN}", "-"))


@lru_cache(maxsize=4096)
def settings(symbols: tuple[str, ...], number: int = 0, code: str = "") -> tuple[Setting, ...]:
    """Return the settings that all given names allow, the most usual first.

    Args:
        symbols: Hermann-Mauguin symbols, with extensions such as ":2", "Z", "R" or ":b1".
        number: Number in the International Tables, 0 if not given.
        code: Coordinate-system code of the International Tables, such as "2", "h" or "-b1".

    Raises:
        ReadingError: A name is not known, or they contradict one another.
    """
    rows, _ = _table()
    if number and not 1 <= number <= 230:
        raise ReadingError(f"the space group has number {number}: give 1 to 230")
    known = [found for symbol in symbols if (found := _lookup(symbol)) is not None]
    if symbols and not known:
        raise ReadingError(f"the space group {symbols[0]!r} is not known: list its operations")
    allowed = known[0] if known else rows
    for other in known[1:]:
        allowed = [row for row in allowed if row in other]
    if number:
        allowed = [row for row in allowed if row.number == number]
    if code:
        allowed = [row for row in allowed if _has_code(row, code.lower())]
    if not allowed:
        said = [*(repr(symbol) for symbol in symbols), *([f"number {number}"] if number else [])]
        said += [f"coordinate system {code!r}"] if code else []
        raise ReadingError(f"the space group is given as {' and '.join(said)}: they contradict")
    return tuple(allowed)


@cache
def _lookup(symbol: str) -> list[Setting] | None:
    _, index = _table()
    # SHELX: P2(1)/c is P 21/c, and P2(1) no P 2 with its number in brackets.
    text, code = _ORDINAL.sub("", _SCREW.sub(r"\1\2", symbol.strip().lower())), ""
    if spoken := _SPOKEN.search(text):
        text, code = text[: spoken.start()], spoken[1] or spoken[2]
    suffix = _SUFFIX.fullmatch(text)
    if suffix and not code:
        text, code = suffix[1] or suffix[3], suffix[2] or suffix[4]
    rows = index.get(_key(text))
    if rows is None and (group := gemmi.find_spacegroup_by_name(text)) is not None:
        rows = index[_key(group.hm)]  # old and new spellings: F d 3 m, C m c e
    return rows and [row for row in rows if not code or _has_code(row, code)]


def _has_code(row: Setting, code: str) -> bool:
    if code in ("h", "r"):
        return row.extension == code.upper()
    if code in ("1", "2", "s", "z"):
        origin = "2" if code in "2z" else "1"
        return row.extension == origin or (row.extension == "" and origin == "1")
    origin, axes = (code[0], code[1:]) if code[0] in "12" else ("", code)
    return row.qualifier in (axes, "" if axes == "abc" else axes) and (
        not origin or row.extension == origin
    )


def misfit(operations: Operations, lattice: NDArray[np.float64]) -> float:
    """Return how much operations change the lengths and angles of a cell.

    Args:
        operations: The group.
        lattice: (3, 3), Å, rows.

    Returns:
        The largest relative change of the metric tensor G = L Lᵀ under G -> Rᵀ G R; beyond
        `METRIC_TOLERANCE`, the cell has not this symmetry.
    """
    if len(operations) == 1:
        return 0.0
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    rotations = operations.rotations
    change = rotations.transpose(0, 2, 1) @ metric @ rotations - metric
    return float((np.abs(change) / np.outer(lengths, lengths)).max())


def fitting_settings(
    allowed: Sequence[Setting], lattice: NDArray[np.float64], *, named: bool
) -> list[Setting]:
    """Return the settings that suit a cell: several if the name leaves the origin or axes open.

    Args:
        allowed: From `settings`.
        lattice: (3, 3), Å, rows.
        named: Whether a symbol was given, and not the number alone.

    Raises:
        ReadingError: None suits the cell, or the number alone does not tell which of several.
    """
    misfits = np.array([misfit(hall_operations(row.hall), lattice) for row in allowed])
    # Axes differ by which angle is not 90°, perhaps by a degree only: the best are kept.
    limit = min(max(2 * misfits.min(), 1e-4), METRIC_TOLERANCE)
    suiting = [row for row, value in zip(allowed, misfits, strict=True) if value <= limit]
    if not suiting:
        raise ReadingError(
            f"the cell has not the symmetry of its space group {allowed[0]} "
            f"(number {allowed[0].number}): correct the cell or the symbol"
        )
    if named:
        return suiting
    standard = gemmi.find_spacegroup_by_number(allowed[0].number).hm
    symbols = list(dict.fromkeys(row.symbol for row in suiting))
    if standard not in symbols and len(symbols) > 1:
        raise ReadingError(
            f"space group number {allowed[0].number} may be {', '.join(symbols)} in this cell: "
            "give the symbol"
        )
    return [
        row for row in suiting if row.symbol == (standard if standard in symbols else symbols[0])
    ]


def expand(
    operations: Operations,
    lattice: NDArray[np.float64],
    frac_coords: NDArray[np.float64],
    atomic_numbers: NDArray[np.int64],
    decimals: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Apply every operation to every site; one atom remains where images of a site coincide.

    A site with d decimals is known to u = 10^-d. An operation that leaves the true site where it
    is moves the written one by (R - 1) δ, |δ| <= u, so by at most about 3 u (a + b + c). Images
    that near are one atom, which is placed on its special position: at the mean of the images
    under the operations that leave it there. A site that repeats an image of an earlier site of
    its element is left out (files that list all atoms beside their operations); sites listed at
    one place stay two.

    Args:
        operations: The group.
        lattice: (3, 3), Å, rows.
        frac_coords: Sites, (sites, 3).
        atomic_numbers: (sites,).
        decimals: Decimals to which each site is written, (sites,).

    Returns:
        Coordinates (atoms, 3) in [0, 1), numbers (atoms,), and the multiplicity of each site
        (sites,), 0 for sites that are left out.

    Raises:
        ReadingError: Images of a site are neither one nor several atoms, or there are too many.
    """
    order, n_sites = len(operations), len(frac_coords)
    if order * n_sites > MAX_ATOMS:
        raise ReadingError(f"{n_sites} sites and {order} operations: the limit is {MAX_ATOMS}")
    unit = 10.0**-decimals
    merge = (3 * unit * np.linalg.norm(lattice, axis=1).sum()).clip(MIN_MERGE, MAX_MERGE)
    sites = frac_coords.copy()
    for _ in range(5):
        images = np.einsum("oij,aj->aoi", operations.rotations, sites) + operations.translations
        apart = images - sites[:, None]
        apart -= np.rint(apart)
        distances = np.linalg.norm(apart @ lattice, axis=-1)
        same = distances < merge[:, None]
        counts = same.sum(axis=1)
        if (distances[same].max() if same.any() else 0.0) < 1e-9:
            break
        sites = sites + (apart * same[:, :, None]).sum(axis=1) / counts[:, None]
    if (order % counts).any() or distances[same].max() > 1e-6:
        i = int(np.argmax((order % counts != 0) | (np.where(same, distances, 0).max(1) > 1e-6)))
        raise ReadingError(
            f"images of site {i + 1} are {distances[i][same[i]].max():.3g} Å apart, neither one "
            "atom nor several: give its coordinates with more digits"
        )
    orbits = [
        _distinct(wrap_coords(orbit), lattice) if count > 1 else wrap_coords(orbit)
        for orbit, count in zip(images, counts, strict=True)
    ]
    multiplicity = order // counts
    if [len(orbit) for orbit in orbits] != multiplicity.tolist():
        raise ReadingError("images of a site coincide in part: correct its coordinates")
    repeated = _repeated(orbits, sites, atomic_numbers, merge, lattice)
    multiplicity[repeated] = 0
    frac = np.concatenate([o for o, gone in zip(orbits, repeated, strict=True) if not gone])
    return frac, np.repeat(atomic_numbers, multiplicity), multiplicity


def _distinct(orbit: NDArray[np.float64], lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = []
    while len(orbit):
        kept.append(orbit[0])
        apart = orbit - orbit[0]
        apart -= np.rint(apart)
        orbit = orbit[np.linalg.norm(apart @ lattice, axis=1) > 1e-4]
    return np.array(kept)


def _repeated(
    orbits: list[NDArray[np.float64]],
    sites: NDArray[np.float64],
    atomic_numbers: NDArray[np.int64],
    merge: NDArray[np.float64],
    lattice: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which sites are images of earlier sites of their element at another place."""
    from scipy.spatial import cKDTree

    repeated = np.zeros(len(orbits), dtype=bool)
    if len(orbits) < 2:
        return repeated
    owner = np.repeat(np.arange(len(orbits)), [len(orbit) for orbit in orbits])
    atoms = np.concatenate(orbits)
    own = wrap_coords(sites)
    reach = min(float(merge.max() / face_distances(lattice).min()), 0.49)
    # A box of fractional coordinates holds every atom within `merge`.
    near = cKDTree(atoms, boxsize=1.0).query_ball_point(own, reach, p=math.inf)
    for site, found in enumerate(near):
        for atom in found:
            first = owner[atom]
            if first >= site or repeated[first] or atomic_numbers[first] != atomic_numbers[site]:
                continue
            tolerance = max(merge[first], merge[site])
            if (
                _distance(own[site], atoms[atom], lattice) < tolerance
                and _distance(own[site], own[first], lattice) >= tolerance
            ):
                repeated[site] = True
                break
    return repeated


def _distance(
    first: NDArray[np.float64], second: NDArray[np.float64], lattice: NDArray[np.float64]
) -> float:
    apart = first - second
    return float(np.linalg.norm((apart - np.rint(apart)) @ lattice))
