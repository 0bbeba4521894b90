"""The scorer that ships: textbook crystals against the same with displaced atoms."""

import pytest
import torch
from prototypes import perovskite, rocksalt, rutile, spinel, zincblende

from crystorus.checkpoint import SHIPPED, load_checkpoint, read_card, read_scorer_card


@pytest.fixture(scope="module")
def model():
    return load_checkpoint()


@pytest.mark.parametrize("make", [rocksalt, perovskite, rutile, spinel, zincblende])
def test_the_real_crystal_is_preferred_to_what_has_become_of_it(model, make):
    real = make().to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    shift = 0.15 * torch.randn(real.frac_coords.shape, generator=generator)
    moved = real.with_geometry(real.lattice, (real.frac_coords + shift) % 1)
    one, other = (float(model.scorer_error(c, seeds=[0])) for c in (real, moved))
    assert one < other


def test_its_figures_are_of_the_weights_that_ship(model):
    card, shipped = read_scorer_card(SHIPPED), read_card(SHIPPED)
    measured = card["card"]["validation"]
    assert measured["checkpoint"] == shipped["sha256"] == model.digest
    assert measured["scorer"] == card["sha256"] == model.scorer_digest
    alone = shipped["card"]["validation"]["model"]
    assert measured["model"]["match_percent_all"] > alone["match_percent_all"] > 50
