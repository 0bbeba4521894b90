"""What is known of each generated structure, as rows for JSON and for the report."""

import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np

from crystal_fidelity.compare import Comparison
from crystal_fidelity.distances import densities
from crystal_fidelity.structures import Crystal, Entry, element_symbol

FIELDS = {
    "index": "#",
    "name": "name",
    "formula": "formula",
    "atoms": "atoms",
    "volume_per_atom": "Å³ / atom",
    "density": "density / g cm⁻³",
    "valid": "valid",
    "closest_contact": "closest contact / Å",
    "charge_balanced": "charge balanced",
    "energy": "energy / eV per atom",
    "space_group": "space group",
    "match": "match",
    "rms": "RMS",
    "unique": "unique",
    "novel": "novel",
    "above_hull": "above hull / eV per atom",
    "remark": "remark",
}
"""Keys in JSON, and headings."""


def structure_rows(generated: Sequence[Entry], result: Comparison) -> list[list[object]]:
    """Return one row per generated structure, in the order of FIELDS; None where not computed."""
    match, validity, groups = result.match, result.validity, result.groups
    one_shot = match if match is not None and match.candidates == 1 else None
    density = densities(generated)
    energy = result.energy.per_structure if result.energy else None
    rows: list[list[object]] = []
    for i, entry in enumerate(generated):
        crystal = entry if isinstance(entry, Crystal) else None
        unread = "" if crystal else f"unreadable: {entry.reason}"  # type: ignore[union-attr]
        rows.append(
            [
                i + 1,
                entry.name,
                formula_text(entry),
                len(crystal) if crystal else None,
                _rounded(crystal.volume / len(crystal)) if crystal else None,
                _rounded(density[i]),
                bool(validity.valid[i]) if validity else None,
                _rounded(validity.min_distance[i]) if validity else None,
                _flag(result.balanced, i),
                _rounded(energy[i]) if energy is not None else None,
                (int(groups.generated[i]) or None) if groups else None,
                one_shot.outcomes[i].status if one_shot else None,
                _rounded(one_shot.outcomes[i].rms) if one_shot else None,
                _flag(result.unique, i),
                _flag(result.novel, i),
                _rounded(result.above_hull[i]) if result.above_hull is not None else None,
                validity.reasons[i] if validity else unread,
            ]
        )
    return rows


def _flag(mask: "np.ndarray[tuple[int], np.dtype[np.bool_]] | None", index: int) -> bool | None:
    return None if mask is None else bool(mask[index])


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def formula_text(entry: Entry) -> str:
    """Return the reduced formula, electropositive elements first."""
    return _formula_text(entry.formula) if isinstance(entry, Crystal) else ""


@cache
def _formula_text(formula: tuple[tuple[int, int], ...]) -> str:
    from pymatgen.core import Composition

    reduced = {element_symbol(z): count for z, count in formula}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity to sort by
        return str(Composition(reduced).reduced_formula)
