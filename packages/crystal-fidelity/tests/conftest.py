"""Make the prototype structures importable, and skip what needs the real data."""

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as its command line does, before torch
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background by a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))
MP20 = Path(__file__).parents[3].parent / "shared" / "data" / "mp20"


@pytest.fixture(scope="session")
def validation_csv() -> Path:
    path = MP20 / "val.csv.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/mp20")
    return path
