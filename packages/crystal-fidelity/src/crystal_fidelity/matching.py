"""Structures compared by StructureMatcher: match rate, METRe, uniqueness, novelty and S.U.N.

Match protocols are named after their authors. All divide by the number of all references; they
differ in which pairs may count.
"""

import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.options import MatchProtocol
from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import (
    Crystal,
    Entry,
    ReadFailure,
    as_entries,
    longest_vector,
    to_pymatgen,
)
from crystal_fidelity.validity import MIN_VOLUME, structural_validity
from crystal_fidelity.workers import map_in_order

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

Status = Literal["matched", "different", "filtered", "composition", "failed", "undecided"]


@dataclass(frozen=True)
class MatcherSettings:
    """Tolerances of pymatgen's StructureMatcher; the defaults are CDVAE's and DiffCSP's."""

    stol: float = 0.5
    """Site tolerance as a fraction of (volume / atom)^(1/3)."""
    ltol: float = 0.3
    """Fractional length tolerance."""
    angle_tol: float = 10.0
    """Degrees."""
    scale: bool = True
    """Whether cells are scaled to the same volume before they are compared."""

    def matcher(self) -> "StructureMatcher":
        """Return a matcher with these tolerances, which finds primitive cells first."""
        from pymatgen.analysis.structure_matcher import StructureMatcher

        return StructureMatcher(
            stol=self.stol, ltol=self.ltol, angle_tol=self.angle_tol, scale=self.scale
        )

    def __str__(self) -> str:
        return f"stol {self.stol:g}, ltol {self.ltol:g}, angle {self.angle_tol:g}°"


FIELD = MatcherSettings()
"""What the field calls a match of a prediction: CDVAE's and DiffCSP's tolerances."""
SAME_PHASE = MatcherSettings(stol=0.3, ltol=0.2, angle_tol=5.0)
"""What the field calls the same structure: pymatgen's defaults."""
MAX_LATTICE_POINTS = 10_000
"""In the sphere that StructureMatcher searches; the longest cell of MP-20 has 1 800."""
METASTABLE = 0.1
"""eV/atom above the hull."""
Job = tuple[Crystal, Crystal, MatcherSettings, float | None]
UniqueJob = tuple[list[tuple[int, Crystal]], MatcherSettings]
NovelJob = tuple[Crystal, list[Crystal], MatcherSettings]
_MATCHER_ERRORS = (ValueError, ArithmeticError, IndexError, TypeError, np.linalg.LinAlgError)
"""What pymatgen raises of degenerate cells."""


@dataclass(frozen=True)
class PairOutcome:
    """What became of one pair; `rms` is NaN unless it matched."""

    status: Status
    rms: float = float("nan")
    reason: str = ""


