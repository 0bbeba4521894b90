from dataclasses import replace

import ase.io
import numpy as np
import pytest
from prototypes import (
    diamond,
    everything,
    moved,
    perovskite,
    random_crystal,
    rattled,
    rock_salt,
    rutile,
    wurtzite,
    zinc_blende,
)
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_fidelity.compare import compare
from crystal_fidelity.energies import above_hull
from crystal_fidelity.matching import (
    MatcherSettings,
    kinds,
    match_rate,
    metre,
    novel,
    prototypes,
    sun_scores,
    unique,
)
from crystal_fidelity.options import Settings
from crystal_fidelity.structures import Crystal, ReadFailure, from_atoms, to_atoms, to_pymatgen
from crystal_fidelity.symmetry import (
    SpaceGroup,
    dataset,
    sites_of,
    space_group,
    space_group_distance,
    space_groups,
    total_variation,
)
from crystal_fidelity.validity import structural_validity


def test_copies_are_not_unique_and_the_first_is():
    crystals = [*everything(), *(moved(c, 2) for c in everything())]
    assert unique(crystals).tolist() == [True] * 6 + [False] * 6


def test_unique_counts_the_groups_of_pymatgen():
    base = [random_crystal(i, 3, (8, 22)) for i in range(8)]
    crystals = [rattled(c, s, i) for i, c in enumerate(base) for s in (0.0, 0.05, 0.4)]
    groups = StructureMatcher().group_structures([to_pymatgen(c) for c in crystals])
    assert unique(crystals).sum() == len(groups)
    assert 8 <= len(groups) < 24


def test_novelty_is_pymatgens_verdict():
    known = [random_crystal(i, 3, (8, 22)) for i in range(6)]
    made = [rattled(c, s, i) for i, c in enumerate(known) for s in (0.05, 0.5)]
    matcher = StructureMatcher()
    expected = [not any(matcher.fit(to_pymatgen(k), to_pymatgen(m)) for k in known) for m in made]
    assert novel(made, known).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_unreadable_is_neither_unique_nor_novel():
    torn = ReadFailure("x", "torn")
    assert unique([torn, diamond()]).tolist() == [False, True]
    assert novel([torn, diamond()], [rutile()]).tolist() == [False, True]
    for broken in (lambda: unique([]), lambda: novel([diamond()], [])):
        with pytest.raises(ValueError, match="need"):
            broken()


def renamed(crystal, change):
    numbers = np.array([change[z] for z in crystal.atomic_numbers.tolist()])
    return Crystal(crystal.lattice, crystal.frac_coords, numbers)


def fluorite(cation, anion):
    """Return CaF2's structure; with the elements exchanged it is antifluorite, as Li2O."""
    lattice = np.array([[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]])
    coords = np.array([[0, 0, 0], [0.25] * 3, [0.75] * 3])
    return Crystal(lattice, coords, np.array([cation, anion, anion]))


def test_substitution_derived_is_a_known_prototype_with_other_elements():
    known = [rock_salt(), perovskite(), fluorite(20, 9), wurtzite()]
    cases = {
        "known": [moved(rock_salt(), 1), rock_salt(6.0), perovskite(4.1)],
        "derived": [
            rock_salt(6.6, "K", "Br"),
            renamed(perovskite(), {38: 56, 22: 40, 8: 16}),
            renamed(perovskite(), {38: 17, 22: 8, 8: 3}),  # Li3OCl: anions on the sites of cations
            fluorite(8, 3),  # Li2O
            renamed(wurtzite(), {30: 31, 8: 7}),
        ],
        "new": [
            zinc_blende(),  # neither rock salt nor wurtzite
            rutile(),  # not fluorite
            rattled(renamed(perovskite(), {38: 56, 22: 40, 8: 16}), 0.9, 1),
            renamed(wurtzite(), {30: 6, 8: 6}),  # lonsdaleite: one element, none of the known
        ],
    }
    made = [crystal for group in cases.values() for crystal in group]
    result = prototypes(made, known, novel(made, known))
    expected = [name for name, group in cases.items() for _ in group]
    found = np.where(~result.novel, "known", np.where(result.derived, "derived", "new"))
    assert found.tolist() == expected
    values = {score.name: score.value for score in result.scores()}
    assert values["substitution-derived"] == pytest.approx(5 / 12)
    assert values["new prototype"] == pytest.approx(4 / 12)


