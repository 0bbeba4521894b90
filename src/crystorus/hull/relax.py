"""The screen before a potential, and the relaxation of structures, several per call of it.

Nothing escapes but an unusable potential: a runaway cell, an exploding force, an energy that is no
number and whatever a potential throws are outcomes, and are recorded.
"""

import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import ase.optimize
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.filters import UnitCellFilter
from ase.units import GPa

from crystal_fidelity.cells import face_distances, least_distance
from crystal_fidelity.features import isolated_atom_index
from crystal_fidelity.structures import Crystal
from crystorus.hull.options import RelaxSettings, ScreenLimits
from crystorus.hull.potentials import Results, energy_level, evaluate, load_potential

Status = Literal[
    "relaxed", "unconverged", "runaway", "exploded", "not finite", "failed", "lost worker"
]
USABLE: tuple[Status, ...] = ("relaxed", "unconverged")
CURVATURE = 40.0
"""In eV/Å², of the energy along an atom's coordinates: what the optimiser begins with."""
BULK_MODULUS = 100 * GPa
"""That the cell is taken to have at first, in eV/Å³."""
LONGEST_STEP, LARGEST_STRAIN = 0.2, 0.1
"""Of one step: Å of an atom, and strain of the cell."""


def screen(atoms: Atoms, limits: ScreenLimits) -> str:
    """Return why a structure is outside the limits, empty where it is inside.

    Args:
        atoms: A structure.
        limits: In Å and Å³ per atom.
    """
    cell = np.asarray(atoms.cell.array, dtype=float)
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        return "its cell or positions are not finite"
    volume = abs(float(np.linalg.det(cell))) / len(atoms)
    if not limits.min_volume <= volume <= limits.max_volume:
        return (
            f"{volume:.3g} Å³ per atom, outside {limits.min_volume:g} to {limits.max_volume:g} Å³"
        )
    height = face_distances(cell).min()
    if height < limits.min_height:
        return f"the cell is {height:.2f} Å thin, below {limits.min_height:g} Å"
    frac = np.linalg.solve(cell.T, atoms.positions.T).T
    crystal = Crystal(cell, frac, atoms.numbers.astype(np.int64))
    distance = least_distance(crystal)
    if not distance >= limits.min_distance:
        return f"atoms {distance:.3f} Å apart, below {limits.min_distance:g} Å"
    if (alone := isolated_atom_index(crystal, limits.max_gap)) is not None:
        return f"atom {alone + 1} has no neighbour within {limits.max_gap:g} Å"
    return ""


