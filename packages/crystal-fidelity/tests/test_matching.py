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

from crystal_fidelity.composition import is_charge_balanced
from crystal_fidelity.matching import (
    MatcherSettings,
    match_rate,
    match_rate_best_of,
    randomise_coordinates,
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
    assert best.scores()[0].n_generated == 6


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
    assert "match rate, random" in names


def test_two_processes_give_the_answers_of_one():
    truth = [random_crystal(i, 3) for i in range(140)]
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


def test_cdvae_filters_predictions_and_diffcsp_references_too():
    smact()
    unbalanced = rock_salt(5.0, "Ne", "Na")
    assert match_rate([unbalanced], [unbalanced]).rate == 1.0
    for protocol in ("cdvae", "diffcsp"):
        result = match_rate([unbalanced], [unbalanced], protocol=protocol)
        assert result.outcomes[0].status == "filtered"
    best = match_rate_best_of([[rock_salt()]] * 2, [unbalanced], protocol="diffcsp")
    assert best.outcomes[0].status == "composition"  # DiffCSP's batch code looks at candidates only
    close = Crystal(np.eye(3) * 3, np.array([[0, 0, 0], [0.1, 0, 0]]), np.array([11, 17]), "bad")
    good = rattled(rock_salt(), 0.0, 0)
    assert match_rate([good], [close], protocol="cdvae").outcomes[0].status != "filtered"
    assert match_rate([good], [close], protocol="diffcsp").outcomes[0].status == "filtered"


def test_peers_miss_self_images_and_their_protocol_keeps_it():
    smact()
    result = match_rate([simple_cubic(0.48)], [simple_cubic(3.36)], protocol="cdvae")
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
    result = match_rate([salt, heavy], [salt, heavy], protocol="cdvae")
    assert [outcome.status for outcome in result.outcomes] == ["matched", "filtered"]
