"""Parse CIF text with gemmi; what the text does not determine is refused with the reason.

Sites of a P1 cell are taken as they are, also where they overlap: a generated collision must not
become a smaller valid crystal by being read. `docs/reading.md` lists the dialects.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress

import gemmi
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.cells import least_distance, min_distance_ratio, niggli_reduce
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.operations import (
    METRIC_TOLERANCE,
    Operations,
    expand,
    fitting_settings,
    hall_number,
    hall_operations,
    misfit,
    parse_operations,
    settings,
)
from crystal_fidelity.structures import (
    ORDER_IT,
    Crystal,
    Entry,
    ReadFailure,
    checked,
    element_number,
    element_symbol,
    lattice_from_parameters,
    snap_thirds,
)

OCCUPANCY_TOLERANCE = 1.001e-3
"""0.999 and 1.001 are full sites."""
FORMULA_TOLERANCE = 0.12
"""Relative; formulas with decimals that differ by less from the atoms give a warning only."""
MOST_PAIRED = 1000
"""Atoms up to which all pairs are compared with their radii where a block may be read two ways."""

_CELL = tuple(f"_cell_length_{x}" for x in "abc") + tuple(
    f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")
)
_COORDINATES = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")
_OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop_magn_xyz",
)
_CENTERING = "_space_group_symop_magn_centering_xyz"
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_SYMBOLS = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
)
_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
_CODE = "_space_group_it_coordinate_system_code"
_FORMULAS = (
    "_chemical_formula_sum",
    "_chemical_formula_moiety",
    "_chemical_formula_structural",
)

_as_number = gemmi.cif.as_number
Tags = Mapping[str, list[str]]
"""Values by tag, lower case, dots as underscores (DDLm and mmCIF spellings become one)."""


@dataclass(frozen=True, eq=False)
class _Sites:
    labels: list[str]
    numbers: NDArray[np.int64]
    frac_coords: NDArray[np.float64]
    texts: list[tuple[str, ...]]
    """Coordinates as they are written."""
    multiplicities: list[str]


@dataclass(frozen=True, eq=False)
class _Choice:
    """One way to read the symmetry of a block, and the cell that comes of it."""

    name: str
    frac_coords: NDArray[np.float64]
    numbers: NDArray[np.int64]
    multiplicities: NDArray[np.int64]
    """(sites,), 0 for those that repeat an image of another."""
    fault: str
    """Why it contradicts the formula, empty if it does not."""
    rank: tuple[float, ...]
    """Contradictions to the formula, Z, multiplicities and distances; the least is the best."""
    spacing: float
    """Least distance over the sum of radii, infinite if there is nothing to choose."""


def parse_cif(text: str, name: str = "") -> Entry:
    """Return the first structure of a CIF text, or why it cannot be read.

    Args:
        text: The CIF.
        name: Name of the crystal or of the failure.

    Examples:
        >>> crystal = parse_cif('''
        ... data_iron
        ... _cell_length_a 2.87
        ... _cell_length_b 2.87
        ... _cell_length_c 2.87
        ... _cell_angle_alpha 90
        ... _cell_angle_beta 90
        ... _cell_angle_gamma 90
        ... _space_group_name_H-M_alt 'I m -3 m'
        ... loop_
        ... _atom_site_type_symbol
        ... _atom_site_fract_x
        ... _atom_site_fract_y
        ... _atom_site_fract_z
        ... Fe 0 0 0
        ... ''')
        >>> crystal.frac_coords.tolist()
        [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    """
    return replace(parse_cif_blocks(text, name)[0], name=name)


def parse_cif_blocks(text: str, name: str = "") -> list[Entry]:
    """Return every block with atoms; a text without any gives one failure.

    Args:
        text: The CIF.
        name: Name of a lone block; several are called "name-block".
    """
    try:
        document = gemmi.cif.read_string(text.removeprefix("\ufeff"))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removeprefix("string:")
        return [ReadFailure(name, f"it is not a valid CIF ({reason[:120]})")]
    blocks = [(block.name, _tags(block)) for block in document]
    blocks = [(label, tags) for label, tags in blocks if _COORDINATES[0] in tags]
    if not blocks:
        reason = "it has no _atom_site_fract_x: a CIF needs atoms in fractional coordinates"
        return [ReadFailure(name, reason)]
    if len(blocks) == 1:
        return [_read(blocks[0][1], name)]
    return [_read(tags, f"{name}-{label}") for label, tags in blocks]


def _read(tags: Tags, name: str) -> Entry:
    try:
        lattice = lattice_from_parameters(*(_number(_one(tags, tag), tag) for tag in _CELL))
        formula = _formula(tags)
        sites = _sites(tags, formula)
        groups, undecided, warnings = _symmetry(tags, lattice)
        if len(groups) == 1 and len(groups[0][1]) == 1:
            fault = _formula_fault(sites.numbers, formula)
            frac, numbers, listed = sites.frac_coords, sites.numbers, None
        else:
            choice, tie = _choose(tags, lattice, sites, groups, formula)
            frac, numbers, fault = choice.frac_coords, choice.numbers, choice.fault
            listed = _sites_of(choice, sites, lattice)
            if tie and undecided.startswith("!"):
                raise ReadingError(undecided[1:])
            warnings += [f"{undecided} {choice.name}"] if tie else []
        if fault.startswith("!"):
            raise ReadingError(fault[1:])
        warnings += [fault] if fault else []
    except ReadingError as error:
        return ReadFailure(name, str(error))
    return checked(lattice, frac, numbers, name, warning="; ".join(warnings), sites=listed)


def _tags(block: gemmi.cif.Block) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for item in block:
        if item.pair is not None:
            tag, value = map(str, item.pair)  # type: ignore[call-overload]
            tags[tag.lower().replace(".", "_")] = [value]
        elif item.loop is not None:
            values, width = list(item.loop.values), item.loop.width()
            for index, tag in enumerate(item.loop.tags):
                tags[tag.lower().replace(".", "_")] = values[index::width]
    return tags


def _text(value: str) -> str:
    """Return a CIF value without its quotes, "" for ? and . (unknown and not applicable)."""
    if value[0] in "'\";":
        return gemmi.cif.as_string(value).strip()
    return "" if value in ("?", ".") else value


def _one(tags: Tags, *names: str) -> str:
    for name in names:
        if name in tags and (text := _text(tags[name][0])):
            return text
    return ""


def _number(text: str, tag: str) -> float:
    value = _as_number(text)
    if np.isnan(value):
        if not text:
            raise ReadingError(f"it has no cell ({tag} is missing): a crystal needs its cell")
        raise ReadingError(f"{tag} is {text!r}, not a number")
    return float(value)


# Sites


def _sites(tags: Tags, formula: "_Formula | None") -> _Sites:
    columns = [tags.get(tag, []) for tag in _COORDINATES]
    n_sites = len(columns[0])
    types = _column(tags, "_atom_site_type_symbol") or [""] * n_sites
    labels = _column(tags, "_atom_site_label") or types
    if {len(types), len(labels), *map(len, columns)} != {n_sites}:
        raise ReadingError("its atom table is ragged: give every atom an element and x, y, z")
    multiplicities = _column(tags, "_atom_site_symmetry_multiplicity") or _column(
        tags, "_atom_site_site_symmetry_multiplicity"
    )
    texts = list(zip(*columns, strict=True))
    if "_atom_site_calc_flag" in tags:  # dummy sites hold no atom
        kept = [flag.lower() != "dum" for flag in tags["_atom_site_calc_flag"]]
        types, labels = list(compress(types, kept)), list(compress(labels, kept))
        texts = list(compress(texts, kept))
        multiplicities = list(compress(multiplicities, kept))
        tags = {t: list(compress(v, kept)) if len(v) == n_sites else v for t, v in tags.items()}
    _refuse_disorder(tags, labels)
    letters = "".join(types) or "".join(labels)
    one_case = letters in (letters.upper(), letters.lower())
    hydrogen = formula is not None and 1 in formula.counts
    numbers = [
        _element(kind or label, not kind, one_case, hydrogen)
        for kind, label in zip(types, labels, strict=True)
    ]
    frac = np.array([[_as_number(value) for value in row] for row in texts]).reshape(-1, 3)
    if np.isnan(frac).any():  # quoted, or no numbers
        frac = np.array([[_coordinate(value) for value in row] for row in texts])
    return _Sites(
        labels, np.array(numbers, dtype=np.int64), snap_thirds(frac), texts, multiplicities
    )


def _column(tags: Tags, tag: str) -> list[str]:
    return [_text(value) for value in tags.get(tag, ())]


def _coordinate(value: str) -> float:
    number = _as_number(_text(value))
    if np.isnan(number):
        raise ReadingError(f"the coordinate {value!r} is not a finite number: correct it")
    return float(number)


def _decimals(value: str) -> int:
    """Return how many decimals a coordinate has, trailing zeros and its uncertainty left out."""
    text = _text(value).partition("(")[0]
    return 8 if "e" in text.lower() else len(text.partition(".")[2].rstrip("0"))


def _refuse_disorder(tags: Tags, labels: list[str]) -> None:
    occupancies = tags.get("_atom_site_occupancy", [])
    for written in dict.fromkeys(occupancies):
        if not (text := _text(written)):
            continue  # unknown counts as full
        value = _as_number(text)
        if abs(value - 1) <= OCCUPANCY_TOLERANCE:
            continue
        label = labels[occupancies.index(written)]
        if np.isnan(value):
            raise ReadingError(f"{label} has occupancy {text!r}, which is no number: correct it")
        raise ReadingError(
            f"{label} has occupancy {value:g}: partial occupancies are not supported, {ORDER_IT}"
        )
    groups = {_text(value) for value in tags.get("_atom_site_disorder_group", [])} - {"", "0"}
    if len(groups) > 1:
        raise ReadingError(f"its sites belong to {len(groups)} disorder groups: {ORDER_IT}")
    for i, hydrogens in enumerate(tags.get("_atom_site_attached_hydrogens", [])):
        if _as_number(_text(hydrogens)) > 0:
            raise ReadingError(
                f"{_text(hydrogens)} hydrogen atoms attached to {labels[i]} have no position: give "
                "theirs"
            )


@lru_cache(maxsize=4096)
def _element(text: str, is_label: bool, one_case: bool, hydrogen: bool) -> int:
    """Return Z of a type symbol ("Na", "Na1+", "O2-", "D") or, without one, of a label ("Na1A").

    The leading letters must be a symbol as a whole: Wat3 is no tungsten, OH no oxygen, NH4 no
    nihonium. Where a file knows one case only, FE is iron.

    Args:
        text: Type symbol or label.
        is_label: Whether it is a label.
        one_case: Whether the file writes all symbols in capitals, or none.
        hydrogen: Whether the formula has hydrogen, so that the label T1 is tritium and no
            tetrahedral site.
    """
    match = re.match(r"[A-Za-z]*", text)
    letters = match.group() if match else ""
    rest = text[len(letters) :]
    number = element_number(letters)
    if not number and one_case:
        number = element_number(letters.title())
        number = number if number <= 98 else 0  # CN and NH are no copernicium and nihonium
    if is_label:
        number = 0 if re.fullmatch("[HD][23]O", text, re.IGNORECASE) else number  # water
        sound = not re.search(r"[,/&;|\s]|\+\s*[A-Za-z]", rest) and (letters != "T" or hydrogen)
    else:
        sound = re.fullmatch(r"\d*\.?\d*[+-]?\d*\.?\d*[+-]?", rest) is not None
    if not number or not sound:
        raise ReadingError(f"{text!r} names no element: use symbols such as Na or O")
    return number


# Symmetry


def _symmetry(
    tags: Tags, lattice: NDArray[np.float64]
) -> tuple[list[tuple[str, Operations]], str, list[str]]:
    """Return the groups that the block allows, what to say if nothing decides, and warnings.

    What to say starts with "!" where the block must then be refused.

    Raises:
        ReadingError: The symmetry is not known, contradicts itself or does not fit the cell.
    """
    listed = _listed_operations(tags)
    if listed is None:
        groups, warnings = _named_groups(tags, lattice)
        if not groups:
            _refuse_other_names(tags)
            groups = [("P 1", hall_operations("P 1"))]
        names = " and ".join(name for name, _ in groups)
        doubt = f"its space group may be {names}: add the extension to the symbol; it is read as"
        return groups, doubt, warnings
    if misfit(listed, lattice) > METRIC_TOLERANCE:
        raise ReadingError("the cell has not the symmetry of its operations: correct one of them")
    try:
        named, _ = _named_groups(tags, lattice)
    except ReadingError:  # the list of operations says more than the symbol
        return [("its operations", listed)], "", []
    if not named or any(len(group) == len(listed) for _, group in named):
        return [("its operations", listed)], "", []
    name = named[0][0]
    if len(listed) > 1:
        doubt = f"{len(listed)} operations are listed, but {name} has {len(named[0][1])}"
        return [("its operations", listed)], "", [doubt]
    doubt = f"!its only operation is x,y,z, but its space group is {name}: list the operations"
    return [("its operations", listed), *named], doubt, []


def _refuse_other_names(tags: Tags) -> None:
    """Refuse a group that is only named as magnetic, parent or Schoenflies groups are."""
    for tag in tags:
        name = _one(tags, tag) if re.search("space_group.*_(name|number)", tag) else ""
        if re.sub(r"[\s_]", "", name).upper() not in ("", "1", "1.1", "P1", "P1.1", "C1", "C1^1"):
            raise ReadingError(
                f"its space group is named by {tag} {name!r} alone: list its operations"
            )


def _listed_operations(tags: Tags) -> Operations | None:
    for tag in tags:
        if "ssg_operation" in tag or (
            tag == "_cell_modulation_dimension" and _one(tags, tag) != "0"
        ):
            raise ReadingError("it is a modulated structure: give a commensurate supercell")
    for tag in _OPERATIONS:
        triplets = [text for value in tags.get(tag, []) if (text := _text(value))]
        if triplets:
            break
    else:
        for tag, values in tags.items():
            shaped = any(re.search(r"x.*,.*y.*,", _text(value).lower()) for value in values)
            if shaped and re.search("symop|symmetry_equiv", tag) and tag != _CENTERING:
                raise ReadingError(f"it lists operations as {tag}, which is not understood")
        return None
    try:
        operations = parse_operations(tuple(triplets))
        if _CENTERING not in tags:
            return operations
        shifts = parse_operations(tuple(_text(value) for value in tags[_CENTERING]))
    except ReadingError as error:
        raise ReadingError(f"{tag}: {error}") from error
    # Magnetic structures: every operation with every centring translation, once.
    moved = (operations.translations + shifts.translations[:, None]).reshape(-1, 3) % 1.0
    turned = np.tile(operations.rotations.reshape(-1, 9), (len(shifts), 1))
    table = np.unique(np.concatenate([turned, moved.round(9) % 1.0], axis=1), axis=0)
    return Operations(table[:, :9].reshape(-1, 3, 3), table[:, 9:])


def _named_groups(
    tags: Tags, lattice: NDArray[np.float64]
) -> tuple[list[tuple[str, Operations]], list[str]]:
    """Return the groups that Hall symbol, Hermann-Mauguin symbols and number allow together."""
    symbols = [text for tag in _SYMBOLS if (text := _one(tags, tag))]
    number = 0
    if text := _one(tags, *_NUMBERS):
        value = _as_number(text)
        if np.isnan(value):
            symbols.append(text)
        elif value != int(value) or not value:
            raise ReadingError(f"the space group has number {text}: give 1 to 230")
        number = 0 if np.isnan(value) else int(value)
    code = _one(tags, _CODE)
    warnings = []
    if hall := _one(tags, *_HALL):
        try:
            operations = hall_operations(hall)
        except ReadingError as error:
            if not symbols and not number:
                raise
            warnings.append(str(error))
        else:
            return [(hall, _checked_hall(hall, operations, symbols, number, lattice))], warnings
    if not symbols and not number:
        return [], warnings
    allowed = settings(tuple(symbols), number, code)
    suiting = fitting_settings(allowed, lattice, named=bool(symbols))
    return [(str(row), hall_operations(row.hall)) for row in suiting], warnings


def _checked_hall(
    hall: str,
    operations: Operations,
    symbols: list[str],
    number: int,
    lattice: NDArray[np.float64],
) -> Operations:
    kind = hall_number(hall)
    try:
        others = {row.number for row in settings(tuple(symbols), number)}
    except ReadingError:
        others = {number} if number else set()  # a symbol of a setting that no table has
    if kind and others and kind not in others:
        raise ReadingError(
            f"its Hall symbol {hall!r} is of space group {kind}, its other names are of "
            f"{min(others)}: they contradict"
        )
    if misfit(operations, lattice) > METRIC_TOLERANCE:
        raise ReadingError(
            f"the cell has not the symmetry of its Hall symbol {hall!r}: correct one of them"
        )
    return operations


def _choose(
    tags: Tags,
    lattice: NDArray[np.float64],
    sites: _Sites,
    groups: list[tuple[str, Operations]],
    formula: "_Formula | None",
) -> tuple[_Choice, bool]:
    """Expand the sites under every group; return the cell that suits the block best.

    Returns:
        The choice, and whether another one that makes another crystal suits as well.
    """
    asymmetric = checked(lattice, sites.frac_coords, sites.numbers)
    if isinstance(asymmetric, ReadFailure):
        raise ReadingError(asymmetric.reason)
    decimals = np.array([max(map(_decimals, row)) for row in sites.texts], dtype=np.int64)
    choices = []
    for name, operations in groups:
        try:
            frac, numbers, multiplicities = expand(
                operations, lattice, sites.frac_coords, sites.numbers, decimals
            )
        except ReadingError:
            if len(groups) == 1:
                raise
            continue
        fault = _formula_fault(numbers, formula)
        rank: tuple[float, ...] = (
            bool(fault) + fault.startswith("!"),
            _z_fault(tags, numbers, formula),
        )
        spacing = np.inf
        if len(groups) > 1:
            written = [_as_number(text) for text in sites.multiplicities]
            different = bool(written) and not np.array_equal(written, multiplicities)
            crystal = niggli_reduce(Crystal(lattice, frac, numbers))
            near = least_distance(crystal, reduced=True)
            rank += (different, near < 0.5)
            paired = len(crystal) <= MOST_PAIRED
            spacing = min_distance_ratio(crystal, reduced=True) if paired else near
        choices.append(_Choice(name, frac, numbers, multiplicities, fault, rank, spacing))
    if not choices:
        raise ReadingError("its sites suit none of the groups that its symbols allow")
    # Where nothing decides: the higher site symmetries, then the larger distances: spinel, or a
    # Laves phase, with 1/8 and 1/2 and no origin is a crystal with the elements exchanged too.
    best = min(choices, key=lambda c: (c.rank, len(c.numbers), -c.spacing))
    rivals = [c for c in choices if c.rank == best.rank and c is not best]
    # All atoms listed, with the symbol of their group: the group adds nothing.
    same = any(c.name == "its operations" for c in choices) and all(
        len(c.numbers) == len(best.numbers) for c in rivals
    )
    return best, bool(rivals) and not same


def _sites_of(choice: _Choice, sites: _Sites, lattice: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the site of the block that each atom of the cell is, or of which it is an image."""
    made_by = np.repeat(np.arange(len(sites.numbers)), choice.multiplicities)
    for site in np.flatnonzero(choice.multiplicities == 0):  # the atom listed there is that one
        apart = choice.frac_coords - sites.frac_coords[site]
        distances = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=1)
        distances[choice.numbers != sites.numbers[site]] = np.inf
        made_by[distances.argmin()] = site
    return made_by


