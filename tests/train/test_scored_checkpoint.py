"""What a checkpoint does that has a scorer, and which damaged ones are refused."""

import json
import math

import pytest
import torch
from known import known

import crystorus
from crystorus.checkpoint import (
    SCORER_CARD,
    SCORER_WEIGHTS,
    CheckpointError,
    load_checkpoint,
    save_scorer,
)
from crystorus.geometry import Crystals
from crystorus.networks.scorer import Scorer


@pytest.fixture
def scored(checkpoint, model):
    """A checkpoint with a scorer that was not trained but has an opinion."""
    torch.manual_seed(4)
    scorer = Scorer(model.denoiser.network, level=3)
    torch.nn.init.normal_(scorer.head[2].weight)
    save_scorer(scorer, checkpoint, {"note": "random"})
    return checkpoint


def test_confidence_is_what_the_scorer_says_and_the_most_of_it_wins(scored):
    model = load_checkpoint(scored)
    assert model.scored_by == "confidence"
    crystals = Crystals.concat(known(6))
    with torch.no_grad():
        odds = model.scorer(crystals, torch.full((6,), torch.nan))
    assert len(set(odds.tolist())) == 6
    error = model.scorer_error(crystals, seeds=[0] * 6)
    torch.testing.assert_close((-error).exp(), odds.sigmoid())
    other = model.scorer_error(crystals, seeds=[9] * 6)
    assert torch.equal(error, other), "a scorer needs no noise"
    model.scorer = None
    assert model.scored_by == "denoising_error"
    assert not torch.allclose(model.scorer_error(crystals, seeds=[0] * 6), error)


def test_python_tells_the_confidence_too(scored):
    model = crystorus.load(scored)
    made = crystorus.generate(["LiO", "Fe2O3"], n=2, model=model, candidates=3)
    expected = (-model.scorer_error(made.crystals, seeds=[0] * 4)).exp()
    assert made.confidence == pytest.approx(expected.tolist(), abs=0.02)  # then refined
    assert made[1].confidence == made.confidence[1:2]
    alone = crystorus.generate("LiO", model=model, quality="fast")
    assert math.isnan(alone.confidence[0])


def test_without_a_choice_the_scorer_changes_nothing(scored):
    model = crystorus.load(scored)
    scored = crystorus.generate("LiO", model=model, quality="fast")
    model.scorer = None
    plain = crystorus.generate("LiO", model=model, quality="fast")
    assert torch.equal(scored.crystals.lattice, plain.crystals.lattice)
    assert torch.equal(scored.crystals.frac_coords, plain.crystals.frac_coords)


def test_scorers_come_back_as_they_were_written(scored, model):
    again = load_checkpoint(scored).scorer
    assert again.level == 3
    assert len(again.digest) == 64
    assert again.network.max_atoms == model.max_atoms
    assert not again.training


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SCORER_WEIGHTS).unlink(), "is missing"),
        (lambda f: (f / SCORER_WEIGHTS).write_bytes(b"x" * 99), "truncated or was replaced"),
        (lambda f: (f / SCORER_CARD).write_text("{"), "is damaged"),
        (lambda f: (f / SCORER_CARD).write_text('{"format": 1}'), "lacks level, sha256"),
        (lambda f: (f / SCORER_CARD).write_text('{"format": 99}'), "upgrade crystorus"),
        (lambda f: edit(f, level=-1), "limits 0 to 20"),
        (lambda f: edit(f, level="many"), "limits 0 to 20"),
    ],
)
def test_damaged_scorers_are_refused(scored, damage, message):
    damage(scored)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(scored)


def edit(folder, **changes):
    card = json.loads((folder / SCORER_CARD).read_text())
    (folder / SCORER_CARD).write_text(json.dumps(card | changes))


def test_softplus_does_not_overflow(scored):
    """Confidence near 0 and 1 stays a number."""
    model = load_checkpoint(scored)
    with torch.no_grad():
        model.scorer.head[2].bias.fill_(-500.0)
    error = model.scorer_error(Crystals.concat(known(2)), seeds=[0, 1])
    assert torch.isfinite(error).all()
    assert math.exp(-float(error[0])) < 1e-200
