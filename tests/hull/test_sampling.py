"""How a campaign makes its crystals: the walks that were asked for, chosen or not."""

import csv

import pytest
import torch
from fake_model import FakeModel

from crystorus.data.compositions import parse_formula
from crystorus.hull import sampling as stage
from crystorus.hull.sampling import Sampling, plan_sampling, sample
from crystorus.sample.choosing import candidate_seed
from crystorus.sample.errors import OutputError, RequestError


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(stage, "load_checkpoint", lambda path, device="cpu": FakeModel())


def made(folder, order):
    run = plan_sampling(order, [parse_formula("LiFeO2"), parse_formula("Fe2O3")])
    sample(run, order, folder, lambda progress: None)
    with (folder / "table.csv").open(newline="") as text:
        return run, list(csv.DictReader(text))


def test_the_likeliest_of_several_candidates_is_kept(tmp_path):
    order = Sampling(n=2, candidates=5, keep_trajectories=False)
    run, rows = made(tmp_path, order)
    assert run.settings["candidates"] == 5
    errors = []
    for request in run.job.requests:
        numbers = torch.tensor(request.composition.atomic_numbers)
        walks = [FakeModel()._crystal(numbers, candidate_seed(request.seed, k)) for k in range(5)]
        lengths = [float(torch.linalg.norm(walk.lattice[0, :, 0])) for walk in walks]
        errors.append(-max(lengths))  # the fake prefers a long first vector
    assert [float(row["denoising_error"]) for row in rows] == pytest.approx(errors, abs=1e-3)


def test_without_a_choice_there_is_no_error_and_the_folder_is_another(tmp_path):
    run, rows = made(tmp_path, Sampling(n=1))
    assert "candidates" not in run.settings
    assert [row["denoising_error"] for row in rows] == ["", ""]
    with pytest.raises(OutputError, match="candidates"):
        made(tmp_path, Sampling(n=1, candidates=2))


def test_a_quality_is_a_walk_and_excludes_steps():
    wanted = [parse_formula("LiFeO2")]
    fast = plan_sampling(Sampling(quality="fast"), wanted).job.sampler
    assert (fast.name, fast.steps) == ("bridge", 12)
    assert plan_sampling(Sampling(), wanted).job.sampler == FakeModel().config.sampling
    with pytest.raises(RequestError, match="quality"):
        plan_sampling(Sampling(quality="fast", steps=4), wanted)


def test_candidates_of_templates_are_refused(library):
    with pytest.raises(RequestError, match="start at templates"):
        plan_sampling(Sampling(n=1, candidates=2, library=library), [parse_formula("CuAu")])


@pytest.mark.parametrize("candidates", [0, -1, 1_000_000])
def test_numbers_of_candidates_that_make_no_sense(candidates):
    with pytest.raises(RequestError, match="candidates"):
        plan_sampling(Sampling(candidates=candidates), [parse_formula("LiFeO2")])
