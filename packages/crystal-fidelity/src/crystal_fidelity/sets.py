"""Uniqueness, novelty, and S.U.N.: stable, unique and new, given energies above the hull."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.matching import SAME_PHASE, MatcherSettings, unsearchable
from crystal_fidelity.reading import map_in_order
from crystal_fidelity.scores import Score, rate_error
from crystal_fidelity.structures import Crystal, as_entries, to_pymatgen

METASTABLE = 0.1
"""eV/atom above the hull."""

UniqueJob = tuple[list[tuple[int, Crystal]], MatcherSettings]
NovelJob = tuple[Crystal, list[Crystal], MatcherSettings]


def unique(
    structures: Sequence[object], *, settings: MatcherSettings = SAME_PHASE, workers: int = 1
) -> NDArray[np.bool_]:
    """Return which structures are the first of their kind.

    Structures of one reduced composition are compared in order with the first of each kind found
    so far. Unreadable structures are not unique.

    Raises:
        ValueError: the set is empty.
    """
    entries = as_entries(structures)
    if not entries:
        raise ValueError("0 structures: uniqueness needs at least one")
    groups: dict[object, list[tuple[int, Crystal]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if isinstance(entry, Crystal):
            groups[entry.formula].append((index, entry))
    result = np.zeros(len(entries), dtype=bool)
    jobs: list[UniqueJob] = [(group, settings) for group in groups.values() if len(group) > 1]
    for first in map_in_order(_first_of_kind, jobs, workers):
        result[first] = True
    for group in groups.values():
        if len(group) == 1:
            result[group[0][0]] = True
    return result


def _first_of_kind(job: UniqueJob) -> list[int]:
    group, settings = job
    matcher = settings.matcher()
    first: list[int] = []
    kinds: list[object] = []
    for index, crystal in group:
        structure = None if unsearchable(crystal) else to_pymatgen(crystal)
        if structure is None or not any(_fits(matcher, kind, structure) for kind in kinds):
            first.append(index)
            kinds += [] if structure is None else [structure]
    return first


def novel(
    structures: Sequence[object],
    known: Sequence[object],
    *,
    settings: MatcherSettings = SAME_PHASE,
    workers: int = 1,
) -> NDArray[np.bool_]:
    """Return which structures match no known structure; unreadable ones are not novel.

    A cell too degenerate to compare (no volume, or a needle) is like nothing else: unique and new.

    Raises:
        ValueError: a set is empty.
    """
    entries, references = as_entries(structures), as_entries(known)
    if not entries or not references:
        raise ValueError(f"{len(entries)} structures, {len(references)} known: need both")
    by_formula = defaultdict(list)
    for reference in references:
        if isinstance(reference, Crystal):
            by_formula[reference.formula].append(reference)
    result = np.array([isinstance(entry, Crystal) for entry in entries])
    jobs: list[NovelJob] = []
    where = []
    for index, entry in enumerate(entries):
        if isinstance(entry, Crystal) and by_formula[entry.formula]:
            jobs.append((entry, by_formula[entry.formula], settings))
            where.append(index)
    for index, is_new in zip(where, map_in_order(_matches_none, jobs, workers), strict=True):
        result[index] = is_new
    return result


def _matches_none(job: NovelJob) -> bool:
    crystal, known, settings = job
    matcher = settings.matcher()
    if unsearchable(crystal):
        return True
    structure = to_pymatgen(crystal)
    comparable = (to_pymatgen(other) for other in known if not unsearchable(other))
    return not any(_fits(matcher, other, structure) for other in comparable)


def _fits(matcher: object, left: object, right: object) -> bool:
    """A matcher that fails on degenerate cells has not shown that two structures are the same."""
    try:
        return bool(matcher.fit(left, right))  # type: ignore[attr-defined]
    except (ValueError, ArithmeticError, IndexError, TypeError, np.linalg.LinAlgError):
        return False


@dataclass(frozen=True)
class SunResult:
    """Masks over all generated structures; energies unknown or failed count as not stable."""

    unique: NDArray[np.bool_]
    novel: NDArray[np.bool_]
    above_hull: NDArray[np.float64]
    """(structures,), eV/atom, NaN unknown."""

    def scores(self, limits: tuple[float, ...] = (0.0, METASTABLE)) -> list[Score]:
        """Return stability and S.U.N. rates at each limit, over all structures."""
        n = len(self.above_hull)
        unknown = int(np.isnan(self.above_hull).sum())
        rows = []
        for limit in limits:
            stable = np.nan_to_num(self.above_hull, nan=np.inf) <= limit
            word = "stable" if limit == 0 else "metastable"
            what = f"energy above hull <= {limit:g} eV/atom, {unknown} unknown count as not"
            rows.append(_rate(word, stable, n, what))
            name = "S.U.N." if limit == 0 else "M.S.U.N."
            both = stable & self.unique & self.novel
            rows.append(_rate(name, both, n, what + "; unique and novel"))
        return rows


def sun(
    structures: Sequence[object],
    known: Sequence[object],
    above_hull: NDArray[np.float64],
    *,
    workers: int = 1,
) -> SunResult:
    """Combine stability, uniqueness and novelty.

    Raises:
        ValueError: the energies do not fit the structures, or a set is empty.
    """
    if len(above_hull) != len(structures):
        raise ValueError(f"{len(above_hull)} hull energies for {len(structures)} structures")
    return SunResult(
        unique(structures, workers=workers),
        novel(structures, known, workers=workers),
        np.asarray(above_hull, dtype=np.float64),
    )


def uniqueness_score(mask: NDArray[np.bool_], settings: MatcherSettings = SAME_PHASE) -> Score:
    """Return the rate of unique structures."""
    return _rate("uniqueness", mask, len(mask), f"first of its kind; {_tolerances(settings)}")


def novelty_score(
    mask: NDArray[np.bool_], n_known: int, settings: MatcherSettings = SAME_PHASE
) -> Score:
    """Return the rate of novel structures."""
    text = f"matches none of {n_known} known structures; {_tolerances(settings)}"
    return _rate("novelty", mask, len(mask), text, n_known)


def _tolerances(settings: MatcherSettings) -> str:
    angle = f"angle {settings.angle_tol:g}°"
    return f"StructureMatcher stol {settings.stol:g}, ltol {settings.ltol:g}, {angle}"


def _rate(
    name: str, mask: NDArray[np.bool_], n: int, protocol: str, n_reference: int | None = None
) -> Score:
    rate = float(mask.mean())
    return Score(
        name,
        rate,
        n_generated=n,
        n_reference=n_reference,
        protocol=protocol,
        uncertainty=rate_error(rate, n),
        rate=True,
        better="higher",
    )
