"""Structures compared by StructureMatcher: match rate, METRe, uniqueness, novelty and S.U.N.

Match rates are given by both protocols of the field, named in every number. Both divide by the
number of all references. By "all" any pair may match (OMatG, MaskGXT); by "valid" only pairs whose
prediction and reference both pass CDVAE's validity (CDVAE, DiffCSP, FlowMM and their successors).
"""

import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.options import MIN_VOLUME
from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import (
    Crystal,
    Entry,
    ReadFailure,
    as_entries,
    longest_vector,
    to_pymatgen,
)
from crystal_fidelity.validity import structural_validity
from crystal_fidelity.workers import map_in_order

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

MatchProtocol = Literal["all", "valid"]
Status = Literal["matched", "different", "filtered", "composition", "failed", "undecided"]


@dataclass(frozen=True)
class MatcherSettings:
    """Tolerances of pymatgen's StructureMatcher; the defaults are CDVAE's and DiffCSP's.

    Examples:
        >>> from ase.build import bulk
        >>> from crystal_fidelity import match_rate
        >>> strict = MatcherSettings(stol=0.3, ltol=0.2, angle_tol=5)
        >>> match_rate([bulk("Cu")], [bulk("Cu", a=3.7)], settings=strict).rate
        1.0
    """

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
WRONG_VOLUME = 0.05
"""Relative error from which a matched structure's volume is called wrong."""
METASTABLE = 0.1
"""eV/atom above the hull."""
Job = tuple[Entry, Entry, MatcherSettings, float | None]
Alike = Literal["structure", "prototype"]
"""What two crystals share: the structure with its elements, or with others in their places."""
KindsJob = tuple[list[Crystal], MatcherSettings, Alike]
NovelJob = tuple[Crystal, list[Crystal], MatcherSettings, Alike]
_MATCHER_ERRORS = (ValueError, ArithmeticError, IndexError, TypeError, np.linalg.LinAlgError)
"""What pymatgen raises of degenerate cells."""


@dataclass(frozen=True)
class PairOutcome:
    """What became of one pair."""

    status: Status
    """Whether they matched, and why not."""
    rms: float = float("nan")
    """Displacement of matched atoms in units of (volume / atom)^(1/3); NaN unless matched."""
    volume_error: float = float("nan")
    """|V/V_ref - 1| of the volumes per atom; NaN unless matched. The matcher scales both cells to
    one volume, so that neither the match nor the RMS tells of it."""
    reason: str = ""
    """What went wrong, of a pair that could not be compared."""


