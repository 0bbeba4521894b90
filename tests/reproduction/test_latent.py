"""The representation is a function of the crystal, not of how it is written down."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
import torch
from groups import orthogonal, unimodular
from prototypes import BUILDERS, all_prototypes, batch

from crystorus.config import config_from_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.data.io import crystals_to_structures, density
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import permute, retile, rotate, translate
from crystorus.reproduction import latent_plots
from crystorus.reproduction.latent import (
    INTERMETALLIC,
    LatentMap,
    anion_group,
    element_fractions,
    element_statistics,
    feature_sets,
    latents,
    principal_map,
    unstructured,
    untrained,
)
from crystorus.reproduction.probing import ProbeScore, ProbeStudy
from crystorus.reproduction.records import from_json, to_json

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


@pytest.fixture(scope="module", params=list(SMALL))
def model(request) -> CrystalModel:
    return model_of(request.param)


def shaken() -> Crystals:
    crystals = batch()
    shake = torch.randn(crystals.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    frac = crystals.frac_coords + 0.03 * shake.double()
    return crystals.with_geometry(crystals.lattice, frac - frac.floor())


def reversed_within(crystals: Crystals) -> torch.Tensor:
    ends = torch.cumsum(crystals.n_atoms, 0).tolist()
    sizes = crystals.n_atoms.tolist()
    return torch.cat(
        [torch.arange(end - 1, end - n - 1, -1) for end, n in zip(ends, sizes, strict=True)]
    )


SYMMETRIES = {
    "rotation": lambda c: rotate(c, orthogonal(1, 1)),
    "reflection": lambda c: rotate(c, orthogonal(1, -1)),
    "translation": lambda c: translate(c, torch.tensor([0.31, -0.7, 0.05]).double()),
    "re-tiling": lambda c: retile(c, unimodular(3)),
    "permutation": lambda c: permute(c, reversed_within(c)),
}


@pytest.mark.parametrize("symmetry", list(SYMMETRIES))
def test_the_representation_is_invariant(model, symmetry):
    crystals = shaken()
    base = latents(model, crystals, level=3)
    moved = latents(model, SYMMETRIES[symmetry](crystals), level=3)
    assert np.abs(moved - base).max() < 1e-9 * np.abs(base).max()


def test_the_representation_tells_crystals_and_levels_apart(model):
    base = latents(model, batch(), level=3)
    strained = batch().with_geometry(1.05 * batch().lattice, batch().frac_coords)
    for other in (latents(model, strained, level=3), latents(model, batch(), level=50)):
        assert (np.abs(other - base).max(1) > 1e-4 * np.abs(base).max()).all()
    # Atoms moved at equal cell and composition: one atom alone cannot be moved.
    several = batch().n_atoms > 1
    moved = np.abs(latents(model, shaken(), level=3) - base).max(1)
    assert (moved[several] > 1e-5).all()
    assert (moved[~several] < 1e-9).all()


def test_batches_and_their_order_do_not_matter(model):
    crystals = shaken()
    base = latents(model, crystals, level=3)
    assert np.allclose(latents(model, crystals, level=3, batch=2), base)
    order = torch.arange(len(crystals)).flip(0)
    assert np.allclose(latents(model, crystals.select(order), level=3), base[::-1])


def test_what_the_heads_read_is_what_is_returned():
    """The last block's state enters the fields through the same normalised scalars."""
    model = model_of("default")
    network = model.denoiser.network
    seen = []
    hook = network.weights.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one = all_prototypes()["perovskite"]
    with torch.no_grad():
        network(one, torch.tensor([3]))
    hook.remove()
    (scalars,) = seen
    assert np.allclose(latents(model, one, level=3)[:, :16], scalars.mean(1).numpy())


