"""The reader of structure files: CIF, POSCAR, extended XYZ, CSV, ASE databases and folders.

Every reader streams; parsing runs in worker processes when asked. A structure that cannot be read
comes out as a `ReadFailure` in its place. `docs/reading.md` lists the dialects.
"""

import codecs
import csv
import gzip
import io
import json
import math
import re
import sqlite3
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from crystal_fidelity.cif import parse_cif, parse_cif_blocks
from crystal_fidelity.errors import ReadingError, ReadingWarning
from crystal_fidelity.structures import (
    Crystal,
    Entry,
    ReadFailure,
    checked,
    element_number,
    from_cartesian,
    snap_thirds,
)
from crystal_fidelity.workers import map_in_order

NAME_KEYS = ("material_id", "id", "mat_id", "identifier", "name")
"""Columns and keys that name a structure, the first that is there."""
FORMATS = (
    "CIF (.cif, .mcif), POSCAR (.vasp, .poscar, POSCAR, CONTCAR), a folder of these, extended XYZ "
    "(.extxyz, .xyz), CSV with a cif column (.csv), each also with .gz, or an ASE database (.db)"
)
CSV_FIELD_LIMIT = 1 << 26
MAX_TEXT = 1 << 28
"""Characters of one CIF or POSCAR, of one line and of one frame."""
MAX_RATIO, FREE_SIZE = 100, 1 << 28
"""A gzip file may expand to the second (256 MiB), or to the first times its own size."""
MAX_COLUMNS = 1000
"""Columns of an atom table in extended XYZ."""
MAX_COMMENT = 1 << 19
"""Characters of a comment line in extended XYZ, whose keys take ASE quadratic time."""
MAX_BLANK = 1_000_000
"""Blank lines of a CSV; a gzip file of megabytes can hold billions."""
MAX_DIGITS = 9
"""Digits of a number of atoms."""
_CIF_ENDINGS, _POSCAR_ENDINGS = (".cif", ".mcif"), (".vasp", ".poscar")
_FAILURES = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)

Raw = tuple[str, str, dict[str, str]]
"""Name, text of one structure, and what else is known of it."""


def read_structures(path: str | Path, *, workers: int = 1) -> list[Entry]:
    """Read all structures of a file or folder.

    Args:
        path: CIF, POSCAR, extended XYZ, CSV, ASE database, or a folder of CIF and POSCAR files.
        workers: Processes that parse; 1 stays in this process.

    Returns:
        Crystals, and in the place of each that cannot be read the reason.

    Raises:
        ReadingError: Nothing is there, the format is none of these, the file is torn or holds no
            structure.

    Examples:
        >>> from ase.build import bulk
        >>> bulk("Cu").write("copper.cif")
        >>> [len(crystal) for crystal in read_structures("copper.cif")]
        [1]
    """
    return list(iter_structures(path, workers=workers))


def iter_structures(
    path: str | Path,
    *,
    workers: int = 1,
    keep: Callable[[Mapping[str, str]], bool] | None = None,
) -> Iterator[Entry]:
    """Stream the structures of a file or folder in their order; see `read_structures`.

    Args:
        path: See `read_structures`.
        workers: See `read_structures`.
        keep: Which rows of a CSV are parsed, by their other columns; without it all.

    Examples:
        >>> from ase.build import bulk
        >>> bulk("Cu").write("copper.cif")
        >>> len(next(iter_structures("copper.cif")))
        1
    """
    path = Path(path)
    if not path.exists():
        raise ReadingError(f"{path} does not exist, no such file or folder: give {FORMATS}")
    read, doubtful = 0, []
    try:
        for entry in _entries(path, workers, keep):
            yield entry
            read += 1
            if isinstance(entry, Crystal) and entry.warning:
                doubtful.append(f"{entry.name}: {entry.warning}")
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise ReadingError(
            f"{path} is torn or not what its name says, {read} structures into it ({error}): a "
            "part of a set would give another number, so get the whole file"
        ) from error
    except OSError as error:
        raise ReadingError(f"{path} cannot be read ({error.strerror or error})") from error
    if read == 0 and keep is None:
        raise ReadingError(f"{path} is empty, it holds no structure: give {FORMATS}")
    if doubtful:
        more = f" (and {len(doubtful) - 3} more)" if len(doubtful) > 3 else ""
        warnings.warn(
            f"{path}: {'; '.join(doubtful[:3])}{more}", category=ReadingWarning, stacklevel=2
        )


