"""All chosen metrics of one set against another, in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.composition import composition_validity, composition_validity_score
from crystal_fidelity.coverage import SCALES, coverage
from crystal_fidelity.distances import EmdResult, density_emd, energy_emd, property_values
from crystal_fidelity.energies import load_references, model_energy_emd
from crystal_fidelity.featurizers import FeatureSet
from crystal_fidelity.frechet import frechet, kernel
from crystal_fidelity.matching import MatchProtocol, MatchResult, match_rate_best_of
from crystal_fidelity.metre import metre
from crystal_fidelity.models import (
    DISTANCE_NAMES,
    FeaturizerName,
    make_energy_model,
    make_featurizer,
)
from crystal_fidelity.reading import read_structures
from crystal_fidelity.scores import Score
from crystal_fidelity.sets import SunResult, novel, novelty_score, unique, uniqueness_score
from crystal_fidelity.structures import Entry, as_entries
from crystal_fidelity.symmetry import SpaceGroupResult, space_group_distance
from crystal_fidelity.validity import ValidityResult, structural_validity

Metric = Literal[
    "validity",
    "composition",
    "density",
    "energy",
    "frechet",
    "match",
    "metre",
    "coverage",
    "uniqueness",
    "novelty",
    "spacegroups",
    "sun",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Metric, ...] = ("validity", "density", "uniqueness", "spacegroups")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to compute and under which protocol."""

    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    energy: str = "chgnet"
    """Source of energies: "chgnet", an ASE calculator's "module:factory", or "file:KEY" for a
    number that came with the structures."""
    references: Path | None = None
    """Elemental references of an ASE calculator; CHGNet's are shipped."""
    featurizer: FeaturizerName = "chgnet"
    weights: Path | None = None
    """Weights of a featurizer that has none of its own."""
    cache: Path | None = None
    known: Path | None = None
    """Structures that novelty is judged against; the reference set if None."""
    hull_key: str = "e_above_hull"
    """Number of the generated structures that S.U.N. reads, eV/atom."""
    coverage_scale: str = "cdvae"
    """What coverage standardises compositions with: CDVAE's constants, "reference" for the
    reference set's own means and deviations, or a JSON file."""
    match_protocol: MatchProtocol = "all"
    best_of: int = 1
    """Consecutive generated candidates per reference."""
    workers: int = 1
    timeout_s: float | None = None
    seed: int = 0


@dataclass
class Comparison:
    """All results; `scores` is the flat view, the rest is what plots and tables need."""

    scores: list[Score] = field(default_factory=list)
    validity: ValidityResult | None = None
    density: EmdResult | None = None
    energy: EmdResult | None = None
    match: MatchResult | None = None
    balanced: NDArray[np.bool_] | None = None
    """Which compositions are charge-balanced."""
    above_hull: NDArray[np.float64] | None = None
    """eV/atom, NaN unknown."""
    unique: NDArray[np.bool_] | None = None
    novel: NDArray[np.bool_] | None = None
    groups: SpaceGroupResult | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    """Metrics the sets do not allow, and why; the others are not lost for it."""


