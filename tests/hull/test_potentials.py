"""Potentials against their own calculators, and against the interface of those not installed."""

import importlib.util
import sys
import types

import ase.io
import numpy as np
import pytest
from alloys import crystorus, l12
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.neighborlist import neighbor_list
from scipy.optimize import brentq

from crystorus.errors import CalculatorError
from crystorus.hull.options import POTENTIALS, RelaxSettings, check_potential_module
from crystorus.hull.potentials import (
    BatchCalculator,
    energy_level,
    evaluate,
    load_potential,
    weights_digest,
)
from crystorus.hull.relax import RelaxJob, relax, relax_together

needs = pytest.mark.skipif
CHGNET, SEVENN, TORCH_SIM = map(importlib.util.find_spec, ("chgnet", "sevenn", "torch_sim"))


@pytest.fixture
def structures():
    """Rock salt, a rattled spinel-free oxide and an alloy: three sizes, two with forces."""
    found = [bulk("MgO", "rocksalt", a=4.3), bulk("FeO", "rocksalt", a=4.4, cubic=True), l12()]
    found[1].rattle(0.05, seed=1)
    return found


@pytest.fixture
def fresh():
    """Potentials are cached per process; leave none of a test's behind."""
    load_potential.cache_clear()
    energy_level.cache_clear()
    yield
    load_potential.cache_clear()
    energy_level.cache_clear()


def same_as(own, structures, path):
    """Compare a batch with the package's own calculator, one structure at a time."""
    for atoms, found in zip(structures, evaluate(load_potential(path), structures), strict=True):
        alone = atoms.copy()
        alone.calc = own
        assert found["energy"] == pytest.approx(alone.get_potential_energy(), abs=2e-5)
        assert np.allclose(found["forces"], alone.get_forces(), atol=5e-5)
        assert np.allclose(found["stress"], alone.get_stress(), atol=5e-6)


@needs(not CHGNET, reason="chgnet is an extra")
def test_a_batch_by_chgnet_is_what_its_own_calculator_gives(structures, fresh):
    from chgnet.model.dynamics import CHGNetCalculator

    same_as(CHGNetCalculator(), structures, "chgnet")
    assert energy_level("chgnet").startswith("CHGNet 0.3.0 (chgnet 0.4")
    assert "weights 818dbd975187" in energy_level("chgnet")


@needs(not SEVENN, reason="sevenn is an extra")
@pytest.mark.parametrize(
    ("path", "name", "modal"),
    [
        ("sevennet", "7net-0", None),
        ("sevennet-l3i5", "7net-l3i5", None),
        ("sevennet-mf-0", "7net-mf-0", "PBE"),
    ],
)
def test_a_batch_by_sevennet_is_what_its_own_calculator_gives(structures, fresh, path, name, modal):
    from sevenn.calculator import SevenNetCalculator

    same_as(SevenNetCalculator(name, modal=modal), structures, path)
    assert "sevenn 0." in energy_level(path)


def lennard_jones():
    """Return torch-sim's own Lennard-Jones, as a `module:factory` would."""
    import torch
    from torch_sim.models.lennard_jones import LennardJonesModel

    return LennardJonesModel(
        sigma=2.3, epsilon=0.4, cutoff=6.0, dtype=torch.float64, compute_stress=True,
        use_neighbor_list=True,
    )  # fmt: skip


@needs(not TORCH_SIM, reason="torch-sim is an extra")
def test_a_model_of_torch_sim_is_batched_and_agrees_with_ase(structures, fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "here", types.SimpleNamespace(make=lennard_jones))
    monkeypatch.setattr("crystorus.hull.potentials.check_potential_module", lambda path: None)
    calculator = load_potential("here:make")
    assert isinstance(calculator, BatchCalculator)
    own = LennardJones(sigma=2.3, epsilon=0.4, rc=6.0)
    for atoms, found in zip(structures, evaluate(calculator, structures), strict=True):
        alone = atoms.copy()
        alone.calc = own
        # ASE shifts every pair by its energy at the cutoff.
        pairs = len(neighbor_list("i", atoms, 6.0)) / 2
        shift = pairs * 4 * 0.4 * ((2.3 / 6) ** 12 - (2.3 / 6) ** 6)
        assert found["energy"] == pytest.approx(alone.get_potential_energy() + shift, abs=1e-9)
        assert np.allclose(found["forces"], alone.get_forces(), atol=1e-9)
        # Of this model's stress only the place is checked: torch-sim 0.3 gives twice ASE's.
        (single,) = evaluate(calculator, [atoms])
        assert np.allclose(found["stress"], single["stress"], atol=1e-9)