def _entries(
    path: Path, workers: int, keep: Callable[[Mapping[str, str]], bool] | None
) -> Iterator[Entry]:
    if path.is_dir():
        for group in map_in_order(_parse_file, _folder(path), workers):
            yield from group
    elif _kind(path) in ("cif", "poscar"):
        yield from _parse_file((path, _stem(path)))
    elif _kind(path) == "csv":
        rows = (row for row in _csv_rows(path) if keep is None or keep(row[2]))
        yield from map_in_order(_parse_row, rows, workers)
    elif _kind(path) == "xyz":
        yield from map_in_order(_parse_frame, _frames(path), workers)
    elif _kind(path) == "db":
        yield from _database_rows(path)
    else:
        features = "; features (.npz) go to `crystal-fidelity frechet`"
        more = features if path.suffix.lower() == ".npz" else ""
        raise ReadingError(f"{path} is of no known format: give {FORMATS}{more}")


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(_CIF_ENDINGS):
        return "cif"
    if name.endswith(_POSCAR_ENDINGS) or name.startswith(("poscar", "contcar")):
        return "poscar"
    if path.suffix.lower() == ".db":
        return "db"
    return {".csv": "csv", ".xyz": "xyz", ".extxyz": "xyz"}.get(Path(name).suffix, "")


def _stem(path: Path) -> str:
    """Return the name of a file without its known ending, "a.1.cif.gz" as "a.1"."""
    return re.sub(r"(?i)(\.(m?cif|vasp|poscar|csv|xyz|extxyz|db))?(\.gz)?$", "", path.name)


# Text


def _latin(error: UnicodeError) -> tuple[str, int]:
    """Read bytes that are not UTF-8 as Latin-1."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("crystal_fidelity.latin1", _latin)


class _Bounded(io.RawIOBase):
    """A gzip stream that stops where no honest file would go on."""

    def __init__(self, path: Path) -> None:
        self._stream = gzip.open(path, "rb")  # noqa: SIM115 (closed in close)
        self._left = max(FREE_SIZE, MAX_RATIO * path.stat().st_size)
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise ReadingError(
                f"{self._path} expands to more than {MAX_RATIO} times its size: unpack it first"
            )
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_text(path: Path) -> IO[str]:
    """Open UTF-8, UTF-16 with its mark or, byte by byte, Latin-1 text; line ends are kept.

    Reading a gzip file (.gz) raises a `ReadingError` where it expands beyond `MAX_RATIO`.

    Args:
        path: Plain or gzipped.
    """
    raw = io.BufferedReader(_Bounded(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    mark = raw.peek(2)[:2]
    utf16 = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if utf16 else "utf-8-sig"
    return io.TextIOWrapper(raw, encoding, errors="crystal_fidelity.latin1", newline="")


def _lines_of(text: str) -> list[str]:
    """Split at line ends only, not at U+2028 and other characters that `splitlines` knows."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _numbers(info: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for key, text in info.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            found[key] = value
    return found


# Folders, CIF and POSCAR


