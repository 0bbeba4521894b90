"""Files to structures: extxyz, CIF, folders of CIF, CDVAE CSV and ASE databases.

Every reader streams; parsing runs in worker processes when asked. A structure that cannot be
read comes out as a `ReadFailure` in its place.
"""

import csv
import gzip
import io
import multiprocessing
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

from crystal_fidelity.cif import parse_cif, parse_cif_blocks
from crystal_fidelity.structures import Crystal, Entry, ReadFailure, from_atoms

CHUNK = 128
NAME_KEYS = ("material_id", "name", "id", "identifier")
CSV_FIELD_LIMIT = 1 << 26

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_COUNT_DIGITS = 9
Raw = tuple[str, str, dict[str, float]]
"""Name, text of one structure, numbers that came with it."""


def read_structures(path: str | Path, *, workers: int = 1) -> list[Entry]:
    """Read all structures of a file or folder.

    Args:
        path: .extxyz/.xyz, .cif, a folder of .cif, .csv with a `cif` column, any of these with
            .gz, or an ASE .db.
        workers: processes that parse; 1 stays in this process.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the format is not one of these, the file is torn, or holds no structure.
    """
    entries = list(iter_structures(path, workers=workers))
    if not entries:
        raise ValueError(f"{path} holds no structure; the metrics need at least one")
    return entries


def iter_structures(path: str | Path, *, workers: int = 1) -> Iterator[Entry]:
    """Stream the structures of a file or folder in their order; see `read_structures`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    read = 0
    try:
        for entry in _entries(path, workers):
            yield entry
            read += 1
    except (EOFError, gzip.BadGzipFile, zlib.error, sqlite3.Error, csv.Error) as error:
        raise ValueError(
            f"{path} is torn or not what its name says, {read} structures into it: {error}; "
            "a part of a set would give another number, so get the whole file"
        ) from error


def _entries(path: Path, workers: int) -> Iterator[Entry]:
    if path.is_dir():
        yield from _flatten(map_in_order(_parse_cif_file, _cif_files(path), workers))
        return
    suffix = _suffix(path)
    if suffix == ".cif":
        with _open_text(path) as stream:
            yield from parse_cif_blocks(stream.read(), path.name.split(".")[0])
    elif suffix == ".csv":
        yield from map_in_order(_parse_csv_row, _csv_rows(path), workers)
    elif suffix in (".xyz", ".extxyz"):
        yield from map_in_order(_parse_frame, _frames(path), workers)
    elif suffix == ".db":
        yield from _database_rows(path)
    else:
        raise ValueError(
            f"{path}: format {suffix or 'without suffix'!r} is not read; give .extxyz, .cif, a "
            "folder of .cif, .csv (gzip allowed) or an ASE .db; features (.npz) go to "
            "`crystal-fidelity frechet`"
        )


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1
) -> Iterator[Result]:
    """Map in `workers` spawned processes, in order, with a bounded number of chunks in flight.

    `function` must be importable (top level of a module). With one worker nothing is spawned.

    Raises:
        ChildProcessError: a process died.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}; give 1 or more")
    if workers == 1:
        yield from map(function, items)
        return
    source = iter(items)
    first = list(islice(source, CHUNK))
    if len(first) < CHUNK:
        yield from map(function, first)
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            pending: deque[Future[list[Result]]] = deque()
            pending.append(pool.submit(_run_chunk, function, first))
            while pending:
                while len(pending) < 3 * workers and (chunk := list(islice(source, CHUNK))):
                    pending.append(pool.submit(_run_chunk, function, chunk))
                yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} worker processes died, perhaps for want of memory: use 1; in a "
            'script, call from under `if __name__ == "__main__":`'
        ) from error