def test_prototypes_are_counted_whatever_their_elements():
    salts = [rock_salt(), rock_salt(6.6, "K", "Br"), moved(rock_salt(), 2)]
    made = [*salts, zinc_blende(), ReadFailure("x", "torn")]
    assert kinds(made).tolist() == [0, 1, 0, 3, -1]
    assert kinds(made, alike="prototype").tolist() == [0, 0, 0, 3, -1]
    result = prototypes(made, [diamond()], novel(made, [diamond()]))
    values = {score.name: score.value for score in result.scores()}
    assert values["uniqueness of prototypes"] == pytest.approx(2 / 5)
    # Three of four are of one prototype: exp(-3/4 ln 3/4 - 1/4 ln 1/4) = 4 / 3^(3/4).
    assert values["prototype diversity"] == pytest.approx(4 / 3**0.75)
    assert values["new prototype"] == pytest.approx(4 / 5)


def test_energies_above_hull_are_those_of_pymatgens_phase_diagram():
    generator = np.random.default_rng(0)
    phases = [Crystal(4 * np.eye(3), np.zeros((1, 3)), np.array([z])) for z in (3, 8, 26)]
    phases += [random_crystal(i, 2 + i % 4, (3, 8, 26)) for i in range(25)]
    energies = generator.normal(-1, 0.5, len(phases))
    pairs = zip(phases, energies, strict=True)
    diagram = PhaseDiagram([PDEntry(to_pymatgen(c).composition, e * len(c)) for c, e in pairs])
    made = [random_crystal(100 + i, 3, (3, 8, 26)) for i in range(20)]
    mine = generator.normal(-1.5, 0.5, len(made))
    expected = [
        e - diagram.get_hull_energy_per_atom(to_pymatgen(c).composition)
        for c, e in zip(made, mine, strict=True)
    ]
    found = above_hull(made, mine, phases, energies)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.min() < 0 < found.max()
    # No phases of sodium; unknown energies of a structure, and of the one phase of an element.
    assert np.isnan(above_hull([rock_salt()], np.array([-1.0]), phases, energies)[0])
    assert np.isnan(above_hull(made[:1], np.array([np.nan]), phases, energies)[0])
    energies[2] = np.nan
    iron = Crystal(4 * np.eye(3), np.zeros((1, 3)), np.array([26]))
    assert np.isnan(above_hull([iron], np.array([0.0]), phases[:3], energies[:3])[0])


@pytest.mark.parametrize("key", ["e", "total_energy"])
def test_sun_computes_energies_above_the_hull_of_a_file(tmp_path, key):
    """From energies per atom and from totals of cells."""

    def value(energy, structure):
        return energy * (len(structure) if key == "total_energy" else 1)

    frames = [to_atoms(rock_salt()), to_atoms(renamed(diamond(), {6: 11}))]
    frames.append(to_atoms(renamed(diamond(), {6: 17})))
    for frame, energy in zip(frames, (-2.0, 0.0, 0.0), strict=True):
        frame.info[key] = value(energy, frame)
    ase.io.write(tmp_path / "phases.extxyz", frames)
    blende = renamed(zinc_blende(), {30: 11, 16: 17})
    made = [replace(blende, properties={key: value(e, blende)}) for e in (-2.1, -1.95, -1.0)]
    path = tmp_path / "phases.extxyz"
    settings = Settings(metrics=("sun",), energy=f"file:{key}", hull_references=path)
    result = compare(made, [rock_salt()], settings)
    assert result.above_hull == pytest.approx([-0.1, 0.05, 1.0])
    values = {score.name: score.value for score in result.scores}
    assert [values[name] for name in ("stable", "metastable")] == pytest.approx([1 / 3, 2 / 3])
    assert [values[name] for name in ("S.U.N.", "M.S.U.N.")] == pytest.approx([1 / 3, 1 / 3])
    assert "hull of 3 phases" in result.scores[0].protocol