def _folder(folder: Path) -> list[tuple[Path, str]]:
    """Return CIF and POSCAR files by name; others are named in a warning."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir())
    known = [path for path in files if _kind(path) in ("cif", "poscar")]
    others = [path.name for path in files if path not in set(known)]
    listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    if not known:
        raise ReadingError(
            f"{folder} has no .cif files nor POSCAR files"
            + (f", but {listed}" if others else "")
            + f": give {FORMATS}"
        )
    if others:
        warnings.warn(
            f"{folder}: {len(others)} other files are not read: {listed}",
            category=ReadingWarning,
            stacklevel=4,
        )
    stems = Counter(_stem(path) for path in known)
    return [(path, _stem(path) if stems[_stem(path)] == 1 else path.name) for path in known]


def _parse_file(job: tuple[Path, str]) -> list[Entry]:
    path, name = job
    name = name or path.name
    try:
        with open_text(path) as stream:
            text = stream.read(MAX_TEXT + 1)
        if len(text) > MAX_TEXT:
            raise ReadingError(f"it has more than {MAX_TEXT} characters")
    except (OSError, EOFError, zlib.error, ReadingError) as error:
        return [ReadFailure(name, f"it cannot be opened ({error})")]
    if _kind(path) == "cif":
        return parse_cif_blocks("\n".join(_lines_of(text)), name)
    try:
        return [_poscar(_lines_of(text), name)]
    except ReadingError as error:
        return [ReadFailure(name, str(error))]


def _poscar(lines: list[str], name: str) -> Entry:
    """Read VASP's format: comment, scale, cell, symbols (not in VASP 4), counts, coordinates."""
    rows = [line.split("!")[0].split() for line in lines]
    if len(rows) < 7:
        raise ReadingError("it is not a POSCAR: it has fewer than 8 lines")
    scale = np.array(_floats(rows[1], "scale", len(rows[1]) if len(rows[1]) < 3 else 3)[:3])
    lattice = np.array([_floats(row, "cell", 3) for row in rows[2:5]])
    if len(scale) == 1 and scale[0] < 0:  # minus the volume
        scale = np.cbrt(-scale / abs(np.linalg.det(lattice)))
    if len(scale) not in (1, 3) or not (scale > 0).all():
        raise ReadingError(f"its scale {' '.join(rows[1])!r} is neither one nor three factors")
    lattice = lattice * scale  # three factors stretch x, y and z
    at = 5
    symbols = None if _counts(rows[5]) else rows[at]
    at += symbols is not None
    counts = _counts(rows[at]) if at < len(rows) else None
    if not counts or (symbols is not None and len(symbols) != len(counts)):
        raise ReadingError("it is not a POSCAR: its sixth and seventh lines give no atoms")
    at += 1
    selective = at < len(rows) and (rows[at] or [""])[0][:1] in ("S", "s")
    at += selective
    if at >= len(rows):
        raise ReadingError("it is cut before its coordinates")
    cartesian = (rows[at] or [""])[0][:1] in ("C", "c", "K", "k")
    total = sum(counts)
    sites = rows[at + 1 : at + 1 + total]
    if len(sites) < total or not all(sites):
        raise ReadingError(f"it has fewer than the {total} atoms that it announces")
    if symbols is None:
        species = _species_of_vasp4(rows[0], counts, sites)
    else:
        species = np.repeat([_vasp_element(symbol) for symbol in symbols], counts)
    coords = np.array([_floats(row, "coordinates", 3) for row in sites]).reshape(-1, 3)
    if cartesian:
        entry = from_cartesian(lattice, coords * scale, species, name)
    else:
        entry = checked(lattice, snap_thirds(coords), species, name)
    return _with_fixed(entry, [row[3:6] for row in sites]) if selective else entry


def _with_fixed(entry: Entry, flags: Sequence[Sequence[str]]) -> Entry:
    """Note which atoms a file fixes: those whose flags (T or F, 1 or 0) along x, y, z say so.

    An atom that is fixed along some directions only stays free, with a warning.
    """
    free = [[flag.strip(".")[:1] not in ("F", "f", "0") for flag in atom] for atom in flags]
    fixed = np.array([bool(atom) and not any(atom) for atom in free])
    partly = [n for n, atom in enumerate(free, 1) if any(atom) and not all(atom)]
    if isinstance(entry, ReadFailure) or not (fixed.any() or partly):
        return entry
    warning = entry.warning
    if partly:
        warning += f"atom {partly[0]} is fixed along some directions only: it is taken as free"
    return replace(entry, fixed=fixed if fixed.any() else None, warning=warning)