@dataclass(frozen=True)
class MatchResult:
    """Outcomes of all pairs by one protocol.

    Examples:
        >>> from ase.build import bulk
        >>> result = match_rate([bulk("Cu"), bulk("Al")], [bulk("Cu"), bulk("Ni")])
        >>> result.rate
        0.5
        >>> [outcome.status for outcome in result.outcomes]
        ['matched', 'composition']
    """

    runs: tuple[tuple[PairOutcome, ...], ...]
    """One tuple per candidate, in which one outcome per reference."""
    invalid: NDArray[np.bool_]
    """(candidates, references), generated structures with a contact below 0.5 Å."""
    settings: MatcherSettings
    """Tolerances."""
    protocol: MatchProtocol = "all"
    """Which pairs may match: "all", or the "valid" ones only."""
    baseline: "MatchResult | None" = None
    """The same with uniformly random coordinates in the reference's own cell."""

    def restricted(self, allowed: NDArray[np.bool_]) -> "MatchResult":
        """Return the result by the protocol "valid", without matching anything again.

        Args:
            allowed: (candidates, references), the pairs that may match, of `valid_pairs`.
        """
        filtered = PairOutcome("filtered", reason="prediction or reference is not valid")
        runs = tuple(
            tuple(one if ok else filtered for one, ok in zip(run, row, strict=True))
            for run, row in zip(self.runs, allowed.tolist(), strict=True)
        )
        return replace(self, runs=runs, protocol="valid", baseline=None)

    def first(self, candidates: int) -> "MatchResult":
        """Return the result that the first candidates alone give.

        Args:
            candidates: How many, from 1 up.
        """
        return replace(self, runs=self.runs[:candidates], baseline=None)

    @cached_property
    def chosen(self) -> tuple[int, ...]:
        """Which candidate is nearest to each reference: the matching one with the least RMS."""
        return tuple(_best(outcomes) for outcomes in zip(*self.runs, strict=True))

    @cached_property
    def outcomes(self) -> tuple[PairOutcome, ...]:
        """What became of that candidate, one per reference."""
        return tuple(self.runs[k][i] for i, k in enumerate(self.chosen))

    @cached_property
    def rms(self) -> NDArray[np.float64]:
        """RMS displacement of each pair, in units of (volume / atom)^(1/3); NaN unmatched."""
        return np.array([outcome.rms for outcome in self.outcomes])

    @cached_property
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
    def volume_errors(self) -> NDArray[np.float64]:
        """|V/V_ref - 1| of the matched pairs."""
        return np.array([o.volume_error for o in self.outcomes])[self.matched]

    @property
    def collisions(self) -> int:
        """Matched pairs whose generated structure has a contact below 0.5 Å."""
        return int((self.matched & self.invalid[self.chosen, range(len(self.chosen))]).sum())

    @property
    def undecided(self) -> int:
        """Pairs that ran out of time: the rate lies within this many pairs above `rate`."""
        return sum(outcome.status == "undecided" for outcome in self.outcomes)

    def scores(self) -> list[Score]:
        """Return the rows of the table; of several candidates also what the first alone gives."""
        n, shots = len(self.outcomes), len(self.runs)
        of = self.protocol if shots == 1 else f"{self.protocol}, best of {shots}"
        pairs = "any pair" if self.protocol == "all" else "pairs of valid structures"
        label = f"{pairs}, {'one-shot' if shots == 1 else f'best of {shots}'}; {self.settings}"
        matched, errors = int(self.matched.sum()), self.volume_errors
        rate = rate_score(
            f"match rate, {of}",
            self.rate,
            n,
            label,
            n_generated=n * shots,
            n_reference=n,
            details={
                "outcomes": dict(Counter(outcome.status for outcome in self.outcomes)),
                "rate if undecided pairs matched": self.rate + self.undecided / n,
            },
        )
        rms = Score(
            f"match RMSE, {of}",
            self.mean_rms,
            unit="(V/atom)^⅓",
            n_generated=matched,
            n_reference=n,
            protocol=label + "; mean over matched pairs",
            uncertainty=float(np.std(self.rms[self.matched]) / np.sqrt(matched))
            if matched
            else None,
            better="lower",
        )
        # Half the distance of the order statistics one deviation below and above the middle.
        middle = [0.5, *np.clip(0.5 + np.array([-0.5, 0.5]) / np.sqrt(max(matched, 1)), 0, 1)]
        median, low, high = np.quantile(errors, middle) if matched else [float("nan")] * 3
        volume = replace(
            rms,
            name=f"volume error, {of}",
            value=100 * float(median),
            unit="%",
            protocol=label
            + "; median of |V/V_ref - 1| over matched pairs, which are scaled to match",
            uncertainty=50 * float(high - low) if matched else None,
        )
        wrong = replace(
            rate_score(
                f"volume off by > {100 * WRONG_VOLUME:g} %, {of}",
                float((errors > WRONG_VOLUME).mean()) if matched else float("nan"),
                max(matched, 1),
                label + "; fraction of matched pairs",
                n_generated=matched,
                n_reference=n,
            ),
            better="lower",
        )
        rows = [rate, rms, volume, wrong]
        if shots > 1:
            rows = self.first(1).scores()[:4] + rows
        if self.protocol == "all":
            what = "matched pairs whose generated structure has a contact < 0.5 Å"
            rows.append(
                replace(
                    rms,
                    name="collisions among matched",
                    value=float(self.collisions),
                    unit="pairs",
                    protocol=what,
                    uncertainty=None,
                )
            )
        if self.baseline:
            what = "uniformly random coordinates in the reference's own cell; "
            rows += [
                replace(one, name=f"{one.name}, random", protocol=what + one.protocol, better="")
                for one in self.baseline.scores()[-5:-3]
            ]
        return rows


