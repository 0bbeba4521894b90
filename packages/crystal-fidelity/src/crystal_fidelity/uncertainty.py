"""Standard errors of distances, from disjoint parts of the generated set.

A bootstrap repeats structures, which doubles a distance that is small and biased; parts do not.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

PARTS = 4
PARTITIONS = 8
Indices = NDArray[np.intp]


def part_error(
    n: int, distance: Callable[[Indices], float], *, seed: int = 0, partitions: int = PARTITIONS
) -> float | None:
    """Return the standard error of a distance of n structures, None for fewer than eight.

    The variance of a part is that of the whole times the number of parts. The root mean square
    over several ways of parting: four values alone tell it to 40 %.

    Args:
        n: structures in the generated set.
        distance: distance of the structures with these indices from the reference.
        seed: of the parting.
        partitions: ways of parting.
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