def _floats(words: list[str], what: str, count: int) -> list[float]:
    try:
        values = [float(word) for word in words[:count]]
    except ValueError as error:
        raise ReadingError(f"its {what} {' '.join(words)[:60]!r} are no numbers") from error
    if len(values) < count or not values:
        raise ReadingError(f"its {what} {' '.join(words)[:60]!r} are not {count} numbers")
    return values


def _counts(words: list[str]) -> list[int] | None:
    if not words or not all(word.isdecimal() and len(word) <= MAX_DIGITS for word in words):
        return None
    return [int(word) for word in words]


def _vasp_element(symbol: str) -> int:
    """Return Z of "Fe", "Fe_pv" or "Fe_sv_GW/hash"."""
    number = element_number(re.split("[_/]", symbol)[0])
    if not number:
        raise ReadingError(f"{symbol!r} names no element: use symbols such as Na or O")
    return number


def _species_of_vasp4(
    comment: list[str], counts: list[int], sites: list[list[str]]
) -> "np.ndarray":
    """Return Z by atom from the comment line or from symbols behind the coordinates.

    The flags of selective dynamics stand before them, and are no tritium and fluorine.
    """
    behind = [row[6:] if {*row[3:6]} <= {"T", "F"} and row[5:] else row[3:] for row in sites]
    for words, repeats in ((comment, counts), ([*chain(*(row[:1] for row in behind))], 1)):
        numbers = [element_number(re.split("[_/]", word)[0]) for word in words]
        expected = len(counts) if words is comment else len(sites)
        if len(numbers) == expected and all(numbers):
            return np.repeat(numbers, repeats)
    raise ReadingError(
        "it names no elements (a POSCAR of VASP 4): put their symbols on the line before the "
        "numbers of atoms"
    )


# CSV


