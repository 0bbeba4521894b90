"""Coverage recall and precision (CDVAE): is there a neighbour in structure and in composition?

Structures are CrystalNN site fingerprints averaged over sites, compositions Magpie statistics.
A structure is covered when its nearest structure fingerprint and its nearest composition
fingerprint in the other set are within the cutoffs; as in CDVAE these may be two different
structures.
"""

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from crystal_fidelity.features import CachedRows, Identity, Limits
from crystal_fidelity.scores import Progress, Score, rate_score, silent
from crystal_fidelity.structures import MAX_ATOMIC_NUMBER, Crystal, element_symbol, to_pymatgen
from crystal_fidelity.workers import map_in_order

SHIPPED = "cdvae_scale.json"
STRUCTURE_CUTOFF = 0.4
COMPOSITION_CUTOFF = 10.0
STRUCTURE_WIDTH = 61
COMPOSITION_WIDTH = 132
WIDTH = STRUCTURE_WIDTH + COMPOSITION_WIDTH
LIMITS = Limits(MAX_ATOMIC_NUMBER, min_distance=0.0, max_nearest_neighbour=float("inf"))
"""Colliding atoms have fingerprints as in CDVAE; cells too dense to search do not."""
CHUNK = 512
BATCH = 256
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CompositionScale:
    """What Magpie statistics are standardised with: (132,) means and deviations."""

    mean: Array
    spread: Array
    name: str

    def __call__(self, magpie: Array) -> Array:
        """Return standardised rows; what Magpie does not know becomes 0, the mean, as in CDVAE."""
        return np.nan_to_num((magpie - self.mean) / self.spread)


def scale_of(magpie: Array) -> CompositionScale:
    """Return the scale of a set of (n, 132) Magpie rows; NaN entries are left out.

    Args:
        magpie: Features of the reference set.
    """
    mean, spread = np.nanmean(magpie, axis=0), np.nanstd(magpie, axis=0)
    spread[spread < 1e-12] = 1.0
    return CompositionScale(mean, spread, "standardised on the reference set")


