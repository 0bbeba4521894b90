"""Structural validity: no two atoms, nor an atom and its own image, closer than a threshold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import Crystal, Entry, as_entries

MIN_DISTANCE = 0.5
"""Å, CDVAE's threshold."""
MIN_VOLUME = 0.1
"""Å³, CDVAE's threshold."""
CHUNK_FLOATS = 6_000_000
MAX_STEPS = 2
"""In a Minkowski-reduced cell the closest image of a rounded difference is one step away."""
_IMAGES = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)
_NONZERO = _IMAGES[np.any(_IMAGES != 0, axis=1)]

Contacts = Literal["with-self-images", "pairs-only"]


@dataclass(frozen=True)
class ValidityResult:
    """Which structures are valid and why the others are not."""

    valid: NDArray[np.bool_]
    """(structures,)."""
    reasons: tuple[str, ...]
    """Empty for a valid structure."""
    min_distance: NDArray[np.float64]
    """(structures,), Å; NaN where the structure was not read or has no volume."""
    contacts: Contacts

    @property
    def rate(self) -> float:
        """Fraction of all structures, unreadable ones counted invalid."""
        return float(self.valid.mean())

    def scores(self) -> list[Score]:
        """Return the row of the table."""
        rule = f"contacts >= {MIN_DISTANCE} Å {self.contacts}, volume >= {MIN_VOLUME} Å³"
        return [rate_score("validity", self.rate, len(self.valid), rule)]


def structural_validity(
    structures: Sequence[object],
    *,
    min_distance: float = MIN_DISTANCE,
    min_volume: float = MIN_VOLUME,
    contacts: Contacts = "with-self-images",
) -> ValidityResult:
    """Judge every structure by its closest contact and its volume.

    Deviation: CDVAE's code looks at pairs of different atoms only, so that one atom in a 0.3 Å
    cell passes; `contacts="pairs-only"` gives that behaviour.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        min_distance: Least valid contact, Å.
        min_volume: Least valid volume of the cell, Å³.
        contacts: Whether an atom's own images count.

    Returns:
        Verdict, reason and closest contact of each.

    Raises:
        ValueError: The set is empty.

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197
    """
    entries = as_entries(structures)
    if not entries:
        raise ValueError("0 structures: validity needs at least one")
    volumes = np.array([e.volume if isinstance(e, Crystal) else np.nan for e in entries])
    solid = np.nonzero(volumes >= 1e-9)[0]
    distances = np.full(len(entries), np.nan)
    found = closest_contacts([entries[i] for i in solid], contacts=contacts)  # type: ignore[misc]
    distances[solid] = found
    reasons = tuple(
        _reason(entry, volume, distance, min_distance, min_volume)
        for entry, volume, distance in zip(entries, volumes, distances, strict=True)
    )
    return ValidityResult(np.array([not r for r in reasons]), reasons, distances, contacts)


def is_valid(crystal: Crystal) -> bool:
    """Tell whether a crystal has a volume of 0.1 Å³ or more and no contact below 0.5 Å.

    Contacts between an atom and its own images count. This is what both packages call valid.
    """
    return crystal.volume >= MIN_VOLUME and least_contact(crystal) >= MIN_DISTANCE


def least_contact(crystal: Crystal) -> float:
    """Return the shortest interatomic distance in Å, own images included."""
    return float(closest_contacts([crystal])[0])


def _reason(
    entry: Entry, volume: float, distance: float, min_distance: float, min_volume: float
) -> str:
    if not isinstance(entry, Crystal):
        return f"unreadable: {entry.reason}"
    if volume < min_volume:
        return f"volume {volume:.3g} Å³ < {min_volume} Å³"
    if distance < min_distance:
        return f"contact {distance:.3f} Å < {min_distance} Å"
    return ""


