"""What importing the package costs, and what it must never need."""

import pkgutil
import subprocess
import sys

import pytest

import crystal_fidelity

NEED_TORCH = ("alignn", "chgnet", "weights", "features")
MODULES = [
    found.name
    for found in pkgutil.walk_packages(crystal_fidelity.__path__, "crystal_fidelity.")
    if not found.name.endswith("__main__")
]


def imported(*modules):
    """Return what a fresh process has loaded after importing them."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_everything_but_the_networks_imports_without_torch_and_without_crystorus():
    plain = [m for m in MODULES if not m.split(".")[1].startswith(NEED_TORCH)]
    assert len(plain) > 15
    loaded = imported(*plain)
    assert "torch" not in loaded
    assert not any(name.split(".")[0] == "crystorus" for name in loaded)


@pytest.mark.parametrize(
    "module", ["errors", "files", "workers", "download", "provenance", "commandline"]
)
def test_what_every_command_needs_is_light(module):
    heavy = {"numpy", "scipy", "ase", "pymatgen", "torch", "rich", "requests"}
    assert not heavy & imported("crystal_fidelity", f"crystal_fidelity.{module}")


def test_public_names_are_found_and_others_are_not():
    assert all(hasattr(crystal_fidelity, name) for name in crystal_fidelity.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        crystal_fidelity.nonsense
