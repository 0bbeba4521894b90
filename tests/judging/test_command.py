"""`crystorus judge`, and what a checkpoint with a judge does in `sample`."""

import csv
import json
import math

import ase.io
import pytest
import torch
from judging.conftest import known
from typer.testing import CliRunner

import crystorus
from crystorus import cli
from crystorus.checkpoint import (
    JUDGE_CARD,
    JUDGE_WEIGHTS,
    CheckpointError,
    load_checkpoint,
    save_judge,
)
from crystorus.data.io import crystals_to_atoms
from crystorus.geometry import Crystals
from crystorus.judging import candidates, command
from crystorus.judging.candidates import matches
from crystorus.networks.judge import Judge


def run(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="crystorus")


@pytest.fixture
def data(tmp_path):
    ase.io.write(tmp_path / "known.extxyz", crystals_to_atoms(Crystals.concat(known(48))))
    return tmp_path / "known.extxyz"


@pytest.fixture
def here(monkeypatch):
    """Parts are made in this process; every first candidate counts as right."""

    def share_out(function, tasks, crew):
        model = load_checkpoint(crew.checkpoint)
        yield from (function(model, task) for task in tasks)

    monkeypatch.setattr(candidates, "share_out", share_out)
    asked = iter(range(10**6))
    monkeypatch.setattr(candidates, "matches", lambda made, truth: next(asked) % 3 == 0)
    assert matches is not candidates.matches


@pytest.fixture
def judged(checkpoint, model):
    """A checkpoint with a judge that was not trained but has an opinion."""
    torch.manual_seed(4)
    judge = Judge(model.denoiser.network, level=3)
    torch.nn.init.normal_(judge.head[2].weight)
    save_judge(judge, checkpoint, {"note": "random"})
    return checkpoint


def test_from_known_crystals_to_a_choice_in_sample(data, checkpoint, here, tmp_path):
    words = ("judge", data, "--checkpoint", checkpoint, "--out", tmp_path / "run",
             "--candidates", 3, "--epochs", 1)  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run/judged"
    about = json.loads((folder / JUDGE_CARD).read_text())["card"]
    assert about["compositions"] == 48
    assert about["held_out"]["groups"] == 3
    assert about["held_out"]["first"] == 1.0
    assert load_checkpoint(folder).digest == load_checkpoint(checkpoint).digest
    out = tmp_path / "crystals"
    made = run("sample", "LiO", "--candidates", 2, "--checkpoint", folder, "--out", out)
    assert made.exit_code == 0, made.output
    (row,) = csv.DictReader((out / "table.csv").open())
    assert 0 < float(row["confidence"]) < 1
    assert row["denoising_error"] == ""
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["judge_sha256"] == load_checkpoint(folder).judge.digest
    assert ase.io.read(out / "crystals.extxyz").info["confidence"] == float(row["confidence"])
    again = run(*words)
    assert again.exit_code == 0, again.output  # the candidates are there already


def test_confidence_is_what_the_judge_says_and_the_most_of_it_wins(judged):
    model = load_checkpoint(judged)
    assert model.judged_by == "confidence"
    crystals = Crystals.concat(known(6))
    with torch.no_grad():
        odds = model.judge(crystals)
    assert len(set(odds.tolist())) == 6
    error = model.judging_error(crystals, seeds=[0] * 6)
    torch.testing.assert_close((-error).exp(), odds.sigmoid())
    other = model.judging_error(crystals, seeds=[9] * 6)
    assert torch.equal(error, other), "a judge needs no noise"
    model.judge = None
    assert model.judged_by == "denoising_error"
    assert not torch.allclose(model.judging_error(crystals, seeds=[0] * 6), error)


