"""Energies: CHGNet as it comes in its package, or any ASE calculator by the path of a factory."""

import contextlib
import functools
import importlib
import io
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from crystorus.hull.errors import CalculatorError

CHGNET = "chgnet"


@functools.lru_cache(maxsize=1)
def load_calculator(path: str) -> BaseCalculator:
    """Return a calculator, made once per process.

    Args:
        path: "chgnet", or "module:factory" whose call without arguments gives an ASE calculator.
            Modules in the working folder are found too.

    Raises:
        CalculatorError: If it cannot be imported or made.
    """
    if path == CHGNET:
        return _chgnet()
    module, _, name = path.partition(":")
    if not (module and name):
        raise CalculatorError(
            f"--calculator {path} names no factory: write module:function, as in "
            "ase.calculators.emt:EMT, or chgnet"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise CalculatorError(
            f"--calculator {path} cannot be had ({_short(error)}): install it where every worker "
            "runs, or correct the path"
        ) from error
    if not isinstance(found, BaseCalculator):
        raise CalculatorError(
            f"--calculator {path} gave a {type(found).__name__}, which is no ASE calculator: name "
            "a function that returns one"
        )
    return found


def energy_level(path: str) -> str:
    """Return the name of what makes the energies: energies of two names are never mixed unasked."""
    if path == CHGNET:
        return f"CHGNet 0.3.0 (chgnet {_version('chgnet')})"
    package = path.partition(":")[0].partition(".")[0]
    return f"{path} ({package} {_version(package)})"


def _chgnet() -> BaseCalculator:
    try:
        # On import and on loading it prints lines that belong to no table.
        with contextlib.redirect_stdout(io.StringIO()):
            from chgnet.model.dynamics import CHGNetCalculator

            return CHGNetCalculator(on_isolated_atoms="error")
    except ImportError as error:
        raise CalculatorError(
            f"CHGNet cannot be imported ({_short(error)}): pip install 'crystorus[hull]', or name "
            "another with --calculator module:factory"
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"