def test_relaxed_together_is_relaxed_alone_row_by_row():
    """With EMT, which is called for one after the other, to the last digit."""
    settings = RelaxSettings(potential="alloys:SlowEMT", fmax=0.01)
    jobs = []
    for seed in range(5):
        atoms = l12() if seed % 2 else bulk("Cu", a=3.5 + 0.05 * seed)
        atoms.rattle(0.1, seed=seed)
        jobs.append(RelaxJob(seed, atoms, settings))
    jobs[2].atoms.set_cell(0.1 * jobs[2].atoms.cell)  # the screen refuses it
    alone, together = [relax(job) for job in jobs], relax_together(jobs, batch=3)
    for one, other in zip(alone, together, strict=True):
        assert (one.id, one.status, one.steps) == (other.id, other.status, other.steps)
        assert one.energy == other.energy
        assert np.array_equal(one.atoms.positions, other.atoms.positions)
    assert {one.status for one in alone} == {"relaxed", "runaway"}


@needs(not CHGNET, reason="chgnet is an extra")
def test_a_batch_with_chgnet_agrees_with_one_at_a_time(structures):
    settings = RelaxSettings(steps=30)
    jobs = [RelaxJob(n, atoms, settings) for n, atoms in enumerate(structures)]
    for one, other in zip(map(relax, jobs), relax_together(jobs, batch=2), strict=True):
        assert one.energy / len(one.atoms) == pytest.approx(
            other.energy / len(other.atoms), abs=1e-4
        )


def test_a_call_that_fails_is_divided_until_one_structure_is_to_blame(structures):
    sizes = []

    def no_memory_for_two(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise RuntimeError("out of memory")
        if len(batch[0]) == 8:
            raise ValueError("eight atoms")
        return [{"energy": 1.0}]

    found = evaluate(BatchCalculator(no_memory_for_two, None), structures)
    assert [isinstance(one, ValueError) for one in found] == [False, True, False]
    assert sizes == [3, 1, 2, 1, 1]


def test_fixed_atoms_keep_their_fractional_coordinates():
    from ase.constraints import FixAtoms

    atoms = l12()
    atoms.rattle(0.1, seed=3)
    start = atoms.get_scaled_positions()
    settings = RelaxSettings(potential="alloys:SlowEMT")
    atoms.set_constraint(FixAtoms([1, 2]))
    held = relax(RelaxJob(0, atoms, settings)).atoms.get_scaled_positions()
    assert np.allclose(held[[1, 2]], start[[1, 2]], atol=1e-9)
    assert not np.allclose(held[[0, 3]], start[[0, 3]], atol=1e-3)


def test_relax_keeps_the_atoms_that_a_file_fixes(tmp_path):
    from ase.constraints import FixAtoms

    from crystal_fidelity.reading import read_structures

    atoms = l12()
    atoms.rattle(0.1, seed=3)
    atoms.set_constraint(FixAtoms([1, 2]))
    (tmp_path / "in").mkdir()
    ase.io.write(tmp_path / "in" / "a.vasp", atoms, format="vasp")
    (tmp_path / "in" / "b.cif").write_text("none")  # is told, and disturbs no other
    done = crystorus("relax", tmp_path / "in", "--out", tmp_path / "out", "--potential",
                     "alloys:SlowEMT", "--workers", 0)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1 structures fix atoms" in done.stderr
    given, broken, final = read_structures(tmp_path / "out" / "campaign.db")
    assert "no cell" in broken.reason
    assert given.fixed.tolist() == [False, True, True, False]
    away = final.frac_coords - given.frac_coords
    moved = np.abs(away - np.round(away)).max(axis=1)
    assert (moved[[1, 2]] < 1e-9).all()
    assert (moved[[0, 3]] > 1e-3).all()


def test_under_pressure_the_volume_is_where_the_slope_of_the_energy_is_minus_p():
    """Copper at 20 GPa, against -dE/dV of a bare EMT."""
    from ase.units import GPa

    def excess(a):
        atoms = bulk("Cu", a=a)
        atoms.calc = EMT()
        return -atoms.get_stress()[:3].mean() / GPa - 20

    outcome = relax(
        RelaxJob(0, bulk("Cu"), RelaxSettings(potential="alloys:SlowEMT", pressure=20, fmax=1e-4))
    )
    assert (4 * outcome.atoms.get_volume()) ** (1 / 3) == pytest.approx(
        brentq(excess, 3.2, 3.6), abs=1e-3
    )
    work = 20 * GPa * outcome.atoms.get_volume()
    assert outcome.enthalpy == pytest.approx(outcome.energy + work)
    assert outcome.level.endswith("enthalpy at 20 GPa)")
    assert outcome.level != energy_level("alloys:SlowEMT")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("mace", {"mace": {}, "mace.calculators": {"mace_mp": "model default_dtype"}}),
        (
            "orb",
            {
                "orb_models": {},
                "orb_models.forcefield": {},
                "orb_models.forcefield.pretrained": {"orb_v3_conservative_inf_omat": "device"},
                "orb_models.forcefield.inference": {},
                "orb_models.forcefield.inference.calculator": {
                    "ORBCalculator": "model atoms_adapter device"
                },
            },
        ),
        ("mattersim", {"mattersim": {}, "mattersim.forcefield": {"MatterSimCalculator": ""}}),
    ],
)
def test_potentials_that_load_weights_are_called_as_their_packages_document(
    monkeypatch, fresh, name, modules
):
    """These cannot be had here: functions of the documented names and arguments stand for them."""
    import torch

    def taking(arguments, function):
        def checked(*given, **named):
            assert set(named) <= set(arguments.split()), named
            if function.startswith("orb_"):
                return torch.nn.Linear(2, 2), "adapter"
            calculator = EMT()
            calculator.models = [torch.nn.Linear(2, 2)]
            return calculator

        return checked

    for path, contents in modules.items():
        module = types.ModuleType(path)
        module.__path__ = []
        module.__spec__ = importlib.util.spec_from_loader(path, None)
        for function, arguments in contents.items():
            setattr(module, function, taking(arguments, function))
        monkeypatch.setitem(sys.modules, path, module)
        parent, _, child = path.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    check_potential_module(name)
    assert len(weights_digest(load_potential(name))) == 12
    assert POTENTIALS[name].label in energy_level(name)


