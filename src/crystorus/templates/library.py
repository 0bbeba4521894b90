"""A library of templates: known crystals with what is needed to look them up, in one mapped file.

Beside the arrays of a crystal store it holds every crystal's surroundings and the counts of
substituted elements, so that opening it costs nothing and a look-up milliseconds.
"""

import copy
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from crystal_fidelity.structures import MAX_ATOMIC_NUMBER
from crystorus.data.compositions import Composition
from crystorus.data.store import (
    STORE,
    CrystalStore,
    FileKind,
    build_store,
    check_target,
    contradiction,
    is_kind,
    open_arrays,
    open_store,
    store_from,
    write_arrays,
)
from crystorus.geometry import Crystals
from crystorus.templates.substitution import (
    ENOUGH_PAIRS,
    SubstitutionCounts,
    count_substitutions,
    mp20_counts,
)
from crystorus.templates.surroundings import NEIGHBOURS, Surroundings, surroundings

LIBRARY = FileKind("template library", "crystorus templates build", b"CRYTMPL1")
_STORED = np.dtype("<f2")


class PatternGroup(NamedTuple):
    """The templates of one pattern of element counts, side by side.

    Attributes:
        indices: Their numbers in the library, [N].
        elements: Atomic numbers by slot, [N, m].
        distances: Surroundings, [N, m, m, NEIGHBOURS].
    """

    indices: np.ndarray
    elements: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateLibrary:
    """Known crystals, indexed by their pattern of element counts.

    Attributes:
        crystals: The crystals themselves.
        slots: Surroundings of each of them.
        substitution: How often elements stand in for each other here.
        digest: SHA-256 of the arrays; empty for a library that is not in a file.
        skipped: Name and reason of the structures left out.
    """

    crystals: CrystalStore
    slots: Sequence[Surroundings]
    substitution: SubstitutionCounts
    digest: str = ""
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.slots)

    @cached_property
    def ids(self) -> list[str]:
        """Names of the templates; a repeated name is told apart as in mp-1, mp-1#2."""
        seen: Counter[str] = Counter()
        names = []
        for name in self.crystals.ids:
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        return names

    def group(self, pattern: tuple[int, ...]) -> PatternGroup | None:
        """Return the templates whose sorted element counts are `pattern`, if there are any.

        Args:
            pattern: Counts of the elements in a cell, sorted, such as (1, 1, 3).
        """
        return self._groups.get(pattern)

    @cached_property
    def _groups(self) -> dict[tuple[int, ...], PatternGroup]:
        members: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, one in enumerate(self.slots):
            members[tuple(one.counts.tolist())].append(index)
        return {
            pattern: PatternGroup(
                np.array(indices),
                np.stack([self.slots[i].elements for i in indices]),
                np.stack([self.slots[i].distances for i in indices]),
            )
            for pattern, indices in members.items()
        }

    def phases(self, composition: Composition) -> list[int]:
        """Return the numbers of the templates of this reduced formula, in cells of any size.

        Args:
            composition: Any cell of the formula.
        """
        return self._formulas.get(_reduced(dict(composition.counts)), [])

    @cached_property
    def _formulas(self) -> dict[tuple[tuple[int, int], ...], list[int]]:
        found: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for index, one in enumerate(self.slots):
            key = _reduced(dict(zip(one.elements.tolist(), one.counts.tolist(), strict=True)))
            found.setdefault(key, []).append(index)
        return found

    def with_substitution(self, counts: SubstitutionCounts) -> "TemplateLibrary":
        """Return the same crystals, and the index of them, with other counts of substitutions.

        Args:
            counts: What to look up with.
        """
        self._groups  # noqa: B018 -- made once, for all copies
        changed = copy.copy(self)
        vars(changed)["substitution"] = counts
        return changed

    def template(self, index: int) -> Crystals:
        """Return one template, float64.

        Args:
            index: Of the template, from 0.
        """
        return self.crystals.select([index], dtype=torch.float64)

    def atomic_numbers(self, index: int) -> np.ndarray:
        """Return the elements of one template, atom by atom, [n].

        Args:
            index: Of the template, from 0.
        """
        arrays = self.crystals.arrays
        first = int(arrays["first_atom"][index])
        atoms = slice(first, first + int(self.crystals.n_atoms[index]))
        return np.asarray(arrays["atomic_numbers"][atoms], dtype=np.int64)