# Formula


@dataclass(frozen=True)
class _Formula:
    text: str
    counts: dict[int, float]


def _formula(tags: Tags) -> _Formula | None:
    for tag in _FORMULAS:
        if (text := _one(tags, tag)) and (counts := _parse_formula(text)):
            return _Formula(f"{tag} {text!r}", counts)
    return None


_COUNT = r"(\d+\.?\d*|\.\d+|)"
_ATOMS = re.compile(rf"([A-Z][a-z]?){_COUNT}\s*")
_BRACKET = re.compile(rf"[(\[]((?:{_ATOMS.pattern})*)[)\]]\s*{_COUNT}")


@lru_cache(maxsize=1024)
def _parse_formula(text: str) -> dict[int, float] | None:
    """Return atoms by Z of "C12 H22 O11", "Mg (O H)2" or "2(H2 O), Cl 1-", None if it is no such.

    Moieties are separated by commas, water of crystallisation by dots or stars.
    """
    counts: defaultdict[int, float] = defaultdict(float)
    for part in re.split(r"[,*\u00b7\u2022]|\s\.\s", text):
        body = re.sub(r"\s\d*[+-](?=\s*([)\]]|$))", "", part.strip())  # charges
        lead = re.match(_COUNT, body)[0]  # type: ignore[index]
        body = body[len(lead) :].strip()
        while group := _BRACKET.search(body):  # the innermost: Al(OH)3 to Al O3 H3
            times = float(group[4] or 1)
            inner = [f"{s}{float(n or 1) * times:.9g}" for s, n in _ATOMS.findall(group[1])]
            body = f"{body[: group.start()]} {' '.join(inner)} {body[group.end() :]}"
        found = _ATOMS.findall(body)
        if (
            not found
            or _ATOMS.sub("", body).strip()
            or not all(element_number(s) for s, _ in found)
        ):
            return None
        for symbol, count in found:
            counts[element_number(symbol)] += float(lead or 1) * float(count or 1)
    return {z: n for z, n in counts.items() if n > 0} or None


