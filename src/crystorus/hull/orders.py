"""What a user asked for, as data: the orders that the three commands carry out."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from crystorus.hull.enumeration import Space
from crystorus.hull.errors import CalculatorError, CampaignError, WorkersError
from crystorus.hull.relaxation import Optimizer, RelaxSettings
from crystorus.hull.sampling import Sampling
from crystorus.hull.workers import Workers


@dataclass(frozen=True)
class RankOrder:
    """How relaxed structures are compared."""

    references: tuple[str, ...] = ()
    """Files of known phases, or materials-project; MP-20's training crystals where empty."""
    held_out: tuple[str, ...] = ()
    """Files of known phases that are looked for and take no part in the hull."""
    mix_energy_levels: bool = False
    """Whether energies of different calculators may meet on one hull."""
    symprec: float = 0.1
    """Å; tolerance of the space groups."""
    report: bool = True
    """Whether plots and the report are made."""
    animate: tuple[str, ...] = ()
    """Candidates whose denoising the report shows, beside the best ones."""

    def __post_init__(self) -> None:
        """Refuse a tolerance that is no length.

        Raises:
            CampaignError: If it is none.
        """
        if not 0 < self.symprec < math.inf:
            raise CampaignError(f"--symprec {self.symprec:g} Å: give a length above 0, as in 0.1")


@dataclass(frozen=True)
class HullOrder:
    """A whole campaign."""

    space: Space
    out: Path
    sampling: Sampling = field(default_factory=Sampling)
    relaxation: RelaxSettings = field(default_factory=RelaxSettings)
    rank: RankOrder = field(default_factory=RankOrder)
    workers: Workers = field(default_factory=Workers)
    overwrite: bool = False


@dataclass(frozen=True)
class RelaxOrder:
    """Structures to relax."""

    source: Path
    out: Path | None = None
    relaxation: RelaxSettings = field(default_factory=RelaxSettings)
    workers: Workers = field(default_factory=Workers)
    keep_duplicates: bool = False
    overwrite: bool = False


def relax_settings(
    calculator: str,
    fmax: float,
    steps: int,
    optimizer: Optimizer,
    max_force: float,
    *,
    fixed_cell: bool,
    keep_symmetry: bool,
) -> RelaxSettings:
    """Check what a user said of relaxations.

    Raises:
        CalculatorError: If a number makes no sense.
    """
    for name, value in (("--fmax", fmax), ("--max-force", max_force)):
        if not 0 < value < math.inf:
            raise CalculatorError(f"{name} {value:g} eV/Å: give a force above 0, as in 0.05")
    if steps < 1:
        raise CalculatorError(f"--relax-steps {steps}: give 1 or more")
    return RelaxSettings(
        calculator,
        fmax,
        steps,
        optimizer,
        relax_cell=not fixed_cell,
        keep_symmetry=keep_symmetry,
        max_force=max_force,
    )


def workers(processes: int, scheduler: str | None) -> Workers:
    """Check where a user wants the work done.

    Raises:
        WorkersError: If that is no place.
    """
    if processes < 0:
        raise WorkersError(f"--workers {processes}: give a number of processes from 0 up")
    return Workers(processes, scheduler or "")
