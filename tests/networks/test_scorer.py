"""What a scorer says does not depend on how a crystal is written down."""

import pytest
import torch
from groups import orthogonal, unimodular
from networks.test_fieldnet import build
from prototypes import all_prototypes

from crystorus.geometry.symmetry import permute, retile, rotate, translate
from crystorus.networks.scorer import Scorer

CRYSTALS = all_prototypes()


@pytest.fixture(scope="module")
def scorer():
    scorer = Scorer(build().network, level=150).double().eval()
    torch.nn.init.normal_(scorer.head[2].weight)
    return scorer


@pytest.mark.parametrize("name", sorted(CRYSTALS))
@torch.no_grad()
def test_invariant_under_every_symmetry(scorer, name):
    crystal = CRYSTALS[name]
    said = float(scorer(crystal))
    order = torch.randperm(len(crystal.frac_coords), generator=torch.Generator().manual_seed(1))
    for changed in (
        rotate(crystal, orthogonal(2, -1)),
        permute(crystal, order),
        retile(crystal, unimodular(3)),
        translate(crystal, torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)),
    ):
        assert float(scorer(changed)) == pytest.approx(said, abs=1e-9)


@torch.no_grad()
def test_other_crystals_are_scored_otherwise(scorer):
    """The control: what is no symmetry changes what it says."""
    crystal = CRYSTALS["perovskite"]
    said = float(scorer(crystal))
    strained = crystal.lattice * torch.tensor([1.0, 1.0, 1.05], dtype=torch.float64)
    moved = crystal.frac_coords.clone()
    moved[0, 0] += 0.02
    for changed in (
        crystal.with_geometry(strained, crystal.frac_coords),
        crystal.with_geometry(crystal.lattice, moved),
    ):
        assert abs(float(scorer(changed)) - said) > 1e-6
