"""Skeletons: found in crystals, looked up by composition, enumerated, kept in files."""

import itertools
from collections import Counter

import numpy as np
import pytest
import spglib
import torch
from prototypes import SPACE_GROUPS, all_prototypes, rocksalt

from crystal_fidelity.structures import Crystal
from crystal_fidelity.symmetry import dataset
from crystorus.checkpoint import SHIPPED, SKELETONS, read_skeletons, save_skeletons
from crystorus.data.compositions import Composition, parse_formula
from crystorus.data.convert import split
from crystorus.diffusion.space_groups import Skeleton, Skeletons, SpaceGroups
from crystorus.errors import CheckpointError
from crystorus.geometry.space_groups import operations, site_permutations, sites
from crystorus.templates.retrieval import SAME_COMPOSITION_WEIGHT
from crystorus.templates.skeletons import (
    SkeletonTable,
    WeightedSkeleton,
    enumerate_skeletons,
    in_turn,
    usual_form,
)
from crystorus.templates.skeletons import skeleton_of as skeleton_in

MULTIPLICITIES = {
    "rocksalt": {(11, 1, 0), (17, 1, 0)},
    "cscl": {(55, 1, 0), (17, 1, 0)},
    "hcp": {(12, 2, 0)},
    "zincblende": {(30, 1, 0), (16, 1, 0)},
    "wurtzite": {(30, 2, 1), (8, 2, 1)},
    "perovskite": {(38, 1, 0), (22, 1, 0), (8, 3, 0)},
    "rutile": {(22, 2, 0), (8, 4, 1)},
    "spinel": {(12, 2, 0), (13, 4, 0), (8, 8, 1)},
    "quartz": {(14, 3, 1), (8, 6, 3)},
}
"""Element, atoms in the primitive cell and free coordinates of every orbit, by hand."""


def skeleton_of(crystal: Crystal, symprec: float = 0.05) -> Skeleton:
    return skeleton_in(crystal, dataset(crystal, symprec))


def one(name: str) -> Crystal:
    return split(all_prototypes()[name])[0]


def moved(crystal: Crystal, generator: np.random.Generator) -> Crystal:
    """The same crystal, turned and seen from another origin."""
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    frac = (crystal.frac_coords + generator.random(3)) % 1
    return Crystal(crystal.lattice @ (turn * np.linalg.det(turn)), frac, crystal.atomic_numbers)


def doubled(crystal: Crystal) -> Crystal:
    half = crystal.frac_coords / [2, 1, 1]
    frac = np.concatenate([half, half + np.array([0.5, 0, 0])])
    return Crystal(
        crystal.lattice * np.array([[2], [1], [1]]),
        frac,
        np.concatenate([crystal.atomic_numbers] * 2),
    )


def conventional(crystal: Crystal) -> Crystal:
    found = spglib.standardize_cell(
        (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers), symprec=0.01
    )
    return Crystal(*map(np.asarray, found))


@pytest.mark.parametrize("name", MULTIPLICITIES)
def test_prototypes_have_the_sites_of_the_tables(name):
    skeleton = skeleton_of(one(name))
    assert skeleton.group == SPACE_GROUPS[name]
    every = [(z, sites(skeleton.group)[site]) for z, site in skeleton.orbits]
    assert {(z, site.multiplicity, site.freedom) for z, site in every} == MULTIPLICITIES[name]
    assert len(every) == len(MULTIPLICITIES[name])


@pytest.mark.parametrize("name", SPACE_GROUPS)
def test_a_skeleton_is_of_the_crystal_and_not_of_its_cell(name):
    generator, crystal = np.random.default_rng(0), one(name)
    skeleton = skeleton_of(crystal)
    for _ in range(4):
        assert skeleton_of(moved(crystal, generator)) == skeleton
    assert skeleton_of(doubled(crystal)) == skeleton
    assert skeleton_of(conventional(crystal)) == skeleton


def test_sites_are_renumbered_as_the_tables_list_the_normalisers():
    # Rocksalt and caesium chloride: the origin moves by half a body diagonal. Zincblende: 4a, 4b,
    # 4c and 4d change in a cycle, and are inverted. Iron has one origin.
    assert set(site_permutations(225)) == {tuple(range(12)), (1, 0, *site_permutations(225)[1][2:])}
    fixed = {names[:4] for names in site_permutations(216)}
    assert len(fixed) == 8
    assert {names[0] for names in fixed} == {0, 1, 2, 3}
    assert site_permutations(229) == (tuple(range(12)),)
    for group in (2, 16, 62, 123, 156, 187, 221):
        for renumbered in site_permutations(group):
            assert sorted(renumbered) == list(range(len(sites(group))))
            for site, other in zip(sites(group), renumbered, strict=True):
                assert site.multiplicity == sites(group)[other].multiplicity
                assert site.freedom == sites(group)[other].freedom


