"""One number with everything that makes it comparable: protocol, n, noise floor, standard error."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Better = Literal["higher", "lower", ""]
"""Which way is good; empty where neither is, or where it depends."""
Progress = Callable[[str], None]
"""Called with the name of the stage that begins."""
Indices = NDArray[np.intp]
PARTS = 4
PARTITIONS = 8
FLOOR_SPLITS = 20


def silent(_stage: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Score:
    """A row of the table: one number with all that makes it comparable.

    Examples:
        >>> from ase.build import bulk
        >>> from crystal_fidelity import structural_validity
        >>> score = structural_validity([bulk("Cu")]).scores()[0]
        >>> score.name, score.value, score.n_generated
        ('validity', 1.0, 1)
        >>> score.protocol
        'contacts >= 0.5 Å with-self-images, volume >= 0.1 Å³'
    """

    name: str
    """Of the metric."""
    value: float
    """In `unit`; a rate is a fraction, 0 to 1."""
    unit: str = ""
    """Empty for a number without one."""
    n_generated: int = 0
    """Generated structures that were scored."""
    n_reference: int | None = None
    """Reference structures; None where the metric needs none."""
    protocol: str = ""
    """How it was determined: thresholds, tolerances, denominators."""
    real: float | None = None
    """What real data score: real against real at this n (the noise floor of a distance), or the
    reference set's own rate; None where it has no meaning."""
    uncertainty: float | None = None
    """One standard error."""
    rate: bool = False
    """A fraction of structures, shown in per cent."""
    better: Better = ""
    """Which way is good: "higher", "lower", or empty where neither is."""
    details: Mapping[str, object] = field(default_factory=dict)
    """Other numbers, for JSON."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def rate_score(
    name: str,
    rate: float,
    n: int,
    protocol: str,
    *,
    n_generated: int | None = None,
    n_reference: int | None = None,
    details: Mapping[str, object] | None = None,
) -> Score:
    """Return a fraction of structures, higher being better, with Wilson's error.

    Args:
        name: Of the metric.
        rate: The fraction, 0 to 1.
        n: Structures that it is a fraction of.
        protocol: How it was determined.
        n_generated: Generated structures, where these are not `n`.
        n_reference: Reference structures, where there are some.
        details: Other numbers for JSON.
    """
    return Score(
        name,
        rate,
        n_generated=n if n_generated is None else n_generated,
        n_reference=n_reference,
        protocol=protocol,
        uncertainty=rate_error(rate, n),
        rate=True,
        better="higher",
        details=details or {},
    )


def rate_error(rate: float, n: int) -> float:
    """Return the standard error of a rate: half the width of Wilson's interval at one deviation.

    √(p (1 − p) / n) would call a rate of 0 or 1 exact, whatever n.

    Args:
        rate: 0 to 1.
        n: Structures that it is a fraction of.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953
    """
    return sqrt(rate * (1 - rate) / n + 1 / (4 * n * n)) / (1 + 1 / n)


def part_error(
    n: int, distance: Callable[[Indices], float], *, seed: int = 0, partitions: int = PARTITIONS
) -> float | None:
    """Return the standard error of a distance from disjoint parts of the generated set.

    A bootstrap repeats structures, which doubles a distance that is small and biased; parts do
    not. The variance of a part is that of the whole times the number of parts. The root mean square
    over several ways of parting: four values alone tell it to 40 %.

    Args:
        n: Structures in the generated set.
        distance: Distance of the structures with these indices from the reference.
        seed: Of the parting.
        partitions: Ways of parting.

    Returns:
        The error in the unit of the distance, None for fewer than eight structures.
    """
    if n < 2 * PARTS:
        return None
    generator = np.random.default_rng(seed)
    variances = []
    for _ in range(partitions):
        order = generator.permutation(n)
        values = [distance(order[k::PARTS]) for k in range(PARTS)]
        variances.append(np.var(values, ddof=1) / PARTS)
    return float(np.sqrt(np.mean(variances)))


def noise_floor(
    n_reference: int,
    n_generated: int,
    distance: Callable[[Indices, Indices], float],
    *,
    seed: int | np.random.Generator = 0,
    splits: int = FLOOR_SPLITS,
    least: int = 1,
) -> tuple[float, int]:
    """Return the mean distance of two disjoint random parts of the reference: real against real.

    Args:
        n_reference: Structures in the reference set.
        n_generated: Size wanted of the first part; the second one is the rest.
        distance: Of the reference structures with these indices.
        seed: Of the splits.
        splits: How many.
        least: Smallest part that has a distance.

    Returns:
        The mean, and the size of the first part, at most half the reference; NaN and 0 where that
        is below `least`.
    """
    size = min(n_generated, n_reference // 2)
    if size < least:
        return float("nan"), 0
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(n_reference) for _ in range(splits))
    return float(np.mean([distance(order[:size], order[size:]) for order in orders])), size
