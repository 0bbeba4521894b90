"""A scorer learns which candidates are right where there is something to tell, and only there."""

import dataclasses
import json
import math
import subprocess
import sys

import ase.io
import pytest
import torch
from known import known
from prototypes import perovskite, rocksalt, spinel

from crystal_fidelity.errors import ReadingError
from crystorus.checkpoint import SCORER_CARD, load_checkpoint
from crystorus.config import SamplerConfig
from crystorus.crystal_model import CrystalModel
from crystorus.data.convert import crystals_to_atoms
from crystorus.data.store import build_store
from crystorus.errors import OutputError, RequestError, TrainingError
from crystorus.geometry import Crystals
from crystorus.geometry.symmetry import rotate
from crystorus.runs.folder import claim
from crystorus.train import scorer
from crystorus.train.options import ScorerOptions
from crystorus.train.quality import rms_distance
from crystorus.train.scorer import (
    ALONE_WEIGHT,
    Candidates,
    fit_scorer,
    make_candidates,
    report,
    scorer_loss,
    train_scorer,
)

SAMPLER = SamplerConfig("bridge", 2)
SHORT = {"epochs": 12, "rates": (3e-3, 1e-2, 1e-2), "bf16": False}
CANDIDATES = 4
UNKNOWN = torch.full((1, CANDIDATES), torch.nan)


@pytest.fixture
def store(tmp_path):
    ase.io.write(tmp_path / "known.extxyz", crystals_to_atoms(Crystals.concat(known(10))))
    return build_store(tmp_path / "known.extxyz", tmp_path / "known.store")


@pytest.fixture
def jobs(monkeypatch):
    """Sizes of the parts that are made, of four compositions each."""
    made = []
    real = scorer._make_part

    def make_part(job):
        made.append(len(job[1]))
        return real(job)

    monkeypatch.setattr(scorer, "_make_part", make_part)
    monkeypatch.setattr(scorer, "PART", 4)
    scorer.loaded_checkpoint.cache_clear()
    return made


def make(store, checkpoint, folder):
    options = ScorerOptions(out=folder, checkpoint=checkpoint, candidates=3, seed=5)
    return make_candidates(store, list(range(len(store))), options, sampler=SAMPLER)


def matches(made, known):
    return rms_distance(made, known) is not None


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


def test_groups_are_of_the_compositions_asked_for(store, checkpoint, jobs, tmp_path):
    groups = make(store, checkpoint, tmp_path / "parts")
    assert groups.right.shape == groups.weights.shape == (10, 3)
    assert jobs == [4, 4, 2]
    wanted = sorted(
        tuple(sorted(c.atomic_numbers.tolist())) for c in store.select(range(10)).split()
    )
    each = [groups.select([n]).crystals for n in range(10)]
    found = [tuple(sorted(several.select([0]).atomic_numbers.tolist())) for several in each]
    assert sorted(found) == wanted
    for several in each:
        assert len(several) == 3
        cells = several.lattice
        assert not torch.equal(cells[0], cells[1]), "each candidate has noise of its own"


def test_marks_are_those_of_the_matcher(store, checkpoint, jobs, tmp_path, monkeypatch):
    """A model that gives the known crystal every second time."""
    truth = {tuple(sorted(c.atomic_numbers.tolist())): c for c in store.select(range(10)).split()}
    runs = iter(range(10**6))

    def sample(atomic_numbers, n_atoms, *, seeds, sampler, groups):
        number = next(runs) % 3
        crystals = []
        for numbers in atomic_numbers.split(n_atoms.tolist()):
            known_one = truth[tuple(sorted(numbers.tolist()))]
            collapsed = known_one.with_geometry(known_one.lattice, 0 * known_one.frac_coords)
            crystals.append(known_one if number == 1 else collapsed)
        return Crystals.concat(crystals)

    monkeypatch.setattr(scorer.loaded_checkpoint(checkpoint), "sample", sample)
    made = make(store, checkpoint, tmp_path / "parts")
    assert made.right.tolist() == [[False, True, False]] * 10


