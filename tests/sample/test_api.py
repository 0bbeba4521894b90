import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_model import FakeModel

import crystorus
from crystorus.checkpoint import SHIPPED
from crystorus.config import SamplerConfig
from crystorus.errors import RequestError
from crystorus.sample.api import generate
from crystorus.sample.sampler import FAST


def test_crystals_come_in_the_order_asked_for_with_exact_compositions():
    made = generate(["SrTiO3", "LiFeO2"], n=2, z=(2, 1), seed=3, model=FakeModel(), batch_atoms=10)
    formulas = [atoms.get_chemical_formula() for atoms in made.to_ase()]
    assert formulas == ["O6Sr2Ti2"] * 2 + ["O3SrTi"] * 2 + ["Fe2Li2O4"] * 2 + ["FeLiO2"] * 2
    assert [request.index for request in made.requests] == list(range(8))


def test_ase_and_pymatgen_describe_the_same_crystals():
    made = generate("SrTiO3", n=3, model=FakeModel())
    for atoms, structure in zip(made.to_ase(), made.to_pymatgen(), strict=True):
        assert np.allclose(atoms.cell.array, structure.lattice.matrix, atol=1e-5)
        assert np.allclose(atoms.positions, structure.cart_coords, atol=1e-4)
        assert atoms.numbers.tolist() == [site.specie.Z for site in structure]


def test_it_is_a_sequence():
    made = generate("LiFeO2", n=5, model=FakeModel())
    assert len(made) == 5
    assert torch.equal(made[-1].crystals.lattice, made.crystals.lattice[4:])
    assert len(made[1:4]) == 3
    assert [len(one) for one in made] == [1] * 5
    with pytest.raises(IndexError):
        made[5]


@pytest.mark.parametrize("batch_atoms", [4, 8, 1000])
def test_same_seed_same_crystals_whatever_the_batch_size(batch_atoms):
    formulas = ["LiFeO2", "SrTiO3", "O2"]
    made = generate(formulas, n=3, seed=1, model=FakeModel(), batch_atoms=batch_atoms)
    whole = generate(formulas, n=3, seed=1, model=FakeModel())
    other = generate(formulas, n=3, seed=2, model=FakeModel())
    assert torch.equal(made.crystals.frac_coords, whole.crystals.frac_coords)
    assert not torch.equal(other.crystals.frac_coords, whole.crystals.frac_coords)


def test_a_trajectory_has_every_step_of_every_crystal_even_when_memory_runs_out():
    made = generate(
        ["SrTiO3", "LiFeO2"], n=3, model=FakeModel(memory_atoms=10), keep_trajectory=True
    )
    steps = made.trajectory_to_ase()
    assert [len(one) for one in steps] == [3] * 6
    for one, last in zip(steps, made.to_ase(), strict=True):
        assert np.allclose(one[-1].positions, last.positions)
    assert made[2].trajectory[0].n_atoms.tolist() == [5]


def test_what_does_not_fit_is_refused_and_what_was_never_seen_is_a_warning():
    with pytest.raises(RequestError, match=r"24 atoms.*at most 20"):
        generate("LiFeO2", z=6, model=FakeModel())
    with pytest.warns(UserWarning, match="Xe was never seen"):
        generate("XeO2", model=FakeModel())


def test_the_public_names_are_there_and_no_others():
    assert set(crystorus.__all__) <= set(dir(crystorus))
    assert crystorus.generate is generate
    assert crystorus.SamplerConfig is SamplerConfig
    with pytest.raises(AttributeError, match="sampel"):
        crystorus.sampel


def test_settings_are_those_of_the_command_line_and_a_misspelt_one_is_answered():
    assert "candidates: " in str(inspect.signature(generate))
    assert "overwrite" not in inspect.signature(generate).parameters
    with pytest.raises(RequestError, match=r"no setting 'candidate': did you mean candidates\?"):
        generate("LiO", model=FakeModel(), candidate=2)
    with pytest.raises(RequestError, match="overwrite is an option of the command line"):
        generate("LiO", model=FakeModel(), overwrite=True)
    with pytest.raises(RequestError, match="1 to 1000"):
        generate("LiO", model=FakeModel(), candidates=0)
    with pytest.raises(RequestError, match="workers load a checkpoint"):
        generate("LiO", model=FakeModel(), workers=2)


def test_a_system_gives_all_its_compositions():
    made = generate(system="Li-O", max_atoms=3, model=FakeModel())
    assert len(made) == 9  # C(3 + 2, 2) - 1


def test_a_quality_or_a_sampler_is_taken():
    made = generate("LiO", model=FakeModel(), quality="fast", keep_trajectory=True)
    assert len(made.trajectory) == FAST.steps
    with pytest.raises(RequestError, match="both sampler and quality"):
        generate("LiO", model=FakeModel(), quality="fast", sampler=SamplerConfig())
    named = generate("LiO", model=FakeModel(), sampler="ode", steps=5, keep_trajectory=True)
    assert len(named.trajectory) == 5


def test_confidence_is_told_where_a_scorer_was_asked():
    made = generate("LiO", n=2, model=FakeModel(), candidates=2)
    assert all(math.isnan(value) for value in made.confidence), "there is no scorer"
    scored = replace(made, scored_by="confidence", scorer_error=(0.0, math.log(2)))
    assert scored.confidence == pytest.approx((1.0, 0.5))
    assert scored[1].confidence == pytest.approx((0.5,))


def test_larger_cells_than_any_in_training_are_made_on_demand():
    with pytest.warns(UserWarning, match=r"at most 20: results for such cells are unreliable"):
        assert len(generate("LiFeO2", z=6, model=FakeModel(), large=True)) == 1


shipped = pytest.mark.skipif(not SHIPPED.is_dir(), reason=f"no checkpoint in {SHIPPED}")


@shipped
def test_the_shipped_checkpoint_makes_the_same_crystals_whatever_the_batch_size():
    model = crystorus.load()
    sampler = SamplerConfig(steps=10)
    formulas = ["LiFeO2", "SrTiO3", "Fe"]
    together = generate(formulas, z=(1, 2), seed=0, model=model, sampler=sampler)
    alone = generate(formulas, z=(1, 2), seed=0, model=model, sampler=sampler, batch_atoms=1)
    torch.testing.assert_close(
        together.crystals.lattice, alone.crystals.lattice, atol=1e-3, rtol=1e-4
    )
    apart = together.crystals.frac_coords - alone.crystals.frac_coords
    assert (apart - apart.round()).abs().max() < 1e-3


@shipped
def test_the_shipped_checkpoint_makes_crystals_of_one_formula():
    made = crystorus.generate("LiFeO2", n=2, seed=0, sampler=SamplerConfig(steps=20))
    assert [a.get_chemical_formula() for a in made.to_ase()] == ["FeLiO2"] * 2
    assert torch.isfinite(made.crystals.lattice).all()
