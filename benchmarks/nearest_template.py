"""The substitution baseline: put a composition's elements into the nearest known crystal.

For every wanted composition, the training crystal with the same number of atoms and the same
multiset of element counts whose elements are nearest by descriptor distance; its volume is
scaled by the ratio of those expected of the two compositions.
"""

from collections import Counter, defaultdict

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from crystorus.data.store import CrystalStore
from crystorus.diffusion.cell_prior import fit_cell_statistics
from crystorus.geometry import Crystals
from crystorus.networks.embedding import element_descriptors


def pattern(numbers: list[int]) -> tuple[int, ...]:
    """Return the multiset of element counts: Fe2O3 and Al2S3 share one."""
    return tuple(sorted(Counter(numbers).values()))


def assign(wanted: list[int], template: list[int], distance: np.ndarray) -> tuple[float, dict]:
    """Map the template's elements to the wanted ones of equal count at the least distance."""
    want, have = Counter(wanted), Counter(template)
    a, b = sorted(want), sorted(have)
    cost = np.array([[distance[x, y] if want[x] == have[y] else 1e6 for y in b] for x in a])
    rows, columns = linear_sum_assignment(cost)
    total = sum(cost[r, c] * want[a[r]] for r, c in zip(rows, columns, strict=True))
    return total / len(wanted), {b[c]: a[r] for r, c in zip(rows, columns, strict=True)}


def substitute(wanted: Crystals, library: CrystalStore) -> list[Crystals | None]:
    """Return the substituted template of every composition, None where no pattern fits."""
    descriptors = element_descriptors().numpy()
    distance = np.linalg.norm(descriptors[:, None] - descriptors[None], axis=-1)
    known = library.select(range(len(library)), dtype=torch.float64)
    statistics = fit_cell_statistics(known)
    index: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
    start = 0
    numbers = known.atomic_numbers.tolist()
    for n, size in enumerate(known.n_atoms.tolist()):
        row = numbers[start : start + size]
        index[pattern(row)].append((n, row))
        start += size
    found: list[Crystals | None] = []
    for crystal in wanted.split():
        want = crystal.atomic_numbers.tolist()
        options = [(*assign(want, row, distance), n) for n, row in index[pattern(want)]]
        if not options:
            found.append(None)
            continue
        _, change, n = min(options, key=lambda option: option[0])
        template = known.select([n])
        new = torch.tensor([change[z] for z in template.atomic_numbers.tolist()])
        result = Crystals(template.lattice, template.frac_coords, new, template.n_atoms)
        change = statistics.expected_log_volume(result) - statistics.expected_log_volume(template)
        scale = (change / 3).exp()
        found.append(
            result.with_geometry(result.lattice * scale[:, None, None], result.frac_coords)
        )
    return found
