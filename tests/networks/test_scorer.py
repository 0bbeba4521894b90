"""What a scorer says does not depend on how a crystal is written down."""

import math

import pytest
import torch
from groups import orthogonal, unimodular
from networks.test_fieldnet import build
from prototypes import all_prototypes

from crystorus.geometry.symmetry import permute, retile, rotate, translate
from crystorus.networks.scorer import Scorer

CRYSTALS = all_prototypes()
FREE = torch.tensor([torch.nan])


@pytest.fixture(scope="module")
def scorer():
    scorer = Scorer(build().network, level=150).double().eval()
    torch.nn.init.normal_(scorer.head[2].weight)
    return scorer


@pytest.mark.parametrize("name", sorted(CRYSTALS))
@torch.no_grad()
def test_invariant_under_every_symmetry(scorer, name):
    crystal = CRYSTALS[name]
    said = float(scorer(crystal, FREE))
    order = torch.randperm(len(crystal.frac_coords), generator=torch.Generator().manual_seed(1))
    for changed in (
        rotate(crystal, orthogonal(2, -1)),
        permute(crystal, order),
        retile(crystal, unimodular(3)),
        translate(crystal, torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)),
    ):
        assert float(scorer(changed, FREE)) == pytest.approx(said, abs=1e-9)


@torch.no_grad()
def test_other_crystals_are_scored_otherwise(scorer):
    """The control: what is no symmetry changes what it says."""
    crystal = CRYSTALS["perovskite"]
    said = float(scorer(crystal, FREE))
    strained = crystal.lattice * torch.tensor([1.0, 1.0, 1.05], dtype=torch.float64)
    moved = crystal.frac_coords.clone()
    moved[0, 0] += 0.02
    for changed in (
        crystal.with_geometry(strained, crystal.frac_coords),
        crystal.with_geometry(crystal.lattice, moved),
    ):
        assert abs(float(scorer(changed, FREE)) - said) > 1e-6


@torch.no_grad()
def test_a_skeleton_of_more_weight_is_believed_sooner(scorer):
    """With the prior that it begins with: the logarithm of the weight."""
    crystal = CRYSTALS["rocksalt"]
    free, least, none, tenth, all_of_it = (
        float(scorer(crystal, torch.tensor([float(weight)])))
        for weight in (torch.nan, 1e-3, 0, 0.1, 1)
    )
    assert all_of_it == free, "without symmetry there is nothing to say"
    assert all_of_it - tenth == pytest.approx(math.log(10), abs=1e-5)
    assert all_of_it - least == pytest.approx(math.log(1000), abs=1e-5)
    assert none == least
