"""The runs are importable from the tests, and every session writes their data once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> Path:
    """Folder of train.store and validation.store."""
    from runs import write_stores

    folder = tmp_path_factory.mktemp("stores")
    write_stores(folder)
    return folder
