"""Whether a phase is known: found again, a new polymorph, or a composition nobody listed."""

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms
from pymatgen.core import Composition

from crystorus.data.compositions import Composition as CellComposition
from crystorus.hull.matching import SAME, Gallery, reduced_formula

REDISCOVERED = "rediscovered"
NEW_POLYMORPH = "new polymorph"
NEW_COMPOSITION = "new composition"
KNOWN_COMPOSITION = "known composition"


@dataclass(frozen=True)
class Novelty:
    """What is known of a phase.

    Attributes:
        verdict: One of the four words above; "known composition" where the references of that
            composition have no structures to compare with.
        id: The known phase that it is, empty if none.
        rms: Of the match, in units of (volume per atom)^(1/3).
    """

    verdict: str
    id: str = ""
    rms: float | None = None


class KnownPhases:
    """References to match phases with."""

    def __init__(self, named: Sequence[tuple[str, Composition, Atoms | None]]) -> None:
        self._gallery = Gallery(SAME)
        self._without: set[str] = set()
        for name, composition, atoms in named:
            if atoms is None:
                self._without.add(reduced_formula_of(composition))
            else:
                self._gallery.add(name, atoms)

    def judge(self, atoms: Atoms) -> Novelty:
        """Match one structure."""
        formula = reduced_formula(atoms)
        name, rms = self._gallery.closest(atoms)
        if name:
            return Novelty(REDISCOVERED, name, rms)
        if formula in self._without:
            return Novelty(KNOWN_COMPOSITION)
        if self._gallery.holds_formula(formula):
            return Novelty(NEW_POLYMORPH)
        return Novelty(NEW_COMPOSITION)


def reduced_formula_of(composition: Composition) -> str:
    """Return the formula of one unit of a pymatgen composition, spelled as crystals' are."""
    counts = {element.Z: round(n) for element, n in composition.items()}
    if any(abs(n - round(n)) > 1e-6 for n in composition.values()):
        return str(composition.reduced_formula)  # an average over disorder: no crystal has it
    return CellComposition.from_counts(counts).reduced_formula
