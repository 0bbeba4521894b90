"""How faithful a set of generated crystals is to a reference set.

Every result carries its protocol, the n of both sets and, where it has one, its noise floor.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystal_fidelity.distances import density_emd, earth_movers_distance, energy_emd
    from crystal_fidelity.matching import MatcherSettings, match_rate, match_rate_best_of
    from crystal_fidelity.reading import iter_structures, read_structures
    from crystal_fidelity.scores import Score
    from crystal_fidelity.structures import Crystal, ReadFailure
    from crystal_fidelity.validity import structural_validity

__version__ = "0.2.0"

__all__ = [
    "Crystal",
    "MatcherSettings",
    "ReadFailure",
    "Score",
    "density_emd",
    "earth_movers_distance",
    "energy_emd",
    "iter_structures",
    "match_rate",
    "match_rate_best_of",
    "read_structures",
    "structural_validity",
]

_HOMES = {
    "distances": ("density_emd", "earth_movers_distance", "energy_emd"),
    "matching": ("MatcherSettings", "match_rate", "match_rate_best_of"),
    "reading": ("iter_structures", "read_structures"),
    "scores": ("Score",),
    "structures": ("Crystal", "ReadFailure"),
    "validity": ("structural_validity",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import crystal_fidelity` itself stays light."""
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"crystal_fidelity.{module}"), name)
    raise AttributeError(f"module 'crystal_fidelity' has no attribute '{name}'")
