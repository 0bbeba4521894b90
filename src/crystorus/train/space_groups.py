"""Space groups of the crystals to train on, found once, and batches of crystals with theirs."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import dataset
from crystal_fidelity.workers import map_in_order
from crystorus.data.batches import CrystalDataset
from crystorus.data.convert import split
from crystorus.diffusion.space_groups import Skeleton, Skeletons, SpaceGroups
from crystorus.geometry import Crystals
from crystorus.geometry.space_groups import AtomImages, images_alone, images_in
from crystorus.templates.skeletons import skeleton_of

SYMPREC = 0.05
"""Tolerance in Å within which the space groups of known crystals are found."""


def find_symmetry(
    crystals: CrystalDataset,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Skeletons, tuple[AtomImages, ...]]:
    """Find the space groups of crystals; one in which none is found is in P1.

    Args:
        crystals: Any cells.
        workers: Processes.
        progress: Called with the number of crystals done, and of all.

    Returns:
        Of every crystal the skeleton, and how its atoms, in its own cell, follow from free ones.

    Raises:
        WorkersError: If a process dies.
    """
    several = split(crystals.store.select(crystals.indices, dtype=torch.float64))
    found = []
    for one in map_in_order(_symmetry_of, several, workers):
        found.append(one)
        progress(len(found), len(several))
    return Skeletons.of([skeleton for skeleton, _ in found]), tuple(one for _, one in found)


def _symmetry_of(crystal: Crystal) -> tuple[Skeleton, AtomImages]:
    found = dataset(crystal, SYMPREC)
    skeleton, alone = skeleton_of(crystal, found), images_alone(len(crystal))
    if found is None:
        return skeleton, alone
    rotations, translations = found.operations.rotations, found.operations.translations
    images = images_in(crystal, np.array(rotations, dtype=float), np.array(translations))
    # Operations of a long, thin cell are those of the cell that `dataset` made of it.
    free = crystal.frac_coords[images.representative]
    apart = np.einsum("aij,aj->ai", images.linear, free) + images.offset - crystal.frac_coords
    distance = np.linalg.norm((apart - np.rint(apart)) @ crystal.lattice, axis=1)
    return skeleton, images if distance.max() < 2 * SYMPREC else alone


class SymmetricBatches(Dataset[tuple[Crystals, SpaceGroups | None]]):
    """Batches of crystals with their space groups.

    Args:
        crystals: Batches without.
        images: Of every crystal; None leaves the groups out.
    """

    def __init__(self, crystals: CrystalDataset, images: Sequence[AtomImages] | None) -> None:
        self.crystals, self.images = crystals, images

    def __getitem__(self, chosen: Sequence[int]) -> tuple[Crystals, SpaceGroups | None]:
        """Return the crystals `chosen`, and their space groups."""
        groups = self.images and SpaceGroups.join([self.images[n] for n in chosen])
        return self.crystals[chosen], groups or None
