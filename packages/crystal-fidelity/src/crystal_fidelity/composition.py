"""Composition validity by charge balance, as SMACT judges it under CDVAE's settings."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.scores import Score, rate_score
from crystal_fidelity.structures import Crystal, Entry, as_entries, element_symbol

Formula = tuple[tuple[int, int], ...]
"""Sorted (atomic number, count) pairs."""
MAX_NAMED = 5


def is_charge_balanced(formula: Formula) -> bool:
    """Return whether oxidation states of SMACT's 2014 list can balance a reduced formula.

    Single elements and alloys of metals count as valid. The list is named explicitly because
    SMACT 4 changed its default, which changes the answer. As in CDVAE's code, an element without
    Pauling electronegativity (promethium) is not held against a compound; SMACT 4 alone would.
    A compound of an element that SMACT has no data of cannot be judged and counts as not balanced.

    Args:
        formula: Atomic numbers and counts.

    Raises:
        ImportError: smact is not installed.

    Source: Davies et al. 2019 (SMACT), doi:10.21105/joss.01361; Xie et al. 2021, arXiv:2110.06197
    """
    return len(formula) == 1 or (not unknown_elements(formula) and _is_charge_balanced(formula))


def unknown_elements(formula: Formula) -> tuple[str, ...]:
    """Return the elements of a compound that SMACT has no data of, such as Og.

    Args:
        formula: Atomic numbers and counts.

    Raises:
        ImportError: smact is not installed.
    """
    if len(formula) == 1:
        return ()
    return tuple(element_symbol(z) for z, _ in formula if not _is_known(element_symbol(z)))


@cache
def _is_known(symbol: str) -> bool:
    try:
        from smact import Element
    except ImportError as error:
        raise ImportError(
            "composition validity needs smact: pip install 'crystal-fidelity[peers]'"
        ) from error
    try:
        Element(symbol)
    except (KeyError, NameError):
        return False
    return True


@lru_cache(maxsize=100_000)
def _is_charge_balanced(formula: Formula) -> bool:
    from pymatgen.core import Composition
    from smact import Element
    from smact.screening import smact_validity

    symbols = [element_symbol(z) for z, _ in formula]
    return bool(
        smact_validity(
            Composition(dict(zip(symbols, (count for _, count in formula), strict=True))),
            use_pauling_test=all(Element(s).pauling_eneg is not None for s in symbols),
            include_alloys=True,
            oxidation_states_set="smact14",
        )
    )


def composition_validity(structures: Sequence[object]) -> NDArray[np.bool_]:
    """Return which structures have a charge-balanced composition; unreadable ones have not.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.

    Returns:
        (structures,).

    Raises:
        ImportError: smact is not installed.
    """
    entries = as_entries(structures)
    return np.array([isinstance(e, Crystal) and is_charge_balanced(e.formula) for e in entries])


def composition_validity_score(structures: Sequence[object]) -> Score:
    """Return the rate of charge-balanced compositions.

    Args:
        structures: Crystals, read failures, pymatgen structures or ASE atoms.

    Raises:
        ValueError: The set is empty.
        ImportError: smact is not installed.
    """
    entries = as_entries(structures)
    if len(entries) == 0:
        raise ValueError("0 structures: composition validity needs at least one")
    rate = float(composition_validity(entries).mean())
    undecided = [name for e in entries if (name := _undecided(e))]
    protocol = "SMACT, smact14 oxidation states, Pauling test, alloys and elements valid"
    if undecided:
        named = ", ".join(undecided[:MAX_NAMED]) + (", ..." if len(undecided) > MAX_NAMED else "")
        protocol += f"; {len(undecided)} of elements unknown to SMACT count as not: {named}"
    details = {"undecided": undecided} if undecided else None
    return rate_score("composition validity", rate, len(entries), protocol, details=details)


def _undecided(entry: Entry) -> str:
    """Return name and unknown elements of a structure that SMACT cannot judge, empty for others."""
    unknown = unknown_elements(entry.formula) if isinstance(entry, Crystal) else ()
    return f"{entry.name} ({', '.join(unknown)})" if unknown else ""
