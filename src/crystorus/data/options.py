"""Options of `crystorus order`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from crystorus.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """Options of `crystorus order`."""

    n: int = 10
    """Ordered supercells, at most."""
    max_atoms: int = 40
    """Atoms of a supercell, at most."""
    tolerance: float = 0.01
    """By which an occupancy may be rounded: 0.33 is a third of three sites."""
    charges: Annotated[tuple[str, ...], Parameter(name="--charge")] = ()
    """Oxidation state of an element, as in Co=3.5; repeated for every element. By default those
    of the file, or likely ones."""
    out: Path | None = None
    """Folder of the crystals; without it named after the file, such as out/ordered-my."""

    def __post_init__(self) -> None:
        """Refuse numbers that are none of their kind.

        Raises:
            RequestError: With the value and the remedy.
        """
        for name, value in (("--n", self.n), ("--max-atoms", self.max_atoms)):
            if value < 1:
                raise RequestError(f"{name} {value}: give 1 or more")
        if not 0 <= self.tolerance < 0.5:
            raise RequestError(f"--tolerance {self.tolerance:g}: give 0 or more, below 0.5")
        self.charge_of()

    def charge_of(self) -> dict[str, float]:
        """Return the oxidation states by element.

        Raises:
            RequestError: If one is not understood.
        """
        found = {}
        for text in self.charges:
            symbol, _, number = text.partition("=")
            try:
                found[symbol] = float(number)
            except ValueError:
                found[symbol] = math.nan
            if not math.isfinite(found[symbol]):
                raise RequestError(f"--charge {text}: give an element and a number, as in Co=3.5")
        return found
