import numpy as np
import pytest
from prototypes import (
    diamond,
    everything,
    moved,
    random_crystal,
    rattled,
    rock_salt,
    rutile,
    simple_cubic,
)

from crystal_fidelity import features as featurizers
from crystal_fidelity.energies import (
    AseEnergies,
    References,
    fit_potentials,
    formation_energies,
    load_references,
    model_energy_emd,
)
from crystal_fidelity.features import Featurizer, Identity, Limits, screen
from crystal_fidelity.structures import Crystal, ReadFailure

LIMITS = Limits(max_atomic_number=94)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("chgnet")
    from crystal_fidelity.features.chgnet import ChgnetModel

    return ChgnetModel(tmp_path_factory.mktemp("cache"))


def hostile():
    crystal = rock_salt()
    coincident = Crystal(crystal.lattice, np.zeros((2, 3)), crystal.atomic_numbers, "coincident")
    heavy = simple_cubic(3.0, "Cm")
    lonely = Crystal(np.eye(3) * 12, np.zeros((1, 3)), np.array([11]), "lonely")
    dense = simple_cubic(0.4)
    packed = Crystal(np.eye(3) * 1.5, random_crystal(0, 20).frac_coords, np.full(20, 6), "packed")
    return [coincident, heavy, lonely, dense, packed, ReadFailure("torn", "no atoms")]


def test_screening_names_every_hostile_structure_and_passes_prototypes():
    reasons = screen([*hostile(), *everything()], LIMITS)
    words = ["contact", "Cm (Z = 96)", "no neighbour", "per Å³", "per Å³", "unreadable"]
    assert all(w in r for w, r in zip(words, reasons, strict=False)), reasons
    assert reasons[6:] == [""] * 6


def test_one_isolated_atom_in_a_populated_cell_is_found():
    frac = np.array([[0, 0, 0], [0.1, 0, 0], [0.5, 0.5, 0.5]])
    crystal = Crystal(np.eye(3) * 20, frac, np.array([11, 17, 11]), "x")
    assert "atom 2 has no neighbour" in screen([crystal], LIMITS)[0]


def test_chgnet_survives_hostile_structures_and_counts_them(model):
    result = model.features([*hostile(), rock_salt()])
    assert len(result) == 1
    assert [name for name, _ in result.failures][:3] == ["coincident", "Cm", "lonely"]
    assert np.isnan(model.energies(hostile())).all()
    assert isinstance(model, Featurizer)


def test_chgnet_outputs_are_the_packages_own_per_atom(model):
    from chgnet.model import CHGNet

    from crystal_fidelity.structures import to_pymatgen

    network = CHGNet.load(use_device="cpu", verbose=False)
    for crystal in (rock_salt(), rutile()):
        theirs = network.predict_structure(to_pymatgen(crystal), task="e", return_crystal_feas=True)
        ours = model.features([crystal]).features[0]
        np.testing.assert_allclose(ours, theirs["crystal_fea"] / len(crystal), rtol=1e-4, atol=1e-6)
        assert model.energies([crystal])[0] == pytest.approx(float(theirs["e"]), abs=1e-5)


def test_features_do_not_depend_on_motion_or_on_the_cell(model):
    crystals = everything()
    plain = model.features(crystals).features
    np.testing.assert_allclose(
        model.features([moved(c, 5) for c in crystals]).features, plain, rtol=1e-3, atol=1e-4
    )
    single = rutile()
    shifts = [[0.5 * i, 0, 0] for i in (0, 1)]
    doubled = Crystal(
        single.lattice * np.array([[2.0], [1], [1]]),
        np.vstack([single.frac_coords * [0.5, 1, 1] + s for s in shifts]),
        np.tile(single.atomic_numbers, 2),
        "double",
    )
    np.testing.assert_allclose(
        model.features([doubled]).features[0], plain[5], rtol=1e-3, atol=1e-4
    )


def test_cache_returns_the_same_rows_without_the_network(model, tmp_path, monkeypatch):
    from crystal_fidelity.features.chgnet import ChgnetModel

    crystals = [rattled(rock_salt(), 0.05, i) for i in range(3)]
    first = ChgnetModel(tmp_path).features(crystals)
    again = ChgnetModel(tmp_path)
    again._load = lambda: pytest.fail("the network was asked again")
    screened = []
    monkeypatch.setattr(featurizers, "screen", lambda e, _: screened.extend(e) or [""] * len(e))
    np.testing.assert_array_equal(again.features(crystals).features, first.features)
    assert screened == []
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    rebuilt = ChgnetModel(tmp_path).features(crystals)
    np.testing.assert_allclose(rebuilt.features, first.features, rtol=1e-5, atol=1e-6)


def test_shipped_references_belong_to_this_model_and_carry_their_error(model):
    references = load_references()
    assert references.model == str(model.identity)
    assert 0 < references.held_out_mae < 0.06
    assert references.n_fit >= 1500
    assert len(references.potentials) >= 85
    energy = formation_energies([rock_salt()], model.energies([rock_salt()]), references.potentials)
    assert energy[0] == pytest.approx(-2.0, abs=0.25)  # NaCl: experiment -2.13 eV/atom


def test_least_squares_recovers_known_potentials():
    crystals = [random_crystal(i, 5, (3, 8, 22, 26)) for i in range(60)]
    truth = {"Li": -1.9, "O": -4.9, "Ti": -7.8, "Fe": -8.3}
    formation = np.random.default_rng(0).normal(-1, 1, 60)
    energies = formation - formation_energies(crystals, np.zeros(60), truth)
    fitted = fit_potentials(crystals, energies, formation)
    assert fitted == pytest.approx(truth, abs=1e-4)
    assert np.isnan(formation_energies([rock_salt()], np.zeros(1), fitted)[0])


class Constant:
    identity = Identity("constant", "0", "none")

    def energies(self, structures):
        return np.arange(len(structures), dtype=float)


def test_references_of_another_model_are_refused():
    references = References({"C": 0.0}, "other model", "x", 1, 0.1, 1)
    with pytest.raises(ValueError, match="do not fit energies"):
        model_energy_emd([diamond()], [diamond()], Constant(), references=references)
    assert model_energy_emd([diamond()] * 3, [diamond()] * 3, Constant()).value == 0


def test_any_ase_calculator_by_path_and_its_failures_are_counted():
    model = AseEnergies("ase.calculators.emt:EMT")
    from ase.build import bulk

    from crystal_fidelity.structures import from_atoms

    copper = from_atoms(bulk("Cu"), "Cu")
    energies = model.energies([copper, rutile(), ReadFailure("x", "torn")])
    from ase.calculators.emt import EMT

    atoms = bulk("Cu")
    atoms.calc = EMT()
    assert energies[0] == pytest.approx(atoms.get_potential_energy())
    assert np.isnan(energies[1:]).all()
    assert "TiO2" in model.failures
    for path in ("ase.calculators.emt", "nothing.here:X", "ase.calculators.emt:Nothing"):
        with pytest.raises(ValueError, match=r"module:function|cannot be imported"):
            AseEnergies(path)