def test_python_tells_the_confidence_too(judged, tmp_path):
    model = crystorus.load(judged)
    made = crystorus.generate(["LiO", "Fe2O3"], n=2, model=model, candidates=3)
    out = tmp_path / "out"
    words = ("LiO", "Fe2O3", "--n", 2, "--candidates", 3, "--checkpoint", judged, "--out", out)
    assert run("sample", *words).exit_code == 0
    told = [float(row["confidence"]) for row in csv.DictReader((out / "table.csv").open())]
    assert made.confidence == pytest.approx(told, abs=1e-4)
    assert made[1].confidence == made.confidence[1:2]
    alone = crystorus.generate("LiO", model=model)
    assert math.isnan(alone.confidence[0])


def test_without_a_choice_the_judge_changes_nothing(judged, model, tmp_path):
    (judged / JUDGE_WEIGHTS).rename(tmp_path / "aside.safetensors")
    card = (judged / JUDGE_CARD).read_text()
    (judged / JUDGE_CARD).unlink()
    plain = run("sample", "LiO", "--checkpoint", judged, "--out", tmp_path / "plain")
    (tmp_path / "aside.safetensors").rename(judged / JUDGE_WEIGHTS)
    (judged / JUDGE_CARD).write_text(card)
    with_judge = run("sample", "LiO", "--checkpoint", judged, "--out", tmp_path / "with")
    assert plain.exit_code == with_judge.exit_code == 0
    one, other = ((tmp_path / name / "crystals.extxyz").read_bytes() for name in ("plain", "with"))
    assert one == other


def test_judges_come_back_as_they_were_written(judged, model):
    again = load_checkpoint(judged).judge
    assert again.level == 3
    assert len(again.digest) == 64
    assert again.network.largest == model.max_atoms
    assert not again.training


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / JUDGE_WEIGHTS).unlink(), "is missing"),
        (lambda f: (f / JUDGE_WEIGHTS).write_bytes(b"x" * 99), "truncated or was replaced"),
        (lambda f: (f / JUDGE_CARD).write_text("{"), "is damaged"),
        (lambda f: (f / JUDGE_CARD).write_text('{"format": 1}'), "lacks level, sha256"),
        (lambda f: (f / JUDGE_CARD).write_text('{"format": 99}'), "upgrade crystorus"),
        (lambda f: edit(f, level=-1), "limits 0 to 20"),
        (lambda f: edit(f, level="many"), "limits 0 to 20"),
    ],
)
def test_damaged_judges_are_refused(judged, damage, message):
    damage(judged)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(judged)


def edit(folder, **changes):
    card = json.loads((folder / JUDGE_CARD).read_text())
    (folder / JUDGE_CARD).write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--candidates", 1), "--candidates is 1: give 2 to 100"),
        (("--compositions", 0), "--compositions is 0"),
        (("--epochs", 0), "--epochs is 0"),
        (("--workers", 0), "--workers is 0"),
    ],
)
def test_orders_that_make_no_sense_are_refused(data, checkpoint, tmp_path, words, message):
    result = run("judge", data, "--checkpoint", checkpoint, "--out", tmp_path / "run", *words)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_missing_data_and_another_run_in_the_folder(data, checkpoint, here, tmp_path):
    out = tmp_path / "run"
    result = run("judge", tmp_path / "no.csv", "--checkpoint", checkpoint, "--out", out)
    assert result.exit_code == 1
    assert "crystorus data get mp-20" in result.output
    words = ("judge", data, "--checkpoint", checkpoint, "--out", out, "--epochs", 1)
    assert run(*words, "--candidates", 3).exit_code == 0
    result = run(*words, "--candidates", 4)
    assert result.exit_code == 1
    assert "candidates 3 there, 4 now" in " ".join(result.output.split())
    (out / command.SETTINGS).write_text("{")
    assert "is damaged" in run(*words, "--candidates", 3).output


def test_softplus_does_not_overflow(judged):
    """Confidence near 0 and 1 stays a number."""
    model = load_checkpoint(judged)
    with torch.no_grad():
        model.judge.head[2].bias.fill_(-500.0)
    error = model.judging_error(Crystals.concat(known(2)), seeds=[0, 1])
    assert torch.isfinite(error).all()
    assert math.exp(-float(error[0])) < 1e-200
