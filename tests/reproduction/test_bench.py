"""Steps of an experiment: done once, kept, and gone on with after a kill."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from ase.io import read as read_atoms
from safetensors.torch import load_file

from crystal_fidelity.reading import read_structures
from crystal_fidelity.structures import ReadFailure
from crystorus.crystal_model import CrystalModel
from crystorus.data.store import open_store
from crystorus.reproduction import bench as bench_file
from crystorus.reproduction import fidelity
from crystorus.reproduction.bench import Bench
from crystorus.reproduction.errors import PaperError
from crystorus.reproduction.inputs import Sources, prepare
from crystorus.reproduction.settings import load_budget, load_variants, merged
from crystorus.reproduction.tables import variant_row
from crystorus.train.loop import Training

torch.set_num_threads(1)
STEPS = {"training": {"cpu_minutes": 0.0, "epochs": 1, "batch_size": 64, "batch_pairs": 0}}


def tiny_budget():
    """Smoke with trainings of a handful of steps instead of a time, so that they repeat exactly."""
    smoke = load_budget("smoke")
    settings = {name: merged(tree, STEPS) for name, tree in smoke.settings.items()}
    return dataclasses.replace(smoke, settings=settings, compositions=6)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("inputs"), tiny_budget(), Sources())


@pytest.fixture
def bench(inputs, tmp_path):
    return Bench(tmp_path, tiny_budget(), inputs, "cpu", None, lambda step: None)


@pytest.fixture
def scored(monkeypatch):
    """Scores that count how often they were asked for."""
    asked = []

    def fake(arguments, path):
        asked.append(arguments)
        path.write_text("{}")
        scores = [{"name": "validity", "value": 0.5, "uncertainty": 0.1, "real": 1.0,
                   "n_generated": 6, "protocol": "none"}]  # fmt: skip
        files = {"generated": {"unreadable": {}}}
        return {"crystal_fidelity": "1", "scores": scores, "not_computed": {}, "files": files}

    monkeypatch.setattr(fidelity, "run_for_json", fake)
    return asked


def never(*arguments, **options):
    raise AssertionError("a finished step was done again")


def test_held_out_crystals_are_those_of_the_store_in_its_order(inputs):
    store = open_store(inputs.held_out_store)
    frames = read_atoms(inputs.held_out, ":")
    rows = [store.ids.index(atoms.info["id"]) for atoms in frames]
    assert len(frames) == inputs.about["compositions"] == 6
    assert rows == sorted(set(rows))
    for row, atoms in zip(rows, frames, strict=True):
        crystal = store.select([row], dtype=torch.float64)
        assert atoms.numbers.tolist() == crystal.atomic_numbers.tolist()
        np.testing.assert_allclose(atoms.cell.array.T, crystal.lattice[0], atol=1e-6)


def test_a_folder_takes_one_budget_and_one_set_of_crystals(inputs, tmp_path):
    prepare(tmp_path, tiny_budget(), Sources())
    prepare(tmp_path, tiny_budget(), Sources())
    other = dataclasses.replace(tiny_budget(), name="cpu")
    given = Sources(inputs.train, inputs.validation)
    with pytest.raises(PaperError, match="experiment with budget smoke: choose another --out"):
        prepare(tmp_path, other, given)
    with pytest.raises(PaperError, match="other crystals: choose another --out"):
        prepare(tmp_path, tiny_budget(), Sources(inputs.validation, inputs.train))


def test_what_is_finished_is_not_done_again(bench, scored, monkeypatch):
    variant = load_variants()["default"]
    first = variant_row(bench, variant, [0], ablation=True)
    assert len(scored) == 1
    assert first["mean"] == {"validity": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", never)
        patch.setattr(CrystalModel, "sample", never)
        patch.setattr(fidelity, "run_for_json", never)
        assert variant_row(bench, variant, [0], ablation=True) == first
    # The trap works: another seed springs it.
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", never)
        with pytest.raises(AssertionError, match="done again"):
            variant_row(bench, variant, [1], ablation=True)


def test_a_variant_of_the_sampler_takes_the_trained_weights(bench, scored, monkeypatch):
    base = variant_row(bench, load_variants()["default"], [0], ablation=True)["runs"][0]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", never)
        row = variant_row(bench, load_variants()["default-ode"], [0], ablation=True)
    run = row["runs"][0]
    assert run["training"]["sha256"] == base["training"]["sha256"]
    assert (base["sampling"]["sampler"]["name"], run["sampling"]["sampler"]["name"]) == (
        "bridge", "ode"
    )  # fmt: skip
    assert len(scored) == 2


def test_a_killed_training_goes_on_to_the_same_weights(bench, tmp_path, inputs, monkeypatch):
    variant = load_variants()["paper"]
    whole, card = dataclasses.replace(bench, out=tmp_path / "whole").trained(
        variant, 0, ablation=True
    )
    real = Training.step
    child = os.fork()
    if child == 0:

        def dying(module, batch):
            if module.progress.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(module, batch)

        Training.step = dying
        try:
            bench.trained(variant, 0, ablation=True)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    checkpoint, _ = bench.trained(variant, 0, ablation=True)
    ours, theirs = (load_file(p / "weights.safetensors") for p in (checkpoint, whole))
    assert card["steps"] > 2
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_do_not_work_on_one_training(bench, inputs):
    with (
        bench_file._locked(bench.out / "trainings" / "default-s0"),
        pytest.raises(RuntimeError, match="is being written by another run"),
    ):
        bench.trained(load_variants()["default"], 0, ablation=False)


def test_a_crystal_that_is_not_finite_counts_in_its_place(bench, monkeypatch):
    checkpoint, _ = bench.trained(load_variants()["default"], 0, ablation=False)
    real = CrystalModel.sample

    def spoiled(model, *arguments, **options):
        crystals = real(model, *arguments, **options)
        lattice = crystals.lattice.clone()
        lattice[2] = float("nan")
        return crystals.with_geometry(lattice, crystals.frac_coords)

    monkeypatch.setattr(CrystalModel, "sample", spoiled)
    path, _ = bench.sampled(checkpoint, "spoiled", seed=0)
    made, wanted = read_structures(path), read_structures(bench.inputs.held_out)
    lost = [i for i, entry in enumerate(made) if isinstance(entry, ReadFailure)]
    assert len(made) == len(wanted) == 6
    assert len(lost) == 1
    for i, (ours, theirs) in enumerate(zip(made, wanted, strict=True)):
        if i not in lost:
            assert sorted(ours.atomic_numbers) == sorted(theirs.atomic_numbers)


def test_a_training_that_diverges_is_a_result(bench, scored, monkeypatch):
    real = Training.backward

    def infinite(training, batch):
        t, losses = real(training, batch)
        return t, dataclasses.replace(losses, torus=losses.torus * float("inf"))

    monkeypatch.setattr(Training, "backward", infinite)
    row = variant_row(bench, load_variants()["paper-a"], [0], ablation=True)
    assert row["runs"][0]["diverged"].startswith("step 0 has ")
    assert str(bench.out) not in row["runs"][0]["diverged"]
    assert row["mean"] == {}
    assert not scored
