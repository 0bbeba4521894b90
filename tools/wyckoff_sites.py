"""Find the Wyckoff positions of all 230 space groups from their operations alone.

    python tools/wyckoff_sites.py src/crystorus/geometry/wyckoff.csv     # some minutes

Every position without freedom lies on multiples of 1/24 of the standard primitive cell, and every
line and plane of sites passes through such a point along the fixed space of one operation that
fixes the point. So all grid points are tried, and from each a point in general place on the fixed
space of each of its operations. Of each point the stabiliser gives the site (see
`crystorus.geometry.space_groups`), and the images of a site under the group are one position.
There are 1 731 of them (International Tables A, 2016).
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from crystorus.geometry.space_groups import N_GROUPS, operations

GRID = np.array(list(itertools.product(range(24), repeat=3))) / 24
SHIFTS = np.array(list(itertools.product(range(-2, 3), repeat=3)), dtype=float)


def site_of(rotations, translations, point):
    """Return P and c of the site of a point, and how many operations fix it."""
    images = rotations @ point + translations
    whole = np.rint(point - images)
    stays = np.abs(images + whole - point).max(1) < 1e-6
    return rotations[stays].mean(0), (translations + whole)[stays].mean(0), int(stays.sum())


def key_of(projector, centre):
    """Return numbers that two sites share exactly if they are one up to a lattice vector.

    Centres that differ by (I - P) n are of one site: the shortest is taken, of several the first.
    """
    centres = np.round(centre + SHIFTS @ (np.eye(3) - projector).T, 5) + 0.0
    lengths = np.round((centres**2).sum(1), 4)
    shortest = centres[np.lexsort((*centres.T[::-1], lengths))[0]]
    return (*(np.round(projector, 4).ravel() + 0.0), *shortest)


def positions_of(number):
    """Return (multiplicity, freedom, P, c) of every Wyckoff position of a space group."""
    rotations, translations = operations(number)
    random = np.random.default_rng(0)
    found, seen = {}, set()

    def add(point):
        projector, centre, fixed = site_of(rotations, translations, point)
        if key_of(projector, centre) in seen:
            return
        images = set()
        for rotation, translation in zip(rotations, translations, strict=True):
            turned = rotation @ projector @ np.linalg.inv(rotation)
            moved = (np.eye(3) - turned) @ (rotation @ centre + translation)
            images.add(key_of(turned, moved))
        seen.update(images)
        best = min(images)
        freedom = round(float(np.trace(projector)))
        found[best] = (
            len(rotations) // fixed,
            freedom,
            projector,
            np.array(key_of(projector, centre)[9:]),
        )

    add(random.random(3))
    images = np.einsum("gij,pj->pgi", rotations, GRID) + translations
    apart = images - GRID[:, None]
    fixes = np.abs(apart - np.rint(apart)).max(-1) < 1e-6
    for point, stays in zip(GRID[fixes.sum(1) > 1], fixes[fixes.sum(1) > 1], strict=True):
        add(point)
        for rotation in rotations[stays]:
            powers = [np.eye(3)]
            while not np.allclose(powers[-1] @ rotation, np.eye(3)):
                powers.append(powers[-1] @ rotation)
            fixed_space = np.mean(powers, 0)
            if 0 < round(float(np.trace(fixed_space))) < 3:
                add(point + fixed_space @ (0.7 * random.random(3)))
    return sorted(found.values(), key=lambda one: one[:2])


def main() -> None:
    """Write the table."""
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["group", "multiplicity", "projector", "centre"])
        for number in range(1, N_GROUPS + 1):
            for multiplicity, _, projector, centre in positions_of(number):
                whole = (np.rint(24 * projector.ravel()), np.rint(48 * centre))
                texts = (" ".join(str(int(v)) for v in row) for row in whole)
                table.writerow([number, multiplicity, *texts])


if __name__ == "__main__":
    main()
