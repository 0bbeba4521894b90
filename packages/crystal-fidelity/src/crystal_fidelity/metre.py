"""METRe and cRMSE: every reference may be matched by any generated structure.

Martirossyan et al. 2025 (OMatG): with several polymorphs of one composition, pairing the i-th
with the i-th punishes a model for the order of its answers. "Match Everyone To Reference" asks
how many references some generated structure matches; cRMSE charges `stol` for each that none does.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.matching import FIELD, Job, MatcherSettings, match_one, unsearchable
from crystal_fidelity.reading import map_in_order
from crystal_fidelity.scores import Score, rate_error
from crystal_fidelity.structures import Crystal, as_entries


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
        s = self.settings
        label = f"all references x all generated; stol {s.stol:g}, ltol {s.ltol:g}"
        label += f", angle {s.angle_tol:g}°"
        n = len(self.rms)
        values = np.where(np.isfinite(self.rms), self.rms, s.stol)
        details = {"pairs": self.pairs, "pairs the matcher could not compare": self.failed_pairs}
        return [
            Score(
                "METRe",
                self.rate,
                n_generated=self.n_generated,
                n_reference=n,
                protocol=label,
                uncertainty=rate_error(self.rate, n),
                rate=True,
                better="higher",
                details=details,
            ),
            Score(
                "cRMSE",
                self.corrected_rmse,
                unit="(V/atom)^⅓",
                n_generated=self.n_generated,
                n_reference=n,
                protocol=label + f"; {s.stol:g} for each reference without a match",
                uncertainty=float(values.std() / np.sqrt(n)),
                better="lower",
            ),
        ]


def metre(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    settings: MatcherSettings = FIELD,
    workers: int = 1,
) -> MetreResult:
    """Match every reference with every generated structure of its reduced composition.

    Raises:
        ValueError: a set is empty.
    """
    made, real = as_entries(generated), as_entries(reference)
    if not made or not real:
        raise ValueError(f"{len(made)} generated and {len(real)} reference structures: need both")
    by_formula = defaultdict(list)
    for entry in made:
        if isinstance(entry, Crystal):
            by_formula[entry.formula].append(entry)
    jobs: list[Job] = []
    owners: list[int] = []
    failed = 0
    for index, target in enumerate(real):
        for candidate in by_formula[target.formula] if isinstance(target, Crystal) else []:
            assert isinstance(target, Crystal)
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
