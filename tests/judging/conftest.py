"""A tiny checkpoint of the default preset, and known crystals made of prototypes."""

import pytest
import torch
from prototypes import cscl, perovskite, rocksalt, zincblende
from tiny import TINY

from crystorus.checkpoint import save_checkpoint
from crystorus.config import config_from_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.geometry import Crystals

SHORT = TINY | {"sampling": {"steps": 4}}


@pytest.fixture
def model() -> CrystalModel:
    torch.manual_seed(0)
    model = build_model(config_from_dict(SHORT), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 8, 11, 17, 22, 26, 38})
    return model


@pytest.fixture
def checkpoint(model, tmp_path):
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def with_elements(crystal: Crystals, seed: int) -> Crystals:
    """The prototype with random elements, a little stretched."""
    generator = torch.Generator().manual_seed(seed)
    old, where = torch.unique(crystal.atomic_numbers, return_inverse=True)
    new = 3 + torch.randperm(80, generator=generator)[: len(old)]
    scale = 0.9 + 0.2 * torch.rand(1, generator=generator).double()
    return Crystals(crystal.lattice * scale, crystal.frac_coords, new[where], crystal.n_atoms)


def known(count: int) -> list[Crystals]:
    kinds = (rocksalt, cscl, zincblende, perovskite)
    return [with_elements(kinds[n % 4](), n).to(dtype=torch.float32) for n in range(count)]
