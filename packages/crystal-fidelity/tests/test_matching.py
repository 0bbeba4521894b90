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
    simple_cubic,
    wurtzite,
    zinc_blende,
)
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystal_fidelity import workers
from crystal_fidelity.composition import is_charge_balanced
from crystal_fidelity.matching import (
    MatcherSettings,
    match_rate,
    match_rate_best_of,
    randomise_coordinates,
    valid_pairs,
)
from crystal_fidelity.structures import Crystal, ReadFailure, to_pymatgen


def matcher():
    return StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)


def test_the_same_crystals_moved_all_match_with_no_displacement():
    result = match_rate([moved(c, 1) for c in everything()], everything())
    assert result.rate == 1.0
    assert result.mean_rms == pytest.approx(0, abs=1e-5)
    assert result.collisions == 0


def test_rates_and_rms_are_pymatgens():
    truth = [random_crystal(i, 4, (8, 22)) for i in range(30)]
    guesses = [rattled(c, 0.12 * (i % 8), i) for i, c in enumerate(truth)]
    result = match_rate(guesses, truth)
    expected = [
        matcher().get_rms_dist(to_pymatgen(g), to_pymatgen(t))
        for g, t in zip(guesses, truth, strict=True)
    ]
    assert result.matched.tolist() == [e is not None for e in expected]
    assert 0.3 < np.nanmax(result.rms) < 0.5  # a tighter tolerance would lose some
    for rms, e in zip(result.rms, expected, strict=True):
        assert e is None or rms == pytest.approx(e[0], abs=1e-12)


def test_prefilter_never_contradicts_the_matcher():
    crystals = [*everything(), rock_salt(5.6, "K", "Cl"), *(random_crystal(i) for i in range(6))]
    pairs = [(a, b) for a in crystals for b in crystals]
    result = match_rate([a for a, _ in pairs], [b for _, b in pairs])
    filtered = [i for i, o in enumerate(result.outcomes) if o.status == "composition"]
    assert len(filtered) > 100
    for i in filtered:
        a, b = pairs[i]
        assert matcher().get_rms_dist(to_pymatgen(a), to_pymatgen(b)) is None


def test_different_structures_of_one_composition_do_not_match():
    cubic = Crystal(zinc_blende().lattice, zinc_blende().frac_coords, np.array([30, 8]), "ZnO")
    salt = Crystal(rock_salt().lattice, rock_salt().frac_coords, np.array([30, 8]), "ZnO")
    result = match_rate([salt, cubic], [wurtzite(), wurtzite()], settings=MatcherSettings(stol=0.2))
    assert [o.status for o in result.outcomes] == ["different", "different"]


def test_mismatched_lengths_and_empty_sets_are_errors():
    with pytest.raises(ValueError, match="2 generated and 1 reference"):
        match_rate([diamond(), diamond()], [diamond()])
    with pytest.raises(ValueError, match="at least one"):
        match_rate([], [])


def test_unreadable_structures_count_against_the_rate():
    result = match_rate([ReadFailure("x", "torn"), diamond()], [rutile(), diamond()])
    assert result.rate == 0.5
    assert "torn" in result.outcomes[0].reason


def test_best_of_k_takes_the_least_rms_and_never_loses():
    truth = [rutile(), perovskite()]
    near = [rattled(c, 0.02, 0) for c in truth]
    far = [rattled(c, 0.15, 1) for c in truth]
    wrong = [diamond(), diamond()]
    one = match_rate(near, truth)
    best = match_rate_best_of([wrong, far, near], truth)
    assert best.rms == pytest.approx(one.rms)
    assert best.chosen == (2, 2)
    assert match_rate_best_of([wrong, far], truth).rate >= match_rate(wrong, truth).rate
    rates = {score.name: score for score in best.scores() if score.name.startswith("match rate")}
    assert list(rates) == ["match rate, all", "match rate, all, best of 3"]
    assert [score.value for score in rates.values()] == [0.0, 1.0]
    assert [score.n_generated for score in rates.values()] == [2, 6]


def test_collisions_among_matched_pairs_are_counted():
    shrunk = [simple_cubic(0.48), simple_cubic(3.3)]
    result = match_rate(shrunk, [simple_cubic(3.36), simple_cubic(3.36)])
    assert result.rate == 1.0
    assert result.collisions == 1


def test_random_coordinates_keep_cell_and_elements_and_score_below_truth():
    truth = [rutile(), perovskite(), wurtzite()]
    random = randomise_coordinates(truth[0], np.random.default_rng(0))
    np.testing.assert_array_equal(random.lattice, truth[0].lattice)
    np.testing.assert_array_equal(random.atomic_numbers, truth[0].atomic_numbers)
    result = match_rate(truth, truth, baseline=True)
    assert result.rate == 1.0
    assert result.baseline.rate < 1.0
    names = [s.name for s in result.scores()]
    assert "match rate, all, random" in names


def test_two_processes_give_the_answers_of_one(monkeypatch):
    monkeypatch.setattr(workers, "CHUNK", 8)  # below it nothing is spawned
    truth = [random_crystal(i, 3) for i in range(20)]
    guesses = [rattled(c, 0.1, i) for i, c in enumerate(truth)]
    one = match_rate(guesses, truth)
    two = match_rate(guesses, truth, workers=2)
    np.testing.assert_array_equal(one.rms, two.rms)
    assert one.outcomes == two.outcomes or [o.status for o in one.outcomes] == [
        o.status for o in two.outcomes
    ]


