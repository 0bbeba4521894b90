"""How faithful a set of generated crystals is to a reference set.

Every result carries its protocol, the n of both sets and, where it has one, its noise floor.
"""

__version__ = "0.1.0"

from crystal_fidelity.distances import density_emd, earth_movers_distance, energy_emd
from crystal_fidelity.matching import MatcherSettings, match_rate, match_rate_best_of
from crystal_fidelity.reading import iter_structures, read_structures
from crystal_fidelity.scores import Score
from crystal_fidelity.structures import Crystal, ReadFailure
from crystal_fidelity.validity import structural_validity

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
