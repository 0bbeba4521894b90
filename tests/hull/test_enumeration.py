import itertools

import pytest
import torch
from pymatgen.core import Composition as PymatgenComposition
from pymatgen.core import Element

from crystorus.data.compositions import Composition, FormulaError, parse_formula
from crystorus.hull.enumeration import Space, choose_compositions, is_neutral
from crystorus.hull.errors import SpaceError
from crystorus.hull.sampling import Sampling, choose_requests


def brute_force(elements, max_atoms):
    """Every assignment of oxidation states to atoms, one by one."""
    for counts in itertools.product(range(max_atoms + 1), repeat=len(elements)):
        if 0 < sum(counts) <= max_atoms:
            yield counts


def test_all_compositions_are_there_once_when_nothing_is_filtered():
    chosen = choose_compositions(
        Space("Li-Fe-O", 7, min_elements=1, max_count=7, neutral=False)
    ).compositions
    expected = {counts for counts in brute_force("123", 7)}
    found = [tuple(dict(c.counts).get(z, 0) for z in (3, 26, 8)) for c in chosen]
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize(
    ("formula", "neutral"),
    [("LiFeO2", True), ("Fe3O4", True), ("Fe2O3", True), ("Li5FeO4", True), ("LiO2", False),
     ("Li3O", False), ("FeO3", False), ("NaCl", True), ("Na2Cl", False), ("LiFe", True),
     ("O2", True), ("Mn3O4", True), ("SrTiO3", True)],
)  # fmt: skip
def test_charge_balance_of_known_formulas(formula, neutral):
    assert is_neutral(parse_formula(formula)) is neutral


@pytest.mark.parametrize("formula", ["LiFe3O4", "Li4FeO3", "Fe5O7", "Li2Fe3O5", "LiFe5O6", "Fe2O5"])
def test_mixed_valence_agrees_with_every_assignment_tried(formula):
    states = {"Li": [1], "Fe": [2, 3], "O": [-2]}
    atoms = [e.symbol for e, n in PymatgenComposition(formula).items() for _ in range(int(n))]
    balanced = any(sum(charges) == 0 for charges in itertools.product(*(states[a] for a in atoms)))
    assert set(Element("Fe").common_oxidation_states) == {2, 3}
    assert is_neutral(parse_formula(formula)) is balanced


def test_filters_leave_what_they_say():
    chosen = choose_compositions(
        Space("Li-Fe-O", 12, units=(1, 2), require=("O",), exclude=("Fe",), max_count=2)
    ).compositions
    assert [c.formula for c in chosen] == ["Li2O", "Li4O2"]


def test_formulas_narrow_the_space_and_are_repeated_up_to_the_limit():
    chosen = choose_compositions(Space("Li-Fe-O", 12, formulas=("LiFeO2",))).compositions
    assert [c.formula for c in chosen] == ["LiFeO2", "Li2Fe2O4", "Li3Fe3O6"]


def test_a_small_budget_tries_every_ratio_before_a_second_cell_of_one():
    chosen = choose_compositions(Space("Li-Fe-O", 10)).compositions
    n_ratios = len({c.reduced for c in chosen})
    assert n_ratios < len(chosen)
    assert len({c.reduced for c in chosen[:n_ratios]}) == n_ratios


def test_the_budget_is_kept_and_the_same_crystals_come_whatever_it_is():
    chosen = choose_compositions(Space("Li-Fe-O", 8)).compositions
    small = choose_requests(Sampling(n=3, budget=10), chosen)
    large = choose_requests(Sampling(n=3, budget=30), chosen)
    assert len(small) == 10
    assert large[:10] == small
    assert torch.tensor([r.n_atoms for r in large]).max() <= 8


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Space("Xx-O"), "no element is called 'Xx'"),
        (Space("Li-Fe-Li"), "names Li more than once"),
        (Space("Li"), "1 element: a hull takes 2 to 6"),
        (Space("Li-Be-B-C-N-O-F-Ne"), "8 elements: a hull takes 2 to 6"),
        (Space("Li-O", 1), "raise --max-atoms"),
        (Space("Na-Cl", 3, units=(2,)), "raise --max-atoms, or loosen --z"),
        (Space("Na-Cl", 3, require=("Na", "Cl"), max_count=8, units=(1,)), ""),
        (Space("Li-F", 4, formulas=("LiF3",)), "none of the 1 compositions of Li-F is neutral"),
        (Space("Li-O", require=("Fe",)), "--require Fe is no element of Li-O"),
        (Space("Li-O", require=("O",), exclude=("O",)), "both required and excluded"),
        (Space("Li-O", formulas=("FeO",)), "holds Fe, which is not in Li-O"),
        (Space("Li-Fe-P-O-S-N", 60), "lower --max-atoms"),
    ],
)
def test_impossible_spaces_are_refused_with_the_remedy(space, words):
    if not words:
        assert choose_compositions(space).compositions == (Composition.of([11, 17]),)
        return
    with pytest.raises((SpaceError, FormulaError)) as refused:
        choose_compositions(space)
    assert words in str(refused.value)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(SpaceError, match="--budget 0"):
        choose_requests(Sampling(budget=0), choose_compositions(Space("Li-O")).compositions)
