"""Eq. 10 for the paper preset: one check per symmetry, and controls that must fail it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from groups import orthogonal, unimodular
from prototypes import bcc, fcc, hcp, perovskite, rocksalt, wurtzite

from crystorus.config import GemsNetConfig
from crystorus.geometry.crystals import Crystals, Prediction
from crystorus.geometry.symmetry import permute, retile, rotate, supercell, translate
from crystorus.networks.gemsnet import GemsNetDenoiser
from crystorus.networks.gemsnet import neighbours as nearest_neighbours

Predict = Callable[[Crystals], Prediction]
TOLERANCE = 1e-9
BROKEN = 1e-4


def random_cell(n: int, seed: int) -> Crystals:
    g = torch.Generator().manual_seed(seed)
    cell = 3 * torch.eye(3).double() + torch.randn(3, 3, generator=g).double()
    cell *= (18.0 * n / torch.linalg.det(cell).abs()) ** (1 / 3)
    z = torch.randint(1, 90, (n,), generator=g)
    return Crystals(cell[None], torch.rand(n, 3, generator=g).double(), z, torch.tensor([n]))


def left_handed() -> Crystals:
    crystal = random_cell(5, 1)
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    mirrored = rotate(crystal, flip)
    assert torch.linalg.det(mirrored.lattice)[0] * torch.linalg.det(crystal.lattice)[0] < 0
    return mirrored


def needle() -> Crystals:
    cell = torch.tensor([[1.9, 0.3, 2.0], [0.0, 2.1, -3.0], [0.0, 0.0, 55.0]]).double()
    return random_cell(6, 2).with_geometry(cell[None], random_cell(6, 2).frac_coords)


def unit_volume() -> Crystals:
    crystal = random_cell(4, 5)
    return crystal.with_geometry(crystal.lattice / crystal.volume ** (1 / 3), crystal.frac_coords)


CRYSTALS = {
    "triclinic": lambda: random_cell(7, 0),
    "left-handed": left_handed,
    "needle": needle,
    "1 Å³": unit_volume,
    "fcc": fcc,
    "bcc": bcc,
    "hcp": hcp,
    "rocksalt": rocksalt,
    "perovskite": perovskite,
    "wurtzite": wurtzite,
}


def compare(ours: Prediction, expected: Prediction, base: Prediction, cell: torch.Tensor) -> float:
    """Return the larger relative error of y^x and y^ρ; what is left of I₃ counts as y^ρ."""
    action = torch.linalg.solve(cell.mT, base.lattice.mT).mT - torch.eye(3).double()
    scale_rho = float((action @ cell).abs().max())
    scale_x = max(float(base.displacement.abs().max()), 0.01)
    error_x = float((ours.displacement - expected.displacement).abs().max()) / scale_x
    return max(error_x, float((ours.lattice - expected.lattice).abs().max()) / scale_rho)


def orthogonal_error(predict: Predict, crystals: Crystals, determinant: int) -> float:
    base, worst = predict(crystals), 0.0
    for seed in range(2):
        q = orthogonal(seed, determinant)
        expected = replace(base, lattice=q @ base.lattice)
        ours = predict(rotate(crystals, q))
        worst = max(worst, compare(ours, expected, base, crystals.lattice))
    return worst


def rotation_error(predict: Predict, crystals: Crystals) -> float:
    return orthogonal_error(predict, crystals, 1)


def reflection_error(predict: Predict, crystals: Crystals) -> float:
    return orthogonal_error(predict, crystals, -1)


def translation_error(predict: Predict, crystals: Crystals) -> float:
    base = predict(crystals)
    ours = predict(translate(crystals, torch.tensor([0.31, 0.77, -0.23]).double()))
    return compare(ours, base, base, crystals.lattice)


def permutation_error(predict: Predict, crystals: Crystals) -> float:
    base = predict(crystals)
    order = torch.arange(len(crystals.frac_coords)).flip(0)
    expected = replace(base, displacement=base.displacement[order])
    return compare(predict(permute(crystals, order)), expected, base, crystals.lattice)


def retiling_error(predict: Predict, crystals: Crystals) -> float:
    base, worst = predict(crystals), 0.0
    for seed in range(3):
        g = unimodular(seed)
        inverse = torch.linalg.inv(g.double()).round()
        expected = Prediction(base.lattice @ inverse, base.displacement @ g.double().T)
        ours = predict(retile(crystals, g))
        worst = max(worst, compare(ours, expected, base, crystals.lattice))
    return worst


def supercell_error(predict: Predict, crystals: Crystals) -> float:
    base = predict(crystals)
    n = torch.tensor([2.0, 1.0, 1.0]).double()
    displacement = base.displacement.repeat_interleave(2, 0) / n
    expected = Prediction(base.lattice * n, displacement)
    return compare(predict(supercell(crystals, (2, 1, 1))), expected, base, crystals.lattice)


ERRORS = {
    "rotation": rotation_error,
    "reflection": reflection_error,
    "translation": translation_error,
    "permutation": permutation_error,
    "re-tiling": retiling_error,
    "supercell": supercell_error,
}


def denoise(net: GemsNetDenoiser) -> Predict:
    @torch.no_grad()
    def predict(crystals: Crystals) -> Prediction:
        return net(crystals, torch.full((len(crystals),), 40))

    return predict


def network(decode_from: str) -> GemsNetDenoiser:
    torch.manual_seed(0)
    return GemsNetDenoiser(GemsNetConfig(decode_from=decode_from)).double()


@pytest.fixture(scope="module")
def noisy() -> GemsNetDenoiser:
    """Decode by Eq. 9c."""
    return network("noisy")


@pytest.fixture(scope="module")
def cubic() -> GemsNetDenoiser:
    """Decode by Eq. 11."""
    return network("cubic")


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("symmetry", ERRORS)
def test_eq_10_holds_with_eq_9c(noisy, symmetry: str, name: str):
    assert ERRORS[symmetry](denoise(noisy), CRYSTALS[name]()) < TOLERANCE


def stretched(crystals: Crystals) -> Crystals:
    """Break rotations and reflections: an axis of space is special."""
    axes = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.1, 0.0], [0.0, 0.0, 1.3]]).double()
    return rotate(crystals, axes)


def squeezed(crystals: Crystals) -> Crystals:
    """Break translations, re-tilings and supercells: the border of the cell is special."""
    return crystals.with_geometry(crystals.lattice, 0.8 * crystals.frac_coords)


def numbered(crystals: Crystals) -> Crystals:
    """Break permutations: the first atom of a crystal is another element."""
    z = crystals.atomic_numbers.clone()
    z[0] = 118
    return replace(crystals, atomic_numbers=z)


CONTROLS = {
    "rotation": stretched,
    "reflection": stretched,
    "translation": squeezed,
    "permutation": numbered,
    "re-tiling": squeezed,
    "supercell": squeezed,
}


@pytest.mark.parametrize("symmetry", ERRORS)
def test_a_broken_input_fails_the_same_check(noisy, symmetry: str):
    predict = denoise(noisy)
    broken = ERRORS[symmetry](lambda c: predict(CONTROLS[symmetry](c)), random_cell(7, 0))
    assert broken > BROKEN


def test_cutting_ties_fails_the_same_check(noisy, monkeypatch):
    """Without the tie policy a symmetric crystal's graph depends on rounding."""
    monkeypatch.setattr(nearest_neighbours, "TIE_TOLERANCE", 0.0)
    errors = [
        ERRORS[symmetry](denoise(noisy), crystal())
        for symmetry in ("rotation", "re-tiling")
        for crystal in (fcc, hcp, perovskite)
    ]
    assert max(errors) > BROKEN


