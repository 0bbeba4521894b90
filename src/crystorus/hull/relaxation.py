"""One structure to its nearest minimum, or to a stated reason why not. Torch-free until it runs.

Nothing escapes from `relax` but an unusable calculator: a runaway cell, an exploding force, an
energy that is no number and whatever a calculator throws are outcomes, and are recorded.
"""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import ase.optimize
import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter

from crystorus.hull.calculators import CHGNET, load_calculator
from crystorus.hull.screening import ScreenLimits, screen

Optimizer = Literal["BFGS", "LBFGS", "FIRE"]
Status = Literal[
    "relaxed", "unconverged", "runaway", "exploded", "not finite", "failed", "lost worker"
]
USABLE: tuple[Status, ...] = ("relaxed", "unconverged")


@dataclass(frozen=True)
class RelaxSettings:
    """How structures are relaxed."""

    calculator: str = CHGNET
    """chgnet, or module:factory."""
    fmax: float = 0.05
    """eV/Å; the largest force at which a structure counts as relaxed."""
    steps: int = 300
    """Steps, at most."""
    optimizer: Optimizer = "BFGS"
    """ASE's optimiser."""
    relax_cell: bool = True
    """Whether the cell moves too."""
    keep_symmetry: bool = False
    """Whether the space group of the start is imposed on every step."""
    symprec: float = 0.1
    """Å; tolerance within which that space group is found."""
    max_force: float = 300.0
    """eV/Å; above it a structure is given up."""
    volume_factor: float = 3.0
    """Growth or shrinkage of the volume at which a cell has run away."""
    screen: ScreenLimits = field(default_factory=ScreenLimits)
    """What the calculator is never asked."""


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
    """Asks the inner calculator only what it can answer, and looks at its answers."""

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
        """Compute energy, forces and, if the cell moves, stress."""
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        self._check_structure(atoms)
        wanted = ["energy", "forces", *(["stress"] if self._settings.relax_cell else [])]
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        try:
            found = {name: self._inner.get_property(name, bare) for name in wanted}
        except Exception as error:
            raise _Stopped("failed", f"{type(error).__name__}: {str(error)[:200]}") from error
        self._check_answers(found)
        self.results = {name: np.array(value, dtype=float) for name, value in found.items()}
        self.results["energy"] = self.results["energy"].item()

    def _check_structure(self, atoms: Atoms) -> None:
        reason = screen(atoms, self._settings.screen)
        grown = atoms.get_volume() / self._volume
        factor = self._settings.volume_factor
        if not reason and not 1 / factor <= grown <= factor:
            reason = f"the volume became {grown:.3g} times what it was, beyond a factor {factor:g}"
        if reason:
            raise _Stopped("runaway", reason)

    def _check_answers(self, found: dict[str, Any]) -> None:
        for name, value in found.items():
            if value is None or not np.isfinite(np.asarray(value, dtype=float)).all():
                raise _Stopped("not finite", f"the calculator's {name} is not finite")
        largest = float(np.linalg.norm(found["forces"], axis=1).max())
        if largest > self._settings.max_force:
            raise _Stopped(
                "exploded", f"a force of {largest:.3g} eV/Å, above {self._settings.max_force:g}"
            )


def relax(job: RelaxJob) -> RelaxOutcome:
    """Relax one structure.

    Raises:
        CalculatorError: If there is no such calculator here.
    """
    with warnings.catch_warnings():
        # A potential's remarks on every call say nothing of one structure among hundreds.
        warnings.simplefilter("ignore")
        return _relax(job)


def _relax(job: RelaxJob) -> RelaxOutcome:
    began, cpu_began = time.monotonic(), time.process_time()
    inner = load_calculator(job.settings.calculator)
    atoms = Atoms(job.atoms.numbers, job.atoms.positions, cell=job.atoms.cell, pbc=True)
    status: Status
    steps = 0
    try:
        if job.settings.keep_symmetry:
            atoms.set_constraint(FixSymmetry(atoms, symprec=job.settings.symprec))
        atoms.calc = _Guard(inner, job.settings, atoms.get_volume())
        moving = FrechetCellFilter(atoms) if job.settings.relax_cell else atoms
        optimizer = getattr(ase.optimize, job.settings.optimizer)(moving, logfile=None)
        try:
            converged = optimizer.run(fmax=job.settings.fmax, steps=job.settings.steps)
        finally:
            steps = optimizer.nsteps
        status, reason = ("relaxed", "") if converged else ("unconverged", _unconverged(job))
    except _Stopped as stop:
        status, reason = stop.status, str(stop)
    except Exception as error:  # noqa: BLE001 - an optimiser fed nonsense may raise anything
        status, reason = "failed", f"{type(error).__name__}: {str(error)[:200]}"
    if not (np.isfinite(atoms.cell.array).all() and np.isfinite(atoms.positions).all()):
        atoms = job.atoms
    final = _with_results(atoms, keep=status in USABLE)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    return RelaxOutcome(job.id, status, reason, final, steps, seconds, cpu_seconds)


def _unconverged(job: RelaxJob) -> str:
    return f"forces above {job.settings.fmax:g} eV/Å after {job.settings.steps} steps"


def _with_results(atoms: Atoms, *, keep: bool) -> Atoms:
    """Return plain atoms that carry the numbers themselves and not what computed them."""
    plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if keep:
        results = {name: atoms.calc.results[name] for name in sorted(atoms.calc.results)}
        plain.calc = SinglePointCalculator(plain, **results)
    return plain
