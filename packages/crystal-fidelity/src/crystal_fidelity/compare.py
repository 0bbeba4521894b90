"""All chosen metrics of one set against another, in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from crystal_fidelity.distances import EmdResult, density_emd, energy_emd
from crystal_fidelity.matching import MatchProtocol, MatchResult, match_rate_best_of
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import as_entries
from crystal_fidelity.validity import ValidityResult, structural_validity

Metric = Literal["validity", "composition", "density", "energy", "match"]
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Metric, ...] = ("validity", "density")


@dataclass(frozen=True)
class Settings:
    """What to compute and under which protocol."""

    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    energy_key: str = "formation_energy_per_atom"
    """Property of the files the energy EMD compares."""
    match_protocol: MatchProtocol = "all"
    best_of: int = 1
    """Consecutive generated candidates per reference."""
    workers: int = 1
    timeout_s: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """All results; `scores` is the flat view."""

    scores: tuple[Score, ...]
    validity: ValidityResult | None = None
    density: EmdResult | None = None
    energy: EmdResult | None = None
    match: MatchResult | None = None


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """Return the metrics named in a comma-separated list.

    Raises:
        ValueError: a name is not a metric.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    chosen = [metric for metric in METRICS if metric in names]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not chosen:
        raise ValueError(
            f"metrics {', '.join(unknown) or '(none)'}: choose from {', '.join(METRICS)}"
        )
    return tuple(chosen)


def compare(
    generated: Sequence[object],
    reference: Sequence[object],
    settings: Settings = Settings(),
    on_progress: Callable[[str], None] = lambda _stage: None,
) -> Comparison:
    """Compute the chosen metrics.

    Raises:
        ValueError: a set is empty, or does not fit the metric.
    """
    left, right = as_entries(generated), as_entries(reference)
    scores: list[Score] = []
    validity = density = energy = match = None
    if "validity" in settings.metrics:
        on_progress("validity")
        validity = structural_validity(left)
        real = structural_validity(right).rate
        scores += [replace(s, real=real, n_reference=len(right)) for s in validity.scores()]
    if "composition" in settings.metrics:
        from crystal_fidelity.composition import composition_validity_score

        on_progress("composition validity")
        real = composition_validity_score(right).value
        score = composition_validity_score(left)
        scores.append(replace(score, real=real, n_reference=len(right)))
    if "density" in settings.metrics:
        on_progress("density EMD")
        density = density_emd(left, right, seed=settings.seed)
        scores += density.scores()
    if "energy" in settings.metrics:
        on_progress("energy EMD")
        energy = energy_emd(left, right, key=settings.energy_key, seed=settings.seed)
        scores += energy.scores()
    if "match" in settings.metrics:
        on_progress("match rate")
        match = match_rate_best_of(
            split_candidates(left, len(right), settings.best_of),
            right,
            protocol=settings.match_protocol,
            baseline=True,
            workers=settings.workers,
            timeout_s=settings.timeout_s,
            seed=settings.seed,
        )
        scores += match.scores()
    return Comparison(tuple(scores), validity, density, energy, match)


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
