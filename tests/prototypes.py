"""Crystals the tests share, built from textbook prototypes: columns in Å, float64.

`from prototypes import rocksalt, all_prototypes` works in every test file.
"""

import numpy as np
import torch
from pymatgen.core import Element

from crystorus.geometry import Crystals

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
BCC = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2


def crystal(rows, species: str, frac_coords) -> Crystals:
    """One crystal from row vectors in Å, symbols such as "Na Cl" and fractional positions."""
    numbers = [Element(symbol).Z for symbol in species.split()]
    frac = torch.tensor(np.array(frac_coords, dtype=float).reshape(-1, 3))
    lattice = torch.tensor(np.array(rows, dtype=float).T.copy())[None]
    return Crystals(
        lattice, frac - frac.floor(), torch.tensor(numbers), torch.tensor([len(numbers)])
    )


def hexagonal(a: float, c: float) -> np.ndarray:
    """Row vectors of the hexagonal cell."""
    return np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])


def fcc() -> Crystals:
    """Copper, Fm-3m, one atom."""
    return crystal(3.61 * FCC, "Cu", [0, 0, 0])


def bcc() -> Crystals:
    """Iron, Im-3m, one atom."""
    return crystal(2.87 * BCC, "Fe", [0, 0, 0])


def hcp() -> Crystals:
    """Magnesium, P6_3/mmc, two atoms."""
    return crystal(hexagonal(3.21, 5.21), "Mg Mg", [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])


def rocksalt() -> Crystals:
    """NaCl, Fm-3m, primitive cell of two atoms."""
    return crystal(5.64 * FCC, "Na Cl", [[0, 0, 0], [0.5, 0.5, 0.5]])


def cscl() -> Crystals:
    """CsCl, Pm-3m."""
    return crystal(4.12 * np.eye(3), "Cs Cl", [[0, 0, 0], [0.5, 0.5, 0.5]])


def zincblende() -> Crystals:
    """ZnS, F-43m: no inversion centre."""
    return crystal(5.41 * FCC, "Zn S", [[0, 0, 0], [0.25, 0.25, 0.25]])


def wurtzite() -> Crystals:
    """ZnO, P6_3mc: polar."""
    z = 0.382
    sites = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, z], [2 / 3, 1 / 3, 0.5 + z]]
    return crystal(hexagonal(3.25, 5.21), "Zn Zn O O", sites)


def perovskite() -> Crystals:
    """SrTiO3, Pm-3m."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return crystal(3.905 * np.eye(3), "Sr Ti O O O", sites)


def rutile() -> Crystals:
    """TiO2, P4_2/mnm."""
    u = 0.305
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5]]
    sites.append([0.5 - u, 0.5 + u, 0.5])
    return crystal(np.diag([4.594, 4.594, 2.959]), "Ti Ti O O O O", sites)


def spinel() -> Crystals:
    """MgAl2O4, Fd-3m, primitive cell of 14 atoms."""
    u = 0.2624  # origin at the inversion centre
    v = 0.5 - 3 * u
    oxygen = [[u, u, u], [u, u, v], [u, v, u], [v, u, u]]
    sites = [[0.125] * 3, [0.875] * 3]
    sites += [[0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    sites += oxygen + [[-x for x in site] for site in oxygen]
    return crystal(8.08 * FCC, "Mg " * 2 + "Al " * 4 + "O " * 8, sites)


def quartz() -> Crystals:
    """SiO2, P3_121: chiral, so that a mirror image is another crystal."""
    u, (x, y, z) = 0.4697, (0.4135, 0.2669, 0.7858)
    silicon = [[u, 0, 1 / 3], [0, u, 2 / 3], [-u, -u, 0]]
    oxygen = [[x, y, z], [-y, x - y, z + 1 / 3], [y - x, -x, z + 2 / 3]]
    oxygen += [[y, x, -z], [x - y, -y, 2 / 3 - z], [-x, y - x, 1 / 3 - z]]
    return crystal(hexagonal(4.913, 5.405), "Si " * 3 + "O " * 6, silicon + oxygen)


def needle() -> Crystals:
    """A layered crystal in a long thin cell: 2.9 × 2.9 × 30 Å."""
    sites = [
        [0, 0, 0],
        [1 / 3, 2 / 3, 0.05],
        [2 / 3, 1 / 3, 0.95],
        [0, 0, 0.4],
        [1 / 3, 2 / 3, 0.5],
    ]
    return crystal(hexagonal(2.9, 30.0), "Mo S S Bi Te", sites)


def skewed() -> Crystals:
    """Rocksalt in a strongly skewed, far from reduced cell."""
    change = np.array([[1, 0, 0], [5, 1, 0], [-7, 4, 1]])
    inverse = np.linalg.inv(change)
    return crystal(change @ (5.64 * FCC), "Na Cl", np.array([[0, 0, 0], [0.5] * 3]) @ inverse)


def left_handed() -> Crystals:
    """Quartz, the same crystal, in a left-handed cell (det ρ < 0)."""
    right = quartz()
    order = [1, 0, 2]
    return Crystals(
        right.lattice[:, :, order].contiguous(),
        right.frac_coords[:, order].contiguous(),
        right.atomic_numbers,
        right.n_atoms,
    )


def triclinic(seed: int = 0, n_atoms: int = 7) -> Crystals:
    """A random crystal with no symmetry, its atoms at least 1.5 Å apart."""
    random = np.random.default_rng(seed)
    rows = np.array([[4.1, 0.2, -0.3], [1.3, 5.2, 0.4], [-0.8, 0.9, 6.3]])
    rows = rows + random.normal(0, 0.2, (3, 3))
    images = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), -1).reshape(-1, 3)
    sites: list[np.ndarray] = []
    while len(sites) < n_atoms:
        site = random.random(3)
        if all(np.linalg.norm((site - s + images) @ rows, axis=1).min() > 1.5 for s in sites):
            sites.append(site)
    species = random.choice(["Li", "Fe", "P", "O"], n_atoms)
    return crystal(rows, " ".join(species), sites)


BUILDERS = (
    *(fcc, bcc, hcp, rocksalt, cscl, zincblende, wurtzite, perovskite, rutile, spinel, quartz),
    *(needle, skewed, left_handed, triclinic),
)

SPACE_GROUPS = {
    "fcc": 225, "bcc": 229, "hcp": 194, "rocksalt": 225, "cscl": 221, "zincblende": 216,
    "wurtzite": 186, "perovskite": 221, "rutile": 136, "spinel": 227, "quartz": 152,
    "needle": 156,
    "skewed": 225, "left_handed": 152, "triclinic": 1,
}  # fmt: skip
"""International numbers, from the tables the prototypes come from."""


def all_prototypes() -> dict[str, Crystals]:
    """Every crystal above by name."""
    return {build.__name__: build() for build in BUILDERS}


def batch() -> Crystals:
    """Every crystal above, as one batch."""
    return Crystals.concat(list(all_prototypes().values()))