def test_eq_11_breaks_rotation_and_re_tiling_of_the_cell(cubic):
    """ρ' = y^ρ I₃ forgets ρ: g ρ' is not what g M gives, for rotations and re-tilings."""
    predict, crystal = denoise(cubic), random_cell(7, 0)
    identity = torch.eye(3).double()[None]
    base, q, g = predict(crystal), orthogonal(0, 1), unimodular(0)
    scale = float((base.lattice - identity).abs().max())
    turned, tiled = predict(rotate(crystal, q)), predict(retile(crystal, g))

    def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
        return float((ours - expected).abs().max()) / scale

    assert error(turned.lattice, q @ base.lattice) > 1
    assert error(tiled.lattice, base.lattice @ torch.linalg.inv(g.double())) > 1
    # What remains true (App. A): y^ρ turns by conjugation and does not know the tiling.
    assert error(turned.lattice, q @ base.lattice @ q.T) < TOLERANCE
    assert error(tiled.lattice, base.lattice) < TOLERANCE
    # Nor are the cell's lengths invariant: they depend on how the noisy cell was turned.
    lengths = (turned.lattice.norm(dim=1) - base.lattice.norm(dim=1)).abs().max()
    assert float(lengths) / scale > 0.01


@pytest.mark.parametrize("symmetry", ["translation", "permutation"])
def test_eq_11_keeps_translation_and_permutation(cubic, symmetry: str):
    crystal = random_cell(7, 0)
    lattice = crystal.lattice / crystal.volume ** (1 / 3)
    unit = crystal.with_geometry(lattice, crystal.frac_coords)
    assert ERRORS[symmetry](denoise(cubic), unit) < TOLERANCE


def test_eq_11_cannot_leave_the_cube_from_symmetric_positions(cubic):
    """Rocksalt's primitive cell has 60° angles; from I₃ only multiples of I₃ are in reach."""
    lattice = denoise(cubic)(rocksalt()).lattice[0]
    multiple = lattice.trace() / 3 * torch.eye(3).double()
    torch.testing.assert_close(lattice, multiple, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetry", ERRORS)
def test_eq_10_holds_on_real_crystals(noisy, mp20, symmetry: str):
    import csv
    import gzip

    from pymatgen.core import Structure

    with gzip.open(mp20 / "val.csv.gz", "rt") as file:
        rows = [row["cif"] for _, row in zip(range(2), csv.DictReader(file), strict=False)]
    for cif in rows:
        s = Structure.from_str(cif, fmt="cif")
        crystal = Crystals(
            torch.tensor(s.lattice.matrix.T.copy())[None],
            torch.tensor(s.frac_coords % 1),
            torch.tensor(s.atomic_numbers),
            torch.tensor([len(s)]),
        )
        assert ERRORS[symmetry](denoise(noisy), crystal) < 1e-7
