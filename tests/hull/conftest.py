"""Programs and models of these tests are importable from the tests and from worker processes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))


@pytest.fixture
def fake_model(monkeypatch):
    """Random crystals in the place of the shipped checkpoint's."""
    from fake_model import FakeModel

    from crystorus.hull import sampling

    monkeypatch.setattr(sampling, "load_checkpoint", lambda path, device="cpu": FakeModel())


@pytest.fixture
def alloys(tmp_path):
    """A file of known phases of Cu-Au."""
    from alloys import write_alloys

    return write_alloys(tmp_path / "alloys.extxyz")
