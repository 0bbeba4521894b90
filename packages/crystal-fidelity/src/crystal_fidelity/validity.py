"""Structural validity: no two atoms, nor an atom and its own image, closer than a threshold."""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.cells import least_distances, niggli_reduce
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.options import MIN_DISTANCE, MIN_VOLUME
from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import Crystal, as_entries

Contacts = Literal["with-self-images", "pairs-only"]


@dataclass(frozen=True)
class ValidityResult:
    """Which structures are valid and why the others are not.

    Examples:
        >>> from ase.build import bulk
        >>> found = structural_validity([bulk("Cu"), bulk("Cu", a=0.5)])
        >>> found.valid.tolist(), found.rate
        ([True, False], 0.5)
        >>> found.reasons[1]
        'volume 0.0312 Å³ < 0.1 Å³'
    """

    valid: NDArray[np.bool_]
    """(structures,)."""
    reasons: tuple[str, ...]
    """Empty for a valid structure."""
    min_distance: NDArray[np.float64]
    """(structures,), Å; NaN where the structure was not read, is not finite or has no volume."""
    contacts: Contacts
    """Whether an atom's own images count among its contacts."""

    @property
    def rate(self) -> float:
        """Fraction of all structures, unreadable ones counted invalid."""
        return float(self.valid.mean())

    def scores(self) -> list[Score]:
        """Return the row of the table."""
        rule = f"contacts >= {MIN_DISTANCE} Å {self.contacts}, volume >= {MIN_VOLUME} Å³"
        return [rate_score("validity", self.rate, len(self.valid), rule)]


def structural_validity(
    structures: Sequence[object], *, contacts: Contacts = "with-self-images"
) -> ValidityResult:
    """Judge every structure by its closest contact and its volume.

    Deviation: CDVAE's code looks at pairs of different atoms only, so that one atom in a 0.3 Å
    cell passes; `contacts="pairs-only"` gives that behaviour.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.
        contacts: Whether an atom's own images count.

    Returns:
        Verdict, reason and closest contact of each.

    Raises:
        ValueError: The set is empty.

    Examples:
        >>> from ase.build import bulk
        >>> structural_validity([bulk("Cu"), bulk("Cu", a=0.5)]).rate
        0.5

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197
    """
    entries = as_entries(structures)
    if not entries:
        raise ValueError("0 structures: validity needs at least one")
    volumes = np.array([e.volume if isinstance(e, Crystal) else np.nan for e in entries])
    finite = [isinstance(e, Crystal) and bool(np.isfinite(e.frac_coords).all()) for e in entries]
    solid = np.nonzero((volumes >= 1e-9) & (volumes < np.inf) & finite)[0]
    distances = np.full(len(entries), np.nan)
    found = closest_contacts([entries[i] for i in solid], contacts=contacts)  # type: ignore[misc]
    distances[solid] = found
    reasons = tuple(
        invalid_reason(volume, distance)
        if isinstance(entry, Crystal)
        else f"unreadable: {entry.reason}"
        for entry, volume, distance in zip(entries, volumes, distances, strict=True)
    )
    return ValidityResult(np.array([not r for r in reasons]), reasons, distances, contacts)


def invalid_reason(volume: float, distance: float) -> str:
    """Return why a crystal is not valid, empty for a valid one: the rule itself.

    Args:
        volume: Of the cell, Å³.
        distance: Its closest contact, Å; NaN where its numbers are not finite.
    """
    if volume < MIN_VOLUME:
        return f"volume {volume:.3g} Å³ < {MIN_VOLUME} Å³"
    if not (volume < math.inf and distance >= 0):
        return "its numbers are not finite"
    if distance < MIN_DISTANCE:
        return f"contact {distance:.3f} Å < {MIN_DISTANCE} Å"
    return ""


def closest_contacts(
    crystals: Sequence[Crystal], *, contacts: Contacts = "with-self-images"
) -> NDArray[np.float64]:
    """Return the shortest interatomic distance of each crystal in Å, exactly.

    Args:
        crystals: With a volume; of any number of atoms.
        contacts: Whether an atom's own images count; without, one atom alone has distance infinity.

    Returns:
        (crystals,), Å; 0 for a cell so degenerate that it cannot be reduced.
    """
    result = np.zeros(len(crystals))
    groups: dict[int, list[tuple[int, Crystal]]] = defaultdict(list)
    for index, crystal in enumerate(crystals):
        with suppress(ReadingError):
            groups[len(crystal)].append((index, niggli_reduce(crystal)))
    for members in groups.values():
        where = [index for index, _ in members]
        lattices = np.stack([crystal.lattice for _, crystal in members])
        frac = np.stack([crystal.frac_coords for _, crystal in members])
        own_images = contacts == "with-self-images"
        result[where] = least_distances(lattices, frac, own_images=own_images)
    return result
