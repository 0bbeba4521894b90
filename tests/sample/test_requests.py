"""What is wanted: compositions, seeds and the folder's name, without torch."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from crystorus.data.compositions import Composition
from crystorus.errors import RequestError
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import (
    check_requests,
    choose_compositions,
    crystal_seed,
    default_folder,
    make_requests,
    system_compositions,
)

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


def test_seeds_are_those_of_earlier_versions():
    assert crystal_seed(3, LIFEO2, 0) == 6170298494826610166


def test_seeds_ignore_the_order_of_atoms_but_not_their_number():
    assert crystal_seed(0, LIFEO2, 0) == crystal_seed(0, Composition.of((8, 3, 8, 26)), 0)
    assert crystal_seed(0, LIFEO2, 0) != crystal_seed(0, Composition.of((3, 26, 8)), 0)


def test_a_repeated_composition_gets_new_samples():
    requests = make_requests([LIFEO2, O2, LIFEO2], seed=0)
    assert [r.sample for r in requests] == [0, 0, 1]
    assert requests[0].seed != requests[2].seed


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
        system_compositions("Li-F-O-Fe-Na-K-Rb-Cs-Ca-Mg", 20)
    assert len(system_compositions("Li-F-O", 20)) == 1770


def trained_on(*elements):
    return SimpleNamespace(max_atoms=20, trained_elements=frozenset(elements))


def test_too_many_atoms_are_refused_with_value_limit_and_remedy():
    large = Composition.of((3, 26, 8, 8) * 6)
    with pytest.raises(RequestError, match=r"24 atoms.*at most 20: say --large .*smaller cells"):
        check_requests(make_requests([large]), trained_on())


def test_an_element_never_seen_is_a_warning():
    requests = make_requests([LIFEO2, O2])
    warnings = check_requests(requests, trained_on(3, 8))
    assert len(warnings) == 1
    assert "Fe was never seen" in warnings[0]
    assert "LiFeO2" in warnings[0]


def test_units_multiply_every_formula():
    chosen = choose_compositions(["LiFeO2", "O2"], SampleOptions(z=(1, 2)))
    assert [c.formula for c in chosen] == ["LiFeO2", "Li2Fe2O4", "O2", "O4"]


@pytest.mark.parametrize(
    ("formulas", "options", "folder"),
    [
        (["LiFeO2"], {}, "out/LiFeO2"),
        (["Ca(OH)2", "LiFeO2"], {"z": (1, 2)}, "out/CaH2O2-LiFeO2"),
        (["Li", "O2", "Fe", "Na", "K"], {}, "out/Li-O2-Fe-and-2-more"),
        ([], {"system": "Li-Fe-O", "max_atoms": 4}, "out/Li-Fe-O"),
        ([], {"like": Path("some/where/mine.csv.gz")}, "out/mine"),
    ],
)
def test_the_folder_is_named_after_what_is_asked_for(formulas, options, folder):
    assert default_folder(formulas, SampleOptions(**options)) == Path(folder)


@pytest.mark.parametrize("typed", ["LiFeo2", "--steps=0", "--level=2 --start=templates"])
def test_what_is_wrong_is_answered_before_anything_heavy_is_imported(typed):
    code = (
        "import sys\n"
        "from crystorus.errors import RequestError, ReadingError\n"
        "from crystorus import cli\n"
        "try: cli.main(['sample', 'LiO', *sys.argv[1].split()])\n"
        "except SystemExit as end: assert end.code == 1, end.code\n"
        "heavy = {'torch', 'pymatgen', 'scipy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, typed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "error: " in done.stderr
