"""What a judge says does not depend on how a crystal is written down."""

import pytest
import torch
from groups import orthogonal, unimodular
from networks.test_fieldnet import build
from prototypes import all_prototypes

from crystorus.geometry.symmetry import permute, retile, rotate, translate
from crystorus.networks.judge import Judge

CRYSTALS = all_prototypes()


@pytest.fixture(scope="module")
def judge():
    judge = Judge(build().network, level=150).double().eval()
    torch.nn.init.normal_(judge.head[2].weight)
    return judge


@pytest.mark.parametrize("name", sorted(CRYSTALS))
@torch.no_grad()
def test_invariant_under_every_symmetry(judge, name):
    crystal = CRYSTALS[name]
    said = float(judge(crystal))
    order = torch.randperm(len(crystal.frac_coords), generator=torch.Generator().manual_seed(1))
    for changed in (
        rotate(crystal, orthogonal(2, -1)),
        permute(crystal, order),
        retile(crystal, unimodular(3)),
        translate(crystal, torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)),
    ):
        assert float(judge(changed)) == pytest.approx(said, abs=1e-9)


@torch.no_grad()
def test_other_crystals_are_judged_otherwise(judge):
    """The control: what is no symmetry changes what it says."""
    crystal = CRYSTALS["perovskite"]
    said = float(judge(crystal))
    strained = crystal.lattice * torch.tensor([1.0, 1.0, 1.05], dtype=torch.float64)
    moved = crystal.frac_coords.clone()
    moved[0, 0] += 0.02
    for changed in (
        crystal.with_geometry(strained, crystal.frac_coords),
        crystal.with_geometry(crystal.lattice, moved),
    ):
        assert abs(float(judge(changed)) - said) > 1e-6
