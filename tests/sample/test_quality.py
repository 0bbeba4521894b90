"""Quality levels, precision and workers: from the options to the crystals."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import ase.io
import pytest
import torch
from commandline import CliRunner
from fake_model import FakeModel

import crystorus
from crystorus import cli
from crystorus.checkpoint import save_checkpoint
from crystorus.config import SamplerConfig, load_config
from crystorus.crystal_model import build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.networks import precision
from crystorus.sample import command
from crystorus.sample.errors import GenerationError, RequestError
from crystorus.sample.quality import BEST, FAST, sampler_at
from crystorus.sample.workers import Crew, share_out

SMOKE = Path(__file__).parents[2] / "configs/smoke.toml"


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(command, "load_checkpoint", lambda path, device="cpu": FakeModel())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    torch.manual_seed(0)
    model = build_model(load_config(SMOKE, []), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 8, 22, 26, 38})
    save_checkpoint(model, folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(cli.app, ["sample", *map(str, arguments)], prog_name="crystorus")


def settings_of(folder):
    return json.loads((folder / "run.json").read_text())["settings"]


def test_fast_takes_a_tenth_of_the_evaluations_of_best():
    assert 10 * FAST.steps <= BEST.steps


def test_default_is_the_checkpoints_own_and_no_level_outgrows_it():
    own = SamplerConfig(steps=7)
    assert sampler_at("default", own, "default", 50) == own
    assert sampler_at("fast", own, "default", 50) == FAST
    assert sampler_at("best", own, "default", 50).steps == 50
    with pytest.raises(RequestError, match=r"'slow'.*fast, default, best"):
        sampler_at("slow", own, "default", 50)


def test_paper_keeps_its_sampler_at_every_level():
    own = SamplerConfig("paper", 50)
    assert sampler_at("fast", own, "paper", 100) == SamplerConfig("paper", 5)
    assert sampler_at("best", own, "paper", 100) == SamplerConfig("paper", 100)


def test_a_quality_is_recorded_and_silence_records_what_it_always_did(fake, tmp_path):
    assert run("LiO", "--out", tmp_path / "plain").exit_code == 0
    assert set(settings_of(tmp_path / "plain")["sampler"]) == {"name", "steps", "anti_annealing"}
    assert run("LiO", "--out", tmp_path / "default", "--quality", "default").exit_code == 0
    assert settings_of(tmp_path / "default") == settings_of(tmp_path / "plain")
    assert run("LiO", "--out", tmp_path / "fast", "--quality", "fast").exit_code == 0
    found = SamplerConfig(**settings_of(tmp_path / "fast")["sampler"])
    assert found == FAST


@pytest.mark.parametrize("option", [("--sampler", "ode"), ("--steps", 5), ("--anti-annealing", 1)])
def test_a_quality_beside_a_walk_of_ones_own_is_refused(fake, tmp_path, option):
    result = run("LiO", "--quality", "fast", *option, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "--quality fast is a sampler with its steps: leave it out, or" in result.stderr
    assert not (tmp_path / "out").exists()


def test_python_takes_a_quality_or_a_sampler():
    made = crystorus.generate("LiO", model=FakeModel(), quality="fast", keep_trajectory=True)
    assert len(made.trajectory) == FAST.steps
    with pytest.raises(RequestError, match="both sampler and quality"):
        crystorus.generate("LiO", model=FakeModel(), quality="fast", sampler=SamplerConfig())


def test_precision_is_recorded_and_auto_follows_the_processor(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_FEATURES", tmp_path / "cpuinfo")
    for features, expected in (("fma avx2", "fp32"), ("fma avx512_bf16", "bf16")):
        (tmp_path / "cpuinfo").write_text(f"flags : {features}\n")
        out = tmp_path / expected
        assert run("LiO", "--precision", "auto", "--out", out).exit_code == 0
        assert settings_of(out)["sampler"].get("precision", "fp32") == expected
    result = run("LiO", "--precision", "fp32", "--out", tmp_path / "bf16")
    assert result.exit_code == 1
    assert "holds another run: its sampler" in result.stderr


def test_a_machine_that_says_nothing_of_itself_gets_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_FEATURES", tmp_path / "absent")
    assert not precision.has_fast_bf16("cpu")
    assert not precision.has_fast_bf16("mps")


def test_paper_has_no_bf16(fake, tmp_path, monkeypatch):
    model = FakeModel()
    model.config.preset = "paper"
    monkeypatch.setattr(command, "load_checkpoint", lambda path, device="cpu": model)
    result = run("LiO", "--precision", "bf16", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "--precision bf16 is for the default preset" in result.stderr
    assert run("LiO", "--precision", "auto", "--out", tmp_path / "out").exit_code == 0


def test_bf16_changes_products_of_this_call_only(checkpoint):
    model = crystorus.load(checkpoint)
    plain = SamplerConfig(steps=2)
    first, rounded, again = (
        crystorus.generate("SrTiO3", model=model, sampler=sampler).crystals
        for sampler in (plain, replace(plain, precision="bf16"), plain)
    )
    assert torch.equal(first.lattice, again.lattice)
    assert not torch.equal(first.lattice, rounded.lattice)
    torch.testing.assert_close(first.lattice, rounded.lattice, atol=0.2, rtol=0.05)


def test_workers_make_the_crystals_that_one_process_makes(checkpoint, tmp_path):
    for workers in (1, 2):
        result = run(
            "LiFeO2", "SrTiO3", "Fe", "--n", 3, "--steps", 3, "--batch-atoms", 12,
            "--keep-trajectory", "--workers", workers, "--checkpoint", checkpoint,
            "--out", tmp_path / str(workers),
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    assert settings_of(one) == settings_of(two)
    assert sorted(p.relative_to(one) for p in one.rglob("*")) == sorted(
        p.relative_to(two) for p in two.rglob("*")
    )
    frames = [ase.io.read(folder / "crystals.extxyz", ":") for folder in (one, two)]
    for a, b in zip(*frames, strict=True):
        assert a.get_chemical_formula() == b.get_chemical_formula()
        assert a.positions == pytest.approx(b.positions, abs=1e-3)
    rows = [list(csv.DictReader((folder / "table.csv").open())) for folder in (one, two)]
    assert [r["seed"] for r in rows[0]] == [r["seed"] for r in rows[1]]


def _kill_itself(model, task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_sentence(checkpoint):
    with pytest.raises(GenerationError, match=r"died.*fewer --workers"):
        list(share_out(_kill_itself, [1, 2], Crew(1, checkpoint)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--workers", 0), "--workers is 0"), (("--workers", 2, "--device", "cuda"), "--device cpu")],
)
def test_workers_that_cannot_work_are_refused(fake, tmp_path, arguments, words):
    result = run("LiO", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert words in result.stderr


def test_larger_cells_than_any_in_training_are_made_on_demand(fake, tmp_path):
    arguments = ("LiFeO2", "--z", 6, "--out", tmp_path / "out")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "24 atoms" in refused.stderr
    assert "--large" in refused.stderr
    made = run(*arguments, "--large")
    assert made.exit_code == 0
    assert "warning: " in made.stderr
    assert "trained on at most 20: expect little of it" in made.stderr
    assert len(ase.io.read(tmp_path / "out/crystals.extxyz")) == 24
    assert len(crystorus.generate("LiFeO2", z=6, model=FakeModel(), large=True)) == 1
