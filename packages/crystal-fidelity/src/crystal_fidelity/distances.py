"""Earth mover's distances between one-dimensional distributions of two sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from crystal_fidelity.scores import Score, part_error
from crystal_fidelity.structures import Crystal, as_entries, density

EmdProtocol = Literal["all", "cdvae"]
CDVAE_SAMPLES = 1000
FLOOR_SPLITS = 20


@dataclass(frozen=True)
class EmdResult:
    """An earth mover's distance between two samples of one quantity."""

    name: str
    unit: str
    value: float
    generated: NDArray[np.float64]
    """The values that entered, for plots."""
    per_structure: NDArray[np.float64]
    """One value per generated structure, NaN or infinity where it has none."""
    reference: NDArray[np.float64]
    protocol: str
    floor: float
    """Mean distance of two disjoint random parts of the reference, each of size `floor_n`."""
    floor_n: int
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

    Raises:
        ValueError: one of the samples has no finite value.
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
    floor, floor_n = _floor(known, len(kept), np.random.default_rng(seed))
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


def _floor(
    values: NDArray[np.float64], n: int, generator: np.random.Generator
) -> tuple[float, int]:
    size = min(n, len(values) // 2)
    if size == 0:
        return float("nan"), 0
    distances = []
    for _ in range(FLOOR_SPLITS):
        order = generator.permutation(len(values))
        part, rest = values[order[:size]], values[order[size:]]
        distances.append(wasserstein_distance(part, rest))
    return float(np.mean(distances)), size


def densities(structures: Sequence[object]) -> NDArray[np.float64]:
    """Return mass densities in g/cm³, NaN for what was not read, infinity without volume."""
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

    "all" is the paper's protocol (every sample, unfiltered); "cdvae" takes 1 000 random samples,
    chosen by `seed`, of those valid in structure and composition.
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
    """Return indices of at most 1 000 random valid samples."""
    members = np.nonzero(valid)[0]
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(members)[:CDVAE_SAMPLES])


def property_values(structures: Sequence[object], key: str) -> NDArray[np.float64]:
    """Return a number that came with each structure, NaN where it is missing.

    Raises:
        KeyError: no structure has it.
    """
    entries = as_entries(structures)
    values = [e.properties.get(key, np.nan) if isinstance(e, Crystal) else np.nan for e in entries]
    if not np.isfinite(values).any():
        known = sorted({k for e in entries if isinstance(e, Crystal) for k in e.properties})
        raise KeyError(f"no structure carries {key!r}; what they carry: {', '.join(known) or '-'}")
    return np.array(values, dtype=np.float64)


def energy_emd(
    generated: Sequence[object],
    reference: Sequence[object],
    *,
    key: str = "formation_energy_per_atom",
    seed: int = 0,
) -> EmdResult:
    """Return the earth mover's distance of energies per atom that came with the structures.

    For energies by a model see `featurizers.model_energies`.
    """
    return earth_movers_distance(
        property_values(generated, key),
        property_values(reference, key),
        name="energy EMD",
        unit="eV/atom",
        protocol=f"all samples, unfiltered; {key} of the files",
        seed=seed,
    )