def _reduced(counts: dict[int, int]) -> tuple[tuple[int, int], ...]:
    units = math.gcd(*counts.values())
    return tuple(sorted((z, count // units) for z, count in counts.items()))


def build_library(
    source: Path | Sequence[Path],
    out: Path,
    *,
    n_workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> TemplateLibrary:
    """Make a library of a store, or of anything `build_store` reads.

    Args:
        source: A store, a CSV, a folder of CIFs, an ASE database, …; or several of them.
        out: The file to write; it appears only when complete.
        n_workers: Processes that parse.
        progress: Called with the number of structures read so far.

    Raises:
        ReadingError: If a source is broken or holds nothing usable.
        OSError: If the file cannot be written; nothing is left behind.
    """
    check_target(out, [source] if isinstance(source, Path) else list(source))
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, Path) and is_kind(source, STORE):
            store = open_store(source)
        else:
            place = Path(folder) / "all.store"
            store = build_store(source, place, n_workers=n_workers, progress=progress)
        library = library_of(store)
        arrays = {
            **store.arrays,
            **_pack(library.slots),
            "exchange:same": library.substitution.same.astype("<i4"),
            "exchange:other": library.substitution.other.astype("<i4"),
        }
        kept = ("sources", "crystals", "n_skipped", "skipped", "extra")
        write_arrays(out, LIBRARY, arrays, {name: store.header[name] for name in kept})
    return open_library(out, verify=False)


def library_of(store: CrystalStore) -> TemplateLibrary:
    """Make a library of a store's crystals in memory.

    Args:
        store: Known crystals.
    """
    arrays, slots = store.arrays, []
    for index, (first, n) in enumerate(zip(arrays["first_atom"], store.n_atoms, strict=True)):
        atoms = slice(int(first), int(first) + int(n))
        numbers = arrays["atomic_numbers"][atoms].astype(np.int64)
        slots.append(surroundings(arrays["lattice"][index], arrays["frac_coords"][atoms], numbers))
    counts = count_substitutions(slots)
    return TemplateLibrary(store, slots, counts if counts.pairs >= ENOUGH_PAIRS else mp20_counts())


def open_library(path: Path, *, verify: bool = True) -> TemplateLibrary:
    """Map a library into memory.

    Args:
        path: A file that `build_library` wrote.
        verify: Compare the digest, which reads the whole file once.

    Raises:
        ReadingError: If it is missing, not a library of this version, cut short, or altered.
    """
    header, arrays = open_arrays(path, LIBRARY, verify=verify)
    store = store_from(path, LIBRARY, header, arrays)
    try:
        slots = _unpack(arrays)
        if [int(one.counts.sum()) for one in slots] != store.n_atoms.tolist():
            raise ValueError(f"{len(slots)} surroundings are not those of {len(store)} crystals")
        pairs = (MAX_ATOMIC_NUMBER + 1,) * 2
        if any(arrays[f"exchange:{name}"].shape != pairs for name in ("same", "other")):
            raise ValueError("its counts of substitutions are no table of elements")
        # Versions before 0.2 called substitutions exchanges; the files are the same.
        counts = SubstitutionCounts(arrays["exchange:same"], arrays["exchange:other"])
        return TemplateLibrary(store, slots, counts, header["sha256"], tuple(store.skipped))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise contradiction(path, LIBRARY, error) from error


def _pack(slots: Sequence[Surroundings]) -> dict[str, np.ndarray]:
    return {
        "slots:n": np.array([len(one.counts) for one in slots], dtype="<i4"),
        "slots:elements": np.concatenate([one.elements for one in slots]).astype("u1"),
        "slots:counts": np.concatenate([one.counts for one in slots]).astype("<i4"),
        "slots:distances": np.concatenate([one.distances.ravel() for one in slots]).astype(_STORED),
    }


def _unpack(arrays: dict[str, np.ndarray]) -> list[Surroundings]:
    sizes = arrays["slots:n"]
    ends = np.cumsum(sizes)
    squares = np.cumsum(sizes.astype(np.int64) ** 2 * NEIGHBOURS)
    distances = arrays["slots:distances"].astype(np.float32)
    elements = arrays["slots:elements"].astype(np.int64)
    counts = arrays["slots:counts"].astype(np.int64)
    known = 1 <= elements.min() <= elements.max() <= MAX_ATOMIC_NUMBER
    if sizes.min() < 1 or counts.min() < 1 or not known:
        raise ValueError("surroundings are of no elements")
    if np.isnan(distances).any():
        raise ValueError("a distance is no number")
    if len(elements) != ends[-1] or len(distances) != squares[-1]:
        raise ValueError(f"{ends[-1]} slots are announced and {len(elements)} are there")
    return [
        Surroundings(
            elements[end - m : end],
            counts[end - m : end],
            distances[square - m * m * NEIGHBOURS : square].reshape(m, m, NEIGHBOURS),
        )
        for m, end, square in zip(sizes.tolist(), ends.tolist(), squares.tolist(), strict=True)
    ]