def load_scale(source: str | Path) -> CompositionScale | None:
    """Return "cdvae"'s constants, None for "reference", or what a JSON file holds.

    The file has lists of 132 numbers under "mean" and "std". CDVAE's constants are shipped;
    DiffCSP, FlowMM and OMatG use the same.

    Args:
        source: "cdvae", "reference", or the file.

    Raises:
        ValueError: the file does not hold that.
        OSError: the file cannot be read.
    """
    if source == "reference":
        return None
    name = "CDVAE's constants" if source == "cdvae" else Path(source).name
    path = resources.files("crystal_fidelity") / SHIPPED if source == "cdvae" else Path(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mean, spread = (np.array(content[key], dtype=np.float64) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path}: give JSON with lists under "mean" and "std": {error}') from error
    if mean.shape != (COMPOSITION_WIDTH,) or spread.shape != (COMPOSITION_WIDTH,):
        raise ValueError(
            f"{path}: {mean.size} means and {spread.size} deviations; Magpie has "
            f"{COMPOSITION_WIDTH} of each"
        )
    if not np.isfinite(mean).all() or not (np.isfinite(spread) & (spread > 0)).all():
        raise ValueError(f"{path}: means must be finite and deviations positive")
    return CompositionScale(mean, spread, f"standardised with {name}")


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
    scale: str
    """How compositions were standardised."""

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
        label += self.scale
        left, right = len(self.precision_structure), len(self.recall_structure)
        failed = {"without fingerprints": (self.n_generated - left, self.n_reference - right)}
        sizes = {"n_generated": self.n_generated, "n_reference": self.n_reference}
        return [
            rate_score(name, value, n, label, details=failed, **sizes)
            for name, value, n in (
                ("coverage recall", self.recall, right),
                ("coverage precision", self.precision, self.n_generated),
            )
        ]


def _within(structure: Array, composition: Array) -> NDArray[np.bool_]:
    return (structure <= STRUCTURE_CUTOFF) & (composition <= COMPOSITION_CUTOFF)


def nearest(left: Array, right: Array) -> tuple[Array, Array]:
    """Return each row's distance to the nearest row of the other set, in chunks.

    Never more than CHUNK rows of the n x m table are in memory.

    Args:
        left: (n, d).
        right: (m, d).

    Returns:
        (n,) for `left`, (m,) for `right`.
    """
    of_left = np.empty(len(left))
    of_right = np.full(len(right), np.inf)
    for start in range(0, len(left), CHUNK):
        table = cdist(left[start : start + CHUNK], right)
        of_left[start : start + CHUNK] = table.min(axis=1)
        of_right = np.minimum(of_right, table.min(axis=0))
    return of_left, of_right


def coverage_of(
    generated: Array, reference: Array, scale: CompositionScale | None = None
) -> CoverageResult:
    """Return coverage from fingerprints; those with NaN in their structure part are failures.

    Args:
        generated: (n, 61 + 132).
        reference: (m, 61 + 132).
        scale: What compositions are standardised with; the reference set if None.

    Raises:
        ValueError: A set has no fingerprint at all.
    """
    left = generated[np.isfinite(generated[:, :STRUCTURE_WIDTH]).all(axis=1)]
    right = reference[np.isfinite(reference[:, :STRUCTURE_WIDTH]).all(axis=1)]
    if len(left) == 0 or len(right) == 0:
        raise ValueError(f"{len(left)} and {len(right)} structures have fingerprints: need both")
    precision_structure, recall_structure = nearest(
        left[:, :STRUCTURE_WIDTH], right[:, :STRUCTURE_WIDTH]
    )
    used = scale or scale_of(right[:, STRUCTURE_WIDTH:])
    precision_composition, recall_composition = nearest(
        used(left[:, STRUCTURE_WIDTH:]), used(right[:, STRUCTURE_WIDTH:])
    )
    return CoverageResult(
        recall_structure,
        recall_composition,
        precision_structure,
        precision_composition,
        len(generated),
        len(reference),
        used.name,
    )


def coverage(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    scale: str | Path = "cdvae",
    cache_folder: Path | None = None,
    workers: int = 1,
    on_progress: Progress = silent,
) -> CoverageResult:
    """Return coverage of two sets of structures; fingerprints are cached by content.

    Args:
        generated: Judged by precision.
        reference: Judged by recall.
        scale: What compositions are standardised with, see `load_scale`.
        cache_folder: Where fingerprints are kept; None is the default folder.
        workers: Processes.
        on_progress: Called with what is being done.

    Raises:
        ImportError: matminer is not installed.
        ValueError: See `coverage_of` and `load_scale`.

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197
    """
    chosen = load_scale(scale)
    left = fingerprints(generated, cache_folder, workers, on_progress)
    right = fingerprints(reference, cache_folder, workers, on_progress)
    return coverage_of(left, right, chosen)


def fingerprints(
    structures: Sequence[object],
    cache_folder: Path | None = None,
    workers: int = 1,
    on_progress: Progress = silent,
) -> Array:
    """Return fingerprints of structures, cached by content.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        cache_folder: Where they are kept; None is the default folder.
        workers: Processes.
        on_progress: Called with what is being done.

    Returns:
        (structures, 61 + 132), rows of NaN where they could not be made. Single NaN stand for
        Magpie properties that an element has none of; they are not imputed.

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
    identity = Identity(f"CrystalNN ops + Magpie as is, matminer {version}", digest, "none")

    def compute(crystals: Sequence[Crystal]) -> NDArray[np.float32]:
        return np.array(list(map_in_order(fingerprint, crystals, workers)), dtype=np.float32)

    rows = CachedRows(
        cache_folder,
        identity,
        WIDTH,
        compute,
        LIMITS,
        batch=BATCH * workers,
        on_progress=on_progress,
    )
    return rows(structures)[0]


def fingerprint(crystal: Crystal) -> Array:
    """Return the 61 + 132 numbers of one crystal, NaN if matminer cannot make them.

    Args:
        crystal: One crystal.
    """
    from pymatgen.core import Composition

    sites, elements = _featurizers()
    structure = to_pymatgen(crystal)
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    symbols = [element_symbol(z) for z in numbers.tolist()]
    composition = Composition(dict(zip(symbols, counts.tolist(), strict=True)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            per_site = [sites.featurize(structure, i) for i in range(len(crystal))]
            magpie = np.array(elements.featurize(composition), dtype=np.float64)
    except Exception:  # noqa: BLE001 - CrystalNN raises many kinds; any is a counted failure
        return np.full(WIDTH, np.nan)
    return np.concatenate([np.mean(per_site, axis=0), magpie])


@cache
def _featurizers() -> tuple[Any, Any]:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    elements = ElementProperty.from_preset("magpie", impute_nan=False)
    return CrystalNNFingerprint.from_preset("ops"), elements