def match_rate(
    generated: Sequence[object], reference: Sequence[object], **options: Any
) -> MatchResult:
    """Compare the i-th generated with the i-th reference structure.

    Args:
        generated: One structure per reference.
        reference: What should have come out.
        options: `settings`, `baseline`, `workers`, `timeout_s` and `seed` as `match_rate_best_of`
            takes them.

    Returns:
        The outcome of each pair.

    Raises:
        ValueError: The lengths differ, or the sets are empty.

    Examples:
        >>> from ase.build import bulk
        >>> salt = [bulk("NaCl", "rocksalt", a=5.64), bulk("NaCl", "rocksalt", a=5.5)]
        >>> other = [bulk("NaCl", "rocksalt", a=5.7), bulk("NaCl", "cesiumchloride", a=3.4)]
        >>> match_rate(other, salt).rate
        0.5
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
    settings: MatcherSettings = FIELD,
    baseline: bool = False,
    workers: int = 1,
    timeout_s: float | None = None,
    seed: int = 0,
) -> MatchResult:
    """Match each reference with the best (least RMS) of its candidates, by the protocol "all".

    `MatchResult.restricted(valid_pairs(candidates, reference))` is the protocol "valid".

    Args:
        candidates: K generated sets, each with one structure per reference.
        reference: What should have come out.
        settings: Tolerances.
        baseline: Whether to score K random placements in each reference's cell too.
        workers: Processes.
        timeout_s: Seconds for one pair; one that takes longer is reported undecided and the
            rate becomes a lower bound. Without it no clock can change the answer.
        seed: Of the random coordinates.

    Returns:
        The outcome of every pair.

    Raises:
        ValueError: The lengths differ, or the sets are empty.

    Examples:
        >>> from ase.build import bulk
        >>> salt, other = bulk("NaCl", "rocksalt", a=5.64), bulk("NaCl", "cesiumchloride", a=3.4)
        >>> match_rate_best_of([[other], [salt]], [salt]).rate
        1.0

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
    jobs = (
        (made, real, settings, timeout_s)
        for group in sets
        for made, real in zip(group, truth, strict=True)
    )
    outcomes = map_in_order(match_one, jobs, workers)
    runs = tuple(tuple(islice(outcomes, len(truth))) for _ in sets)
    invalid = np.array([~structural_validity(group).valid for group in sets])
    base = None
    if baseline:
        generator = np.random.default_rng(seed)
        random_sets = [[randomise_coordinates(e, generator) for e in truth] for _ in sets]
        base = match_rate_best_of(
            random_sets, truth, settings=settings, workers=workers, timeout_s=timeout_s
        )
    return MatchResult(runs, invalid, settings, baseline=base)


def valid_pairs(
    candidates: Sequence[Sequence[object]], reference: Sequence[object]
) -> NDArray[np.bool_]:
    """Return which pairs may match by the protocol "valid".

    Both have to pass CDVAE's validity. CDVAE's code asks it of the prediction alone, DiffCSP's of
    both, and of the prediction alone where there are several: a match keeps the composition, so
    that these differ only where a reference collides.

    Args:
        candidates: K generated sets, each with one structure per reference.
        reference: What should have come out.

    Returns:
        (candidates, references).

    Raises:
        ImportError: smact is not installed.

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197; Jiao et al. 2023 (DiffCSP), arXiv:2309.04475
    """
    return np.array([peer_validity(as_entries(s)) for s in candidates]) & peer_validity(
        as_entries(reference)
    )


def randomise_coordinates(entry: Entry, generator: np.random.Generator) -> Entry:
    """Return the same cell and elements with uniformly random coordinates.

    Args:
        entry: A failure stays one.
        generator: Source of the numbers.
    """
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