@dataclass(frozen=True)
class MatchResult:
    """Outcomes of all pairs, best candidate first where there were several."""

    outcomes: tuple[PairOutcome, ...]
    """One per reference."""
    chosen: tuple[int, ...]
    """Which candidate gave the outcome."""
    protocol: MatchProtocol
    candidates: int
    settings: MatcherSettings
    collisions: int
    """Matched pairs whose generated structure is invalid (a contact below 0.5 Å)."""
    baseline: "MatchResult | None" = None
    """The same with uniformly random coordinates in the reference's own cell."""

    @property
    def rms(self) -> NDArray[np.float64]:
        """RMS displacement of each pair, in units of (volume / atom)^(1/3); NaN unmatched."""
        return np.array([outcome.rms for outcome in self.outcomes])

    @property
    def matched(self) -> NDArray[np.bool_]:
        """Which references were matched."""
        return np.array([outcome.status == "matched" for outcome in self.outcomes])

    @property
    def rate(self) -> float:
        """Matched fraction of all references; a lower bound if pairs are undecided."""
        return float(self.matched.mean())

    @property
    def mean_rms(self) -> float:
        """Mean RMS of the matched pairs; NaN if none matched."""
        return float(self.rms[self.matched].mean()) if self.matched.any() else float("nan")

    @property
    def undecided(self) -> int:
        """Pairs that ran out of time: the rate lies within this many pairs above `rate`."""
        return sum(outcome.status == "undecided" for outcome in self.outcomes)

    def scores(self) -> list[Score]:
        """Return the rows of the table."""
        n = len(self.outcomes)
        shots = "one-shot" if self.candidates == 1 else f"best of {self.candidates}"
        label = f"{self.protocol}, {shots}; {self.settings}"
        matched = int(self.matched.sum())
        spread = float(np.std(self.rms[self.matched]) / np.sqrt(matched)) if matched else None
        rate = rate_score(
            "match rate",
            self.rate,
            n,
            label,
            n_generated=n * self.candidates,
            n_reference=n,
            details={
                "outcomes": dict(Counter(outcome.status for outcome in self.outcomes)),
                "rate if undecided pairs matched": self.rate + self.undecided / n,
            },
        )
        rms = Score(
            "match RMSE",
            self.mean_rms,
            unit="(V/atom)^⅓",
            n_generated=matched,
            n_reference=n,
            protocol=label + "; mean over matched pairs",
            uncertainty=spread,
            better="lower",
        )
        collisions = replace(
            rms,
            name="collisions among matched",
            value=float(self.collisions),
            unit="pairs",
            protocol="matched pairs whose generated structure has a contact < 0.5 Å",
            uncertainty=None,
        )
        what = "uniformly random coordinates in the reference's own cell; "
        random = self.baseline.scores()[:2] if self.baseline else []
        return [rate, rms, collisions] + [
            replace(one, name=f"{one.name}, random", protocol=what + one.protocol, better="")
            for one in random
        ]


def match_rate(
    generated: Sequence[object], reference: Sequence[object], **options: Any
) -> MatchResult:
    """Compare the i-th generated with the i-th reference structure.

    Args:
        generated: One structure per reference.
        reference: What should have come out.
        options: `protocol`, `settings`, `baseline`, `workers`, `timeout_s` and `seed` as
            `match_rate_best_of` takes them.

    Returns:
        The outcome of each pair.

    Raises:
        ValueError: The lengths differ, or the sets are empty.
    """
    if len(generated) != len(reference):
        raise ValueError(
            f"{len(generated)} generated and {len(reference)} reference structures: the i-th is "
            "matched with the i-th. Give one per reference, or K per reference with best-of K"
        )
    return match_rate_best_of([generated], reference, **options)


def match_rate_best_of(
    candidates: Sequence[Sequence[object]],
    reference: Sequence[object],
    *,
    protocol: MatchProtocol = "all",
    settings: MatcherSettings = FIELD,
    baseline: bool = False,
    workers: int = 1,
    timeout_s: float | None = None,
    seed: int = 0,
) -> MatchResult:
    """Match each reference with the best (least RMS) of its candidates.

    Args:
        candidates: K generated sets, each with one structure per reference.
        reference: What should have come out.
        protocol: "all" lets every pair count; "cdvae" only pairs whose generated structure is
            valid (structure and composition, CDVAE's definitions); "diffcsp" asks the same of
            the reference too, one-shot only: among several candidates DiffCSP's code asks it of
            the candidate alone. The denominator is always all references.
        settings: Tolerances.
        baseline: Whether to score K random placements in each reference's cell too.
        workers: Processes.
        timeout_s: Seconds for one pair; one that takes longer is reported undecided and the
            rate becomes a lower bound. Without it no clock can change the answer.
        seed: Of the random coordinates.

    Returns:
        The best outcome of each reference.

    Raises:
        ValueError: The lengths differ, or the sets are empty.

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197; Jiao et al. 2023 (DiffCSP), arXiv:2309.04475
    """
    truth = as_entries(reference)
    sets = [as_entries(group) for group in candidates]
    lengths = {len(group) for group in sets}
    if not truth or lengths != {len(truth)}:
        raise ValueError(
            f"{len(truth)} reference structures against candidate sets of {sorted(lengths)}; "
            "each set needs one structure per reference, and at least one"
        )
    every = np.ones(len(truth), bool)
    allowed = peer_validity(truth) if protocol == "diffcsp" and len(sets) == 1 else every
    runs = []
    for group in sets:
        valid = every if protocol == "all" else peer_validity(group)
        runs.append(_match_pairs(group, truth, valid & allowed, settings, workers, timeout_s))
    chosen = tuple(_best([run[i] for run in runs]) for i in range(len(truth)))
    outcomes = tuple(runs[k][i] for i, k in enumerate(chosen))
    invalid = ~structural_validity([sets[k][i] for i, k in enumerate(chosen)]).valid
    matched = np.array([outcome.status == "matched" for outcome in outcomes])
    base = None
    if baseline:
        generator = np.random.default_rng(seed)
        random_sets = [[randomise_coordinates(e, generator) for e in truth] for _ in sets]
        base = match_rate_best_of(
            random_sets, truth, settings=settings, workers=workers, timeout_s=timeout_s
        )
    collisions = int((matched & invalid).sum())
    return MatchResult(outcomes, chosen, protocol, len(sets), settings, collisions, base)