def test_a_pair_out_of_time_is_undecided_never_unmatched():
    result = match_rate([rutile()], [rutile()], timeout_s=1e-5)
    assert result.outcomes[0].status == "undecided"
    assert result.undecided == 1
    assert result.scores()[0].details["rate if undecided pairs matched"] == 1.0
    assert match_rate([rutile()], [rutile()], timeout_s=60).rate == 1.0


def smact():
    return pytest.importorskip("smact")


def by_both(generated, reference):
    result = match_rate(generated, reference)
    return result, result.restricted(valid_pairs([generated], reference))


def test_both_protocols_are_what_is_counted_by_hand():
    smact()
    salt, unbalanced = rock_salt(), rock_salt(5.0, "Ne", "Na")
    coords = np.array([[0, 0, 0], [0.1, 0, 0]])
    close = Crystal(np.eye(3) * 3, coords, np.array([11, 17]), "0.3 Å apart")
    torn = ReadFailure("x", "torn")
    #         matches  not balanced  collides, matches itself  reference collides  another   unread
    made = [moved(salt, 1), unbalanced, close, salt, diamond(), torn]
    real = [salt, unbalanced, close, close, salt, salt]
    every, valid = by_both(made, real)
    statuses = [outcome.status for outcome in every.outcomes]
    assert statuses == ["matched", "matched", "matched", "different", "composition", "failed"]
    statuses = [outcome.status for outcome in valid.outcomes]
    assert statuses == ["matched", "filtered", "filtered", "filtered", "composition", "filtered"]
    assert (every.rate, valid.rate) == (3 / 6, 1 / 6)  # of all references, by both
    assert (every.collisions, valid.collisions) == (1, 0)
    names = [score.name for score in (*every.scores(), *valid.scores())]
    assert {"match rate, all", "match rate, valid", "match RMSE, valid"} < set(names)
    assert len(set(names)) == len(names)


def test_the_best_of_several_is_the_best_of_the_valid_ones_where_only_these_count():
    smact()
    cell = rock_salt()
    on_top = Crystal(cell.lattice * 0.15, cell.frac_coords, cell.atomic_numbers, "0.42 Å apart")
    far = rattled(cell, 0.2, 3)
    sets, truth = [[far], [on_top]], [cell]
    every = match_rate_best_of(sets, truth)
    valid = every.restricted(valid_pairs(sets, truth))
    assert every.chosen == (1,)  # scaled to one volume, it is the crystal itself
    assert valid.chosen == (0,)
    assert valid.mean_rms > every.mean_rms
    assert every.first(1).mean_rms == valid.mean_rms


def test_volume_errors_are_those_the_matcher_scales_away():
    truth = [rock_salt(), perovskite(), rutile(), wurtzite()]
    factors = [1.0, 1.02, 0.9, 1.3]
    made = [
        Crystal(c.lattice * f ** (1 / 3), c.frac_coords, c.atomic_numbers)
        for c, f in zip(truth, factors, strict=True)
    ]
    result = match_rate([*made, diamond()], [*truth, rutile()])
    assert result.mean_rms == pytest.approx(0, abs=1e-6)
    assert result.volume_errors == pytest.approx([0, 0.02, 0.1, 0.3])
    scores = {score.name: score.value for score in result.scores()}
    assert scores["volume error, all"] == pytest.approx(6.0)
    assert scores["volume off by > 5 %, all"] == 0.5
    doubled = Crystal(  # volumes are per atom: a larger cell of the same crystal is no error
        truth[0].lattice * [[2.0], [1], [1]],
        np.concatenate([truth[0].frac_coords / [2, 1, 1] + [x, 0, 0] for x in (0, 0.5)]),
        np.tile(truth[0].atomic_numbers, 2),
    )
    assert match_rate([doubled], [truth[0]]).volume_errors == pytest.approx([0], abs=1e-9)


def test_peers_miss_self_images_and_their_protocol_keeps_it():
    smact()
    _, result = by_both([simple_cubic(0.48)], [simple_cubic(3.36)])
    assert result.rate == 1.0
    assert result.collisions == 1


@pytest.mark.parametrize(
    ("formula", "balanced"),
    [
        (((11, 1), (17, 1)), True),
        (((12, 1), (17, 3)), False),
        (((8, 3), (22, 1), (38, 1)), True),
        (((79, 1), (29, 3)), True),
        (((6, 1),), True),
        (((10, 1), (11, 1)), False),
        (((7, 1), (61, 1)), True),  # no electronegativity of Pm: CDVAE lets it pass
        (((9, 5), (61, 1)), False),
    ],
)
def test_textbook_compositions(formula, balanced):
    smact()
    assert is_charge_balanced(tuple(sorted(formula))) is balanced


def test_compounds_of_elements_unknown_to_smact_are_not_balanced_and_named():
    smact()
    from crystal_fidelity.composition import composition_validity, composition_validity_score

    salt = rock_salt()
    frac = np.random.default_rng(0).random((5, 3))
    heavy = Crystal(np.diag([6.0, 6, 4]), frac, np.array([118, 9, 9, 9, 9]), "x")
    assert composition_validity([salt, heavy, salt]).tolist() == [True, False, True]
    score = composition_validity_score([salt, heavy, salt])
    assert score.value == pytest.approx(2 / 3)
    assert "1 of elements unknown to SMACT count as not: x (Og)" in score.protocol
    assert "unknown" not in composition_validity_score([salt]).protocol
    alone = Crystal(np.eye(3) * 4, np.zeros((1, 3)), np.array([118]))
    assert composition_validity([alone]).all()  # as every element
    _, result = by_both([salt, heavy], [salt, heavy])
    assert [outcome.status for outcome in result.outcomes] == ["matched", "filtered"]
