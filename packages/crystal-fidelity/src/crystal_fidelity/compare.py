"""All chosen metrics of one set against another, in one call."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.composition import composition_validity, composition_validity_score
from crystal_fidelity.coverage import coverage
from crystal_fidelity.distances import (
    EmdResult,
    density_emd,
    energies_per_atom,
    energy_emd,
    property_values,
)
from crystal_fidelity.energies import (
    above_hull,
    load_references,
    make_energy_model,
    model_energy_emd,
)
from crystal_fidelity.features import DISTANCE_NAMES, FeatureSet, make_featurizer
from crystal_fidelity.frechet import frechet, kernel
from crystal_fidelity.matching import (
    MatchResult,
    PrototypeResult,
    match_rate_best_of,
    metre,
    novel,
    novelty_score,
    prototypes,
    sun_scores,
    unique,
    uniqueness_score,
    valid_pairs,
)
from crystal_fidelity.options import METRICS, Metric, Settings
from crystal_fidelity.reading import read_structures
from crystal_fidelity.scores import Progress, Score, silent
from crystal_fidelity.structures import Entry, as_entries
from crystal_fidelity.symmetry import SpaceGroupResult, space_group_distance
from crystal_fidelity.validity import ValidityResult, structural_validity


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
    prototypes: PrototypeResult | None = None
    groups: SpaceGroupResult | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    """Metrics the sets do not allow, and why; the others are not lost for it."""


def compare(
    generated: Sequence[object],
    reference: Sequence[object],
    settings: Settings = Settings(),
    on_progress: Progress = silent,
) -> Comparison:
    """Compute the chosen metrics; one that the sets do not allow is named in `not_computed`.

    Args:
        generated: Crystals, read failures, pymatgen structures or ASE atoms.
        reference: The same.
        settings: What to compute and how.
        on_progress: Called with the name of each stage.

    Returns:
        Every score, and what plots and tables need.

    Raises:
        ValueError: A set is empty, or allows none of the metrics; for matching, unless all metrics
            are wanted, the lengths do not fit.
        FileNotFoundError: A file that the settings name is not there.
        ImportError: The one chosen metric needs an extra that is not installed.
    """
    left, right, result = as_entries(generated), as_entries(reference), Comparison()
    if not left or not right:
        raise ValueError(
            f"{len(left)} generated and {len(right)} reference structures: "
            "each set needs at least one"
        )
    # Before hours of other metrics:
    scale = settings.coverage_scale
    for option, path in (
        ("known", settings.known),
        ("weights", settings.weights),
        ("references", settings.references),
        ("hull-references", settings.hull_references),
        ("coverage-scale", None if scale in ("cdvae", "reference") else Path(scale)),
    ):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path}: no such file; it was given as --{option}")
    if "match" in settings.metrics and set(settings.metrics) != set(METRICS):  # asked for by name
        split_candidates(left, len(right), settings.best_of)
    for metric in settings.metrics:
        on_progress(metric)
        try:
            result.scores += _scores(metric, left, right, settings, result, on_progress)
        except (ValueError, KeyError, ImportError) as error:
            if len(settings.metrics) == 1:
                raise
            result.not_computed[metric] = str(error.args[0])
    if result.not_computed.keys() >= set(settings.metrics):
        raise ValueError("; ".join(f"{k}: {v}" for k, v in result.not_computed.items()))
    return result


def _scores(  # noqa: C901 - one case per metric
    metric: Metric,
    left: list[Entry],
    right: list[Entry],
    settings: Settings,
    result: Comparison,
    on_progress: Progress,
) -> list[Score]:
    """Compute one metric, keep what plots and tables need in `result`, and return its rows."""
    seed, workers = settings.seed, settings.workers
    match metric:
        case "validity":
            result.validity = structural_validity(left)
            real, n = structural_validity(right).rate, len(right)
            return [replace(s, real=real, n_reference=n) for s in result.validity.scores()]
        case "composition":
            real = composition_validity_score(right).value
            score = composition_validity_score(left)
            result.balanced = composition_validity(left)
            return [replace(score, real=real, n_reference=len(right))]
        case "density":
            result.density = density_emd(left, right, seed=seed)
            return result.density.scores()
        case "energy":
            if settings.energy.startswith("file:"):
                key = settings.energy.removeprefix("file:")
                result.energy = energy_emd(left, right, key=key, seed=seed)
            else:
                model = make_energy_model(
                    settings.energy, cache=settings.cache, on_progress=on_progress
                )
                shipped = settings.energy == "chgnet" or settings.references
                references = load_references(settings.references) if shipped else None
                result.energy = model_energy_emd(
                    left, right, model, references=references, seed=seed
                )
            return result.energy.scores()
        case "frechet":
            network = make_featurizer(
                settings.featurizer,
                weights=settings.weights,
                cache=settings.cache,
                on_progress=on_progress,
            )
            sets = network.features(left), network.features(right)
            on_progress("Fréchet and kernel distances")
            return feature_scores(*sets, name=DISTANCE_NAMES[settings.featurizer], seed=seed)
        case "match":
            candidates = split_candidates(left, len(right), settings.best_of)
            result.match = match_rate_best_of(
                candidates,
                right,
                baseline=True,
                workers=workers,
                timeout_s=settings.timeout_s,
                seed=seed,
            )
            rows = result.match.scores()
            try:
                valid = result.match.restricted(valid_pairs(candidates, right))
            except ImportError as error:
                result.not_computed["match by the protocol valid"] = str(error.args[0])
                return rows
            return rows + valid.scores()
        case "metre":
            return metre(left, right, candidates=settings.best_of, workers=workers).scores()
        case "coverage":
            return coverage(
                left,
                right,
                scale=settings.coverage_scale,
                cache_folder=settings.cache,
                workers=workers,
                on_progress=on_progress,
            ).scores()
        case "uniqueness":
            result.unique = unique(left, workers=workers)
            return [uniqueness_score(result.unique)]
        case "novelty":
            known, result.novel = _novel(left, right, settings, result)
            return [novelty_score(result.novel, len(known))]
        case "prototypes":
            known, result.novel = _novel(left, right, settings, result)
            result.prototypes = prototypes(left, known, result.novel, workers=workers)
            return result.prototypes.scores()
        case "spacegroups":
            result.groups = space_group_distance(left, right, workers=workers, seed=seed)
            return result.groups.scores()
        case "sun":
            result.above_hull, how = _above_hull(left, settings, on_progress)
            if result.unique is None:
                result.unique = unique(left, workers=workers)
            _, result.novel = _novel(left, right, settings, result)
            return sun_scores(result.unique, result.novel, result.above_hull, how)


def _novel(
    left: list[Entry], right: list[Entry], settings: Settings, result: Comparison
) -> tuple[list[Entry], NDArray[np.bool_]]:
    """Return what is known and which structures are none of it, once for all metrics."""
    path, workers = settings.known, settings.workers
    known = read_structures(path, workers=workers) if path else right
    return known, novel(left, known, workers=workers) if result.novel is None else result.novel


def _above_hull(
    left: list[Entry], settings: Settings, on_progress: Progress
) -> tuple[NDArray[np.float64], str]:
    """Return energies above hull, and where they are from."""
    if settings.hull_references is None:
        return property_values(left, settings.hull_key), f"{settings.hull_key} of the file"
    phases = read_structures(settings.hull_references, workers=settings.workers)
    if settings.energy.startswith("file:"):
        key = settings.energy.removeprefix("file:")
        (made, name), (known, _) = (energies_per_atom(side, key) for side in (left, phases))
        energies = [made, known]
    else:
        model = make_energy_model(settings.energy, cache=settings.cache, on_progress=on_progress)
        energies, name = [model.energies(side) for side in (left, phases)], str(model.identity)
    how = f"{name}, structures as they are, hull of {len(phases)} phases"
    return above_hull(left, energies[0], phases, energies[1]), how


def feature_scores(
    generated: FeatureSet, reference: FeatureSet, *, name: str, seed: int = 0
) -> list[Score]:
    """Return the Fréchet distance and the kernel distance of two feature sets.

    Args:
        generated: Features of the generated set.
        reference: Features of the reference set, by the same network.
        name: Of the Fréchet distance.
        seed: Of the random parts that give floor, correction and error.

    Raises:
        ValueError: See `frechet.frechet`.
    """
    scores = frechet(generated, reference, name=name, seed=seed).scores()
    companion = name.replace("Fréchet", "kernel").replace(" (FAD)", "")
    return scores + kernel(generated, reference, name=companion, seed=seed).scores()


def split_candidates(
    generated: Sequence[object], n_reference: int, best_of: int
) -> list[Sequence[object]]:
    """Turn a flat list of K consecutive candidates per reference into K aligned sets.

    Args:
        generated: K structures for the first reference, K for the second, and so on.
        n_reference: How many references there are.
        best_of: K.

    Raises:
        ValueError: The length is not K times the number of references.
    """
    if best_of < 1:
        raise ValueError(f"best-of {best_of}: give 1 or more")
    if len(generated) != best_of * n_reference:
        raise ValueError(
            f"{len(generated)} generated structures and {n_reference} references: matching pairs "
            f"the i-th with the i-th and needs {best_of * n_reference}; give --best-of K for K "
            "consecutive candidates of each reference, or the metric metre for unordered sets"
        )
    return [generated[k::best_of] for k in range(best_of)]
