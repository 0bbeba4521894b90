"""f_θ: a network's fields, scaled by the noise level and applied to the crystal (Eqs 7 and 10)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.lattice import from_coefficients, symmetric_exp, to_coefficients
from crystorus.geometry.torus import centre
from crystorus.networks.fieldnet import FieldNet

MAX_STRAIN = 3.0
"""Largest coefficient of a predicted strain in sampling, six times the widest noise."""


class FieldDenoiser(nn.Module):
    """The default f_θ: (ρ_t, x_t, z, t) → displacement of the atoms and strain of the cell.

    Args:
        network: Gives fields of unit size.
        displacement_rms: Root mean square of the torus target at each level t = 0 … T.
        strain_sigma: Standard deviation of the strain coefficients at each level.
    """

    displacement_rms: Tensor
    strain_sigma: Tensor

    def __init__(
        self,
        network: FieldNet,
        *,
        displacement_rms: Float[Tensor, " levels"],
        strain_sigma: Float[Tensor, "levels 6"],
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("displacement_rms", displacement_rms.float(), persistent=False)
        self.register_buffer("strain_sigma", strain_sigma.float(), persistent=False)

    def forward(self, crystals: Crystals, t: Int[Tensor, " crystals"]) -> Prediction:
        """Predict the cell and the displacements that lead back to the clean crystal."""
        fields = self.network(crystals, t)
        dtype = crystals.lattice.dtype
        length = crystals.volume.pow(1 / 3) * self.displacement_rms[t].to(dtype)
        atom = crystals.crystal_of_atom
        inverse = torch.linalg.inv(crystals.lattice)
        cartesian = fields.displacement.to(dtype) * length[atom, None]
        displacement = torch.einsum("aij,aj->ai", inverse[atom], cartesian)
        scale = self.strain_sigma[t].to(dtype)
        coefficients = scale * to_coefficients(fields.strain.to(dtype))
        if not self.training:  # a cell unlike any crystal's must not stop the others of its batch
            coefficients = coefficients.nan_to_num(0.0, 0.0, 0.0).clamp(-MAX_STRAIN, MAX_STRAIN)
        strain = from_coefficients(coefficients)
        lattice = symmetric_exp(-strain.detach()) @ crystals.lattice
        return Prediction(lattice, centre(displacement, crystals), strain)

    def representation(
        self, crystals: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "crystals features"]:
        """Return the network's invariant features of every crystal, before its heads."""
        return self.network.representation(crystals, t)
