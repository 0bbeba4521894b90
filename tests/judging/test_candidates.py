"""Which crystals are right, and that an interrupted run ends as one that was not."""

import numpy as np
import pytest
import torch
from judging.conftest import known
from prototypes import perovskite, rocksalt, spinel

from crystorus.data.io import crystals_to_atoms
from crystorus.data.store import build_store
from crystorus.diffusion.algorithms import SamplerConfig
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import rotate
from crystorus.judging import candidates
from crystorus.judging.candidates import make_groups, make_part, matches
from crystorus.sample.workers import Crew

WALK = SamplerConfig("bridge", 2)


@pytest.fixture
def store(tmp_path):
    import ase.io

    ase.io.write(tmp_path / "known.extxyz", crystals_to_atoms(Crystals.concat(known(10))))
    return build_store(tmp_path / "known.extxyz", tmp_path / "known.store")


@pytest.fixture
def here(monkeypatch, model):
    """Parts are made in this process, and counted."""
    made = []

    def share_out(function, tasks, crew):
        for task in tasks:
            made.append(task.number)
            yield function(model, task)

    monkeypatch.setattr(candidates, "share_out", share_out)
    monkeypatch.setattr(candidates, "PART", 4)
    return made


def make(store, folder):
    return make_groups(
        store,
        list(range(len(store))),
        folder,
        Crew(1, folder),
        sampler=WALK,
        candidates=3,
        seed=5,
    )


def test_the_known_crystal_in_another_frame_and_scale_is_right_and_others_are_not():
    salt = rocksalt()
    turned = rotate(salt, torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0])
    assert matches(turned.with_geometry(1.1 * turned.lattice, turned.frac_coords), salt)
    oxide = perovskite()
    exchange = {38: 22, 22: 38, 8: 8}
    numbers = torch.tensor([exchange[z] for z in oxide.atomic_numbers.tolist()])
    assert matches(oxide, oxide)
    assert not matches(Crystals(oxide.lattice, oxide.frac_coords, numbers, oxide.n_atoms), oxide)


def test_right_is_what_match_rates_count():
    """Spinels with displaced atoms, asked of the other package; some are on either side."""
    matching = pytest.importorskip("crystal_fidelity.matching")
    structures = pytest.importorskip("crystal_fidelity.structures")
    generator = torch.Generator().manual_seed(3)
    oxide, said, expected = spinel(), [], []

    def entry(crystal):
        return structures.Crystal(
            crystal.lattice[0].T.numpy(),
            crystal.frac_coords.numpy(),
            crystal.atomic_numbers.numpy(),
        )

    for size in torch.linspace(0.05, 0.8, 24).tolist():
        shift = size * torch.rand(oxide.frac_coords.shape, generator=generator).double()
        moved = oxide.with_geometry(oxide.lattice, (oxide.frac_coords + shift) % 1)
        said.append(matches(moved, oxide))
        result = matching.match_rate([entry(moved)], [entry(oxide)])
        expected.append(bool(result.matched[0]) and result.collisions == 0)
    assert said == expected
    assert 4 < sum(said) < 20


def test_what_is_not_valid_is_never_right():
    salt = rocksalt()
    collapsed = salt.with_geometry(salt.lattice, torch.zeros_like(salt.frac_coords))
    assert not matches(collapsed, salt)
    assert not matches(salt.with_geometry(torch.nan * salt.lattice, salt.frac_coords), salt)
    assert not matches(salt.with_geometry(1e-3 * salt.lattice, salt.frac_coords), salt)


def test_groups_are_of_the_compositions_asked_for(store, here, tmp_path):
    groups = make(store, tmp_path / "parts")
    assert len(groups) == 10
    assert sorted(here) == [0, 1, 2]
    wanted = sorted(
        tuple(sorted(c.atomic_numbers.tolist())) for c in store.select(range(10)).split()
    )
    found = [tuple(sorted(g.crystals.select([0]).atomic_numbers.tolist())) for g in groups]
    assert sorted(found) == wanted
    for group in groups:
        assert len(group.crystals) == len(group.right) == 3
        cells = group.crystals.lattice
        assert not torch.equal(cells[0], cells[1]), "each candidate has noise of its own"


def test_marks_are_those_of_the_matcher(store, here, tmp_path, model, monkeypatch):
    """A model that gives the known crystal every second time."""
    truth = {tuple(c.atomic_numbers.tolist()): c for c in store.select(range(10)).split()}
    walks = iter(range(10**6))

    def sample(atomic_numbers, n_atoms, *, seeds, sampler):
        number = next(walks) % 3
        crystals = []
        for numbers in atomic_numbers.split(n_atoms.tolist()):
            known_one = truth[tuple(numbers.tolist())]
            collapsed = known_one.with_geometry(known_one.lattice, 0 * known_one.frac_coords)
            crystals.append(known_one if number == 1 else collapsed)
        return Crystals.concat(crystals)

    monkeypatch.setattr(model, "sample", sample)
    for group in make(store, tmp_path / "parts"):
        assert group.right.tolist() == [False, True, False]


def test_an_interrupted_run_goes_on_and_ends_the_same(store, here, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    make(store, whole)
    make(store, resumed)
    (resumed / "part-00001.npz").unlink()
    here.clear()
    make(store, resumed)
    assert here == [1]
    for part in sorted(whole.iterdir()):
        one, other = np.load(part), np.load(resumed / part.name)
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_full_disk_leaves_no_part_behind(store, here, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(candidates, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        make(store, tmp_path / "parts")
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_part_is_the_same_however_often_it_is_made(store, here, tmp_path, model):
    part = candidates.Part(0, store.select([0, 1]), (7, 8), WALK, 2)
    one, other = make_part(model, part), make_part(model, part)
    assert torch.equal(one[1].lattice, other[1].lattice)
    assert torch.equal(one[2], other[2])
