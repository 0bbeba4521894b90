"""The forward process on a whole crystal, and what it asks of a cell process and a network.

Diffusion knows no network: a denoiser is anything that maps (crystals, t) to a `Prediction`.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from crystorus.diffusion.noise_levels import CrystalNoise
from crystorus.diffusion.torus import TorusProcess
from crystorus.geometry import Crystals, Prediction


@runtime_checkable
class Denoiser(Protocol):
    """f_θ: noisy crystals and their step t = 1 … T to a prediction of the clean ones."""

    def __call__(self, crystals: Crystals, t: Int[Tensor, " crystals"], /) -> Prediction:
        """Predict the clean cell and the displacements towards the clean positions."""
        ...


@runtime_checkable
class CellProcess(Protocol):
    """Diffusion of the cell ρ: forward, reverse, prior and loss.

    `cell_strain.StrainProcess` is the default preset's, `cell_log.LogLatticeProcess` the paper's.
    In all methods: `crystals` hold ρ_0, `lattice` is ρ_t in Å, `prediction` holds the clean cell
    or the strain from it. Levels t and s < t are integers 0 … T, one per crystal. `normal` are
    standard normal numbers, five for the shape of a cell and one for its volume (Eq. 12). `drift`
    multiplies the way to the predicted cell, above 1 at anti-annealing: one number, or [crystals,
    1]. Cells are returned in Å.
    """

    def noise(
        self,
        crystals: Crystals,
        t: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
    ) -> tuple[Float[Tensor, "crystals 3 3"], Any]:
        """Draw ρ_t ~ q(ρ_t | ρ_0); returns it and a target, which `loss` understands.

        Args:
            crystals: M_0; the lattice vectors are columns, Å.
            t: Level of each crystal, 0 … T.
            normal: ε, standard normal numbers.
        """
        ...

    def loss(self, prediction: Prediction, target: Any) -> Float[Tensor, " crystals"]:
        """Return L^ρ of a prediction, per crystal; `target` is what `noise` returned.

        Args:
            prediction: Of the network.
            target: What `noise` returned.
        """
        ...

    def prior(self, compositions: Crystals, noise: CrystalNoise) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_T; of `compositions`, elements and numbers of atoms are read.

        Args:
            compositions: Elements and numbers of atoms; the rest is not read.
            noise: Source of the random numbers.
        """
        ...

    def reverse(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        normal: Float[Tensor, "crystals 6"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Draw ρ_s ~ p(ρ_s | ρ_t).

        Args:
            lattice: ρ_t, Å.
            prediction: Of the network at level t.
            t: Level of each crystal, 1 … T.
            s: Level to go to, 0 ≤ s < t.
            normal: ε, standard normal numbers.
            drift: Factor on the predicted change.
        """
        ...

    def flow(
        self,
        lattice: Float[Tensor, "crystals 3 3"],
        prediction: Prediction,
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "crystals 3 3"]:
        """Move deterministically from level t to level s.

        Args:
            lattice: ρ_t, Å.
            prediction: Of the network at level t.
            t: Level of each crystal, 1 … T.
            s: Level to go to, 0 ≤ s < t.
            drift: Factor on the predicted change.
        """
        ...


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The forward process on a whole crystal: torus and cell side by side."""

    torus: TorusProcess
    cell: CellProcess

    @property
    def steps(self) -> int:
        """Number of noise levels T."""
        return self.torus.steps

    def noise(
        self,
        crystals: Crystals,
        t: Int[Tensor, " crystals"],
        normal_atoms: Float[Tensor, "atoms 3"],
        normal_cells: Float[Tensor, "crystals 6"],
    ) -> tuple[Crystals, Any]:
        """Draw M_t ~ q(M_t | M_0): lines 3 and 4 of Algorithm 1.

        Args:
            crystals: M_0.
            t: Level of each crystal, 0 … T.
            normal_atoms: Standard normal numbers.
            normal_cells: Standard normal numbers.

        Returns:
            M_t, and the target of the cell's loss.
        """
        lattice, target = self.cell.noise(crystals, t, normal_cells)
        frac_coords = self.torus.noise(crystals, t, normal_atoms)
        return crystals.with_geometry(lattice, frac_coords), target

    def prior(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        n_atoms: Int[Tensor, " crystals"],
        noise: CrystalNoise,
    ) -> Crystals:
        """Draw M_T of given compositions: lines 1 and 2 of Algorithm 2.

        Positions are uniform on the torus, to which the noised ones tend: Fourier coefficient n of
        a wrapped normal is exp(-2π²σ²|n|²), which for all n ≠ 0 goes to 0 as σ grows. The cell's
        prior is that of its process.

        Args:
            atomic_numbers: z, the elements.
            n_atoms: Number of atoms of each crystal.
            noise: Source of the random numbers.

        Source: [Klipfel24] Appendix D
        """
        frac_coords = noise.uniform_atoms()
        empty = frac_coords.new_zeros(len(n_atoms), 3, 3)
        compositions = Crystals(empty, frac_coords, atomic_numbers, n_atoms)
        return compositions.with_geometry(self.cell.prior(compositions, noise), frac_coords)
