"""A run that is killed and goes on ends as the run that was never killed, bit for bit."""

import functools
import json

import pytest
import torch
from runs import config, die, outcome, run_in_a_child, same

from crystorus.train.loop import Training, train

torch.set_num_threads(1)
KINDS = {"adam": {}, "muon": {"optimizer": "muon"}, "symmetric": {"symmetric_fraction": 0.7}}
HURRIED = {"batch_pairs": 60, "warmup_steps": 5, "decay": 0.5, "save_minutes": 0.0}


@pytest.fixture(scope="module")
def left_alone(stores, tmp_path_factory):
    """For each kind of run a configuration and what it gives when left alone."""

    @functools.cache
    def run(kind):
        if kind == "muon" and not hasattr(torch.optim, "Muon"):
            pytest.skip("torch has Muon from 2.9 on")
        settings = config(stores, **KINDS[kind], **HURRIED)
        folder = tmp_path_factory.mktemp(kind) / "run"
        assert run_in_a_child(settings, folder) == 0
        return settings, outcome(folder)

    return run


def kill_in_step(monkeypatch, step):
    """Die in the middle of a training step: the gradients are there, the weights as before."""
    real = Training.backward

    def dying(self, *args):
        losses = real(self, *args)
        if self.progress.step == step:
            die()
        return losses

    monkeypatch.setattr(Training, "backward", dying)


def kill_in_save(monkeypatch, step):
    """Die when the state is written and not yet in its place."""
    real = torch.save

    def dying(state, path):
        real(state, path)
        if state["progress"]["step"] == step:
            die()

    monkeypatch.setattr(torch, "save", dying)


def kill_in_validation(monkeypatch, epoch):
    """Die after the validation losses are known and before anything is saved."""
    real = Training.validation_losses

    def dying(self):
        found = real(self)
        if self.progress.step == (epoch + 1) * len(self.batches):
            die()
        return found

    monkeypatch.setattr(Training, "validation_losses", dying)


def kill_after_validation(monkeypatch, epoch):
    """Die after best/ of an epoch is written and before its state is."""
    real = Training.validate

    def dying(self, number):
        real(self, number)
        if number == epoch:
            die()

    monkeypatch.setattr(Training, "validate", dying)


KILLS = [
    ("adam", kill_in_step, 0), ("adam", kill_in_step, 1), ("adam", kill_in_step, 16),
    ("adam", kill_in_save, 5), ("adam", kill_in_validation, 0), ("adam", kill_after_validation, 0),
    ("adam", kill_after_validation, 1), ("muon", kill_in_step, 7),
    ("symmetric", kill_in_step, 16),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kill", "when"), KILLS)
def test_a_killed_run_goes_on_bit_for_bit(left_alone, tmp_path, monkeypatch, kind, kill, when):
    settings, expected = left_alone(kind)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill(patch, when)
        assert run_in_a_child(settings, folder) == -9
    assert run_in_a_child(settings, folder, resume=True) == 0
    assert same(outcome(folder), expected)


def test_the_comparison_sees_another_seed(left_alone, stores, tmp_path):
    _, expected = left_alone("adam")
    assert run_in_a_child(config(stores, seed=1, **HURRIED), tmp_path / "run") == 0
    assert not same(outcome(tmp_path / "run"), expected)


def test_a_run_that_is_killed_often_ends_all_the_same(left_alone, tmp_path, monkeypatch):
    settings, expected = left_alone("muon")
    folder = tmp_path / "run"
    for number, step in enumerate((3, 9, 12, 13)):
        with monkeypatch.context() as patch:
            kill_in_step(patch, step)
            assert run_in_a_child(settings, folder, resume=number > 0) == -9
    assert run_in_a_child(settings, folder, resume=True) == 0
    assert same(outcome(folder), expected)


def test_a_finished_run_has_nothing_left_to_do(stores, tmp_path):
    settings = config(stores, epochs=1)
    train(settings, tmp_path / "run")
    before = outcome(tmp_path / "run")
    written = (tmp_path / "run" / "last" / "weights.safetensors").stat().st_mtime_ns
    train(settings, tmp_path / "run", resume=True)
    assert same(outcome(tmp_path / "run"), before)
    assert (tmp_path / "run" / "last" / "weights.safetensors").stat().st_mtime_ns == written


def test_without_saves_inside_an_epoch_it_is_repeated(left_alone, stores, tmp_path, monkeypatch):
    _, expected = left_alone("adam")
    settings = config(stores, **HURRIED | {"save_minutes": 5.0})
    with monkeypatch.context() as patch:
        kill_in_step(patch, 17)
        assert run_in_a_child(settings, tmp_path / "run") == -9
    state = torch.load(tmp_path / "run" / "state" / "last.ckpt", weights_only=True)
    assert 0 < state["progress"]["step"] < 17
    assert run_in_a_child(settings, tmp_path / "run", resume=True) == 0
    assert same(outcome(tmp_path / "run"), expected)


def as_version_0_1_0(folder):
    """Write a run's record and state as version 0.1.0 did, with PyTorch Lightning."""
    record = json.loads((folder / "run.json").read_text())
    old = {"config": record["settings"], "data": record["facts"]["data"]}
    (folder / "run.json").write_text(json.dumps(old))
    path = folder / "state" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    progress, groups, moments, first = state["progress"], [], {}, 0
    for part in state["optimizers"]:
        (group,) = part["param_groups"]
        numbers = [first + n for n in group["params"]]
        groups.append(group | {"params": numbers})
        moments |= {numbers[n]: moment for n, moment in part["state"].items()}
        first += len(numbers)
    names = ("cell", "torus", "gradient", "crystals", "steps")
    tally = ("seconds", "wall_seconds", "cpu_seconds", "step_cpu_seconds", "crystals")
    mean = {k: v for k, v in state["average"].items() if k != "n_averaged"}
    old = {
        "pytorch-lightning_version": "2.6.6",
        "global_step": progress["step"],
        "current_model_state": {f"denoiser.{k}": v for k, v in state["weights"].items()},
        "state_dict": {k.replace("module.", "denoiser.", 1): v for k, v in mean.items()},
        "averaging_state": {"n_averaged": state["average"]["n_averaged"]},
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "callbacks": {"Evaluation": {k: progress[k] for k in ("best", "figures")}},
        "tally": {k: progress[k] for k in tally},
        "window": dict(zip(names, progress["window"], strict=True)),
    }
    torch.save(old, path)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_run_of_version_0_1_0_goes_on_bit_for_bit(left_alone, tmp_path, monkeypatch, optimizer):
    settings, expected = left_alone(optimizer)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_in_step(patch, 15)
        assert run_in_a_child(settings, folder) == -9
    as_version_0_1_0(folder)
    assert "config" in json.loads((folder / "run.json").read_text())
    assert run_in_a_child(settings, folder, resume=True) == 0
    assert same(outcome(folder), expected)
