"""Lattice sums are functions of the infinite crystal: no basis, no image, no order."""

import itertools
import math

import pytest
import torch
from prototypes import all_prototypes

from crystorus.config import LatticeSumConfig
from crystorus.geometry import lattice_sums as lattice_sums_module
from crystorus.geometry import symmetry
from crystorus.geometry.crystals import to_dense
from crystorus.geometry.lattice_sums import (
    envelope,
    gaussians,
    integer_boxes,
    lattice_sums,
    quadrupole,
    readable_cells,
)

CONFIG = LatticeSumConfig()
NAMES = list(all_prototypes())


def dense_sums(crystals, config=CONFIG):
    frac, mask = to_dense(crystals.frac_coords, crystals.n_atoms)
    return lattice_sums(crystals.lattice, frac, mask, config)


def plain_sums(crystal, config=CONFIG):
    """The definition, pair by pair and image by image."""
    rho, x = crystal.lattice[0], crystal.frac_coords
    n, reach = len(x), 7
    shifts = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=3))).double()
    scalar = torch.zeros(n, config.radial[0], n, dtype=torch.float64)
    vector = torch.zeros(n, 3, config.radial[1], n, dtype=torch.float64)
    tensor = torch.zeros(n, 5, config.radial[2], n, dtype=torch.float64)
    for i, j in itertools.product(range(n), repeat=2):
        offset = (x[j] - x[i] + shifts) @ rho.T
        length = offset.norm(dim=1)
        keep = (length < config.cutoff) & ~((length < 1e-9) & (i == j))
        offset, length = offset[keep], length[keep]
        soft = offset / (length**2 + 0.25).sqrt()[:, None]
        switch = envelope(length / config.cutoff)[:, None]
        radial = [gaussians(length, 0.5, config.cutoff, k) * switch for k in config.radial]
        scalar[i, :, j] = radial[0].sum(0)
        vector[i, :, :, j] = soft.T @ radial[1]
        tensor[i, :, :, j] = quadrupole(soft).T @ radial[2]
    return scalar, vector, tensor


def test_integer_boxes_agree_with_itertools():
    reach = torch.tensor([[1, 0, 2], [0, 0, 0], [2, 1, 1]])
    crystal, vectors = integer_boxes(reach)
    expected = [
        (b, *v)
        for b, r in enumerate(reach.tolist())
        for v in itertools.product(*(range(-k, k + 1) for k in r))
    ]
    assert [(int(b), *v) for b, v in zip(crystal, vectors.tolist(), strict=True)] == expected


@pytest.mark.parametrize("name", ["rocksalt", "wurtzite", "rutile", "triclinic"])
def test_real_sums_equal_the_definition(name):
    crystal = all_prototypes()[name] if name in NAMES else all_prototypes()[NAMES[-1]]
    ours, plain = dense_sums(crystal), plain_sums(crystal)
    k0, k1, k2 = CONFIG.radial
    w0, w1, w2 = CONFIG.widths
    torch.testing.assert_close(ours.scalar[0, :, :k0], plain[0])
    vector = ours.vector[0].unflatten(1, (3, w1))[:, :, :k1]
    torch.testing.assert_close(vector, plain[1], atol=1e-10, rtol=1e-9)
    tensor = ours.tensor[0].unflatten(1, (5, w2))[:, :, :k2]
    torch.testing.assert_close(tensor, plain[2], atol=1e-10, rtol=1e-9)
    assert w0 > k0


