"""`--space-group`: what it reads, what crystals from noise keep, and none of it."""

from dataclasses import replace

import numpy as np
import pytest
import spglib
import torch

import crystorus
from crystorus.data.convert import split
from crystorus.diffusion.space_groups import Skeletons
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.geometry.space_groups import operations
from crystorus.sample.api import options_of
from crystorus.sample.options import SampleOptions, parse_space_groups
from crystorus.sample.output import describe
from crystorus.sample.requests import choose_compositions, make_requests
from crystorus.sample.start import StartingStructure, give_skeletons
from crystorus.templates.skeletons import SkeletonTable, table_of


@pytest.fixture(scope="module")
def shipped():
    return crystorus.load()


def asked(formula: str, table: SkeletonTable, **settings):
    options = options_of(SampleOptions, settings)
    requests = make_requests(choose_compositions([formula], options), n=options.n)
    return give_skeletons(requests, table, options, options.candidates or 1)


def groups_found(crystals) -> list[int]:
    """Space groups by spglib, within 0.001 Å."""
    return [
        spglib.get_symmetry_dataset((c.lattice, c.frac_coords, c.atomic_numbers), 1e-3).number
        for c in split(crystals)
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("225", {225}),
        ("Fm-3m", {225}),
        ("cubic", set(range(195, 231))),
        ("Cubic", set(range(195, 231))),
        ("225, Fm-3m", {225}),
        ("1,Pnma,R-3m", {1, 62, 166}),
        ("triclinic,P6_3/mmc", {1, 2, 194}),
        ("P21/c", {14}),
        ("P2_1/c", {14}),
        ("known", set(range(1, 231))),
        ("none", set()),
    ],
)
def test_space_groups_are_read_by_number_symbol_and_system(text, groups):
    assert parse_space_groups(text) == groups
    assert SampleOptions(space_group=text).space_group == text


def test_the_systems_share_the_groups_out():
    systems = ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal"]
    several = [parse_space_groups(system) for system in [*systems, "cubic"]]
    assert sorted(group for groups in several for group in groups) == list(range(1, 231))


@pytest.mark.parametrize(
    "text", ["231", "0", "-1", "", "225,", "2.5", "nonsense", "Fm-4m", "known,225", "225,none"]
)
def test_what_is_no_space_group_is_refused_in_one_sentence(text):
    with pytest.raises(RequestError) as error:
        SampleOptions(space_group=text)
    assert "--space-group" in str(error.value)
    assert "\n" not in str(error.value)


def test_samples_and_candidates_take_the_likeliest_skeletons_in_turn(shipped):
    table = table_of(shipped.skeletons)
    requests = asked("SrTiO3", table, n=3, candidates=2)
    assert [len(request.skeletons) for request in requests] == [2, 2, 2]
    begun = [request.skeletons[0] for request in requests]
    known = table.find(requests[0].composition, limit=3)
    assert begun == known, "every sample begins in a skeleton of its own"
    assert begun[0].skeleton.group == 221
    for request in requests:
        for one in request.skeletons:
            assert tuple(one.skeleton.atomic_numbers) == request.composition.atomic_numbers


def test_no_sample_is_made_inside_a_skeleton_of_another(shipped):
    table = table_of(shipped.skeletons)
    shares = [set(request.skeletons) for request in asked("LiFeO2", table, n=4, candidates=8)]
    assert sum(map(len, shares)) == len(set.union(*shares)) > 8
    alone = asked("LiFeO2", table, candidates=8)[0].skeletons
    assert alone[0] in shares[0], "one sample alone, and the first of several, has the likeliest"
    assert len(set(alone)) > 1


def test_beside_templates_noise_begins_with_the_likeliest_skeleton_too(shipped):
    table = table_of(shipped.skeletons)
    options = SampleOptions(n=6, start="both")
    requests = make_requests(choose_compositions(["LiFeO2"], options), n=6)
    lifeo2 = Crystals(
        3.0 * torch.eye(3)[None], torch.zeros(4, 3), torch.tensor([3, 26, 8, 8]), torch.tensor([4])
    )
    started = StartingStructure("x", lifeo2, 0.2, False)
    mixed = [replace(one, start=None if one.sample % 2 else started) for one in requests]
    given = give_skeletons(mixed, table, options)
    alone = give_skeletons(requests[:3], table, SampleOptions(n=3))
    assert [one.skeletons for one in given[1::2]] == [one.skeletons for one in alone]
    assert not any(one.skeletons for one in given[::2])
    assert [one.sample for one in given] == list(range(6))


def test_when_the_known_skeletons_are_used_up_one_sample_has_no_symmetry(shipped):
    table = table_of(shipped.skeletons)
    (request,) = asked("NaCl", table)
    known = len(table.find(request.composition, limit=1000))
    several = asked("NaCl", table, n=known + 2)
    groups = [one.skeletons[0].skeleton.group for one in several]
    assert 1 not in groups[:known]
    assert groups[known:] == [1, groups[0]]


