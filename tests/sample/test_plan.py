import random

import pytest

from crystorus.data.compositions import Composition
from crystorus.sample.errors import RequestError
from crystorus.sample.plan import (
    check_requests,
    crystal_seed,
    make_requests,
    padded_atoms,
    plan_batches,
)
from crystorus.sample.wanted import of_system

LIFEO2 = Composition.of((3, 26, 8, 8))
SRTIO3 = Composition.of((38, 22, 8, 8, 8))
O2 = Composition.of((8, 8))


def test_a_seed_belongs_to_composition_and_sample_and_not_to_a_place():
    alone = make_requests([LIFEO2], n=3, seed=5)
    among = make_requests([O2, SRTIO3, LIFEO2], n=3, seed=5)
    assert [r.seed for r in alone] == [r.seed for r in among[6:]]
    assert [r.seed for r in make_requests([LIFEO2], n=3, seed=6)] != [r.seed for r in alone]


def test_seeds_do_not_repeat():
    requests = make_requests([LIFEO2, SRTIO3, O2], n=200, seed=0)
    assert len({r.seed for r in requests}) == 600
    assert all(0 <= r.seed < 2**63 for r in requests)


def test_seeds_ignore_the_order_of_atoms_but_not_their_number():
    assert crystal_seed(0, LIFEO2, 0) == crystal_seed(0, Composition.of((8, 3, 8, 26)), 0)
    assert crystal_seed(0, LIFEO2, 0) != crystal_seed(0, Composition.of((3, 26, 8)), 0)


def test_a_repeated_composition_gets_new_samples():
    requests = make_requests([LIFEO2, O2, LIFEO2], seed=0)
    assert [r.sample for r in requests] == [0, 0, 1]
    assert requests[0].seed != requests[2].seed


def test_batches_hold_every_request_once_within_the_limit():
    shuffle = random.Random(0)
    kinds = [Composition.of((8,) * n) for n in range(1, 21)]
    requests = make_requests(shuffle.choices(kinds, k=500))
    batches = plan_batches(requests, batch_atoms=64)
    assert sorted(r.index for batch in batches for r in batch) == list(range(500))
    assert max(map(padded_atoms, batches)) <= 64
    padding = sum(map(padded_atoms, batches)) / sum(r.n_atoms for r in requests)
    unsorted = [requests[i : i + 3] for i in range(0, 500, 3)]
    assert padding < 1.1 < sum(map(padded_atoms, unsorted)) / sum(r.n_atoms for r in requests)


def test_one_crystal_beyond_the_limit_is_a_batch_of_its_own():
    batches = plan_batches(make_requests([LIFEO2, SRTIO3], n=2), batch_atoms=1)
    assert [len(batch) for batch in batches] == [1, 1, 1, 1]


def test_files_can_grow_in_order_because_sorting_is_local():
    kinds = [Composition.of((8,) * n) for n in (20, 1)]
    requests = make_requests(kinds * 1000)
    batches = plan_batches(requests, batch_atoms=100)
    first = {r.index for batch in batches[: len(batches) // 4] for r in batch}
    assert set(range(300)) <= first


@pytest.mark.parametrize(
    ("n", "seed", "words"), [(0, 0, "0 crystals"), (-1, 0, "-1 crystals"), (1, -3, "seed is -3")]
)
def test_impossible_numbers_are_named(n, seed, words):
    with pytest.raises(RequestError, match=words):
        make_requests([LIFEO2], n=n, seed=seed)


def test_more_crystals_than_memory_holds_are_refused_before_they_are_listed():
    with pytest.raises(RequestError, match=r"10{11} crystals.*at most 1000000.*lower --n"):
        make_requests([LIFEO2], n=10**11)
    # C(30, 10) - 1, in closed form: listing them would take 30 GB
    with pytest.raises(RequestError, match=r"30045014 compositions.*1000000.*lower --max-atoms"):
        of_system("Li-F-O-Fe-Na-K-Rb-Cs-Ca-Mg", 20)
    assert len(of_system("Li-F-O", 20)) == 1770


def test_too_many_atoms_are_refused_with_value_limit_and_remedy():
    large = Composition.of((3, 26, 8, 8) * 6)
    with pytest.raises(RequestError, match=r"24 atoms.*at most 20.*--z.*--max-atoms"):
        check_requests(make_requests([large]), max_atoms=20, trained_elements=frozenset())


def test_an_element_never_seen_is_a_warning():
    requests = make_requests([LIFEO2, O2])
    warnings = check_requests(requests, max_atoms=20, trained_elements=frozenset({3, 8}))
    assert len(warnings) == 1
    assert "Fe was never seen" in warnings[0]
    assert "LiFeO2" in warnings[0]
