"""Textbook structures built from their definitions, for tests."""

import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from crystal_fidelity.structures import Crystal, element_symbol, from_atoms


def format_cif(crystal: Crystal) -> str:
    """Return a P1 CIF with coordinates to 1e-10."""
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    lines = [f"data_{crystal.name.replace(' ', '_') or 'crystal'}"]
    lines += [f"_cell_length_{x} {v:.10f}" for x, v in zip("abc", lengths, strict=True)]
    names = ("alpha", "beta", "gamma")
    lines += [f"_cell_angle_{x} {v:.10f}" for x, v in zip(names, angles, strict=True)]
    lines += ["loop_", " _symmetry_equiv_pos_as_xyz", "  'x, y, z'", "loop_"]
    lines += [" _atom_site_type_symbol", " _atom_site_label"]
    lines += [f" _atom_site_fract_{axis}" for axis in "xyz"]
    for index, (z, x) in enumerate(zip(crystal.atomic_numbers, crystal.frac_coords, strict=True)):
        symbol = element_symbol(int(z))
        lines.append(f"  {symbol} {symbol}{index} {x[0]:.10f} {x[1]:.10f} {x[2]:.10f}")
    return "\n".join(lines) + "\n"


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
    rotation = Rotation.random(None, generator).as_matrix()
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
