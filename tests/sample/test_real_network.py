"""The real network, untrained, through a checkpoint on disk: no stand-ins anywhere."""

import csv
import shutil
import subprocess
import sys
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
from crystorus.sample.sampler import PAIR_BYTES

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


LIMITED = """
import resource, sys
import torch
import crystorus

torch.set_num_threads(1)
folder, mebibytes = sys.argv[1], int(sys.argv[2])
model, sizes = crystorus.load(folder), []
sampler = crystorus.SamplerConfig(steps=2)
crystorus.generate("SrTiO3", model=model, sampler=sampler)
if mebibytes:
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + mebibytes * 2**20, resource.RLIM_INFINITY))
sample = model.sample
model.sample = lambda z, n, **rest: sizes.append(len(n)) or sample(z, n, **rest)
made = crystorus.generate("SrTiO3", n=120, z=[4], model=model, sampler=sampler, batch_atoms=10**6)
print(*sizes)
print(*[round(x, 3) for x in made.crystals.lattice.flatten().tolist()])
"""


def test_batches_shrink_under_a_limit_of_memory_and_the_crystals_stay(checkpoint):
    def made(mebibytes):
        words = [sys.executable, "-c", LIMITED, str(checkpoint), str(mebibytes)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        sizes, cells = (line.split() for line in done.stdout.splitlines())
        return list(map(int, sizes)), torch.tensor([float(x) for x in cells])

    sizes, cells = made(0)
    assert sizes == [120]
    fewer, again = made(200)
    assert sum(fewer) == 120
    assert max(fewer) * 20**2 * PAIR_BYTES < 0.8 * 200 * 2**20
    torch.testing.assert_close(again, cells, atol=2e-3, rtol=1e-3)
    words = [sys.executable, "-c", LIMITED, str(checkpoint), "2"]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (
        "GenerationError: a cell has 20 atoms, for which memory does not suffice" in refused.stderr
    )


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