def test_reciprocal_self_sum_counts_the_reciprocal_lattice():
    # For i = j the cosine is 1: Σ_G f(|G|) of a simple cubic lattice, by hand.
    a = 3.0
    crystal = all_prototypes()["cscl"].with_geometry(
        a * torch.eye(3, dtype=torch.float64)[None], all_prototypes()["cscl"].frac_coords
    )
    k0, count = CONFIG.radial[0], CONFIG.reciprocal[0]
    top = CONFIG.reciprocal_cutoff
    waves = torch.tensor(list(itertools.product(range(-3, 4), repeat=3))).double()
    g = 2 * math.pi / a * waves.norm(dim=1)
    g = g[(g > 0) & (g < top)]
    expected = (gaussians(g, 0.15 * top, top, count) * envelope(g / top)[:, None]).sum(0)
    expected = expected / 2 / math.sqrt(2)  # one of each ±G; divided by √n
    torch.testing.assert_close(dense_sums(crystal).scalar[0, 0, k0:, 0], expected)


def plain_reciprocal_sums(crystal, config=CONFIG):
    """The definition, pair by pair: Σ_G f(|G|) Ĝ^l e^{iG·r} over one of each ±G, over √n."""
    rho, x = crystal.lattice[0], crystal.frac_coords
    n, reach, top = len(x), 9, config.reciprocal_cutoff
    waves = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=3))).double()
    g = 2 * math.pi * waves @ torch.linalg.inv(rho)
    length = g.norm(dim=1)
    keep = (length > 1e-9) & (length < top)
    waves, g, length = waves[keep], g[keep], length[keep]
    assert (waves.abs().amax(0) < reach).all()
    unit, switch = g / length[:, None], envelope(length / top)[:, None] / n**0.5 / 2
    angular = (torch.ones_like(unit[:, :1]), unit, quadrupole(unit))
    sums = []
    for degree, count in enumerate(config.reciprocal):
        radial = gaussians(length, 0.15 * top, top, count) * switch
        total = torch.zeros(n, 2 * degree + 1, count, n, dtype=torch.float64)
        for i, j in itertools.product(range(n), repeat=2):
            phase = 2 * math.pi * waves @ (x[j] - x[i])
            wave = phase.sin() if degree == 1 else phase.cos()
            total[i, :, :, j] = (angular[degree] * wave[:, None]).T @ radial
        sums.append(total)
    return sums


@pytest.mark.parametrize("name", ["wurtzite", "rutile", "triclinic"])
@pytest.mark.parametrize("phases", [2**20, 50])
def test_reciprocal_sums_equal_the_definition(name, phases, monkeypatch):
    """Both (i, j) and (j, i), whether the phases are taken at once or a few pairs at a time."""
    monkeypatch.setattr(lattice_sums_module, "PHASES_AT_A_TIME", phases)
    crystal = all_prototypes()[name]
    ours, plain = dense_sums(crystal), plain_reciprocal_sums(crystal)
    parts = (ours.scalar, ours.vector, ours.tensor)
    for degree, (part, expected) in enumerate(zip(parts, plain, strict=True)):
        far = part[0].unflatten(1, (2 * degree + 1, -1))[:, :, CONFIG.radial[degree] :]
        torch.testing.assert_close(far, expected, atol=1e-10, rtol=1e-9)