def test_skeletons_that_differ_stay_apart():
    # In perovskite, oxygen is on the faces around Ti; around Ca is another crystal. NaCl's sites
    # on 4a and 4b make rocksalt, on 4a and 4c zincblende.
    perovskite, other = ((8, 3), (20, 0), (22, 1)), ((8, 3), (20, 1), (22, 0))
    assert usual_form(221, perovskite) != usual_form(221, other)
    names = {usual_form(216, ((11, 0), (17, k))) for k in range(1, 4)}
    assert len(names) == 2


def crystal_of(skeleton: Skeleton, generator: np.random.Generator) -> Crystal:
    """A crystal with that skeleton, every free coordinate and the cell in general place."""
    numbers, groups = skeleton.atomic_numbers, SpaceGroups.of([skeleton])
    cell = 45 * np.eye(3) + generator.normal(0, 5, (3, 3))  # no two atoms near each other
    lattice = groups.compatible_cells(torch.from_numpy(cell)[None])[0]
    free = torch.from_numpy(generator.random((len(numbers), 3)))
    frac = groups.positions(free).numpy()
    return Crystal(lattice.T.numpy(), frac, np.array(numbers))


def test_the_skeleton_of_a_crystal_made_of_one_is_that_or_has_more_symmetry():
    generator, same = np.random.default_rng(6), 0
    chosen = [1, 2, 5, 12, 14, 19, 31, 62, 88, 92, 122, 129, 148, 152, 166, 176, 186, 194, 205, 227]
    for group in chosen:
        fitting = [k for k, site in enumerate(sites(group)) if site.multiplicity <= 16]
        general = max(fitting, key=lambda k: sites(group)[k].freedom)
        others = generator.choice([k for k in fitting if k != general] or [general], 1)
        orbits = ((3, general), *((9, int(site)) for site in others))
        skeleton = Skeleton(group, usual_form(group, orbits))
        crystal = crystal_of(skeleton, generator)
        found = skeleton_of(crystal, symprec=1e-3)
        if found == skeleton:
            same += 1
        else:  # the sites chosen have more symmetry together than the group has
            order = len(operations(group)[0]) / len(skeleton.atomic_numbers)
            assert len(operations(found.group)[0]) / len(found.atomic_numbers) > order
    assert same >= 0.7 * len(chosen)


def test_crystals_without_a_space_group_are_kept_as_p1():
    collapsed = Crystal(np.zeros((3, 3)), np.zeros((2, 3)), np.array([8, 3]))
    assert skeleton_of(collapsed) == Skeleton(1, ((3, 0), (8, 0)))


ROCKSALT = {"NaCl": (11, 17), "LiF": (3, 9), "KBr": (19, 35)}


@pytest.fixture
def table():
    """Three rocksalts, of which one from another origin, a caesium chloride and a zincblende."""
    salts = [Skeleton(225, ((a, 0), (b, 1))) for a, b in ROCKSALT.values()]
    salts[1] = Skeleton(225, ((3, 1), (9, 0)))
    cscl = Skeleton(221, ((55, 0), (17, 1)))
    return SkeletonTable(Skeletons.of((*salts, cscl, Skeleton(216, ((30, 0), (16, 1))))))


def found_groups(table, formula, **options):
    return [w.skeleton.group for w in table.find(parse_formula(formula), **options)]


def test_the_nearest_relative_comes_first(table):
    assert found_groups(table, "RbBr")[0] == 225
    assert found_groups(table, "CdS")[0] == 216
    assert found_groups(table, "SrTiO3") == []  # no crystal has this pattern


def test_weights_of_one_skeleton_add_up_whatever_the_origin(table):
    found = table.find(parse_formula("KCl"))
    assert sum(w.weight for w in found) == pytest.approx(1)
    assert len({w.skeleton for w in found}) == len(found) == 3
    weights = [w.weight for w in found]
    assert weights == sorted(weights, reverse=True)
    assert sum(w.weight for w in table.find(parse_formula("KCl"), limit=1)) < 1
    salt = found[0].skeleton
    assert Composition.of(salt.atomic_numbers) == parse_formula("KCl")


def test_groups_restrict_and_an_excluded_crystal_is_not_asked(table):
    assert found_groups(table, "KCl", groups=(221, 216)) in ([221, 216], [216, 221])
    assert found_groups(table, "KCl", groups=(1,)) == []
    assert found_groups(table, "CdS", groups=(216,), exclude=4) == []
    only = SkeletonTable(Skeletons.of(table.skeletons[:1]))
    assert len(only.find(parse_formula("NaCl"))) == 1
    assert only.find(parse_formula("NaCl"), exclude=0) == []


def test_groups_are_looked_for_beyond_the_nearest_relatives(table, monkeypatch):
    monkeypatch.setattr("crystorus.templates.skeletons.NEAREST", 1)
    assert found_groups(table, "RbBr") == [225]
    assert found_groups(table, "RbBr", groups=(216,)) == [216]


