"""The groups that act on crystals without changing what they are (§3.1 of the paper).

O(3) turns the cell, R³ translates the atoms, S_n renumbers them, SL₃(Z) re-tiles space,
and a supercell repeats the same crystal. A network f is equivariant under E(3) × SL₃(Z) if
f(g·M, t) = g·f(M, t) for all its elements g.

Source: [Klipfel24] Eq. 10
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry.crystals import Crystals
from crystorus.geometry.torus import wrap


def rotate(crystals: Crystals, rotation: Float[Tensor, "3 3"]) -> Crystals:
    """Act with g ∈ O(3): (ρ, x, z) → (g ρ, x, z).

    Args:
        crystals: Any batch.
        rotation: g, orthogonal; reflections count.
    """
    return crystals.with_geometry(
        rotation.to(crystals.lattice) @ crystals.lattice, crystals.frac_coords
    )


def translate(crystals: Crystals, shift: Float[Tensor, " 3"]) -> Crystals:
    """Act with v ∈ R³: (ρ, x, z) → (ρ, [x + v], z).

    Args:
        crystals: Any batch.
        shift: v, fractional.
    """
    return crystals.with_geometry(crystals.lattice, wrap(crystals.frac_coords + shift))


def retile(crystals: Crystals, change: Int[Tensor, "3 3"]) -> Crystals:
    """Act with g ∈ SL₃(Z): (ρ, x, z) → (ρ g⁻¹, [g x], z); the tests of Eq. 10 use it.

    Args:
        crystals: Any batch.
        change: g; determinant -1 is allowed too.

    Raises:
        ValueError: If `change` is not a unimodular integer matrix.
    """
    g = change.to(torch.float64)
    determinant = round(float(torch.linalg.det(g)))
    if abs(determinant) != 1:
        raise ValueError(
            f"a re-tiling needs determinant ±1, got {determinant}: take a supercell instead"
        )
    inverse = torch.round(torch.linalg.inv(g)).to(crystals.lattice)
    return crystals.with_geometry(
        crystals.lattice @ inverse, wrap(crystals.frac_coords @ g.to(crystals.frac_coords).T)
    )


def permute(crystals: Crystals, order: Int[Tensor, " atoms"]) -> Crystals:
    """Act with a permutation of S_n: renumber the atoms.

    Args:
        crystals: Any batch.
        order: Index of the atom that comes to each place; atoms stay in their own crystals.

    Raises:
        ValueError: If `order` moves an atom to another crystal.
    """
    if not torch.equal(crystals.crystal_of_atom[order], crystals.crystal_of_atom):
        raise ValueError("the order moves atoms between crystals: permute within each crystal")
    return Crystals(
        crystals.lattice,
        crystals.frac_coords[order],
        crystals.atomic_numbers[order],
        crystals.n_atoms,
    )


def supercell(crystals: Crystals, repeats: tuple[int, int, int]) -> Crystals:
    """Repeat every crystal along its lattice vectors.

    Args:
        crystals: Any batch.
        repeats: Copies along a, b and c, each at least 1.

    Returns:
        Larger crystals; the copies of an atom stay together.
    """
    n = torch.tensor(repeats, device=crystals.lattice.device)
    shifts = torch.tensor(
        list(itertools.product(*(range(r) for r in repeats))), device=n.device
    ).to(crystals.frac_coords)
    frac = (crystals.frac_coords[:, None] + shifts) / n
    copies = len(shifts)
    return Crystals(
        crystals.lattice * n,
        wrap(frac.reshape(-1, 3)),
        crystals.atomic_numbers.repeat_interleave(copies),
        crystals.n_atoms * copies,
    )
