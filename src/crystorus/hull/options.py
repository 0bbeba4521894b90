"""Options of `crystorus hull`, `relax` and `rank`; light, so that wrong values are told at once."""

import importlib.util
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from crystal_fidelity.options import MIN_DISTANCE, SYMPREC
from crystorus.errors import CalculatorError, ReferencesError, RequestError, WorkersError
from crystorus.sample.options import Quality, SampleOptions, StartName, Units

CHGNET = "chgnet"


class Potential(NamedTuple):
    """Where a potential comes from: its label, module and extra, and what the module calls it."""

    label: str
    module: str
    extra: str
    model: tuple[str, ...] = ()


POTENTIALS = {
    CHGNET: Potential("CHGNet 0.3.0", "chgnet", "hull"),
    "sevennet": Potential("SevenNet-0", "sevenn", "sevennet", ("7net-0",)),
    "sevennet-l3i5": Potential("SevenNet-l3i5", "sevenn", "sevennet", ("7net-l3i5",)),
    "sevennet-mf-0": Potential("SevenNet-MF-0, PBE", "sevenn", "sevennet", ("7net-mf-0", "PBE")),
    "mace": Potential("MACE-MPA-0 medium", "mace", "mace", ("medium-mpa-0",)),
    "orb": Potential(
        "Orb v3 conservative inf OMat", "orb_models", "orb", ("orb_v3_conservative_inf_omat",)
    ),
    "mattersim": Potential("MatterSim", "mattersim", "mattersim"),
}
"""Potentials by name; the first four have their weights in their wheels, the others load them. What
else a new one needs: `docs/how-to/potential.md`."""
MATERIALS_PROJECT = "materials-project"
MP20 = Path("data/mp-20/train.csv")
Optimizer = Literal["BFGS", "LBFGS", "FIRE"]
_FIXED = Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class CompositionOptions:
    """Which compositions of a chemical system a campaign tries."""

    max_atoms: int = 12
    """Atoms per cell, at most."""
    units: Annotated[Units, Parameter(name="--z")] = ()
    """Formula units per cell, as in 1,2,4; all that fit by default."""
    formulas: Annotated[tuple[str, ...], Parameter(name="--formula")] = ()
    """Only this formula of the system; can be repeated."""
    require: tuple[str, ...] = ()
    """An element that every composition holds; can be repeated."""
    exclude: tuple[str, ...] = ()
    """An element that no composition holds; can be repeated."""
    max_count: int = 8
    """Largest count of one element in a reduced formula."""
    min_elements: int = 2
    """Elements of a composition, at least; 1 tries the elements as well."""
    neutral: Annotated[bool, Parameter(name="--neutral", negative="--any-charge")] = True
    """Leave out compounds that common oxidation states cannot balance; --any-charge keeps them."""

    def __post_init__(self) -> None:
        """Refuse counts below 1 and contradictions.

        Raises:
            RequestError: With the value and the remedy.
        """
        if self.max_atoms < 1:
            raise RequestError(f"--max-atoms {self.max_atoms}: cells of at most 1 atom or more")
        if self.max_count < 1 or self.min_elements < 1 or any(u < 1 for u in self.units):
            raise RequestError("--max-count, --min-elements and --z take whole numbers from 1 up")
        if both := set(self.require) & set(self.exclude):
            raise RequestError(f"{min(both)} is both required and excluded: drop one of the two")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How many crystals a campaign samples, and how."""

    n: int = 2
    """Crystals per composition."""
    budget: int = 200
    """Crystals of the campaign, at most."""
    seed: int = 0
    """Same seed, same crystals."""
    steps: int | None = None
    """Denoising steps of the checkpoint's own sampler, instead of a quality."""
    quality: Quality | None = None
    """fast: one run of 12 steps from noise, default: the likeliest of 8 such runs, best: of 32."""
    candidates: int | None = None
    """Sampling runs from noise per crystal, of which the likeliest is kept; without it as many as
    the quality says."""
    checkpoint: Path | None = None
    """Folder of a trained model; the shipped one by default."""
    start: StartName | None = None
    """Begin at noise, at known crystals with other elements (templates), or half at each; by
    default at templates with --library, else at noise."""
    library: Path | None = None
    """Known crystals from `crystorus templates build`; AFLOW's prototypes by default."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or mps."""
    trajectories: Annotated[bool, Parameter(negative="--no-trajectories")] = True
    """Keep every denoising step, for the report to show."""

    def __post_init__(self) -> None:
        """Refuse what `crystorus sample` refuses, and files that are not there.

        Raises:
            RequestError: With the value and the remedy.
        """
        if self.budget < 1:
            raise RequestError(f"--budget {self.budget}: give the campaign 1 crystal or more")
        self.as_sample_options()
        if self.library is not None and not self.library.is_file():
            state = "is a folder" if self.library.is_dir() else "does not exist"
            raise RequestError(
                f"--library {self.library} {state}: make one with `crystorus templates build`"
            )
        if self.checkpoint is not None and not self.checkpoint.is_dir():
            raise RequestError(f"--checkpoint {self.checkpoint} is no folder: name a checkpoint's")

    def as_sample_options(self) -> SampleOptions:
        """Return these as options of `crystorus sample`."""
        same = {k: v for k, v in vars(self).items() if k not in ("budget", "trajectories")}
        return SampleOptions(**same, keep_trajectory=self.trajectories)


