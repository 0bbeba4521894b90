import itertools

import pytest
from pymatgen.core import Composition as PymatgenComposition
from pymatgen.core import Element

from crystorus.data.compositions import Composition, FormulaError, parse_formula
from crystorus.errors import RequestError
from crystorus.hull.candidates import plan_samples
from crystorus.hull.compositions import choose_compositions, is_neutral
from crystorus.hull.options import CompositionOptions, SamplingOptions


def chosen_of(system, max_atoms=12, **options):
    return choose_compositions(
        system, CompositionOptions(max_atoms=max_atoms, **options)
    ).compositions


def brute_force(elements, max_atoms):
    """Every assignment of oxidation states to atoms, one by one."""
    for counts in itertools.product(range(max_atoms + 1), repeat=len(elements)):
        if 0 < sum(counts) <= max_atoms:
            yield counts


def test_all_compositions_are_there_once_when_nothing_is_filtered():
    chosen = chosen_of("Li-Fe-O", 7, min_elements=1, max_count=7, neutral=False)
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
    chosen = chosen_of("Li-Fe-O", 12, units=(1, 2), require=("O",), exclude=("Fe",), max_count=2)
    assert [c.formula for c in chosen] == ["Li2O", "Li4O2"]


def test_formulas_narrow_the_space_and_are_repeated_up_to_the_limit():
    chosen = chosen_of("Li-Fe-O", 12, formulas=("LiFeO2",))
    assert [c.formula for c in chosen] == ["LiFeO2", "Li2Fe2O4", "Li3Fe3O6"]


def test_a_small_budget_tries_every_ratio_before_a_second_cell_of_one():
    chosen = chosen_of("Li-Fe-O", 10)
    n_ratios = len({c.reduced for c in chosen})
    assert n_ratios < len(chosen)
    assert len({c.reduced for c in chosen[:n_ratios]}) == n_ratios


def test_the_budget_is_kept_and_the_same_crystals_come_whatever_it_is(fake_model):
    chosen = chosen_of("Li-Fe-O", 8)
    samples = plan_samples(SamplingOptions(n=3, budget=10, quality="fast"), chosen)
    assert (samples.plan.sampler.steps, samples.plan.candidates, samples.warnings) == (12, 1, ())
    small, large = samples.requests, plan_samples(SamplingOptions(n=3, budget=30), chosen).requests
    assert [(r.index, r.seed, r.composition) for r in small] == [
        (r.index, r.seed, r.composition) for r in large[:10]
    ]
    assert len(small) == 10
    assert max(r.n_atoms for r in large) <= 8


def test_cells_beyond_the_checkpoint_are_refused_with_options_that_exist(fake_model):
    chosen = chosen_of("Li-O", 24, units=(8,))
    words = (
        r"24 atoms.*at most 20: lower --max-atoms to 20 \(and --z\).*crystorus predict --large`$"
    )
    with pytest.raises(RequestError, match=words):
        plan_samples(SamplingOptions(), chosen)


@pytest.mark.parametrize(
    ("system", "options", "words"),
    [
        ("Xx-O", {}, "no element is called 'Xx'"),
        ("Li-Fe-Li", {}, "names Li more than once"),
        ("Li", {}, "1 element: a hull takes 2 to 6"),
        ("Li-Be-B-C-N-O-F-Ne", {}, "8 elements: a hull takes 2 to 6"),
        ("Li-O", {"max_atoms": 1}, "raise --max-atoms"),
        ("Li-O", {"max_atoms": 0}, "--max-atoms 0"),
        ("Li-O", {"max_count": 0}, "whole numbers from 1 up"),
        ("Na-Cl", {"max_atoms": 3, "units": (2,)}, "raise --max-atoms, or loosen --z"),
        ("Na-Cl", {"max_atoms": 3, "require": ("Na", "Cl"), "units": (1,)}, ""),
        ("Li-F", {"max_atoms": 4, "formulas": ("LiF3",)}, "none of the 1 compositions of Li-F is"),
        ("Li-O", {"require": ("Fe",)}, "--require Fe is no element of Li-O"),
        ("Li-O", {"require": ("O",), "exclude": ("O",)}, "both required and excluded"),
        ("Li-O", {"formulas": ("FeO",)}, "holds Fe, which is not in Li-O"),
        ("Li-Fe-P-O-S-N", {"max_atoms": 60}, "lower --max-atoms"),
    ],
)
def test_impossible_systems_are_refused_with_the_remedy(system, options, words):
    if not words:
        assert chosen_of(system, **options) == (Composition.of([11, 17]),)
        return
    with pytest.raises((RequestError, FormulaError)) as refused:
        chosen_of(system, **options)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "--budget 0"),
        ({"n": 0}, "0 crystals"),
        ({"seed": -1}, "the seed is -1"),
        ({"quality": "fast", "steps": 4}, "--quality fast"),
        ({"candidates": 0}, "0 candidates"),
        ({"candidates": 1_000_000}, "1000000 candidates"),
    ],
)
def test_samples_that_make_no_sense_are_refused(options, words):
    with pytest.raises(RequestError, match=words):
        SamplingOptions(**options)
