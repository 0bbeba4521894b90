"""Candidates: which is kept, from the walks to the files."""

import csv
import json

import ase.io
import pytest
import torch
from ase.neighborlist import neighbor_list
from commandline import CliRunner
from fake_model import FakeModel

import crystorus
from crystorus import cli
from crystorus.config import SamplerConfig
from crystorus.data.io import crystals_to_atoms
from crystorus.geometry.crystals import Crystals
from crystorus.sample import command
from crystorus.sample.choosing import SETTLE, candidate_seed, choose_crystals, kept_steps
from crystorus.sample.errors import RequestError

NUMBERS, SIZES = torch.tensor([3, 8, 8, 26, 8]), torch.tensor([2, 3])


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(command, "load_checkpoint", lambda path, device="cpu": FakeModel())


def run(*arguments):
    return CliRunner().invoke(cli.app, ["sample", *map(str, arguments)], prog_name="crystorus")


def choose(model, candidates, **options):
    return choose_crystals(
        model,
        NUMBERS,
        SIZES,
        seeds=[1, 2],
        sampler=SamplerConfig(steps=3),
        candidates=candidates,
        **options,
    )


def collides(crystals):
    frames = crystals_to_atoms(crystals)
    return torch.tensor([len(neighbor_list("d", atoms, 0.5)) > 0 for atoms in frames])


def test_the_likeliest_candidate_of_each_crystal_is_kept():
    model = FakeModel()
    every = [
        model.sample(
            NUMBERS,
            SIZES,
            seeds=[candidate_seed(seed, walk) for seed in (1, 2)],
            sampler=SamplerConfig(steps=3),
        )
        for walk in range(5)
    ]
    errors = torch.stack(
        [torch.where(collides(made), torch.inf, model.judge(made)) for made in every]
    )
    assert torch.isinf(errors[0]).any()
    choice = choose(model, 5)
    assert choice.walk.tolist() == errors.argmin(0).tolist()
    torch.testing.assert_close(choice.error, errors.min(0).values)
    for n, walk in enumerate(choice.walk.tolist()):
        assert torch.equal(choice.crystals.select([n]).lattice, every[walk].select([n]).lattice)
        kept, made = choice.crystals.select([n]), every[walk].select([n])
        assert torch.equal(kept.frac_coords, made.frac_coords)
    assert len({candidate_seed(1, walk) for walk in range(100)}) == 100


def test_candidates_meet_one_noise_that_none_of_them_began_at():
    model, asked = FakeModel(), []
    judge = model.scorer_error

    def record(crystals, *, seeds, precision):
        asked.append(list(seeds))
        return judge(crystals, seeds=seeds, precision=precision)

    model.scorer_error = record
    choose(model, 4)
    judged = {seed for seeds in asked for seed in seeds}
    assert len(judged) == 2, "one per crystal, whichever candidates are valid"
    walks = {candidate_seed(seed, walk) for seed in (1, 2) for walk in range(4)}
    assert not walks & judged


def test_the_first_candidate_is_what_is_made_without_a_choice():
    model = FakeModel()
    plain = model.sample(NUMBERS, SIZES, seeds=[1, 2], sampler=SamplerConfig(steps=3))
    assert torch.equal(choose(model, 1).crystals.lattice, plain.lattice)


def test_colliding_and_broken_candidates_are_kept_only_where_there_is_nothing_else():
    class Colliding(FakeModel):
        def _crystal(self, numbers, seed):
            crystal = super()._crystal(numbers, seed)
            if seed == 1:  # the first candidate of the first crystal: the judge's favourite
                return crystal.with_geometry(
                    1e3 * crystal.lattice, torch.zeros_like(crystal.frac_coords)
                )
            if seed == 2:
                return crystal.with_geometry(torch.nan * crystal.lattice, crystal.frac_coords)
            return crystal

    assert (choose(Colliding(), 3).walk > 0).all()
    alone = choose(Colliding(), 1)
    assert torch.isinf(alone.error).all()
    assert alone.walk.tolist() == [0, 0]


def test_films_are_those_of_the_crystals_that_were_kept():
    steps = [
        Crystals(
            torch.eye(3).repeat(2, 1, 1) * (10 * walk + step), torch.zeros(5, 3), NUMBERS, SIZES
        )
        for walk in range(3)
        for step in range(4)
    ]
    rest = [Crystals(99 * torch.eye(3).repeat(2, 1, 1), torch.zeros(5, 3), NUMBERS, SIZES)]
    film = kept_steps(steps + rest, torch.tensor([2, 0]), 3, settled=1)
    assert [int(step.lattice[0, 0, 0]) for step in film] == [20, 21, 22, 23, 99]
    assert [int(step.lattice[1, 0, 0]) for step in film] == [0, 1, 2, 3, 99]


def test_progress_counts_the_steps_of_all_walks():
    seen = []
    choose(FakeModel(), 4, on_step=lambda step, total, crystals: seen.append((step, total)))
    assert seen == [(step, 4 * 3 + SETTLE) for step in range(1, 4 * 3 + SETTLE + 1)]


def test_the_command_line_chooses_and_records_it(fake, tmp_path):
    plain, chosen = tmp_path / "plain", tmp_path / "chosen"
    assert run("LiO", "FeO2", "--n", 3, "--out", plain).exit_code == 0
    result = run("LiO", "FeO2", "--n", 3, "--candidates", 6, "--keep-trajectory", "--out", chosen)
    assert result.exit_code == 0, result.output
    settings = json.loads((chosen / "run.json").read_text())["settings"]
    assert settings["candidates"] == 6
    assert "candidates" not in json.loads((plain / "run.json").read_text())["settings"]
    before = ase.io.read(plain / "crystals.extxyz", ":")
    after = ase.io.read(chosen / "crystals.extxyz", ":")
    longer = [new.cell.lengths()[0] >= old.cell.lengths()[0] for old, new in zip(before, after)]
    assert all(longer)
    rows = list(csv.DictReader((chosen / "table.csv").open()))
    told = [float(row["denoising_error"]) for row in rows]
    assert told == pytest.approx([-atoms.cell.lengths()[0] for atoms in after], abs=1e-3)
    assert told == [atoms.info["denoising_error"] for atoms in after]
    plain_rows = csv.DictReader((plain / "table.csv").open())
    assert {row["denoising_error"] for row in plain_rows} == {""}
    films = sorted((chosen / "trajectories").glob("*.extxyz"))
    assert [len(ase.io.read(film, ":")) for film in films] == [3 + SETTLE] * 6
    for film, made in zip(films, after, strict=True):
        assert ase.io.read(film, -1).cell.lengths() == pytest.approx(made.cell.lengths(), abs=1e-6)


def test_python_and_command_line_choose_the_same(fake, tmp_path):
    assert run("LiO", "--candidates", 4, "--n", 2, "--out", tmp_path).exit_code == 0
    made = crystorus.generate("LiO", n=2, model=FakeModel(), candidates=4).to_ase()
    for one, other in zip(made, ase.io.read(tmp_path / "crystals.extxyz", ":"), strict=True):
        assert one.cell.cellpar() == pytest.approx(other.cell.cellpar(), abs=1e-6)


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_numbers_of_candidates_that_make_no_sense_are_refused(fake, tmp_path, number):
    result = run("LiO", "--candidates", number, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert f"{number} candidates" in result.output
    assert "1 to 1000" in result.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match="1 to 1000"):
        crystorus.generate("LiO", model=FakeModel(), candidates=number)