@dataclass(frozen=True, eq=False)
class RelaxJob:
    """A structure to relax; it travels to worker processes.

    ASE's constraints on its atoms are kept: `FixAtoms` holds fractional coordinates where the cell
    moves.
    """

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
        seconds: Wall time; of a call for several structures each has its share.
        cpu_seconds: Processor time.
        level: What made the energy.
        pressure: GPa.
    """

    id: int
    status: Status
    reason: str
    atoms: Atoms
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    level: str = ""
    pressure: float = 0.0

    @property
    def energy(self) -> float | None:
        """Total energy in eV, None for a failure."""
        return self.atoms.get_potential_energy() if self.status in USABLE else None

    @property
    def enthalpy(self) -> float | None:
        """H = E + pV in eV, None for a failure."""
        work = self.pressure * GPa * self.atoms.get_volume()
        return None if self.energy is None else self.energy + work


class _Stopped(Exception):  # noqa: N818 - an outcome, not an error
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


def relax(job: RelaxJob) -> RelaxOutcome:
    """Relax one structure; see `relax_together`.

    Args:
        job: The structure and how to relax it.
    """
    return relax_together([job])[0]


def relax_together(jobs: Sequence[RelaxJob], batch: int = 1) -> list[RelaxOutcome]:
    """Relax structures, the next step of up to `batch` of them in one call of the potential.

    Each has its own optimiser, so that it takes the steps that it takes alone; where one ends, the
    next one joins. A call that fails, for want of memory or for one structure's sake, is divided.

    Args:
        jobs: Structures, all with the same potential.
        batch: Structures per call, at most.

    Returns:
        Their outcomes, in the same order.

    Raises:
        CalculatorError: If there is no such potential here.
    """
    if not jobs:
        return []
    settings = jobs[0].settings
    calculator = load_potential(settings.potential)
    level = energy_level(settings.potential, settings.pressure)
    wanted = ("energy", "forces", *(["stress"] if settings.relax_cell else []))
    waiting, done = iter(enumerate(jobs)), dict[int, RelaxOutcome]()
    running = dict[int, Generator[Atoms, Any, RelaxOutcome]]()
    asked, spent = dict[int, Atoms](), np.zeros((len(jobs), 2))

    def clocks() -> np.ndarray:
        return np.array([time.monotonic(), time.process_time()])

    def step(n: int, answer: Results | Exception | None) -> None:
        """Send a structure its results, and note what it asks for next or how it ended."""
        began = clocks()
        try:
            asked[n] = running[n].send(answer)  # at the start None
        except StopIteration as end:
            done[n] = end.value
            del running[n]
        spent[n] += clocks() - began

    # A potential's remarks on every call say nothing of one structure among hundreds.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(done) < len(jobs):
            for n, job in islice(waiting, batch - len(running)):
                running[n] = _relaxation(job)
                step(n, None)
            places, structures = list(asked), list(asked.values())
            asked.clear()
            began = clocks()
            answers = evaluate(calculator, structures, wanted) if structures else []
            spent[places] += (clocks() - began) / max(1, len(places))
            for n, answer in zip(places, answers, strict=True):
                step(n, answer)
    return [
        replace(done[n], level=level, seconds=float(wall), cpu_seconds=float(cpu))
        for n, (wall, cpu) in enumerate(spent)
    ]


def _relaxation(job: RelaxJob) -> Generator[Atoms, Results | Exception, RelaxOutcome]:
    """Yield the structures whose results one relaxation needs, and return its outcome."""
    settings = job.settings
    atoms = Atoms(job.atoms.numbers, job.atoms.positions, cell=job.atoms.cell, pbc=True)
    start, n_atoms = atoms.get_volume(), len(atoms)
    pressure = settings.pressure * GPa
    status: Status = "relaxed"
    reason, steps, results = "", 0, Results()
    try:
        constraints = list(job.atoms.constraints)
        if settings.keep_symmetry:
            constraints.append(FixSymmetry(atoms, symprec=settings.symprec))
        atoms.set_constraint(constraints)
        moving, curvature = atoms, np.full(3 * n_atoms, CURVATURE)
        if settings.relax_cell:
            # In units in which the largest strain is as long as the longest step of an atom.
            scale = LONGEST_STEP / LARGEST_STRAIN
            moving = UnitCellFilter(atoms, cell_factor=scale, scalar_pressure=pressure)
            curvature = np.append(curvature, np.full(9, start * BULK_MODULUS / scale**2))
        given = {"alpha": CURVATURE} if settings.optimizer == "LBFGS" else {}
        method = getattr(ase.optimize, settings.optimizer)
        optimizer = method(moving, logfile=None, maxstep=LONGEST_STEP, **given)
        if settings.optimizer == "BFGS":
            optimizer.H0 = np.diag(curvature)
        while True:
            results = _checked((yield _screened(atoms, settings, start)), settings)
            atoms.calc = SinglePointCalculator(atoms, **results)
            largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
            if settings.relax_cell:
                stress = atoms.get_stress(voigt=False) + pressure * np.eye(3)
                virial = stress * atoms.get_volume() / n_atoms
                largest = max(largest, np.linalg.norm(virial, axis=1).max())
            if largest <= settings.fmax:
                break
            if steps == settings.steps:
                status = "unconverged"
                reason = f"forces above {settings.fmax:g} eV/Å after {settings.steps} steps"
                break
            optimizer.step()
            steps += 1
    except _Stopped as stop:
        status, reason = stop.status, str(stop)
    except Exception as error:  # noqa: BLE001 - an optimiser fed nonsense may raise anything
        status, reason = "failed", f"{type(error).__name__}: {str(error)[:200]}"
    if not (np.isfinite(atoms.cell.array).all() and np.isfinite(atoms.positions).all()):
        atoms = job.atoms
    # Plain atoms that carry the numbers and not what computed them.
    final = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if status in USABLE:
        final.calc = SinglePointCalculator(final, **results)
    return RelaxOutcome(job.id, status, reason, final, steps, pressure=settings.pressure)


def _screened(atoms: Atoms, settings: RelaxSettings, start: float) -> Atoms:
    """Return plain atoms for a potential that can answer for them.

    Raises:
        _Stopped: If the cell has run away.
    """
    reason = screen(atoms, settings.screen)
    grown, factor = atoms.get_volume() / start, settings.volume_factor
    if not reason and not 1 / factor <= grown <= factor:
        reason = f"the volume became {grown:.3g} times what it was, beyond a factor {factor:g}"
    if reason:
        raise _Stopped("runaway", reason)
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def _checked(found: Results | Exception, settings: RelaxSettings) -> Results:
    """Return results that are numbers, and forces within the limit.

    Raises:
        _Stopped: If they are not.
    """
    if isinstance(found, Exception):
        raise _Stopped("failed", f"{type(found).__name__}: {str(found)[:200]}") from found
    for name, value in found.items():
        if value is None or not np.isfinite(np.asarray(value, dtype=float)).all():
            raise _Stopped("not finite", f"the potential's {name} is not finite")
    largest = float(np.linalg.norm(found["forces"], axis=1).max())
    if largest > settings.max_force:
        raise _Stopped("exploded", f"a force of {largest:.3g} eV/Å, above {settings.max_force:g}")
    return {k: np.array(v, dtype=float) for k, v in found.items()} | {
        "energy": float(found["energy"])
    }
