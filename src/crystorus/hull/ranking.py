"""Energies above the convex hull, by pymatgen's PhaseDiagram, and what is new among the phases."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element

from crystorus.hull.errors import CampaignError

ON_HULL = 1e-8  # eV/atom
METASTABLE = 0.1  # eV/atom


@dataclass(frozen=True, eq=False)
class Phase:
    """A point of the hull: a composition with an energy.

    Attributes:
        name: Its id.
        composition: Of any multiple of the formula unit.
        energy_per_atom: eV/atom.
    """

    name: str
    composition: Composition
    energy_per_atom: float

    @property
    def entry(self) -> PDEntry:
        """As pymatgen wants it."""
        n_atoms = self.composition.num_atoms
        return PDEntry(self.composition, self.energy_per_atom * n_atoms, self.name)


class Hull:
    """The convex hull of some phases over a chemical system.

    Raises:
        CampaignError: If pymatgen cannot build it.
    """

    def __init__(self, phases: Sequence[Phase], elements: Sequence[str]) -> None:
        self.phases = tuple(phases)
        self.elements = tuple(elements)
        try:
            entries = [phase.entry for phase in phases]
            self.diagram = PhaseDiagram(entries, [Element(symbol) for symbol in elements])
        except (ValueError, IndexError, ArithmeticError) as error:
            raise CampaignError(
                f"no hull of {'-'.join(elements)} can be built ({error}): check the energies of "
                "the references"
            ) from error

    def energy_above(self, phase: Phase) -> float:
        """Return eV/atom above the hull; negative for a phase below it, unless it is on it."""
        on_hull = self.diagram.get_hull_energy_per_atom(phase.composition)
        return phase.energy_per_atom - float(on_hull)

    def formation_energy(self, phase: Phase) -> float:
        """Return eV/atom relative to the most stable phases of the elements."""
        elemental = sum(
            self._elemental[element.symbol] * phase.composition.get_atomic_fraction(element)
            for element in phase.composition
        )
        return phase.energy_per_atom - elemental

    @property
    def stable(self) -> tuple[str, ...]:
        """Names of the phases on the hull."""
        return tuple(sorted(entry.name for entry in self.diagram.stable_entries))

    @property
    def tie_lines(self) -> tuple[tuple[str, str], ...]:
        """Pairs of names of phases that coexist: the edges of the hull."""
        named = [entry.name for entry in self.diagram.qhull_entries]
        pairs = {
            tuple(sorted((named[a], named[b])))
            for facet in self.diagram.facets
            for i, a in enumerate(facet)
            for b in facet[i + 1 :]
        }
        return tuple(sorted((a, b) for a, b in pairs))

    @cached_property
    def _elemental(self) -> dict[str, float]:
        refs = self.diagram.el_refs
        return {element.symbol: float(entry.energy_per_atom) for element, entry in refs.items()}
