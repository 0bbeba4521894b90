"""Where a number comes from: machine, programs, commit and date."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crystal_fidelity.provenance import git_commit, hardware, today

_PROGRAMS = ("crystorus", "crystal-fidelity", "torch", "chgnet", "numpy", "pymatgen", "moyopy")


def provenance(device: str) -> dict[str, Any]:
    """Return what made a result, and when."""
    return {
        "date": today(),
        "commit": git_commit(__file__),
        "hardware": hardware(str(device)),
        "programs": {"python": platform.python_version()}
        | {name: found for name in _PROGRAMS if (found := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
