"""What a path holds: rows of a CSV, CIF files of a folder, frames of an extxyz or a database.

Every reader yields `Record`s, one per structure, so that one bad structure is named and the
rest are read. A file that is broken as a whole raises `ReadingError` with its path.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crystorus.data.arrays import CrystalArrays, ReadingError
from crystorus.data.cif import parse_cif_blocks

ID_COLUMNS = ("material_id", "id", "mat_id", "name")
CSV_ENDINGS = (".csv", ".csv.gz")
_BLOCK = re.compile(r"^data_", re.MULTILINE | re.IGNORECASE)
FORMATS = (
    "CSV with a cif column (.csv, .csv.gz), CIF (.cif, a folder of them), extended XYZ "
    "(.extxyz, .xyz), POSCAR (.vasp, .poscar, POSCAR, CONTCAR), ASE database (.db)"
)


@dataclass(frozen=True)
class Record:
    """One structure of a source, not yet parsed if it came as CIF text.

    Attributes:
        name: Its id, unique in the source if the source says so.
        content: CIF text, the crystal, or why it cannot be read.
        extra: What else the source says of it, column by column.
    """

    name: str
    content: str | CrystalArrays | ReadingError
    extra: dict[str, str] = field(default_factory=dict)


def is_csv(path: Path) -> bool:
    """Tell whether the name is that of a CSV, plain or gzipped."""
    return path.name.lower().endswith(CSV_ENDINGS)


def csv_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a CDVAE-style CSV: any table with a `cif` column.

    Raises:
        ReadingError: If the file is empty, cut short, not text, or has no `cif` column.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8") as stream:
            yield from _rows(csv.reader(stream, strict=True), path)
    except (EOFError, zlib.error) as error:
        raise ReadingError(f"{path} is cut short: fetch it again ({error})") from error
    except gzip.BadGzipFile as error:
        raise ReadingError(f"{path} is not a gzip file: rename it to .csv ({error})") from error
    except UnicodeDecodeError as error:
        raise ReadingError(f"{path} is not UTF-8 text: convert it ({error})") from error
    except csv.Error as error:
        raise ReadingError(f"{path} is cut short or misquoted: fetch it again ({error})") from error


def _rows(reader: "Iterator[list[str]]", path: Path) -> Iterator[Record]:
    header = next(reader, None)
    if not header:
        raise ReadingError(f"{path} is empty: give a CSV with a header and a cif column")
    if "cif" not in header:
        raise ReadingError(f"{path} has no cif column but {', '.join(header)}: name one cif")
    cif = header.index("cif")
    named = next((header.index(c) for c in ID_COLUMNS if c in header), None)
    kept = [i for i in range(len(header)) if i not in (cif, named) and header[i]]
    for number, row in enumerate(reader, start=1):
        if not row:
            continue
        name = row[named] if named is not None and named < len(row) else f"row-{number}"
        if len(row) != len(header):
            reason = f"it has {len(row)} of {len(header)} columns: the file is cut or misquoted"
            yield Record(name, ReadingError(reason))
        else:
            yield Record(name, row[cif], {header[i]: row[i] for i in kept})


def cif_records(path: Path) -> Iterator[Record]:
    """Yield the CIF files of a folder, by name, or of one file; a file of several blocks by block.

    Raises:
        ReadingError: If a folder has no CIF files.
    """
    files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".cif") if path.is_dir() else []
    if path.is_dir() and not files:
        raise ReadingError(f"{path} has no .cif files: give {FORMATS}")
    for file in files or [path]:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            yield Record(file.stem, ReadingError(f"it cannot be opened ({error.strerror})"))
        else:
            yield from _block_records(text, file.stem)


def _block_records(text: str, name: str) -> Iterator[Record]:
    if len(_BLOCK.findall(text)) < 2:
        yield Record(name, text)
        return
    try:
        for block, content in parse_cif_blocks(text):
            yield Record(f"{name}-{block}", content)
    except ReadingError as error:
        yield Record(name, error)
