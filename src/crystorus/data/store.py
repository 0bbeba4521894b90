"""Crystals cached as one flat file of mapped arrays (`crystorus.data.mapped`).

The header also names the sources with their SHA-256, and every structure left out with the
reason. Arrays: lattice (float64, columns, Å), frac_coords (float64), atomic_numbers (uint8),
n_atoms (int32), first_atom (int64), and the texts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystorus.data.arrays import ReadingError
from crystorus.data.mapped import (
    FileKind,
    contradiction,
    is_kind,
    map_file,
    text_arrays,
    texts_of,
    write_mapped,
)
from crystorus.data.preparing import Prepared, prepare_all
from crystorus.data.reading import read_records
from crystorus.data.sources import Record
from crystorus.geometry import Crystals

STORE = FileKind(b"CRYSTOR1", "crystal store", "build it again with `crystorus data build`")
_NAMED_SKIPS = 1000


@dataclass(frozen=True, eq=False)
class CrystalStore:
    """Crystals in a memory-mapped file, Niggli-reduced and validated.

    Attributes:
        path: The file.
        header: What the file says of itself.
        arrays: The mapped arrays by name.
    """

    path: Path
    header: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __getitem__(self, index: int) -> Crystals:
        if not -len(self) <= index < len(self):
            raise IndexError(f"crystal {index} of {len(self)}: use 0 to {len(self) - 1}")
        return self.select([index])

    def __reduce__(self) -> tuple[Callable[..., "CrystalStore"], tuple[Path]]:
        return _reopen, (self.path,)

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each crystal, int32."""
        return self.arrays["n_atoms"]

    @property
    def ids(self) -> list[str]:
        """Names of the crystals."""
        return texts_of(self.arrays, "id")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of the structures left out, the first thousand of them."""
        return [(name, reason) for name, reason in self.header["skipped"]]

    @property
    def extra_columns(self) -> list[str]:
        """Names of the extra columns of the source."""
        return [*self.header["extra"]]

    def extra(self, column: str) -> np.ndarray | list[str]:
        """Return an extra column: float64 (empty cells are NaN), or texts if it is not numeric.

        Raises:
            KeyError: If there is no such column.
        """
        if column not in self.header["extra"]:
            raise KeyError(
                f"no column {column!r} in {self.path}: it has {', '.join(self.extra_columns)}"
            )
        if self.header["extra"][column] == "float":
            return self.arrays[f"extra:{column}"]
        return texts_of(self.arrays, f"extra:{column}")

    def select(
        self, indices: Sequence[int] | np.ndarray, *, dtype: torch.dtype = torch.float32
    ) -> Crystals:
        """Return the crystals at `indices` as one batch, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = self.n_atoms[chosen].astype(np.int64)
        ends = np.cumsum(counts)
        shift = self.arrays["first_atom"][chosen] - (ends - counts)
        atoms = np.arange(ends[-1] if len(ends) else 0) + np.repeat(shift, counts)
        return Crystals(
            torch.from_numpy(self.arrays["lattice"][chosen]).to(dtype),
            torch.from_numpy(self.arrays["frac_coords"][atoms]).to(dtype),
            torch.from_numpy(self.arrays["atomic_numbers"][atoms].astype(np.int64)),
            torch.from_numpy(counts),
        )


def _reopen(path: Path) -> CrystalStore:
    return open_store(path, verify=False)


