"""Match rate and RMSE: is the i-th generated structure the i-th reference structure?

Protocols are named after their authors. All use pymatgen's StructureMatcher and divide by the
number of all references; they differ in which pairs may count.
"""

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.reading import map_in_order
from crystal_fidelity.scores import Score, rate_error
from crystal_fidelity.structures import (
    Crystal,
    Entry,
    ReadFailure,
    as_entries,
    longest_vector,
    to_pymatgen,
)
from crystal_fidelity.validity import MIN_VOLUME, structural_validity

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

MatchProtocol = Literal["all", "cdvae", "diffcsp"]
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
Job = tuple[Crystal, Crystal, MatcherSettings, float | None]


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
        tolerances = f"stol {self.settings.stol:g}, ltol {self.settings.ltol:g}"
        label = f"{self.protocol}, {shots}; {tolerances}, angle {self.settings.angle_tol:g}°"
        counts = dict(Counter(outcome.status for outcome in self.outcomes))
        matched = int(self.matched.sum())
        spread = float(np.std(self.rms[self.matched]) / np.sqrt(matched)) if matched else None
        rows = [
            Score(
                "match rate",
                self.rate,
                n_generated=n * self.candidates,
                n_reference=n,
                protocol=label,
                uncertainty=rate_error(self.rate, n),
                rate=True,
                better="higher",
                details={
                    "outcomes": counts,
                    "rate if undecided pairs matched": self.rate + self.undecided / n,
                },
            ),
            Score(
                "match RMSE",
                self.mean_rms,
                unit="(V/atom)^⅓",
                n_generated=matched,
                n_reference=n,
                protocol=label + "; mean over matched pairs",
                uncertainty=spread,
                better="lower",
            ),
            Score(
                "collisions among matched",
                float(self.collisions),
                unit="pairs",
                n_generated=matched,
                n_reference=n,
                protocol="matched pairs whose generated structure has a contact < 0.5 Å",
                better="lower",
            ),
        ]
        return rows + self._baseline_scores()

    def _baseline_scores(self) -> list[Score]:
        if self.baseline is None:
            return []
        what = "uniformly random coordinates in the reference's own cell; "
        return [
            replace(score, name=f"{score.name}, random", protocol=what + score.protocol, better="")
            for score in self.baseline.scores()[:2]
        ]


def match_rate(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    protocol: MatchProtocol = "all",
    settings: MatcherSettings = FIELD,
    baseline: bool = False,
    workers: int = 1,
    timeout_s: float | None = None,
    seed: int = 0,
) -> MatchResult:
    """Compare the i-th generated with the i-th reference structure.

    Args:
        generated: one structure per reference.
        reference: what should have come out.
        protocol: "all" lets every pair count; "cdvae" only pairs whose generated structure is
            valid (structure and composition, CDVAE's definitions); "diffcsp" asks the same of
            the reference too, one-shot only: among several candidates DiffCSP's code asks it of
            the candidate alone. The denominator is always all references.
        settings: tolerances.
        baseline: also score random coordinates in the reference's cells.
        workers: processes.
        timeout_s: seconds for one pair; one that takes longer is reported undecided and the
            rate becomes a lower bound. Without it no clock can change the answer.
        seed: of the random coordinates.

    Raises:
        ValueError: the lengths differ, or the sets are empty.
    """
    if len(generated) != len(reference):
        raise ValueError(
            f"{len(generated)} generated and {len(reference)} reference structures: the i-th is "
            "matched with the i-th. Give one per reference, or K per reference with best-of K"
        )
    return match_rate_best_of(
        [generated],
        reference,
        protocol=protocol,
        settings=settings,
        baseline=baseline,
        workers=workers,
        timeout_s=timeout_s,
        seed=seed,
    )


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
        reference: what should have come out.
        protocol: see `match_rate`.
        settings: see `match_rate`.
        baseline: see `match_rate`; K random placements per reference.
        workers: see `match_rate`.
        timeout_s: see `match_rate`.
        seed: see `match_rate`.

    Raises:
        ValueError: the lengths differ, or the sets are empty.
    """
    truth = as_entries(reference)
    sets = [as_entries(group) for group in candidates]
    lengths = {len(group) for group in sets}
    if not truth or lengths != {len(truth)}:
        raise ValueError(
            f"{len(truth)} reference structures against candidate sets of {sorted(lengths)}; "
            "each set needs one structure per reference, and at least one"
        )
    allowed = _allowed_references(truth, protocol if len(sets) == 1 else "all")
    runs = [
        _match_pairs(group, truth, ok & allowed, settings, workers, timeout_s)
        for group, ok in ((group, _allowed(group, protocol)) for group in sets)
    ]
    chosen = tuple(_best([run[i] for run in runs]) for i in range(len(truth)))
    outcomes = tuple(runs[k][i] for i, k in enumerate(chosen))
    picked = [sets[k][i] for i, k in enumerate(chosen)]
    invalid = ~structural_validity(picked).valid
    matched = np.array([outcome.status == "matched" for outcome in outcomes])
    collisions = int((matched & invalid).sum())
    base = None
    if baseline:
        generator = np.random.default_rng(seed)
        random_sets = [[randomise_coordinates(e, generator) for e in truth] for _ in sets]
        base = match_rate_best_of(
            random_sets, truth, settings=settings, workers=workers, timeout_s=timeout_s
        )
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
    """
    from crystal_fidelity.composition import composition_validity

    return structural_validity(entries, contacts="pairs-only").valid & composition_validity(entries)


def _allowed(entries: Sequence[Entry], protocol: MatchProtocol) -> NDArray[np.bool_]:
    return np.ones(len(entries), bool) if protocol == "all" else peer_validity(entries)


def _allowed_references(entries: Sequence[Entry], protocol: MatchProtocol) -> NDArray[np.bool_]:
    return peer_validity(entries) if protocol == "diffcsp" else np.ones(len(entries), bool)


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
    except (ValueError, ArithmeticError, IndexError, TypeError, np.linalg.LinAlgError) as error:
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
