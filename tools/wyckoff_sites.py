"""Find the Wyckoff positions of all 230 space groups, and their normalisers, from operations alone.

    python tools/wyckoff_sites.py src/crystorus/geometry/wyckoff.csv     # some minutes

Every position without freedom lies on multiples of 1/24 of the standard primitive cell, and every
line and plane of sites passes through such a point along the fixed space of one operation that
fixes the point. So all grid points are tried, and from each a point in general place on the fixed
space of each of its operations. Of each point the stabiliser gives the site (see
`crystorus.geometry.space_groups`), and the images of a site under the group are one position.
There are 1 731 of them (International Tables A, 2016).

A map x → W x + w of the normaliser (`site_permutations` there) has small whole numbers in W, and
multiples of 1/8 or 1/6 in w.
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from crystorus.geometry.space_groups import N_GROUPS, operations

GRID = np.array(list(itertools.product(range(24), repeat=3))) / 24
ALL_SMALL = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=9))).reshape(-1, 3, 3)
UNIMODULAR = ALL_SMALL[np.abs(np.abs(np.linalg.det(ALL_SMALL)) - 1) < 0.5]
PARTS = sorted({k / 8 for k in range(8)} | {k / 6 for k in range(6)})
ORIGINS = np.array(list(itertools.product(PARTS, repeat=3)))
SHIFTS = np.array(list(itertools.product(range(-2, 3), repeat=3)), dtype=float)


def site_of(rotations, translations, point):
    """Return P and c of the site of a point, and how many operations fix it."""
    images = rotations @ point + translations
    whole = np.rint(point - images)
    stays = np.abs(images + whole - point).max(1) < 1e-6
    return rotations[stays].mean(0), (translations + whole)[stays].mean(0), int(stays.sum())


def key_of(projector, centre):
    """Return P (1/24) and c (1/48) as numbers that two sites share exactly if they are one.

    Centres that differ by (I - P) n are of one site: the shortest is taken, of several the first.
    """
    centres = np.rint(48 * (centre + SHIFTS @ (np.eye(3) - projector).T)).astype(int)
    shortest = centres[np.lexsort((*centres.T[::-1], (centres**2).sum(1)))[0]]
    return (*np.rint(24 * projector).astype(int).ravel().tolist(), *shortest.tolist())


def positions_of(number):
    """Return (multiplicity, freedom, P, c) of every Wyckoff position, and their numbers by key."""
    rotations, translations = operations(number)
    random = np.random.default_rng(0)
    found, seen = {}, {}

    def add(point):
        projector, centre, fixed = site_of(rotations, translations, point)
        if key_of(projector, centre) in seen:
            return
        images = set()
        for rotation, translation in zip(rotations, translations, strict=True):
            turned = rotation @ projector @ np.linalg.inv(rotation)
            moved = (np.eye(3) - turned) @ (rotation @ centre + translation)
            images.add(key_of(turned, moved))
        best = min(images)
        seen.update(dict.fromkeys(images, best))
        freedom = round(float(np.trace(projector)))
        found[best] = (
            len(rotations) // fixed,
            freedom,
            projector,
            np.array(key_of(projector, centre)[9:]) / 48,
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
    order = sorted(found, key=lambda best: found[best][:2])
    places = {key: order.index(best) for key, best in seen.items()}
    return [found[best] for best in order], places


def renumberings_of(number, positions, places):
    """Return the new number of every position, once for each distinct renumbering.

    `places` has the number of the position of every site, by its key.
    """
    rotations, translations = operations(number)
    random = np.random.default_rng(0).normal(size=(3, 3))
    metric = (rotations.transpose(0, 2, 1) @ (np.eye(3) + random @ random.T) @ rotations).mean(0)
    kept = UNIMODULAR.transpose(0, 2, 1) @ metric @ UNIMODULAR
    found, covered = set(), set()
    for turn in UNIMODULAR[np.abs(kept - metric).max((1, 2)) < 1e-8]:
        if turn.tobytes() in covered:
            continue
        covered |= {np.rint(turn @ rotation).tobytes() for rotation in rotations}
        back = np.linalg.inv(turn)
        turned = np.rint(turn @ rotations @ back)
        same = (np.abs(turned[:, None] - rotations) < 0.5).all((2, 3))
        if not same.any(1).all():
            continue
        # {W|w}{R|t}{W|w}⁻¹ = {R'|W t + w - R' w} has to be an operation, up to a lattice vector.
        beyond = translations @ turn.T - translations[same.argmax(1)]
        origins = ORIGINS
        for rotation, shift in zip(turned, beyond, strict=True):
            apart = shift + origins - origins @ rotation.T
            origins = origins[(np.abs(apart - np.rint(apart)) < 1e-6).all(1)]
        for origin in origins:
            renumbered = []
            for _, _, projector, centre in positions:
                moved = turn @ projector @ back
                key = key_of(moved, (np.eye(3) - moved) @ (turn @ centre + origin))
                renumbered.append(places[key])
            found.add(tuple(renumbered))
    return tuple(sorted(found))


def main() -> None:
    """Write the table."""
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["group", "multiplicity", "projector", "centre", "renumbered"])
        for number in range(1, N_GROUPS + 1):
            positions, places = positions_of(number)
            renumbered = zip(*renumberings_of(number, positions, places), strict=True)
            for (multiplicity, _, projector, centre), new in zip(
                positions, renumbered, strict=True
            ):
                rows = (np.rint(24 * projector.ravel()), np.rint(48 * centre), new)
                texts = (" ".join(str(int(v)) for v in row) for row in rows)
                table.writerow([number, multiplicity, *texts])


if __name__ == "__main__":
    main()
