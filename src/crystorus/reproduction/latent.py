"""What the network's latent representation knows ("meaningful representations", abstract).

Features for linear probes (`probing`): the network's, and controls that know the composition
alone, or come from a network that learnt nothing. And the two main directions as a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from pymatgen.core import Element
from torch import Tensor

from crystorus.crystal_model import CrystalModel, build_model
from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.geometry import Crystals
from crystorus.networks.embedding import element_descriptors
from crystorus.reproduction.probing import Array, standardised

ANION_GROUPS = {
    "oxide": ("O",),
    "halide": ("F", "Cl", "Br", "I"),
    "chalcogenide": ("S", "Se", "Te"),
    "pnictide": ("N", "P", "As", "Sb"),
    "boride to germanide": ("B", "C", "Si", "Ge"),
    "hydride": ("H",),
}
"""Groups by the most electronegative element; all others are intermetallic."""

INTERMETALLIC = "intermetallic"


@runtime_checkable
class Encoder(Protocol):
    """A denoiser that shows its invariant features."""

    def representation(
        self, crystals: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "crystals features"]:
        """Return features of every crystal that no symmetry of Eq. 10 changes."""
        ...


@dataclass(frozen=True)
class LatentMap:
    """Crystals in the plane of the two main directions of their latent representation.

    Attributes:
        x, y: Coordinates, in standard deviations of a feature.
        explained: Share of the variance along x and along y.
        anions: Group of every crystal; see `ANION_GROUPS`.
        energy_ev_per_atom: Formation energies, None where unknown.
        density_g_cm3: Mass densities.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    explained: tuple[float, float]
    anions: tuple[str, ...]
    energy_ev_per_atom: tuple[float | None, ...]
    density_g_cm3: tuple[float, ...]


def latents(model: CrystalModel, crystals: Crystals, *, level: int = 1, batch: int = 128) -> Array:
    """Return the network's invariant features of clean crystals, [crystals, features], float64.

    Args:
        model: A system; trained or not.
        crystals: As they are, without noise.
        level: The noise level t that the network is told, 1 the quietest.
        batch: Crystals per pass.

    Raises:
        ValueError: If the level is none of the model's.
    """
    steps = model.config.diffusion.steps
    if not 1 <= level <= steps:
        raise ValueError(f"noise level {level}: this model has 1 to {steps}")
    encoder = cast(Encoder, model.denoiser.eval())
    parts = []
    with torch.no_grad():
        for which in torch.arange(len(crystals)).split(batch):
            some = crystals.select(which).to(model.device)
            t = torch.full((len(some),), level, device=model.device)
            parts.append(encoder.representation(some, t).double().cpu().numpy())
    return np.concatenate(parts)


def untrained(model: CrystalModel, seed: int) -> CrystalModel:
    """Return a system of the same shape with random weights.

    Layers that start at zero are drawn too: with them at zero an atom would not hear the others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_model(model.config, model.statistics)
        with torch.no_grad():
            for weight in fresh.denoiser.parameters():
                if weight.dim() == 2 and not weight.any():
                    torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return fresh


def unstructured(model: CrystalModel, crystals: Crystals, seed: int) -> Crystals:
    """Return the same compositions as the model's prior draws them: M_T, Algorithm 2, line 1."""
    noise = CrystalNoise([seed * len(crystals) + i for i in range(len(crystals))], crystals.n_atoms)
    cells = model.diffusion.cell.prior(crystals, noise)
    return crystals.with_geometry(cells, noise.uniform_atoms())


def feature_sets(
    model: CrystalModel, crystals: Crystals, *, level: int = 1, seed: int = 0, draws: int = 4
) -> dict[str, Array]:
    """Return the latent representation and its controls, [crystals, features] each.

    Args:
        model: A trained system.
        crystals: As they are.
        level: The noise level that the network is told.
        seed: Of the untrained weights and of the prior.
        draws: Draws of the prior over which "latent of noise" is averaged; it knows a composition
            as the network does and nothing else.
    """
    composition = element_fractions(crystals)
    latent = latents(model, crystals, level=level)
    blank = latents(untrained(model, seed), crystals, level=level)
    steps = model.config.diffusion.steps
    noise = [
        latents(model, unstructured(model, crystals, seed * draws + draw), level=steps)
        for draw in range(draws)
    ]
    known = np.concatenate([composition, element_statistics(crystals)], 1)
    return {
        "composition": composition,
        "composition, element statistics": known,
        "latent of noise": np.mean(noise, 0),
        "untrained latent": blank,
        "untrained latent + composition": np.concatenate([blank, composition], 1),
        "latent": latent,
        "latent + composition": np.concatenate([latent, composition], 1),
        "latent + element statistics": np.concatenate([latent, known], 1),
    }


def element_fractions(crystals: Crystals) -> Array:
    """Return the atomic fraction of every element, [crystals, 118]."""
    fractions = torch.zeros(len(crystals), 118, dtype=torch.float64)
    share = 1 / crystals.n_atoms.double()[crystals.crystal_of_atom]
    place = (crystals.crystal_of_atom, crystals.atomic_numbers.long() - 1)
    return fractions.index_put_(place, share, accumulate=True).numpy()


def element_statistics(crystals: Crystals) -> Array:
    """Return mean, spread, least and largest of elemental properties over each composition.

    A composition's features as peers use them; nothing of the geometry is in them.
    """
    table = element_descriptors()
    rows = []
    for numbers in crystals.atomic_numbers.cpu().split(crystals.n_atoms.tolist()):
        values = table[numbers]
        spread = values.std(0, correction=0)
        rows.append(torch.cat([values.mean(0), spread, values.amin(0), values.amax(0)]))
    return torch.stack(rows).double().numpy()


def anion_group(atomic_numbers: Sequence[int]) -> str:
    """Return the group of a crystal by its most electronegative element."""
    elements = [Element.from_Z(int(z)) for z in set(atomic_numbers)]
    leader = max(elements, key=lambda e: (e.X if np.isfinite(e.X) else 0.0, e.Z)).symbol
    return next((g for g, symbols in ANION_GROUPS.items() if leader in symbols), INTERMETALLIC)


def principal_map(
    features: Array, crystals: Crystals, energies: Sequence[float], densities: Sequence[float]
) -> LatentMap:
    """Project standardised features on their two directions of largest variance.

    The sign of a direction is such that its largest component is positive.

    Args:
        features: [crystals, features].
        crystals: The same crystals.
        energies: Formation energies in eV/atom, NaN where unknown.
        densities: In g/cm³.
    """
    scaled, _ = standardised(features, features)
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    main = directions[:2]
    main = main * np.sign(main[[0, 1], np.abs(main).argmax(1)])[:, None]
    x, y = (scaled @ main.T).T
    share = singular**2 / (singular**2).sum()
    numbers = crystals.atomic_numbers.cpu().split(crystals.n_atoms.tolist())
    return LatentMap(
        tuple(map(float, x)),
        tuple(map(float, y)),
        (float(share[0]), float(share[1])),
        tuple(anion_group(z.tolist()) for z in numbers),
        tuple(float(e) if np.isfinite(e) else None for e in energies),
        tuple(map(float, densities)),
    )
