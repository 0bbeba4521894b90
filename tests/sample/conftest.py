"""The fake model is importable from the tests and from the programs that they start and kill."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
