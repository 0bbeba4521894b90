"""Calculators, the screen before them, and the relaxation of one structure.

Nothing escapes from `relax` but an unusable calculator: a runaway cell, an exploding force, an
energy that is no number and whatever a calculator throws are outcomes, and are recorded.
"""

import contextlib
import functools
import importlib
import io
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import ase.optimize
import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.neighborlist import primitive_neighbor_list

from crystal_fidelity.cells import least_distance
from crystal_fidelity.structures import Crystal
from crystorus.errors import CalculatorError
from crystorus.hull.options import (
    CHGNET,
    RelaxSettings,
    ScreenLimits,
    check_calculator_module,
)

Status = Literal[
    "relaxed", "unconverged", "runaway", "exploded", "not finite", "failed", "lost worker"
]
USABLE: tuple[Status, ...] = ("relaxed", "unconverged")


@functools.lru_cache(maxsize=1)
def load_calculator(path: str) -> BaseCalculator:
    """Return a calculator, made once per process.

    Args:
        path: "chgnet", or "module:factory" whose call without arguments gives an ASE calculator.
            Modules in the working folder are found too.

    Raises:
        CalculatorError: If it cannot be imported or made.
    """
    check_calculator_module(path)
    if path == CHGNET:
        return _chgnet()
    module, _, name = path.partition(":")
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


def energy_level(path: str) -> str:
    """Return the name of what makes the energies: energies of two names are never mixed unasked."""

    def version_of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "of unknown version"

    if path == CHGNET:
        return f"CHGNet 0.3.0 (chgnet {version_of('chgnet')})"
    package = path.partition(":")[0].partition(".")[0]
    return f"{path} ({package} {version_of(package)})"


def screen(atoms: Atoms, limits: ScreenLimits) -> str:
    """Return why a structure is outside the limits, empty where it is inside."""
    cell = np.asarray(atoms.cell.array, dtype=float)
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        return "its cell or positions are not finite"
    volume = abs(float(np.linalg.det(cell))) / len(atoms)
    if not limits.min_volume <= volume <= limits.max_volume:
        return (
            f"{volume:.3g} Å³ per atom, outside {limits.min_volume:g} to {limits.max_volume:g} Å³"
        )
    height = least_height(cell)
    if height < limits.min_height:
        return f"the cell is {height:.2f} Å thin, below {limits.min_height:g} Å"
    frac = np.linalg.solve(cell.T, atoms.positions.T).T
    distance = least_distance(Crystal(cell, frac, atoms.numbers.astype(np.int64)))
    if not distance >= limits.min_distance:
        return f"atoms {distance:.3f} Å apart, below {limits.min_distance:g} Å"
    if atoms.cell.lengths().min() > limits.max_gap:
        # Of a shorter cell every atom has its own image as a neighbour.
        first = primitive_neighbor_list("i", (True,) * 3, cell, atoms.positions, limits.max_gap)
        if len(alone := np.setdiff1d(np.arange(len(atoms)), first)):
            return f"atom {alone[0] + 1} has no neighbour within {limits.max_gap:g} Å"
    return ""


def least_height(cell: np.ndarray) -> float:
    """Return the least distance in Å between opposite faces of a cell of row vectors [3, 3]."""
    return float(1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())


@dataclass(frozen=True, eq=False)
class RelaxJob:
    """A structure to relax; it travels to worker processes."""

    id: int
    atoms: Atoms
    settings: RelaxSettings


@dataclass(frozen=True, eq=False)
class RelaxOutcome:
    """What became of a structure.

    Attributes:
        id: Of the job.
        status: What happened.
        reason: In words, empty for a success.
        atoms: The last structure with its energy, forces and stress where they are known.
        steps: Of the optimiser.
        seconds: Wall time.
        cpu_seconds: Processor time.
    """

    id: int
    status: Status
    reason: str
    atoms: Atoms
    steps: int
    seconds: float
    cpu_seconds: float

    @property
    def energy(self) -> float | None:
        """Total energy in eV, None for a failure."""
        return self.atoms.get_potential_energy() if self.status in USABLE else None


class _Stopped(Exception):  # noqa: N818 - an outcome, not an error
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


class _Guard(Calculator):
    """Passes to the inner calculator only what it can answer, and checks its answers."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, inner: BaseCalculator, settings: RelaxSettings, volume: float) -> None:
        super().__init__()
        self._inner, self._settings, self._volume = inner, settings, volume

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = None,
        system_changes: Any = all_changes,
    ) -> None:
        """Compute energy in eV, forces in eV/Å and, if the cell moves, stress in eV/Å³."""
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        settings = self._settings
        reason = screen(atoms, settings.screen)
        grown, factor = atoms.get_volume() / self._volume, settings.volume_factor
        if not reason and not 1 / factor <= grown <= factor:
            reason = f"the volume became {grown:.3g} times what it was, beyond a factor {factor:g}"
        if reason:
            raise _Stopped("runaway", reason)
        wanted = ["energy", "forces", *(["stress"] if settings.relax_cell else [])]
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        try:
            found = {name: self._inner.get_property(name, bare) for name in wanted}
        except Exception as error:
            raise _Stopped("failed", f"{type(error).__name__}: {str(error)[:200]}") from error
        for name, value in found.items():
            if value is None or not np.isfinite(np.asarray(value, dtype=float)).all():
                raise _Stopped("not finite", f"the calculator's {name} is not finite")
        largest = float(np.linalg.norm(found["forces"], axis=1).max())
        if largest > settings.max_force:
            raise _Stopped(
                "exploded", f"a force of {largest:.3g} eV/Å, above {settings.max_force:g}"
            )
        self.results = {name: np.array(value, dtype=float) for name, value in found.items()}
        self.results["energy"] = self.results["energy"].item()


def relax(job: RelaxJob) -> RelaxOutcome:
    """Relax one structure.

    Raises:
        CalculatorError: If there is no such calculator here.
    """
    began, cpu_began = time.monotonic(), time.process_time()
    settings = job.settings
    inner = load_calculator(settings.calculator)
    atoms = Atoms(job.atoms.numbers, job.atoms.positions, cell=job.atoms.cell, pbc=True)
    status: Status
    steps = 0
    try:
        # A potential's remarks on every call say nothing of one structure among hundreds.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if settings.keep_symmetry:
                atoms.set_constraint(FixSymmetry(atoms, symprec=settings.symprec))
            atoms.calc = _Guard(inner, settings, atoms.get_volume())
            moving = FrechetCellFilter(atoms) if settings.relax_cell else atoms
            optimizer = getattr(ase.optimize, settings.optimizer)(moving, logfile=None)
            try:
                converged = optimizer.run(fmax=settings.fmax, steps=settings.steps)
            finally:
                steps = optimizer.nsteps
        status, reason = "relaxed", ""
        if not converged:
            status = "unconverged"
            reason = f"forces above {settings.fmax:g} eV/Å after {settings.steps} steps"
    except _Stopped as stop:
        status, reason = stop.status, str(stop)
    except Exception as error:  # noqa: BLE001 - an optimiser fed nonsense may raise anything
        status, reason = "failed", f"{type(error).__name__}: {str(error)[:200]}"
    if not (np.isfinite(atoms.cell.array).all() and np.isfinite(atoms.positions).all()):
        atoms = job.atoms
    # Plain atoms that carry the numbers and not what computed them.
    final = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if status in USABLE:
        results = {name: atoms.calc.results[name] for name in sorted(atoms.calc.results)}
        final.calc = SinglePointCalculator(final, **results)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    return RelaxOutcome(job.id, status, reason, final, steps, seconds, cpu_seconds)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
