"""All chosen metrics of one set against another, in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from crystal_fidelity.composition import composition_validity_score
from crystal_fidelity.distances import EmdResult, density_emd, energy_emd
from crystal_fidelity.energies import load_references, model_energy_emd
from crystal_fidelity.featurizers import FeatureSet
from crystal_fidelity.frechet import frechet, kernel
from crystal_fidelity.matching import MatchProtocol, MatchResult, match_rate_best_of
from crystal_fidelity.models import (
    DISTANCE_NAMES,
    FeaturizerName,
    make_energy_model,
    make_featurizer,
)
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Entry, as_entries
from crystal_fidelity.validity import ValidityResult, structural_validity

Metric = Literal["validity", "composition", "density", "energy", "frechet", "match"]
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Metric, ...] = ("validity", "density")
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
    match_protocol: MatchProtocol = "all"
    best_of: int = 1
    """Consecutive generated candidates per reference."""
    workers: int = 1
    timeout_s: float | None = None
    seed: int = 0


@dataclass
class Comparison:
    """All results; `scores` is the flat view, the rest is what plots and tables need."""

    scores: list[Score]
    validity: ValidityResult | None = None
    density: EmdResult | None = None
    energy: EmdResult | None = None
    match: MatchResult | None = None


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
    """Compute the chosen metrics.

    Raises:
        ValueError: a set is empty, or does not fit the metric.
    """
    left, right = as_entries(generated), as_entries(reference)
    result = Comparison([])
    steps: dict[Metric, Callable[[Comparison, list[Entry], list[Entry], Settings, Progress], None]]
    steps = {
        "validity": _add_validity,
        "composition": _add_composition,
        "density": _add_density,
        "energy": _add_energy,
        "frechet": _add_frechet,
        "match": _add_match,
    }
    for metric in settings.metrics:
        on_progress(metric)
        steps[metric](result, left, right, settings, on_progress)
    return result


def _add_validity(
    result: Comparison, left: list[Entry], right: list[Entry], _s: Settings, _p: Progress
) -> None:
    result.validity = structural_validity(left)
    real = structural_validity(right).rate
    result.scores += [
        replace(score, real=real, n_reference=len(right)) for score in result.validity.scores()
    ]


def _add_composition(
    result: Comparison, left: list[Entry], right: list[Entry], _s: Settings, _p: Progress
) -> None:
    real = composition_validity_score(right).value
    score = composition_validity_score(left)
    result.scores.append(replace(score, real=real, n_reference=len(right)))


def _add_density(
    result: Comparison, left: list[Entry], right: list[Entry], settings: Settings, _p: Progress
) -> None:
    result.density = density_emd(left, right, seed=settings.seed)
    result.scores += result.density.scores()


def _add_energy(
    result: Comparison,
    left: list[Entry],
    right: list[Entry],
    settings: Settings,
    on_progress: Progress,
) -> None:
    if settings.energy.startswith("file:"):
        key = settings.energy.removeprefix("file:")
        result.energy = energy_emd(left, right, key=key, seed=settings.seed)
    else:
        model = make_energy_model(settings.energy, cache=settings.cache, on_progress=on_progress)
        shipped = settings.energy == "chgnet" or settings.references
        references = load_references(settings.references) if shipped else None
        result.energy = model_energy_emd(
            left, right, model, references=references, seed=settings.seed
        )
    result.scores += result.energy.scores()


def _add_frechet(
    result: Comparison,
    left: list[Entry],
    right: list[Entry],
    settings: Settings,
    on_progress: Progress,
) -> None:
    featurizer = make_featurizer(
        settings.featurizer,
        weights=settings.weights,
        cache=settings.cache,
        on_progress=on_progress,
    )
    sets = featurizer.features(left), featurizer.features(right)
    on_progress("Fréchet and kernel distances")
    result.scores += feature_scores(
        *sets, name=DISTANCE_NAMES[settings.featurizer], settings=settings
    )


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


def _add_match(
    result: Comparison, left: list[Entry], right: list[Entry], settings: Settings, _p: Progress
) -> None:
    result.match = match_rate_best_of(
        split_candidates(left, len(right), settings.best_of),
        right,
        protocol=settings.match_protocol,
        baseline=True,
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        seed=settings.seed,
    )
    result.scores += result.match.scores()


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
