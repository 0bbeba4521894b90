"""Earth mover's distances between one-dimensional distributions of two sets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from crystal_fidelity.scores import Score, noise_floor, part_error
from crystal_fidelity.structures import Crystal, as_entries, density

EmdProtocol = Literal["all", "cdvae"]
CDVAE_SAMPLES = 1000
TOTAL = re.compile(
    r"((total|free|potential|final|(un)?corrected|dft|ref)_?)?energy|energy_?(total|dft|ref)"
    r"|e_?tot(al)?",
    re.IGNORECASE,
)
"""Keys under which ASE and others keep the energy of the whole cell, not of an atom."""


@dataclass(frozen=True)
class EmdResult:
    """An earth mover's distance between two samples of one quantity.

    Examples:
        >>> from ase.build import bulk
        >>> found = density_emd([bulk("Cu")] * 4, [bulk("Cu"), bulk("Al")] * 2)
        >>> round(found.value, 2), found.unit
        (3.14, 'g/cm³')
        >>> found.generated.round(2).tolist()
        [8.97, 8.97, 8.97, 8.97]
    """

    name: str
    """Of the metric."""
    unit: str
    """Of the quantity, and so of the distance."""
    value: float
    """The distance."""
    generated: NDArray[np.float64]
    """The values that entered, for plots."""
    per_structure: NDArray[np.float64]
    """One value per generated structure, NaN or infinity where it has none."""
    reference: NDArray[np.float64]
    """The reference values that entered."""
    protocol: str
    """How it was determined."""
    floor: float
    """Mean distance of two disjoint random parts of the reference, each of size `floor_n`."""
    floor_n: int
    """Structures of one such part."""
    uncertainty: float | None
    """Standard error from disjoint parts of the generated values."""
    excluded: int
    """Generated structures without a finite value."""

    def scores(self) -> list[Score]:
        """Return the row of the table."""
        return [
            Score(
                self.name,
                self.value,
                unit=self.unit,
                n_generated=len(self.generated),
                n_reference=len(self.reference),
                protocol=self.protocol,
                real=self.floor,
                uncertainty=self.uncertainty,
                better="lower",
                details={"excluded": self.excluded, "n of real against real": self.floor_n},
            )
        ]


def earth_movers_distance(
    generated: NDArray[np.float64],
    reference: NDArray[np.float64],
    *,
    name: str,
    unit: str,
    protocol: str = "all samples, unfiltered",
    seed: int = 0,
) -> EmdResult:
    """Return W₁ between two samples and what real against real gives.

    Values that are not finite are left out and counted.

    Args:
        generated: (n,) values.
        reference: (m,) values in the same unit.
        name: Of the score.
        unit: Of the values.
        protocol: How they were chosen.
        seed: Of the random parts that give floor and error.

    Raises:
        ValueError: One of the samples has no finite value.

    Examples:
        >>> import numpy as np
        >>> found = earth_movers_distance(np.zeros(10), np.ones(10), name="charge", unit="e")
        >>> float(found.value)
        1.0
    """
    kept = np.asarray(generated, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    known = np.asarray(reference, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(kept) == 0 or len(known) == 0:
        raise ValueError(
            f"{name}: {len(kept)} generated and {len(known)} reference values are finite; "
            "each set needs at least one"
        )
    floor, floor_n = noise_floor(
        len(known),
        len(kept),
        lambda part, rest: wasserstein_distance(known[part], known[rest]),
        seed=seed,
    )
    return EmdResult(
        name=name,
        unit=unit,
        value=float(wasserstein_distance(kept, known)),
        generated=kept,
        per_structure=np.asarray(generated, dtype=np.float64),
        reference=known,
        protocol=protocol,
        floor=floor,
        floor_n=floor_n,
        uncertainty=part_error(
            len(kept), lambda part: wasserstein_distance(kept[part], known), seed=seed
        ),
        excluded=len(generated) - len(kept),
    )


def densities(structures: Sequence[object]) -> NDArray[np.float64]:
    """Return (structures,) mass densities in g/cm³, NaN if unread, infinity without volume.

    Args:
        structures: Crystals, failures, pymatgen structures or ASE atoms.
    """
    entries = as_entries(structures)
    return np.array([density(e) if isinstance(e, Crystal) else np.nan for e in entries])


def density_emd(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    protocol: EmdProtocol = "all",
    seed: int = 0,
) -> EmdResult:
    """Return the earth mover's distance of mass densities in g/cm³.

    Args:
        generated: Crystals, read failures, pymatgen structures or ASE atoms.
        reference: The same.
        protocol: "all" takes every sample, unfiltered; "cdvae" 1 000 random samples, chosen by
            `seed`, of those valid in structure and composition.
        seed: Of the samples and of the random parts that give floor and error.

    Raises:
        ValueError: A set has no finite density.

    Examples:
        >>> from ase.build import bulk
        >>> made, real = [bulk("Cu"), bulk("Al")], [bulk("Cu"), bulk("Ni")]
        >>> round(density_emd(made, real).value, 2)
        3.12

    Source: Xie et al. 2021 (CDVAE), arXiv:2110.06197
    """
    values = densities(generated)
    label = "all samples, unfiltered"
    if protocol == "cdvae":
        from crystal_fidelity.matching import peer_validity

        chosen = cdvae_sample(peer_validity(as_entries(generated)), seed)
        values, label = values[chosen], f"CDVAE: {len(chosen)} random valid samples"
    return earth_movers_distance(
        values, densities(reference), name="density EMD", unit="g/cm³", protocol=label, seed=seed
    )


def cdvae_sample(valid: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """Return indices of at most 1 000 random valid samples.

    Args:
        valid: One per structure.
        seed: Of the choice.
    """
    members = np.nonzero(valid)[0]
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(members)[:CDVAE_SAMPLES])


def property_values(structures: Sequence[object], key: str) -> NDArray[np.float64]:
    """Return a number that came with each structure, NaN where it is missing.

    Args:
        structures: Crystals or read failures.
        key: Name of the number.

    Returns:
        (structures,).

    Raises:
        KeyError: No structure has it.
    """
    entries = as_entries(structures)
    values = [e.properties.get(key, np.nan) if isinstance(e, Crystal) else np.nan for e in entries]
    if not np.isfinite(values).any():
        known = sorted({k for e in entries if isinstance(e, Crystal) for k in e.properties})
        raise KeyError(f"no structure carries {key!r}; what they carry: {', '.join(known) or '-'}")
    return np.array(values, dtype=np.float64)


def energies_per_atom(structures: Sequence[object], key: str) -> tuple[NDArray[np.float64], str]:
    """Return the energies that came with structures, and what was done to them.

    Args:
        structures: Crystals or read failures.
        key: Name of the number. Under `energy`, `free_energy`, `total_energy` and the like stands
            the energy of the whole cell in eV: it is divided by the number of atoms.

    Returns:
        (structures,), eV/atom, NaN where it is missing; and a text for the protocol.

    Raises:
        KeyError: No structure has it.
    """
    values = property_values(structures, key)
    if not TOTAL.fullmatch(key):
        return values, f"{key} of the files"
    sizes = [len(e) if isinstance(e, Crystal) else 1 for e in as_entries(structures)]
    return values / np.array(sizes), f"{key} of the files, a total, divided by the atoms"


def energy_emd(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    key: str = "formation_energy_per_atom",
    seed: int = 0,
) -> EmdResult:
    """Return the earth mover's distance of energies per atom that came with the structures.

    For energies by a model see `energies.model_energy_emd`.

    Args:
        generated: Crystals or read failures.
        reference: The same.
        key: See `energies_per_atom`.
        seed: Of the random parts that give floor and error.

    Raises:
        KeyError: No structure of a set has it.

    Examples:
        >>> from ase.build import bulk
        >>> from crystal_fidelity.structures import from_atoms
        >>> import dataclasses
        >>> copper = from_atoms(bulk("Cu"))
        >>> made, real = (
        ...     [dataclasses.replace(copper, properties={"e_form": e})] * 4 for e in (-0.25, 0.25)
        ... )
        >>> energy_emd(made, real, key="e_form").value
        0.5
    """
    (made, how), (real, _) = (energies_per_atom(side, key) for side in (generated, reference))
    return earth_movers_distance(
        made,
        real,
        name="energy EMD",
        unit="eV/atom",
        protocol=f"all samples, unfiltered; {how}",
        seed=seed,
    )