def _run_chunk(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def _flatten(groups: Iterable[list[Entry]]) -> Iterator[Entry]:
    for group in groups:
        yield from group


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open_text(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(
            gzip.open(path, "rb"), encoding="utf-8", errors="replace", newline=""
        )
    return path.open(encoding="utf-8", errors="replace", newline="")


def _cif_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith((".cif", ".cif.gz")))
    if not files:
        raise ValueError(f"{folder} holds no .cif file")
    return files


def _parse_cif_file(path: Path) -> list[Entry]:
    name = path.name.split(".cif")[0]
    try:
        with _open_text(path) as stream:
            return parse_cif_blocks(stream.read(), name)
    except (OSError, EOFError, zlib.error) as error:
        return [ReadFailure(name, str(error))]


def _csv_rows(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with _open_text(path) as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        if "cif" not in columns:
            listed = ", ".join(repr(name)[:30] for name in list(columns)[:20]) or "none"
            raise ValueError(f"{path} has no column 'cif'; its columns: {listed}")
        name_column = next((key for key in NAME_KEYS if key in columns), None)
        for index, row in enumerate(reader):
            name = (row[name_column] if name_column else "") or f"row {index}"
            yield name, row["cif"] or "", _numbers(row)


def _numbers(row: dict[str, str | None]) -> dict[str, float]:
    found = {}
    for key, value in row.items():
        if key is None or key in ("cif", "", *NAME_KEYS) or not isinstance(value, str):
            continue
        try:
            found[key] = float(value)
        except ValueError:
            continue
    return found


def _parse_csv_row(raw: Raw) -> Entry:
    name, text, properties = raw
    entry = parse_cif(text, name)
    return replace(entry, properties=properties) if isinstance(entry, Crystal) else entry


def _frames(path: Path) -> Iterator[Raw]:
    """Cut an extxyz stream into frames; what follows a broken count line cannot be read."""
    with _open_text(path) as stream:
        for index, count_line in enumerate(_non_empty(stream)):
            name = f"frame {index}"
            if not _is_count(count_line.strip()):
                reason = f"expected a number of atoms, found {count_line.strip()[:40]!r}"
                yield name, f"!{reason}; the rest of the file cannot be read", {}
                return
            body = list(islice(stream, int(count_line) + 1))
            if len(body) < int(count_line) + 1:
                yield name, f"!file ends after {len(body)} of {int(count_line) + 1} lines", {}
                return
            yield name, count_line + "".join(body), {}


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_COUNT_DIGITS


def _non_empty(stream: IO[str]) -> Iterator[str]:
    while line := stream.readline():
        if line.strip():
            yield line


def _parse_frame(raw: Raw) -> Entry:
    from ase.io.extxyz import read_extxyz

    name, text, _ = raw
    if text.startswith("!"):
        return ReadFailure(name, text[1:])
    try:
        atoms = next(iter(read_extxyz(io.StringIO(text), index=slice(None))))
    except (ValueError, KeyError, IndexError, TypeError, StopIteration, OSError) as error:
        return ReadFailure(name, f"{type(error).__name__}: {str(error)[:120]}")
    info = {str(k): v for k, v in atoms.info.items()}
    name = next((str(info[key]) for key in NAME_KEYS if key in info), name)
    if atoms.calc is not None:
        info["energy"] = atoms.calc.results.get("energy")
    return from_atoms(atoms, name, {k: float(v) for k, v in info.items() if _is_number(v)})


def _is_number(value: object) -> bool:
    import numpy as np

    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _database_rows(path: Path) -> Iterator[Entry]:
    from ase.db import connect

    for row in connect(path).select():
        pairs = dict(row.key_value_pairs)
        name = next((str(pairs[key]) for key in NAME_KEYS if key in pairs), f"row {row.id}")
        try:
            atoms = row.toatoms()
        except (ValueError, KeyError, TypeError) as error:
            yield ReadFailure(name, f"{type(error).__name__}: {str(error)[:120]}")
            continue
        yield from_atoms(atoms, name, {k: float(v) for k, v in pairs.items() if _is_number(v)})