def test_a_crystal_of_the_very_composition_weighs_less(table, monkeypatch):
    salt, other = Skeleton(225, ((11, 0), (17, 1))), Skeleton(221, ((11, 0), (35, 1)))
    pair = SkeletonTable(Skeletons.of((salt, other)))

    def fraction():
        return next(w.weight for w in pair.find(parse_formula("NaCl")) if w.skeleton.group == 225)

    less = fraction()
    monkeypatch.setattr("crystorus.templates.skeletons.SAME_COMPOSITION_WEIGHT", 1.0)
    more = fraction()
    assert less / (1 - less) == pytest.approx(SAME_COMPOSITION_WEIGHT * more / (1 - more))


def test_candidates_return_to_a_likely_skeleton_before_they_try_an_unlikely_one():
    """By hand: 0.9, 0.27, 0.081 and 0.0243 of the first; 0.06 and 0.018 of the second; 0.001."""
    several = [
        WeightedSkeleton(Skeleton(n, ((8, 0),)), w) for n, w in ((1, 0.9), (2, 0.06), (5, 0))
    ]
    taken = [one.skeleton.group for one in in_turn(several, 7)]
    assert taken == [1, 1, 1, 2, 1, 2, 1]
    assert [one.skeleton.group for one in in_turn(several[2:], 2)] == [5, 5]
    assert in_turn([], 3) == []


def test_salts_are_filled_in_as_counted_by_hand():
    # Fm-3m has 4a, 4b (one atom in the primitive cell each) and 8c (two): Na on one, Cl on the
    # other, and which is which depends on the origin. So it is with 1a and 1b of Pm-3m.
    (rocksalt_way,) = enumerate_skeletons(parse_formula("NaCl"), 225)
    assert rocksalt_way == skeleton_of(split(rocksalt())[0])
    assert [len(s.orbits) for s in enumerate_skeletons(parse_formula("CsCl"), 221)] == [2]
    # CaF2: F2 on 8c and Ca on 4a or 4b, alike; on 4a and 4b they leave no room for Ca.
    (fluorite,) = enumerate_skeletons(parse_formula("CaF2"), 225)
    assert Counter(z for z, _ in fluorite.orbits) == {20: 1, 9: 1}
    # SrTiO3 in Pm-3m: Sr on 1a or 1b, Ti on the other, O on 3c or 3d: one choice is the other's.
    assert len(enumerate_skeletons(parse_formula("SrTiO3"), 221)) == 2


@pytest.mark.parametrize(
    ("formula", "group"),
    [("NaCl", 227), ("LiNaKCl", 225), ("SrTiO3", 205), ("Na", 14), ("LiFeO2", 230)],
)
def test_nothing_is_filled_in_where_no_sites_fit(formula, group):
    assert enumerate_skeletons(parse_formula(formula), group) == []


def test_fillings_hold_the_composition_and_stop_at_the_limit():
    wanted = parse_formula("Mg4Si2O8")
    found = enumerate_skeletons(wanted, 47, limit=50)
    assert 0 < len(found) <= 50
    assert len(set(found)) == len(found)
    sizes = [len(s.orbits) for s in found]
    assert sizes == sorted(sizes)
    for skeleton in found:
        assert tuple(skeleton.atomic_numbers) == wanted.atomic_numbers
        fixed = [k for _, k in skeleton.orbits if sites(47)[k].freedom == 0]
        assert len(fixed) == len(set(fixed))


@pytest.mark.parametrize("element", [0, 119, 197])
def test_skeletons_of_no_element_are_refused(tmp_path, element):
    save_skeletons(Skeletons.of([Skeleton(225, ((element, 0),))]), tmp_path)
    with pytest.raises(CheckpointError, match="an orbit is of no element"):
        read_skeletons(tmp_path)


def test_files_of_skeletons_return_them_and_damage_is_one_sentence(tmp_path):
    assert len(read_skeletons(tmp_path)) == 0
    several = tuple(skeleton_of(one(name)) for name in SPACE_GROUPS)
    save_skeletons(Skeletons.of(several), tmp_path)
    assert tuple(read_skeletons(tmp_path)) == several
    assert read_skeletons(tmp_path)[-1] == several[-1]
    path = tmp_path / SKELETONS
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:20], b"", b"nonsense" * 20):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            read_skeletons(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    path.write_bytes(whole.replace(b"site", b"sitz"))
    with pytest.raises(CheckpointError, match="copy the checkpoint again"):
        read_skeletons(tmp_path)
    for nowhere in (Skeleton(231, ((3, 0),)), Skeleton(0, ((3, 0),)), Skeleton(225, ((3, 12),))):
        save_skeletons(Skeletons.of([nowhere]), tmp_path)
        with pytest.raises(CheckpointError, match="has no such sites"):
            read_skeletons(tmp_path)


def test_the_shipped_skeletons_name_sites_that_exist_in_the_usual_form():
    shipped = read_skeletons(SHIPPED)
    assert len(shipped) == 27_128
    assert all(site < len(sites(s.group)) for s in shipped for _, site in s.orbits)
    # train-scorer finds a crystal's own skeleton among them, to leave it out.
    for skeleton in itertools.islice(shipped, 0, None, 50):
        assert skeleton.orbits == usual_form(skeleton.group, skeleton.orbits)
