"""The paper's two studies of the metric, and distributions of several sets side by side.

Fig. 3: the distance of real crystals from themselves after noise, against its strength.
Fig. 4: the distance against the number of structures.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from crystal_fidelity.distances import densities
from crystal_fidelity.energies import EnergyModel, References, formation_energies
from crystal_fidelity.features import FeatureSet, Featurizer, require_same
from crystal_fidelity.frechet import (
    frechet_distance,
    frechet_error,
    gaussian,
    gaussian_distance,
    kernel_distance,
)
from crystal_fidelity.plots import Curve, curves, histogram
from crystal_fidelity.scores import Progress, silent
from crystal_fidelity.structures import Crystal, Entry, readable

MAX_DISPLACEMENT = 4.0
"""Å, standard deviation of each coordinate at level 1."""
MAX_STRAIN = 0.1
"""Standard deviation of each entry of the symmetric strain at level 1."""


@dataclass(frozen=True)
class NoisePoint:
    """One point of the noise curve."""

    level: float
    frechet: float | None
    """None where fewer than two structures have features: such noise leaves no distance."""
    error: float | None
    """Standard error from disjoint parts of the disturbed set; None for fewer than eight."""
    kernel: float | None
    n: int
    failed: int
    """Structures without features, such as colliding ones: they are not in the distance."""


def add_noise(
    crystal: Crystal,
    level: float,
    generator: np.random.Generator,
    *,
    displacement: float = MAX_DISPLACEMENT,
    strain: float = MAX_STRAIN,
) -> Crystal:
    """Displace every atom by a Gaussian and strain the cell by exp of a symmetric Gaussian matrix.

    Args:
        crystal: what to disturb.
        level: strength, 0 leaves the crystal as it is.
        generator: random numbers.
        displacement: Å per coordinate at level 1.
        strain: dimensionless, per entry of the symmetric strain at level 1.
    """
    from scipy.linalg import expm

    shift = generator.normal(0, 1, crystal.frac_coords.shape) * level * displacement
    raw = generator.normal(0, 1, (3, 3)) * level * strain
    frac = crystal.frac_coords + shift @ np.linalg.inv(crystal.lattice)
    lattice = crystal.lattice @ expm((raw + raw.T) / 2)
    return Crystal(lattice, frac % 1.0, crystal.atomic_numbers, crystal.name)


def noised(
    entries: Sequence[Entry],
    level: float,
    seed: int,
    *,
    displacement: float = MAX_DISPLACEMENT,
    strain: float = MAX_STRAIN,
) -> list[Crystal]:
    """Return all readable crystals at one noise level; the same seed gives the same directions.

    Args:
        entries: What to disturb.
        level: Strength, see `add_noise`.
        seed: Of the noise.
        displacement: Å per coordinate at level 1.
        strain: Dimensionless, per entry of the symmetric strain at level 1.
    """
    generator = np.random.default_rng(seed)
    return [
        add_noise(crystal, level, generator, displacement=displacement, strain=strain)
        for crystal in readable(entries)
    ]


def noise_curve(
    sets: Mapping[float, Sequence[Entry]],
    reference: Sequence[Entry],
    featurizer: Featurizer,
    on_progress: Progress = silent,
) -> list[NoisePoint]:
    """Return the distance of each set from the reference, in order of its level (Fig. 3).

    Args:
        sets: structures by noise level or diffusion step.
        reference: undisturbed structures, better others than those that were disturbed.
        featurizer: network.
        on_progress: told which level is computed.
    """
    target = featurizer.features(reference)
    points = []
    for level in sorted(sets):
        on_progress(f"level {level:g}")
        found = featurizer.features(sets[level])
        n, failed = len(found), len(found.failures)
        if n < 2:
            points.append(NoisePoint(level, None, None, None, n, failed))
            continue
        points.append(
            NoisePoint(
                level,
                frechet_distance(found.features, target.features),
                frechet_error(found.features, target.features),
                kernel_distance(found.features, target.features),
                n,
                failed,
            )
        )
    return points


def noise_plot(points: Sequence[NoisePoint], name: str, x_label: str) -> list[Markup]:
    """Return the curve and how many structures it stands on.

    Args:
        points: One per noise level.
        name: Of the distance.
        x_label: Of the axis.
    """
    levels = [point.level for point in points]
    known = {p.level: p.frechet for p in points if p.frechet is not None}
    errors = [p.error for p in points if p.level in known]
    curve = Curve(name, [*known], [*known.values()], errors)
    share = [point.failed / (point.n + point.failed) for point in points]
    lost = Curve("without features", levels, share)
    return [
        curves([curve], title=f"{name} against noise", x_label=x_label, y_label=name),
        curves(
            [lost],
            title="structures the network could not take",
            x_label=x_label,
            y_label="fraction",
        ),
    ]


@dataclass(frozen=True)
class SizePoint:
    """One point of the size curve: distance of n structures from the reference."""

    n: int
    mean: float
    """Over the random subsets."""
    spread: float
    """Standard deviation of the distance of one subset."""


def size_study(
    generated: FeatureSet,
    reference: FeatureSet,
    sizes: Sequence[int] | None = None,
    *,
    repeats: int = 5,
    seed: int = 0,
) -> list[SizePoint]:
    """Return the distance of random subsets against their size (Fig. 4).

    Subsets of a set of N overlap, which narrows their spread by √(1 − n/N); the deviation is
    freed of that, and NaN for the whole set, of which there is only one.

    Args:
        generated: Features to take subsets of.
        reference: Features by the same network.
        sizes: The n; without, they double up to the set from 64, or from N / 8 if N is small.
        repeats: Random subsets of each size.
        seed: Of the subsets.

    Raises:
        ValueError: A size is below 2 or above the set, or the features are of two networks.
    """
    require_same(generated.identity, reference.identity)
    whole = len(generated)
    if not sizes:
        first = 64 if whole >= 256 else max(2, whole // 8)
        sizes = [*(first * 2**k for k in range(20) if first * 2**k < whole), whole]
    if min(sizes) < 2 or max(sizes) > whole:
        raise ValueError(f"sizes {min(sizes)}..{max(sizes)}: give 2..{whole}")
    generator = np.random.default_rng(seed)
    target = gaussian(reference.features)
    points = []
    for n in sizes:
        parts = [generated.features[generator.permutation(whole)[:n]] for _ in range(repeats)]
        values = [gaussian_distance(gaussian(part), target) for part in parts]
        free = 1 - n / whole
        known = free > 0 and repeats > 1
        spread = float(np.std(values, ddof=1) / np.sqrt(free)) if known else float("nan")
        points.append(SizePoint(n, float(np.mean(values)), spread))
    return points


def extrapolated(points: Sequence[SizePoint]) -> float:
    """Return the distance at n → ∞ from a straight line in 1/n through the four largest sizes.

    Args:
        points: One per sample size.
    """
    used = sorted(points, key=lambda point: point.n)[-4:]
    slope_and_limit = np.polyfit([1 / point.n for point in used], [p.mean for p in used], 1)
    return float(slope_and_limit[1])


def size_plot(points: Mapping[str, Sequence[SizePoint]], name: str) -> Markup:
    """Return the curves of several sets on logarithmic axes.

    Args:
        points: By name of the set.
        name: Of the distance.
    """
    series = [
        Curve(label, [p.n for p in curve], [p.mean for p in curve], [p.spread for p in curve])
        for label, curve in points.items()
    ]
    return curves(
        series,
        title=f"{name} against sample size",
        x_label="structures",
        y_label=name,
        log_x=True,
        log_y=True,
    )


@dataclass(frozen=True)
class Distribution:
    """One property of several sets.

    Attributes:
        name: The property.
        unit: Its unit.
        values: Per set by its label, one per structure; NaN where there is none.
    """

    name: str
    unit: str
    values: Mapping[str, NDArray[np.float64]]


def distributions(
    sets: Mapping[str, Sequence[Entry]],
    model: EnergyModel | None = None,
    references: References | None = None,
) -> list[Distribution]:
    """Return densities and, given a model, energies of several sets (Figs 5, 6).

    Args:
        sets: Structures by label.
        model: What gives energies.
        references: Its elemental references; with them formation energies are returned.
    """
    found = {label: densities(entries) for label, entries in sets.items()}
    result = [Distribution("density", "g/cm³", found)]
    if model is not None:
        energies = {}
        for label, entries in sets.items():
            values = model.energies(entries)
            if references is not None:
                values = formation_energies(entries, values, references.potentials)
            energies[label] = values
        name = "formation energy" if references else "total energy"
        result.append(Distribution(name, "eV/atom", energies))
    return result


def distribution_plots(found: Sequence[Distribution]) -> list[Markup]:
    """Return a plot of each property, its sets side by side.

    Args:
        found: One per property.
    """
    return [
        histogram(list(d.values.items()), title=d.name, x_label=f"{d.name} / {d.unit}")
        for d in found
    ]


def level_of(path_stem: str) -> float:
    """Return the last number in a file's name, such as the step in `noised_t0250`.

    Args:
        path_stem: The name without its suffix.

    Raises:
        ValueError: There is none.
    """
    numbers = re.findall(r"\d+(?:\.\d+)?", path_stem)
    if not numbers:
        raise ValueError(f"{path_stem}: a noise level or step must be in the file's name")
    return float(numbers[-1])