def test_what_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CalculatorError, match=r"pip install 'crystorus\[mattersim\]'"):
        check_potential_module("mattersim")


def test_the_digest_is_that_of_every_weight():
    import torch

    calculator = EMT()
    assert weights_digest(calculator) == ""
    calculator.model = torch.nn.Linear(2, 1)
    first = weights_digest(calculator)
    with torch.no_grad():
        calculator.model.bias += 1e-6
    assert weights_digest(calculator) != first


@pytest.mark.slow
def test_the_enthalpy_hull_has_the_transition_of_direct_enthalpies(fresh):
    """NaCl from rock salt (B1) to caesium chloride (B2), by CHGNet.

    The transition pressure by direct enthalpies, energies at fixed volumes and their common tangent
    by interpolation, lies between two pressures at which the hull changes its stable phase.
    """
    from ase.units import GPa
    from pymatgen.core import Composition

    from crystorus.hull.rank import Hull, Phase

    b1, b2 = bulk("NaCl", "rocksalt", a=5.6), bulk("NaCl", "cesiumchloride", a=3.4)
    calculator = load_potential("chgnet")

    def curve(atoms):
        volumes = np.linspace(20, 48, 29)  # Å³ per formula unit
        scaled = []
        for volume in volumes:
            one = atoms.copy()
            one.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
            scaled.append(one)
        energies = [found["energy"] for found in evaluate(calculator, scaled)]
        from scipy.interpolate import CubicSpline

        spline = CubicSpline(volumes, energies)
        fine = np.linspace(20, 48, 20001)
        return lambda p: (spline(fine) + p * GPa * fine).min()

    first, second = curve(b1), curve(b2)
    transition = brentq(lambda p: first(p) - second(p), 0, 80)
    print(f"B1 to B2 by direct enthalpies: {transition:.2f} GPa")

    def stable(pressure):
        settings = RelaxSettings(pressure=pressure, fmax=0.005)
        elements = [bulk("Na", "bcc", a=3.6), bulk("Cl", "fcc", a=4.6)]  # only to span the hull
        found = []
        for name, atoms in {"B1": b1, "B2": b2, "Na": elements[0], "Cl": elements[1]}.items():
            outcome = relax(RelaxJob(0, atoms, settings))
            formula = Composition(str(atoms.symbols))
            found.append(Phase(name, formula, outcome.enthalpy / len(atoms)))
        return set(Hull(found, ("Na", "Cl")).stable) & {"B1", "B2"}

    assert stable(transition - 1) == {"B1"}
    assert stable(transition + 1) == {"B2"}