def _formula_fault(numbers: NDArray[np.int64], formula: _Formula | None) -> str:
    """Return how the atoms contradict the formula; "!" starts what cannot be the crystal."""
    if formula is None:
        return ""
    atoms = Counter(numbers.tolist())
    parts = [atoms[z] / n for z, n in formula.counts.items()]
    missing, extra = formula.counts.keys() - atoms.keys(), atoms.keys() - formula.counts.keys()
    exact = all(n == int(n) for n in formula.counts.values())
    spread = max(parts) / min(parts) - 1 if min(parts) > 0 else np.inf
    if not extra and spread < (1e-6 if exact else 0.02):
        return ""
    made = " ".join(f"{element_symbol(z)}{n}" for z, n in atoms.items())
    absent = ", ".join(element_symbol(z) for z in sorted(missing))
    severe = "!" if missing or extra or exact or spread > FORMULA_TOLERANCE else ""
    return f"{severe}its atoms are {made}, but {formula.text}" + (
        f": atoms are missing ({absent})" if missing else " says otherwise"
    )


def _z_fault(tags: Tags, numbers: NDArray[np.int64], formula: _Formula | None) -> int:
    """Return 0 if the cell holds Z formulas, 1 if nothing is known, 2 if it holds another number.

    Some programs write the formula of the whole cell: that counts as 0 where Z is not given.
    """
    if formula is None:
        return 1
    units = _as_number(_one(tags, "_cell_formula_units_z") or "?")
    counts = list(formula.counts.values())
    if abs(units * sum(counts) - len(numbers)) < 0.02 * len(numbers):
        return 0
    whole = abs(sum(counts) - len(numbers)) < 0.5
    if np.isnan(units):
        reducible = all(n == int(n) for n in counts) and math.gcd(*map(int, counts)) > 1
        return 0 if whole and reducible else 1
    return 1 if whole else 2
