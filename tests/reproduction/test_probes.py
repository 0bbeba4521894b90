"""Ridge regression and symmetry against closed forms and spglib; the latent space is invariant."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from groups import orthogonal, unimodular
from prototypes import (
    SPACE_GROUPS,
    all_prototypes,
    batch,
    left_handed,
    perovskite,
    quartz,
    rocksalt,
)  # fmt: skip
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_fidelity.distances import densities
from crystal_fidelity.structures import Crystal, ReadFailure, to_atoms
from crystorus.config import config_from_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.data.convert import split
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry.symmetry import permute, retile, rotate, supercell, translate
from reproduction.probes import (
    FOLDS,
    INTERMETALLIC,
    PENALTIES,
    anion_group,
    draw_prior,
    feature_sets,
    latents,
    mean_scores,
    principal_map,
    probe,
    ridge,
    untrained,
)
from reproduction.symmetry import (
    LATTICE_SYSTEMS,
    agreement,
    conventional_cell,
    holohedry,
    lattice_system,
    shares,
    study_lattices,
    total_variation,
)

CRYSTALS = all_prototypes()
SHIFT = torch.tensor([0.31, 0.77, 0.123], dtype=torch.float64)


def one(crystals):
    return split(crystals)[0]


def data(n: int = 400, noise: float = 0.1):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 12)) * np.arange(1, 13) + 3
    y = x @ random.normal(size=12) + noise * random.normal(size=n) + 5
    return x[: n // 2], y[: n // 2], x[n // 2 :], y[n // 2 :]


def closed_form(x, y, x_new, penalty):
    """Solve the least-squares system with rows √λ added, of standardised features."""
    spread = np.where(x.std(0) > 0, x.std(0), 1)
    scaled, new = (x - x.mean(0)) / spread, (x_new - x.mean(0)) / spread
    rows = np.vstack([scaled, np.sqrt(penalty * len(y)) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(rows, np.append(y - y.mean(), np.zeros(x.shape[1])), rcond=None)[0]
    return y.mean() + new @ weights


def test_a_ridge_is_the_closed_form_and_its_penalty_grows_with_what_cannot_be_learnt():
    x, y, x_new, _ = data(noise=3.0)
    constant = [np.hstack([part, np.full((len(part), 2), 7.0)]) for part in (x, x_new)]
    found, penalty = ridge(x, y, x_new, 0)
    assert np.allclose(found, closed_form(x, y, x_new, penalty))
    other = PENALTIES[(PENALTIES.index(penalty) + 2) % len(PENALTIES)]
    assert not np.allclose(found, closed_form(x, y, x_new, other), rtol=1e-6)
    assert np.allclose(found, ridge(constant[0], y, constant[1], 0)[0])
    wide = np.random.default_rng(1).normal(size=(len(y), 150))
    assert ridge(*data()[:3], 0)[1] < 1e-2 < ridge(wide, y, wide, 0)[1]


def test_a_probe_finds_what_is_there_and_nothing_else():
    x, y, x_new, y_new = data()
    blank = np.random.default_rng(5).normal(size=(2, len(y), 12))
    same = np.repeat(np.random.default_rng(6).normal(size=(100, 4)), 2, axis=0)
    study = probe(
        {"good": (x, x_new), "noise": (blank[0], blank[1]), "composition": (same, same)},
        (y, y_new), name="y / 1", sizes=(2 * FOLDS, 200), seeds=(0, 1), shuffled=("good",),
        compositions=[f"A{i // 2}B" for i in range(len(y_new))],  # two crystals of each
    )  # fmt: skip
    assert json.loads(json.dumps(study, allow_nan=False)) == study
    mean = mean_scores(study).xs(200, level="n_train")
    assert mean.loc["good", ("r2", "mean")] > 0.99
    assert mean.loc["good", ("mae", "mean")] < 0.2 < study["spread"]
    assert mean.loc["good", ("right_order", "mean")] > 0.95
    for nothing in ("noise", "good, shuffled", "composition"):
        assert mean.loc[nothing, ("r2", "mean")] < 0.1
        assert abs(mean.loc[nothing, ("right_order", "mean")] - 0.5) < 0.2
    # A map of the composition alone gives both crystals of a pair the same value.
    assert tuple(mean.loc["composition", "right_order"]) == (0.5, 0.0)
    assert study["n_pairs"] > 90


SMALL = {
    "default": {
        "channels": 16, "vector_channels": 6, "tensor_channels": 4, "pair_channels": 8,
        "gate_channels": 4, "blocks": 2,
    },
    "paper": {"blocks": 1, "atom": 16, "edge": 16, "triplet": 8, "num_radial": 16},
}  # fmt: skip


@cache
def model_of(preset: str, dtype: torch.dtype = torch.float64) -> CrystalModel:
    config = config_from_dict({"preset": preset, "network": SMALL[preset]})
    model = untrained(build_model(config, CellStatistics.neutral()), 0)
    model.denoiser.to(dtype)
    return model


def shaken():
    crystals = batch()
    shake = torch.randn(crystals.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    frac = crystals.frac_coords + 0.03 * shake.double()
    return crystals.with_geometry(crystals.lattice, frac - frac.floor())


def backwards(crystals):
    ends = zip(crystals.n_atoms.cumsum(0).tolist(), crystals.n_atoms.tolist(), strict=True)
    return torch.cat([torch.arange(end - 1, end - n - 1, -1) for end, n in ends])


@pytest.mark.parametrize("preset", list(SMALL))
def test_the_representation_is_invariant_and_tells_crystals_and_levels_apart(preset):
    model, crystals = model_of(preset), shaken()
    base = latents(model, crystals, level=3)
    near = {"rtol": 0, "atol": 1e-9 * np.abs(base).max()}
    for same in (
        rotate(crystals, orthogonal(1, 1)),
        rotate(crystals, orthogonal(1, -1)),
        translate(crystals, SHIFT),
        retile(crystals, unimodular(3)),
        permute(crystals, backwards(crystals)),
    ):
        assert np.allclose(latents(model, same, level=3), base, **near)
    assert np.allclose(latents(model, crystals, level=3, batch=2), base)
    strained = crystals.with_geometry(1.05 * crystals.lattice, crystals.frac_coords)
    for other in (latents(model, strained, level=3), latents(model, crystals, level=50)):
        assert (np.abs(other - base).max(1) > 1e-4 * np.abs(base).max()).all()
    moved = np.abs(latents(model, batch(), level=3) - base).max(1)
    several = (crystals.n_atoms > 1).numpy()  # one atom alone cannot be moved
    assert (moved[several] > 1e-5).all()
    assert (moved[~several] < 1e-9).all()


def test_controls_know_compositions_and_no_more():
    model, some = model_of("default", torch.float32), [0, 3, 8, 14]
    sets, moved = (
        feature_sets(model, crystals.to(dtype=torch.float32).select(some), draws=2)
        for crystals in (batch(), shaken())
    )
    assert {len(x) for x in sets.values()} == {len(some)}
    assert all(np.isfinite(x).all() for x in sets.values())
    for name, found in sets.items():
        blind = name.startswith("composition") or name == "latent of noise"
        assert np.array_equal(moved[name], found) == blind, name
    structure = one(batch().select([8]))
    expected = np.bincount(structure.atomic_numbers, minlength=119) / len(structure)
    assert np.allclose(sets["composition"][2], expected)
    state = torch.random.get_rng_state()
    crystals = batch().to(dtype=torch.float32)
    drawn = [latents(untrained(model, seed), crystals) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])
    prior = draw_prior(model, crystals, range(len(crystals)))
    assert torch.equal(prior.atomic_numbers, crystals.atomic_numbers)
    assert not torch.allclose(prior.frac_coords, crystals.frac_coords)


@pytest.mark.parametrize(
    ("numbers", "group"),
    [
        ([38, 22, 8], "oxide"), ([11, 17], "halide"), ([30, 16], "chalcogenide"),
        ([31, 33], "pnictide"), ([22, 6], "boride to germanide"), ([11, 1], "hydride"),
        ([29, 79], INTERMETALLIC), ([8, 9], "halide"), ([3, 26, 15, 8], "oxide"),
    ],
)  # fmt: skip
def test_crystals_are_grouped_by_their_anion(numbers, group):
    assert anion_group(numbers) == group


def test_the_map_is_the_plane_of_largest_variance():
    random, n = np.random.default_rng(0), len(CRYSTALS)
    hidden = random.normal(size=(n, 2)) * [3.0, 1.0]
    features = hidden @ random.normal(size=(2, 9)) + 1e-6 * random.normal(size=(n, 9))
    energies = [float("nan"), *range(1, n)]
    found = principal_map(features, batch(), energies, densities(split(batch())).tolist())
    scaled = (features - features.mean(0)) / features.std(0)
    values = np.linalg.eigvalsh(np.cov(scaled.T, bias=True))[::-1]
    assert (np.var(found["x"]), np.var(found["y"])) == pytest.approx(tuple(values[:2]))
    assert found["explained"] == pytest.approx(list(values[:2] / values.sum()))
    assert found["energy_ev_per_atom"][0] is None
    json.dumps(found, allow_nan=False)


def by_spglib(lattice, symprec):
    """Lattice system of a cell with one atom, as spglib finds it."""
    alone = Structure(Lattice(lattice), ["H"], [[0, 0, 0]])
    return SpacegroupAnalyzer(alone, symprec=symprec, angle_tolerance=-1).get_lattice_type()


def test_every_space_group_has_its_lattice_system():
    """International Tables for Crystallography A, table 2.1.1.1."""
    names = [n for n in LATTICE_SYSTEMS if n != "rhombohedral"]
    for number in range(1, 231):
        system = names[np.searchsorted([3, 16, 75, 143, 195], number, side="right")]
        if number in (146, 148, 155, 160, 161, 166, 167):
            system = "rhombohedral"
        assert lattice_system(number) == system, number


IDEAL = {
    "triclinic": (3.1, 4.3, 5.7, 71, 82, 97),
    "monoclinic": (3.1, 4.3, 5.7, 90, 103, 90),
    "orthorhombic": (3.1, 4.3, 5.7, 90, 90, 90),
    "tetragonal": (3.1, 3.1, 5.7, 90, 90, 90),
    "rhombohedral": (4.3, 4.3, 4.3, 75, 75, 75),
    "hexagonal": (3.1, 3.1, 5.7, 90, 90, 120),
    "cubic": (4.3, 4.3, 4.3, 90, 90, 90),
}


@pytest.mark.parametrize("system", LATTICE_SYSTEMS)
def test_a_strained_cell_keeps_its_system_within_the_tolerance_and_loses_it_below(system):
    rows = Lattice.from_parameters(*IDEAL[system]).matrix
    strain = np.random.default_rng(3).normal(size=(3, 3))
    strained = rows @ (np.eye(3) + 0.002 * (strain + strain.T))  # misses by some 0.03 Å
    assert lattice_system(holohedry(rows, 0.001)) == system
    assert lattice_system(holohedry(strained, 0.2)) == by_spglib(strained, 0.2) == system
    assert lattice_system(holohedry(strained, 0.001)) == "triclinic"


def test_a_study_finds_groups_cells_and_what_a_tolerance_hides():
    shear = np.array([[1.004, 0.003, 0.002], [0.003, 0.997, -0.004], [0.002, -0.004, 1.002]])
    whole = [one(c) for c in CRYSTALS.values()]
    strained = [Crystal(c.lattice @ shear, c.frac_coords, c.atomic_numbers) for c in whole]
    found = study_lattices({"real": whole, "strained": strained}, (0.001, 0.2))
    real, _, sheared, _ = found
    assert real["groups"] == list(SPACE_GROUPS.values())
    systems = [by_spglib(c.lattice, 0.01) for c in whole]
    assert list(map(lattice_system, real["holohedries"])) == systems
    cells, lost = shares(real["holohedries"]), shares(sheared["holohedries"])
    assert shares(real["groups"])["hexagonal"] == pytest.approx(5 / 15)
    assert set(lost.values()) == {0.0, 1.0}
    assert total_variation(cells, cells) == 0
    assert total_variation(cells, lost) == pytest.approx(1 - cells["triclinic"])
    same, chance = agreement(real["groups"], real["groups"])
    assert same == 1
    assert chance == pytest.approx(sum(p**2 for p in shares(real["groups"]).values()))
    assert agreement(real["groups"], sheared["groups"])[0] == pytest.approx(1 / 15)
    assert set(shares([]).values()) == {0.0}
    several = [one(perovskite()), ReadFailure("a", "lost"), one(perovskite())]
    (with_lost,) = study_lattices({"a": several}, (0.1,))  # triclinic in its place
    assert with_lost["groups"] == [221, 1, 221]
    assert list(map(lattice_system, with_lost["holohedries"])) == ["cubic", "triclinic", "cubic"]


@pytest.mark.parametrize("name", list(CRYSTALS))
def test_the_conventional_cell_does_not_depend_on_how_a_crystal_is_given(name):
    given = CRYSTALS[name]
    cell, _, number = conventional_cell(one(given), 0.1)
    assert number == SPACE_GROUPS[name]
    assert np.linalg.det(cell.lattice) > 0
    assert cell.volume / len(cell) == pytest.approx(one(given).volume / len(one(given)))
    moved = rotate(translate(retile(given, unimodular(3)), SHIFT), orthogonal(1, 1))
    for same in (moved, supercell(given, (1, 2, 1))):
        other, _, found = conventional_cell(one(same), 0.1)
        assert (found, len(other)) == (number, len(cell))


def test_the_conventional_cell_keeps_atoms_where_they_were_and_the_hand():
    given = one(rocksalt())
    off = [[0, 0, 0], np.linalg.solve(given.lattice.T, [0.05, 0, 0])]
    cell, _, number = conventional_cell(
        Crystal(given.lattice, given.frac_coords + off, given.atomic_numbers), 0.2
    )
    assert number == 225
    apart = to_atoms(cell).get_all_distances(mic=True)
    apart = apart[cell.atomic_numbers == 11][:, cell.atomic_numbers == 17]
    nearest = np.sort(apart[0])[:3]  # six, of which opposite ones are one pair of atoms here
    assert np.ptp(nearest) == pytest.approx(0.05, abs=0.01)  # zero if it had been symmetrised
    mirrored = rotate(quartz(), orthogonal(2, -1))
    symbols = [conventional_cell(one(c), 0.1)[1] for c in (quartz(), left_handed(), mirrored)]
    assert symbols == ["P3_121", "P3_121", "P3_221"]
    near = np.vstack([given.frac_coords, given.frac_coords[1] + [0, 0, 0.03]])
    colliding = Crystal(given.lattice, near, np.append(given.atomic_numbers, 17))
    assert len(conventional_cell(colliding, 0.1)[0]) == 3