@dataclass(frozen=True)
class _Task:
    """What every step needs."""

    left: list[Entry]
    right: list[Entry]
    settings: Settings
    on_progress: Progress
    result: Comparison


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """Return the metrics named in a comma-separated list, or every one for "all".

    Raises:
        ValueError: a name is not a metric.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return METRICS
    chosen = [metric for metric in METRICS if metric in names]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not chosen:
        listed = ", ".join(unknown) or "(none)"
        raise ValueError(f"metrics {listed}: choose from {', '.join(METRICS)}, or all")
    return tuple(chosen)


def compare(
    generated: Sequence[object],
    reference: Sequence[object],
    settings: Settings = Settings(),
    on_progress: Progress = lambda _stage: None,
) -> Comparison:
    """Compute the chosen metrics; one that the sets do not allow is named in `not_computed`.

    Raises:
        ValueError: a set is empty, or allows none of the metrics; for matching, the lengths do
            not fit.
        FileNotFoundError: a file that the settings name is not there.
        ImportError: the one chosen metric needs an extra that is not installed.
    """
    result = Comparison()
    task = _Task(as_entries(generated), as_entries(reference), settings, on_progress, result)
    if not task.left or not task.right:
        raise ValueError(
            f"{len(task.left)} generated and {len(task.right)} reference structures: "
            "each set needs at least one"
        )
    _check_files(settings)  # these two before hours of other metrics
    if "match" in settings.metrics:
        split_candidates(task.left, len(task.right), settings.best_of)
    steps: dict[Metric, Callable[[_Task], None]] = {
        "validity": _add_validity,
        "composition": _add_composition,
        "density": _add_density,
        "energy": _add_energy,
        "frechet": _add_frechet,
        "match": _add_match,
        "metre": _add_metre,
        "coverage": _add_coverage,
        "uniqueness": _add_uniqueness,
        "novelty": _add_novelty,
        "spacegroups": _add_space_groups,
        "sun": _add_sun,
    }
    for metric in settings.metrics:
        on_progress(metric)
        try:
            steps[metric](task)
        except (ValueError, KeyError, ImportError) as error:
            if len(settings.metrics) == 1:
                raise
            result.not_computed[metric] = str(error.args[0])
    if len(result.not_computed) == len(settings.metrics):
        raise ValueError("; ".join(f"{k}: {v}" for k, v in result.not_computed.items()))
    return result


def _check_files(settings: Settings) -> None:
    scale = settings.coverage_scale
    named = (
        ("known", settings.known),
        ("weights", settings.weights),
        ("references", settings.references),
        ("coverage-scale", None if scale in SCALES else Path(scale)),
    )
    for option, path in named:
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path}: no such file; it was given as --{option}")


def _add_validity(task: _Task) -> None:
    result = task.result.validity = structural_validity(task.left)
    real = structural_validity(task.right).rate
    n = len(task.right)
    task.result.scores += [replace(score, real=real, n_reference=n) for score in result.scores()]


def _add_composition(task: _Task) -> None:
    real = composition_validity_score(task.right).value
    score = composition_validity_score(task.left)
    task.result.balanced = composition_validity(task.left)
    task.result.scores.append(replace(score, real=real, n_reference=len(task.right)))


def _add_density(task: _Task) -> None:
    task.result.density = density_emd(task.left, task.right, seed=task.settings.seed)
    task.result.scores += task.result.density.scores()


def _add_energy(task: _Task) -> None:
    settings = task.settings
    if settings.energy.startswith("file:"):
        key = settings.energy.removeprefix("file:")
        result = energy_emd(task.left, task.right, key=key, seed=settings.seed)
    else:
        model = make_energy_model(
            settings.energy, cache=settings.cache, on_progress=task.on_progress
        )
        shipped = settings.energy == "chgnet" or settings.references
        references = load_references(settings.references) if shipped else None
        result = model_energy_emd(
            task.left, task.right, model, references=references, seed=settings.seed
        )
    task.result.energy = result
    task.result.scores += result.scores()


def _add_frechet(task: _Task) -> None:
    settings = task.settings
    featurizer = make_featurizer(
        settings.featurizer,
        weights=settings.weights,
        cache=settings.cache,
        on_progress=task.on_progress,
    )
    sets = featurizer.features(task.left), featurizer.features(task.right)
    task.on_progress("Fréchet and kernel distances")
    name = DISTANCE_NAMES[settings.featurizer]
    task.result.scores += feature_scores(*sets, name=name, settings=settings)


def _add_metre(task: _Task) -> None:
    task.result.scores += metre(task.left, task.right, workers=task.settings.workers).scores()


def _add_coverage(task: _Task) -> None:
    settings = task.settings
    task.result.scores += coverage(
        task.left,
        task.right,
        scale=settings.coverage_scale,
        cache_folder=settings.cache,
        workers=settings.workers,
        on_progress=task.on_progress,
    ).scores()


def _add_uniqueness(task: _Task) -> None:
    task.result.unique = unique(task.left, workers=task.settings.workers)
    task.result.scores.append(uniqueness_score(task.result.unique))


def _known(task: _Task) -> list[Entry]:
    path = task.settings.known
    return read_structures(path, workers=task.settings.workers) if path else task.right


def _add_novelty(task: _Task) -> None:
    known = _known(task)
    task.result.novel = novel(task.left, known, workers=task.settings.workers)
    task.result.scores.append(novelty_score(task.result.novel, len(known)))


def _add_space_groups(task: _Task) -> None:
    settings = task.settings
    task.result.groups = space_group_distance(
        task.left, task.right, workers=settings.workers, seed=settings.seed
    )
    task.result.scores += task.result.groups.scores()


def _add_sun(task: _Task) -> None:
    energies = property_values(task.left, task.settings.hull_key)
    result = task.result
    result.above_hull = energies
    if result.unique is None:
        result.unique = unique(task.left, workers=task.settings.workers)
    if result.novel is None:
        result.novel = novel(task.left, _known(task), workers=task.settings.workers)
    result.scores += SunResult(result.unique, result.novel, energies).scores()


def feature_scores(
    generated: FeatureSet, reference: FeatureSet, *, name: str, settings: Settings
) -> list[Score]:
    """Return the Fréchet distance and the kernel distance of two feature sets.

    Raises:
        ValueError: see `frechet.frechet`.
    """
    scores = frechet(generated, reference, name=name, seed=settings.seed).scores()
    companion = name.replace("Fréchet", "kernel").replace(" (FAD)", "")
    return scores + kernel(generated, reference, name=companion, seed=settings.seed).scores()


def _add_match(task: _Task) -> None:
    settings = task.settings
    task.result.match = match_rate_best_of(
        split_candidates(task.left, len(task.right), settings.best_of),
        task.right,
        protocol=settings.match_protocol,
        baseline=True,
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        seed=settings.seed,
    )
    task.result.scores += task.result.match.scores()


def split_candidates(
    generated: Sequence[object], n_reference: int, best_of: int
) -> list[Sequence[object]]:
    """Turn a flat list of K consecutive candidates per reference into K aligned sets.

    Raises:
        ValueError: the length is not K times the number of references.
    """
    if best_of < 1:
        raise ValueError(f"best-of {best_of}: give 1 or more")
    if len(generated) != best_of * n_reference:
        raise ValueError(
            f"{len(generated)} generated structures are not {best_of} x {n_reference}: matching "
            "pairs the i-th with the i-th; give --best-of K with K consecutive candidates each"
        )
    return [generated[k::best_of] for k in range(best_of)]
