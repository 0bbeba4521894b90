"""A system from one configuration: what comes out of it is fit to be written."""

import numpy as np
import pytest
import torch
from prototypes import all_prototypes
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystorus.config import config_from_dict
from crystorus.crystal_model import build_model, in_reduced_cell
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import symmetry

SKEW = torch.tensor([[1, 2, 0], [0, 1, 0], [-3, 1, 1]])


def structure(c) -> Structure:
    return Structure(
        Lattice(c.lattice[0].T.numpy()), c.atomic_numbers.tolist(), c.frac_coords.numpy()
    )


@pytest.mark.parametrize("name", list(all_prototypes()))
def test_reduced_cells_hold_the_same_crystal(name):
    crystal = all_prototypes()[name]
    skewed = symmetry.retile(crystal, SKEW)
    reduced = in_reduced_cell(skewed)
    assert torch.equal(reduced.atomic_numbers, crystal.atomic_numbers)
    rms = StructureMatcher(primitive_cell=False).get_rms_dist(structure(skewed), structure(reduced))
    assert rms is not None
    assert rms[0] < 1e-6
    shortest = structure(crystal).lattice.get_niggli_reduced_lattice().abc
    np.testing.assert_allclose(
        np.sort(structure(reduced).lattice.abc), np.sort(shortest), rtol=1e-6
    )


def test_the_skewed_cell_is_not_reduced():
    skewed = symmetry.retile(all_prototypes()["rutile"], SKEW)
    assert max(structure(skewed).lattice.abc) > 2 * max(
        structure(in_reduced_cell(skewed)).lattice.abc
    )


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_both_presets_sample_finite_crystals_of_the_composition(preset):
    torch.manual_seed(0)
    model = build_model(config_from_dict({"preset": preset}), CellStatistics.neutral())
    numbers, n_atoms = torch.tensor([3, 26, 8, 8, 11, 17]), torch.tensor([4, 2])
    from crystorus.config import SamplerConfig

    made = model.sample(numbers, n_atoms, seeds=[1, 2], sampler=SamplerConfig("bridge", 2))
    assert torch.equal(made.atomic_numbers, numbers)
    assert torch.isfinite(made.lattice).all()
    assert torch.isfinite(made.frac_coords).all()