@dataclass(frozen=True, kw_only=True)
class ScreenLimits:
    """Geometric limits for structures passed to an interatomic potential.

    Outside them energies are meaningless or the neighbour list exhausts memory.
    """

    min_distance: float = MIN_DISTANCE
    """Å between two atoms, own images included; crystal-fidelity's limit of validity."""
    min_volume: float = 2.0
    """Å³ per atom; the densest element at zero pressure has 5."""
    max_volume: float = 200.0
    """Å³ per atom."""
    min_height: float = 1.0
    """Å between opposite faces of the cell: thinner ones need more images than memory holds."""
    max_gap: float = 5.5
    """Å; every atom needs a neighbour or image this close, an isolated one has no graph."""


@dataclass(frozen=True, kw_only=True)
class RelaxSettings:
    """How structures are relaxed."""

    potential: str = CHGNET
    """chgnet, sevennet, sevennet-l3i5, sevennet-mf-0, mace, orb, mattersim, or module:factory, a
    function without arguments that returns an ASE calculator or a model of torch-sim."""
    pressure: float = 0.0
    """GPa; cells are relaxed under it and enthalpies E + pV make the hull."""
    fmax: float = 0.05
    """Largest force in eV/Å at which a structure counts as relaxed."""
    steps: Annotated[int, Parameter(name="--relax-steps")] = 300
    """Steps of the optimiser, at most."""
    optimizer: Optimizer = "BFGS"
    """ASE's optimiser."""
    relax_cell: Annotated[bool, Parameter(negative="--fixed-cell")] = True
    """Move the cell too; --fixed-cell moves atoms only."""
    keep_symmetry: bool = False
    """Impose the initial space group on every step."""
    symprec: Annotated[float, _FIXED] = SYMPREC
    """Å; tolerance within which that space group is found."""
    max_force: float = 300.0
    """Force in eV/Å above which a structure is given up."""
    volume_factor: Annotated[float, _FIXED] = 3.0
    """Growth or shrinkage of the volume at which a cell has run away."""
    screen: Annotated[ScreenLimits, _FIXED] = ScreenLimits()
    """Outside these the calculator is never called."""

    def __post_init__(self) -> None:
        """Refuse forces and steps below zero, and paths that name no calculator.

        Raises:
            CalculatorError: With the value and the remedy.
        """
        for name, value in (("--fmax", self.fmax), ("--max-force", self.max_force)):
            if not 0 < value < math.inf:
                raise CalculatorError(f"{name} {value:g} eV/Å: give a force above 0, as in 0.05")
        if self.steps < 1:
            raise CalculatorError(f"--relax-steps {self.steps}: give 1 or more")
        if not math.isfinite(self.pressure):
            raise CalculatorError(f"--pressure {self.pressure:g} GPa: give a number, as in 20")
        if self.pressure and not self.relax_cell:
            raise CalculatorError("--pressure moves the cell: leave out --fixed-cell")
        module, _, name = self.potential.partition(":")
        if self.potential not in POTENTIALS and not (module and name):
            raise CalculatorError(
                f"--potential {self.potential} is not known: name one of {', '.join(POTENTIALS)}, "
                "or a function as module:function, as in ase.calculators.emt:EMT"
            )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "RelaxSettings":
        """Return the settings that a campaign's database holds in JSON's types.

        Args:
            record: As JSON gives it.
        """
        new = {("potential" if k == "calculator" else k): v for k, v in record.items()}
        return cls(**(new | {"screen": ScreenLimits(**record["screen"])}))


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where relaxations run."""

    workers: int = 1
    """Local processes of one thread each; 0 works in this one."""
    batch: int = 1
    """Structures per call of the potential; 64 for a GPU. Energies then agree with those of one at
    a time to rounding, no longer to the last digit."""
    scheduler: str | None = None
    """A Dask scheduler, used instead: tcp://host:8786, or tls://host:8786 with Dask's certificates.
    Jobs are pickles, and tcp:// is neither encrypted nor authenticated: whoever reaches it can run
    programs there, so use tls:// unless the network is yours alone."""

    def __post_init__(self) -> None:
        """Refuse negative numbers of processes.

        Raises:
            WorkersError: With the remedy.
        """
        if self.workers < 0:
            raise WorkersError(f"--workers {self.workers}: give a number of processes from 0 up")
        if self.batch < 1:
            raise WorkersError(f"--batch {self.batch}: give 1 structure per call or more")