def test_untrained_networks_differ_by_seed_and_leave_the_global_state_alone(model):
    state = torch.random.get_rng_state()
    first, again, other = untrained(model, 1), untrained(model, 1), untrained(model, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    crystals = batch().to(dtype=torch.float32)
    assert np.array_equal(latents(first, crystals), latents(again, crystals))
    assert not np.allclose(latents(first, crystals), latents(other, crystals))


def test_the_prior_keeps_compositions_and_nothing_else():
    model = model_of("default", torch.float32)
    drawn = unstructured(model, batch().to(dtype=torch.float32), 0)
    assert torch.equal(drawn.atomic_numbers, batch().atomic_numbers)
    assert not torch.allclose(drawn.frac_coords, batch().frac_coords.float())
    moved = shaken().to(dtype=torch.float32)
    assert torch.equal(unstructured(model, moved, 0).lattice, drawn.lattice)


def test_composition_features_are_pymatgens():
    crystals = batch()
    fractions = element_fractions(crystals)
    for row, structure in zip(fractions, crystals_to_structures(crystals), strict=True):
        shares = structure.composition.fractional_composition.get_el_amt_dict()
        assert row.sum() == pytest.approx(1)
        for element, share in structure.composition.fractional_composition.items():
            assert row[element.Z - 1] == pytest.approx(share)
        assert (row > 0).sum() == len(shares)
    statistics = element_statistics(crystals)
    assert np.allclose(statistics, element_statistics(shaken()))
    assert len(np.unique(statistics.round(9), axis=0)) == len(
        {s.composition.reduced_formula for s in crystals_to_structures(crystals)}
    )


def test_feature_sets_are_rows_of_the_same_crystals():
    model = model_of("default", torch.float32)
    some = [0, 3, 8, 14]
    crystals = batch().to(dtype=torch.float32).select(some)
    sets = feature_sets(model, crystals, draws=2)
    assert {len(x) for x in sets.values()} == {len(some)}
    assert all(np.isfinite(x).all() for x in sets.values())
    assert sets["latent + composition"].shape[1] == sets["latent"].shape[1] + 118
    moved = feature_sets(model, shaken().to(dtype=torch.float32).select(some), draws=2)
    for blind in ("composition", "composition, element statistics", "latent of noise"):
        assert np.array_equal(moved[blind], sets[blind])
    assert not np.allclose(moved["latent"], sets["latent"])


def test_a_level_beyond_the_models_is_refused(model):
    with pytest.raises(ValueError, match="noise level 0: this model has 1 to"):
        latents(model, batch(), level=0)


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
    random = np.random.default_rng(0)
    hidden = random.normal(size=(len(BUILDERS), 2)) * [3.0, 1.0]
    features = hidden @ random.normal(size=(2, 9)) + 1e-6 * random.normal(size=(len(BUILDERS), 9))
    energies = [float("nan"), *range(1, len(BUILDERS))]
    found = principal_map(features, batch(), energies, density(batch()).tolist())
    assert sum(found.explained) == pytest.approx(1, abs=1e-6)
    scaled = (features - features.mean(0)) / features.std(0)
    values = np.linalg.eigvalsh(np.cov(scaled.T, bias=True))[::-1]
    assert np.var(found.x) == pytest.approx(values[0])
    assert np.var(found.y) == pytest.approx(values[1])
    assert found.explained[0] == pytest.approx(values[0] / values.sum())
    assert found.energy_ev_per_atom[0] is None
    assert from_json(LatentMap, json.loads(json.dumps(to_json(found), allow_nan=False))) == found
    panels = latent_plots.draw_latent_map(found).axes[:3]
    drawn = [panel.collections[0].get_offsets() for panel in panels]
    assert [len(d) for d in drawn] == [15, 14, 15]  # an unknown energy is not drawn as zero
    assert sorted(drawn[0][:, 0]) == pytest.approx(sorted(found.x))
    unknown = dataclasses.replace(found, energy_ev_per_atom=(None,) * 15)
    titles = [axes.get_title() for axes in latent_plots.draw_latent_map(unknown).axes]
    assert "density" in titles
    assert "energy" not in titles


def test_the_probe_figure_shows_every_mean():
    scores = tuple(
        ProbeScore(name, n, 100, 5, seed, 1e-3, mae + 0.01 * seed, 0.5, None)
        for name, mae in (("latent", 0.2), ("composition", 0.4))
        for n in (100, 1000)
        for seed in (0, 1)
    )
    study = ProbeStudy("energy / eV", 0.9, 0, scores)
    assert study.mean("latent", 100, "mae") == pytest.approx((0.205, 0.01 / 2**0.5))
    assert np.isnan(study.mean("latent", 100, "right_order")[0])
    axes = latent_plots.draw_probe(study).axes[0]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(line, 0.205) for line in lines)
    assert any(np.allclose(line, 0.405) for line in lines)