def unsearchable(crystal: Crystal) -> PairOutcome | None:
    """Say why StructureMatcher is not asked: in a degenerate cell it would take all memory.

    CDVAE's code constructs no structure below 0.1 Å³ and counts it as not matching; whether a
    cell too elongated to search would match is not known.

    Args:
        crystal: Of a pair.
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
    """Run StructureMatcher on one pair, if its compositions are equal: a match keeps them.

    Args:
        job: The pair and the settings.
    """
    left, right, settings, timeout_s = job
    if isinstance(left, ReadFailure):
        return PairOutcome("failed", reason=f"unreadable: {left.reason}")
    if isinstance(right, ReadFailure):
        return PairOutcome("failed", reason=f"reference unreadable: {right.reason}")
    if left.formula != right.formula:
        return PairOutcome("composition", reason="compositions differ")
    if (unasked := unsearchable(left) or unsearchable(right)) is not None:
        return unasked
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
    ratio = left.volume / len(left) / (right.volume / len(right))
    return PairOutcome("matched", float(found[0]), abs(ratio - 1))


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

    runs: NDArray[np.float64]
    """(candidates, references), least RMS among the k-th candidates, NaN where none matched."""
    pairs: int
    """Pairs compared."""
    failed_pairs: int
    """Pairs of degenerate cells, or on which the matcher raised; they count as not matching."""
    n_generated: int
    settings: MatcherSettings

    @property
    def rms(self) -> NDArray[np.float64]:
        """Least RMS of each reference over all candidates, NaN where nothing matched."""
        return np.fmin.reduce(self.runs)

    @property
    def rate(self) -> float:
        """Fraction of references matched."""
        return float(np.isfinite(self.rms).mean())

    @property
    def corrected_rmse(self) -> float:
        """Mean RMS over all references, `stol` for those not matched."""
        return float(np.where(np.isfinite(self.rms), self.rms, self.settings.stol).mean())

    def scores(self) -> list[Score]:
        """Return the rows of the table; of several candidates also what the first alone give."""
        candidates, n = self.runs.shape
        at = "" if candidates == 1 else f" at {candidates}"
        label, stol = f"all references x all generated; {self.settings}", self.settings.stol
        values = np.where(np.isfinite(self.rms), self.rms, stol)
        rate = rate_score(
            f"METRe{at}",
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
            f"cRMSE{at}",
            self.corrected_rmse,
            unit="(V/atom)^⅓",
            n_generated=self.n_generated,
            n_reference=n,
            protocol=label + f"; {stol:g} for each reference without a match",
            uncertainty=float(values.std() / np.sqrt(n)),
            better="lower",
        )
        if candidates == 1:
            return [rate, rmse]
        first = replace(self, runs=self.runs[:1], n_generated=self.n_generated // candidates)
        return [*first.scores(), rate, rmse]


def metre(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    candidates: int = 1,
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
        candidates: K, where the generated structures are K consecutive ones per request: METRe is
            then given with the first and with all of each.
        settings: Tolerances.
        workers: Processes.

    Returns:
        The least RMS of each reference, by candidate.

    Raises:
        ValueError: A set is empty.

    Source: Martirossyan et al. 2025 (OMatG), arXiv:2509.12178
    """
    made, real = as_entries(generated), as_entries(reference)
    if not made or not real:
        raise ValueError(f"{len(made)} generated and {len(real)} reference structures: need both")
    by_formula: dict[object, list[tuple[int, Crystal]]] = defaultdict(list)
    for place, entry in enumerate(made):
        if isinstance(entry, Crystal):
            by_formula[entry.formula].append((place % candidates, entry))
    jobs: list[Job] = []
    owners: list[tuple[int, int]] = []
    for index, target in enumerate(real):
        for turn, candidate in by_formula[target.formula] if isinstance(target, Crystal) else ():
            jobs.append((candidate, target, settings, None))
            owners.append((turn, index))
    failed = 0
    best = np.full((candidates, len(real)), np.nan)
    for owner, outcome in zip(owners, map_in_order(match_one, jobs, workers), strict=True):
        best[owner] = np.fmin(best[owner], outcome.rms)
        failed += outcome.status in ("failed", "undecided")
    return MetreResult(best, len(jobs), failed, len(made), settings)


# Structures that are the same: uniqueness, novelty, prototypes, S.U.N.


def kinds(
    structures: Sequence[object],
    *,
    alike: Alike = "structure",
    settings: MatcherSettings = SAME_PHASE,
    workers: int = 1,
) -> NDArray[np.intp]:
    """Number the kinds of structures: each is of the kind of the first one that it matches.

    Structures of one reduced composition, or of one pattern of counts for prototypes, are compared
    in order with the first of each kind found so far. A cell too degenerate to compare is a kind
    of its own.

    Args:
        structures: Generated structures.
        alike: Whether the same structure makes a kind, or the same prototype: the same structure
            whatever the elements on its sites.
        settings: Tolerances within which two are the same.
        workers: Processes.

    Returns:
        (structures,), place of the first of each structure's kind; -1 for what cannot be read.

    Raises:
        ValueError: The set is empty.
    """
    entries = as_entries(structures)
    if not entries:
        raise ValueError("0 structures: uniqueness needs at least one")
    result = np.where(
        [isinstance(entry, Crystal) for entry in entries], np.arange(len(entries)), -1
    )
    groups = [np.array(places) for places in _grouped(entries, alike).values() if len(places) > 1]
    jobs: list[KindsJob] = [([entries[i] for i in places], settings, alike) for places in groups]
    for places, firsts in zip(groups, map_in_order(_first_of_kind, jobs, workers), strict=True):
        result[places] = places[firsts]
    return result


