"""Space groups of a set, and how far their distribution is from the reference's."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import moyopy
import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.reading import map_in_order
from crystal_fidelity.scores import Score, rate_error
from crystal_fidelity.structures import Crystal, Entry, as_entries
from crystal_fidelity.uncertainty import part_error
from crystal_fidelity.validity import MIN_DISTANCE, MIN_VOLUME, closest_contacts

SYMPREC = 0.1
"""Å; generated atoms miss their special positions by hundredths of Å."""
FLOOR_SPLITS = 20
N_GROUPS = 231


@dataclass(frozen=True)
class SpaceGroupResult:
    """Space-group numbers of both sets, 0 where none was found."""

    generated: NDArray[np.int64]
    reference: NDArray[np.int64]
    symprec: float
    floor: float
    """Mean total variation of two disjoint parts of the reference of size `floor_n`."""
    floor_n: int
    uncertainty: float | None
    """Standard error from disjoint parts of the generated set."""

    @property
    def total_variation(self) -> float:
        """½ Σ |p − q| over the 230 groups and "none": 0 equal, 1 disjoint."""
        return total_variation(self.generated, self.reference)

    def scores(self) -> list[Score]:
        """Return the rows of the table."""
        n, m = len(self.generated), len(self.reference)
        label = f"moyo, symprec {self.symprec:g} Å"
        p1, real = float((self.generated == 1).mean()), float((self.reference == 1).mean())
        return [
            Score(
                "space-group distance",
                self.total_variation,
                n_generated=n,
                n_reference=m,
                protocol=f"total variation of space-group frequencies; {label}",
                real=self.floor,
                uncertainty=self.uncertainty,
                better="lower",
                details={
                    "n of real against real": self.floor_n,
                    "generated": counts(self.generated),
                    "reference": counts(self.reference),
                },
            ),
            Score(
                "P1 fraction",
                p1,
                n_generated=n,
                n_reference=m,
                protocol=f"structures without symmetry; {label}",
                real=real,
                uncertainty=rate_error(p1, n),
                rate=True,
            ),
        ]


def space_groups(
    structures: Sequence[object], *, symprec: float = SYMPREC, workers: int = 1
) -> NDArray[np.int64]:
    """Return the space-group number of each structure, 0 where none could be determined.

    Structures that are not valid (contacts below 0.5 Å, volume below 0.1 Å³) have none, and
    tolerances beyond half the closest contact are lowered to it.
    """
    jobs = [(entry, symprec) for entry in as_entries(structures)]
    return np.array(list(map_in_order(_space_group, jobs, workers)), dtype=np.int64)


def _space_group(job: tuple[Entry, float]) -> int:
    entry, symprec = job
    if not isinstance(entry, Crystal) or entry.volume < MIN_VOLUME:
        return 0
    # In collapsed cells, and within tolerances that cannot tell atoms apart, moyo may never end.
    least = float(closest_contacts([entry])[0])
    if not least >= MIN_DISTANCE:
        return 0
    cell = moyopy.Cell(
        entry.lattice.tolist(), entry.frac_coords.tolist(), entry.atomic_numbers.tolist()
    )
    try:
        with _quiet("moyo"):
            return int(moyopy.MoyoDataset(cell, symprec=min(symprec, least / 2)).number)
    except (ValueError, RuntimeError):  # overlapping atoms have no space group
        return 0


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back warnings of a logger that speak of operations, not of the space group."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def space_group_distance(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    symprec: float = SYMPREC,
    workers: int = 1,
    seed: int = 0,
) -> SpaceGroupResult:
    """Compare the space-group frequencies of two sets.

    Raises:
        ValueError: a set is empty.
    """
    if len(generated) == 0 or len(reference) == 0:
        raise ValueError(f"{len(generated)} and {len(reference)} structures: need both")
    left = space_groups(generated, symprec=symprec, workers=workers)
    right = space_groups(reference, symprec=symprec, workers=workers)
    size = min(len(left), len(right) // 2)
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(right)) for _ in range(FLOOR_SPLITS if size else 0)]
    splits = [total_variation(right[order[:size]], right[order[size:]]) for order in orders]
    floor = float(np.mean(splits)) if splits else float("nan")
    error = part_error(len(left), lambda part: total_variation(left[part], right), seed=seed)
    return SpaceGroupResult(left, right, symprec, floor, size, error)


def total_variation(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Return ½ Σ |p − q| of two samples of space-group numbers."""
    p = np.bincount(left, minlength=N_GROUPS) / len(left)
    q = np.bincount(right, minlength=N_GROUPS) / len(right)
    return float(np.abs(p - q).sum() / 2)


def counts(groups: NDArray[np.int64]) -> dict[str, int]:
    """Return how often each group occurs, most frequent first; "none" for 0."""
    frequent = Counter(groups.tolist()).most_common()
    return {str(group) if group else "none": count for group, count in frequent}
