"""Validity and match rate of crystals about which both are known."""

import math

import numpy as np
import torch
from prototypes import crystal, cscl, fcc, rocksalt, zincblende
from tiny import TINY

from crystorus.config import SamplerConfig, config_from_dict
from crystorus.crystal_model import build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals, Prediction
from crystorus.train import quality
from crystorus.train.quality import LARGEST_CELL, sample_quality


def compare(made, references):
    return quality.compare(made.split(), references.split())


def scaled(crystal, factor):
    return crystal.with_geometry(crystal.lattice * factor, crystal.frac_coords)


def test_a_crystal_matches_itself_turned_and_shifted():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())
    one = rocksalt()
    moved = one.with_geometry(turn.Q @ one.lattice, (one.frac_coords + 0.3) % 1)
    found = compare(Crystals.concat([one, moved]), Crystals.concat([one, one]))
    assert (found["valid"], found["match_rate"]) == (1.0, 1.0)
    assert found["match_rmse"] < 1e-6


def test_another_structure_does_not_match_and_counts_in_the_denominator():
    # ZnS in the cell and at the sites of CsCl.
    wrong = Crystals(cscl().lattice, cscl().frac_coords, zincblende().atomic_numbers,
                     torch.tensor([2]))  # fmt: skip
    made = Crystals.concat([wrong, zincblende(), zincblende(), wrong])
    found = compare(made, Crystals.concat([zincblende()] * 4))
    assert found["valid"] == 1.0
    assert found["match_rate"] == 0.5


def test_collapsed_and_broken_crystals_are_not_valid_and_do_not_match():
    # The cell of one atom: its own images are too near.
    self_image = scaled(fcc(), 0.15)
    overlap = rocksalt().with_geometry(rocksalt().lattice, torch.zeros(2, 3).double())
    broken = rocksalt().with_geometry(rocksalt().lattice * math.nan, rocksalt().frac_coords)
    made = Crystals.concat([self_image, overlap, broken])
    found = compare(made, Crystals.concat([fcc(), rocksalt(), rocksalt()]))
    assert (found["valid"], found["match_rate"]) == (0.0, 0.0)
    assert math.isnan(found["match_rmse"])


def test_half_an_angstrom_to_an_own_image_is_the_limit():
    for distance, valid in ((0.51, 1.0), (0.49, 0.0)):
        needle = crystal(np.diag([distance, 5.0, 5.0]), "Cu", [0, 0, 0])
        assert compare(needle, fcc())["valid"] == valid


def test_a_tenth_of_a_cubic_angstrom_is_the_limit():
    for volume, valid in ((0.11, 1.0), (0.09, 0.0)):
        # Sheared, so that no lattice point is near although the volume is small.
        flat = crystal([[0.6, 0, 0], [0, 0.6, 0], [0.3, 0.3, volume / 0.36]], "Cu", [0, 0, 0])
        assert compare(flat, fcc())["valid"] == valid


class Exploding:
    """A network that lets the cells of copper grow a hundredfold; it notes the largest it sees."""

    def __init__(self):
        self.largest = 0.0

    def __call__(self, crystals, t):
        self.largest = max(self.largest, float((crystals.volume / crystals.n_atoms).max()))
        copper = (crystals.n_atoms == 1).to(crystals.lattice)
        growth = copper[:, None, None] * math.log(100.0) * torch.eye(3)
        return Prediction(
            lattice=torch.linalg.matrix_exp(growth) @ crystals.lattice,
            displacement=torch.zeros_like(crystals.frac_coords),
            strain=-growth,
        )


def test_a_cell_that_explodes_is_given_up_and_the_others_are_not():
    """The network is never asked about a cell beyond the limit: its lattice sums have no bound."""
    model = build_model(config_from_dict(TINY), CellStatistics.neutral())
    network = Exploding()
    references = Crystals.concat([rocksalt(), fcc(), cscl(), fcc()]).to(dtype=torch.float32)
    found = sample_quality(
        network,
        model.diffusion,
        SamplerConfig("bridge", 4),
        references,
        device=torch.device("cpu"),
    )
    assert network.largest <= LARGEST_CELL
    assert found["valid"] <= 0.5