def test_a_group_that_no_known_crystal_has_is_enumerated_and_begins_again():
    nothing_known = SkeletonTable(Skeletons.of(()))
    (first, second, third) = asked("NaCl", nothing_known, space_group="Fm-3m", n=3)
    assert first.skeletons == second.skeletons == third.skeletons
    assert first.skeletons[0].skeleton.group == 225
    assert first.skeletons[0].weight == 0
    cubic = asked("NaCl", nothing_known, space_group="cubic", n=4)
    assert len({request.skeletons[0].skeleton.group for request in cubic}) > 1
    assert all(request.skeletons == () for request in asked("NaCl", nothing_known, n=2))
    assert all(
        request.skeletons == () for request in asked("NaCl", nothing_known, space_group="none")
    )


def test_a_group_whose_sites_hold_no_such_cell_is_refused(shipped):
    sentence = "the space group 227 hold NaCl in a primitive cell: ask for --z 2,4,6,8, which they"
    with pytest.raises(RequestError, match=sentence):
        asked("NaCl", table_of(shipped.skeletons), space_group="227")
    assert asked("NaCl", table_of(shipped.skeletons), space_group="227", z=(2,))[0].skeletons
    # Five elements of eight atoms at most: 230 has two positions of eight.
    with pytest.raises(RequestError, match="ask for another composition or"):
        asked("LiNaKRbCl", table_of(shipped.skeletons), space_group="230")


@pytest.mark.parametrize("group", [225, "Fm-3m", "225,Fm-3m"])
def test_crystals_have_the_group_that_was_asked_for(shipped, group):
    made = crystorus.generate("NaCl", model=shipped, space_group=group, quality="fast", n=2)
    assert groups_found(made.crystals) == [225, 225]


@pytest.mark.parametrize("settings", [{}, {"candidates": 3}, {"candidates": 2, "steps": 30}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_crystals_stay_in_the_standard_cell_to_the_last_step(shipped, settings, precision):
    # Low symmetry: a network in bf16, or a cell that is reduced anew, would break it.
    formulas = ["CaTiO3", "TiO2"]
    words = {"model": shipped, "precision": precision, "z": (4,), "keep_trajectory": True}
    if "steps" not in settings:
        words["quality"] = "fast"
    made = crystorus.generate(formulas, **words, **settings)
    asked_for = [request.skeletons[0].skeleton.group for request in made.requests]
    assert set(asked_for) != {1}
    for crystals in made.trajectory:
        for crystal, group in zip(split(crystals), asked_for, strict=True):
            cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
            found = spglib.get_symmetry_dataset(cell, symprec=1e-3)
            for rotation, translation in zip(*operations(group), strict=True):
                same = (found.rotations == np.rint(rotation)).all((1, 2))
                apart = found.translations[same] - translation
                assert np.abs(apart - np.rint(apart)).max(1).min() < 1e-3


def test_known_crystals_lend_their_groups_and_several_may_be_named(shipped):
    words = dict(model=shipped, quality="fast")
    assert groups_found(crystorus.generate("SrTiO3", **words).crystals) == [221]
    made = crystorus.generate("LiFeO2", **words, space_group="cubic,R-3m", n=2)
    groups = groups_found(made.crystals)
    assert groups[0] == 166
    assert all(group == 166 or group >= 195 for group in groups)


def test_without_space_groups_crystals_are_the_models_own(shipped):
    made = crystorus.generate("SrTiO3", model=shipped, space_group="none", n=2, steps=6)
    numbers = torch.cat([torch.tensor(r.composition.atomic_numbers) for r in made.requests])
    plain = shipped.sample(
        numbers,
        torch.tensor([5, 5]),
        seeds=[request.seed for request in made.requests],
        sampler=replace(shipped.config.sampling, steps=6),
    )
    assert torch.equal(made.crystals.lattice, plain.lattice)
    assert torch.equal(made.crystals.frac_coords, plain.frac_coords)
    assert groups_found(made.crystals) == [1, 1]
    kept = crystorus.generate("SrTiO3", model=shipped, n=2, steps=6)
    assert not np.allclose(kept.crystals.lattice.numpy(), plain.lattice.numpy())


def test_the_table_says_which_group_was_asked_for_proposed_and_obtained(shipped):
    def rows(formula, **settings):
        made = crystorus.generate(formula, model=shipped, quality="fast", **settings)
        return [describe(one, total=len(made), symprec=0.001).row for one in made]

    def groups(row):
        named = [row[f"space_group_{name}"] for name in ("asked", "proposed", "number")]
        return named, row["sites"]

    (salt,) = rows("NaCl", space_group="Fm-3m")
    assert groups(salt) == (["Fm-3m", "225", "225"], "4a 4b")
    (spinel,) = rows("MgAl2O4", space_group="227", z=2, candidates=2)
    assert groups(spinel) in [  # two origins of one structure
        (["227", "227", "227"], sites) for sites in ("8a 16d 32e", "8b 16c 32e")
    ]
    (free,) = rows("NaCl", space_group="none")
    assert groups(free)[0][:2] == ["none", ""]
