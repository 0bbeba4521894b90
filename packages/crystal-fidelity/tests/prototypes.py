"""Textbook structures built from their definitions, for tests."""

import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from crystal_fidelity.structures import Crystal, from_atoms


def rock_salt(a: float = 5.64, first: str = "Na", second: str = "Cl") -> Crystal:
    return _crystal(bulk(first + second, "rocksalt", a=a), f"{first}{second}")


def zinc_blende(a: float = 5.41) -> Crystal:
    return _crystal(bulk("ZnS", "zincblende", a=a), "ZnS")


def diamond(a: float = 3.57) -> Crystal:
    return _crystal(bulk("C", "diamond", a=a), "C")


def wurtzite() -> Crystal:
    return _crystal(bulk("ZnO", "wurtzite", a=3.25, c=5.21), "ZnO")


def perovskite(a: float = 3.905) -> Crystal:
    frac = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    atoms = Atoms("SrTiO3", scaled_positions=frac, cell=[a, a, a], pbc=True)
    return _crystal(atoms, "SrTiO3")


def rutile(a: float = 4.594, c: float = 2.959, u: float = 0.305) -> Crystal:
    frac = [
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [u, u, 0],
        [1 - u, 1 - u, 0],
        [0.5 + u, 0.5 - u, 0.5],
        [0.5 - u, 0.5 + u, 0.5],
    ]
    return _crystal(Atoms("Ti2O4", scaled_positions=frac, cell=[a, a, c], pbc=True), "TiO2")


def everything() -> list[Crystal]:
    return [rock_salt(), zinc_blende(), diamond(), wurtzite(), perovskite(), rutile()]


def simple_cubic(a: float, symbol: str = "Po") -> Crystal:
    return _crystal(Atoms(symbol, cell=[a, a, a], pbc=True), symbol)


def rattled(crystal: Crystal, sigma: float, seed: int) -> Crystal:
    generator = np.random.default_rng(seed)
    shift = generator.normal(0, sigma, crystal.frac_coords.shape)
    frac = crystal.frac_coords + shift @ np.linalg.inv(crystal.lattice)
    return Crystal(crystal.lattice, frac, crystal.atomic_numbers, crystal.name)


def moved(crystal: Crystal, seed: int) -> Crystal:
    """The same crystal rotated, translated, its atoms permuted and its cell re-tiled."""
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(rng=generator).as_matrix()
    tiling = np.array([[1, 1, 0], [0, 1, 0], [0, 2, 1]])
    frac = (crystal.frac_coords + generator.random(3)) @ np.linalg.inv(tiling)
    order = generator.permutation(len(crystal))
    return Crystal(
        tiling @ crystal.lattice @ rotation.T,
        (frac % 1.0)[order],
        crystal.atomic_numbers[order],
        crystal.name,
    )


def random_crystal(
    seed: int, n_atoms: int = 4, symbol_numbers: tuple[int, ...] = (8, 22)
) -> Crystal:
    generator = np.random.default_rng(seed)
    lattice = np.diag(generator.uniform(3, 7, 3)) + generator.normal(0, 1.0, (3, 3))
    numbers = generator.choice(symbol_numbers, n_atoms)
    return Crystal(lattice, generator.random((n_atoms, 3)), numbers, f"random {seed}")


def _crystal(atoms: Atoms, name: str) -> Crystal:
    crystal = from_atoms(atoms, name)
    assert isinstance(crystal, Crystal)
    return crystal