def _first_of_kind(job: KindsJob) -> list[int]:
    group, settings, alike = job
    matcher = settings.matcher()
    seen: list[tuple[int, Structure]] = []
    firsts = []
    for place, crystal in enumerate(group):
        firsts.append(place)
        if unsearchable(crystal):
            continue
        structure = to_pymatgen(crystal)
        firsts[-1] = next((n for n, s in seen if _fits(matcher, s, structure, alike)), place)
        if firsts[-1] == place:
            seen.append((place, structure))
    return firsts


def unique(
    structures: Sequence[object], *, settings: MatcherSettings = SAME_PHASE, workers: int = 1
) -> NDArray[np.bool_]:
    """Return which structures are the first of their kind, see `kinds`; unreadable ones are not.

    Args:
        structures: Crystals, failures, pymatgen structures or ASE atoms.
        settings: Tolerances.
        workers: Processes.

    Returns:
        (structures,).

    Examples:
        >>> from ase.build import bulk
        >>> unique([bulk("Cu"), bulk("Cu", cubic=True), bulk("Al")]).tolist()
        [True, False, True]
    """
    found = kinds(structures, settings=settings, workers=workers)
    return found == np.arange(len(found))


def novel(
    structures: Sequence[object],
    known: Sequence[object],
    *,
    alike: Alike = "structure",
    settings: MatcherSettings = SAME_PHASE,
    workers: int = 1,
) -> NDArray[np.bool_]:
    """Return which structures match no known structure; unreadable ones are not novel.

    A cell too degenerate to compare (no volume, or a needle) is like nothing else: unique and new.

    Args:
        structures: Generated structures.
        known: What they are compared with.
        alike: "structure", or "prototype" for those that match none with other elements either. A
            structure that is novel by the first and not by the second is substitution-derived.
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
    groups = _grouped(references, alike)
    result = np.array([isinstance(entry, Crystal) for entry in entries])
    jobs: list[NovelJob] = []
    where = []
    for index, entry in enumerate(entries):
        if isinstance(entry, Crystal) and (places := groups.get(_bucket(entry, alike))):
            # Cells that are as large first: most often one of them is it.
            others = sorted((references[i] for i in places), key=lambda o: len(o) != len(entry))  # type: ignore[arg-type]
            jobs.append((entry, others, settings, alike))  # type: ignore[arg-type]
            where.append(index)
    for index, is_new in zip(where, map_in_order(_matches_none, jobs, workers), strict=True):
        result[index] = is_new
    return result


def _bucket(crystal: Crystal, alike: Alike) -> tuple[object, ...]:
    """Return what two crystals have to share to be alike: formula, or its counts alone."""
    return crystal.formula if alike == "structure" else tuple(sorted(n for _, n in crystal.formula))


def _grouped(entries: Sequence[Entry], alike: Alike) -> dict[tuple[object, ...], list[int]]:
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        if isinstance(entry, Crystal):
            groups[_bucket(entry, alike)].append(place)
    return groups


def _matches_none(job: NovelJob) -> bool:
    crystal, known, settings, alike = job
    matcher = settings.matcher()
    if unsearchable(crystal):
        return True
    structure = to_pymatgen(crystal)
    comparable = (to_pymatgen(other) for other in known if not unsearchable(other))
    return not any(_fits(matcher, other, structure, alike) for other in comparable)


def _fits(matcher: "StructureMatcher", left: "Structure", right: "Structure", alike: Alike) -> bool:
    """A matcher that fails on degenerate cells has not shown that two structures are the same."""
    fit = matcher.fit if alike == "structure" else matcher.fit_anonymous
    try:
        return bool(fit(left, right))
    except _MATCHER_ERRORS:
        return False


@dataclass(frozen=True)
class PrototypeResult:
    """Prototypes of a generated set: structures whatever the elements on their sites."""

    kinds: NDArray[np.intp]
    """(structures,), of `kinds(…, alike="prototype")`."""
    novel: NDArray[np.bool_]
    """(structures,), which match no known structure."""
    new_prototype: NDArray[np.bool_]
    """(structures,), which match none with other elements either."""
    n_known: int

    @property
    def derived(self) -> NDArray[np.bool_]:
        """Which are new, with a known prototype: a known structure with other elements."""
        return self.novel & ~self.new_prototype

    @property
    def diversity(self) -> float:
        """Effective number of prototypes: exp of the entropy of their frequencies."""
        counts = np.unique(self.kinds[self.kinds >= 0], return_counts=True)[1]
        fractions = counts / counts.sum()
        return float(np.exp(-(fractions * np.log(fractions)).sum())) if len(counts) else 0.0

    def scores(self) -> list[Score]:
        """Return the rows of the table: classes of novelty, and how many prototypes there are."""
        n, label = len(self.kinds), f"StructureMatcher {SAME_PHASE}, elements permuted"
        against = f"of {self.n_known} known structures; {label}"
        derived, new = (
            rate_score(name, float(mask.mean()), n, what + against, n_reference=self.n_known)
            for name, mask, what in (
                (
                    "substitution-derived",
                    self.derived,
                    "new, matches one with other elements, ",
                ),
                ("new prototype", self.new_prototype, "matches none with any elements, "),
            )
        )
        first = float((self.kinds == np.arange(n)).mean())
        unique = rate_score(
            "uniqueness of prototypes", first, n, f"first of its prototype; {label}"
        )
        diversity = replace(
            unique,
            name="prototype diversity",
            value=self.diversity,
            unit="prototypes",
            protocol=f"exp of the entropy of the frequencies of prototypes; {label}",
            uncertainty=None,
            rate=False,
        )
        return [replace(derived, better=""), new, unique, diversity]


def prototypes(
    structures: Sequence[object],
    known: Sequence[object],
    novel_mask: NDArray[np.bool_],
    *,
    workers: int = 1,
) -> PrototypeResult:
    """Tell substitution-derived structures from new prototypes, and count prototypes.

    Args:
        structures: Generated structures.
        known: What novelty is judged against.
        novel_mask: (structures,), what `novel` gave for them.
        workers: Processes.

    Returns:
        Masks over all generated structures.

    Source: the classes are those of Negishi and Walsh 2026
    """
    entries = as_entries(structures)
    new = novel_mask.copy()
    if new.any():
        chosen = [entries[i] for i in np.flatnonzero(new)]
        new[new] = novel(chosen, known, alike="prototype", workers=workers)
    found = kinds(entries, alike="prototype", workers=workers)
    return PrototypeResult(found, novel_mask, new, len(known))


def sun_scores(
    unique: NDArray[np.bool_],
    novel: NDArray[np.bool_],
    above_hull: NDArray[np.float64],
    how: str = "",
) -> list[Score]:
    """Return the rates of (meta)stable and of (meta)stable, unique and novel structures, S.U.N.

    Args:
        unique: (structures,), of `unique`.
        novel: (structures,), of `novel`.
        above_hull: (structures,), eV/atom; NaN, unknown or failed, counts as not stable.
        how: Where the energies are from, for the protocol.
    """
    n, unknown = len(above_hull), int(np.isnan(above_hull).sum())
    rows = []
    for limit, word, name in ((0.0, "stable", "S.U.N."), (METASTABLE, "metastable", "M.S.U.N.")):
        stable = np.nan_to_num(above_hull, nan=np.inf) <= limit
        what = f"energy above hull <= {limit:g} eV/atom, {unknown} unknown count as not"
        what += f"; {how}" if how else ""
        rows.append(rate_score(word, float(stable.mean()), n, what))
        sun = float((stable & unique & novel).mean())
        rows.append(rate_score(name, sun, n, what + "; unique and novel"))
    return rows


def uniqueness_score(mask: NDArray[np.bool_], settings: MatcherSettings = SAME_PHASE) -> Score:
    """Return the rate of unique structures, of the mask that `unique` gave.

    Args:
        mask: One per structure.
        settings: Tolerances, for the protocol.
    """
    text = f"first of its kind; StructureMatcher {settings}"
    return rate_score("uniqueness", float(mask.mean()), len(mask), text)


def novelty_score(
    mask: NDArray[np.bool_], n_known: int, settings: MatcherSettings = SAME_PHASE
) -> Score:
    """Return the rate of novel structures, of the mask that `novel` gave for `n_known` others.

    Args:
        mask: One per structure.
        n_known: Structures compared with.
        settings: Tolerances, for the protocol.
    """
    text = f"matches none of {n_known} known structures; StructureMatcher {settings}"
    return rate_score("novelty", float(mask.mean()), len(mask), text, n_reference=n_known)
