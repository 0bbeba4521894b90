"""Denoisers that know the answer, and the two processes to test them in."""

import torch
from prototypes import all_prototypes

from crystorus.diffusion.cell_log import LogLatticeProcess
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.cell_strain import StrainProcess, predicted_strain
from crystorus.diffusion.noise_levels import cumulative_alpha, geometric_levels, linear_betas
from crystorus.diffusion.process import Diffusion
from crystorus.diffusion.torus import TorusProcess
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.torus import shortest_displacement

NAMES = ["rocksalt", "zincblende", "wurtzite", "rutile", "perovskite"]


def default_diffusion() -> Diffusion:
    return Diffusion(
        TorusProcess(geometric_levels(0.01, 0.5, 100)),
        StrainProcess(
            geometric_levels(0.01, 0.45, 100),
            geometric_levels(0.01, 0.3, 100),
            CellStatistics.neutral(),
        ),
    )


def paper_diffusion() -> Diffusion:
    torus = cumulative_alpha(linear_betas(1e-6, 2e-3, 100))
    cell = cumulative_alpha(linear_betas(1e-5, 1e-1, 100))
    return Diffusion(
        TorusProcess((1 - torus).sqrt(), target="shortest", centred=False),
        LogLatticeProcess(cell),
    )


class Oracle:
    """Knows the crystal; for the strain process, also how its cell lies in space."""

    def __init__(self, target: Crystals, *, shift: float = 0.0) -> None:
        self.target, self.shift = target, shift

    def __call__(self, crystals: Crystals, t: torch.Tensor) -> Prediction:
        target = self.target.to(dtype=crystals.lattice.dtype)
        displacement = shortest_displacement(
            crystals.frac_coords, target.frac_coords + self.shift, crystals
        )
        guess = Prediction(target.lattice, displacement)
        strain = predicted_strain(guess, crystals.lattice)
        return Prediction(target.lattice, displacement, strain)


def targets() -> Crystals:
    return Crystals.concat([all_prototypes()[name] for name in NAMES]).to(dtype=torch.float32)
