"""From records to what a store holds: parsed, reduced, checked, laid end to end."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from crystorus.data.arrays import (
    CrystalArrays,
    ReadingError,
    check,
    least_distances,
    niggli_reduce,
    wrap_coords,
)
from crystorus.data.cif import parse_cif
from crystorus.data.sources import Record

_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Prepared:
    """Crystals laid end to end, and what was left out.

    Attributes:
        lattice: ρ in Å, columns, [crystals, 3, 3].
        frac_coords: x, [atoms, 3].
        atomic_numbers: z, [atoms].
        n_atoms: [crystals].
        names: Ids.
        extras: Extra columns of each crystal.
        skipped: Name and reason of every structure left out.
    """

    lattice: np.ndarray
    frac_coords: np.ndarray
    atomic_numbers: np.ndarray
    n_atoms: np.ndarray
    names: list[str]
    extras: list[dict[str, str]]
    skipped: list[tuple[str, str]]


def prepare_all(
    records: Iterable[Record],
    *,
    n_workers: int = 1,
    min_distance: float = 0.5,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Parse, Niggli-reduce and check every record, keeping the order.

    Args:
        records: What a reader yields.
        n_workers: Processes; one means this process.
        min_distance: In Å; crystals with nearer atoms are left out.
        progress: Called with the number of records done so far.
    """
    work = partial(prepare, min_distance=min_distance)
    parts, done = [], 0
    for part in _mapped(work, _chunks(records), n_workers):
        parts.append(part)
        done += len(part.names) + len(part.skipped)
        if progress is not None:
            progress(done)
    return _join(parts)


def prepare(records: list[Record], *, min_distance: float) -> Prepared:
    """Parse, Niggli-reduce and check some records in this process."""
    good: list[tuple[Record, CrystalArrays]] = []
    skipped: list[tuple[str, str]] = []
    for record in records:
        try:
            good.append((record, niggli_reduce(crystal_of(record))))
        except ReadingError as error:
            skipped.append((record.name, str(error)))
    near = _least([crystal for _, crystal in good])
    for (record, _), distance in zip(good, near, strict=True):
        if distance < min_distance:
            skipped.append(
                (record.name, f"two atoms are {distance:.3f} Å apart, below {min_distance} Å")
            )
    kept = [pair for pair, distance in zip(good, near, strict=True) if distance >= min_distance]
    return _lay_out(kept, skipped)


def crystal_of(record: Record) -> CrystalArrays:
    """Return the checked crystal of a record, its coordinates in [0, 1).

    Raises:
        ReadingError: If it cannot be used.
    """
    if isinstance(record.content, ReadingError):
        raise record.content
    if isinstance(record.content, str):
        return parse_cif(record.content)
    crystal = check(record.content)
    return CrystalArrays(crystal.lattice, wrap_coords(crystal.frac_coords), crystal.atomic_numbers)


def _least(crystals: list[CrystalArrays]) -> np.ndarray:
    """Least distances of reduced crystals, those with equally many atoms at once."""
    sizes = np.array([len(c.atomic_numbers) for c in crystals], dtype=int)
    least = np.empty(len(crystals))
    for size in np.unique(sizes).tolist():
        # No more than about 30 MB of distances at a time.
        for which in np.array_split(*_blocks(np.flatnonzero(sizes == size), size)):
            lattice = np.stack([crystals[i].lattice for i in which])
            frac = np.stack([crystals[i].frac_coords for i in which])
            least[which] = least_distances(lattice, frac)
    return least


def _blocks(which: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    return which, max(1, int(len(which) * size**2 * 27 * 8 / 2 / 3e7))


def _lay_out(kept: list[tuple[Record, CrystalArrays]], skipped: list[tuple[str, str]]) -> Prepared:
    crystals = [crystal for _, crystal in kept]
    return Prepared(
        np.array([c.lattice for c in crystals]).reshape(-1, 3, 3),
        np.concatenate([np.empty((0, 3)), *(c.frac_coords for c in crystals)]),
        np.concatenate([np.empty(0, np.int64), *(c.atomic_numbers for c in crystals)]),
        np.array([len(c.atomic_numbers) for c in crystals], dtype=np.int64),
        [record.name for record, _ in kept],
        [record.extra for record, _ in kept],
        skipped,
    )


def _join(parts: list[Prepared]) -> Prepared:
    parts = parts or [_lay_out([], [])]
    return Prepared(
        np.concatenate([p.lattice for p in parts]),
        np.concatenate([p.frac_coords for p in parts]),
        np.concatenate([p.atomic_numbers for p in parts]),
        np.concatenate([p.n_atoms for p in parts]),
        [name for p in parts for name in p.names],
        [extra for p in parts for extra in p.extras],
        [skip for p in parts for skip in p.skipped],
    )


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _mapped(
    work: Callable[[list[Record]], Prepared], chunks: Iterator[list[Record]], n_workers: int
) -> Iterator[Prepared]:
    if n_workers <= 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        while window := list(islice(chunks, 8 * n_workers)):
            yield from pool.map(work, window)
