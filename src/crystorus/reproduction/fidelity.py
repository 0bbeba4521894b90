"""Scores by crystal-fidelity, which runs in a process of its own: the packages meet in files."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystorus.reproduction.errors import PaperError

PACKAGE = "crystal_fidelity"
NOT_ALL = 3
"""Exit status of a comparison in which some metric could not be computed."""


def check_installed() -> None:
    """Find the package before hours of training, not after.

    Raises:
        PaperError: If it is not there.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise PaperError(
            "crystal-fidelity is not installed: pip install 'crystorus[paper]', or from the source "
            "tree pip install 'packages/crystal-fidelity[chgnet]'"
        )


def run(arguments: Sequence[str | Path]) -> None:
    """Run one of its commands.

    Raises:
        PaperError: If it fails; the message is its last line.
    """
    check_installed()
    command = [sys.executable, "-m", PACKAGE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, NOT_ALL):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise PaperError(f"crystal-fidelity {arguments[0]} failed ({reason[:300]})")


def run_for_json(arguments: Sequence[str | Path], path: Path) -> Any:
    """Run a command that writes JSON to `path`, and read it.

    Raises:
        PaperError: If it fails or writes something else.
    """
    run([*arguments, "--json", path])
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PaperError(f"crystal-fidelity left no result in {path} ({error})") from error