@dataclass(frozen=True, kw_only=True)
class RelaxWorkers(WorkerOptions):
    """Where relaxations run, and for how long."""

    minutes: float | None = None
    """After so many minutes of relaxing candidates no further one is begun, and what is there is
    ranked; the same command goes on for as long again. Without it all are relaxed. Where known
    phases make a hull, the candidates that promise most come first."""

    def __post_init__(self) -> None:
        """Refuse no time at all.

        Raises:
            WorkersError: With the remedy.
        """
        super().__post_init__()
        if self.minutes is not None and not self.minutes > 0:
            raise WorkersError(f"--minutes {self.minutes:g}: give a time above 0, as in 30")


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How relaxed structures are compared with known phases."""

    references: tuple[str, ...] = ()
    """Known phases: structures, pymatgen entries (.json) or materials-project; can be repeated;
    MP-20's training crystals in data/mp-20 by default."""
    held_out: tuple[str, ...] = ()
    """Known phases to look for that take no part in the hull; can be repeated."""
    mix_energy_levels: bool = False
    """Let energies of different calculators or functionals meet on one hull."""
    symprec: float = SYMPREC
    """Tolerance of the space groups in Å."""
    phonons: int = 0
    """Of the first so many phases the phonons at Γ are computed, by phonopy; those that have
    imaginary ones are no minima."""
    report: Annotated[bool, Parameter(negative="--no-report")] = True
    """Draw the plots and the report."""
    animate: tuple[str, ...] = ()
    """A candidate whose denoising the report shows beside the best ones; can be repeated."""

    def __post_init__(self) -> None:
        """Refuse a tolerance that is no length, and what is not there.

        Raises:
            RequestError: With the value and the remedy.
            ReferencesError: If a file of known phases does not exist.
        """
        if not 0 < self.symprec < math.inf:
            raise RequestError(f"--symprec {self.symprec:g} Å: give a length above 0, as in 0.1")
        for name in (*self.references, *self.held_out):
            if name != MATERIALS_PROJECT and not Path(name).exists():
                raise ReferencesError(
                    f"{name} does not exist: name a file of structures or entries, or "
                    f"{MATERIALS_PROJECT}"
                )
        if self.phonons < 0:
            raise RequestError(f"--phonons {self.phonons}: give a number of phases from 0 up")
        if self.phonons and importlib.util.find_spec("phonopy") is None:
            raise RequestError("--phonons needs phonopy: pip install 'crystorus[phonons]'")
        if self.report and importlib.util.find_spec("matplotlib") is None:
            raise RequestError(
                "plots need matplotlib: pip install 'crystorus[hull]', or --no-report"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the references.

        Raises:
            ReferencesError: If none are named and MP-20 is not where `crystorus data get` puts it.
        """
        if not self.references and not MP20.is_file():
            raise ReferencesError(
                f"no references are named and {MP20} is not there: run `crystorus data get mp-20`, "
                "or name known phases with --references FILE"
            )
        return self.references or (str(MP20),)


@dataclass(frozen=True, kw_only=True)
class RankCommandOptions:
    """Options of `crystorus rank`."""

    system: str | None = None
    """A chemical system, as in Li-Fe-O; by default what is there."""
    out: Path | None = None
    """Where the table of a file of entries goes."""
    potential: str = CHGNET
    """Of the campaign, named again if it is a module:factory: no folder has a program run."""
    ranking: Annotated[RankOptions, Parameter(name="*", group="Rank")] = field(
        default_factory=RankOptions
    )
    """How the structures are compared."""
    workers: Annotated[WorkerOptions, Parameter(name="*", group="Workers")] = WorkerOptions()
    """Where new references are relaxed."""


@dataclass(frozen=True, kw_only=True)
class HullOptions:
    """Options of `crystorus hull`: compositions, sampling, relaxation, ranking."""

    out: Path | None = None
    """Folder of the campaign, where an interrupted one goes on; without it named after the
    system, such as out/hull-Li-Fe-O."""
    overwrite: bool = False
    """Replace another campaign in the folder."""
    compositions: Annotated[CompositionOptions, Parameter(name="*", group="Compositions")] = (
        CompositionOptions()
    )
    """Which compositions."""
    sampling: Annotated[SamplingOptions, Parameter(name="*", group="Sampling")] = SamplingOptions()
    """How they are sampled."""
    relaxation: Annotated[RelaxSettings, Parameter(name="*", group="Relax")] = RelaxSettings()
    """How the samples are relaxed."""
    ranking: Annotated[RankOptions, Parameter(name="*", group="Rank")] = field(
        default_factory=RankOptions
    )
    """How the relaxed structures are compared."""
    workers: Annotated[RelaxWorkers, Parameter(name="*", group="Workers")] = RelaxWorkers()
    """Where relaxations run, and for how long."""


@dataclass(frozen=True, kw_only=True)
class RelaxOptions:
    """Options of `crystorus relax`."""

    out: Path | None = None
    """Folder of a new campaign; an interrupted one goes on there."""
    keep_duplicates: bool = False
    """Relax near-duplicates too."""
    overwrite: bool = False
    """Replace another campaign in the folder."""
    relaxation: Annotated[RelaxSettings, Parameter(name="*", group="Relax")] = RelaxSettings()
    """How the structures are relaxed."""
    workers: Annotated[RelaxWorkers, Parameter(name="*", group="Workers")] = RelaxWorkers()
    """Where relaxations run, and for how long."""


@dataclass(frozen=True, kw_only=True)
class PredictSampling(SamplingOptions):
    """How many crystals of every formula are sampled, and how."""

    n: int = 6
    """Crystals per formula and number of formula units."""
    budget: Annotated[int, _FIXED] = 1_000_000
    """No limit: compositions are named one by one."""
    start: StartName = "both"
    """Begin at known crystals with other elements (templates), at noise, or half at each."""


@dataclass(frozen=True, kw_only=True)
class PredictRanking(RankOptions):
    """How predicted crystals are compared."""

    references: tuple[str, ...] = ()
    """Known phases that make a convex hull, relaxed likewise: structures, pymatgen entries (.json)
    or materials-project; can be repeated; without it energies are compared within a formula."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `crystorus predict`."""

    z: Units = ()
    """Formula units per cell, as in 1,2,4 or 1-4; by default those that known crystals with the
    same ratio of element counts have."""
    out: Path | None = None
    """Folder of the run, where an interrupted one goes on; without it named after the formulas,
    such as out/predict-LiFePO4."""
    overwrite: bool = False
    """Replace another run in the folder."""
    large: bool = False
    """Allow cells with more atoms than any training crystal."""
    sampling: Annotated[PredictSampling, Parameter(name="*", group="Sampling")] = PredictSampling()
    """How they are sampled."""
    relaxation: Annotated[RelaxSettings, Parameter(name="*", group="Relax")] = RelaxSettings()
    """How the samples are relaxed."""
    ranking: Annotated[PredictRanking, Parameter(name="*", group="Rank")] = field(
        default_factory=PredictRanking
    )
    """How the relaxed structures are compared."""
    workers: Annotated[RelaxWorkers, Parameter(name="*", group="Workers")] = RelaxWorkers()
    """Where relaxations run, and for how long."""


def check_potential_module(potential: str) -> None:
    """Look for a potential's module without importing what is in it.

    Args:
        potential: A name of `--potential`; one of a module has a colon.

    Raises:
        CalculatorError: If there is no such module here.
    """
    module, remedy = potential.partition(":")[0], "install it where every worker runs"
    if potential in POTENTIALS:
        module = POTENTIALS[potential].module
        remedy = f"pip install 'crystorus[{POTENTIALS[potential].extra}]'"
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise CalculatorError(
            f"--potential {potential} cannot be had (ModuleNotFoundError: no module {module!r}): "
            f"{remedy}, or name another"
        )