def test_sun_needs_all_three_and_unknown_energy_is_not_stable():
    made = [rutile(), moved(rutile(), 1), diamond(), perovskite(), zinc_blende()]
    energies = np.array([-0.01, -0.01, 0.0, np.nan, 0.05])
    found = sun_scores(unique(made), novel(made, [diamond()]), energies)
    values = {s.name: s.value for s in found}
    assert values == pytest.approx(
        {"stable": 0.6, "S.U.N.": 0.2, "metastable": 0.8, "M.S.U.N.": 0.4}
    )


def test_metre_is_the_best_match_of_every_reference():
    real = [random_crystal(i, 3, (8, 22)) for i in range(8)]
    made = [rattled(c, 0.1, i) for i, c in enumerate(real[:5])][::-1]
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    result = metre(made, real)
    for target, rms in zip(real, result.rms, strict=True):
        found = [matcher.get_rms_dist(to_pymatgen(m), to_pymatgen(target)) for m in made]
        best = min((f[0] for f in found if f), default=None)
        assert (best is None) == np.isnan(rms)
        assert best is None or rms == pytest.approx(best, abs=1e-12)
    filled = np.where(np.isnan(result.rms), 0.5, result.rms)
    assert result.corrected_rmse == pytest.approx(filled.mean())


def test_metre_at_k_is_that_of_the_first_and_of_all_candidates():
    real = [random_crystal(i, 3, (8, 22)) for i in range(6)]
    first = [rattled(c, 0.1 if i < 3 else 1.5, i) for i, c in enumerate(real)]
    second = [rattled(c, 0.05, i) for i, c in enumerate(real)]
    strict = MatcherSettings(stol=0.2)
    both = [c for pair in zip(first, second, strict=True) for c in pair]
    both = metre(both, real, candidates=2, settings=strict)
    scores = {s.name: s for s in both.scores()}
    assert list(scores) == ["METRe", "cRMSE", "METRe at 2", "cRMSE at 2"]
    alone, pooled = (metre(s, real, settings=strict) for s in (first, [*first, *second]))
    assert scores["METRe"].value == alone.rate < 1
    assert scores["cRMSE"].value == pytest.approx(alone.corrected_rmse)
    assert scores["METRe at 2"].value == pooled.rate == 1
    assert scores["cRMSE at 2"].value == pytest.approx(pooled.corrected_rmse)


def test_metre_does_not_care_about_order_and_match_rate_does():
    blende = Crystal(zinc_blende().lattice, zinc_blende().frac_coords, np.array([30, 8]), "b")
    real = [wurtzite(), blende]
    strict = MatcherSettings(stol=0.2)
    assert metre(real[::-1], real, settings=strict).rate == 1.0
    assert match_rate(real[::-1], real, settings=strict).rate == 0.0


def test_space_groups_are_spglibs_and_the_textbooks():
    assert space_groups(everything()).tolist() == [225, 216, 227, 186, 221, 136]
    for crystal in [rattled(c, 0.005, 1) for c in everything()]:
        theirs = SpacegroupAnalyzer(to_pymatgen(crystal), symprec=0.1).get_space_group_number()
        assert space_groups([crystal])[0] == theirs


def test_wyckoff_sites_are_those_of_the_textbooks_in_any_cell_of_a_crystal():
    assert [sites_of(dataset(c)) for c in everything()] == [
        ["4a", "4b"], ["4a", "4c"], ["8a"], ["2b", "2b"], ["1a", "1b", "3c"], ["2a", "4f"],
    ]  # fmt: skip
    for crystal in everything():
        doubled = from_atoms(to_atoms(crystal) * (1, 1, 2), "doubled")
        assert sites_of(dataset(doubled)) == sites_of(dataset(crystal))
        # Two like atoms keep the inversion between them wherever they are.
        general = ["1a"] * len(crystal) if len(set(crystal.atomic_numbers)) > 1 else ["2i"]
        assert sites_of(dataset(rattled(crystal, 0.3, 1), 1e-3)) == general
    assert sites_of(None) == []


