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


def test_it_scores_the_weights_that_ship(model):
    card = read_scorer_card(SHIPPED)
    assert card["card"]["checkpoint_sha256"] == read_card(SHIPPED)["sha256"] == model.digest
    assert card["card"]["validation"]["scorer"] == card["sha256"] == model.scorer_digest
    assert card["card"]["validation"]["model"]["match_percent"] > 40
