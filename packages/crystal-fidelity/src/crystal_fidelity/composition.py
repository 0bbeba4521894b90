"""Composition validity by charge balance, as SMACT judges it under CDVAE's settings."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.scores import Score, rate_error
from crystal_fidelity.structures import Crystal, as_entries, element_symbol


def is_charge_balanced(formula: tuple[tuple[int, int], ...]) -> bool:
    """Return whether oxidation states of SMACT's 2014 list can balance a reduced formula.

    Single elements and alloys of metals count as valid. The list is named explicitly because
    SMACT 4 changed its default, which changes the answer. As in CDVAE's code, an element without
    Pauling electronegativity (promethium) is not held against a compound; SMACT 4 alone would.

    Raises:
        ImportError: smact is not installed.
    """
    return _is_charge_balanced(formula)


@lru_cache(maxsize=100_000)
def _is_charge_balanced(formula: tuple[tuple[int, int], ...]) -> bool:
    try:
        from smact import Element
        from smact.screening import smact_validity
    except ImportError as error:
        raise ImportError(
            "composition validity needs smact: pip install 'crystal-fidelity[peers]'"
        ) from error
    from pymatgen.core import Composition

    if len(formula) == 1:
        return True
    symbols = [element_symbol(z) for z, _ in formula]
    composition = Composition(dict(zip(symbols, (count for _, count in formula), strict=True)))
    return bool(
        smact_validity(
            composition,
            use_pauling_test=all(Element(s).pauling_eneg is not None for s in symbols),
            include_alloys=True,
            oxidation_states_set="smact14",
        )
    )


def composition_validity(structures: Sequence[object]) -> NDArray[np.bool_]:
    """Return which structures have a charge-balanced composition; unreadable ones have not."""
    entries = as_entries(structures)
    return np.array([isinstance(e, Crystal) and is_charge_balanced(e.formula) for e in entries])


def composition_validity_score(structures: Sequence[object]) -> Score:
    """Return the rate of charge-balanced compositions.

    Raises:
        ValueError: the set is empty.
    """
    valid = composition_validity(structures)
    if len(valid) == 0:
        raise ValueError("0 structures: composition validity needs at least one")
    rate = float(valid.mean())
    return Score(
        "composition validity",
        rate,
        n_generated=len(valid),
        protocol="SMACT, smact14 oxidation states, Pauling test, alloys and elements valid",
        uncertainty=rate_error(rate, len(valid)),
        rate=True,
        better="higher",
    )