def test_an_interrupted_run_goes_on_and_ends_the_same(store, checkpoint, jobs, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    make(store, checkpoint, whole)
    make(store, checkpoint, resumed)
    (resumed / "candidates" / "part-00002.safetensors").unlink()
    jobs.clear()
    make(store, checkpoint, resumed)
    assert jobs == [2]
    for part in sorted((whole / "candidates").iterdir()):
        assert part.read_bytes() == (resumed / "candidates" / part.name).read_bytes()


def test_a_full_disk_leaves_no_part_behind(store, checkpoint, jobs, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(scorer, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        make(store, checkpoint, tmp_path / "parts")
    assert list((tmp_path / "parts" / "candidates").iterdir()) == []


def test_two_workers_make_the_same(store, checkpoint, tmp_path):
    one, two = (
        make_candidates(
            store,
            [0, 1],
            ScorerOptions(
                out=tmp_path / f"{n}", checkpoint=checkpoint, candidates=2, seed=5, workers=n
            ),
            sampler=SAMPLER,
        )
        for n in (1, 2)
    )
    torch.testing.assert_close(one.crystals.lattice, two.crystals.lattice)
    assert torch.equal(one.right, two.right)


def groups(count: int, *, told: bool) -> Candidates:
    """One prototype among copies with displaced atoms; `told` marks it, otherwise a random one."""
    generator = torch.Generator().manual_seed(count)
    result = []
    for crystal in known(count):
        place = int(torch.randint(CANDIDATES, (), generator=generator))
        marked = place if told else int(torch.randint(CANDIDATES, (), generator=generator))
        some = []
        for n in range(CANDIDATES):
            moved = 0.15 * torch.randn(crystal.frac_coords.shape, generator=generator)
            frac = crystal.frac_coords + (0.0 if n == place else moved)
            some.append(crystal.with_geometry(crystal.lattice, frac % 1))
        right = torch.arange(CANDIDATES) == marked
        result.append(Candidates(Crystals.concat(some), UNKNOWN, right[None]))
    return Candidates.concat(result)


def test_the_right_one_is_found_among_others_it_has_not_seen(model):
    passes = []
    held_out = groups(40, told=True)
    for fitted, loss in fit_scorer(model, groups(96, told=True), **SHORT):
        passes.append((loss, report(fitted, held_out)))
    first, last = passes[0], passes[-1]
    assert last[0] < 0.8 * first[0]
    assert last[1].chosen >= 0.6  # 1/4 by chance, s.e. 0.07
    assert last[1].any == 1.0
    assert last[1].loss < first[1].loss
    assert last[1] == report(fitted, held_out), "in fp32 when all is done"


def test_where_there_is_nothing_to_tell_it_chooses_at_random(model):
    """The control: marks that say nothing."""
    *_, (fitted, _) = fit_scorer(model, groups(96, told=False), **SHORT)
    assert report(fitted, groups(200, told=False)).chosen < 0.4  # 1/4 by chance, s.e. 0.03


def test_training_leaves_the_model_as_it_was(model):
    before = {k: v.clone() for k, v in model.denoiser.state_dict().items()}
    [(fitted, _)] = fit_scorer(model, groups(16, told=True), epochs=1, bf16=False)
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.scorer is None
    assert not torch.equal(
        fitted.network.weights.weight, model.denoiser.network.weights.weight
    ) or any(
        not torch.equal(new, old)
        for new, old in zip(
            fitted.network.parameters(), model.denoiser.network.parameters(), strict=True
        )
    )


def test_the_loss_by_hand():
    odds = torch.tensor([[0.0, math.log(3.0)], [1.0, 2.0]])
    right = torch.tensor([[False, True], [True, True]])
    # Of the first group 3/4 goes to the right one; the second has no wrong one to tell it from.
    alone = [math.log(2.0), math.log(4 / 3), math.log1p(math.exp(-1)), math.log1p(math.exp(-2))]
    expected = -math.log(0.75) / 2 + ALONE_WEIGHT * sum(alone) / 4
    assert float(scorer_loss(odds, right)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_without_mixed_groups_is_finite_and_has_gradients():
    odds = torch.zeros(2, 3, requires_grad=True)
    scorer_loss(odds, torch.tensor([[True] * 3, [False] * 3])).backward()
    assert torch.isfinite(odds.grad).all()


def test_nothing_to_learn_from_is_refused(model):
    one = groups(1, told=True)
    alike = Candidates(one.crystals, one.weights, torch.ones_like(one.right))
    with pytest.raises(TrainingError, match="--compositions or --candidates"):
        next(fit_scorer(model, alike))


def test_another_preset_is_refused(model):
    paper = CrystalModel(model.config, torch.nn.Linear(1, 1), model.diffusion, model.statistics)
    with pytest.raises(TrainingError, match="default preset"):
        next(fit_scorer(paper, groups(4, told=True)))


@pytest.fixture
def data(tmp_path):
    ase.io.write(tmp_path / "known.extxyz", crystals_to_atoms(Crystals.concat(known(48))))
    return tmp_path / "known.extxyz"


@pytest.fixture
def marked(monkeypatch):
    """Every third candidate counts as right."""
    asked = iter(range(10**6))

    def rms_distance(made, truth):
        return 0.1 if next(asked) % 3 == 0 else None

    monkeypatch.setattr(scorer, "rms_distance", rms_distance)
    scorer.loaded_checkpoint.cache_clear()


def test_from_known_crystals_to_a_checkpoint_with_a_scorer(data, checkpoint, marked, tmp_path):
    options = ScorerOptions(out=tmp_path / "run", checkpoint=checkpoint, candidates=3, epochs=1)
    folder, found = train_scorer(data, options)
    assert (found.compositions, found.first) == (3, 1.0)
    model = load_checkpoint(folder)
    assert model.digest == load_checkpoint(checkpoint).digest
    about = json.loads((folder / SCORER_CARD).read_text())["card"]
    assert about["compositions"] == 48
    assert about["held_out"] == found._asdict()
    assert about["checkpoint_sha256"] == model.digest
    with torch.no_grad():
        odds = model.scorer(Crystals.concat(known(4)), torch.full((4,), torch.nan))
    assert torch.isfinite(odds).all()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    # The candidates are there already: the same again is only learning.
    assert train_scorer(data, options)[1] == found


def test_another_run_in_the_folder_is_refused(data, checkpoint, marked, tmp_path):
    options = ScorerOptions(out=tmp_path / "run", checkpoint=checkpoint, candidates=3, epochs=1)
    with pytest.raises(TrainingError, match="crystorus data get mp-20"):
        train_scorer(tmp_path / "no.csv", options)
    assert not (tmp_path / "run").exists()
    train_scorer(data, options)
    with pytest.raises(OutputError, match="its candidates is 3, yours is 4"):
        train_scorer(data, dataclasses.replace(options, candidates=4))
    other = tmp_path / "other.extxyz"
    ase.io.write(other, crystals_to_atoms(Crystals.concat(known(20))))
    build_store(other, tmp_path / "other.store")
    with pytest.raises(ReadingError, match=r"file than .*other\.extxyz: choose another --out"):
        train_scorer(other, options)
    with pytest.raises(OutputError, match="holds candidates of other data"):
        train_scorer(tmp_path / "other.store", options)
    with (
        claim(options.out, "train-scorer", json.loads((options.out / "run.json").read_text())[
            "settings"]),
        pytest.raises(OutputError, match="is being written by another run"),
    ):  # fmt: skip
        train_scorer(data, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 1}, "--candidates is 1: give 2 to 100"),
        ({"compositions": 0}, "--compositions is 0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"workers": 0}, "--workers is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        ScorerOptions(**options)


def test_options_are_checked_before_torch_is_loaded():
    program = "import sys, crystorus.train.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
