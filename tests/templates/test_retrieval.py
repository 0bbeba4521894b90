"""The nearest prototype is found, its elements go to the right sites, its volume is rescaled."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from prototypes import perovskite, rocksalt
from pymatgen.analysis.structure_matcher import StructureMatcher
from templates.conftest import KNOWN, with_elements

from crystorus.data.compositions import Composition, parse_formula
from crystorus.data.convert import crystals_to_structures
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.templates.prototypes import aflow_prototypes
from crystorus.templates.retrieval import find_templates, substitute

STATISTICS = CellStatistics.neutral()


def matches(one: Crystals, other: Crystals) -> bool:
    a, b = crystals_to_structures(Crystals.concat([one.to(dtype=torch.float64), other]))
    return StructureMatcher().fit(a, b)


def test_an_alkali_halide_gets_rocksalt_by_majority(library):
    best, *others = find_templates(library, parse_formula("NaBr"))
    assert best.template_id in {"NaCl", "KBr"}
    assert matches(substitute(library, best, STATISTICS), with_elements(rocksalt(), {17: 35}))
    prototypes = {best.template_id, *(c.template_id for c in others)}
    assert len(prototypes & {"NaCl", "LiF", "KBr"}) == 1, "one candidate per prototype"
    assert {"CsCl", "ZnS"} <= prototypes


def test_fractions_are_probabilities_of_first_matches(library):
    """Of all that is right they make up the most; what is missing from 1 is none of them."""
    for formula in ("RbI", "KBr", "SrTiO3"):
        found = find_templates(library, parse_formula(formula))
        fractions = [one.prototype_fraction for one in found]
        assert all(0 <= fraction <= 1 for fraction in fractions)
        assert fractions == sorted(fractions, reverse=True)
        assert 0.5 <= sum(fractions) <= 1 + 1e-9
    (alone,) = found
    assert alone.same_composition
    assert alone.substitution == ""


def test_elements_go_to_the_sites_of_the_elements_they_resemble(library):
    (found,) = find_templates(library, parse_formula("BaZrS3"))
    assert found.substitution == "Sr>Ba Ti>Zr O>S"
    old = KNOWN["SrTiO3"].atomic_numbers.tolist()
    assert dict(zip(old, found.numbers.tolist(), strict=True)) == {38: 56, 22: 40, 8: 16}
    wanted = with_elements(perovskite(), {38: 56, 22: 40, 8: 16})
    assert matches(substitute(library, found, STATISTICS), wanted)
    exchanged = with_elements(perovskite(), {38: 40, 22: 56, 8: 16})
    assert not matches(substitute(library, found, STATISTICS), exchanged)


def test_the_assignment_is_the_cheapest_of_all(library):
    cost = library.substitution.cost
    for formula in ("BaZrS3", "ZrBaS3", "KNbO3", "AuCuN3"):
        composition = parse_formula(formula)
        (found,) = find_templates(library, composition)
        pair = [z for z, count in composition.counts if count == 1]
        (anion,) = [z for z, count in composition.counts if count == 3]
        totals = []
        for order in itertools.permutations(pair):
            exchanges = [
                cost[new, old] for new, old in zip((*order, anion), (38, 22, 8), strict=True)
            ]
            totals.append(sum(exchanges) + 0.6 * max(exchanges))
        assert found.cost == pytest.approx(min(totals))


def test_substitutes_have_the_composition_and_the_volume_that_their_elements_make(library):
    composition = parse_formula("BaZrS3")
    statistics = replace(STATISTICS, log_volume=STATISTICS.log_volume.clone())
    statistics.log_volume[38], statistics.log_volume[56] = 3.0, 3.4  # Sr and Ba, of five atoms
    best = find_templates(library, composition)[0]
    own = float(library.template(best.template).volume[0])
    crystal = substitute(library, best, statistics)
    assert tuple(crystal.atomic_numbers.tolist()) == composition.atomic_numbers
    change = (56 in composition.atomic_numbers) * (3.4 - 3.0) / 5
    assert float(crystal.volume[0]) == pytest.approx(own * np.exp(change), rel=1e-6)


def test_a_known_compound_keeps_its_volume_to_the_last_digit(library):
    found = find_templates(library, parse_formula("CsCl"))
    itself = next(one for one in found if one.same_composition)
    statistics = replace(STATISTICS, log_volume=torch.linspace(2, 4, 119))
    crystal = substitute(library, itself, statistics)
    assert torch.equal(crystal.lattice, library.template(itself.template).lattice)


def test_larger_cells_are_supercells_where_nothing_else_fits(library):
    (best, *_) = find_templates(library, Composition.from_counts({11: 4, 35: 4}))
    assert sorted(best.copies) == [1, 2, 2]
    crystal = substitute(library, best, STATISTICS)
    assert int(crystal.n_atoms[0]) == 8
    assert matches(crystal, with_elements(rocksalt(), {17: 35}))


def test_nothing_fits_and_exclusion(library):
    assert find_templates(library, parse_formula("Mg3Al2Si3O12")) == []
    alone = find_templates(library, parse_formula("PbO2") * 2)
    assert [c.template_id for c in alone] == ["TiO2"]
    excluded = find_templates(library, parse_formula("PbO2") * 2, exclude=alone[0].template)
    assert excluded == []


def test_a_crystal_of_the_very_composition_is_named_so(library):
    found = find_templates(library, parse_formula("CsCl"))
    assert {c.template_id: c.same_composition for c in found}["CsCl"]
    assert not any(c.same_composition for c in find_templates(library, parse_formula("RbI")))


def test_the_prototypes_that_need_no_file():
    library = aflow_prototypes()
    assert len(library) == 288
    best = find_templates(library, parse_formula("BaZrS3"))[0]
    crystal = substitute(library, best, STATISTICS)
    assert tuple(crystal.atomic_numbers.tolist()) == parse_formula("BaZrS3").atomic_numbers


def test_distances_are_those_of_the_template_in_the_wanted_order(library):
    (found,) = find_templates(library, parse_formula("BaZrS3"))
    index = list(KNOWN).index("SrTiO3")
    slots = library.slots[index]
    inverse = dict(zip(found.numbers.tolist(), library.atomic_numbers(index).tolist(), strict=True))
    order = [slots.elements.tolist().index(inverse[z]) for z in (40, 56, 16)]
    np.testing.assert_allclose(found.distances, slots.distances[np.ix_(order, order)], atol=2e-3)