def test_sums_have_the_parity_of_their_degree():
    sums = dense_sums(all_prototypes()["triclinic"])
    for part, sign in ((sums.scalar, 1), (sums.vector, -1), (sums.tensor, 1)):
        mirrored = part.transpose(1, 3)
        torch.testing.assert_close(mirrored, sign * part, atol=1e-12, rtol=1e-9)
        assert (mirrored + sign * part).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_sums_do_not_change_under_retiling(name):
    crystal = all_prototypes()[name]
    change = torch.tensor([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    before, after = dense_sums(crystal), dense_sums(symmetry.retile(crystal, change))
    for a, b in zip(vars(before).values(), vars(after).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


def test_sums_do_change_with_the_crystal():
    crystal = all_prototypes()["rutile"]
    moved = crystal.frac_coords.clone()
    moved[0, 0] += 0.05
    before = dense_sums(crystal).scalar
    after = dense_sums(crystal.with_geometry(crystal.lattice, moved)).scalar
    assert (before - after).abs().max() > 1e-2


def test_supercell_splits_the_sums_among_the_copies():
    crystal = all_prototypes()["rutile"]
    copies = 4
    whole = dense_sums(crystal)
    parts = dense_sums(symmetry.supercell(crystal, (2, 1, 2)))
    n, k0 = int(crystal.n_atoms), CONFIG.radial[0]
    joined = parts.scalar[0].unflatten(2, (n, copies)).sum(3).unflatten(0, (n, copies))
    for copy in range(copies):
        torch.testing.assert_close(joined[:, copy, :k0], whole.scalar[0, :, :k0])


def test_padding_is_zero_and_changes_nothing():
    small, large = all_prototypes()["rocksalt"], all_prototypes()["spinel"]
    both = dense_sums(type(small).concat([small, large]))
    alone = dense_sums(small)
    n = int(small.n_atoms)
    torch.testing.assert_close(both.scalar[0, :n, :, :n], alone.scalar[0])
    torch.testing.assert_close(both.vector[0, :n, :, :n], alone.vector[0], atol=1e-12, rtol=0)
    assert both.scalar[0, :, :, n:].abs().max() == 0
    assert both.scalar[0, n:].abs().max() == 0


def test_sums_are_smooth_where_a_neighbour_crosses_the_cutoff():
    base = all_prototypes()["cscl"]
    values = []
    for step in (-1e-4, 0.0, 1e-4):
        a = CONFIG.cutoff + step  # the sixth neighbour shell enters exactly here
        crystal = base.with_geometry(a * torch.eye(3).double()[None], base.frac_coords)
        values.append(dense_sums(crystal).scalar[0, :, : CONFIG.radial[0]])
    second = (values[0] - 2 * values[1] + values[2]).abs().max()
    assert second < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_crystals_are_read_as_they_are(name):
    crystal = all_prototypes()[name]
    assert readable_cells(crystal.lattice, crystal.n_atoms) is crystal.lattice


RUNAWAY = {
    "blown up": torch.diag(torch.tensor([1e4, 1e4, 1e4])),
    "collapsed": torch.diag(torch.tensor([1e-4, 1e-4, 1e-4])),
    "needle": torch.diag(torch.tensor([1e-3, 1e-3, 1e6])),
    "sheet": torch.diag(torch.tensor([1e5, 1e5, 1e-6])),
    "flat": torch.diag(torch.tensor([4.0, 4.0, 0.0])),
    "overflow": torch.diag(torch.tensor([1e38, 1e38, 1e38])),
    "not a number": torch.full((3, 3), math.nan),
}


@pytest.mark.parametrize("name", list(RUNAWAY))
def test_cells_that_ran_away_cost_no_more_than_others_and_leave_them_alone(name):
    """A few thousand images and waves, where the cells as they are have millions."""
    good = all_prototypes()["rutile"].to(dtype=torch.float32)
    bad = good.with_geometry(RUNAWAY[name][None], good.frac_coords)
    both = dense_sums(type(good).concat([good, bad]))
    assert torch.isfinite(both.joined).all()
    torch.testing.assert_close(both.joined[:1], dense_sums(good).joined)


def test_cells_at_the_limits_turn_with_the_crystal():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator).double())[0]
    cell = torch.diag(torch.tensor([1e-3, 4.0, 1e4])).double()[None]
    n_atoms = torch.tensor([8])
    read = readable_cells(cell, n_atoms)
    assert not torch.allclose(read, cell)
    torch.testing.assert_close(readable_cells(rotation @ cell, n_atoms), rotation @ read)
    volume = float(torch.linalg.det(read))
    assert volume * (1 + 1e-9) >= 0.3 * 8


@pytest.mark.parametrize("images", [1, 10**4])
def test_images_taken_a_few_at_a_time_give_the_same_sums(images, monkeypatch):
    crystal = all_prototypes()["spinel"]
    whole = dense_sums(crystal)
    monkeypatch.setattr(lattice_sums_module, "IMAGES_AT_A_TIME", images)
    torch.testing.assert_close(dense_sums(crystal).joined, whole.joined)
