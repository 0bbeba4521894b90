"""The runs are importable from the tests, and every session writes their data once."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from crystorus.checkpoint import save_checkpoint
from crystorus.config import config_from_dict
from crystorus.crystal_model import CrystalModel, build_model
from crystorus.diffusion.cell_prior import CellStatistics

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> Path:
    """Folder of train.store and validation.store."""
    from runs import write_stores

    folder = tmp_path_factory.mktemp("stores")
    write_stores(folder)
    return folder


@pytest.fixture
def model() -> CrystalModel:
    """A tiny untrained model of the default preset."""
    torch.manual_seed(0)
    model = build_model(
        config_from_dict(TINY | {"sampling": {"steps": 4}}), CellStatistics.neutral()
    )
    model.trained_elements = frozenset({3, 8, 11, 17, 22, 26, 38})
    return model


@pytest.fixture
def checkpoint(model, tmp_path):
    """Its checkpoint."""
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
