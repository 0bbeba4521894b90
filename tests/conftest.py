"""Shapes and types written in signatures are checked while the tests run, and only then."""

import os
import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# As the command line does, before torch is loaded: spinning threads crawl beside other work.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background by a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

install_import_hook("crystorus", "typechecking.check")

MP20 = Path(__file__).parents[2] / "shared/data/mp20"


@pytest.fixture
def mp20() -> Path:
    """Folder of MP-20's CSV files; tests that need it are skipped where it is absent."""
    if not MP20.is_dir():
        pytest.skip(f"needs MP-20 in {MP20}")
    return MP20


@pytest.fixture
def prototypes():
    """Textbook crystals by name."""
    from prototypes import all_prototypes

    return all_prototypes()