def build_store(
    source: Path | Sequence[Path],
    out: Path,
    *,
    n_workers: int = 1,
    min_distance: float = 0.5,
    progress: Callable[[int], None] | None = None,
) -> CrystalStore:
    """Read structures, reduce and validate them, and write them as a store.

    Structures that cannot be used are left out and listed in the store's `skipped`.

    Args:
        source: A CSV, a CIF, a folder of CIFs, or any other file `read_records` takes; or
            several of them.
        out: The file to write; it appears only when complete.
        n_workers: Processes that parse.
        min_distance: Structures with atoms nearer than this, in Å, are left out.
        progress: Called with the number of structures read so far.

    Raises:
        ReadingError: If a source is broken as a whole, nothing usable is in it, or `out` is a
            folder.
        OSError: If the file cannot be written; nothing is left behind.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    check_target(out, sources)
    records: Iterator[Record] = (r for path in sources for r in read_records(path))
    prepared = prepare_all(
        records, n_workers=n_workers, min_distance=min_distance, progress=progress
    )
    where = ", ".join(map(str, sources))
    if not prepared.names:
        first = "; ".join(f"{n}: {why}" for n, why in islice(prepared.skipped, 3))
        raise ReadingError(f"no usable structure in {where} ({first or 'it is empty'})")
    described = [{"name": p.name, "sha256": digest_of(p)} for p in sources]
    arrays, kinds = _arrays(prepared)
    about = {
        "sources": described,
        "min_distance": min_distance,
        "crystals": len(prepared.names),
        "n_skipped": len(prepared.skipped),
        "skipped": prepared.skipped[:_NAMED_SKIPS],
        "extra": kinds,
    }
    write_mapped(out, STORE, arrays, about)
    return open_store(out, verify=False)


def check_target(out: Path, sources: Sequence[Path]) -> None:
    """Refuse to write where a source is.

    Raises:
        ReadingError: If `out` is a folder, one of the sources, or inside one of them.
    """
    if out.is_dir():
        raise ReadingError(f"{out} is a folder: name a file to write, such as {out / 'x.store'}")
    place = out.resolve()
    for source in sources:
        if place == source.resolve() or (out.exists() and source.resolve() in place.parents):
            raise ReadingError(f"{out} would overwrite its own source: name another file")


def store_of(prepared: Prepared, path: Path) -> CrystalStore:
    """Return prepared crystals as a store that is in memory only; `path` merely names it."""
    arrays, kinds = _arrays(prepared)
    return CrystalStore(path, {"skipped": prepared.skipped, "extra": kinds, "sources": []}, arrays)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's CIF names and contents."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _arrays(prepared: Prepared) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    n_atoms = prepared.n_atoms.astype("<i4")
    arrays = {
        "lattice": prepared.lattice.astype("<f8"),
        "frac_coords": prepared.frac_coords.astype("<f8"),
        "atomic_numbers": prepared.atomic_numbers.astype("u1"),
        "n_atoms": n_atoms,
        "first_atom": (np.cumsum(n_atoms, dtype="<i8") - n_atoms).astype("<i8"),
    }
    arrays |= text_arrays("id", prepared.names)
    kinds = {}
    for column in dict.fromkeys(c for extra in prepared.extras for c in extra):
        cells = [extra.get(column, "") for extra in prepared.extras]
        try:
            arrays[f"extra:{column}"] = np.array([float(c) if c else np.nan for c in cells], "<f8")
            kinds[column] = "float"
        except ValueError:
            arrays |= text_arrays(f"extra:{column}", cells)
            kinds[column] = "text"
    return arrays, kinds


def open_or_build(source: Path, cache: Path, *, n_workers: int = 1) -> CrystalStore:
    """Open a store; of anything else open the one built before, or build it.

    Args:
        source: A store, or anything `build_store` reads.
        cache: Where a store that is built is kept.
        n_workers: Processes that parse.

    Raises:
        ReadingError: If the source is broken or holds nothing usable.
    """
    if is_kind(source, STORE):
        return open_store(source)
    if cache.is_file():
        return open_store(cache)
    return build_store(source, cache, n_workers=n_workers)


def open_store(path: Path, *, verify: bool = True) -> CrystalStore:
    """Map a store into memory.

    Args:
        path: A file that `build_store` wrote.
        verify: Compare the digest, which reads the whole file once. The size is always checked.

    Raises:
        ReadingError: If the file is missing, not a store, cut short, or altered.
    """
    header, arrays = map_file(path, STORE, verify=verify)
    try:
        atoms = int(arrays["n_atoms"].sum(dtype=np.int64))
        if {len(arrays[name]) for name in ("frac_coords", "atomic_numbers")} != {atoms}:
            raise ValueError(f"{atoms} atoms are announced and others are there")
    except (ValueError, TypeError, KeyError) as error:
        raise contradiction(path, STORE, error) from error
    return CrystalStore(path, header, arrays)
