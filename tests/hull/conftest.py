"""Programs and models of these tests are importable from the tests and from worker processes."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fake_model(monkeypatch):
    """Random crystals in the place of the shipped checkpoint's."""
    from alloys import guided_fake

    from crystorus import checkpoint

    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device="cpu": guided_fake())


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Templates for Cu-Au."""
    from alloys import write_library

    return write_library(tmp_path_factory.mktemp("library") / "known.templates")


@pytest.fixture
def alloys(tmp_path, library):
    """A file of known phases of Cu-Au, and beside it the library."""
    from alloys import write_alloys

    shutil.copy(library, tmp_path)
    return write_alloys(tmp_path / "alloys.extxyz")