def closest_contacts(
    crystals: Sequence[Crystal], *, contacts: Contacts = "with-self-images"
) -> NDArray[np.float64]:
    """Return the shortest interatomic distance of each crystal in Å, exactly.

    The 27 nearest cells give an upper bound r; a cell needs more images along axis i only if
    r / height_i + 1/2 >= 2, and those few cells are first Minkowski-reduced.

    Args:
        crystals: With a volume; of any number of atoms.
        contacts: Whether an atom's own images count; without, one atom alone has distance infinity.

    Returns:
        (crystals,), Å.
    """
    result = np.empty(len(crystals))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, crystal in enumerate(crystals):
        groups[len(crystal)].append(index)
    self_images = contacts == "with-self-images"
    for n_atoms, members in groups.items():
        floats = max(1, n_atoms * (n_atoms - 1) // 2) * 27 * 3
        step = max(1, CHUNK_FLOATS // floats)
        for start in range(0, len(members), step):
            chunk = members[start : start + step]
            lattices = np.stack([crystals[i].lattice for i in chunk])
            frac = np.stack([crystals[i].frac_coords for i in chunk])
            result[chunk] = _contacts_of_batch(lattices, frac, self_images=self_images)
    return result


def _contacts_of_batch(
    lattices: NDArray[np.float64], frac: NDArray[np.float64], *, self_images: bool
) -> NDArray[np.float64]:
    first, second = np.triu_indices(frac.shape[1], k=1)
    result = np.full(len(lattices), np.inf)
    if len(first):
        result = _pair_distances(lattices, frac, first, second)
    if self_images:
        own = np.linalg.norm(_NONZERO @ lattices, axis=-1).min(axis=-1)
        result = np.minimum(result, own)
    heights = 1 / np.linalg.norm(np.linalg.inv(lattices), axis=1)
    limit = np.where(np.isfinite(result), result, 0.0)
    for index in np.nonzero((limit[:, None] / heights + 0.5 >= 2).any(axis=1))[0]:
        result[index] = _contact_of_skewed(lattices[index], frac[index], self_images=self_images)
    return result


def _pair_distances(
    lattices: NDArray[np.float64],
    frac: NDArray[np.float64],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
) -> NDArray[np.float64]:
    step = max(1, CHUNK_FLOATS // (27 * 3 * len(lattices)))
    images = _IMAGES @ lattices
    shortest = np.full(len(lattices), np.inf)
    for start in range(0, len(first), step):
        delta = frac[:, first[start : start + step]] - frac[:, second[start : start + step]]
        vectors = (delta - np.round(delta)) @ lattices
        squared = ((vectors[:, :, None] + images[:, None]) ** 2).sum(axis=-1)
        shortest = np.minimum(shortest, np.sqrt(squared.min(axis=(1, 2))))
    return shortest


def _contact_of_skewed(
    lattice: NDArray[np.float64], frac: NDArray[np.float64], *, self_images: bool
) -> float:
    """Search all images that can be closer than the bound, in the Minkowski-reduced cell."""
    from ase.geometry.minkowski_reduction import minkowski_reduce

    reduced, operation = minkowski_reduce(lattice)
    coords = frac @ np.linalg.inv(operation)
    first, second = np.triu_indices(len(frac), k=1)
    delta = coords[first] - coords[second]
    vectors = (delta - np.round(delta)) @ reduced
    own = float(np.linalg.norm(reduced, axis=1).min())
    bound = min([*np.linalg.norm(vectors, axis=1), own if self_images else np.inf])
    if not np.isfinite(bound):
        return bound
    heights = 1 / np.linalg.norm(np.linalg.inv(reduced), axis=0)
    steps = [min(floor(bound / h + 0.5), MAX_STEPS) for h in heights]
    reach = [range(-s, s + 1) for s in steps]
    shortest = bound
    for shift in product(*reach):
        image = np.array(shift) @ reduced
        if self_images and any(shift):
            shortest = min(shortest, float(np.linalg.norm(image)))
        if len(vectors):
            shortest = min(shortest, float(np.linalg.norm(vectors + image, axis=1).min()))
    return shortest
