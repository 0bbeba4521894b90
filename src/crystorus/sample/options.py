"""Options of `crystorus sample` and `crystorus refine`, written here and nowhere else.

The command line, `crystorus.generate`, `crystorus.refine` and the saved settings are made from
these fields. Nothing heavy is imported, so that a wrong value is answered at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from crystal_fidelity.options import SYMPREC
from crystorus.config import SamplerName
from crystorus.data import compositions
from crystorus.errors import RequestError

Quality = Literal["fast", "default", "best"]
Precision = Literal["fp32", "bf16", "auto"]
StartName = Literal["noise", "templates", "both"]

MAX_CANDIDATES = 1000
TEMPLATE_LEVEL = 0.2
"""Fraction of the noise levels that sampling from a template goes back to."""

_WHAT, _HOW = Group("What", sort_key=1), Group("Sampling", sort_key=2)
_START, _FILES = Group("Start", sort_key=3), Group("Files", sort_key=4)


def parse_units(units: int | str | Iterable[int]) -> tuple[int, ...]:
    """Read numbers of formula units.

    Args:
        units: One, several, or text such as "1,2,4" or "1-4" (`compositions.parse_units`).

    Raises:
        RequestError: If they are no whole numbers from 1 up, or there is none.
    """
    several = [units] if isinstance(units, int | str) else units
    return compositions.parse_units(",".join(map(str, several)))


Units = Annotated[
    tuple[int, ...],
    Parameter(
        converter=lambda _, tokens: parse_units(",".join(token.value for token in tokens)),
        n_tokens=1,
        consume_multiple=False,
        show_default=lambda z: ",".join(map(str, z)),
    ),
]
"""An option of numbers of formula units."""
CRYSTAL_SYSTEMS = {
    "triclinic": (1, 2), "monoclinic": (3, 15), "orthorhombic": (16, 74), "tetragonal": (75, 142),
    "trigonal": (143, 167), "hexagonal": (168, 194), "cubic": (195, 230),
}  # fmt: skip
"""First and last space group of every crystal system."""


def parse_space_groups(text: str) -> frozenset[int]:
    """Read space groups: "225", "Fm-3m", "cubic", or several with commas.

    Args:
        text: What a user wrote. "known" allows all, "none" none of them.

    Returns:
        International numbers.

    Raises:
        RequestError: If one is no space group.
    """
    found: set[int] = set()
    for word in (part.strip() for part in text.split(",")):
        if word in ("known", "none"):
            if text.strip() != word:
                raise RequestError(
                    f"--space-group {text}: {word} stands alone, leave it or the rest out"
                )
            return frozenset(range(1, 231) if word == "known" else ())
        if word.lower() in CRYSTAL_SYSTEMS:
            first, last = CRYSTAL_SYSTEMS[word.lower()]
            found |= set(range(first, last + 1))
        elif word.isdecimal() and 1 <= int(word) <= 230:
            found.add(int(word))
        else:
            import gemmi

            symbol = "" if word.isdecimal() else word.replace("_", "")  # gemmi takes 0 for P1
            group = gemmi.find_spacegroup_by_name(symbol) if symbol else None
            if group is None:
                raise RequestError(
                    f"--space-group has {word!r}: give a number from 1 to 230, a symbol such as "
                    f"Fm-3m, or one of {', '.join(CRYSTAL_SYSTEMS)}"
                )
            found.add(group.number)
    return frozenset(found)


def check_option(name: str, value: float, low: float, high: float, remedy: str) -> None:
    """Refuse a number outside [low, high], NaN included.

    Args:
        name: Of the option, without dashes.
        value: As given.
        low: Least allowed.
        high: Largest allowed.
        remedy: End of the sentence.

    Raises:
        RequestError: With the option's name, its value and the remedy.
    """
    if not low <= value <= high:
        raise RequestError(f"--{name.replace('_', '-')} is {value:g}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What sampling and refining have in common."""

    n: int = 1
    """Crystals per composition or structure."""
    seed: int = 0
    """Same seed, same crystals."""
    large: Annotated[bool, Parameter(group=_WHAT)] = False
    """Allow cells with more atoms than any training crystal."""
    checkpoint: Annotated[Path | None, Parameter(group=_HOW)] = None
    """Folder of a trained model; without it the shipped one."""
    device: Annotated[str, Parameter(group=_HOW)] = "cpu"
    """cpu, cuda, cuda:1, mps."""
    batch_atoms: Annotated[int | None, Parameter(group=_HOW)] = None
    """Atoms per batch, which changes speed only; without it 1024, fewer where a batch would take
    long, so that finished crystals are written often."""
    workers: Annotated[int, Parameter(group=_HOW)] = 1
    """Processes that sample; as many as cores is fastest."""
    scheduler: Annotated[str, Parameter(group=_HOW)] = ""
    """Address of a Dask scheduler whose workers sample."""
    out: Annotated[Path | None, Parameter(group=_FILES)] = None
    """Folder of the run, where an interrupted run is resumed; without it named after what is asked
    for, such as out/LiFeO2."""
    symprec: Annotated[float, Parameter(group=_FILES)] = SYMPREC
    """Symmetry tolerance in Å."""
    overwrite: Annotated[bool, Parameter(group=_FILES)] = False
    """Replace another run in the folder."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            RequestError: With the value, the limit and the remedy.
        """
        if self.n < 1:
            raise RequestError(f"{self.n} crystals each were asked for (--n): ask for 1 or more")
        if self.seed < 0:
            raise RequestError(f"the seed is {self.seed}: give a whole number from 0 up")
        if not 0 < self.symprec < math.inf:
            raise RequestError(f"--symprec is {self.symprec:g} Å: give a length above 0, as in 0.1")
        if self.batch_atoms is not None:
            check_option("batch_atoms", self.batch_atoms, 1, math.inf, "give 1 or more")
        check_option("workers", self.workers, 1, math.inf, "give 1 process or more")
        if self.workers > 1 and self.device != "cpu":
            raise RequestError(f"--workers {self.workers} is for --device cpu: leave it out")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(RunOptions):
    """What `crystorus sample` is asked for, and how it is to be made.

    Examples:
        >>> import crystorus
        >>> made = crystorus.generate("NaCl", z="1-2", quality="fast", space_group="cubic")
        >>> [len(atoms) for atoms in made.to_ase()]
        [2, 4]
    """

    z: Units = (1,)
    """Formula units per cell, as in 1,2,4 or 1-4."""
    like: Annotated[Path | None, Parameter(group=_WHAT)] = None
    """Take the composition of every structure of this file or folder: CIF, CSV, extxyz, …"""
    system: Annotated[str | None, Parameter(group=_WHAT)] = None
    """Take every composition of a chemical system, such as Li-Fe-O."""
    max_atoms: Annotated[int | None, Parameter(group=_WHAT)] = None
    """Most atoms per cell of --system."""
    quality: Annotated[Quality | None, Parameter(group=_HOW)] = None
    """fast makes one run of 12 steps from noise, default keeps the likeliest of 8 such runs, best
    of 32, which found no more on MP-20; without a scorer beside the checkpoint: 12, its own
    number, and 120 steps."""
    candidates: Annotated[int | None, Parameter(group=_HOW)] = None
    """Sampling runs from noise per crystal, of which the likeliest is kept; without it as many as
    the quality says."""
    sampler: Annotated[SamplerName | None, Parameter(group=_HOW)] = None
    """How noise is removed, instead of a quality: bridge draws from the exact law between two
    levels, ode adds no noise, paper is Algorithm 2 of the paper."""
    steps: Annotated[int | None, Parameter(group=_HOW)] = None
    """Denoising steps of the checkpoint's own sampler, instead of a quality."""
    anti_annealing: Annotated[float | None, Parameter(group=_HOW)] = None
    """Extra drift at low noise; without it the checkpoint's."""
    precision: Annotated[Precision | None, Parameter(group=_HOW)] = None
    """Of the network's products, fp32 without it; auto is bf16 where that is fast."""
    start: Annotated[StartName | None, Parameter(group=_START)] = None
    """Begin at noise, at known crystals with other elements (templates), or half at each; without
    it templates if there is a --library, else noise."""
    library: Annotated[Path | None, Parameter(group=_START)] = None
    """Known crystals, from `crystorus templates build`; for templates without it the AFLOW
    prototypes."""
    level: Annotated[float | None, Parameter(group=_START)] = None
    """Fraction of the noise levels to go back to from a template, 0 to 1; without it 0.2,
    and 0 from a known compound itself."""
    noised: Annotated[bool, Parameter(group=_START)] = False
    """Add the noise of that level, which breaks the template's symmetry."""
    new_only: Annotated[bool, Parameter(group=_START)] = False
    """Leave out crystals that the library has at this composition."""
    space_group: Annotated[str, Parameter(group=_START)] = "known"
    """Symmetry that crystals from noise keep: a number (225), a symbol (Fm-3m), a crystal system
    (cubic) or several of these with commas; known: the space groups of known crystals with the same
    element counts; none."""
    keep_trajectory: Annotated[bool, Parameter(group=_FILES)] = False
    """Write every denoising step too."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense and options that contradict each other.

        Raises:
            RequestError: With the option, its value or limit, and the remedy.
        """
        super().__post_init__()
        parse_units(self.z)
        parse_space_groups(self.space_group)
        if self.candidates is not None and not 1 <= self.candidates <= MAX_CANDIDATES:
            raise RequestError(
                f"{self.candidates} candidates per crystal were asked for: give 1 to "
                f"{MAX_CANDIDATES}"
            )
        if self.steps is not None and self.steps < 1:
            raise RequestError(f"{self.steps} steps were asked for: give 1 or more")
        if self.anti_annealing is not None and not 0 <= self.anti_annealing < math.inf:
            raise RequestError(
                f"--anti-annealing is {self.anti_annealing}: give a finite number from 0 up"
            )
        if self.quality is not None and self.names_a_sampler:
            raise RequestError(
                f"--quality {self.quality} is a sampler with its steps: leave it out, or "
                "--sampler, --steps and --anti-annealing"
            )
        self._check_start()

    def _check_start(self) -> None:
        if self.start_from == "noise":
            if self.new_only and self.library is None:
                raise RequestError(
                    "--new-only has nothing to compare with: name a --library, or take --start "
                    "templates"
                )
            for option, given in (
                ("--library", self.library is not None and not self.new_only),
                ("--level", self.level is not None),
                ("--noised", self.noised),
            ):
                if given:
                    raise RequestError(f"{option} says nothing about --start noise: leave one out")
            return
        if self.level is not None:
            check_option("level", self.level, 0, 1, "give a fraction of the noise, 0 to 1")
        if self.level == 0 and (self.noised or self.names_a_sampler):
            raise RequestError(
                "--level 0 is substitution alone, without sampling: leave out --noised, --sampler, "
                "--steps and --anti-annealing, or give a higher level"
            )
        if self.sampler in ("bridge", "paper") and not self.noised:
            raise RequestError(
                f"--sampler {self.sampler} adds noise, which breaks the symmetry of templates: add "
                "--noised if that is wanted, or take --sampler ode"
            )

    @property
    def start_from(self) -> StartName:
        """Where samples begin: as asked for, else at templates if a library is named."""
        return self.start or ("templates" if self.library is not None else "noise")

    @property
    def needs_library(self) -> bool:
        """Whether crystals begin at, or are compared with, those of a library."""
        return self.start_from != "noise" or self.new_only

    @property
    def names_a_sampler(self) -> bool:
        """Whether the sampler or one of its settings is named."""
        return any(v is not None for v in (self.sampler, self.steps, self.anti_annealing))


