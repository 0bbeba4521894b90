"""Coverage recall and precision (CDVAE): is there a neighbour in structure and in composition?

Structures are CrystalNN site fingerprints averaged over sites, compositions Magpie statistics.
A structure is covered when its nearest structure fingerprint and its nearest composition
fingerprint in the other set are within the cutoffs; as in CDVAE these may be two different
structures.
"""

import hashlib
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from crystal_fidelity.featurizers import (
    Identity,
    Progress,
    RowCache,
    cached_rows,
    default_cache,
)
from crystal_fidelity.reading import map_in_order
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Crystal, element_symbol, to_pymatgen

STRUCTURE_CUTOFF = 0.4
COMPOSITION_CUTOFF = 10.0
STRUCTURE_WIDTH = 61
COMPOSITION_WIDTH = 132
WIDTH = STRUCTURE_WIDTH + COMPOSITION_WIDTH
CHUNK = 512
BATCH = 256
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CoverageResult:
    """Nearest distances, and the rates that follow."""

    recall_structure: Array
    """(references,), distance to the nearest generated structure fingerprint."""
    recall_composition: Array
    precision_structure: Array
    """(generated with fingerprints,)."""
    precision_composition: Array
    n_generated: int
    """All generated structures, those without fingerprints count as not precise."""
    n_reference: int

    @property
    def recall(self) -> float:
        """Covered fraction of references that have fingerprints."""
        return float(_within(self.recall_structure, self.recall_composition).mean())

    @property
    def precision(self) -> float:
        """Fraction of all generated structures near a reference."""
        near = _within(self.precision_structure, self.precision_composition)
        return float(near.sum() / self.n_generated)

    def scores(self) -> list[Score]:
        """Return the rows of the table."""
        label = f"CrystalNN ops <= {STRUCTURE_CUTOFF:g}, Magpie <= {COMPOSITION_CUTOFF:g} "
        label += "standardised on the reference set"
        left, right = len(self.precision_structure), len(self.recall_structure)
        failed = {"without fingerprints": (self.n_generated - left, self.n_reference - right)}
        return [
            Score(
                name,
                value,
                n_generated=self.n_generated,
                n_reference=self.n_reference,
                protocol=label,
                uncertainty=float(np.sqrt(value * (1 - value) / n)),
                details=failed,
            )
            for name, value, n in (
                ("coverage recall", self.recall, right),
                ("coverage precision", self.precision, self.n_generated),
            )
        ]


def _within(structure: Array, composition: Array) -> NDArray[np.bool_]:
    return (structure <= STRUCTURE_CUTOFF) & (composition <= COMPOSITION_CUTOFF)


def nearest(left: Array, right: Array) -> tuple[Array, Array]:
    """Return each row's distance to the nearest row of the other set, in chunks.

    (n,) for `left`, (m,) for `right`; never more than CHUNK rows of the n x m table in memory.
    """
    of_left = np.empty(len(left))
    of_right = np.full(len(right), np.inf)
    for start in range(0, len(left), CHUNK):
        table = cdist(left[start : start + CHUNK], right)
        of_left[start : start + CHUNK] = table.min(axis=1)
        of_right = np.minimum(of_right, table.min(axis=0))
    return of_left, of_right


def coverage_of(generated: Array, reference: Array) -> CoverageResult:
    """Return coverage from (n, 61 + 132) fingerprints, rows with NaN standing for failures.

    Deviation: compositions are standardised with mean and deviation of the reference set; CDVAE's
    code holds constants of its own training set.

    Raises:
        ValueError: a set has no fingerprint at all.
    """
    left = generated[np.isfinite(generated).all(axis=1)]
    right = reference[np.isfinite(reference).all(axis=1)]
    if len(left) == 0 or len(right) == 0:
        raise ValueError(f"{len(left)} and {len(right)} structures have fingerprints: need both")
    precision_structure, recall_structure = nearest(
        left[:, :STRUCTURE_WIDTH], right[:, :STRUCTURE_WIDTH]
    )
    mean = right[:, STRUCTURE_WIDTH:].mean(axis=0)
    spread = right[:, STRUCTURE_WIDTH:].std(axis=0)
    spread[spread < 1e-12] = 1.0
    precision_composition, recall_composition = nearest(
        (left[:, STRUCTURE_WIDTH:] - mean) / spread, (right[:, STRUCTURE_WIDTH:] - mean) / spread
    )
    return CoverageResult(
        recall_structure,
        recall_composition,
        precision_structure,
        precision_composition,
        len(generated),
        len(reference),
    )


def coverage(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    cache_folder: Path | None = None,
    workers: int = 1,
    on_progress: Progress = lambda _text: None,
) -> CoverageResult:
    """Return coverage of two sets of structures; fingerprints are cached by content.

    Raises:
        ImportError: matminer is not installed.
        ValueError: see `coverage_of`.
    """
    left = fingerprints(generated, cache_folder, workers, on_progress)
    right = fingerprints(reference, cache_folder, workers, on_progress)
    return coverage_of(left, right)


def fingerprints(
    structures: Sequence[object],
    cache_folder: Path | None = None,
    workers: int = 1,
    on_progress: Progress = lambda _text: None,
) -> Array:
    """Return (structures, 61 + 132) fingerprints, NaN where they could not be made.

    Raises:
        ImportError: matminer is not installed.
    """
    try:
        version = importlib.metadata.version("matminer")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            "coverage needs matminer: pip install 'crystal-fidelity[peers]'"
        ) from error
    digest = hashlib.sha256(version.encode()).hexdigest()
    identity = Identity(f"CrystalNN ops + Magpie, matminer {version}", digest, "none")
    store = RowCache(cache_folder or default_cache(), identity, WIDTH)
    compute = _computer(workers)
    return cached_rows(
        structures, store, compute, WIDTH, batch=BATCH * workers, on_progress=on_progress
    )


def _computer(workers: int) -> Callable[[Sequence[Crystal]], NDArray[np.float32]]:
    def compute(crystals: Sequence[Crystal]) -> NDArray[np.float32]:
        rows = list(map_in_order(fingerprint, crystals, workers))
        return np.array(rows, dtype=np.float32)

    return compute


def fingerprint(crystal: Crystal) -> Array:
    """Return the 61 + 132 numbers of one crystal, NaN if matminer cannot make them."""
    from pymatgen.core import Composition

    sites, elements = _featurizers()
    structure = to_pymatgen(crystal)
    composition = Composition({element_symbol(z): n for z, n in _formula_of(crystal)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            per_site = [sites.featurize(structure, i) for i in range(len(crystal))]
            magpie = np.nan_to_num(np.array(elements.featurize(composition), dtype=np.float64))
    except Exception:  # noqa: BLE001 - CrystalNN raises many kinds; any is a counted failure
        return np.full(WIDTH, np.nan)
    return np.concatenate([np.mean(per_site, axis=0), magpie])


def _formula_of(crystal: Crystal) -> list[tuple[int, int]]:
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    return list(zip(numbers.tolist(), counts.tolist(), strict=True))


@cache
def _featurizers() -> tuple[Any, Any]:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie")