def test_a_collapsed_cell_is_not_searched_for_ever():
    """Two atoms 0.34 Å apart, for which moyo 0.21 comes to no end within 0.17 Å."""
    rows = [[-0.104423, 0.313533, -0.061325], [-0.314762, 0.073642, 0.265710],
            [1.430483, 0.635617, 1.477308]]  # fmt: skip
    coords = [[0.132710, 0.804687, 0.668656], [0.621635, 0.320373, 0.142531]]
    near = Crystal(np.array(rows), np.array(coords), np.array([8, 8]))
    # A crystal that is as symmetric as they come, and the same below the distance of 0.5 Å.
    cube = Crystal(4 * np.eye(3), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.array([55, 17]))
    small = Crystal(cube.lattice / 8, cube.frac_coords, cube.atomic_numbers)
    assert space_groups([near, cube, small], symprec=0.17).tolist() == [0, 221, 0]


def test_collapsed_and_unreadable_structures_have_no_space_group():
    crystal = rock_salt()
    collapsed = Crystal(crystal.lattice, np.zeros((2, 3)), np.array([11, 11]))
    flat = Crystal(np.diag([3.0, 3, 0]), np.zeros((1, 3)), np.array([11]))
    assert space_groups([collapsed, flat, ReadFailure("x", "torn")]).tolist()[1:] == [0, 0]


PITFALLS = {
    # A long cell whose vector c is nearly normal to a: c + a has its length within 0.02 Å.
    "long": np.array([[2.57, 0.1, 0.0], [0.3, 2.7, 0.1], [0.2, 0.1, 80.1]]),
    "needle": np.diag([0.6, 0.6, 400.0]),
    "long needle": np.diag([2.5, 2.5, 990.0]),
    "sheared": np.array([[3.0, 0, 0], [3.0, 0.02, 0], [0, 0, 3.0]]),
    "skew": np.array([[3.0, 0, 0], [300.0, 3, 0], [500.0, 400, 3]]),
    "flat": np.diag([9.0, 9.0, 0.64]),
    "tiny": np.diag([0.3, 0.3, 0.3]),
}


@pytest.mark.parametrize("name", PITFALLS)
@pytest.mark.parametrize("symprec", [1e-5, 0.1, 0.35, 1.5, 50.0])
def test_the_search_ends_in_any_cell_at_any_tolerance(name, symprec):
    for frac in (np.zeros((1, 3)), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])):
        crystal = Crystal(PITFALLS[name], frac, np.arange(len(frac)) + 11, name)
        found = space_group(crystal, symprec)
        assert 1 <= found.number <= 230
        assert found.number == 1 or structural_validity([crystal]).valid[0]


@pytest.mark.parametrize("symprec", [0.0, -0.1, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(symprec):
    with pytest.raises(ValueError, match="give a tolerance in Å above 0"):
        space_group(rock_salt(), symprec)


@pytest.mark.parametrize("symprec", [0.1, 0.5])
def test_the_conventional_cell_is_exactly_symmetric_and_the_same_crystal(symprec):
    """Within 0.2 Å the search is moyo's, beyond it spglib finds the group: both must agree."""
    for crystal, number in zip(everything(), (225, 216, 227, 186, 221, 136), strict=True):
        symbol, found, cell = space_group(rattled(crystal, 0.01, 3), symprec)
        assert found == number
        assert symbol == SpacegroupAnalyzer(to_pymatgen(crystal)).get_space_group_symbol()
        assert dataset(cell, 1e-4).number == number
        assert StructureMatcher().fit(to_pymatgen(cell), to_pymatgen(crystal))
        assert cell.frac_coords.min() >= 0
        assert cell.frac_coords.max() < 1


def test_what_has_no_symmetry_is_p1_and_stays_as_it_is():
    collapsed = Crystal(np.eye(3) * 0.3, np.zeros((1, 3)), np.array([11]))
    assert space_group(collapsed) == SpaceGroup("P1", 1, collapsed)


def test_total_variation_is_its_definition():
    assert total_variation(np.array([1, 1, 2, 225]), np.array([1, 2, 2, 3])) == pytest.approx(0.5)
    result = space_group_distance(everything(), everything())
    assert result.total_variation == 0
    noisy = space_group_distance([random_crystal(i) for i in range(6)], everything())
    assert noisy.total_variation == 1.0
    p1 = noisy.scores()[1]
    assert (p1.value, p1.real) == (1.0, 0.0)
