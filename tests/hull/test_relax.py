import numpy as np
import pytest
from alloys import l12
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from scipy.optimize import minimize_scalar

from crystal_fidelity.cells import niggli_reduce
from crystal_fidelity.structures import from_atoms, to_atoms
from crystal_fidelity.symmetry import dataset
from crystorus.errors import CalculatorError
from crystorus.hull.options import RelaxSettings, ScreenLimits
from crystorus.hull.relax import (
    RelaxJob,
    energy_level,
    load_potential,
    relax,
    screen,
)


def relaxed(atoms, **settings):
    return relax(RelaxJob(1, atoms, RelaxSettings(**({"potential": "alloys:SlowEMT"} | settings))))


def test_the_cell_of_copper_is_the_one_of_least_energy():
    """Against a scan of the lattice parameter with a bare EMT."""

    def energy(a):
        atoms = bulk("Cu", a=a)
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    best = minimize_scalar(energy, bounds=(3.3, 3.9), method="bounded", options={"xatol": 1e-6})
    outcome = relaxed(bulk("Cu", a=3.75), fmax=1e-4)
    assert outcome.status == "relaxed"
    assert outcome.energy == pytest.approx(best.fun, abs=1e-6)
    assert (4 * outcome.atoms.get_volume()) ** (1 / 3) == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["BFGS", "LBFGS", "FIRE"])
def test_a_rattled_alloy_goes_back(optimizer):
    rattled = l12()
    rattled.rattle(0.1, seed=1)
    straight, back = relaxed(l12(), fmax=0.01), relaxed(rattled, fmax=0.01, optimizer=optimizer)
    assert back.energy == pytest.approx(straight.energy, abs=1e-3)
    assert np.linalg.norm(back.atoms.get_forces(), axis=1).max() <= 0.01


def test_a_fixed_cell_stays():
    outcome = relaxed(bulk("Cu", a=3.75), relax_cell=False)
    assert np.array_equal(outcome.atoms.cell.array, bulk("Cu", a=3.75).cell.array)
    assert outcome.energy > relaxed(bulk("Cu", a=3.75)).energy + 0.01


def test_kept_symmetry_is_exact_and_lost_symmetry_is_not():
    """Of rattled body-centred copper, by moyopy at a tolerance far below the rattle."""

    def group(atoms):
        return dataset(from_atoms(atoms), 1e-5).number

    rattled = bulk("Cu", "bcc", a=2.9, cubic=True)
    rattled.rattle(0.02, seed=0)
    assert group(rattled) < 229
    assert group(relaxed(rattled, keep_symmetry=True, symprec=0.2).atoms) == 229
    assert group(relaxed(rattled, keep_symmetry=False).atoms) < 229


def test_the_step_limit_is_kept_and_told():
    outcome = relaxed(bulk("Cu", a=3.9), steps=2)
    assert (outcome.status, outcome.steps) == ("unconverged", 2)
    assert "0.05 eV/Å after 2 steps" in outcome.reason
    assert outcome.energy is not None


@pytest.mark.parametrize(
    ("calculator", "settings", "status", "words"),
    [
        ("alloys:PullingLJ", {}, "runaway", "times what it was"),
        ("alloys:NanEMT", {}, "not finite", "energy is not finite"),
        ("alloys:ThrowingEMT", {}, "failed", "the licence server is down"),
        ("alloys:SlowEMT", {"max_force": 1e-3, "fmax": 1e-4}, "exploded", "above 0.001"),
    ],
)
def test_what_cannot_be_relaxed_is_an_outcome_with_a_reason(calculator, settings, status, words):
    atoms = l12()
    atoms.rattle(0.05, seed=0)
    outcome = relaxed(atoms, potential=calculator, **settings)
    assert (outcome.status, outcome.energy) == (status, None)
    assert words in outcome.reason


def test_the_calculator_never_sees_what_the_screen_refuses():
    """A 0.4 Å cell asks a graph network for 14 GB."""
    tiny = Atoms("Cu", cell=[0.4, 5, 5], pbc=True)
    outcome = relaxed(tiny, potential="alloys:ThrowingEMT")
    assert outcome.status == "runaway"


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms("Cu", cell=np.diag([np.nan, 4, 4]), pbc=True), "not finite"),
        (Atoms("Cu2", [[0, 0, 0], [0.1, 0, 0]], cell=3 * np.eye(3), pbc=True), "0.100 Å apart"),
        (Atoms("Cu", cell=[0.45, 8, 8], pbc=True), "thin"),
        (Atoms("Cu", cell=[0.8, 0.8, 0.8], pbc=True), "Å³ per atom"),
        (Atoms("Cu", cell=[10, 10, 10], pbc=True), "Å³ per atom"),
        (Atoms("Cu8", np.random.default_rng(0).random((8, 3)) * 2, cell=[5.6, 5.6, 40], pbc=True),
         "Å apart"),
        (Atoms("Cu", cell=[5.6, 5.6, 5.6], pbc=True), "no neighbour within 5.5 Å"),
    ],
)  # fmt: skip
def test_the_screen_names_what_is_wrong(atoms, words):
    assert words in screen(atoms, ScreenLimits())


def test_the_screen_lets_good_structures_pass(prototypes):
    from crystorus.data.convert import split

    for name, crystal in prototypes.items():
        assert screen(to_atoms(niggli_reduce(split(crystal)[0])), ScreenLimits()) == "", name


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("emt", "is not known: name one of chgnet, sevennet"),
        ("no_such_module:EMT", "ModuleNotFoundError"),
        ("ase.calculators.emt:NoSuch", "AttributeError"),
        ("builtins:dict", "gave a dict"),
    ],
)
def test_calculators_that_cannot_be_had_are_named(path, words):
    with pytest.raises(CalculatorError, match=words):
        load_potential(RelaxSettings(potential=path).potential)


def test_levels_name_package_and_version():
    import ase

    assert energy_level("ase.calculators.emt:EMT").endswith(f"(ase {ase.__version__})")


@pytest.mark.slow
@pytest.mark.parametrize(("formula", "measured"), [("FeO", 4.33), ("MgO", 4.21), ("CaO", 4.81)])
def test_chgnet_relaxes_stretched_rocksalts_to_the_measured_cell(formula, measured):
    """Lattice parameters of experiment in Å; DFT, which CHGNet follows, is within 2 % of them."""
    stretched = bulk(formula, "rocksalt", a=1.06 * measured)
    outcome = relax(RelaxJob(1, stretched, RelaxSettings()))
    assert outcome.status == "relaxed"
    assert (4 * outcome.atoms.get_volume()) ** (1 / 3) == pytest.approx(measured, rel=0.02)