def randomise_coordinates(entry: Entry, generator: np.random.Generator) -> Entry:
    """Return the same cell and elements with uniformly random coordinates."""
    if isinstance(entry, ReadFailure):
        return entry
    frac = generator.random(entry.frac_coords.shape)
    return Crystal(entry.lattice, frac, entry.atomic_numbers, entry.name)


def _best(outcomes: Sequence[PairOutcome]) -> int:
    rms = np.array([outcome.rms for outcome in outcomes])
    if np.isfinite(rms).any():
        return int(np.nanargmin(rms))
    undecided = [i for i, outcome in enumerate(outcomes) if outcome.status == "undecided"]
    return undecided[0] if undecided else 0


def peer_validity(entries: Sequence[Entry]) -> NDArray[np.bool_]:
    """Return CDVAE's `valid`: pairs of different atoms >= 0.5 Å, volume, charge balance.

    Deviation: CDVAE's code also calls a structure invalid that CrystalNN has no fingerprint for.

    Args:
        entries: Structures.

    Returns:
        (structures,).

    Raises:
        ImportError: smact is not installed.
    """
    from crystal_fidelity.composition import composition_validity

    return structural_validity(entries, contacts="pairs-only").valid & composition_validity(entries)


def _match_pairs(
    generated: Sequence[Entry],
    reference: Sequence[Entry],
    allowed: NDArray[np.bool_],
    settings: MatcherSettings,
    workers: int,
    timeout_s: float | None,
) -> list[PairOutcome]:
    outcomes: list[PairOutcome | None] = []
    jobs = []
    for left, right, allow in zip(generated, reference, allowed, strict=True):
        verdict = _prefilter(left, right, settings, timeout_s, allowed=bool(allow))
        outcomes.append(verdict if isinstance(verdict, PairOutcome) else None)
        if not isinstance(verdict, PairOutcome):
            jobs.append(verdict)
    found = iter(map_in_order(match_one, jobs, workers))
    return [outcome if outcome is not None else next(found) for outcome in outcomes]


def _prefilter(
    left: Entry,
    right: Entry,
    settings: MatcherSettings,
    timeout_s: float | None,
    *,
    allowed: bool,
) -> PairOutcome | Job:
    """Decide what needs no matcher; exact, as a match keeps the reduced composition."""
    if isinstance(left, ReadFailure):
        return PairOutcome("failed", reason=f"unreadable: {left.reason}")
    if isinstance(right, ReadFailure):
        return PairOutcome("failed", reason=f"reference unreadable: {right.reason}")
    if not allowed:
        return PairOutcome("filtered", reason="invalid under the protocol")
    if left.formula != right.formula:
        return PairOutcome("composition", reason="compositions differ")
    return unsearchable(left) or unsearchable(right) or (left, right, settings, timeout_s)


def unsearchable(crystal: Crystal) -> PairOutcome | None:
    """Say why StructureMatcher is not asked: in a degenerate cell it would take all memory.

    CDVAE's code constructs no structure below 0.1 Å³ and counts it as not matching; whether a
    cell too elongated to search would match is not known.
    """
    if crystal.volume < MIN_VOLUME:
        return PairOutcome("failed", reason=f"volume {crystal.volume:.3g} Å³ < {MIN_VOLUME} Å³")
    points = _points_searched(crystal.lattice)
    if points > MAX_LATTICE_POINTS:
        from ase.geometry.minkowski_reduction import minkowski_reduce

        points = _points_searched(minkowski_reduce(crystal.lattice)[0])
    if points > MAX_LATTICE_POINTS:
        return PairOutcome("undecided", reason=f"cell too elongated: {points:.2g} lattice points")
    return None


