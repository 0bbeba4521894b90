"""The real network, untrained, through a checkpoint on disk: no stand-ins anywhere."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from commandline import CliRunner

import crystorus
from crystorus import cli
from crystorus.checkpoint import save_checkpoint
from crystorus.config import load_config
from crystorus.crystal_model import build_model
from crystorus.diffusion.cell_prior import CellStatistics

SMOKE = Path(__file__).parents[2] / "configs/smoke.toml"
FORMULAS = ["LiFeO2", "SrTiO3", "Fe"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    torch.manual_seed(0)
    model = build_model(load_config(SMOKE, []), CellStatistics.neutral())
    model.trained_elements = frozenset({3, 8, 22, 26, 38})
    model.card = {"data": "none", "validation": {"crystals": 0}}
    save_checkpoint(model, folder)
    return folder


@pytest.mark.parametrize("name", ["bridge", "ode", "paper"])
def test_same_seed_same_crystals_whatever_the_batch_size(checkpoint, name):
    model = crystorus.load(checkpoint)
    sampler = crystorus.SamplerConfig(name=name, steps=4)
    together, alone, other = (
        crystorus.generate(
            FORMULAS, seed=seed, model=model, sampler=sampler, batch_atoms=size
        ).crystals
        for seed, size in ((0, 1000), (0, 1), (1, 1000))
    )
    torch.testing.assert_close(together.lattice, alone.lattice, atol=1e-3, rtol=1e-4)
    apart = together.frac_coords - alone.frac_coords
    assert (apart - apart.round()).abs().max() < 1e-3
    assert not torch.allclose(together.lattice, other.lattice, atol=1e-2)


def crystorus_cli(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="crystorus")


def test_a_checkpoint_of_ones_own_makes_files(checkpoint, tmp_path):
    result = crystorus_cli(
        "sample",
        *FORMULAS,
        "--n",
        2,
        "--steps",
        4,
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "out",
    )
    assert (result.exit_code, result.exception) == (0, None)
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert [row["formula"] for row in rows] == ["LiFeO2"] * 2 + ["SrTiO3"] * 2 + ["Fe"] * 2
    assert all(float(row["volume"]) > 0 for row in rows)
    assert len(list((tmp_path / "out/cif-symmetrised").iterdir())) == 6


def test_more_steps_than_levels_are_refused(checkpoint, tmp_path):
    result = crystorus_cli(
        "sample", "Fe", "--steps", 51, "--checkpoint", checkpoint, "--out", tmp_path
    )
    assert result.exit_code == 1
    assert "51 steps were asked for: this checkpoint takes 1 to 50" in result.stderr


def test_another_checkpoint_is_another_run(checkpoint, tmp_path):
    arguments = ["sample", "Fe", "--steps", 2, "--out", tmp_path / "out", "--checkpoint"]
    assert crystorus_cli(*arguments, checkpoint).exit_code == 0
    torch.manual_seed(1)
    other = build_model(load_config(SMOKE, []), CellStatistics.neutral())
    other.trained_elements = frozenset({26})
    save_checkpoint(other, tmp_path / "other")
    result = crystorus_cli(*arguments, tmp_path / "other")
    assert result.exit_code == 1
    assert "checkpoint_sha256" in result.stderr


def test_a_truncated_checkpoint_is_one_sentence(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "cut")
    weights = tmp_path / "cut/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = crystorus_cli(
        "sample", "Fe", "--checkpoint", tmp_path / "cut", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "truncated" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_info_shows_the_card(checkpoint):
    result = crystorus_cli("info", checkpoint)
    assert result.exit_code == 0
    assert "max_atoms" in result.stdout
    assert "validation" in result.stdout
