"""A batch of crystals, and what a denoiser predicts for one.

What the method computes with is a `Crystals`; files are read and written one `Crystal` of
`crystal_fidelity` at a time, and `data/convert.py` turns one into the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Crystals:
    """A batch of crystals (ρ, x, z), atoms of all crystals one after another.

    Attributes:
        lattice: ρ in Å. Columns are the lattice vectors: cartesian = ρ x.
        frac_coords: x, fractional, in [0, 1).
        atomic_numbers: z, 1 to 118.
        n_atoms: Number of atoms of each crystal.

    Source: [Klipfel24] Eq. 2

    Examples:
        >>> iron = Crystals(
        ...     lattice=2.87 * torch.eye(3)[None],
        ...     frac_coords=torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]]),
        ...     atomic_numbers=torch.tensor([26, 26]),
        ...     n_atoms=torch.tensor([2]),
        ... )
        >>> len(iron), round(iron.volume.item(), 2)  # crystals, Å³
        (1, 23.64)
        >>> len(Crystals.concat([iron, iron]))
        2
    """

    lattice: Float[Tensor, "crystals 3 3"]
    frac_coords: Float[Tensor, "atoms 3"]
    atomic_numbers: Int[Tensor, " atoms"]
    n_atoms: Int[Tensor, " crystals"]

    def __len__(self) -> int:
        return self.n_atoms.shape[0]

    @property
    def crystal_of_atom(self) -> Int[Tensor, " atoms"]:
        """Index of the crystal every atom belongs to."""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.n_atoms.device),
            self.n_atoms,
            output_size=self.frac_coords.shape[0],
        )

    @property
    def volume(self) -> Float[Tensor, " crystals"]:
        """Cell volumes |det ρ| in Å³."""
        return torch.linalg.det(self.lattice).abs()

    @property
    def cart_coords(self) -> Float[Tensor, "atoms 3"]:
        """Cartesian positions ρ x in Å: the image τ = 0 of every atom of the infinite cloud.

        Source: [Klipfel24] Eq. 1
        """
        return torch.einsum("aij,aj->ai", self.lattice[self.crystal_of_atom], self.frac_coords)

    def with_geometry(
        self, lattice: Float[Tensor, "crystals 3 3"], frac_coords: Float[Tensor, "atoms 3"]
    ) -> "Crystals":
        """Return the same compositions with another cell (Å) and other positions (fractional).

        Args:
            lattice: Lattice vectors as columns, Å.
            frac_coords: Fractional.
        """
        return replace(self, lattice=lattice, frac_coords=frac_coords)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Crystals":
        """Move to a device, cast the real-valued tensors to a dtype, or both.

        Args:
            device: Such as cpu or cuda:1; None leaves it.
            dtype: float32 or float64; None leaves it.
        """
        return Crystals(
            self.lattice.to(device=device, dtype=dtype),
            self.frac_coords.to(device=device, dtype=dtype),
            self.atomic_numbers.to(device=device),
            self.n_atoms.to(device=device),
        )

    def select(self, indices: Sequence[int] | Int[Tensor, " chosen"]) -> "Crystals":
        """Return the crystals at `indices`, in that order; repeats are allowed.

        Args:
            indices: Numbers of crystals, from 0.
        """
        chosen = torch.as_tensor(indices, device=self.n_atoms.device, dtype=torch.long)
        starts = torch.cumsum(self.n_atoms, 0) - self.n_atoms
        counts = self.n_atoms[chosen]
        offset = torch.cumsum(counts, 0) - counts
        atoms = (
            torch.arange(int(counts.sum()), device=counts.device)
            - torch.repeat_interleave(offset, counts)
            + torch.repeat_interleave(starts[chosen], counts)
        )
        return Crystals(
            self.lattice[chosen], self.frac_coords[atoms], self.atomic_numbers[atoms], counts
        )

    def split(self) -> list["Crystals"]:
        """Return one batch per crystal."""
        sizes = self.n_atoms.tolist()
        parts = zip(
            self.lattice.split(1),
            self.frac_coords.split(sizes),
            self.atomic_numbers.split(sizes),
            self.n_atoms.split(1),
            strict=True,
        )
        return [Crystals(*part) for part in parts]

    @staticmethod
    def concat(batches: Sequence["Crystals"]) -> "Crystals":
        """Join batches into one, in order.

        Args:
            batches: Of one device and dtype, at least one.

        Raises:
            ValueError: If `batches` is empty.
        """
        if not batches:
            raise ValueError("no crystals to join: give at least one batch")
        return Crystals(
            torch.cat([b.lattice for b in batches]),
            torch.cat([b.frac_coords for b in batches]),
            torch.cat([b.atomic_numbers for b in batches]),
            torch.cat([b.n_atoms for b in batches]),
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser predicts for noisy crystals: a pair of actions (y^ρ, y^x), y^ρ applied.

    Attributes:
        lattice: ρ' in Å, the predicted cell, in the basis and orientation of the input.
        displacement: y^x = ε_θ, fractional, so that x' = [x + y^x].
        strain: E with ρ_t = exp(E) ρ', symmetric, when the network predicts a strain; else None.

    Source: [Klipfel24] Eq. 7
    """

    lattice: Float[Tensor, "crystals 3 3"]
    displacement: Float[Tensor, "atoms 3"]
    strain: Float[Tensor, "crystals 3 3"] | None = None


def to_dense(
    values: Tensor, n_atoms: Int[Tensor, " crystals"], *, width: int | None = None
) -> tuple[Tensor, Bool[Tensor, "crystals width"]]:
    """Lay atoms out as [crystals, width, …] with zeros after each crystal's last atom.

    Args:
        values: Per-atom values, [atoms, …].
        n_atoms: Number of atoms of each crystal.
        width: Atoms per row; the largest crystal by default.

    Returns:
        The padded values and the mask of real atoms.
    """
    width = int(n_atoms.max()) if width is None else width
    mask = torch.arange(width, device=n_atoms.device) < n_atoms[:, None]
    dense = values.new_zeros((len(n_atoms), width, *values.shape[1:]))
    dense[mask] = values
    return dense, mask


def mean_per_crystal(values: Tensor, crystals: Crystals) -> Tensor:
    """Average per-atom values over each crystal.

    Args:
        values: [atoms, …].
        crystals: Say which crystal an atom belongs to.

    Returns:
        [crystals, …].
    """
    total = values.new_zeros((len(crystals), *values.shape[1:]))
    total.index_add_(0, crystals.crystal_of_atom, values)
    shape = (-1,) + (1,) * (values.dim() - 1)
    return total / crystals.n_atoms.to(values.dtype).view(shape)