def _points_searched(lattice: NDArray[np.float64]) -> float:
    """Return the number of lattice points within 1.3 times the longest vector."""
    radius = 1.3 * longest_vector(lattice)
    return float(4 / 3 * np.pi * radius**3 / abs(np.linalg.det(lattice)))


def match_one(job: Job) -> PairOutcome:
    """Run StructureMatcher on one pair of equal composition."""
    left, right, settings, timeout_s = job
    matcher = settings.matcher()
    try:
        with _time_limit(timeout_s):
            found = matcher.get_rms_dist(to_pymatgen(left), to_pymatgen(right))
    except TimeoutError:
        return PairOutcome("undecided", reason=f"longer than {timeout_s} s")
    except _MATCHER_ERRORS as error:
        return PairOutcome("failed", reason=f"{type(error).__name__}: {str(error)[:120]}")
    if found is None:
        return PairOutcome("different")
    return PairOutcome("matched", rms=float(found[0]))


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the main thread of a process after wall-clock `seconds`."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("timeout_s works in a main thread only; leave it out here")

    def expire(_signal: int, _frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# Every reference against every generated structure


@dataclass(frozen=True)
class MetreResult:
    """Least RMS of each reference against all generated structures of its composition."""

    rms: NDArray[np.float64]
    """(references,), NaN where nothing matched."""
    pairs: int
    """Pairs compared."""
    failed_pairs: int
    """Pairs of degenerate cells, or on which the matcher raised; they count as not matching."""
    n_generated: int
    settings: MatcherSettings

    @property
    def rate(self) -> float:
        """Fraction of references matched."""
        return float(np.isfinite(self.rms).mean())

    @property
    def corrected_rmse(self) -> float:
        """Mean RMS over all references, `stol` for those not matched."""
        return float(np.where(np.isfinite(self.rms), self.rms, self.settings.stol).mean())

    def scores(self) -> list[Score]:
        """Return the rows of the table."""
        n = len(self.rms)
        label = f"all references x all generated; {self.settings}"
        stol = self.settings.stol
        values = np.where(np.isfinite(self.rms), self.rms, stol)
        rate = rate_score(
            "METRe",
            self.rate,
            n,
            label,
            n_generated=self.n_generated,
            n_reference=n,
            details={
                "pairs": self.pairs,
                "pairs the matcher could not compare": self.failed_pairs,
            },
        )
        rmse = Score(
            "cRMSE",
            self.corrected_rmse,
            unit="(V/atom)^⅓",
            n_generated=self.n_generated,
            n_reference=n,
            protocol=label + f"; {stol:g} for each reference without a match",
            uncertainty=float(values.std() / np.sqrt(n)),
            better="lower",
        )
        return [rate, rmse]


def metre(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    settings: MatcherSettings = FIELD,
    workers: int = 1,
) -> MetreResult:
    """Match every reference with every generated structure of its reduced composition.

    With several polymorphs of one composition, pairing the i-th with the i-th punishes a model for
    the order of its answers. "Match Everyone To Reference" asks how many references some generated
    structure matches; cRMSE charges `stol` for each that none does.

    Args:
        generated: Structures in any order and number.
        reference: What should have come out.
        settings: Tolerances.
        workers: Processes.

    Returns:
        The least RMS of each reference.

    Raises:
        ValueError: A set is empty.

    Source: Martirossyan et al. 2025 (OMatG), arXiv:2509.12178
    """
    made, real = as_entries(generated), as_entries(reference)
    if not made or not real:
        raise ValueError(f"{len(made)} generated and {len(real)} reference structures: need both")
    by_formula = _by_formula(made)
    jobs: list[Job] = []
    owners: list[int] = []
    failed = 0
    for index, target in enumerate(real):
        if not isinstance(target, Crystal):
            continue
        for candidate in by_formula[target.formula]:
            if unsearchable(candidate) or unsearchable(target):
                failed += 1
                continue
            jobs.append((candidate, target, settings, None))
            owners.append(index)
    pairs = len(jobs) + failed
    best = np.full(len(real), np.nan)
    for index, outcome in zip(owners, map_in_order(match_one, jobs, workers), strict=True):
        best[index] = np.fmin(best[index], outcome.rms)
        failed += outcome.status == "failed"
    return MetreResult(best, pairs, failed, len(made), settings)


# Structures that are the same: uniqueness, novelty, S.U.N.


def unique(
    structures: Sequence[object], *, settings: MatcherSettings = SAME_PHASE, workers: int = 1
) -> NDArray[np.bool_]:
    """Return which structures are the first of their kind.

    Structures of one reduced composition are compared in order with the first of each kind found
    so far. Unreadable structures are not unique.

    Args:
        structures: Generated structures.
        settings: Tolerances within which two are the same.
        workers: Processes.

    Returns:
        (structures,).

    Raises:
        ValueError: The set is empty.
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
    kinds: list[Structure] = []
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

    Args:
        structures: Generated structures.
        known: What they are compared with.
        settings: Tolerances within which two are the same.
        workers: Processes.

    Returns:
        (structures,).

    Raises:
        ValueError: A set is empty.
    """
    entries, references = as_entries(structures), as_entries(known)
    if not entries or not references:
        raise ValueError(f"{len(entries)} structures, {len(references)} known: need both")
    by_formula = _by_formula(references)
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


def _by_formula(entries: Sequence[Entry]) -> dict[object, list[Crystal]]:
    groups: dict[object, list[Crystal]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, Crystal):
            groups[entry.formula].append(entry)
    return groups


def _matches_none(job: NovelJob) -> bool:
    crystal, known, settings = job
    matcher = settings.matcher()
    if unsearchable(crystal):
        return True
    structure = to_pymatgen(crystal)
    comparable = (to_pymatgen(other) for other in known if not unsearchable(other))
    return not any(_fits(matcher, other, structure) for other in comparable)


def _fits(matcher: "StructureMatcher", left: "Structure", right: "Structure") -> bool:
    """A matcher that fails on degenerate cells has not shown that two structures are the same."""
    try:
        return bool(matcher.fit(left, right))
    except _MATCHER_ERRORS:
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
            rows.append(rate_score(word, float(stable.mean()), n, what))
            name = "S.U.N." if limit == 0 else "M.S.U.N."
            sun = float((stable & self.unique & self.novel).mean())
            rows.append(rate_score(name, sun, n, what + "; unique and novel"))
        return rows


def sun(
    structures: Sequence[object],
    known: Sequence[object],
    above_hull: NDArray[np.float64],
    *,
    workers: int = 1,
) -> SunResult:
    """Combine stability, uniqueness and novelty.

    Args:
        structures: Generated structures.
        known: What novelty is judged against.
        above_hull: (structures,), eV/atom, NaN where unknown.
        workers: Processes.

    Returns:
        Masks over all generated structures.

    Raises:
        ValueError: The energies do not fit the structures, or a set is empty.
    """
    if len(above_hull) != len(structures):
        raise ValueError(f"{len(above_hull)} hull energies for {len(structures)} structures")
    return SunResult(
        unique(structures, workers=workers),
        novel(structures, known, workers=workers),
        np.asarray(above_hull, dtype=np.float64),
    )


def uniqueness_score(mask: NDArray[np.bool_], settings: MatcherSettings = SAME_PHASE) -> Score:
    """Return the rate of unique structures, of the mask that `unique` gave."""
    text = f"first of its kind; StructureMatcher {settings}"
    return rate_score("uniqueness", float(mask.mean()), len(mask), text)


def novelty_score(
    mask: NDArray[np.bool_], n_known: int, settings: MatcherSettings = SAME_PHASE
) -> Score:
    """Return the rate of novel structures, of the mask that `novel` gave for `n_known` others."""
    text = f"matches none of {n_known} known structures; StructureMatcher {settings}"
    return rate_score("novelty", float(mask.mean()), len(mask), text, n_reference=n_known)
