"""Options of `crystorus view` and `crystorus export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from crystal_fidelity.options import SYMPREC
from crystorus.errors import RequestError

Format = Literal["cif", "poscar", "qe", "aims", "vasp-inputs"]


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """Which crystals of an output folder."""

    best: int | None = None
    """Only the first so many of the table, which rankings sort by energy."""
    name: tuple[str, ...] = ()
    """Only the crystal of this name, as in its files; can be repeated."""
    symprec: float = SYMPREC
    """Tolerance in Å within which the conventional cell is symmetrised."""

    def __post_init__(self) -> None:
        """Refuse numbers below 1, and a tolerance that is no length.

        Raises:
            RequestError: With the value and the remedy.
        """
        if self.best is not None and self.best < 1:
            raise RequestError(f"--best {self.best}: give 1 or more")
        if not 0 < self.symprec < float("inf"):
            raise RequestError(f"--symprec {self.symprec:g} Å: give a length above 0, as in 0.1")


@dataclass(frozen=True, kw_only=True)
class ViewOptions(ChoiceOptions):
    """Options of `crystorus view`."""

    out: Path | None = None
    """The page; by default view.html in the folder, out/view-my.html for a file my.cif."""
    browser: Annotated[bool, Parameter(negative="--no-browser")] = True
    """Open it in the browser."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ChoiceOptions):
    """Options of `crystorus export`."""

    format: Format = "poscar"
    """cif; poscar; qe, input of pw.x; aims, geometry.in; vasp-inputs, pymatgen's MPRelaxSet."""
    out: Path | None = None
    """Folder of the files; by default export-FORMAT in the folder, out/export-FORMAT-my for a file
    my.cif."""
    primitive: bool = False
    """Write the primitive cell instead of the conventional one."""