def _csv_rows(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with open_text(path) as stream:
        first = stream.readline(MAX_TEXT)
        if first.strip().lower().startswith("sep="):  # Excel
            first = stream.readline(MAX_TEXT)
        if not first.strip():
            raise ReadingError(f"{path} is empty: give a CSV with a header and a cif column")
        separator, header = _header(first, path)
        names = [cell.strip() for cell in header]
        lower = [cell.lower() for cell in names]
        if lower.count("cif") > 1:
            raise ReadingError(f"{path} has {lower.count('cif')} columns cif: keep one")
        cif = lower.index("cif")
        named = next((lower.index(key) for key in NAME_KEYS if key in lower), None)
        kept = [i for i in range(len(names)) if i not in (cif, named) and names[i]]
        blank = 0
        for number, row in enumerate(csv.reader(stream, delimiter=separator, strict=True), 1):
            if not row:
                blank += 1
                if blank > MAX_BLANK:
                    raise ReadingError(f"{path} has more than {MAX_BLANK} blank lines: remove them")
                continue
            name = row[named] if named is not None and named < len(row) else ""
            info = {names[i]: row[i] for i in kept if i < len(row)}
            if separator == ";":  # decimal commas
                info = {
                    k: re.sub(r"^\s*([+-]?\d+),(\d+)\s*$", r"\1.\2", v) for k, v in info.items()
                }
            text = row[cif] if cif < len(row) else ""
            if len(row) != len(header):
                text = f"!it has {len(row)} of {len(header)} columns: the file is cut or misquoted"
            yield name or f"row-{number}", text, info


def _header(line: str, path: Path) -> tuple[str, list[str]]:
    for separator in ",;\t":
        header = next(csv.reader([line], delimiter=separator))
        if "cif" in (cell.strip().lower() for cell in header):
            return separator, header
    listed = ", ".join(repr(cell.strip())[:30] for cell in next(csv.reader([line]))[:20])
    raise ReadingError(f"{path} has no cif column but {listed}: name one cif")


def _parse_row(raw: Raw) -> Entry:
    name, text, info = raw
    if text.startswith("!"):
        return ReadFailure(name, text[1:])
    if not text.strip():
        return ReadFailure(name, "its cif column is empty")
    entry = parse_cif(text, name)
    if isinstance(entry, Crystal):
        return replace(entry, info=info, properties=_numbers(info))
    return entry


# Extended XYZ


def _frames(path: Path) -> Iterator[Raw]:
    """Cut a stream into frames; after a broken one, reading goes on where the next begins."""
    index, found = 0, False
    with open_text(path) as stream:
        lines = _Lines(stream)
        while (count := lines.next_text()) is not None:
            name = f"{_stem(path)}-{index}"
            index += 1
            if not _counts(count.split()) or len(count.split()) != 1:
                where = f"line {lines.number}: {count.strip()[:40]!r} is not a number of atoms"
                again = lines.skip_to_frame()
                if not found and not again:
                    raise ReadingError(f"{path}, {where}: give extended XYZ")
                yield name, f"!{where}", {}
                continue
            found = True
            total = int(count)
            body = lines.take(total + 1)
            if len(body) < total + 1:
                reason = f"!it has {max(0, len(body) - 1)} of {total} atoms: the file is cut"
                yield name, reason, {}
            else:
                yield name, "".join(body), {}


class _Lines:
    """Lines of a file, with a look ahead."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._ahead, self.number = stream, deque[str](), 0

    def next(self) -> str:
        self.number += 1
        line = self._ahead.popleft() if self._ahead else self._stream.readline(MAX_TEXT)
        return line if line.endswith(("\n", "\r")) or not line else line + "\n"

    def next_text(self) -> str | None:
        while line := self.next():
            if line.strip():
                return line
        return None

    def take(self, count: int) -> list[str]:
        """Return `count` lines, fewer where the file or, by its comment line, the frame ends."""
        taken: list[str] = []
        size = 0
        while line := self.next():
            if len(taken) > 1 and "Lattice=" in line and taken[-1].strip().isdecimal():
                self._ahead.extendleft([line, taken.pop()])
                self.number -= 2
                break
            if len(taken) == count:
                self._ahead.appendleft(line)
                self.number -= 1
                break
            taken.append(line)
            size += len(line)
            if size > MAX_TEXT:
                raise ReadingError(f"line {self.number}: a frame has over {MAX_TEXT} characters")
        return taken

    def skip_to_frame(self) -> bool:
        """Go on before the next number of atoms that a comment line with a cell follows."""
        previous = ""
        while line := self.next():
            if "Lattice=" in line and previous.strip().isdecimal():
                self._ahead.extendleft([line, previous])
                self.number -= 2
                return True
            previous = line
        return False


def _parse_frame(raw: Raw) -> Entry:
    name, text, _ = raw
    if text.startswith("!"):
        return ReadFailure(name, text[1:])
    try:
        return _frame(_lines_of(text), name)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:160]
        return ReadFailure(name, f"it is not a frame of extended XYZ ({reason})")


def _frame(lines: list[str], name: str) -> Entry:
    from ase.io.extxyz import key_val_str_to_dict

    if len(lines[0]) > MAX_COMMENT:
        return ReadFailure(
            name, f"its comment line has {len(lines[0])} > {MAX_COMMENT} characters: shorten it"
        )
    values = key_val_str_to_dict(lines[0])
    info = {
        key: str(value)
        for key, value in values.items()
        if key not in ("Lattice", "Properties", "pbc")
    }
    name = next((info.pop(key) for key in NAME_KEYS if key in info), name)
    if "Lattice" not in values:
        return ReadFailure(name, "it has no cell (Lattice): a crystal needs its lattice vectors")
    table = str(values.get("Properties", "species:S:1:pos:R:3")).split(":")
    places, width = {}, 0
    for key, columns in zip(table[::3], table[2::3], strict=True):
        places[key.lower()] = width
        width += int(columns)
        if not 0 < int(columns) <= width <= MAX_COLUMNS:
            return ReadFailure(name, f"it announces more than {MAX_COLUMNS} columns of atoms")
    at = places["pos"]
    if width < at + 3 or not {"species", "z", "numbers"} & places.keys():
        return ReadFailure(name, "its Properties name no species or no three coordinates")
    rows = [line.split() for line in lines[1:-1]]
    short = next((i for i, row in enumerate(rows) if len(row) < width), None)
    if short is not None:
        return ReadFailure(name, f"atom {short + 1} has {len(rows[short])} of {width} columns")
    if "species" in places:
        numbers = [_species(row[places["species"]]) for row in rows]
    else:
        numbers = [int(row[places.get("z", places.get("numbers", 0))]) for row in rows]
    positions = np.array([[float(x) for x in row[at : at + 3]] for row in rows]).reshape(-1, 3)
    entry = from_cartesian(
        values["Lattice"].T,
        positions,
        numbers,
        name,
        pbc=_flags(values.get("pbc", True)),
        info=info,
        properties=_numbers(info),
    )
    if (mask := places.get("move_mask")) is None:
        return entry
    width = int(table[table.index("move_mask") + 2])
    return _with_fixed(entry, [row[mask : mask + width] for row in rows])


def _flags(value: object) -> list[bool]:
    """Return whether a structure is periodic: "T T F", "[true, true, false]" or "1 1 0"."""
    words = re.findall(r"\w+", " ".join(map(str, np.ravel(value))).lower())  # type: ignore[call-overload]
    if len(words) not in (1, 3) or not {*words} <= {"t", "true", "1", "f", "false", "0"}:
        raise ReadingError(f"its pbc '{' '.join(words)[:60]}' are not three flags such as T T T")
    return [word in ("t", "true", "1") for word in words]


def _species(text: str) -> int:
    number = element_number(text) or (int(text) if text.isdecimal() else 0)
    if not number:
        raise ReadingError(f"{text!r} names no element: use symbols such as Na or O")
    return number


# ASE databases


def _database_rows(path: Path) -> Iterator[Entry]:
    """Yield the rows of the SQLite file that ASE writes, opened for reading only.

    The tables are read without ASE, whose `connect` adds its own to any SQLite file and whose
    `select` ends at the first damaged row.
    """
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
    try:
        # A view, or a column that is computed, may take any time and memory.
        plain = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'systems'"
        columns = {row[1] for row in connection.execute("PRAGMA table_info(systems)")}
        wanted = ("numbers", "positions", "cell", "pbc", "key_value_pairs", "energy")
        if not connection.execute(plain).fetchone() or not columns.issuperset(wanted):
            raise ReadingError(f"{path} is not an ASE database: it has no table of systems")
        identities = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
        held = "constraints" if "constraints" in columns else "NULL"
        query = f"SELECT {', '.join(wanted)}, {held} FROM systems WHERE id = ?"
        for identity in identities:
            name = f"{_stem(path)}-{identity}"
            try:
                yield _database_row(connection.execute(query, (identity,)).fetchone(), name)
            except (*_FAILURES, sqlite3.Error) as error:
                reason = " ".join(str(error).split())[:160]
                yield ReadFailure(name, f"its row is damaged ({reason})")
    except sqlite3.DatabaseError as error:
        raise ReadingError(f"{path} is not an ASE database ({error})") from error
    finally:
        connection.close()


def _database_row(row: tuple[object, ...], name: str) -> Entry:
    numbers, positions, cell = (
        np.frombuffer(blob, dtype)  # type: ignore[call-overload]
        for blob, dtype in zip(row[:3], ("<i4", "<f8", "<f8"), strict=True)
    )
    pbc, pairs, energy, constraints = row[3:]
    info = {key: str(value) for key, value in json.loads(str(pairs or "{}")).items()}
    if energy is not None:
        info.setdefault("energy", str(energy))
    name = next((info.pop(key) for key in NAME_KEYS if key in info), name)
    entry = from_cartesian(
        cell.reshape(3, 3),
        positions.reshape(-1, 3),
        numbers,
        name,
        pbc=[bool(int(pbc or 0) & bit) for bit in (1, 2, 4)],  # type: ignore[call-overload]
        info=info,
        properties=_numbers(info),
    )
    held = set[int]()
    for constraint in json.loads(str(constraints or "[]")):
        if constraint["name"] == "FixAtoms":
            held |= set(constraint["kwargs"]["indices"])
        elif isinstance(entry, Crystal):
            entry = replace(entry, warning=f"its constraint {constraint['name']} is left out")
    return _with_fixed(entry, ["F" if n in held else "T" for n in range(len(numbers))])