@dataclass(frozen=True, kw_only=True)
class RefineOptions(RunOptions):
    """How `crystorus refine` repairs or perturbs structures.

    Examples:
        >>> import crystorus
        >>> from ase.build import bulk
        >>> shaken = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
        >>> shaken.rattle(0.1, seed=0)
        >>> repaired = crystorus.refine(shaken, level=0.1, hold_cell=True).to_ase()[0]
        >>> repaired.cell.lengths().round(2).tolist()
        [5.64, 5.64, 5.64]
    """

    level: Annotated[float, Parameter(group=_START)] = TEMPLATE_LEVEL
    """Fraction of the noise levels to go back to, above 0 to 1."""
    noised: Annotated[bool, Parameter(group=_START)] = False
    """Add the noise of that level; without it symmetry is kept."""
    hold: Annotated[str | None, Parameter(group=_START)] = None
    """Atoms that stay: elements (Li,O) or numbers of atoms (0,1,2), counted from 0 in the order in
    which the file lists them; in a CIF with symmetry, each with all its images."""
    hold_cell: Annotated[bool, Parameter(group=_START)] = False
    """Keep the cell."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense and options that contradict each other.

        Raises:
            RequestError: With the option, its value or limit, and the remedy.
        """
        super().__post_init__()
        if not 0 < self.level <= 1:
            raise RequestError(
                f"--level is {self.level:g}: give a fraction of the noise, above 0 to 1"
            )
        if self.n > 1 and not self.noised:
            raise RequestError(
                f"--n {self.n} without noise gives the same crystal {self.n} times: add --noised"
            )
        if self.hold is not None and not self.hold.replace(",", "").strip():
            raise RequestError("--hold is empty: name elements or numbers of atoms")
