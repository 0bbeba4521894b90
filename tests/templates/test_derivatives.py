"""Templates with one element less or more than wanted: who gets which sites, and at what cost."""

import itertools
import math

import ase.io
import numpy as np
import pytest
import torch
from prototypes import perovskite, rocksalt, spinel
from pymatgen.analysis.structure_matcher import StructureMatcher
from templates.conftest import with_elements

from crystorus.data.compositions import Composition, parse_formula
from crystorus.data.convert import crystals_to_atoms, crystals_to_structures
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.templates.derivatives import (
    MAX_COST,
    MERGING_COST,
    ORDERING_COST,
    SYMMETRY_BREAKING_COST,
    fit_derivatives,
)
from crystorus.templates.library import build_library
from crystorus.templates.prototypes import aflow_prototypes
from crystorus.templates.retrieval import find_templates, substitute
from crystorus.templates.surroundings import surroundings

STATISTICS = CellStatistics.neutral()
MG, AL, FE, OX, SR, TI = 12, 13, 26, 8, 38, 22
FERRITE = {MG: MG, AL: FE}
MAGNETITE = {MG: FE, AL: FE}


def library_of(folder, **known: Crystals):
    frames = crystals_to_atoms(Crystals.concat(list(known.values())))
    for frame, name in zip(frames, known, strict=True):
        frame.info["material_id"] = name
    ase.io.write(folder / "known.extxyz", frames)
    return build_library(folder / "known.extxyz", folder / "known.templates")


def matches(one: Crystals, other: Crystals) -> bool:
    a, b = crystals_to_structures(Crystals.concat([one.to(dtype=torch.float64), other]))
    return StructureMatcher().fit(a, b)


def wanted(formula: str, like: Crystals) -> Composition:
    composition = parse_formula(formula)
    return composition * (int(like.n_atoms[0]) // composition.n_atoms)


def test_an_ordered_derivative_shares_the_sites_where_they_differ(tmp_path):
    library = library_of(tmp_path, magnetite=with_elements(spinel(), MAGNETITE))
    found = find_templates(library, wanted("MgFe2O4", spinel()))
    best, *others = sorted(found, key=lambda one: one.cost)
    assert best.substitution == "Fe>Mg+Fe"
    assert not best.same_composition
    made = substitute(library, best, STATISTICS)
    assert matches(made, with_elements(spinel(), FERRITE)), "magnesium in the tetrahedra"
    assert not matches(made, with_elements(spinel(), {MG: FE, AL: MG}))
    assert [round(other.cost - best.cost, 6) for other in others] == pytest.approx(
        [SYMMETRY_BREAKING_COST - ORDERING_COST] * len(others)
    )
    assert others, "and the octahedra shared, which breaks their symmetry, costs more"


def test_a_merged_derivative_gives_both_sites_to_one(tmp_path):
    library = library_of(tmp_path, spinel=spinel())
    (found,) = find_templates(library, wanted("Fe3O4", spinel()))
    assert found.substitution == "Mg>Fe Al>Fe"
    made = substitute(library, found, STATISTICS)
    assert matches(made, with_elements(spinel(), MAGNETITE))


def test_what_they_cost(tmp_path):
    library = library_of(tmp_path, spinel=spinel())
    cost = library.substitution.cost
    merged = fit_derivatives(library, wanted("Fe3O4", spinel()))
    each = [cost[FE, MG], cost[FE, AL], cost[OX, OX]]
    assert merged.cost.min() == pytest.approx(sum(each) + 0.6 * max(each) + MERGING_COST)
    ordered = fit_derivatives(library, wanted("MgAl2TiO3", spinel()))
    least = []
    for shared in (MG, AL, OX):  # every way to have two of four elements on the sites of one
        for order in itertools.permutations((MG, AL, TI, OX)):
            rest = [z for z in (MG, AL, OX) if z != shared]
            pair, others = order[:2], order[2:]
            counts = {MG: 2, AL: 4, TI: 2, OX: 6}
            sites = {MG: 2, AL: 4, OX: 8}
            if counts[pair[0]] + counts[pair[1]] != sites[shared]:
                continue
            if [counts[z] for z in others] != [sites[z] for z in rest]:
                continue
            each = [cost[pair[0], shared] + cost[pair[1], shared]]
            each += [cost[new, old] for new, old in zip(others, rest, strict=True)]
            least.append(sum(each) + 0.6 * max(each))
    assert least
    assert ordered.cost.min() == pytest.approx(min(least) + SYMMETRY_BREAKING_COST)


def test_ways_that_symmetry_makes_one_are_tried_once(tmp_path):
    library = library_of(tmp_path, perovskite=perovskite())
    fits = fit_derivatives(library, parse_formula("SrTiO2F"))
    assert len(fits) == 1, "fluorine on any of the three edges is the same crystal"
    assert sorted(fits.numbers[0].tolist()) == [OX, OX, 9, TI, SR]


def test_what_costs_too_much_is_not_heard(tmp_path):
    library = library_of(tmp_path, perovskite=perovskite())
    for formula in ("SrTiO2F", "Fe2O3", "Cs2AuXe2"):
        fits = fit_derivatives(library, parse_formula(formula))
        assert fits is None or (fits.cost < MAX_COST).all()
    assert find_templates(library, parse_formula("Cs2AuXe2")) == []


def test_they_are_asked_only_where_the_pattern_is_far(tmp_path):
    alike = with_elements(spinel(), {MG: 30, AL: FE})  # zinc ferrite
    library = library_of(tmp_path, magnetite=with_elements(spinel(), MAGNETITE), zinc=alike)
    found = find_templates(library, wanted("MgFe2O4", spinel()))
    assert [c.template_id for c in found] == ["zinc"]
    alone = find_templates(library, wanted("MgFe2O4", spinel()), exclude=found[0].template)
    assert {c.template_id for c in alone} == {"magnetite"}
    none = fit_derivatives(library, wanted("MgFe2O4", spinel()), exclude=0)
    assert none is None


def test_costs_stay_below_the_limit(tmp_path):
    library = library_of(tmp_path, magnetite=with_elements(spinel(), MAGNETITE), salt=rocksalt())
    composition = wanted("MgFe2O4", spinel())
    every = fit_derivatives(library, composition)
    cheapest = float(every.cost.min())
    assert fit_derivatives(library, composition, below=cheapest) is None
    limit = cheapest + (SYMMETRY_BREAKING_COST - ORDERING_COST) / 2
    some = fit_derivatives(library, composition, below=limit)
    assert 0 < len(some) < len(every)
    assert (some.cost < limit).all()


@pytest.mark.parametrize("formula", ["LiMnNiO4", "CaAlSb", "Li2FeSiO4", "K", "BaNiGe3", "CuAu"])
def test_every_candidate_has_the_composition_and_its_surroundings(formula):
    library = aflow_prototypes()
    composition = parse_formula(formula) * 2
    fits = fit_derivatives(library, composition, below=math.inf)
    found = find_templates(library, composition, limit=1000)
    assert found
    for numbers in fits.numbers if fits else []:
        assert Composition.of(numbers.tolist()) == composition
    for candidate in found:
        crystal = substitute(library, candidate, STATISTICS)
        assert tuple(crystal.atomic_numbers.tolist()) == composition.atomic_numbers
        again = surroundings(
            crystal.lattice[0].numpy(),
            crystal.frac_coords.numpy(),
            crystal.atomic_numbers.numpy(),
        )
        np.testing.assert_allclose(candidate.distances, again.distances, atol=2e-3)
